"""A model, a mesh and a PPO stage of the smallest size that can still go wrong, for several test files."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from rlhf_jax import generate, model, optim, ppo, ppo_stage, sharding, train
from rlhf_jax.data.batches import Batch, Prompts

PAD, EOS, VOCAB = 0, 1, 61  # 61 is padded to 64: the padding of the vocabulary is there in every test
CONFIG = model.TransformerConfig(
    vocab_size=VOCAB, num_layers=2, embed_dim=32, num_heads=4, max_length=48, init_std=0.2, scan_layers=False
)
MESHES = {"1x1x1": (1, 1, 1), "8x1x1": (8, 1, 1), "1x8x1": (1, 8, 1), "2x2x2": (2, 2, 2)}


def llama(**changes) -> model.TransformerConfig:
    """The other family: rope, rmsnorm, swiglu, fewer key-value heads, no bias, an lm head of its own."""
    family = dict(positions="rope", norm="rmsnorm", mlp="swiglu", use_bias=False, tie_embeddings=False)
    return dataclasses.replace(CONFIG, num_kv_heads=2, mlp_dim=48, **family | changes)


@functools.cache
def mesh_of(name: str) -> jax.sharding.Mesh:
    sizes = MESHES[name]
    return sharding.make_mesh(*sizes, devices=jax.devices()[: int(np.prod(sizes))])


def params_of(config: model.TransformerConfig, seed: int, head: str = "lm") -> dict:
    """Random parameters in which nothing is 0 or 1, biases and scales included."""
    leaves, tree = jax.tree.flatten(model.param_shapes(config, head))
    rng = np.random.default_rng(seed)
    params = jax.tree.unflatten(tree, [rng.normal(0, 0.2, x.shape).astype(np.float32) for x in leaves])
    return jax.tree_util.tree_map_with_path(lambda path, x: x + 1 if path[-1].key == "scale" else x, params)


def place(params: dict, config: model.TransformerConfig, mesh, head: str = "lm") -> dict:
    """Parameters on the mesh."""
    return jax.device_put(params, sharding.param_shardings(model.logical_axes(config, head), params, mesh))


def prompts_of(rows: int, length: int, seed: int = 0) -> Prompts:
    """Left-padded prompts of random lengths, 1 to `length`."""
    rng = np.random.default_rng(seed)
    mask = np.arange(length)[::-1] < rng.integers(1, length + 1, rows)[:, None]
    tokens = np.where(mask, rng.integers(2, VOCAB, (rows, length)), PAD).astype(np.int32)
    return Prompts(tokens, mask, np.arange(rows, dtype=np.int32))


def documents_of(rows: int, length: int, seed: int = 0) -> Batch:
    """Packed rows of two documents and some padding."""
    rng = np.random.default_rng(seed)
    column = np.arange(length)
    cut, end = rng.integers(2, length // 2, (rows, 1)), rng.integers(length // 2 + 2, length + 1, (rows, 1))
    segments = np.where(column < cut, 1, np.where(column < end, 2, 0))
    positions = np.where(segments == 0, 0, column - np.where(segments == 2, cut, 0))
    return Batch(
        tokens=np.where(segments > 0, rng.integers(2, VOCAB, (rows, length)), PAD).astype(np.int32),
        loss_mask=((segments > 0) & (positions > 0)).astype(np.float32),
        segment_ids=segments.astype(np.int32),
        positions=positions.astype(np.int32),
    )


COEFFICIENTS = dict(
    ptx_coef=0.5, learning_rate=1e-2, value_learning_rate=1e-2, temperature=1.0, cliprange=0.2, cliprange_value=0.2,
    vf_coef=0.5, gamma=1.0, lam=0.95, missing_eos_value=-1.0, ema_decay=0.9, kl_target=6.0, kl_horizon=100.0,
)  # fmt: skip


def coefficients(**changes) -> ppo.Coefficients:
    return ppo.Coefficients(**{name: jnp.float32(x) for name, x in (COEFFICIENTS | changes).items()})
