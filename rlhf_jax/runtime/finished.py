"""The files of a finished stage: `done.json`, written last, says that it is finished and what each of them is.

"files" has the size and the SHA-256 of every file that a later stage or a report reads. So a file that was cut,
exchanged or changed since is found when it is read. Of the parameters, "files" has the manifest, which has the checksums
of the other files (see checkpoint.py). A file that is written later, such as an evaluation, is announced first
("writing"): whenever the process is killed, each file is what was noted or what was announced.

A stage of another run that this one shares is named in "shared_from", relative to the work directory. Its large folders
are links, and each must lead into the folder of that stage.

Stages that a version without these notes has finished are read unchecked.
"""

import hashlib
import math
import os
import pathlib
from collections.abc import Iterator

from rlhf_jax.runtime import files
from rlhf_jax.runtime.errors import InputError, reason

DONE = "done.json"
_NOT_READ = ("checkpoints", "tensorboard")


def facts(folder) -> dict | None:
    """Returns what the `done.json` of a stage's folder holds; None for a stage that is not finished.

    Raises:
      InputError: the file holds something else than `mark` writes.
    """
    path = pathlib.Path(folder) / DONE
    try:
        found = files.read_if_there(path)
    except files.Damaged:
        found = {}
    if found is not None and not _is_a_mark(found):
        raise InputError(f"{path} is damaged: delete it and start the run again, which finishes the stage")
    return found


def _is_a_mark(found: dict) -> bool:
    """Whether the stage's time is there and the values have the types that we write."""
    notes = [found.get(section, {}) for section in ("files", "writing")]
    seconds = [found.get("seconds"), found.get("evaluation_seconds", 0)]
    return (
        all(type(value) in (int, float) and math.isfinite(value) for value in seconds)
        and all(
            isinstance(section, dict) and all(isinstance(noted, list) and len(noted) == 2 for noted in section.values())
            for section in notes
        )
        and isinstance(found.get("config", {}), dict)
        and isinstance(found.get("shared_from", ""), str)
    )


def mark(folder, details: dict) -> None:
    """Marks a stage finished, as it lies there."""
    folder = pathlib.Path(folder)
    noted = {path.relative_to(folder).as_posix(): _fingerprint(path) for path in _read_later(folder)}
    details = {name: value for name, value in details.items() if name != "writing"}  # of the stage that was shared
    files.write_json(folder / DONE, details | {"files": noted})


def add(folder, details: dict) -> None:
    """Adds to the mark of a finished stage."""
    files.write_json(pathlib.Path(folder) / DONE, facts(folder) | details)


def write_text(path, text: str) -> None:
    """Writes a file of a stage, finished or not, atomically (see files.write_text)."""
    path = pathlib.Path(path)
    if (marked := facts(path.parent)) is None:
        return files.write_text(path, text)
    noted, announced = marked.get("files", {}), marked.pop("writing", {})
    noted |= {name: wanted for name, wanted in announced.items() if _fingerprint(path.with_name(name)) == wanted}
    wanted = _fingerprint_of(text.encode("utf-8"))
    files.write_json(path.with_name(DONE), marked | {"files": noted, "writing": {path.name: wanted}})
    files.write_text(path, text)
    files.write_json(path.with_name(DONE), marked | {"files": noted | {path.name: wanted}})


def write_json(path, value) -> None:
    """`files.write_json` of a file of a stage."""
    write_text(path, files.json_text(value))


def write_json_lines(path, rows) -> None:
    """`files.write_json_lines` of a file of a stage."""
    write_text(path, files.json_lines_text(rows))


def checked(path) -> pathlib.Path:
    """The path of a file of a stage, which is as the stage left it if that is finished.

    Raises:
      InputError: it is not, or is missing.
    """
    path = pathlib.Path(path)
    # The folder of parameters that arms share lies in one of them; a link in the place of a file is none of ours.
    real = path.parent.resolve() / path.name
    own, home = _stage_of(path), _stage_of(real)
    if own is not None and own.resolve() != home:
        _check_link(path, own, real)
    if home is not None:
        _check(path, real, home, real.relative_to(home).as_posix())
    return path


def _stage_of(path: pathlib.Path) -> pathlib.Path | None:
    """The finished stage that has a file in its folder, or in a folder of it."""
    return next((folder for folder in path.parents[:2] if (folder / DONE).is_file()), None)


def _check_link(path: pathlib.Path, own: pathlib.Path, real: pathlib.Path) -> None:
    """Raises InputError where a folder of a finished stage is a link and should be none, or leads to another stage."""
    name, marked = path.relative_to(own).as_posix(), facts(own)
    shared = marked.get("shared_from")
    if name in marked.get("files", {}):
        _check(path, real, own, name)
    elif shared and real.parent != (own.parent / shared / path.parent.name).resolve():
        raise _damaged(path, f"{path.parent} is a link to {real.parent}, and the stage shares those of {shared}", own)
    elif "files" in marked and not shared:
        raise _damaged(path, f"{path.parent} is a link to {real.parent}, and the stage shares nothing", own)


def _check(path: pathlib.Path, real: pathlib.Path, home: pathlib.Path, name: str) -> None:
    """Raises InputError where the file `real`, read as `path`, is not what the stage in `home` notes under `name`."""
    marked = facts(home)
    while True:
        noted, announced = (marked.get(section, {}) for section in ("files", "writing"))
        if name not in noted and (name not in announced or not real.exists()):
            return
        found = _fingerprint(real)
        if found and found in (noted.get(name), announced.get(name)):
            return
        before, marked = marked, facts(home)
        if marked == before:  # else it has been written between the two
            break
    said = "it is missing" if found is None else "it is not what the stage wrote"
    if found and noted.get(name) and found[0] != noted[name][0]:
        said = f"it has {found[0]} bytes instead of {noted[name][0]}"
    raise _damaged(path, said, home)


def _damaged(path: pathlib.Path, said: str, home: pathlib.Path) -> InputError:
    return InputError(
        f"{path} is damaged ({said}): put it back as it was, or delete the folder {home} and start its run again, "
        "which makes the stage anew"
    )


def check(folder) -> None:
    """Raises InputError where a file of a finished stage is not as it was left; see `checked`."""
    folder = pathlib.Path(folder)
    for name in (facts(folder) or {}).get("files", ()):
        checked(folder / name)


def read_json(path) -> dict:
    """`files.read_json` of a file of a stage, checked."""
    return files.read_json(checked(path))


def read_if_there(path) -> dict | None:
    """What `read_json` reads, or None where there is no such file and should be none."""
    return files.read_if_there(checked(path))


def _read_later(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name != DONE and not path.name.startswith("."):
            yield path
        elif path.name == "params" and not path.is_symlink() and (path / "manifest.json").is_file():
            yield path / "manifest.json"
        elif (
            path.is_dir() and not path.is_symlink() and path.name not in ("params", *_NOT_READ) and "." not in path.name
        ):
            yield from (file for file in sorted(path.iterdir()) if file.is_file())


def _fingerprint(path: pathlib.Path) -> list | None:
    """[size, SHA-256], None where there is no file."""
    files.check_is_no_pipe(path)
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return [os.fstat(file.fileno()).st_size, digest]
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"cannot read {path}: {reason(error)}") from error


def _fingerprint_of(content: bytes) -> list:
    return [len(content), hashlib.sha256(content).hexdigest()]
