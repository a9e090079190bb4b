"""Reads and writes datasets in the format of TFDS, array_record with random access.

Only this module uses TFDS, and neither writing nor reading imports TensorFlow. A dataset lies in OUT/name/version, so
that `tfds.data_source('name', data_dir=OUT, split='train')` finds it too.
"""

import contextlib
import importlib
import itertools
import os
import pathlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import make_folder, new_folder, read_if_there, write_json

Row = dict[str, Any]

# The kinds of columns. A row that is read lacks the fields whose text or list is empty, and missing numbers. A `number`
# keeps about seven digits, because it is written as float32.
KINDS = ("text", "texts", "int", "ints", "number", "numbers", "messages")

_ROWS_AT_ONCE = 1000
_ROWS_A_SHARD = 100_000
_ORDER = {"train": 0, "valid": 1, "test": 2}
_SIZES = "sizes.json"
_NO_INT = -(2**63)  # stands for a missing integer, for which the format has no value


class Rows(Sequence):
    """One split of a prepared dataset, whose rows are read from disk when they are accessed.

    Reading many rows at once, by a slice or `take`, is much faster than one by one. Several processes may read at once.
    """

    def __init__(self, source):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return self.take(range(len(self))[index])
        return _decoded(self._source[range(len(self))[index]])

    def take(self, places: Sequence[int]) -> list[Row]:
        """Returns the rows at some places, in the order of the places."""
        return [_decoded(row) for row in self._source.__getitems__([int(place) for place in places])]

    def __iter__(self) -> Iterator[Row]:
        for start in range(0, len(self), _ROWS_AT_ONCE):
            yield from self[start : start + _ROWS_AT_ONCE]


def find(path: str | os.PathLike) -> pathlib.Path | None:
    """Returns the folder of a prepared dataset: `path` itself, or the newest version in it; None if there is none."""
    path = pathlib.Path(path)
    versions = sorted((folder for folder in path.glob("*.*.*") if _is_dataset(folder)), key=_version)
    return path if _is_dataset(path) else versions[-1] if versions else None


def paths(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files with the rows of a prepared dataset, and those that describe their format."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_file() and (".array_record" in path.name or path.name in ("dataset_info.json", "features.json"))
    ]


def open_splits(folder: pathlib.Path) -> dict[str, Rows]:
    """Returns the splits of a prepared dataset, train first.

    Raises:
        InputError: the dataset is broken, or TFDS is not installed.
    """
    tfds = imported_tfds()
    _check_sizes(folder)
    try:
        builder = tfds.builder_from_directory(folder)
        return {
            split: Rows(builder.as_data_source(split))
            for split in sorted(builder.info.splits, key=lambda split: _ORDER.get(split, len(_ORDER)))
        }
    except Exception as error:  # TFDS lets through what its parts raise: OSError, ValueError, ParseError, ...
        raise InputError(f"{folder}: not a readable TFDS dataset ({_first_line(error)}); prepare it again") from None


def read(folder: pathlib.Path, splits: Collection[str] = ()) -> Iterator[tuple[str, Row]]:
    """Yields (place, row) of some splits, by default of all.

    A place is 'folder/split:number', with rows counted from 1. Rows get their split as the field `split`.

    Raises:
        InputError: the dataset has no such split, or cannot be read.
    """
    found = open_splits(folder)
    for split in splits:
        if split not in found:
            raise InputError(f"{folder}: has no split {split}; it has {', '.join(found)}")
    for split, rows in found.items():
        if not splits or split in splits:
            try:
                for number, row in enumerate(rows, start=1):
                    yield f"{folder}/{split}:{number}", {**row, "split": split}
            except (IndexError, OSError, ValueError, RuntimeError) as error:
                raise InputError(
                    f"{folder}: split {split} cannot be read ({_first_line(error)}); prepare it again"
                ) from None


def write(
    out: pathlib.Path,
    name: str,
    version: str,
    columns: Mapping[str, str],
    rows: Iterable[tuple[str, Row]],
    *,
    description: str,
    homepage: str = "",
    finish: Callable[[pathlib.Path], None] = lambda folder: None,
) -> pathlib.Path:
    """Writes a dataset completely or not at all, with at most a thousand rows in memory.

    Args:
        out: folder to write into.
        name: name of the dataset.
        version: version of the dataset, such as 1.0.0.
        columns: name -> one of KINDS; a row has no other fields.
        rows: (split, row) pairs; a split keeps their order. An exception that the iterable raises passes through, and
            nothing is left on disk.
        description: description of the dataset.
        homepage: URL of the source.
        finish: called with the temporary folder before it gets its final name, to add files.

    Returns:
        The folder out/name/version.

    Raises:
        InputError: the dataset exists already, or cannot be written.
    """
    tfds = imported_tfds()
    folder = out / name / version
    check_writable(out, name, version)
    with new_folder(folder, within=out) as beside:
        identity = tfds.core.dataset_info.DatasetIdentity(name, tfds.core.Version(version), str(beside), __name__)
        info = tfds.core.DatasetInfo(
            builder=identity, description=description, homepage=homepage or None, features=_features(tfds, columns)
        )
        writer = tfds.core.SequentialWriter(info, _ROWS_A_SHARD, file_format="array_record")
        rows, splits = iter(rows), set()
        while batch := list(itertools.islice(rows, _ROWS_AT_ONCE)):
            by_split: dict[str, list[Row]] = {}
            for split, row in batch:
                by_split.setdefault(split, []).append(_encoded(row, columns))
            with _writing(folder):
                writer.initialize_splits([split for split in by_split if split not in splits])
                writer.add_examples(by_split)
            splits |= by_split.keys()
        with _writing(folder):
            writer.close_all()
        finish(beside)
        _write_sizes(beside)
    return folder


