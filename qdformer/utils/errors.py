"""The base classes of all errors that a user can correct."""


class InputError(ValueError):
    """An input is not usable; the message names the file or key and what was expected."""


class TransientError(InputError):
    """Something outside of this machine does not answer, so that the same call may succeed later."""
