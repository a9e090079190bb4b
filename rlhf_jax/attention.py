"""Causal attention behind one signature.

Shapes: B batch, T queries, S keys, H heads, G key-value heads (H is a multiple of G), Dh head width.
"""

from typing import Literal

import jax
import jax.numpy as jnp

Implementation = Literal["xla", "blocked"]
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
      segment_ids: i32[B, T]; a query sees earlier keys of its own segment only, itself included.
      implementation: "xla" computes all scores and masks them; "blocked" takes the queries in
        blocks of 64 and skips the keys that lie after each block.

    Returns:
      [B, T, H, Dh].
    """
    length = q.shape[1]
    if implementation == "xla" or length <= _BLOCK:
        return _attend_block(q, k, v, segment_ids, start=0)
    blocks = [
        _attend_block(
            q[:, start : start + _BLOCK],
            k[:, : start + _BLOCK],
            v[:, : start + _BLOCK],
            segment_ids[:, : start + _BLOCK],
            start=start,
        )
        for start in range(0, length, _BLOCK)
    ]
    return jnp.concatenate(blocks, axis=1)


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


def _attend_block(q, k, v, segment_ids, *, start: int):
    """Queries start..start+T of a sequence whose first S keys are given; S >= start + T."""
    batch, length, heads, width = q.shape
    keys, groups = k.shape[1], k.shape[2]
    q = q.reshape(batch, length, groups, heads // groups, width)
    scores = jnp.einsum("btgrd,bsgd->bgrts", q, k, preferred_element_type=jnp.float32)
    query_index = start + jnp.arange(length)
    visible = jnp.arange(keys)[None, :] <= query_index[:, None]
    query_segments = segment_ids[:, start : start + length]
    visible = visible & (query_segments[:, :, None] == segment_ids[:, None, :])
    weights = _softmax(scores * width**-0.5, visible[:, None, None]).astype(v.dtype)
    out = jnp.einsum("bgrts,bsgd->btgrd", weights, v)
    return out.reshape(batch, length, heads, width)


def _softmax(scores, visible):
    return jax.nn.softmax(jnp.where(visible, scores, _MASKED), axis=-1)
