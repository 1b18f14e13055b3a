"""Evidence that a subset was worth choosing: how near it is to its pool, how diverse, and what its labels are worth."""
