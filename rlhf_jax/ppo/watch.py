"""What is looked at in every rollout, and changes nothing: signs of reward hacking, and the two completions that show it.

It is a program of its own, so that the programs of training are the same with and without it.
"""

import jax
import jax.numpy as jnp
from flax import struct

from rlhf_jax import advantages as adv
from rlhf_jax.generate import Rollout
from rlhf_jax.ppo.state import Experience


@struct.dataclass
class Looked:
    """Some completions of a rollout with their scores; the first axis of every field is the completion.

    Attributes:
      row: i32[N], the row of the batch.
      rollout: prompts and completions of these rows.
      score: f32[N], the score after the missing-EOS rule.
      raw_score: f32[N], the score before it.
      scores: f32[N] for each reward of a mixture, by name.
      kl: f32[N], log pi - log pi_ref summed over the completion, in nats.
    """

    row: jax.Array
    rollout: Rollout
    score: jax.Array
    raw_score: jax.Array
    scores: dict[str, jax.Array]
    kl: jax.Array


def look(experience: Experience, rows: jax.Array) -> Looked:
    """Returns the completions of some rows i32[N]."""
    kl = adv.sequence_kl(experience.logprobs, experience.ref_logprobs, experience.rollout.completion_mask)
    found = experience.rollout, experience.scores, experience.raw_scores, experience.scores_of, kl
    return Looked(rows, *jax.tree.map(lambda x: x[rows], found))


def watch(experience: Experience) -> tuple[dict[str, jax.Array], Looked]:
    """Returns metrics of a rollout, and its completions of the highest and of the lowest score, in this order.

    Of completions with equal scores the first is taken. The metrics are

      watch/most_common: the share of the batch, in [0, 1], that is the completion which is there most often.
      watch/length_score_correlation: Pearson's correlation of length and score over the batch; 0 if either is constant.
    """
    mask = experience.rollout.completion_mask
    scores = experience.scores
    lengths = jnp.sum(mask, axis=1, dtype=jnp.float32)
    metrics = {
        "watch/most_common": most_common(experience.rollout.completions, mask),
        "watch/length_score_correlation": correlation(lengths, scores),
    }
    return metrics, look(experience, jnp.stack([jnp.argmax(scores), jnp.argmin(scores)]))


def most_common(tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns the share f32[] of the rows that are equal to the row which is there most often.

    Rows are compared by two hashes of 32 bits, because all pairs of rows of tokens would not fit into memory.

    Args:
      tokens: i32[B, C].
      mask: bool[B, C]; what is outside does not count.
    """
    words = tokens.astype(jnp.uint32)
    places = jnp.arange(words.shape[1], dtype=jnp.uint32)

    def hashed(seed: int) -> jax.Array:
        mixed = (words + jnp.uint32(seed)) * (2 * places + 1) * jnp.uint32(0x9E3779B1)
        mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(0x85EBCA77)
        return jnp.sum(jnp.where(mask, mixed ^ (mixed >> 13), 0), axis=1, dtype=jnp.uint32)

    keys = jnp.stack([hashed(1), hashed(0x27D4EB2F)])
    same = jnp.all(keys[:, :, None] == keys[:, None, :], axis=0)
    return jnp.max(jnp.mean(same, axis=1, dtype=jnp.float32))


def correlation(x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns Pearson's correlation f32[] of f32[B] and f32[B]; 0 if either is constant."""
    x, y = x - jnp.mean(x), y - jnp.mean(y)
    norm = jnp.sqrt(jnp.sum(x * x) * jnp.sum(y * y))
    return jnp.where(norm > 0, jnp.sum(x * y) / jnp.where(norm > 0, norm, 1.0), 0.0)
