"""Files that are written whole or not at all, and read with an error that names file and line."""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil

from rlhf_jax.errors import InputError


def write_text(path, text: str) -> None:
    """Writes a file atomically: a reader sees the old content or the new, never a part.

    Raises:
      InputError: the file cannot be written (full disk, no permission); the old one is untouched.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"cannot write {path}: {error.strerror}") from error


def copy(source, folder) -> None:
    """Copies a file into a folder, atomically (see `write_text`)."""
    path = pathlib.Path(folder) / pathlib.Path(source).name
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        shutil.copyfile(source, temporary)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"cannot write {path}: {error.strerror}") from error


def write_json(path, value) -> None:
    """Writes `value` as readable JSON with sorted keys, atomically (see `write_text`)."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path):
    """Reads a JSON file; one that is not valid JSON is an `InputError` naming file and line."""
    try:
        return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}: not valid JSON: {error.msg}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from error


def read_if_there(path):
    """What `read_json` reads, or None where there is no such file."""
    return read_json(path) if pathlib.Path(path).exists() else None


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
            f"{file.name} cannot be locked ({error.strerror}): give a folder on a disk with file locks; Lustre has them "
            "when it is mounted with -o flock, NFS unless it is mounted with nolock"
        ) from error


@contextlib.contextmanager
def new_folder(path):
    """Yields a folder to fill, which gets its name when it is full; after an error nothing is left of it.

    Raises:
      InputError: there is something of that name already, or it cannot be written.
    """
    path = pathlib.Path(path)
    temporary = path.absolute().with_name(f".{path.absolute().name}.{os.getpid()}.tmp")
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise InputError(f"{path} exists already; remove it or give another folder")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