@contextlib.contextmanager
def _writing(folder: pathlib.Path) -> Iterator[None]:
    """Context that turns array_record's errors into InputError."""
    try:
        yield
    except RuntimeError as error:  # array_record raises it for a full disk, too
        raise InputError(f"cannot write {folder}: {_first_line(error)}") from None


def check_writable(out: pathlib.Path, name: str, version: str) -> None:
    """Raises the InputError that `write` would raise, before any row is read; makes the folder `out`."""
    imported_tfds()
    if (folder := out / name / version).exists():
        raise InputError(f"--out: {folder} exists already; delete it, or give another --out")
    make_folder(out, parents=True)


def _features(tfds, columns: Mapping[str, str]):
    """Returns the TFDS features of columns."""
    text, integer, number = tfds.features.Text(), np.int64, np.float32
    scalars = {"int": integer, "number": number}
    lists = {"texts": text, "ints": tfds.features.Scalar(dtype=integer), "numbers": tfds.features.Scalar(dtype=number)}

    def feature(kind):
        if kind == "text":
            return text
        if kind in scalars:
            return tfds.features.Scalar(dtype=scalars[kind])
        if kind == "messages":
            return tfds.features.Sequence({"role": text, "content": text})
        return tfds.features.Sequence(lists[kind])

    return tfds.features.FeaturesDict({name: feature(kind) for name, kind in columns.items()})


def _encoded(row: Row, columns: Mapping[str, str]) -> Row:
    """Returns a row with a value in every column, as TFDS requires; a missing field gets the value for its absence."""
    absent = {"text": "", "int": _NO_INT, "number": float("nan")}
    if extra := row.keys() - columns.keys():
        raise ValueError(f"the row has the fields {sorted(extra)}, which are no columns")
    return {name: absent.get(kind, []) if row.get(name) is None else row[name] for name, kind in columns.items()}


def _decoded(example: Mapping[str, Any]) -> Row:
    """Returns a row as it was before `_encoded`: plain Python values, without the fields that stand for absence."""
    row = {name: _plain(value) for name, value in example.items()}
    return {name: value for name, value in row.items() if value not in ("", [], _NO_INT) and value == value}


def _plain(value: Any) -> Any:
    """Returns a TFDS value as plain Python."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, Mapping):  # TFDS stores a list of objects as an object of lists
        fields = {name: _plain(entries) for name, entries in value.items()}
        return [dict(zip(fields, entries)) for entries in zip(*fields.values())]
    if isinstance(value, (float, np.floating)):
        return float(str(np.float32(value)))  # gives 1.8 and not 1.7999999523162842
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, np.ndarray):
        value = list(value)
    return [_plain(entry) for entry in value] if isinstance(value, list) else value


def _write_sizes(folder: pathlib.Path) -> None:
    """Writes the sizes of the record files in bytes, for `_check_sizes`."""
    records = sorted(folder.glob("*.array_record*"))
    write_json(folder / _SIZES, {path.name: path.stat().st_size for path in records})


def _check_sizes(folder: pathlib.Path) -> None:
    """Raises InputError if a file is missing or was not copied completely; array_record may read it as empty rows."""
    for name, size in (read_if_there(folder / _SIZES) or {}).items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise InputError(f"{path}: must be there with {size} bytes; copy it again, or prepare it again")


def _is_dataset(folder: pathlib.Path) -> bool:
    """Whether a folder holds a prepared dataset."""
    return (folder / "dataset_info.json").is_file() and (folder / "features.json").is_file()


def _version(folder: pathlib.Path) -> tuple[int, ...]:
    """Returns the version that a folder is named after, for sorting."""
    return tuple(int(part) if part.isdigit() else -1 for part in folder.name.split("."))


def _first_line(error: Exception) -> str:
    """Returns the first line of an error's message, or its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def imported_tfds():
    """Imports and returns tensorflow_datasets, which reads without TensorFlow; raises InputError if it or array_record is not installed."""
    try:
        importlib.import_module("array_record.python.array_record_module")
        tfds = importlib.import_module("tensorflow_datasets")
    except ImportError as error:
        raise InputError(
            "prepared datasets are written and read with tensorflow-datasets and array_record "
            f"({error}): pip install 'rlhf_jax[tfds]'"
        ) from None
    tfds.disable_progress_bar()
    return tfds
