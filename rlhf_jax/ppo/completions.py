"""What models say of sampled completions: log-probabilities, values, and the scores of reward models.

The rows are those of a rollout, or packed ones of several episodes each (see packing.py).

Shapes: B batch (episodes), R packed rows, P prompt, C completion, T = P + C, D embed.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax import model
from rlhf_jax.generate import Rollout, ended_by, is_end
from rlhf_jax.model import TransformerConfig
from rlhf_jax.ppo.packing import PackedRollout

RewardFn = Callable[[Any, Rollout], jax.Array]  # (reward params, rollout) -> f32[B], or f32[B, M] of M models


def completion_states(config: TransformerConfig, params: dict, rollout: Rollout | PackedRollout) -> jax.Array:
    """Returns the hidden states [B, C, D] from which the completion tokens are predicted."""
    if isinstance(rollout, PackedRollout):
        rows = config.of_rows(rollout.segments)
        hidden = model.hidden_states(rows, params, rollout.tokens, rollout.positions, rollout.segment_ids)
        return jax.vmap(lambda row, places: row[places])(hidden, rollout.before)
    prompt_length = rollout.prompt_mask.shape[1]
    return model.masked_hidden_states(config, params, rollout.tokens, rollout.mask)[:, prompt_length - 1 : -1]


def completion_logprobs(
    config: TransformerConfig, params: dict, rollout: Rollout | PackedRollout, temperature
) -> jax.Array:
    """Returns log pi of the sampled tokens, f32[B, C], in nats at the sampling temperature; 0 on padding."""
    states = completion_states(config, params, rollout)
    logprobs = model.target_logprobs(config, params, states, rollout.completions, divisor(temperature))
    return jnp.where(rollout.completion_mask, logprobs, 0.0)


def divisor(temperature):
    """Returns the divisor of the logits: the temperature, or 1 for greedy sampling (temperature 0 or below)."""
    return jnp.where(temperature <= 0.0, 1.0, temperature)


def completion_values(config: TransformerConfig, params: dict, rollout: Rollout | PackedRollout) -> jax.Array:
    """Returns V(s_t), f32[B, C], the value before each completion token is chosen; 0 on padding."""
    return values_at(config, params, completion_states(config, params, rollout), rollout.completion_mask)


def values_at(config: TransformerConfig, params: dict, states: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns the values f32[B, C] that a scalar head gives hidden states [B, C, D]; 0 where the mask is False."""
    return jnp.where(mask, model.scalar_head(config, params, states), 0.0)


def sequence_scores(config: TransformerConfig, params: dict, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns the reward model's scores f32[B]: its scalar output at the last real token of each row.

    Args:
      tokens: i32[B, T].
      mask: bool[B, T], True on real tokens.
    """
    hidden = model.masked_hidden_states(config, params, tokens, mask)
    last = tokens.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
    return model.scalar_head(config, params, hidden[jnp.arange(tokens.shape[0]), last])


@dataclasses.dataclass(frozen=True)
class SequenceScore:
    """The reward of rollouts by a reward model: `sequence_scores` as a RewardFn.

    Attributes:
      config: shape of the reward model.
      ends: all tokens that end a completion. The reward model reads the first of them in place of the others, because
        it was trained to give its score on that token.
    """

    config: TransformerConfig
    ends: tuple[int, ...] = ()

    def __call__(self, params: dict, rollout: Rollout) -> jax.Array:
        if len(self.ends) > 1:
            rollout = ended_by(rollout, self.ends[1:], self.ends[0])
        return sequence_scores(self.config, params, rollout.tokens, rollout.mask)

    def at_places(self, params: dict, rows: PackedRollout) -> jax.Array:
        """Returns the scalar output at all places of packed rows, f32[R, T]; the scores are those of the last tokens."""
        tokens = rows.tokens
        if len(self.ends) > 1:
            tokens = jnp.where(rows.generated & is_end(tokens, self.ends[1:]), self.ends[0], tokens)
        config = self.config.of_rows(rows.segments)
        hidden = model.hidden_states(config, params, tokens, rows.positions, rows.segment_ids)
        return model.scalar_head(self.config, params, hidden)


def has_eos(rollout: Rollout, eos_id: int | tuple[int, ...]) -> jax.Array:
    """Returns bool[B]: whether each completion ended with an end token, and was not cut at its maximum length."""
    return jnp.any(is_end(rollout.completions, eos_id) & rollout.completion_mask, axis=1)
