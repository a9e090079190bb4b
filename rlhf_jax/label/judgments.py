"""The file of judgments: JSON lines that are on the disk before anyone is told so.

A judgment is appended and synced. One that is taken back is first kept in NAME.retracted.jsonl, and then the file is
replaced without it, so that whoever reads the file for training finds judgments alone, and none is ever lost. What a
process that was killed left of a line is removed at the next start: nobody was told that it is there.
"""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator, Sequence

from rlhf_jax.runtime import files
from rlhf_jax.runtime.errors import InputError, explained

_NEEDS = ("item", "labeler")


class Judgments:
    """The judgments of a file, which grows with them; `locked` opens one.

    Attributes:
        path: the file.
        rows: the judgments, in the order in which they were made.
        torn: whether half a line was removed.
    """

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.rows, self.torn = read(self.path)
        if self.torn:
            files.write_json_lines(self.path, self.rows)

    def append(self, row: dict) -> None:
        """Adds a judgment; it is on the disk when this returns.

        Raises:
            InputError: the disk is full or refuses; the file is as it was.
        """
        _append(self.path, row)
        self.rows.append(row)

    def retract(self, row: dict) -> None:
        """Takes a judgment out of the file, and keeps it beside it; raises as `append`."""
        _append(beside(self.path, "retracted"), row)
        rows = [other for other in self.rows if other is not row]
        files.write_json_lines(self.path, rows)
        self.rows = rows


@contextlib.contextmanager
def locked(path) -> Iterator[None]:
    """Context in which no other process labels into a file.

    Raises:
        InputError: another one does, or the file cannot be there.
    """
    path = pathlib.Path(path)
    if path.suffix != ".jsonl":
        raise InputError(f"--out={path} is no .jsonl file, which training could read")
    if path.is_dir() or path.is_symlink():
        raise InputError(f"--out={path} is a folder or a link; give a file")
    files.make_folder(path.parent, parents=True)
    with explained(f"write {path}"):
        file = open(path.with_name(f".{path.name}.lock"), "a", opener=files.not_through_links)
    with file:
        if not files.lock(file):
            raise InputError(f"{path}: another process labels into this file; stop it, or give another --out")
        files.remove_left_over(path.parent)
        yield


def beside(path, what: str) -> pathlib.Path:
    """Returns the name of a file that belongs to a file of judgments, such as labels.retracted.jsonl."""
    path = pathlib.Path(path)
    return path.with_name(f"{path.stem}.{what}{path.suffix}")


def read(path) -> tuple[list[dict], bool]:
    """Returns the judgments of a file, and whether it ends with half a line; none if there is no file.

    Raises:
        InputError: a line is no judgment; the sentence names it.
    """
    path = pathlib.Path(path)
    if not path.exists():
        return [], False
    lines = files.whole_lines(path, cut=False)
    ended = len(lines) == len(files.whole_lines(path))
    rows: list[dict] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = files.from_json(line)
            if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in _NEEDS):
                raise ValueError
        except (ValueError, RecursionError):
            if number == len(lines) and not ended:
                return rows, True
            raise InputError(
                f"{path}:{number}: not a judgment that rlhf_jax.label wrote; give --out a file of its own, or a new one"
            ) from None
        rows.append(row)
    return rows, not ended


def check_items(path, rows: Sequence[dict], keys) -> None:
    """Raises InputError where judgments are about items that are not asked about."""
    for number, row in enumerate(rows, start=1):
        if row["item"] not in keys:
            raise InputError(
                f"{path}:{number}: this judgment is about a prompt or completions that are not in the files given now; "
                "give the files that it was made with, or another --out"
            )


def _append(path: pathlib.Path, row: dict) -> None:
    line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
    is_new = not path.exists()
    with explained(f"write {path}"), open(path, "ab", buffering=0, opener=files.not_through_links) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            if file.write(line) != len(line):
                raise OSError(None, "the disk is full")
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), size)
            raise
    if is_new:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
