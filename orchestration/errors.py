"""The one kind of error a user sees: a sentence that names the file, the field and the mend."""


class FinegrainError(Exception):
    """Something the user can mend. The command line prints the message alone and exits with 2."""
