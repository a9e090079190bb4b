"""The one exception that means: the user can fix this, and the sentence says how. And how a command says it."""

import errno
import functools
import os
import sys
from collections.abc import Callable

from rlhf_jax.runtime import terminal

EXIT_BAD_INPUT, EXIT_STOPPED = 2, 130


class InputError(ValueError):
    """Bad input: a file, line, field or flag. Its message is one sentence that names it.

    A command prints the sentence without a traceback and exits with status 2.
    """


def reason(error: Exception) -> str:
    """Why a file cannot be read or written, without its name: "No space left on device"; of JSON, what it must not hold."""
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} of it is not UTF-8"
    if isinstance(error, RecursionError):
        return "it nests lists or objects too deep"
    if "set_int_max_str_digits" in str(error):
        return f"it holds a whole number of more than {sys.get_int_max_str_digits()} digits"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


# What a disk, its limits or its permissions refuse, and would refuse again.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
_REFUSED = {
    errno.EACCES,
    errno.EPERM,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EMFILE,
}


def refused(error: BaseException) -> str | None:
    """What a person can do something about, of an error of the system that nobody explained; None for any other.

    TensorStore and others raise errors of their own with the system's message inside.
    """
    if isinstance(error, OSError) and (error.errno in _FULL or error.filename and error.errno in _REFUSED):
        return f"{error.filename}: {reason(error)}" if error.filename else reason(error)
    return next((text for text in map(os.strerror, sorted(_FULL)) if text in str(error)), None)


def as_command(name: str, stopped: str = "stopped") -> Callable:
    """Decorates the main function of a command: bad input and Ctrl-C end it with a sentence and an exit status.

    What it prints cannot steer the terminal (see terminal.py).

    Args:
      name: of the command, before every sentence.
      stopped: what Ctrl-C has left; a KeyboardInterrupt with a text of its own says that instead.

    Returns:
      A function that returns the exit status: that of main (0 for None), 2 after InputError, 130 after Ctrl-C.
    """

    def decorate(main: Callable[..., int | None]) -> Callable[..., int]:
        @functools.wraps(main)
        @terminal.guarded()
        def run(*arguments) -> int:
            try:
                return main(*arguments) or 0
            except InputError as error:
                said, status = str(error), EXIT_BAD_INPUT
            except KeyboardInterrupt as error:
                said, status = str(error) or stopped, EXIT_STOPPED
            print(f"{name}: {said}", file=sys.stderr)
            return status

        return run

    return decorate
