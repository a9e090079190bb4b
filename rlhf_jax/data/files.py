"""Reads text files, plain or compressed; error messages name the file and, where possible, the line."""

import contextlib
import gzip
import hashlib
import lzma
import os
import pathlib
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import check_is_no_pipe

MAX_LINE_BYTES = 16 * 2**20

# Compressed text expands to some 3 to 20 times its size; a file that expands far more is no text.
MAX_RATIO = 300
ALWAYS_ALLOWED_BYTES = 64 * 2**20

_OPENERS = {".xz": lzma.open, ".gz": gzip.open}
_LISTED = 12  # number of names that a listing of a folder shows
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def file_type(path: str | os.PathLike) -> str:
    """Returns the suffix of a file without that of its compression, e.g. '.jsonl' for 'rows.jsonl.xz'."""
    suffixes = pathlib.Path(path).suffixes
    if suffixes and suffixes[-1] in _OPENERS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def read_lines(path: str | os.PathLike) -> Iterator[tuple[int, bytes | None]]:
    """Yields (number, line without its line end), counted from 1; a line over MAX_LINE_BYTES is None.

    Memory stays bounded, whatever a compressed file expands to: longer lines are skipped piece by piece.

    Raises:
        InputError: the file is missing, empty or unreadable, or its compression is broken.
    """
    number = 0
    with _open(path) as file:
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            too_long = len(line) > MAX_LINE_BYTES and not line.endswith(b"\n")
            rest = line if too_long else b""
            while rest and not rest.endswith(b"\n"):
                rest = file.readline(MAX_LINE_BYTES)
            yield number, None if too_long else line.rstrip(b"\r\n")
    if not number:
        raise InputError(f"{path}: the file is empty")


def read_text(path: str | os.PathLike) -> str:
    """Returns the content of a UTF-8 file, with '\\n' as line ends; raises InputError as read_lines does."""
    with _open(path) as file:
        data = file.read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: {not_utf8(error)}") from None
    if not text.strip():
        raise InputError(f"{path}: the file is empty")
    return text.replace("\r\n", "\n")


def checksum(path: str | os.PathLike) -> str:
    """Returns the SHA-256 of a file, not decompressed, in hexadecimal digits; raises as read_lines does."""
    with _open(path, unpacked=False) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def first_byte(path: str | os.PathLike) -> bytes:
    """Returns the first byte that is neither white space nor a byte order mark; b"" if there is none.

    Raises:
        InputError: as read_lines does.
    """
    with _open(path) as file:
        while line := file.readline(1024):
            if start := line.removeprefix(b"\xef\xbb\xbf").lstrip():
                return start[:1]
    return b""


def not_utf8(error: UnicodeDecodeError) -> str:
    """Returns the text of an error message about bytes that are not UTF-8."""
    return f"byte 0x{error.object[error.start]:02x} is not UTF-8; save the file as UTF-8"


def check_content(path: pathlib.Path) -> None:
    """Raises InputError for a pipe or a device, and for a file that is only a pointer of Git LFS."""
    check_is_no_pipe(path)
    try:
        with open(path, "rb") as file:
            pointer = file.read(len(_LFS_POINTER)) == _LFS_POINTER
    except OSError:
        return  # the reader that opens the file reports the error
    if pointer:
        raise InputError(f"{path}: is a pointer of Git LFS, and not the file; run `git lfs pull` in its repository")


class _Bounded:
    """A compressed file that raises InputError once it has expanded to far more than text would."""

    def __init__(self, file: BinaryIO, path: pathlib.Path):
        self._file, self._path = file, path
        self._left = max(ALWAYS_ALLOWED_BYTES, MAX_RATIO * path.stat().st_size)

    def readline(self, size: int) -> bytes:
        return self._counted(self._file.readline(size))

    def read(self) -> bytes:
        return self._counted(self._file.read(self._left + 1))

    def _counted(self, data: bytes) -> bytes:
        """Returns data, after subtracting its size from what the file may still expand to."""
        self._left -= len(data)
        if self._left < 0:
            raise expands_too_far(self._path, "unpack it")
        return data


def expands_too_far(path: pathlib.Path, instead: str) -> InputError:
    """Returns the error of a file that expands to far more than text would; `instead` is what to do if that is meant."""
    return InputError(
        f"{path}: the content is more than {MAX_RATIO} times as large as the file, which text never is; "
        f"if that is right, {instead} first"
    )


def missing(path: pathlib.Path) -> InputError:
    """Returns the error of a file that does not exist; it lists the names in the closest existing folder above it."""
    folder = next((parent for parent in path.parents if parent.is_dir()), path.parent)
    why = "" if folder == path.parent else f", because there is no folder {path.parent}"
    return InputError(f"{path}: no such file{why}; {listing(folder)}")


@contextlib.contextmanager
def _open(path: str | os.PathLike, unpacked: bool = True) -> Iterator[BinaryIO]:
    """Opens a file for reading bytes, decompressed if `unpacked`; errors of opening and reading become InputError."""
    path = pathlib.Path(path)
    openers = _OPENERS if unpacked else {}
    check_content(path)
    try:
        with openers.get(path.suffix, open)(path, "rb") as file:
            yield _Bounded(file, path) if path.suffix in openers else file
    except FileNotFoundError:
        raise missing(path) from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder; name one file of it ({listing(path)})") from None
    except EOFError:
        raise InputError(f"{path}: the compressed file ends too early; copy or download it again") from None
    except (lzma.LZMAError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: is not a valid {path.suffix} file ({error})") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def listing(folder: pathlib.Path) -> str:
    """Returns a sentence that lists the first few names in a folder, for error messages."""
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError:
        return f"{folder} cannot be listed"
    shown = ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
    return f"{folder} holds {shown or 'nothing'}"
