"""Released weights in and out: a Hugging Face folder (config.json, safetensors) <-> our config and parameters.

No torch, no transformers: `families` has the tables, `mapping` what they mean, `tensors` the files. Everything
in a folder must be understood: a missing, extra or misshapen tensor is an error that names it. The command is
in __main__.py.
"""

import contextlib
import dataclasses
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from rlhf_jax import model
from rlhf_jax.hf import tensors as tensors_lib
from rlhf_jax.hf.families import FAMILIES, family_of, named_by
from rlhf_jax.hf.mapping import Settings, Source, canonical
from rlhf_jax.model import TransformerConfig
from rlhf_jax.runtime import progress
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import write_json

__all__ = ["PROGRAM_FIELDS", "canonical", "copy", "family_of", "head_of", "load_config", "load_params", "save"]

# Of TransformerConfig: how it computes, which no released model says.
PROGRAM_FIELDS = (
    "dtype",
    "scan_layers",
    "remat",
    "attention",
    "vocab_multiple",
    "init_std",
    "sequence_axis",
    "logits_chunk",
    "absent_ids",
)
SHARD_BYTES = 5 * 10**9  # of an exported file, as transformers has it
_LARGE = 10**9  # parameters: reading more takes a time in which something should be seen
UNFOLDED = "score.final_norm_bias"  # see _fold_bias
_SHORT = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_VOCABULARY_FIRST = ("embedding", "lm_head")  # ours are padded to a multiple


def load_config(folder: str | os.PathLike, **overrides: Any) -> TransformerConfig:
    """Reads config.json; `overrides` are fields that it does not decide, like dtype and scan_layers.

    Raises:
        InputError: no readable config.json, or a family or a setting that model.py does not have.
    """
    settings = Settings.of(folder)
    return dataclasses.replace(named_by(settings).config(settings), **overrides)


def head_of(folder: str | os.PathLike) -> str:
    """Which model the folder holds: "lm", or "scalar" for a reward model (one label).

    Raises:
        InputError: a classifier of several labels.
    """
    settings = Settings.of(folder)
    classes = named_by(settings).classes
    architectures = settings.strings("architectures") or classes
    if architectures[0] != classes[1]:
        return "lm"
    if (count := settings.labels()) != 1:
        raise InputError(f"{settings.path}: {count} labels; a reward model has one")
    return "scalar"


def load_params(folder: str | os.PathLike, config: TransformerConfig, shardings=None, head: str = "lm") -> dict:
    """Reads the parameters of a model folder, of any float type.

    Args:
        config: what `load_config` gave for this folder.
        shardings: where they are wanted, a tree as by `model.init_params`: each process then reads only what
            its devices hold, one parameter at a time.
        head: "scalar" for a reward model.

    Returns:
        Float32 arrays on the mesh, or in NumPy without `shardings`, laid out as by `model.init_params`; the
        rows that pad the vocabulary are 0.

    Raises:
        InputError: no whole safetensors, or a tensor missing, extra or misshapen.
    """
    reader = _Reader(folder, config, head)
    paths, tree = jax.tree.flatten_with_path(model.param_shapes(config, head))
    parts = [reader.parameter(keys, leaf.shape) for keys, leaf in paths]
    reader.refuse_others()
    places = jax.tree.leaves(shardings) if shardings is not None else [None] * len(paths)
    large = sum(math.prod(tensor.shape) for tensor in reader.tensors.values()) > _LARGE
    arrays = []
    with progress.Progress(f"reading {reader.folder.name}", len(paths)) if large else contextlib.nullcontext() as bar:
        for (_, leaf), part, where in zip(paths, parts, places):
            arrays.append(_place(leaf.shape, part, where))
            if bar:
                bar.update(len(arrays))
    return tree.unflatten(arrays)


def _place(shape: tuple[int, ...], read: Callable, sharding) -> np.ndarray | jax.Array:
    """A global array from `read(index)`, which gives a part of it: read once, and gone once it is placed."""
    if sharding is None:
        return read((slice(None),) * len(shape))
    parts: dict[tuple, list] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        parts.setdefault(tuple(part.indices(size) for part, size in zip(index, shape)), []).append(device)
    arrays = []
    for bounds, devices in parts.items():
        block = read(tuple(slice(*bound) for bound in bounds))
        arrays += jax.block_until_ready([jax.device_put(block, device) for device in devices])
        del block  # before the next is read
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


