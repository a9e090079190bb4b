"""Several rewards in one score: their weighted sum, each standardised if that is asked.

The rewards are reward models, which read a rollout on the devices, and functions, whose scores the host gives. The sum
has the missing-EOS rule applied to it, and takes the place of a single reward model's score.

A reward is standardised by the mean and the standard deviation of its scores in the first iteration, whose completions
the reference has written: Ziegler et al. 2019, section 2.1, normalise a reward to mean 0 and variance 1 over samples of
the initial policy. The two numbers are part of the state, and do not change afterwards, so that the objective does not.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rlhf_jax.fields import rewards as rewards_lib
from rlhf_jax.ppo.completions import SequenceScore


@dataclasses.dataclass(frozen=True)
class Mixture:
    """The static description of several rewards.

    Attributes:
      names: name of each of the N rewards.
      given: for each, whether the host gives its scores; the others are reward models.
      standardize: whether each is standardised before it is weighted.
    """

    names: tuple[str, ...]
    given: tuple[bool, ...]
    standardize: bool

    def scales(self) -> dict[str, jax.Array] | None:
        """Returns the scales of a fresh state, f32[] by name, all 0: not known yet. None: nothing is standardised."""
        if not self.standardize:
            return None
        return {f"{name}/{what}": jnp.float32(0) for name in self.names for what in ("mean", "deviation")}


@dataclasses.dataclass(frozen=True)
class ModelScores:
    """The scores of several reward models: (their parameters, rollout) -> f32[B, M]."""

    parts: tuple[SequenceScore, ...]

    def __call__(self, params: Sequence[dict], rollout) -> jax.Array:
        return jnp.stack([part(own, rollout) for part, own in zip(self.parts, params, strict=True)], axis=-1)


def of_each_model(function: Callable, params):
    """Returns a function of the parameters of a reward model, or the tuple of it of each of several."""
    return tuple(map(function, params)) if isinstance(params, tuple) else function(params)


def mixture_of(section: ConfigDict) -> Mixture | None:
    """Returns the mixture of a PPO section; None for a single reward model that is taken as it is.

    Raises:
      ValueError: `reward` has none of its forms.
    """
    rewards = rewards_lib.several(section.reward)
    if len(rewards) == 1 and rewards[0].model == section.reward.strip():
        if not section.reward_weights and not section.reward_standardize:
            return None
    names, given = zip(*[(reward.name, not reward.model) for reward in rewards])
    return Mixture(names, given, section.reward_standardize)


def combined(
    mixture: Mixture,
    of_models: jax.Array | None,
    given: jax.Array | None,
    weights: jax.Array,
    scales: dict[str, jax.Array] | None,
) -> tuple[jax.Array, dict[str, jax.Array], dict[str, jax.Array]]:
    """Returns the weighted sum f32[B] of the rewards, the scores f32[B] of each, and metrics: its mean and its scale.

    Args:
      mixture: the N rewards.
      of_models: f32[B, M], the scores of the reward models, in their order among the rewards; None if M is 0.
      given: f32[B, N - M], the scores of the others, in their order; None if there are none.
      weights: f32[N].
      scales: those of the state; a deviation of 0 means that this is the first iteration.
    """
    columns = {False: iter(() if of_models is None else of_models.T), True: iter(() if given is None else given.T)}
    total, scores_of, metrics = jnp.float32(0), {}, {}
    for name, from_host, weight in zip(mixture.names, mixture.given, weights, strict=True):
        scores = scores_of[name] = next(columns[from_host]).astype(jnp.float32)
        metrics[f"objective/scores/{name}"] = jnp.mean(scores)
        if scales is not None:
            mean, deviation = (scales[f"{name}/{what}"] for what in ("mean", "deviation"))
            mean, deviation = (
                jnp.where(deviation == 0.0, now, then)
                for now, then in zip(_scale(scores), (mean, deviation), strict=True)
            )
            metrics |= {f"objective/scales/{name}/mean": mean, f"objective/scales/{name}/deviation": deviation}
            scores = (scores - mean) / deviation
        total = total + weight * scores
    return total, scores_of, metrics


def next_scales(scales: dict[str, jax.Array] | None, metrics: dict[str, jax.Array]) -> dict[str, jax.Array] | None:
    """Returns the scales of the next state, copied from the metrics of this iteration, because states are donated."""
    return scales and {name: jnp.copy(metrics[f"objective/scales/{name}"]) for name in scales}


def _scale(scores: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns mean and standard deviation of scores f32[B]; scores that are all equal have the deviation 1."""
    mean, deviation = jnp.mean(scores), jnp.std(scores)
    return mean, jnp.where(deviation > 1e-6 * jnp.maximum(jnp.abs(mean), 1.0), deviation, 1.0)
