"""Import and export of released weights: Hugging Face folders (config.json, safetensors) <-> our config and parameters.

Neither torch nor transformers is needed. `families` has the tables of the model families, `mapping` reads these
tables, and `tensors` reads and writes the files. Everything in a folder must be understood: a missing, extra or
misshapen tensor is an error that names the tensor. The command is in __main__.py.
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
from rlhf_jax.hf.mapping import ModelSettings, TensorSource, canonical
from rlhf_jax.model import TransformerConfig
from rlhf_jax.runtime import progress
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import write_json

__all__ = ["PROGRAM_FIELDS", "canonical", "copy", "family_of", "head_of", "load_config", "load_params", "save"]

# Fields of TransformerConfig that say how a model is computed or initialized. A released model does not decide them.
PROGRAM_FIELDS = (
    "dtype",
    "scan_layers",
    "remat",
    "attention",
    "segments",
    "vocab_multiple",
    "init_std",
    "sequence_axis",
    "logits_chunk",
    "absent_ids",
)
SHARD_BYTES = 5 * 10**9  # largest size of an exported file: the default of transformers
_LARGE = 10**9  # number of parameters: reading more takes so long that it needs a progress bar
UNFOLDED = "score.final_norm_bias"  # tensor with the final norm's own bias, see _fold_bias
_VOCABULARY_FIRST = ("embedding", "lm_head")  # parameters whose first axis is the vocabulary, which we pad


def load_config(folder: str | os.PathLike, **overrides: Any) -> TransformerConfig:
    """Returns the config of a model folder, from its config.json.

    Args:
        folder: the model folder.
        **overrides: values of fields that config.json does not decide, such as dtype and scan_layers.

    Raises:
        InputError: config.json cannot be read, or our model does not have its family or one of its settings.
    """
    settings = ModelSettings.of(folder)
    return dataclasses.replace(named_by(settings).config(settings), **overrides)


def head_of(folder: str | os.PathLike) -> str:
    """Returns the head of the model in a folder: "lm", or "scalar" for a reward model, a classifier with one label.

    Raises:
        InputError: the model is a classifier with several labels.
    """
    settings = ModelSettings.of(folder)
    classes = named_by(settings).classes
    architectures = settings.strings("architectures") or classes
    if architectures[0] != classes[1]:
        return "lm"
    if (count := settings.labels()) != 1:
        raise InputError(f"{settings.path}: the model has {count} labels; a reward model must have one")
    return "scalar"


def load_params(
    folder: str | os.PathLike, config: TransformerConfig, shardings=None, head: str = "lm", dtype: str = "float32"
) -> dict:
    """Reads the parameters of a model folder, which may be float32, float16 or bfloat16.

    Args:
        folder: the model folder.
        config: the config that `load_config` returned for this folder.
        shardings: shardings of the parameters, a tree like that of `model.init_params`. Each process then reads only
            what its devices hold, one parameter at a time.
        head: "lm", or "scalar" for a reward model.
        dtype: dtype of the arrays.

    Returns:
        A tree like that of `model.init_params`, of arrays of that dtype: on the mesh, or of NumPy without `shardings`. The
        rows that pad the vocabulary are 0.

    Raises:
        InputError: the safetensors files are not complete, or a tensor is missing, extra, misshapen or not finite.
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
            arrays.append(_place(leaf.shape, part, where, dtype))
            if bar:
                bar.update(len(arrays))
    return tree.unflatten(arrays)


def _place(shape: tuple[int, ...], read: Callable, sharding, dtype: str) -> np.ndarray | jax.Array:
    """Returns a global array; each distinct block of it is read once, and freed on the host once it is on the devices.

    Args:
        shape: shape of the array.
        read: index -> the block of the array at this index.
        sharding: sharding of the array; None for a NumPy array.
        dtype: dtype of the array.
    """
    kind = np.dtype(dtype)
    if sharding is None:
        return read((slice(None),) * len(shape)).astype(kind, copy=False)
    parts: dict[tuple, list] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        parts.setdefault(tuple(part.indices(size) for part, size in zip(index, shape)), []).append(device)
    arrays = []
    for bounds, devices in parts.items():
        block = read(tuple(slice(*bound) for bound in bounds)).astype(kind, copy=False)
        arrays += jax.block_until_ready([jax.device_put(block, device) for device in devices])
        del block  # so that the host never holds two blocks
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


