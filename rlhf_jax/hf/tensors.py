"""Reading and writing of safetensors files and their shards; a tensor is read as an array on disk."""

import json
import os
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from rlhf_jax.runtime.errors import InputError, reason
from rlhf_jax.runtime.files import read_json, write_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
_SHORT = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


class Tensor(NamedTuple):
    """A tensor in a safetensors file.

    Attributes:
        file: path of the file.
        dtype: dtype of the tensor.
        shape: shape of the tensor.
        offset: position of its first byte in the file.
    """

    file: pathlib.Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int

    def open(self) -> np.ndarray:
        """Returns the tensor as a memory map: only the parts that are used are read from disk.

        Callers drop it soon, so that the pages that were read can be freed.
        """
        return np.memmap(self.file, self.dtype, mode="r", offset=self.offset, shape=self.shape)


def kind_of(dtype: str) -> np.dtype:
    """Returns the NumPy dtype of the name of a dtype: float32, bfloat16 or float16."""
    return DTYPES[_SHORT[dtype]]


def find(folder: str | os.PathLike) -> dict[str, Tensor]:
    """Returns all tensors of a model folder by name: those of model.safetensors, or of the files that its index lists.

    Raises:
        InputError: the folder has no safetensors (pickles are not read), or a file is cut off or does not agree with
            its header. Also if the index names a missing tensor, a missing file, or a file outside the folder.
    """
    folder = pathlib.Path(folder)
    if (folder / SINGLE).is_file():
        return in_file(folder / SINGLE)
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


def in_file(path: pathlib.Path) -> dict[str, Tensor]:
    """Returns the tensors of a file by name.

    Raises:
        InputError: the file is not a complete safetensors file, or has a tensor of another dtype than those of DTYPES.
    """
    try:
        with safetensors.safe_open(path, framework="numpy"):  # checks that sizes and offsets add up to the file
            pass
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise InputError(f"{path} cannot be read ({reason(error)}); it must be a whole safetensors file") from None
    found = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in DTYPES:
            raise InputError(f"{path}: tensor '{name}' is {entry['dtype']}; it can be {', '.join(DTYPES)}")
        found[name] = Tensor(path, DTYPES[entry["dtype"]], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
    return found


def _in_index(path: pathlib.Path) -> dict[str, Tensor]:
    """Returns the tensors of all files of an index, by name.

    Raises:
        InputError: the index does not agree with the files.
    """
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
        for name, tensor in in_file(path.parent / file).items():
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
    """Writes model.safetensors, or numbered files and their index.

    Args:
        folder: the folder to write to.
        tensors: name, shape and dtype of each tensor.
        make: name -> the tensor. The tensors of a file are made just before it is written.
        shard_bytes: largest number of bytes of a file; a larger tensor gets its own file.

    Raises:
        InputError: a file cannot be written.
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
            (folder / file).chmod(folder.stat().st_mode & 0o666)  # the library lets only the owner read the file
        except (OSError, safetensors.SafetensorError) as error:
            raise InputError(f"cannot write {folder / file}: {reason(error)}") from error
    if len(shards) > 1:
        places = {name: file for file, shard in zip(names, shards) for name in shard}
        size = sum(sum(shard.values()) for shard in shards)
        write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": places})
