"""Adapters in the files of PEFT: adapter_config.json and adapter_model.safetensors.

PEFT has a pair of matrices A [r, inputs] and B [outputs, r] for each linear layer of transformers. Where a family keeps
queries, keys and values in one layer, three of our pairs are one of PEFT's: their A stand below each other, their B on
the diagonal of a matrix that is 0 elsewhere, and the layer has the sum of their ranks. In the other direction, a pair
of such a layer gives our three the same A, and each its part of B.
"""

import math
import os
import pathlib
import reprlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.numpy

from rlhf_jax import lora as lora_lib
from rlhf_jax.hf import tensors as tensors_lib
from rlhf_jax.hf.families import FAMILIES, family_of
from rlhf_jax.hf.mapping import Family, TensorSource
from rlhf_jax.lora import MATRICES, Lora
from rlhf_jax.model import TransformerConfig
from rlhf_jax.runtime.errors import InputError, reason
from rlhf_jax.runtime.files import read_json, write_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_TASKS = {"lm": "CAUSAL_LM", "scalar": "SEQ_CLS"}
_HEAD = {"scalar_kernel": "score.weight", "scalar_bias": "score.bias"}
# Settings that change what an adapter computes, with the values that we compute.
_PLAIN = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "use_dora": (False, None),
    "layers_to_transform": (None,),
    "layer_replication": (None,),
    "lora_bias": (False, None),
    "target_parameters": (None,),
    "trainable_token_indices": (None,),
}


class Settings(NamedTuple):
    """What an adapter_config.json says.

    Attributes:
      base: the name of the base, as it is there.
      head: "lm" or "scalar".
      values: the whole content.
    """

    base: str
    head: str
    values: dict[str, Any]


class _Layer(NamedTuple):
    """A linear layer of transformers: its name with "{}" for the number of the layer, and our matrices in it."""

    name: str
    matrices: list[str]


def read_settings(folder: str | os.PathLike) -> Settings:
    """Reads the adapter_config.json of a folder.

    Raises:
      InputError: it cannot be read, or describes another adapter than low-rank matrices of linear layers.
    """
    path = pathlib.Path(folder, CONFIG)
    values = read_json(path)
    if not isinstance(values, dict):
        raise InputError(f"{path} is not a JSON object; give a folder that PEFT has written")
    for name, allowed in _PLAIN.items():
        if (value := values.get(name, allowed[-1])) not in allowed:
            raise InputError(f"{path}: '{name}' = {reprlib.repr(value)} is not supported; it can be {allowed[0]!r}")
    base = values.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise InputError(
            f"{path}: 'base_model_name_or_path' must name the folder of the model that the adapter belongs to"
        )
    heads = {task: head for head, task in _TASKS.items()} | {None: "lm"}
    if (task := values.get("task_type")) not in heads:
        raise InputError(f"{path}: 'task_type' = {task!r} is not supported; it can be {' or '.join(_TASKS.values())}")
    rank, alpha = values.get("r"), values.get("lora_alpha")
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise InputError(f"{path}: 'r' is {reprlib.repr(rank)}; it must be a whole number from 1")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
        raise InputError(f"{path}: 'lora_alpha' is {reprlib.repr(alpha)}; it must be a positive number")
    return Settings(base, heads[task], values)


def read_lora(folder: str | os.PathLike, config: TransformerConfig) -> Lora:
    """Returns the settings of the adapters in a folder, whose base has the shape `config`.

    Raises:
      InputError: as `read_settings`; or a file is not complete, or has other tensors than those of such adapters.
    """
    values, tensors = read_settings(folder).values, _tensors(folder)
    layers = [layer for layer in _layers(config) if _name(layer, 0, "A") in tensors]
    if not layers:
        raise InputError(
            f"{pathlib.Path(folder, WEIGHTS)} has no adapter of a matrix of the base in base_model_name_or_path"
        )
    rank, alpha = values["r"], float(values["lora_alpha"])
    matrices = tuple(name for layer in layers for name in _adapted_in(config, layer, tensors, rank))
    if values.get("use_rslora"):
        alpha *= math.sqrt(rank)  # its scale is alpha / sqrt(rank)
    return Lora(rank, alpha, matrices, float(values.get("lora_dropout") or 0.0))


