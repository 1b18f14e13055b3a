"""What to label: features of the pool, then a subset of it."""
