"""The base class of all errors that a user can correct."""


class InputError(ValueError):
    """An input is not usable; the message names the file or key and what was expected."""
