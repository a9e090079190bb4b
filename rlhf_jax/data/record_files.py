"""Files and folders of rows -> records, with a report of what became of the rows."""

import dataclasses
import os
from collections.abc import Collection, Mapping
from typing import Literal

from rlhf_jax.data import documents, files, rows
from rlhf_jax.data.records import Document, Kind, Record
from rlhf_jax.data.row_fields import label_of
from rlhf_jax.data.row_formats import PARSERS, Turns, parse_row
from rlhf_jax.data.template import Template
from rlhf_jax.runtime.errors import InputError


@dataclasses.dataclass(frozen=True)
class ReadReport:
    """What became of a file's rows: skipped ones as ('file:line', reason)."""

    path: str
    kept: int
    skipped: tuple[tuple[str, str], ...]
    all_tied: int
    repeats: int = 0  # completions left out

    def __str__(self) -> str:
        text = f"{self.path}: {self.kept} rows"
        if self.all_tied:
            text += f", {self.all_tied} of them rank all completions equally"
        if self.repeats:
            text += f", {self.repeats} completions left out because they repeat another one under another rank"
        if self.skipped:
            text += f", {len(self.skipped)} bad ones skipped"
        return text


def read_rows(
    path: str | os.PathLike,
    kind: Kind,
    template: Template = Template(),
    *,
    on_bad_row: Literal["error", "skip"] = "error",
    fields: Mapping[str, str] | None = None,
    document_end: str | None = None,
    splits: Collection[str] = (),
    names: Collection[str] = (),
    turns: Turns = "last",
) -> tuple[list[Record], ReadReport]:
    """Reads a file or folder of rows of one kind.

    Args:
        path: what `rows.read` reads, or .txt for documents.
        kind: which records to make.
        template: renders rows with an instruction or messages.
        on_bad_row: raise at the first bad row, or skip bad rows and report them. A file that is
            broken as a whole is an error either way.
        fields: the file's names -> ours, e.g. {'question': 'instruction', 'answer': 'output'}.
        document_end: regular expression between the documents of a .txt file, where they are
            divided neither by `<|endoftext|>` lines nor by blank lines.
        splits: only these of a folder that publishes splits.
        names: fields of the file that hold a name, a string or a whole number, wherever a row has them.
        turns: which of the assistant's turns of a chat are completions, as `parse_row` has it.

    Raises:
        InputError: one sentence that names file and line, and what would be right.
    """
    if kind not in PARSERS:
        raise InputError(f"kind is {kind!r}; it must be one of {', '.join(PARSERS)}")
    if on_bad_row not in ("error", "skip"):
        raise InputError(f"on_bad_row is {on_bad_row!r}; it must be 'error' or 'skip'")
    file_type = files.file_type(path)
    if file_type == ".txt" and kind == "documents":
        texts = documents.split(files.read_text(path), document_end)
        return [Document(text) for text in texts], ReadReport(str(path), len(texts), (), 0)
    if file_type not in rows.SUFFIXES and not os.path.isdir(path):
        wanted = (".txt", *rows.SUFFIXES) if kind == "documents" else rows.SUFFIXES
        raise InputError(f"{path}: {kind} are read from {', '.join(wanted)} files, or a folder of them")

    records, skipped = [], []
    for where, row in rows.read(path, splits=splits):
        try:
            if isinstance(row, InputError):
                raise row
            for name in names:
                if row.get(name) != "":
                    label_of(row, name)
            records.append(parse_row(row, kind, template, fields, turns))
        except InputError as error:
            if on_bad_row == "error":
                raise InputError(f"{where}: {error}") from None
            skipped.append((where, str(error)))
    if not records:
        first = f"; the first of {len(skipped)} bad rows: {skipped[0][1]}" if skipped else ""
        raise InputError(f"{path}: no usable row{first}")
    counts = ()
    if kind == "rankings":
        counts = sum(record.all_tied for record in records), sum(record.repeats for record in records)
    return records, ReadReport(str(path), len(records), tuple(skipped), *(counts or [0]))