def load_params(folder: str | os.PathLike, config: TransformerConfig, shardings=None, head: str = "lm") -> dict:
    """Reads the adapters of a folder, with the scalar head of a reward model; float32.

    Args:
      folder: the folder.
      config: shape of the model, with the adapters that `read_lora` returned.
      shardings: the shardings of these parameters; None: NumPy arrays are returned.
      head: "lm" or "scalar".

    Raises:
      InputError: a tensor is missing, extra, misshapen or not finite.
    """
    assert config.lora is not None
    tensors, path = _tensors(folder), pathlib.Path(folder, WEIGHTS)
    used: set[str] = set()

    def read(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in tensors:
            raise InputError(f"{path}: tensor '{name}' is missing; every layer must have the same adapters")
        if tensors[name].shape != shape:
            raise InputError(f"{path}: tensor '{name}' is {list(tensors[name].shape)}; it must be {list(shape)}")
        used.add(name)
        value = np.asarray(tensors[name].open(), np.float32)
        if not np.isfinite(value).all():
            raise InputError(f"{path}: tensor '{name}' has values that are not finite")
        return value

    adapters: dict[str, list[np.ndarray]] = {}
    for layer in _layers(config):
        for number in range(config.num_layers if set(layer.matrices) & set(config.adapted) else 0):
            rank = (
                tensors[_name(layer, number, "A")].shape[0]
                if _name(layer, number, "A") in tensors
                else config.lora.rank
            )
            inputs, outputs = lora_lib.sizes(layer.matrices[0], config.matrices[layer.matrices[0]])
            widths = outputs * len(layer.matrices)
            a, b = read(_name(layer, number, "A"), (rank, inputs)), read(_name(layer, number, "B"), (widths, rank))
            for name, own_a, own_b in _taken_apart(config, layer, a, b, path):
                adapters.setdefault(f"{name}_a", []).append(own_a)
                adapters.setdefault(f"{name}_b", []).append(own_b)
    found: dict[str, Any] = {"layers": {name: np.stack(parts) for name, parts in adapters.items()}}
    if head == "scalar":
        found["scalar_kernel"] = read(_PREFIX + _HEAD["scalar_kernel"], (1, config.embed_dim))[0]
        bias = _PREFIX + _HEAD["scalar_bias"]
        found["scalar_bias"] = read(bias, (1,))[0] if bias in tensors else np.float32(0)
    if extra := sorted(set(tensors) - used):
        raise InputError(f"{path}: tensor '{extra[0]}' is none of an adapter of this base's layers")
    return found if shardings is None else jax.device_put(found, shardings)


def save(
    folder: pathlib.Path,
    config: TransformerConfig,
    params: dict,
    base: str,
    *,
    head: str = "lm",
    dtype: str = "float32",
) -> str:
    """Writes adapters, and the scalar head of a reward model, as PEFT reads them; returns the base's model_type.

    Args:
      folder: an existing folder.
      config: shape of the model.
      params: parameters of the model; the base among them is not read.
      base: what base_model_name_or_path says, a path or a name on the Hugging Face hub.
      head: "lm" or "scalar".
      dtype: dtype of the tensors.

    Raises:
      InputError: no family of transformers computes what the base does, or the disk is full.
    """
    assert config.lora is not None
    model_type = family_of(config)
    kind, trained = tensors_lib.kind_of(dtype), lora_lib.trained(params)
    tensors: dict[str, np.ndarray] = {}
    layers = [layer for layer in _layers(config) if set(layer.matrices) & set(config.adapted)]
    for layer in layers:
        for number in range(config.num_layers):
            a, b = _put_together(config, layer, trained["layers"], number)
            for part, value in (("A", a), ("B", b)):  # safetensors writes an array as it lies in memory: row by row
                tensors[_name(layer, number, part)] = np.ascontiguousarray(value, kind)
    if head == "scalar":
        tensors[_PREFIX + _HEAD["scalar_kernel"]] = np.asarray(trained["scalar_kernel"])[None].astype(kind)
        tensors[_PREFIX + _HEAD["scalar_bias"]] = np.asarray(trained["scalar_bias"])[None].astype(kind)
    try:
        safetensors.numpy.save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        (folder / WEIGHTS).chmod(folder.stat().st_mode & 0o666)  # the library lets only the owner read the file
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"cannot write {folder / WEIGHTS}: {reason(error)}") from error
    parts = {_short(config, layer): len(set(layer.matrices) & set(config.adapted)) for layer in layers}
    fused = {name: count for name, count in parts.items() if count > 1}
    settings = {
        "peft_type": "LORA",
        "task_type": _TASKS[head],
        "base_model_name_or_path": base,
        "r": config.lora.rank,
        "lora_alpha": config.lora.alpha,
        "lora_dropout": config.lora.dropout,
        "target_modules": list(parts),
        "rank_pattern": {name: count * config.lora.rank for name, count in fused.items()},
        "alpha_pattern": {name: count * config.lora.alpha for name, count in fused.items()},
        "modules_to_save": ["score"] if head == "scalar" else None,
        "fan_in_fan_out": any(FAMILIES[model_type].sources[f"layers/{name}"].conv1d for name in config.adapted),
        "bias": "none",
        "inference_mode": True,
    }
    write_json(folder / CONFIG, settings)
    return model_type


