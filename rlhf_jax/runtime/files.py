"""Files that are written whole or not at all, and read with an error that names file and line.

What is being written has a name of its own, `.NAME.RANDOM.tmp`, that nobody can have planted a link at, and is locked
until it gets its name: `remove_left_over` takes away what a killed process has left, and nothing of a living one.
"""

import contextlib
import fcntl
import itertools
import json
import os
import pathlib
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from rlhf_jax.runtime.errors import InputError, explained, reason

DEEPEST = 100  # what nests deeper was written by accident; Python's own limit depends on where it is read

_BEING_WRITTEN = re.compile(r"\..+\.[0-9a-f]+\.tmp")  # of earlier versions too, which had the number of their process


class Damaged(InputError):
    """A file can be read, but does not hold what was written in it."""


@contextlib.contextmanager
def replacing(path) -> Iterator[BinaryIO]:
    """Yields a file to write, which takes the place of `path` at the end of the block, on the disk itself.

    A reader sees the old content or the new, never a part. After an error the old file is untouched.

    Raises:
      InputError: the file cannot be written (full disk, no permission).
    """
    path, temporary = pathlib.Path(path), None
    try:
        temporary, file = _new(
            path, lambda name: os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        )
        with open(file, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {reason(error)}") from error
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)


def write_text(path, text: str) -> None:
    """Writes a file atomically: a reader sees the old content or the new, never a part.

    Raises:
      InputError: the file cannot be written (full disk, no permission); the old one is untouched.
    """
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def copy(source, folder) -> None:
    """Copies a file into a folder, atomically (see `replacing`)."""
    with replacing(pathlib.Path(folder) / pathlib.Path(source).name) as file, open(source, "rb") as original:
        shutil.copyfileobj(original, file)


def write_json(path, value) -> None:
    """Writes `value` as readable JSON with sorted keys, atomically (see `write_text`)."""
    write_text(path, json_text(value))


def json_text(value) -> str:
    """What `write_json` writes."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def from_json(text: str | bytes):
    """The value of a JSON text, at most DEEPEST lists and objects in one another, and no number beyond those of floats.

    Raises:
      ValueError, RecursionError: it is another text; `errors.reason` says why.
    """
    found = json.loads(text)
    level = [found] if len(text) > DEEPEST else []
    for _ in range(DEEPEST + 1):
        if any(type(value) is int and value.bit_length() > 1023 for value in level):
            raise ValueError("it holds a number beyond 10^308")
        parts = [
            value.values() if isinstance(value, dict) else value for value in level if isinstance(value, (dict, list))
        ]
        if not parts:
            return found
        level = list(itertools.chain.from_iterable(parts))
    raise RecursionError


def read_json(path, kind: type = dict, needs: Iterable[str] = ()):
    """Reads a JSON file.

    Args:
      kind: what it holds, dict or list.
      needs: the names without which it is not what we wrote.

    Raises:
      Damaged: it is not valid JSON, or holds something else; the sentence names file and line.
      InputError: it cannot be opened.
    """
    check_is_no_pipe(path)
    wanted = {dict: "JSON object, {...}", list: "JSON list, [...]"}[kind]
    try:
        found = from_json(pathlib.Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise Damaged(
            f"{path}, line {error.lineno}: not valid JSON: {error.msg}; the file must hold one {wanted}"
        ) from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {reason(error)}") from error
    except (ValueError, RecursionError) as error:
        raise Damaged(f"cannot read {path}: {reason(error)}; the file must hold one {wanted}") from error
    if not isinstance(found, kind):
        raise Damaged(f"{path} is not a {wanted}; it holds {json.dumps(found)[:40]}")
    if missing := [name for name in needs if name not in found]:
        raise Damaged(f"{path} is damaged: it has no '{missing[0]}'; put it back as it was written")
    return found


def check_is_no_pipe(path) -> None:
    """Raises InputError for a pipe or a device, of which a reader would wait for the end for ever."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return  # whoever opens it says why
    except ValueError as error:  # a name that no file can have
        raise InputError(f"{str(path)!r} cannot be the name of a file: {error}") from None
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise InputError(f"{path}: is a pipe or a device; write its content to a file and name that")


def read_if_there(path, kind: type = dict, needs: Iterable[str] = ()):
    """What `read_json` reads, or None where there is no such file."""
    return read_json(path, kind, needs) if pathlib.Path(path).exists() else None


def write_json_lines(path, rows: Iterable[dict]) -> None:
    """Writes rows as JSON, one a line, atomically (see `write_text`)."""
    write_text(path, json_lines_text(rows))