class _Reader:
    """The tensors of a folder as parameters of ours: checked at once, read when asked for."""

    def __init__(self, folder: str | os.PathLike, config: TransformerConfig, head: str):
        settings = Settings.of(folder)
        self.folder, self.config, self.head = pathlib.Path(folder), config, head
        self.family = named_by(settings)
        self.tensors = tensors_lib.find(folder)
        if config.num_layers > len(self.tensors):  # before a list of their names is made
            raise InputError(
                f"{settings.path}: {config.num_layers} layers, and the files have only {len(self.tensors)} tensors"
            )
        self.used: dict[str, str] = {}  # the family's name of a tensor -> the file's

    def parameter(self, keys, shape: tuple[int, ...]) -> Callable[[tuple[slice, ...]], np.ndarray]:
        """index -> that part of a parameter, float32."""
        path = "/".join(key.key for key in keys)
        source = self.family.sources[path]
        layered = path.startswith("layers/")
        ours = shape[1:] if layered else shape
        if path in _VOCABULARY_FIRST:
            ours = (self.config.vocab_size, *ours[1:])
        if path == "final_norm/bias" and self.head == "scalar" and UNFOLDED in self.tensors:
            self._find(source.name, source, ours)
            source = Source(UNFOLDED)
        names = [source.name.format(layer) for layer in range(shape[0])] if layered else [source.name]
        parts = [self._find(name, source, ours) for name in names]

        def read(index: tuple[slice, ...]) -> np.ndarray:
            block = np.zeros([len(range(*part.indices(size))) for part, size in zip(index, shape)], np.float32)
            if parts[0] is None:
                return block
            if layered:
                for place, part, name in zip(block, parts[index[0]], names[index[0]]):
                    place[...] = source.view(part.open(), ours)[index[1:]]
                    self._check_finite(name, place)
            else:
                value = source.view(parts[0].open(), ours)[index]
                block[tuple(map(slice, value.shape))] = value  # of the vocabulary, the padding stays 0
                self._check_finite(names[0], block)
            return block

        return read

    def _find(self, name: str, source: Source, shape: tuple[int, ...]) -> tensors_lib.Tensor | None:
        others = (name.removeprefix(self.family.prefix), source.alias)
        found = next((other for other in (name, *others) if other in self.tensors), None)
        if found is None:
            if source.optional:
                return None
            raise InputError(f"{self.folder}: tensor '{name}' is missing; by config.json it must be there")
        self.used[name] = found
        tensor, wanted = self.tensors[found], source.tensor_shape(shape)
        if tensor.shape != wanted:
            raise InputError(
                f"{tensor.file}: tensor '{found}' is {list(tensor.shape)}; by config.json it must be {list(wanted)}"
            )
        return tensor

    def _check_finite(self, name: str, values: np.ndarray) -> None:
        """By the extremes, which need no memory: NaN is one wherever it stands."""
        if values.size and not np.isfinite([values.min(), values.max()]).all():
            tensor = self.tensors[self.used[name]]
            raise InputError(
                f"{tensor.file}: tensor '{self.used[name]}' has values that are no finite numbers (NaN or "
                "infinity): the file is damaged, or of a training that diverged"
            )

    def checked(self, name: str) -> np.ndarray:
        """A tensor by the family's name, all of it finite, as the file has it."""
        found = self.tensors[self.used[name]].open()
        self._check_finite(name, found.astype(np.float32) if found.dtype.itemsize < 4 else found)
        return found

    def refuse_others(self) -> None:
        """Tensors that are no parameters of this model; heads that it does not use are left alone."""
        heads = ("lm_head.weight", "embed_out.weight") if self.config.tie_embeddings or self.head == "scalar" else ()
        for name in self.tensors.keys() - set(self.used.values()):
            if name not in heads and not name.endswith(self.family.ignored or ("\0",)):
                raise InputError(
                    f"{self.tensors[name].file}: tensor '{name}' is unexpected; by config.json the model has no such "
                    "parameter"
                )


