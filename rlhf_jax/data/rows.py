"""Rows of any file that holds a table: JSON lines, a JSON list, CSV, Parquet, Arrow, or a folder of them.

A row is what its file says, a dict of plain Python values; `row_formats` gives it a meaning.
"""

import csv
import itertools
import json
import os
import pathlib
import re
from collections.abc import Collection, Iterator
from typing import Any

from rlhf_jax.data import columnar, documents, files, folders, prepared
from rlhf_jax.runtime.errors import InputError, reason
from rlhf_jax.runtime.files import DEEPEST

Row = dict[str, Any]

SUFFIXES = folders.SUFFIXES


def read(path: str | os.PathLike, *, expect: type = dict, splits: Collection[str] = ()) -> Iterator[tuple[str, Any]]:
    """Yields (place, row) of a file or folder in its order; an InputError in place of a bad row.

    A place is 'file:line', for Parquet and Arrow 'file:row', both counted from 1. Rows of a folder
    that publishes splits get a field `split` (train, valid or test) unless they have one.

    Args:
        path: a file of one of SUFFIXES, all but .parquet and .arrow also as .xz or .gz; a .txt file, of
            which a row is a document, {text}; a folder that `prepare` wrote; one that `datasets` wrote
            (save_to_disk); or one of such files.
        expect: what a row of JSON is: dict, or list where the source publishes pairs.
        splits: only these of a folder, by the names under which it publishes them; none: all.

    Raises:
        InputError: there is no such file or split, or it is broken as a whole.
    """
    if not os.path.isdir(path):
        if splits:
            raise InputError(f"{path}: a file has no splits to choose from; leave out ':{'+'.join(splits)}'")
        yield from _read_file(path, expect)
    elif (folder := prepared.find(path)) is not None:
        yield from prepared.read(folder, splits)
    else:
        for split, file in folders.shards(path, splits):
            for place, row in _read_file(file, expect):
                if split and isinstance(row, dict) and row.get("split") is None:
                    row["split"] = split
                yield place, row


def paths(path: str | os.PathLike, splits: Collection[str] = ()) -> list[pathlib.Path]:
    """The files of which `read` makes rows, in the order of their names; raises as it does where it finds none."""
    path = pathlib.Path(path)
    if not path.is_dir():
        return [path]
    if (folder := prepared.find(path)) is not None:
        return prepared.paths(folder)
    return sorted({file for _, file in folders.shards(path, splits)})


def type_name(value: Any) -> str:
    """What a value is, in words: 'a number'."""
    names = {
        type(None): "null",
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "an object",
        columnar.Binary: "binary data",
    }
    return names.get(type(value), f"a {type(value).__name__}")


def _read_file(path: str | os.PathLike, expect: type) -> Iterator[tuple[str, Any]]:
    file_type = files.file_type(path)
    if file_type in (".parquet", ".arrow"):
        return columnar.read(pathlib.Path(path))
    if file_type == ".csv":
        return _read_csv(path)
    if file_type == ".txt":
        return _read_documents(path)
    if expect is dict and files.first_byte(path) == b"[":
        return _read_json_list(path)
    return _read_json_lines(path, expect)


def _read_json_lines(path: str | os.PathLike, expect: type) -> Iterator[tuple[str, Any]]:
    for number, line in files.read_lines(path):
        if line is None or line.strip():
            try:
                yield f"{path}:{number}", _parse_line(line, number, expect)
            except InputError as error:
                yield f"{path}:{number}", error


def _parse_line(line: bytes | None, number: int, expect: type) -> Any:
    if line is None:
        raise InputError(
            f"the line is longer than {files.MAX_LINE_BYTES // 2**20} MiB; a row is one JSON object on one line"
        )
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(files.not_utf8(error)) from None
    try:
        row = json.loads(text, object_pairs_hook=_unique)
    except InputError:
        raise
    except json.JSONDecodeError as error:
        raise InputError(
            f"not valid JSON ({error.msg} at column {error.colno}); a row is one JSON object on one line"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"the line cannot be read: {reason(error)}") from None
    return _checked(_expected(row, expect, "the line"), text)


