"""The reading of a model family's tables (see families.py), in both directions.

The tables map settings of config.json <-> fields of TransformerConfig, and tensors <-> our parameters.
"""

import dataclasses
import math
import os
import pathlib
import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from rlhf_jax.model import TransformerConfig
from rlhf_jax.runtime.errors import InputError, reason
from rlhf_jax.runtime.files import from_json

REQUIRED = object()  # marks a setting without a default


@dataclasses.dataclass(frozen=True)
class TensorSource:
    """The tensor that holds one of our parameters. It may hold queries, keys and values, each a third of it.

    Attributes:
        name: name of the tensor, in which "{}" stands for the number of the layer.
        inputs: number of leading axes of our parameter, without the axis of layers, that are inputs of a linear layer.
            The tensor of a weight is [outputs, inputs]; that of a bias is [outputs], with inputs=0. None: the tensor
            has the parameter's own shape.
        conv1d: whether the tensor of a weight is [inputs, outputs], as in GPT-2.
        part: (which, axis) if one tensor holds queries, keys and values. They lie along an additional axis of size 3 of
            the outputs: `axis` is its position among them, and `which` our parameter's index in it.
        alias: another name of the tensor, which some files use.
        optional: whether the tensor may be missing; the parameter is then 0.
    """

    name: str
    inputs: int | None = None
    conv1d: bool = False
    part: tuple[int, int] | None = None
    alias: str | None = None
    optional: bool = False

    def tensor_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of the tensor that holds a parameter of this shape."""
        if self.inputs is None:
            return shape
        inputs, outputs = math.prod(shape[: self.inputs]), math.prod(shape[self.inputs :]) * (3 if self.part else 1)
        if not self.inputs:
            return (outputs,)
        return (inputs, outputs) if self.conv1d else (outputs, inputs)

    def view(self, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Returns a view of the tensor as our parameter, to read from or to write to.

        Args:
            tensor: the tensor, of `tensor_shape(shape)`.
            shape: shape of our parameter, without the axis of layers.
        """
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
class ModelSetting:
    """A setting of config.json that corresponds to a field of TransformerConfig.

    Attributes:
        field: name of the field.
        default: the value in transformers if config.json leaves it out. None, as a default or in config.json, is our 0,
            which stands for the usual value.
        values: allowed value of the setting -> value of the field. Of several values with the same meaning, the first
            is written.
    """

    field: str
    default: Any = REQUIRED
    values: Mapping[Any, Any] | None = None

    def read(self, settings: "ModelSettings", name: str) -> Any:
        """Returns the value of the field, from the setting `name` of config.json.

        Raises:
            InputError: the setting has a value that it does not allow.
        """
        value = settings.get(name, None if self.default is REQUIRED else self.default)
        if self.values is not None:
            settings.require(name, value, tuple(self.values))
            return self.values[value]
        if value is None and self.default is not REQUIRED:
            return 0
        whole = {field.name for field in dataclasses.fields(TransformerConfig) if field.type is int}
        return settings.number(name, value, whole=self.field in whole)

    def write(self, value: Any) -> Any:
        """Returns the value of the setting for a value of the field; None if there is none."""
        if self.values is not None:
            return next((theirs for theirs, ours in self.values.items() if ours == value), None)
        return value


@dataclasses.dataclass(frozen=True)
class Family:
    """A model family of transformers, with one model_type.

    Attributes:
        classes: names of transformers' classes of the language model and of the reward model.
        settings: settings of config.json, by name.
        fields: fields of TransformerConfig with the values that all members share.
        prefix: prefix of the names of all tensors but the head's; files of the trunk alone lack it.
        sources: path of our parameter -> its tensor.
        fixed: settings that must have one of these values, which all mean the same. The first is written, and is the
            default.
        why: end of the error message if a fixed setting has another value.
        rope: (setting of RoPE's theta, setting of the fraction of a head that is rotated, default of the fraction).
            None as the second: the fraction must be 1. None for all: no RoPE.
        window: (setting of the length of a sliding window, setting that switches it on or None, default of the length).
        ignored: endings of the names of tensors that are not parameters.
    """

    classes: tuple[str, str]
    settings: Mapping[str, ModelSetting]
    fields: Mapping[str, Any]
    prefix: str
    sources: Mapping[str, TensorSource]
    fixed: Mapping[str, tuple] = dataclasses.field(default_factory=dict)
    why: Mapping[str, str] = dataclasses.field(default_factory=dict)
    rope: tuple[str, str | None, float] | None = None
    window: tuple[str, str | None, int] | None = None
    ignored: tuple[str, ...] = ()

    def config(self, settings: "ModelSettings") -> TransformerConfig:
        """Returns the config of the model that a config.json describes.

        Raises:
            InputError: our model does not have one of the settings.
        """
        settings.require("quantization_config", settings.get("quantization_config", None), (None,))
        for name, allowed in self.fixed.items():
            settings.require(name, settings.get(name, allowed[0]), allowed, self.why.get(name, ""))
        fields = {setting.field: setting.read(settings, name) for name, setting in self.settings.items()}
        if self.rope:
            fields |= _read_rope(settings, *self.rope)
        if self.window and (window := _read_window(settings, *self.window)):
            # On sequences no longer than the window, attention within the window is full attention.
            fields["max_length"] = min(fields["max_length"], window)
        try:
            return TransformerConfig(**fields | self.fields)
        except InputError as error:
            raise InputError(f"{settings.path}: {error}") from None

    def to_json(self, config: TransformerConfig) -> dict[str, Any]:
        """Returns the settings of config.json for a model of this family (see `family_of`)."""
        config = canonical(config)  # spells out every default, because transformers' differ from ours
        written = {name: setting.write(getattr(config, setting.field)) for name, setting in self.settings.items()}
        written |= {name: allowed[0] for name, allowed in self.fixed.items()}
        if self.rope:
            written |= _write_rope(config, *self.rope)
        if self.window:
            written[self.window[0]] = None
        return written


