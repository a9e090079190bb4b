"""Finds the files of a published folder of tables, and the split that each belongs to.

Three layouts are known: what `datasets.save_to_disk` writes (dataset_dict.json, state.json, .arrow), a snapshot of a
hub repository (data/train-00000-of-00002.parquet, train.jsonl.gz, ...), and any other folder of files, whose names may
contain the name of a split.
"""

import os
import pathlib
import re
from collections.abc import Collection

from rlhf_jax.data import files
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import read_json

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".arrow")

_DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")  # hold no rows
_SHARD = re.compile(r"[-_.]\d+(-of-\d+)?([-_.][0-9a-f]{16})?$")
_SPLIT = re.compile(r"(?<![a-z])(train|validation|valid|val|dev|test)(?![a-z])")


def split_name(published: str) -> str | None:
    """Returns train, valid or test for a source's name of a split; None if the name contains none of them."""
    found = _SPLIT.search(re.sub(r"\d+$", "", published.lower()))
    return found and {"train": "train", "test": "test"}.get(found[1], "valid")


def shards(folder: str | os.PathLike, splits: Collection[str] = ()) -> list[tuple[str | None, pathlib.Path]]:
    """Returns the table files of a folder, each as (split, path); a split is train, valid, test or None if unknown.

    The files are in the order of their names, or of the folder's description if it has one.

    Args:
        folder: the folder.
        splits: only files of these splits are returned; each is given by the folder's own name or as train, valid or
            test.

    Raises:
        InputError: the folder holds no table files, several tables, or lacks one of these splits; or a file in it names
            a path outside the folder.
    """
    folder = pathlib.Path(folder)
    found = _saved_to_disk(folder) or _snapshot(folder)
    names = list(dict.fromkeys(name for name, _ in found))
    if splits:
        wanted = {name for name in names if name in splits or name and split_name(name) in splits}
        for split in splits:
            if not any(name and split in (name, split_name(name)) for name in names):
                raise InputError(f"{folder}: has no split {split}; it has {_listed(names)}")
        names = [name for name in names if name in wanted]
    for split in ("train", "valid", "test"):
        if len(same := [name for name in names if name and split_name(name) == split]) > 1 and not splits:
            raise InputError(f"{folder}: holds several tables, {_listed(same)}; name one, as {folder.name}:{same[0]}")
    return [(name and split_name(name), path) for name, path in found if name in names]


def inside(folder: pathlib.Path, name: str, where: pathlib.Path) -> pathlib.Path:
    """Returns the path of a file that the description `where` names; raises InputError if it is outside the folder."""
    if not isinstance(name, str) or not name or os.path.isabs(name) or ".." in pathlib.PurePath(name).parts:
        raise InputError(f"{where}: names the file {name!r}, which lies outside its folder")
    return folder / name


def _saved_to_disk(folder: pathlib.Path) -> list[tuple[str | None, pathlib.Path]]:
    """Returns the (split, file) pairs of a folder that `datasets.save_to_disk` wrote; [] for any other folder."""
    if (folder / "dataset_dict.json").is_file():
        where = folder / "dataset_dict.json"
        names = _described(where, "splits")
        return [(name, path) for name in names for _, path in _saved_to_disk(inside(folder, name, where))]
    if (folder / "state.json").is_file():
        where = folder / "state.json"
        entries = _described(where, "_data_files")
        if not all(isinstance(entry, dict) for entry in entries):
            raise InputError(f"{where}: field '_data_files' must be a list of objects with a filename")
        return [(None, inside(folder, entry.get("filename"), where)) for entry in entries]
    return []


def _described(path: pathlib.Path, field: str) -> list:
    """Returns a field of a description, which must be a non-empty list."""
    description = read_json(path)
    value = description.get(field)
    if not isinstance(value, list) or not value:
        raise InputError(f"{path}: needs the field {field!r}, a list, as datasets.save_to_disk writes it")
    return value


def _snapshot(folder: pathlib.Path) -> list[tuple[str | None, pathlib.Path]]:
    """Returns the (split, file) pairs of a hub snapshot or any other folder; .txt only if it holds no other tables."""
    paths = sorted(path for path in folder.rglob("*") if _is_data(path, folder))
    found = [path for path in paths if files.file_type(path) in SUFFIXES] or [
        path for path in paths if files.file_type(path) == ".txt"
    ]
    if not found:
        raise InputError(
            f"{folder}: holds none of the files that rows are read from, "
            f"{', '.join(SUFFIXES)} or .txt; {files.listing(folder)}"
        )
    kinds = sorted({files.file_type(path) for path in found})
    if len(kinds) > 1:
        raise InputError(f"{folder}: holds {' and '.join(kinds)} files; name one of them, or its folder")
    named = [(_published_split(path.relative_to(folder)), path) for path in found]
    places = {path.parent for name, path in named if name is None or path.parent.name != name}
    if len(places) > 1:
        shown = ", ".join(sorted(str(place.relative_to(folder)) for place in places))
        raise InputError(f"{folder}: holds several tables, in {shown}; name one of these folders")
    return named


def _published_split(path: pathlib.PurePath) -> str | None:
    """Returns the source's name of a file's split, or None.

    E.g. 'train_sft' for data/train_sft-00000-of-00003.parquet, and 'test' for test/part0.jsonl.
    """
    stem = path.name.split(".")[0]
    stem = _SHARD.sub("", stem)
    if split_name(stem):
        return stem
    parent = path.parent.name
    return parent if parent and split_name(parent) else None


def _listed(names: Collection[str | None]) -> str:
    """Returns names of splits as text, for error messages."""
    return ", ".join(sorted(name or "files without one" for name in names))


def find(folder: pathlib.Path, name: str, dataset: str) -> list[tuple[str, pathlib.Path]]:
    """Returns the files in `folder` that a source publishes as `name`, each as (name without endings, path).

    Args:
        folder: the folder.
        name: the name without endings. `*` matches anything. `|` separates alternatives, of which the first with a file
            is used; an empty last alternative means that the file may be missing.
        dataset: name of the dataset, for error messages.

    Raises:
        InputError: there is no such file, or the same file exists in several formats.
    """
    patterns = name.split("|")
    for pattern in filter(None, patterns):
        found = sorted(
            path
            for path in folder.glob(f"{pattern}.*")
            if files.file_type(path) in (*SUFFIXES, ".txt") and _is_data(path, folder)
        )
        named = [(_without_endings(path.relative_to(folder)), path) for path in found]
        for (first, path), (second, other) in zip(named, named[1:]):
            if first == second:
                raise InputError(f"{path} and {other.name} are the same file of {dataset} twice; remove one")
        if named:
            return named
    if "" in patterns:
        return []
    wanted = " or ".join(f"{pattern}{SUFFIXES[0]}" for pattern in patterns)
    raise InputError(
        f"{folder}: has no {wanted} (or {', '.join(SUFFIXES[1:])}, also .gz and .xz), of which "
        f"{dataset} is made; {files.listing(folder)}"
    )


def _is_data(path: pathlib.Path, folder: pathlib.Path) -> bool:
    """Whether a path in a folder is a file that may hold rows: not hidden, and no description."""
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return not hidden and path.name not in _DESCRIPTIONS and path.is_file()


def _without_endings(path: pathlib.PurePath) -> str:
    """Returns a path without the suffix of its format and of its compression."""
    ending = files.file_type(path)
    return str(path)[: str(path).rindex(ending)]
