"""The parameters of a model: fresh ones, their shapes and logical axes, and the scalar head among them."""

import functools

import jax
import jax.numpy as jnp

from rlhf_jax.lora import MATRICES, SCALAR_HEAD
from rlhf_jax.model.config import TransformerConfig
from rlhf_jax.model.transformer import Transformer

# The logical axes of every parameter by its name; parameters inside "layers" have a leading "layers" axis as well.
_AXES = {
    "embedding": ("vocab", "embed"),
    "lm_head": ("vocab", "embed"),
    "positions": ("seq", "embed"),
    "scale": ("embed",),
    "bias": ("embed",),
    "wq": ("embed", "heads", "head_dim"),
    "wk": ("embed", "kv_heads", "head_dim"),
    "wv": ("embed", "kv_heads", "head_dim"),
    "wo": ("heads", "head_dim", "embed"),
    "bq": ("heads", "head_dim"),
    "bk": ("kv_heads", "head_dim"),
    "bv": ("kv_heads", "head_dim"),
    "bo": ("embed",),
    "q_norm": ("head_dim",),
    "k_norm": ("head_dim",),
    "w_up": ("embed", "mlp"),
    "w_gate": ("embed", "mlp"),
    "w_down": ("mlp", "embed"),
    "b_up": ("mlp",),
    "b_down": ("embed",),
    "scalar_kernel": ("embed",),
    "scalar_bias": (),
}
_AXES |= {f"{name}_a": (*_AXES[name][:inputs], "rank") for name, inputs in MATRICES.items()}
_AXES |= {f"{name}_b": ("rank", *_AXES[name][inputs:]) for name, inputs in MATRICES.items()}


@functools.partial(jax.jit, static_argnums=(0, 2))
def init_params(config: TransformerConfig, key: jax.Array, head: str = "lm") -> dict:
    """Returns fresh float32 parameters; head is "lm" (policy) or "scalar" (reward and value model).

    It is one compiled program. Flax also computes hidden states, which the compiler leaves out; without the compiler they
    would take more memory than the training of a small model.
    """
    tokens = jnp.zeros((1, 2), jnp.int32)
    return Transformer(config, head=head).init(key, tokens, tokens, tokens)["params"]


def param_shapes(config: TransformerConfig, head: str = "lm") -> dict:
    """Returns the tree of `init_params` as jax.ShapeDtypeStruct, without computing anything."""
    return jax.tree.map(lambda leaf: leaf, _param_shapes(config, head))  # a copy: the cached tree must not change


@functools.lru_cache(maxsize=64)
def _param_shapes(config: TransformerConfig, head: str) -> dict:
    """Traces `init_params` once: a trace takes a tenth of a second, and every reading of parameters needs one."""
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0), head))


def logical_axes(config: TransformerConfig, head: str = "lm") -> dict:
    """Returns the tree of `init_params` with a tuple of logical axis names for each parameter."""

    def axes(path, _):
        names = [entry.key for entry in path]
        return (("layers",) if names[0] == "layers" else ()) + _AXES[names[-1]]

    return jax.tree_util.tree_map_with_path(axes, param_shapes(config, head))


def init_scalar_head(config: TransformerConfig, key: jax.Array) -> dict:
    """Returns a fresh scalar head, that of `init_params`."""
    return scalar_head_of(init_params(config, key, head="scalar"))


def with_scalar_head(params: dict, head: dict) -> dict:
    """Returns a reward model to start training from: the trunk of `params`, without its lm head; no array is copied.

    Args:
      params: parameters of a language model, or of a reward model, which keeps its head.
      head: a scalar head.
    """
    return head | {name: value for name, value in params.items() if name != "lm_head"}


def scalar_head_of(params: dict) -> dict:
    """Returns the head of a reward or value model, without its trunk."""
    return {name: params[name] for name in SCALAR_HEAD}


def is_scalar_head(params: dict) -> bool:
    """Whether the parameters are only a scalar head, without a trunk."""
    return params.keys() == set(SCALAR_HEAD)


def without_scalar_head(params: dict) -> dict:
    """Returns the parameters without their scalar head, if they have one.

    For a policy with a value head on its trunk, the result is the language model.
    """
    return {name: value for name, value in params.items() if name not in SCALAR_HEAD}
