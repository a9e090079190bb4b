"""Sampling from the likely tokens alone, or rather from new ones: top-k, top-p and a penalty, as arguments of the program.

PPO never uses it: there the policy is the model at a temperature, and nothing else.
"""

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Truncation:
    """Which tokens may be drawn; top-k and top-p are applied after the temperature, top-k first.

    Changing them compiles nothing anew.
    """

    top_k: jax.Array  # i32: the k likeliest tokens, and those as likely as the last of them; 0: all
    top_p: jax.Array  # f32 in (0, 1]: the fewest likeliest tokens whose probabilities sum to it; 1: all
    repetition_penalty: jax.Array | None = None  # f32 above 0, see `penalized`; None: none


def penalized(logits: jax.Array, seen: jax.Array, penalty: jax.Array) -> jax.Array:
    """f32[B, V] logits -> the same, lower where seen, bool[B, V]: divided by the penalty, or times it below 0.

    Keskar et al. 2019 (CTRL), section 4.1, as transformers has it.
    """
    return jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)


def keep_likely(logprobs: jax.Array, truncation: Truncation) -> jax.Array:
    """f32[B, V] log-probabilities -> the same, with -inf where a token must not be drawn (not normalised again)."""
    vocab = logprobs.shape[-1]
    ordered = jnp.sort(logprobs, axis=-1, descending=True)
    k = jnp.where(truncation.top_k > 0, jnp.minimum(truncation.top_k, vocab), vocab)
    least = jnp.take(ordered, k - 1, axis=-1)[:, None]
    probabilities = jax.nn.softmax(jnp.where(ordered >= least, ordered, -jnp.inf))
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    kept = (before < truncation.top_p) & (ordered >= least)
    lowest = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
    threshold = jnp.where(truncation.top_p < 1.0, lowest, least)  # where it is 1, rounding drops nothing
    return jnp.where(logprobs >= threshold, logprobs, -jnp.inf)
