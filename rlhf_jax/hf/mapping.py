"""How a model family's tables are read, in both directions; families.py has the tables.

Settings of config.json <-> fields of TransformerConfig, and tensors <-> our parameters.
"""

import dataclasses
import json
import math
import os
import pathlib
import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from rlhf_jax.model import TransformerConfig
from rlhf_jax.runtime.errors import InputError

REQUIRED = object()  # the default of a setting that has none


@dataclasses.dataclass(frozen=True)
class Source:
    """The tensor that holds a parameter of ours, or a third of it is; "{}" in its name is the number of the layer.

    Attributes:
        name: of the tensor.
        inputs: how many leading axes of our parameter (without the layers) are inputs of a linear
            layer, whose tensor is [outputs, inputs], or [outputs] of a bias, where it is 0. None: the tensor
            is the parameter as it is.
        conv1d: the tensor is [inputs, outputs] (GPT-2).
        part: (which, axis) of queries, keys and values in one tensor: they lie along a further axis of
            the outputs, at this place.
        alias: another name of the tensor in some files.
        optional: 0 where the tensor is missing.
    """

    name: str
    inputs: int | None = None
    conv1d: bool = False
    part: tuple[int, int] | None = None
    alias: str | None = None
    optional: bool = False

    def tensor_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of the tensor, for a parameter of this shape."""
        if self.inputs is None:
            return shape
        inputs, outputs = math.prod(shape[: self.inputs]), math.prod(shape[self.inputs :]) * (3 if self.part else 1)
        if not self.inputs:
            return (outputs,)
        return (inputs, outputs) if self.conv1d else (outputs, inputs)

    def view(self, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The tensor as our parameter: a view, to read from or to write to."""
        if self.inputs is None:
            return tensor
        inputs, outputs = shape[: self.inputs], shape[self.inputs :]
        which, axis = self.part or (0, 0)
        if self.part:
            outputs = (*outputs[:axis], 3, *outputs[axis:])
        if self.conv1d:
            view = tensor.reshape((*inputs, *outputs))
        else:
            view = tensor.reshape((*outputs, *inputs))
            view = view.transpose(*range(len(outputs), view.ndim), *range(len(outputs)))
        return view[(slice(None),) * (len(inputs) + axis) + (which,)] if self.part else view


@dataclasses.dataclass(frozen=True)
class Setting:
    """A setting of config.json and the field of TransformerConfig that it is.

    Attributes:
        default: transformers' own, where config.json leaves it out; None, here and there, is our 0: "as usual".
        values: what it can be -> the field; the first of several that mean the same is written.
    """

    field: str
    default: Any = REQUIRED
    values: Mapping[Any, Any] | None = None

    def read(self, settings: "Settings", name: str) -> Any:
        value = settings.get(name, None if self.default is REQUIRED else self.default)
        if self.values is not None:
            settings.require(name, value, tuple(self.values))
            return self.values[value]
        if value is None and self.default is not REQUIRED:
            return 0
        whole = {field.name for field in dataclasses.fields(TransformerConfig) if field.type is int}
        return settings.number(name, value, whole=self.field in whole)

    def write(self, value: Any) -> Any:
        if self.values is not None:
            return next((theirs for theirs, ours in self.values.items() if ours == value), None)
        return value


@dataclasses.dataclass(frozen=True)
class Family:
    """One model_type.

    Attributes:
        classes: transformers' classes of the language model and of the reward model.
        settings: of config.json, by name.
        fixed: settings that must have the first of these values, or one that means the same.
        why: what to say besides of one that has another.
        fields: of TransformerConfig, which all members share.
        rope: the settings of theta and of the fraction that is turned, and the fraction's default.
        window: the setting of a sliding window, the one that switches it on, and its default.
        prefix: of all tensors but the head's; files of the bare trunk lack it.
        sources: path of our parameter -> tensor.
        ignored: endings of tensors that are no parameters.
    """

    classes: tuple[str, str]
    settings: Mapping[str, Setting]
    fields: Mapping[str, Any]
    prefix: str
    sources: Mapping[str, Source]
    fixed: Mapping[str, tuple] = dataclasses.field(default_factory=dict)
    why: Mapping[str, str] = dataclasses.field(default_factory=dict)
    rope: tuple[str, str | None, float] | None = None
    window: tuple[str, str | None, int] | None = None
    ignored: tuple[str, ...] = ()

    def config(self, settings: "Settings") -> TransformerConfig:
        """Raises InputError where config.json says what model.py does not have."""
        settings.require("quantization_config", settings.get("quantization_config", None), (None,))
        for name, allowed in self.fixed.items():
            settings.require(name, settings.get(name, allowed[0]), allowed, self.why.get(name, ""))
        fields = {setting.field: setting.read(settings, name) for name, setting in self.settings.items()}
        if self.rope:
            fields |= _read_rope(settings, *self.rope)
        if self.window and (window := _read_window(settings, *self.window)):
            # Up to the window's length, attention within it is attention.
            fields["max_length"] = min(fields["max_length"], window)
        try:
            return TransformerConfig(**fields | self.fields)
        except InputError as error:
            raise InputError(f"{settings.path}: {error}") from None

    def to_json(self, config: TransformerConfig) -> dict[str, Any]:
        """The settings of config.json, of a model that this family can be (see `family_of`)."""
        config = canonical(config)  # with nothing left to defaults, which differ
        written = {name: setting.write(getattr(config, setting.field)) for name, setting in self.settings.items()}
        written |= {name: allowed[0] for name, allowed in self.fixed.items()}
        if self.rope:
            written |= _write_rope(config, *self.rope)
        if self.window:
            written[self.window[0]] = None
        return written


