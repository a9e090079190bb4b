"""Released weights: a Hugging Face folder (config.json, model.safetensors) -> our config and parameters.

One mapping table per family; NumPy alone, no torch. Llama's rotary embedding is half-split in that
layout, as in model.py. Everything in the folder must be understood: an unknown setting, a missing,
extra or misshapen tensor is an error that names it.
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_dtypes  # noqa: F401  safetensors.numpy reads bfloat16 only once this is imported
import numpy as np
import safetensors.numpy

from rlhf_jax import model
from rlhf_jax.errors import InputError
from rlhf_jax.model import TransformerConfig

_VOCABULARY_FIRST = ("embedding", "lm_head")  # ours are padded to a multiple


@dataclasses.dataclass(frozen=True)
class Source:
    """The tensor behind a parameter of ours; "{}" in its name is the number of the layer.

    Attributes:
        name: of the tensor.
        inputs: how many leading axes of our parameter (without the layers) are inputs of a linear
            layer; its tensor is [outputs, inputs]. 0: the tensor is the parameter as it is.
    """

    name: str
    inputs: int = 0


@dataclasses.dataclass(frozen=True)
class Family:
    """One model_type."""

    config: Callable[["Settings"], dict[str, Any]]  # -> fields of TransformerConfig
    sources: Mapping[str, Source]  # path of our parameter -> tensor
    ignored: tuple[str, ...] = ()  # endings of tensors that are no parameters


class Settings:
    """config.json, where every question that fails is one sentence naming the file and the setting."""

    def __init__(self, folder: str | os.PathLike):
        self.path = pathlib.Path(folder, "config.json")
        try:
            self._values = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path} cannot be read as JSON ({error}); give a Hugging Face model folder") from None
        if not isinstance(self._values, dict):
            raise InputError(f"{self.path} is not a JSON object; give a Hugging Face model folder")

    def get(self, name: str, default: Any) -> Any:
        return self._values.get(name, default)

    def number(self, name: str, default: float | None = None) -> Any:
        value = self._values.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise InputError(f"{self.path}: '{name}' is {value!r}; it must be a positive number")
        return value

    def require(self, name: str, value: Any, supported: tuple) -> None:
        if value not in supported:
            raise InputError(f"{self.path}: '{name}' = {value!r} is not supported; it can be {supported[0]!r}")


def _llama_config(settings: Settings) -> dict[str, Any]:
    settings.require("hidden_act", settings.get("hidden_act", "silu"), ("silu",))
    for name in ("attention_bias", "mlp_bias"):
        settings.require(name, settings.get(name, False), (False,))
    settings.require("rope_scaling", settings.get("rope_scaling", None), (None,))
    rope = settings.get("rope_parameters", None) or {}  # transformers 5 writes it, with the theta inside
    settings.require("rope_parameters.rope_type", rope.get("rope_type", "default"), ("default",))
    width, heads = settings.number("hidden_size"), settings.number("num_attention_heads")
    settings.require("head_dim", settings.get("head_dim", None), (width // heads, None))
    return dict(
        vocab_size=settings.number("vocab_size"),
        num_layers=settings.number("num_hidden_layers"),
        embed_dim=width,
        num_heads=heads,
        num_kv_heads=settings.number("num_key_value_heads", heads),
        mlp_dim=settings.number("intermediate_size"),
        max_length=settings.number("max_position_embeddings"),
        positions="rope",
        norm="rmsnorm",
        mlp="swiglu",
        use_bias=False,
        tie_embeddings=bool(settings.get("tie_word_embeddings", False)),
        rope_theta=float(rope.get("rope_theta") or settings.number("rope_theta", 10_000.0)),
        norm_eps=settings.number("rms_norm_eps", 1e-6),
    )


FAMILIES: Mapping[str, Family] = {
    "llama": Family(
        config=_llama_config,
        sources={
            "embedding": Source("model.embed_tokens.weight"),
            "layers/norm1/scale": Source("model.layers.{}.input_layernorm.weight"),
            "layers/wq": Source("model.layers.{}.self_attn.q_proj.weight", inputs=1),
            "layers/wk": Source("model.layers.{}.self_attn.k_proj.weight", inputs=1),
            "layers/wv": Source("model.layers.{}.self_attn.v_proj.weight", inputs=1),
            "layers/wo": Source("model.layers.{}.self_attn.o_proj.weight", inputs=2),
            "layers/norm2/scale": Source("model.layers.{}.post_attention_layernorm.weight"),
            "layers/w_gate": Source("model.layers.{}.mlp.gate_proj.weight", inputs=1),
            "layers/w_up": Source("model.layers.{}.mlp.up_proj.weight", inputs=1),
            "layers/w_down": Source("model.layers.{}.mlp.down_proj.weight", inputs=1),
            "final_norm/scale": Source("model.norm.weight"),
            "lm_head": Source("lm_head.weight"),
        },
        ignored=(".rotary_emb.inv_freq",),
    ),
}


def load_config(folder: str | os.PathLike, **overrides: Any) -> TransformerConfig:
    """Reads config.json; `overrides` are fields that it does not decide, like dtype and scan_layers.

    Raises:
        InputError: no readable config.json, or a family or a setting that model.py does not have.
    """
    settings = Settings(folder)
    return TransformerConfig(**_family(settings).config(settings) | overrides)


def load_params(folder: str | os.PathLike, config: TransformerConfig) -> dict:
    """Reads model.safetensors, of any float type.

    Args:
        config: what `load_config` gave for this folder.

    Returns:
        Float32 NumPy arrays, laid out as by `model.init_params`; the rows that pad the vocabulary
        are 0.

    Raises:
        InputError: no readable model.safetensors, or a tensor missing, extra or misshapen.
    """
    family = _family(Settings(folder))
    path = pathlib.Path(folder, "model.safetensors")
    tensors = _read_tensors(path)

    def take(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in tensors:
            raise InputError(f"{path}: tensor '{name}' is missing; by config.json it must be there")
        tensor = tensors.pop(name)
        if tensor.shape != shape:
            raise InputError(f"{path}: tensor '{name}' is {list(tensor.shape)}; by config.json it must be {list(shape)}")
        return tensor.astype(np.float32)

    def convert(name: str, inputs: int, shape: tuple[int, ...]) -> np.ndarray:
        if not inputs:
            return take(name, shape)
        return take(name, (math.prod(shape[inputs:]), math.prod(shape[:inputs]))).T.reshape(shape)

    def parameter(keys, ours) -> np.ndarray:
        path = "/".join(key.key for key in keys)
        source = family.sources[path]
        if path in _VOCABULARY_FIRST:
            rows = take(source.name, (config.vocab_size, *ours.shape[1:]))
            return np.pad(rows, ((0, ours.shape[0] - config.vocab_size), (0, 0)))
        if "{}" in source.name:
            names = [source.name.format(layer) for layer in range(config.num_layers)]
            return np.stack([convert(name, source.inputs, ours.shape[1:]) for name in names])
        return convert(source.name, source.inputs, ours.shape)

    params = jax.tree_util.tree_map_with_path(parameter, model.param_shapes(config))
    extra = [name for name in tensors if not name.endswith(family.ignored)]
    if extra:
        raise InputError(f"{path}: tensor '{extra[0]}' is unexpected; by config.json the model has no such parameter")
    return params


def _family(settings: Settings) -> Family:
    model_type = settings.get("model_type", None)
    if model_type not in FAMILIES:
        raise InputError(f"{settings.path}: model_type {model_type!r} is unknown; it can be {', '.join(FAMILIES)}")
    return FAMILIES[model_type]


def _read_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        other = sorted(p.name for p in path.parent.glob("*") if p.suffix in (".bin", ".pt", ".pth", ".safetensors"))
        found = f", only {other[0]}" if other else ""
        raise InputError(f"{path} is missing{found}; weights are read from that one file (pickles never are)")
    try:
        return safetensors.numpy.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{path} cannot be read ({error}); it must be a whole safetensors file") from None
