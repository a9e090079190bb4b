"""Causal attention behind one signature.

Shapes: B batch, T queries, S keys, H heads, G key-value heads (H is a multiple of G), Dh head width.
"""

from typing import Literal

import jax
import jax.numpy as jnp

Implementation = Literal["xla", "blocked"]
PREFIX = -1  # the segment id of tokens that every later token of their row sees
_BLOCK = 64  # queries a block of the "blocked" implementation
_MASKED = -1e30  # finite, so that a row with no key gives numbers and not NaN


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
        blocks of 64 and skips the keys that lie after each block.

    Returns:
      [B, T, H, Dh].
    """
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
    place = jnp.arange(k.shape[2])
    key_segments = segment_ids[:, None, :]
    visible = (segment_ids[:, start:, None] == key_segments) | (key_segments == PREFIX)
    visible = visible & (place <= place[start:, None])
    weights = _softmax(scores * q.shape[-1] ** -0.5, visible[:, None, None]).astype(v.dtype)
    return jnp.einsum("bgrts,bgsd->bgrtd", weights, v)


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
