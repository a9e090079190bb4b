"""Completions sampled from a policy, and what is read from them.

Shapes: B batch, P prompt, C completion.
"""

import dataclasses
import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.runtime import hosts


@struct.dataclass
class Rollout:
    """Completions sampled from a policy, with the log-probabilities they were sampled with."""

    tokens: jax.Array  # i32[B, P+C]; prompts are padded on the left, completions on the right
    prompt_mask: jax.Array  # bool[B, P]
    completion_mask: jax.Array  # bool[B, C]; True up to and including EOS
    logprobs: jax.Array  # f32[B, C] at the sampling temperature, 0 outside the mask

    @property
    def mask(self) -> jax.Array:
        """bool[B, P+C], True on real tokens."""
        return jnp.concatenate([self.prompt_mask, self.completion_mask], axis=1)

    @property
    def completions(self) -> jax.Array:
        """i32[B, C], the tokens of the completions."""
        return self.tokens[:, self.prompt_mask.shape[1] :]


def is_end(tokens: jax.Array, eos_id: int | tuple[int, ...]) -> jax.Array:
    """Returns bool[...], whether each token of i32[...] is eos_id, or one of several."""
    ends = eos_id if isinstance(eos_id, tuple) else (eos_id,)
    return functools.reduce(operator.or_, [tokens == end for end in ends])


def ended_by(rollout: Rollout, ends: tuple[int, ...], other: int) -> Rollout:
    """Returns the rollout with `other` in place of each of the tokens `ends` in its completions.

    The result is on the host if the rollout is.
    """
    array = np if isinstance(rollout.tokens, np.ndarray) else jnp
    completions = rollout.completions
    completions = array.where(rollout.completion_mask & is_end(completions, ends), other, completions)
    width = rollout.prompt_mask.shape[1]
    return dataclasses.replace(rollout, tokens=array.concatenate([rollout.tokens[:, :width], completions], axis=1))


def sampled(rollout: Rollout) -> list[tuple[int, ...]]:
    """Returns the token ids of each completion, including the token that ended it."""
    rollout = hosts.fetch(rollout)
    return [tuple(row[keep].tolist()) for row, keep in zip(rollout.completions, rollout.completion_mask)]


def texts(
    rollout: Rollout, tokenizer: Tokenizer, eos_id: int | tuple[int, ...] | None = None
) -> tuple[list[str], list[bool]]:
    """Returns the completions as text without special tokens, and whether each ended with an end token.

    A completion that was cut inside a character does not have this character (see `Tokenizer.decode_cut`).

    Args:
      rollout: the completions.
      tokenizer: the tokenizer of the model.
      eos_id: the token, or tokens, that end a completion; None: the tokenizer's end tokens.
    """
    rollout = hosts.fetch(rollout)
    completions, mask = rollout.completions, rollout.completion_mask
    ends = is_end(completions, tokenizer.end_ids if eos_id is None else eos_id)
    finished = [bool(row) for row in (ends & mask).any(axis=1)]
    rows = [row[keep].tolist() for row, keep in zip(completions, mask & ~ends)]
    whole = tokenizer.decode_batch(rows, continues=True)
    return [text if end else tokenizer.decode_cut(row) for text, end, row in zip(whole, finished, rows)], finished