def _tensors(folder: str | os.PathLike) -> dict[str, tensors_lib.Tensor]:
    path = pathlib.Path(folder, WEIGHTS)
    if not path.is_file():
        raise InputError(f"{path} is missing; adapters are read from safetensors alone")
    return tensors_lib.in_file(path)


def _adapted_in(config: TransformerConfig, layer: _Layer, tensors: dict, rank: int) -> list[str]:
    """Returns our matrices in a layer that have an adapter: all, or of some ranks those whose part of B is not 0."""
    count = tensors[_name(layer, 0, "A")].shape[0] // rank
    if count in (1, len(layer.matrices)):
        return layer.matrices
    stored = [
        tensors[name].open() for number in range(config.num_layers) if (name := _name(layer, number, "B")) in tensors
    ]
    parts = [np.array(b, np.float32) for b in stored if b.ndim == 2]
    return [name for name in layer.matrices if any(_outputs_view(config, name, b).any() for b in parts)]


def _family(config: TransformerConfig) -> Family:
    return FAMILIES[family_of(config)]


def _layers(config: TransformerConfig) -> list[_Layer]:
    """Returns the linear layers that hold our matrices, each with those in it."""
    found: dict[str, list[str]] = {}
    for name in config.matrices:
        found.setdefault(_source(config, name).name.removesuffix(".weight"), []).append(name)
    return [_Layer(name, matrices) for name, matrices in found.items()]


def _source(config: TransformerConfig, name: str) -> TensorSource:
    return _family(config).sources[f"layers/{name}"]


def _name(layer: _Layer, number: int, part: str) -> str:
    return f"{_PREFIX}{layer.name.format(number)}.lora_{part}.weight"


def _short(config: TransformerConfig, layer: _Layer) -> str:
    """Returns the end of a layer's name by which PEFT finds it: the last part, or two where others end so as well."""
    *_, before, last = layer.name.split(".")
    alone = [other.name.rpartition(".")[2] for other in _layers(config)].count(last) == 1
    return last if alone else f"{before}.{last}"


def _outputs_view(config: TransformerConfig, name: str, b: np.ndarray) -> np.ndarray:
    """Returns a view [r, *outputs] of the part of B [all outputs, r] that belongs to a matrix."""
    source = _source(config, name)
    outputs = config.matrices[name][MATRICES[name] :]
    return TensorSource("", inputs=1, part=source.part).view(b, (b.shape[1], *outputs))


def _put_together(
    config: TransformerConfig, layer: _Layer, adapters: dict, number: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns PEFT's A and B of one layer, from our adapters of the matrices in it."""
    names = [name for name in layer.matrices if name in config.adapted]
    rank = config.lora.rank if config.lora else 0
    width = sum(lora_lib.sizes(name, config.matrices[name])[1] for name in layer.matrices)
    below, b = [], np.zeros((width, rank * len(names)), np.float32)
    for place, name in enumerate(names):
        own = slice(place * rank, (place + 1) * rank)
        below.append(np.asarray(adapters[f"{name}_a"][number], np.float32).reshape(-1, rank).T)
        _outputs_view(config, name, b)[own] = np.asarray(adapters[f"{name}_b"][number], np.float32)
    return np.concatenate(below), b


def _taken_apart(
    config: TransformerConfig, layer: _Layer, a: np.ndarray, b: np.ndarray, path: pathlib.Path
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yields (matrix, A, B) as we have them, from PEFT's A and B of one layer.

    Raises:
      InputError: the rank is neither that of all layers, nor the sum of as many as there are matrices in the layer.
    """
    assert config.lora is not None
    names, rank = [name for name in layer.matrices if name in config.adapted], config.lora.rank
    for place, name in enumerate(names):
        view, own = _outputs_view(config, name, b), slice(None)
        if len(a) != rank:
            own = slice(place * rank, (place + 1) * rank)
            others = np.delete(view, np.r_[own], axis=0) if len(a) == rank * len(names) else view
            if others.any():
                raise InputError(
                    f"{path}: '{layer.name}' has rank {len(a)} and the adapter {rank}; all must have the same rank"
                )
        inputs = config.matrices[name][: MATRICES[name]]
        yield name, np.ascontiguousarray(a[own].T).reshape(*inputs, -1), np.ascontiguousarray(view[own])
