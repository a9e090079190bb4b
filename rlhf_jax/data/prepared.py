"""Datasets in the format of TFDS, array_record with random access; the only file that knows TFDS.

Neither writing nor reading imports TensorFlow. A dataset lies in OUT/name/version, so that
`tfds.data_source('name', data_dir=OUT, split='train')` finds it too.
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
from rlhf_jax.runtime.files import new_folder, read_if_there, write_json

Row = dict[str, Any]

# What a column can hold. An empty text or list, and a number that is not there, are absent in a row;
# a `number` keeps seven digits, because TFDS writes float32.
KINDS = ("text", "texts", "int", "ints", "number", "numbers", "messages")

_ROWS_AT_ONCE = 1000
_ROWS_A_SHARD = 100_000
_ORDER = {"train": 0, "valid": 1, "test": 2}
_SIZES = "sizes.json"
_NO_INT = -(2**63)


class Rows(Sequence):
    """One split of a prepared dataset: rows read from disk when they are asked for.

    What is read together, a slice or `take`, is read much faster. Several processes may read.
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
        """The rows at some places, in that order."""
        return [_decoded(row) for row in self._source.__getitems__([int(place) for place in places])]

    def __iter__(self) -> Iterator[Row]:
        for start in range(0, len(self), _ROWS_AT_ONCE):
            yield from self[start : start + _ROWS_AT_ONCE]


def find(path: str | os.PathLike) -> pathlib.Path | None:
    """The folder of a prepared dataset: `path` itself, or the newest version in it; None if neither."""
    path = pathlib.Path(path)
    versions = sorted((folder for folder in path.glob("*.*.*") if _is_dataset(folder)), key=_version)
    return path if _is_dataset(path) else versions[-1] if versions else None


def paths(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files that hold the rows of a prepared dataset, and those that say how to read them."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_file() and (".array_record" in path.name or path.name in ("dataset_info.json", "features.json"))
    ]


def open_splits(folder: pathlib.Path) -> dict[str, Rows]:
    """The splits of a prepared dataset; raises InputError if it is broken or TFDS is not installed."""
    tfds = _tfds()
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
    """Yields (place, row) of some splits, or all; a place is 'folder/split:row', counted from 1."""
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
    """Writes a dataset whole or not at all; memory holds a thousand rows, whatever comes.

    Args:
        columns: name -> one of KINDS; a row has these fields and no others.
        rows: each with its split; a split keeps the order in which they come. What they raise goes
            through, and nothing is left.
        finish: called with the folder before it gets its name, to add files.

    Returns:
        out/name/version.

    Raises:
        InputError: it is there already, or cannot be written.
    """
    tfds = _tfds()
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
    try:
        yield
    except RuntimeError as error:  # array_record's, of a full disk too
        raise InputError(f"cannot write {folder}: {_first_line(error)}") from None


def check_writable(out: pathlib.Path, name: str, version: str) -> None:
    """What `write` would refuse, said before anything is read."""
    _tfds()
    if (folder := out / name / version).exists():
        raise InputError(f"{folder} is there already; delete it, or give another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out: cannot make the folder {out}: {error.strerror}") from None


def _features(tfds, columns: Mapping[str, str]):
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
    absent = {"text": "", "int": _NO_INT, "number": float("nan")}
    if extra := row.keys() - columns.keys():
        raise ValueError(f"the row has the fields {sorted(extra)}, which are no columns")
    return {name: absent.get(kind, []) if row.get(name) is None else row[name] for name, kind in columns.items()}


def _decoded(example: Mapping[str, Any]) -> Row:
    row = {name: _plain(value) for name, value in example.items()}
    return {name: value for name, value in row.items() if value not in ("", [], _NO_INT) and value == value}


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, Mapping):  # TFDS keeps a list of objects as an object of lists
        fields = {name: _plain(entries) for name, entries in value.items()}
        return [dict(zip(fields, entries)) for entries in zip(*fields.values())]
    if isinstance(value, (float, np.floating)):
        return float(str(np.float32(value)))  # 1.8, not 1.7999999523162842
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, np.ndarray):
        value = list(value)
    return [_plain(entry) for entry in value] if isinstance(value, list) else value


def _write_sizes(folder: pathlib.Path) -> None:
    records = sorted(folder.glob("*.array_record*"))
    write_json(folder / _SIZES, {path.name: path.stat().st_size for path in records})


def _check_sizes(folder: pathlib.Path) -> None:
    """A file that was not copied whole: array_record may read it as empty rows."""
    for name, size in (read_if_there(folder / _SIZES) or {}).items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise InputError(f"{path}: is missing or has not its {size} bytes; copy it again, or prepare it again")


def _is_dataset(folder: pathlib.Path) -> bool:
    return (folder / "dataset_info.json").is_file() and (folder / "features.json").is_file()


def _version(folder: pathlib.Path) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else -1 for part in folder.name.split("."))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _tfds():
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
