"""Safetensors files and their shards: every tensor of a folder as an array on disk, and the way back."""

import json
import os
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import read_json, write_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


class Tensor(NamedTuple):
    """Where a tensor lies."""

    file: pathlib.Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int

    def open(self) -> np.ndarray:
        """The tensor, of which only what is used is read from disk; to be dropped soon, and its pages with it."""
        return np.memmap(self.file, self.dtype, mode="r", offset=self.offset, shape=self.shape)


def find(folder: str | os.PathLike) -> dict[str, Tensor]:
    """All tensors of a model folder, by name: of model.safetensors, or of the files in its index.

    Raises:
        InputError: there are none, or pickles; a file that is cut, or whose header is not true of it; an index
            that names what is not there, or a file outside the folder.
    """
    folder = pathlib.Path(folder)
    if (folder / SINGLE).is_file():
        return _in_file(folder / SINGLE)
    if (folder / INDEX).is_file():
        return _in_index(folder / INDEX)
    pickles = sorted(path.name for path in folder.glob("*") if path.suffix in _PICKLES)
    if pickles:
        raise InputError(
            f"{folder / SINGLE} is missing, only {pickles[0]}, a pickle, which can run code and is not read; convert it "
            "where you trust it: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW) of transformers writes "
            "safetensors"
        )
    raise InputError(f"{folder / SINGLE} is missing, and {INDEX} too; give a folder with a model's safetensors")


def _in_file(path: pathlib.Path) -> dict[str, Tensor]:
    try:
        with safetensors.safe_open(path, framework="numpy"):  # sizes and offsets add up to the file
            pass
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise InputError(f"{path} cannot be read ({error}); it must be a whole safetensors file") from None
    found = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in DTYPES:
            raise InputError(f"{path}: tensor '{name}' is {entry['dtype']}; it can be {', '.join(DTYPES)}")
        found[name] = Tensor(path, DTYPES[entry["dtype"]], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
    return found


def _in_index(path: pathlib.Path) -> dict[str, Tensor]:
    index = read_json(path)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise InputError(f"{path}: 'weight_map' must be an object of tensor names and file names")
    found = {}
    for file in dict.fromkeys(places.values()):
        if pathlib.PurePath(file).name != file or "\\" in file or not file.endswith(".safetensors"):
            raise InputError(f"{path}: '{file}' must be the name of a safetensors file in this folder")
        if not (path.parent / file).is_file():
            raise InputError(f"{path} names {file}, which is missing in the folder")
        for name, tensor in _in_file(path.parent / file).items():
            if name in found:
                raise InputError(f"{tensor.file}: tensor '{name}' is in {found[name].file.name} too")
            found[name] = tensor
    for name, file in places.items():
        if name not in found or found[name].file.name != file:
            raise InputError(f"{path}: tensor '{name}' is not in {file}")
    return found


def save(
    folder: pathlib.Path, tensors: Iterable[tuple[str, tuple[int, ...], np.dtype]], make, shard_bytes: int
) -> None:
    """Writes model.safetensors, or numbered files of at most `shard_bytes` (a larger tensor alone) and their index.

    Args:
        tensors: name, shape and dtype of each.
        make: name -> the tensor; asked for one file at a time.
    """
    shards: list[dict[str, int]] = [{}]
    for name, shape, dtype in tensors:
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if shards[-1] and sum(shards[-1].values()) + size > shard_bytes:
            shards.append({})
        shards[-1][name] = size
    names = (
        [SINGLE]
        if len(shards) == 1
        else [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    )
    for file, shard in zip(names, shards):
        try:
            safetensors.numpy.save_file({name: make(name) for name in shard}, folder / file, metadata={"format": "pt"})
            (folder / file).chmod(folder.stat().st_mode & 0o666)  # the library leaves it to its owner alone
        except (OSError, safetensors.SafetensorError) as error:
            raise InputError(f"cannot write {folder / file}: {error}") from error
    if len(shards) > 1:
        places = {name: file for file, shard in zip(names, shards) for name in shard}
        size = sum(sum(shard.values()) for shard in shards)
        write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": places})
