"""The one base of all errors that a user can mend."""


class InputError(ValueError):
    """Something given is not usable; the message names the file or key and what was expected."""