class ModelSettings:
    """The settings of a config.json; an error about one of them names the file and the setting."""

    def __init__(self, path: str | os.PathLike, values: dict[str, Any]):
        self.path, self.values = pathlib.Path(path), values

    @classmethod
    def of(cls, folder: str | os.PathLike) -> "ModelSettings":
        """Reads the config.json of a folder.

        Raises:
            InputError: it cannot be read, or is not a JSON object.
        """
        path = pathlib.Path(folder, "config.json")
        if pathlib.Path(folder).is_dir() and not path.is_file():
            raise InputError(f"{folder} has no config.json; give a Hugging Face model folder")
        try:
            values = from_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(
                f"{path} cannot be read as JSON ({reason(error)}); give a Hugging Face model folder"
            ) from None
        if not isinstance(values, dict):
            raise InputError(f"{path} is not a JSON object; give a Hugging Face model folder")
        return cls(path, values)

    def get(self, name: str, default: Any) -> Any:
        """Returns the value of a setting, unchecked."""
        return self.values.get(name, default)

    def number(self, name: str, value: Any, whole: bool = False) -> Any:
        """Returns `value`, the value of the setting `name`, if it is a positive number.

        Raises:
            InputError: it is not, or is larger than any model has, or is not an integer although `whole` requires it.
        """
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise InputError(f"{self.path}: '{name}' is {_shown(value)}; it must be a positive number")
        if whole and not isinstance(value, int):
            raise InputError(f"{self.path}: '{name}' is {_shown(value)}; it must be a whole number")
        if value > _LARGEST:
            raise InputError(f"{self.path}: '{name}' is {_shown(value)}; it must be at most {_LARGEST:,}")
        return value

    def strings(self, name: str) -> list[str]:
        """Returns a list of strings; [] if the setting is missing.

        Raises:
            InputError: the setting is not a list of strings.
        """
        value = self.get(name, None)
        if not isinstance(value, list | None) or not all(isinstance(item, str) for item in value or ()):
            raise InputError(f"{self.path}: '{name}' is {_shown(value)}; it must be a list of strings")
        return value or []

    def labels(self) -> int:
        """Returns the number of labels of a classifier, from id2label or else num_labels."""
        value = self.get("id2label", None)
        if not isinstance(value, dict | None):
            raise InputError(f"{self.path}: 'id2label' is {_shown(value)}; it must be an object, {{id: label}}")
        return len(value) if value else self.number("num_labels", self.get("num_labels", 1), whole=True)

    def require(self, name: str, value: Any, supported: tuple, why: str = "") -> None:
        """Raises InputError if `value`, the value of the setting `name`, is not one of the supported values."""
        # Python's True == 1, but in JSON they differ.
        if not any(value == allowed and isinstance(value, bool) == isinstance(allowed, bool) for allowed in supported):
            can = " or ".join(map(repr, supported))
            raise InputError(f"{self.path}: '{name}' = {_shown(value)} is not supported; it can be {can}{why}")


_LARGEST = 10**9  # no model has more of anything, and counts stay within 32 bits


def _shown(value: Any) -> str:
    """Returns a value as text for a message, shortened if it is long."""
    return reprlib.repr(value)


def canonical(config: TransformerConfig) -> TransformerConfig:
    """Returns the canonical config of an architecture: two configs of the same architecture have the same one.

    Defaults are spelled out, and fields that change no result are reset.
    """
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
        lora=None,
        qkv_bias=config.use_bias or config.qkv_bias,
    )
    if config.positions == "learned":
        return dataclasses.replace(shape, rope_theta=1.0, rotary_fraction=1.0, rope_scaling=())
    return dataclasses.replace(shape, position_offset=0)


def _read_rope(settings: ModelSettings, theta: str, fraction: str | None, default: float) -> dict[str, Any]:
    """Returns the fields of TransformerConfig for RoPE.

    transformers 5 writes all of it into rope_parameters; earlier versions wrote rope_scaling and theta side by side.

    Args:
        settings: the settings of config.json.
        theta: name of the setting of theta.
        fraction: name of the setting of the fraction of a head that is rotated; None: the fraction must be 1.
        default: default of the fraction.
    """
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
    """Returns the settings of config.json for RoPE, as versions of transformers before 5 write them."""
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


def _read_window(settings: ModelSettings, name: str, switch: str | None, default: int) -> int | None:
    """Returns the length of the sliding window in tokens; None without one."""
    if switch and not settings.get(switch, False):
        return None
    window = settings.get(name, default)
    return None if window is None else settings.number(name, window)
