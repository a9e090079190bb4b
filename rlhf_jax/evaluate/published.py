"""Reads evaluation sets as their authors publish them: from a folder, from TFDS, or from the Hugging Face hub.

The task files in experiments/evals name their sets here. lm-eval asks for two splits: `test`, what is evaluated, and
`examples`, from which the solved examples before a question are taken.
"""

import dataclasses
import importlib
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from rlhf_jax.data import files, prepared
from rlhf_jax.data import rows as rows_lib
from rlhf_jax.runtime.errors import InputError, reason

Document = dict[str, Any]

_MOST_EXAMPLES = 64  # documents of `examples` that are made; the paper's tasks need 15 at most
_ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


class Row(dict):
    """A published row. A field that it does not have is an InputError, which names the place of the row."""

    def __init__(self, place: str, fields: dict[str, Any]):
        super().__init__(fields)
        self.place = place

    def __missing__(self, name: str):
        raise InputError(f"{self.place}: there is no field '{name}'; it has {', '.join(map(str, self)) or 'none'}")

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        return Row(f"{self.place}, field '{name}'", value) if isinstance(value, dict) else value


Documents = Callable[[Iterable[Row]], Iterator[Document]]  # makes documents of rows


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a set is found.

    Attributes:
        name: in a folder, the rows of a split are in NAME_SPLIT.jsonl, .json, .csv, .tsv or .parquet.
        file: or in this file of the authors, which has one split.
        hub: path on the Hugging Face hub.
        hub_name: name of the configuration there.
        tfds: name in TFDS.
    """

    name: str
    file: str | None = None
    hub: str | None = None
    hub_name: str | None = None
    tfds: str | None = None

    def rows(self, split: str, data: str | None) -> Iterator[Row]:
        """Yields the rows of a split.

        Args:
            split: the authors' name of the split.
            data: a folder; 'tfds' or 'tfds:FOLDER', datasets that TFDS has prepared; None: the hub.

        Raises:
            InputError: the split is not there, or cannot be read.
        """
        if data is None:
            return self._from_hub(split)
        kind, _, folder = data.partition(":")
        if kind == "tfds" and not os.path.isdir(data):
            return self._from_tfds(split, folder or None)
        return self._from_folder(split, data)

    def _from_folder(self, split: str, folder: str) -> Iterator[Row]:
        if not os.path.isdir(folder):
            raise InputError(f"--data={folder} is no folder; give one, or tfds, or tfds:FOLDER")
        names = [self.file] if self.file else [f"{self.name}_{split}{ending}" for ending in _ENDINGS]
        paths = [pathlib.Path(folder, f"{name}{packed}") for name in names for packed in ("", ".xz", ".gz")]
        path = next(filter(pathlib.Path.is_file, paths), None)
        if path is None:
            wanted = self.file or f"{self.name}_{split}.jsonl (or {', '.join(_ENDINGS[1:])})"
            raise InputError(f"--data={folder} has no file {wanted}, also as .xz or .gz")
        return _checked(_read_tsv(path) if files.file_type(path) == ".tsv" else rows_lib.read(path))

    def _from_tfds(self, split: str, folder: str | None) -> Iterator[Row]:
        if self.tfds is None:
            raise InputError(f"--data=tfds: {self.name} is not in TFDS; give a folder, or --download from the hub")
        tfds = prepared.imported_tfds()
        try:
            source = tfds.data_source(self.tfds, data_dir=folder, split=split, download=False)
        except Exception as error:  # TFDS lets through what its parts raise
            raise InputError(
                f"--data=tfds: {self.tfds}, split {split}, cannot be read ({_first_line(error)})"
            ) from None
        for number in range(len(source)):
            yield Row(f"{self.tfds}/{split}:{number + 1}", _plain(source[number]))

    def _from_hub(self, split: str) -> Iterator[Row]:
        if self.hub is None:
            raise InputError(f"{self.name} is not on the hub; give --data=FOLDER with its files")
        datasets = importlib.import_module("datasets")  # comes with lm-eval
        try:
            found = datasets.load_dataset(self.hub, self.hub_name, split=split)
        except Exception as error:  # noqa: BLE001  it lets through what its parts raise
            raise InputError(
                f"{self.hub} cannot be read from the Hugging Face hub ({_first_line(error)}); give --data=FOLDER, or "
                "--download"
            ) from None
        for number, row in enumerate(found, start=1):
            yield Row(f"{self.hub}/{split}:{number}", row)


class Splits(dict):
    """The splits of a set as lm-eval reads them; each is read when it is asked for.

    Args:
        source: where the set is.
        data: as in `Source.rows`.
        test: the authors' name of the split that is evaluated.
        examples: and of that with the solved examples; None: there are none.
        documents: makes documents of rows.
        examples_of: makes those of `examples`; None: `documents` does.
    """

    def __init__(
        self,
        source: Source,
        data: str | None,
        documents: Documents,
        test: str,
        examples: str | None = None,
        examples_of: Documents | None = None,
    ):
        super().__init__()
        self._source, self._data = source, data
        self._makers = {"test": (test, documents)}
        if examples:
            self._makers["examples"] = examples, examples_of or documents

    def __missing__(self, split: str):
        published, documents = self._makers[split]
        made = documents(self._source.rows(published, self._data))
        found = list(made if split == "test" else itertools.islice(made, _MOST_EXAMPLES))
        if not found:
            raise InputError(f"{self._source.name}: its split {published} has no rows of use")
        self[split] = importlib.import_module("datasets").Dataset.from_list(found)
        return self[split]


def _checked(read: Iterable[tuple[str, Any]]) -> Iterator[Row]:
    for place, row in read:
        if isinstance(row, InputError):
            raise InputError(f"{place}: {row}")
        yield Row(place, row)


def _read_tsv(path: pathlib.Path) -> Iterator[tuple[str, Any]]:
    """Yields the rows of a file whose values are divided by tabs, without quotes."""
    names: list[str] = []
    for number, line in files.read_lines(path):
        try:
            values = (line or b"").decode("utf-8").split("\t")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}:{number}: {files.not_utf8(error)}") from None
        if not names:
            names = values
        elif len(values) != len(names):
            yield f"{path}:{number}", InputError(f"{len(values)} values for {len(names)} columns")
        else:
            yield f"{path}:{number}", dict(zip(names, values))


def _plain(value: Any) -> Any:
    """Returns a value of TFDS as plain Python: text for bytes, lists for arrays."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _first_line(error: Exception) -> str:
    return (reason(error).strip() or type(error).__name__).splitlines()[0]
