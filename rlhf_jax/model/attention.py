"""Causal attention behind one signature.

Shapes: B batch, T queries, S keys, H heads, G key-value heads (H is a multiple of G), Dh head width.
"""

import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from rlhf_jax import sharding
from rlhf_jax.runtime.errors import InputError

Implementation = Literal["xla", "blocked", "splash", "cudnn"]
IMPLEMENTATIONS = get_args(Implementation)
_NEEDS = {"splash": "tpu", "cudnn": "gpu"}
PREFIX = -1  # the segment id of tokens that every later token of their row sees
_BLOCK = 64  # queries a block of the "blocked" implementation
_MASKED = -1e30  # finite, so that a row with no key gives numbers and not NaN
_LANES = 128  # of a TPU: splash attention takes lengths in multiples of it
_NOTHING = -2  # the segment id of what is added to a row to reach such a length


def choose(name: str, platform: str, dtype: str) -> Implementation:
    """The implementation that a config's `attention` means on "cpu", "gpu" or "tpu".

    "auto": splash on a TPU, cuDNN on a GPU (it has no float32), else XLA.

    Raises:
      InputError: one of another platform, or that cannot compute in this dtype.
    """
    if name == "auto":
        return "splash" if platform == "tpu" else "cudnn" if platform == "gpu" and dtype == "bfloat16" else "xla"
    if _NEEDS.get(name, platform) != platform:
        raise InputError(
            f"model.attention='{name}' needs a {_NEEDS[name]}, and this runs on a {platform}: choose 'auto'"
        )
    if name == "cudnn" and dtype != "bfloat16":
        raise InputError("model.attention='cudnn' needs model.dtype='bfloat16'; with float32 choose 'xla'")
    return name


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array,
    *,
    implementation: Implementation = "xla",
) -> jax.Array:
    """Causal self-attention within segments.

    Args:
      q: [B, T, H, Dh].
      k, v: [B, T, G, Dh].
      segment_ids: i32[B, T]; a query sees earlier keys of its own segment, itself included, and of a
        segment PREFIX: several completions can so follow one prompt in a row.
      implementation: "xla" computes all scores and masks them; "blocked" takes the queries in
        blocks of 64 and skips the keys that lie after each block; "splash" (TPU) and "cudnn" (GPU)
        never hold the scores. "splash" does not know PREFIX.

    Returns:
      [B, T, H, Dh].
    """
    if implementation == "splash":
        return _splash(q, k, v, segment_ids)
    if implementation == "cudnn":
        mask = _visible(segment_ids, segment_ids)[:, None]
        return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")
    batch, length, heads, width = q.shape
    groups = k.shape[2]
    # Batch axes first: a CPU multiplies such matrices a third faster.
    q = q.swapaxes(1, 2).reshape(batch, groups, heads // groups, length, width)
    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
    size = length if implementation == "xla" else _BLOCK
    blocks = []
    for start in range(0, length, size):
        end = min(start + size, length)
        blocks.append(_attend_block(q[..., start:end, :], k[:, :, :end], v[:, :, :end], segment_ids[:, :end], start))
    out = blocks[0] if len(blocks) == 1 else jnp.concatenate(blocks, axis=3)
    return out.reshape(batch, heads, length, width).swapaxes(1, 2)


def attend_cached(q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array) -> jax.Array:
    """One query a row against a cache: q [B, H, Dh], k and v [B, G, S, Dh], valid bool[B, S].

    Returns [B, H, Dh].
    """
    batch, heads, width = q.shape
    groups = k.shape[1]
    q = q.reshape(batch, groups, heads // groups, width)
    scores = jnp.einsum("bgrd,bgsd->bgrs", q, k, preferred_element_type=jnp.float32)
    weights = _softmax(scores * width**-0.5, valid[:, None, None, :]).astype(v.dtype)
    return jnp.einsum("bgrs,bgsd->bgrd", weights, v).reshape(batch, heads, width)


def _attend_block(q, k, v, segment_ids, start: int):
    """Queries [B, G, R, T, Dh] from place `start` on, of a sequence whose first S keys are given; S = start + T."""
    scores = jnp.einsum("bgrtd,bgsd->bgrts", q, k, preferred_element_type=jnp.float32)
    visible = _visible(segment_ids[:, start:], segment_ids)
    weights = _softmax(scores * q.shape[-1] ** -0.5, visible[:, None, None]).astype(v.dtype)
    return jnp.einsum("bgrts,bgsd->bgrtd", weights, v)


def _visible(segments, key_segments):
    """bool[B, T, S]: which keys the last T of S places see."""
    place = jnp.arange(key_segments.shape[1])
    key_segments = key_segments[:, None, :]
    same = (segments[:, :, None] == key_segments) | (key_segments == PREFIX)
    return same & (place <= place[-segments.shape[1] :, None])


def _splash(q, k, v, segment_ids, interpret: bool = False):
    """Splash attention; on a mesh each device takes its rows and heads."""
    length = q.shape[1]
    padding = -length % _LANES
    pad = lambda x: jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))).swapaxes(1, 2)
    heads_first = pad(q * q.shape[-1] ** -0.5), pad(k), pad(v)
    segment_ids = jnp.pad(segment_ids, ((0, 0), (0, padding)), constant_values=_NOTHING)
    local = functools.partial(_splash_local, interpret=interpret)
    if sharding.mesh_to_fill() is not None:
        heads = jax.sharding.PartitionSpec(*sharding.BATCH, "tensor")
        specs = (heads, heads, heads, sharding.BATCH)
        local = jax.shard_map(local, in_specs=specs, out_specs=heads, check_vma=False)
    return local(*heads_first, segment_ids).swapaxes(1, 2)[:, :length]


def _splash_local(q, k, v, segment_ids, interpret: bool):
    """q [B, H, T, Dh], k and v [B, G, T, Dh], segment_ids [B, T]; T is a multiple of 128."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    heads, length = q.shape[1:3]
    block = next(size for size in (512, 256, _LANES) if length % size == 0)
    sizes = kernels.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    mask = masks.MultiHeadMask([masks.CausalMask((length, length))] * heads)
    kernel = kernels.make_splash_mha(mask, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret)
    return jax.vmap(lambda q, k, v, ids: kernel(q, k, v, kernels.SegmentIds(ids, ids)))(q, k, v, segment_ids)


def _softmax(scores, visible):
    return _normalize(jnp.where(visible, scores, _MASKED))


@jax.custom_vjp
def _normalize(scores):
    """Softmax whose backward pass needs its result alone."""
    return jax.nn.softmax(scores, axis=-1)


def _normalize_forward(scores):
    weights = _normalize(scores)
    return weights, weights


def _normalize_backward(weights, gradient):
    product = weights * gradient
    return (product - weights * jnp.sum(product, axis=-1, keepdims=True),)


_normalize.defvjp(_normalize_forward, _normalize_backward)
