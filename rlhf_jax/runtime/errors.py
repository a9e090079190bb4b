"""The one exception that means that the user can fix what is wrong, and how a command shows its sentence."""

import contextlib
import errno
import functools
import os
import sys
from collections.abc import Callable, Iterator

from rlhf_jax.runtime import terminal

EXIT_BAD_INPUT, EXIT_STOPPED = 2, 130


class InputError(ValueError):
    """Bad input: a file, line, field or flag. Its message is one sentence that names it.

    A command prints the sentence without a traceback and exits with status 2.
    """


def reason(error: Exception) -> str:
    """Returns why a file cannot be read or written, without its name: "No space left on device".

    For a JSON file that cannot be read, it says what the file must not hold.
    """
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} of it is not UTF-8"
    if isinstance(error, RecursionError):
        return "it nests lists or objects too deep"
    if "set_int_max_str_digits" in str(error):
        return f"it holds a whole number of more than {sys.get_int_max_str_digits()} digits"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


@contextlib.contextmanager
def explained(doing: str) -> Iterator[None]:
    """Context in which an error of the system becomes an InputError: "cannot DOING: No space left on device".

    Args:
      doing: a verb and the path, such as "write runs/a/metrics.jsonl".
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot {doing}: {reason(error)}") from error


# Errors of a disk, its limits or its permissions, which another try would meet again.
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
    """Returns the sentence of an error of the system that a person can do something about; None for any other error.

    TensorStore and others raise errors of their own with the system's message inside.
    """
    if isinstance(error, OSError) and (error.errno in _FULL or error.filename and error.errno in _REFUSED):
        return f"{error.filename}: {reason(error)}" if error.filename else reason(error)
    return next((text for text in map(os.strerror, sorted(_FULL)) if text in str(error)), None)


def as_command(name: str, stopped: str = "stopped") -> Callable:
    """Decorates the main function of a command: bad input and Ctrl-C end it with a sentence and an exit status.

    Nothing that the command prints can steer the terminal (see terminal.py).

    Args:
      name: name of the command, which starts every sentence.
      stopped: sentence after Ctrl-C; a KeyboardInterrupt with a text of its own replaces it.

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
