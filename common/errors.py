"""The one error that is meant for the user."""


class InputError(ValueError):
    """Something the user gave cannot be used. The message says what is wrong, with which value, and what to do."""
