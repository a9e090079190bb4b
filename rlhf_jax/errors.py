"""The one exception that means: the user can fix this, and the sentence says how."""


class InputError(ValueError):
    """Bad input: a file, line, field or flag. Its message is one sentence that names it.

    `main` prints the sentence without a traceback and exits with status 2.
    """