def _read_json_list(path: str | os.PathLike) -> Iterator[tuple[str, Any]]:
    """A file that is one JSON list of objects, entry by entry; a place is where an entry begins."""
    text = files.read_text(path)
    decoder = json.JSONDecoder(object_pairs_hook=_unique)
    position, counted, line = text.index("[") + 1, 0, 1
    while True:
        position = _AFTER_ENTRY.match(text, position).end()
        line, counted = line + text.count("\n", counted, position), position
        if text.startswith("]", position):
            break
        begin = position
        try:
            row, position = decoder.raw_decode(text, position)
        except InputError as error:
            raise InputError(f"{path}:{line}: {error}") from None
        except json.JSONDecodeError as error:
            raise InputError(
                f"{path}:{line}: not valid JSON ({error.msg}); the "
                "file must be one list of objects, or have one object a line"
            ) from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}:{line}: the entry cannot be read: {reason(error)}") from None
        try:
            yield f"{path}:{line}", _checked(_expected(row, dict, "the entry"), text[begin:position])
        except InputError as error:
            yield f"{path}:{line}", error
    if text[position + 1 :].strip():
        raise InputError(f"{path}:{line}: text follows the end of the JSON list")


_AFTER_ENTRY = re.compile(r"\s*,?\s*")


def _read_csv(path: str | os.PathLike) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(files.MAX_LINE_BYTES)
    reader = csv.reader(_text_lines(path), strict=True)
    names, begin = None, 1
    try:
        for values in reader:
            place, begin = f"{path}:{begin}", reader.line_num + 1
            if names is None:
                names = values
                if len(set(names)) < len(names):
                    raise InputError(f"{place}: two columns have the same name; the first line names them")
            elif len(values) != len(names):
                yield (
                    place,
                    InputError(
                        f"the row has {len(values)} values; it must have one for each of the {len(names)} columns"
                    ),
                )
            else:
                yield place, {name: value or None for name, value in zip(names, values)}  # an empty cell is no value
    except csv.Error as error:
        raise InputError(f"{path}:{begin}: not valid CSV ({error})") from None


def _read_documents(path: str | os.PathLike) -> Iterator[tuple[str, Any]]:
    """As documents.split divides them, in bounded memory."""
    marked = any(line.rstrip(" \t\n") == documents.MARKER for line in _text_lines(path))
    lines, begin = [], 1
    for number, line in enumerate(itertools.chain(_text_lines(path), [None]), start=1):
        if line is not None and (line.rstrip(" \t\n") != documents.MARKER if marked else line.strip(" \t\n")):
            lines.append(line)
            continue
        if (text := "".join(lines).strip("\n")).strip():
            yield f"{path}:{begin}", {"text": text}
        lines, begin = [], number + 1


def _text_lines(path: str | os.PathLike) -> Iterator[str]:
    for number, line in files.read_lines(path):
        if line is None:
            raise InputError(f"{path}:{number}: the line is longer than {files.MAX_LINE_BYTES // 2**20} MiB")
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8") + "\n"
        except UnicodeDecodeError as error:
            raise InputError(f"{path}:{number}: {files.not_utf8(error)}") from None


def _expected(row: Any, expect: type, what: str) -> Any:
    if not isinstance(row, expect):
        wanted = "a JSON object, {...}" if expect is dict else "a JSON list, [...]"
        raise InputError(f"{what} holds {type_name(row)}; a row is {wanted}")
    return row


def _checked(row: Any, text: str) -> Any:
    """The row that `text` says, if all of it can be written again: no half characters, no depth without end."""
    if "\\u" in text or text.count("[") + text.count("{") > DEEPEST:
        fields = row.items() if isinstance(row, dict) else enumerate(row)
        for name, value in fields:
            level = [name, value]
            for _ in range(DEEPEST):
                for entry in level:
                    if isinstance(entry, str):
                        check_characters(entry, name)
                inner = [entry for entry in level if isinstance(entry, (list, dict))]
                level = [
                    part
                    for entry in inner
                    for part in (entry if isinstance(entry, list) else itertools.chain.from_iterable(entry.items()))
                ]
                if not level:
                    break
            else:
                raise InputError(
                    f"field {name!r} nests lists or objects more than {DEEPEST} deep; flatten it, or leave it out"
                )
    return row


def check_characters(text: str, name: Any) -> None:
    """Raises InputError where the text of a field holds half of a character, which no file can keep."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"field {name!r} holds half a character, \\u{ord(text[error.start]):04x} without its other half; remove it"
        ) from None


def _unique(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"field {twice!r} appears twice; keep one")
    return row