class Settings:
    """config.json, where every question that fails is one sentence naming the file and the setting."""

    def __init__(self, path: str | os.PathLike, values: dict[str, Any]):
        self.path, self.values = pathlib.Path(path), values

    @classmethod
    def of(cls, folder: str | os.PathLike) -> "Settings":
        path = pathlib.Path(folder, "config.json")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{path} cannot be read as JSON ({error}); give a Hugging Face model folder") from None
        if not isinstance(values, dict):
            raise InputError(f"{path} is not a JSON object; give a Hugging Face model folder")
        return cls(path, values)

    def get(self, name: str, default: Any) -> Any:
        return self.values.get(name, default)

    def number(self, name: str, value: Any, whole: bool = False) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise InputError(f"{self.path}: '{name}' is {_shown(value)}; it must be a positive number")
        if whole and not isinstance(value, int):
            raise InputError(f"{self.path}: '{name}' is {_shown(value)}; it must be a whole number")
        if value > _LARGEST:
            raise InputError(f"{self.path}: '{name}' is {_shown(value)}; it must be at most {_LARGEST:,}")
        return value

    def strings(self, name: str) -> list[str]:
        """Of a list, [] where there is none."""
        value = self.get(name, None)
        if not isinstance(value, list | None) or not all(isinstance(item, str) for item in value or ()):
            raise InputError(f"{self.path}: '{name}' is {_shown(value)}; it must be a list of strings")
        return value or []

    def labels(self) -> int:
        """How many labels a classifier has, by id2label or num_labels."""
        value = self.get("id2label", None)
        if not isinstance(value, dict | None):
            raise InputError(f"{self.path}: 'id2label' is {_shown(value)}; it must be an object, {{id: label}}")
        return len(value) if value else self.number("num_labels", self.get("num_labels", 1), whole=True)

    def require(self, name: str, value: Any, supported: tuple, why: str = "") -> None:
        # True == 1 in Python, not in JSON.
        if not any(value == allowed and isinstance(value, bool) == isinstance(allowed, bool) for allowed in supported):
            can = " or ".join(map(repr, supported))
            raise InputError(f"{self.path}: '{name}' = {_shown(value)} is not supported; it can be {can}{why}")


_LARGEST = 10**9  # no model has more of anything, and what a program counts stays within 32 bits


def _shown(value: Any) -> str:
    """A value in a message, however long it is."""
    return reprlib.repr(value)


def canonical(config: TransformerConfig) -> TransformerConfig:
    """The same architecture with its defaults spelled out, and without what changes no result of it."""
    shape = dataclasses.replace(
        config,
        num_kv_heads=config.kv_heads,
        head_size=config.head_dim,
        mlp_dim=config.hidden_dim,
        dtype="float32",
        scan_layers=True,
        remat="none",
        attention="xla",
        vocab_multiple=1,
        init_std=0.0,
        sequence_axis="",
        logits_chunk=0,
        absent_ids=(),
        qkv_bias=config.use_bias or config.qkv_bias,
    )
    if config.positions == "learned":
        return dataclasses.replace(shape, rope_theta=1.0, rotary_fraction=1.0, rope_scaling=())
    return dataclasses.replace(shape, position_offset=0)


def _read_rope(settings: Settings, theta: str, fraction: str | None, default: float) -> dict[str, Any]:
    """transformers 5 writes rope_parameters, with all inside; before, rope_scaling stood beside the theta."""
    rope = {}
    for name in ("rope_parameters", "rope_scaling"):
        value = settings.get(name, None) or {}
        if not isinstance(value, dict):
            raise InputError(f"{settings.path}: '{name}' is {_shown(value)}; it must be an object")
        rope |= value
    kind = rope.get("rope_type", rope.get("type", "default"))
    settings.require("rope_scaling.rope_type", kind, ("default", "llama3"))
    scaling = ()
    if kind == "llama3":
        names = "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"
        scaling = tuple(settings.number(f"rope_scaling.{name}", rope.get(name)) for name in names)
    share = rope.get("partial_rotary_factor") or settings.get(fraction or "partial_rotary_factor", None) or default
    if fraction is None:
        settings.require("partial_rotary_factor", share, (1.0,))
    given = (rope.get("rope_theta"), settings.get(theta, None), 10_000.0)
    found = next(value for value in given if value is not None)
    return dict(
        rope_theta=float(settings.number(theta, found)),
        rotary_fraction=float(settings.number(fraction or "partial_rotary_factor", share)),
        rope_scaling=scaling,
    )


def _write_rope(config: TransformerConfig, theta: str, fraction: str | None, default: float) -> dict[str, Any]:
    written: dict[str, Any] = {theta: config.rope_theta}
    if fraction:
        written[fraction] = config.rotary_fraction
    if config.rope_scaling:
        factor, low, high, length = config.rope_scaling
        written["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": int(length),
        }
    return written


def _read_window(settings: Settings, name: str, switch: str | None, default: int) -> int | None:
    if switch and not settings.get(switch, False):
        return None
    window = settings.get(name, default)
    return None if window is None else settings.number(name, window)
