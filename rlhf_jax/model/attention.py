"""Causal attention: several implementations with one signature.

Shapes: B batch, T queries, S keys, H heads, G key-value heads (H is a multiple of G), R = H / G, Dh head width.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from rlhf_jax import sharding
from rlhf_jax.model import cudnn
from rlhf_jax.model.cudnn import NOTHING, PREFIX
from rlhf_jax.runtime.errors import InputError

Implementation = Literal["xla", "blocked", "splash", "cudnn"]
IMPLEMENTATIONS = get_args(Implementation)
_NEEDS = {"splash": "tpu", "cudnn": "gpu"}
SEGMENTS = 16  # the most segments of a row that programs for packed rows count on
_BLOCK = 64  # number of queries in a block of the "blocked" implementation
_MASKED = -1e30  # finite, so that a query without any visible key gives numbers and not NaN
_LANES = 128  # lanes of a TPU register: splash attention requires lengths that are multiples of it
_CUDNN_WIDTH = 128  # of a head; Hopper and later also compute 256
_CUDNN_TILE = 128  # queries and keys that cuDNN computes, or skips, together
_SPLASH_BLOCKS = (512, 256, _LANES)  # the first that divides the length is computed, or skipped, together


def choose(name: str, platform: str, dtype: str) -> Implementation:
    """Returns the implementation that a configuration's `attention` means on "cpu", "gpu" or "tpu".

    "auto" is splash on a TPU, cuDNN on a GPU with bfloat16 (cuDNN has no float32), and otherwise XLA.

    Args:
      name: "auto" or an implementation.
      platform: "cpu", "gpu" or "tpu".
      dtype: "float32" or "bfloat16", the compute dtype.

    Raises:
      InputError: the implementation is for another platform, or cannot compute in this dtype.
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
    segments: int = 0,
) -> jax.Array:
    """Returns causal self-attention within segments, [B, T, H, Dh].

    Args:
      q: [B, T, H, Dh].
      k, v: [B, T, G, Dh].
      segment_ids: i32[B, T]. A query attends to the earlier keys of its own segment, to itself, and to earlier keys of
        the segment PREFIX; so several completions can follow one prompt in a row.
      implementation: "xla" computes all scores and masks them; "blocked" takes the queries in blocks of 64 and skips
        the keys that lie after each block; "splash" (TPU) and "cudnn" (GPU) never hold all scores. "splash" does not
        support PREFIX. Heads that cuDNN does not compute on every GPU, wider than 128 or no multiple of 8, are left to
        "xla".
      segments: what is known of the rows, by which "cudnn" chooses its form (see cudnn.py). 1: a row is one segment from
        its first place on, and then padding. M > 1: a row has at most M segments, the tokens of each stand together, and
        none is PREFIX. 0: nothing is known.
    """
    if implementation == "splash":
        return _splash(q, k, v, segment_ids)
    if implementation == "cudnn" and _cudnn_computes(q.shape[-1]):
        kernel = functools.partial(cudnn.attend, segments=segments, visible=_visible)
        return _by_device(kernel, heads=2)(q, k, v, segment_ids)
    batch, length, heads, width = q.shape
    groups = k.shape[2]
    # With the batch axes first, a CPU multiplies these matrices a third faster.
    q = q.swapaxes(1, 2).reshape(batch, groups, heads // groups, length, width)
    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
    size = _BLOCK if implementation == "blocked" else length
    blocks = []
    for start in range(0, length, size):
        end = min(start + size, length)
        blocks.append(_attend_block(q[..., start:end, :], k[:, :, :end], v[:, :, :end], segment_ids[:, :end], start))
    out = blocks[0] if len(blocks) == 1 else jnp.concatenate(blocks, axis=3)
    return out.reshape(batch, heads, length, width).swapaxes(1, 2)


def computed_scores(implementation: str, length: int, width: int) -> int:
    """Returns how many pairs of a query and a key `attend` computes for a row of `length` tokens and a head of `width`.

    The causal mask leaves length x (length + 1) / 2 of them. An implementation that skips the others skips them in
    blocks, and computes the blocks on the diagonal whole.
    """
    if implementation == "splash":
        length += -length % _LANES
        block = _splash_block(length)
    elif implementation == "cudnn" and _cudnn_computes(width):
        block = _CUDNN_TILE
    else:
        block = _BLOCK if implementation == "blocked" else length
    ends = [min(start + block, length) for start in range(0, length, block)]
    return sum((end - start) * end for start, end in zip([0, *ends], ends))


def skips_segments(implementation: str, width: int) -> bool:
    """Returns whether `attend` computes each segment of packed rows by itself, for heads of a width."""
    return implementation == "cudnn" and _cudnn_computes(width)


def attend_cached(
    q: jax.Array, keys: Sequence[jax.Array], values: Sequence[jax.Array], valid: Sequence[jax.Array]
) -> jax.Array:
    """Returns attention [B, H, Dh] of one query per row to the keys of a cache, which consists of several arrays.

    Args:
      q: [B, H, Dh].
      keys, values: [B, G, n, Dh] each.
      valid: bool[B, n] for each of them, True at the places to attend to.
    """
    batch, heads, width = q.shape
    groups = keys[0].shape[1]
    q = q.reshape(batch, groups, heads // groups, width)
    scores = [jnp.einsum("bgrd,bgsd->bgrs", q, k, preferred_element_type=jnp.float32) for k in keys]
    whole = _softmax(jnp.concatenate(scores, -1) * width**-0.5, jnp.concatenate(valid, -1)[:, None, None, :])
    ends = list(itertools.accumulate(k.shape[2] for k in keys))
    weights = jnp.split(whole.astype(values[0].dtype), ends[:-1], axis=-1)
    mixed = [jnp.einsum("bgrs,bgsd->bgrd", w, v) for w, v in zip(weights, values)]
    return functools.reduce(jnp.add, mixed).reshape(batch, heads, width)


def _attend_block(q, k, v, segment_ids, start: int):
    """Returns attention [B, G, R, T, Dh] of the queries of one block to the first S keys of the sequence.

    Args:
      q: [B, G, R, T, Dh], the queries at places `start` to S - 1; S = start + T.
      k, v: [B, G, S, Dh].
      segment_ids: i32[B, S].
    """
    scores = jnp.einsum("bgrtd,bgsd->bgrts", q, k, preferred_element_type=jnp.float32)
    visible = _visible(segment_ids[:, start:], segment_ids)
    weights = _softmax(scores * q.shape[-1] ** -0.5, visible[:, None, None]).astype(v.dtype)
    return jnp.einsum("bgrts,bgsd->bgrtd", weights, v)


def _visible(segments, key_segments):
    """Returns bool[B, T, S]: which of the S keys each of the last T places attends to."""
    place = jnp.arange(key_segments.shape[1])
    key_segments = key_segments[:, None, :]
    same = (segments[:, :, None] == key_segments) | (key_segments == PREFIX)
    return same & (place <= place[-segments.shape[1] :, None])


def _cudnn_computes(width: int) -> bool:
    """Returns whether cuDNN computes heads of a width on every GPU."""
    return width <= _CUDNN_WIDTH and width % 8 == 0


def _by_device(kernel: Callable, heads: int) -> Callable:
    """Returns a function (q, k, v, segment_ids) by which each device of a mesh computes its own rows and heads.

    XLA cannot split a kernel over devices by itself. Rows and heads that do not divide are computed by all devices.
    `heads` is the axis of the heads in q, k and v.
    """
    axes, mesh = sharding.axes_to_fill(), jax.sharding.get_abstract_mesh()

    def compute(q, k, v, segment_ids):
        divides = set(sharding.BATCH[0]) <= axes and len(q) % sharding.ways(mesh) == 0
        batch = sharding.BATCH[0] if divides else None
        own = "tensor" if k.shape[heads] % mesh.shape["tensor"] == 0 else None
        spec = jax.sharding.PartitionSpec(batch, *[None] * (heads - 1), own)
        specs = (spec, spec, spec, jax.sharding.PartitionSpec(batch))
        split = jax.shard_map(kernel, in_specs=specs, out_specs=spec, axis_names=axes, check_vma=False)
        return split(q, k, v, segment_ids)

    return compute if axes else kernel


def _splash_block(length: int) -> int:
    """Returns the number of queries, and of keys, in a block of splash attention."""
    return next(size for size in _SPLASH_BLOCKS if length % size == 0)


def _splash(q, k, v, segment_ids, interpret: bool = False):
    """Computes `attend` by splash attention; on a mesh each device computes its own rows and heads."""
    length = q.shape[1]
    padding = -length % _LANES

    def pad(x):
        return jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))).swapaxes(1, 2)

    heads_first = pad(q * q.shape[-1] ** -0.5), pad(k), pad(v)
    segment_ids = jnp.pad(segment_ids, ((0, 0), (0, padding)), constant_values=NOTHING)
    local = functools.partial(_splash_local, interpret=interpret)
    return _by_device(local, heads=1)(*heads_first, segment_ids).swapaxes(1, 2)[:, :length]


def _splash_local(q, k, v, segment_ids, interpret: bool):
    """Returns splash attention [B, H, T, Dh] on one device.

    Args:
      q: [B, H, T, Dh]; T is a multiple of 128.
      k, v: [B, G, T, Dh].
      segment_ids: i32[B, T].
      interpret: whether Pallas interprets the kernel, for tests without a TPU.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    heads, length = q.shape[1:3]
    block = _splash_block(length)
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
    """Returns softmax over the last axis, with weight 0 where `visible` is False."""
    return _normalize(jnp.where(visible, scores, _MASKED))


@jax.custom_vjp
def _normalize(scores):
    """Returns softmax over the last axis; its backward pass needs only this result, so the scores are not kept."""
    return jax.nn.softmax(scores, axis=-1)


def _normalize_forward(scores):
    weights = _normalize(scores)
    return weights, weights


def _normalize_backward(weights, gradient):
    product = weights * gradient
    return (product - weights * jnp.sum(product, axis=-1, keepdims=True),)


_normalize.defvjp(_normalize_forward, _normalize_backward)