def json_lines_text(rows: Iterable[dict]) -> str:
    """What `write_json_lines` writes."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_json_lines(path, cut: bool = False) -> list[dict]:
    """What `write_json_lines` wrote.

    Args:
      cut: what follows the last line feed is left out, as of a file to which a process may be appending.

    Raises:
      InputError: the file cannot be read, or a line is cut or holds no object; the sentence names file and line.
    """
    rows = []
    for number, line in enumerate(whole_lines(path, cut), start=1):
        try:
            row, why = from_json(line), ""
        except json.JSONDecodeError:
            row, why = None, ""
        except (ValueError, RecursionError) as error:
            row, why = None, f" ({reason(error)})"
        if not isinstance(row, dict):
            raise InputError(
                f"{path}, line {number}: not a JSON object{why}; the file was cut or changed after it was written"
            )
        rows.append(row)
    return rows


def whole_lines(path, cut: bool = True) -> list[bytes]:
    """The lines of a file without their ends. A line feed alone ends one: texts hold U+2028 and other separators.

    Args:
      cut: what follows the last line feed, of a process that was killed as it wrote, is left out; else it is a line too.

    Raises:
      InputError: the file cannot be read.
    """
    check_is_no_pipe(path)
    with explained(f"read {path}"):
        *lines, rest = pathlib.Path(path).read_bytes().split(b"\n")
    return lines if cut or not rest else [*lines, rest]


def remove_left_over(folder) -> None:
    """Removes what processes that were killed were writing in a folder, not below it; never what a living one is.

    On a disk without locks nothing is removed.
    """
    try:
        paths = [path for path in pathlib.Path(folder).iterdir() if _BEING_WRITTEN.fullmatch(path.name)]
    except FileNotFoundError:
        return
    for path in paths:
        with contextlib.suppress(OSError):  # locked: it is being written; or it is gone, or not ours to remove
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
                found = os.open(path, (os.O_RDONLY if stat.S_ISDIR(mode) else os.O_RDWR) | os.O_NOFOLLOW)
                try:
                    fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path) if stat.S_ISDIR(mode) else path.unlink()
                finally:
                    os.close(found)


def _new(path: pathlib.Path, make) -> tuple[pathlib.Path, int]:
    """What is to become `path`, under a new name beside it: that name and a descriptor, locked while it is open.

    Args:
      make: name -> descriptor of what it has made, where there was nothing.
    """
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        made = make(temporary)
        with contextlib.suppress(OSError):  # a disk without locks
            fcntl.flock(made, fcntl.LOCK_EX)
        if os.fstat(made).st_nlink:
            return temporary, made
        os.close(made)  # between the two it was taken for left over


def not_through_links(path, flags: int) -> int:
    """An opener for `open`: a link that stands at a name which is ours is not followed."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def own_folder(path) -> pathlib.Path:
    """Makes a folder that we write into, where it is not there.

    Raises:
      InputError: it cannot be made; or a link stands in its place, and what is written would be elsewhere.
    """
    path = pathlib.Path(path)
    if path.is_symlink():
        raise InputError(f"{path} is a link; remove it, because its files must lie in {path.parent} itself")
    return make_folder(path)


def make_folder(path, *, parents: bool = False) -> pathlib.Path:
    """Makes a folder, and its parents if asked, where it is not there; raises InputError if that fails."""
    with explained(f"make the folder {path}"):
        pathlib.Path(path).mkdir(parents=parents, exist_ok=True)
    return pathlib.Path(path)


def lock(file) -> bool:
    """Locks an open file until it is closed or the process ends; False where another process has locked it.

    Raises:
      InputError: its disk has no locks; without them two jobs would not notice each other.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError as error:
        raise InputError(
            f"{file.name} cannot be locked ({error.strerror}): give a folder on a disk with file locks (Lustre has "
            "them if mounted with -o flock, NFS unless mounted with nolock)"
        ) from error


@contextlib.contextmanager
def new_folder(path, *, replace: bool = False, within=None) -> Iterator[pathlib.Path]:
    """Yields a folder to fill, which gets its name when it is full; after an error nothing is left of it.

    Args:
      replace: it takes the place of a folder that is there.
      within: a folder above it, in which it is filled; by default the one in which it will be.

    Raises:
      InputError: there is something of that name already, or it cannot be written.
    """
    path = pathlib.Path(path).absolute()
    if not replace and path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise InputError(f"{path} exists already; remove it or give another folder")

    def make(name):
        name.mkdir()
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)

    temporary = lock = None
    try:
        within = pathlib.Path(within or path.parent).absolute()
        within.mkdir(parents=True, exist_ok=True)
        temporary, lock = _new(within / "-".join(path.relative_to(within).parts), make)
        yield temporary
        path.parent.mkdir(parents=True, exist_ok=True)
        if replace:
            shutil.rmtree(path, ignore_errors=True)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {reason(error)}") from error
    finally:
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)
            os.close(lock)