def save(
    folder: str | os.PathLike,
    config: TransformerConfig,
    params: dict,
    *,
    head: str = "lm",
    dtype: str = "float32",
    settings: dict[str, Any] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> str:
    """Writes config.json and the tensors of a model, as transformers reads them.

    Args:
        folder: is there, and empty.
        params: laid out as by `model.init_params`, of NumPy or of this process's devices.
        dtype: of the tensors: float32, bfloat16 or float16.
        settings: further ones of config.json, such as eos_token_id.

    Returns:
        The model_type.

    Raises:
        InputError: no family of transformers computes what this model does; a value that float16 does not
            have; a disk that is full.
    """
    model_type = family_of(config)
    family, folder = FAMILIES[model_type], pathlib.Path(folder)
    kind = np.dtype(tensors_lib.DTYPES[_SHORT[dtype]])
    lacking = 0.0
    if head == "scalar":
        params, lacking = _fold_bias(params)
    shapes: dict[str, tuple[int, ...]] = {}
    parts: dict[str, list[tuple]] = {}  # name -> the parameters that it holds
    for keys, leaf in jax.tree.leaves_with_path(params):
        path = "/".join(key.key for key in keys)
        source = Source(UNFOLDED) if path == UNFOLDED else family.sources[path]
        layered = path.startswith("layers/")
        ours = leaf.shape[1:] if layered else leaf.shape
        if path in _VOCABULARY_FIRST:
            ours = (config.vocab_size, *ours[1:])
        for layer in range(leaf.shape[0]) if layered else [...]:
            name = source.name.format(layer)
            shapes[name] = source.tensor_shape(ours)
            parts.setdefault(name, []).append((source, ours, leaf, layer))

    def make(name: str) -> np.ndarray:
        tensor = np.empty(shapes[name], kind)
        for source, ours, leaf, layer in parts[name]:
            value = np.asarray(leaf[layer])[tuple(map(slice, ours))]
            if kind == np.float16 and np.abs(value).max(initial=0) > np.finfo(np.float16).max:
                raise InputError(f"tensor '{name}' has values that float16 does not have; export with --dtype=bfloat16")
            source.view(tensor, ours)[...] = value
        return tensor

    tensors_lib.save(folder, [(name, shape, kind) for name, shape in shapes.items()], make, shard_bytes)
    named = {"model_type": model_type, "architectures": [family.classes[head == "scalar"]], "dtype": dtype}
    if head == "scalar":
        named |= {"id2label": {"0": "score"}, "label2id": {"score": 0}, "score_bias": lacking}
    write_json(folder / "config.json", family.to_json(config) | named | (settings or {}))
    return model_type


def _fold_bias(params: dict) -> tuple[dict, float]:
    """What transformers computes of a reward model, whose heads there have no bias, and what that lacks.

    The tensor score.bias has it, which only we read. Where the last norm has a bias, transformers' score is
    right too: a multiple of the kernel is added to that bias, and its own stands beside it for us.
    """
    bias = float(np.asarray(params["scalar_bias"]))
    kernel = np.asarray(params["scalar_kernel"], np.float64)
    norm = params["final_norm"]
    if not bias or "bias" not in norm or not kernel.any():
        return params, bias
    folded = np.asarray(norm["bias"], np.float64) + kernel * (bias / (kernel @ kernel))
    return params | {"final_norm": norm | {"bias": folded.astype(np.float32)}, UNFOLDED: norm["bias"]}, 0.0


def copy(
    source: str | os.PathLike, folder: str | os.PathLike, *, dtype: str | None = None, shard_bytes: int = SHARD_BYTES
) -> None:
    """Writes the model of one Hugging Face folder into another, once all of it is known to be right.

    Args:
        folder: is there, and empty.
        dtype: of the tensors; None: each keeps its own, bit for bit.

    Raises:
        InputError: as `load_config` and `load_params` do.
    """
    config, head = load_config(source), head_of(source)
    reader = _Reader(source, config, head)
    for keys, leaf in jax.tree.leaves_with_path(model.param_shapes(config, head)):
        reader.parameter(keys, leaf.shape)
    reader.refuse_others()
    tensors = {ours: reader.tensors[theirs] for ours, theirs in reader.used.items()}
    kind = None if dtype is None else np.dtype(tensors_lib.DTYPES[_SHORT[dtype]])
    tensors_lib.save(
        pathlib.Path(folder),
        [(name, tensor.shape, kind or tensor.dtype) for name, tensor in tensors.items()],
        lambda name: reader.checked(name).astype(kind or tensors[name].dtype),
        shard_bytes,
    )
    values = Settings.of(source).values | ({"dtype": dtype} if dtype else {})
    write_json(pathlib.Path(folder, "config.json"), values)
