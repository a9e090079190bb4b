"""Truncated sampling: top-k, top-p and a repetition penalty, as arguments of the sampling program.

PPO never uses them, because its policy is the model at a temperature and nothing else.
"""

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Truncation:
    """Which tokens may be drawn. top-k and top-p are applied after the temperature, top-k first.

    The fields are arrays, so that a change recompiles nothing.
    """

    top_k: jax.Array  # i32: the k likeliest tokens, and those tied with the last of them; 0: all
    top_p: jax.Array  # f32 in (0, 1]: the smallest set of likeliest tokens with this total probability; 1: all
    repetition_penalty: jax.Array | None = None  # f32 above 0, see `penalized`; None: no penalty


def penalized(logits: jax.Array, seen: jax.Array, penalty: jax.Array) -> jax.Array:
    """Returns logits f32[B, V] with a penalty on the tokens that are seen.

    The logit of a seen token is divided by the penalty if it is positive, and multiplied by it if it is negative
    (Keskar et al. 2019 (CTRL), section 4.1, as implemented in transformers).

    Args:
      logits: f32[B, V].
      seen: bool[B, V], True for the tokens already in the row.
      penalty: f32[], above 0; above 1 it makes repetition less likely.
    """
    return jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)


def keep_likely(logprobs: jax.Array, truncation: Truncation) -> jax.Array:
    """Returns log-probabilities f32[B, V] with -inf at tokens that must not be drawn; they are not normalised again."""
    vocab = logprobs.shape[-1]
    ordered = jnp.sort(logprobs, axis=-1, descending=True)
    k = jnp.where(truncation.top_k > 0, jnp.minimum(truncation.top_k, vocab), vocab)
    least = jnp.take(ordered, k - 1, axis=-1)[:, None]
    probabilities = jax.nn.softmax(jnp.where(ordered >= least, ordered, -jnp.inf))
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    kept = (before < truncation.top_p) & (ordered >= least)
    lowest = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
    # With top_p = 1 no token may be lost to rounding of the cumulative sum.
    threshold = jnp.where(truncation.top_p < 1.0, lowest, least)
    return jnp.where(logprobs >= threshold, logprobs, -jnp.inf)