class _Reader:
    """The tensors of a folder as our parameters: names and shapes are checked at once, values are read when needed."""

    def __init__(self, folder: str | os.PathLike, config: TransformerConfig, head: str):
        settings = ModelSettings.of(folder)
        self.folder, self.config, self.head = pathlib.Path(folder), config, head
        self.family = named_by(settings)
        self.tensors = tensors_lib.find(folder)
        if config.num_layers > len(self.tensors):  # checked first: a wrong, huge number would make huge lists of names
            raise InputError(
                f"{settings.path}: the model has {config.num_layers} layers, but its files have only "
                f"{len(self.tensors)} tensors; take all files from one release"
            )
        self.used: dict[str, str] = {}  # name of a tensor in the family -> its name in the file

    def parameter(self, keys, shape: tuple[int, ...]) -> Callable[[tuple[slice, ...]], np.ndarray]:
        """Returns a function index -> block of a parameter at this index, float32.

        Args:
            keys: path of the parameter in the tree.
            shape: shape of the parameter, with the axis of layers and the padded vocabulary.

        Raises:
            InputError: a tensor of the parameter is missing or misshapen. The returned function raises it for values
                that are not finite.
        """
        path = "/".join(key.key for key in keys)
        source = self.family.sources[path]
        layered = path.startswith("layers/")
        ours = shape[1:] if layered else shape
        if path in _VOCABULARY_FIRST:
            ours = (self.config.vocab_size, *ours[1:])
        if path == "final_norm/bias" and self.head == "scalar" and UNFOLDED in self.tensors:
            self._find(source.name, source, ours)
            source = TensorSource(UNFOLDED)
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
                block[tuple(map(slice, value.shape))] = value  # the rows that pad the vocabulary stay 0
                self._check_finite(names[0], block)
            return block

        return read

    def _find(self, name: str, source: TensorSource, shape: tuple[int, ...]) -> tensors_lib.Tensor | None:
        """Returns the tensor for a parameter of this shape, or None if it is optional and missing.

        The file may name it without the family's prefix, or by the source's alias.

        Raises:
            InputError: a tensor that is not optional is missing, or the tensor is misshapen.
        """
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
        """Raises InputError if the values are not all finite.

        The extremes suffice, and need no array of booleans: the minimum and maximum are NaN if any value is.
        """
        if values.size and not np.isfinite([values.min(), values.max()]).all():
            tensor = self.tensors[self.used[name]]
            raise InputError(
                f"{tensor.file}: tensor '{self.used[name]}' has values that are not finite numbers (NaN or "
                "infinity): the file is damaged, or of a training that diverged"
            )

    def checked(self, name: str) -> np.ndarray:
        """Returns the tensor of a name in the family, in the file's dtype; raises InputError if it is not finite."""
        found = self.tensors[self.used[name]].open()
        self._check_finite(name, found.astype(np.float32) if found.dtype.itemsize < 4 else found)
        return found

    def refuse_others(self) -> None:
        """Raises InputError if a tensor is not a parameter of this model; an unused language model head is allowed."""
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
        folder: an existing, empty folder.
        config: the model's config.
        params: a tree like that of `model.init_params`, of NumPy arrays or arrays on this process's devices.
        head: "lm", or "scalar" for a reward model.
        dtype: dtype of the tensors: float32, bfloat16 or float16.
        settings: further settings of config.json, such as eos_token_id.
        shard_bytes: largest size of a file.

    Returns:
        The model_type.

    Raises:
        InputError: no model family of transformers computes what this model does, a value is outside float16's range,
            or the disk is full.
    """
    model_type = family_of(config)
    family, folder = FAMILIES[model_type], pathlib.Path(folder)
    kind = tensors_lib.kind_of(dtype)
    lacking = 0.0
    if head == "scalar":
        params, lacking = _fold_bias(params)
    shapes: dict[str, tuple[int, ...]] = {}
    parts: dict[str, list[tuple]] = {}  # name of a tensor -> the parameters that it holds
    for keys, leaf in jax.tree.leaves_with_path(params):
        path = "/".join(key.key for key in keys)
        source = TensorSource(UNFOLDED) if path == UNFOLDED else family.sources[path]
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
    """Moves the bias of a reward model's head into its final norm, because the heads of transformers have no bias.

    If the final norm has a bias, a multiple of the head's kernel is added to it. The product of the two then grows by
    the head's bias, and scores in transformers are right. The norm's own bias is kept as the tensor UNFOLDED, and the
    head's as score.bias; only we read these two.

    Returns:
        (the parameters to write, the bias that scores in transformers lack: 0.0 if it could be moved).
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
    """Copies the model of a Hugging Face folder into another.

    The names and shapes of all tensors are checked before anything is written.

    Args:
        source: the folder to read.
        folder: an existing, empty folder.
        dtype: dtype of the copied tensors; None copies each tensor bit for bit.
        shard_bytes: largest size of a file.

    Raises:
        InputError: as `load_config` and `load_params` do.
    """
    config, head = load_config(source), head_of(source)
    reader = _Reader(source, config, head)
    for keys, leaf in jax.tree.leaves_with_path(model.param_shapes(config, head)):
        reader.parameter(keys, leaf.shape)
    reader.refuse_others()
    tensors = {ours: reader.tensors[theirs] for ours, theirs in reader.used.items()}
    kind = None if dtype is None else tensors_lib.kind_of(dtype)
    tensors_lib.save(
        pathlib.Path(folder),
        [(name, tensor.shape, kind or tensor.dtype) for name, tensor in tensors.items()],
        lambda name: reader.checked(name).astype(kind or tensors[name].dtype),
        shard_bytes,
    )
    values = ModelSettings.of(source).values | ({"dtype": dtype} if dtype else {})
    write_json(pathlib.Path(folder, "config.json"), values)
