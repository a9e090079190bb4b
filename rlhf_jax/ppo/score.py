"""The program that scores rollouts: log-probabilities, scores, rewards and advantages.

Source: InstructGPT (Ouyang et al. 2022), section 3.5 and appendix C.4.

Shapes: B batch (episodes), N minibatch, r packed rows, C completion.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax import advantages as adv
from rlhf_jax import generate, lora, model, sharding
from rlhf_jax.generate import Rollout
from rlhf_jax.model import TransformerConfig
from rlhf_jax.ppo.completions import (
    RewardFn,
    SequenceScore,
    completion_states,
    completion_values,
    divisor,
    has_eos,
    values_at,
)
from rlhf_jax.ppo.mixture import ModelScores, combined, of_each_model
from rlhf_jax.ppo.packing import PackedLayout, PackedRollout, most_of, pack, parts_of
from rlhf_jax.ppo.state import Coefficients, Experience, PPOConfig


def _gathered(rules: Mapping | None, shape: TransformerConfig, params: dict, after) -> dict:
    """Returns the weights of a model in the layout of sampling, made as soon as `after` is computed. No bit changes.

    They are in the compute type and split over `tensor` alone. In the layout of training, each part would gather them.

    Args:
      rules: as in `make_score`.
      shape: shape of the model.
      params: its parameters. A scalar head, which is small and float32, stays as it is.
      after: arrays.
    """
    mesh = sharding.mesh_to_fill()
    if mesh is None or rules is None:
        return params
    (params, _) = jax.lax.optimization_barrier((params, after))
    places = generate.decode_shardings(shape, mesh, rules)

    def place(x, where):
        return jax.lax.with_sharding_constraint(x.astype(shape.dtype), where)

    trunk = model.without_scalar_head(params)
    return params | {name: jax.tree.map(place, x, places[name]) for name, x in trunk.items()}


def gathered_bytes(rules: Mapping, shape: TransformerConfig, params: dict, mesh: jax.sharding.Mesh) -> dict[str, int]:
    """Returns the bytes on each device of the copy that `_gathered` makes of abstract parameters, by their first name.

    Arrays that have the layout of sampling already are not copied.
    """
    places = generate.decode_shardings(shape, mesh, rules)

    def size(x, where):
        if x.dtype == shape.dtype and x.sharding.is_equivalent_to(where, x.ndim):
            return 0
        return math.prod(where.shard_shape(x.shape)) * jnp.dtype(shape.dtype).itemsize

    trunk = model.without_scalar_head(params)
    return {name: sum(jax.tree.leaves(jax.tree.map(size, x, places[name]))) for name, x in trunk.items()}


def make_score(
    config: PPOConfig, reward_fn: RewardFn | None, trials: str | None = None, rules: Mapping | None = None
) -> Callable:
    """Returns the program that scores a rollout.

    The program maps (policy, value or None, ref, reward parameters, rollout, kl_coef, coefs, minibatches, base, given,
    scales) to (Experience, metrics). `minibatches` are the rows i32[N] of each optimizer step of the first epoch:
    each minibatch is read in the same packed rows as in its update. `base` are the frozen parameters of those models of
    which the others are adapters (see lora.py), or None. With a mixture, `reward_fn` is `mixture.ModelScores`, or None
    if the mixture has no reward model; `given` has the scores from the host, and `scales` those of the state. Without
    one, both are None.

    Args:
      config: the static configuration.
      reward_fn: what scores rollouts. Reward models, which are `SequenceScore`, read packed rows; any other function is
        given the whole rollout.
      trials: name of the axis of a vmap over whole batches; None without one.
      rules: the logical axes of parameters -> mesh axes, by which the weights of each model are gathered once; None:
        they are read where they lie.
    """
    gathered = functools.partial(_gathered, rules)

    def states_of(ref, rows: PackedRollout):
        """Returns the hidden states of the reference, [r, C, D]."""
        return completion_states(config.policy, ref, rows)

    def values_of(value, rows: PackedRollout):
        """Returns the values of a separate value model, f32[r, C]."""
        assert config.value is not None
        return completion_values(config.value, value, rows)

    def compare(policy, ref, temperature, rows: PackedRollout, ref_states):
        """Returns what policy and reference say of completions, and a shared value, by name, f32[r, C] each."""

        def chunk(states, ref_states, completions):
            logits = model.lm_logits(config.policy, policy, states, divisor(temperature))
            ref_logits = model.lm_logits(config.policy, ref, ref_states, divisor(temperature))
            all_logprobs, all_ref = jax.nn.log_softmax(logits), jax.nn.log_softmax(ref_logits)
            probs = jnp.exp(all_logprobs)
            return {
                "logprobs": model.select_logprobs(logits, completions),
                "ref_logprobs": model.select_logprobs(ref_logits, completions),
                "entropy": -jnp.sum(probs * all_logprobs, axis=-1),
                "kl_exact": jnp.sum(probs * (all_logprobs - all_ref), axis=-1),
            }

        states = completion_states(config.policy, policy, rows)
        said = model.by_chunks(config.policy, chunk, states, ref_states, rows.completions)
        if config.shared_value:
            said["values"] = values_at(config.policy, policy, states, rows.completion_mask)
        return said

    def score(
        policy,
        value,
        ref,
        reward,
        rollout: Rollout,
        kl_coef,
        coefs: Coefficients,
        minibatches,
        base=None,
        given=None,
        scales=None,
    ):
        policy, value, ref = (x if x is None else lora.joined(base, x) for x in (policy, value, ref))
        reward = of_each_model(functools.partial(lora.joined, base), reward)
        minibatches = jnp.stack(minibatches)
        most = most_of(config.policy.attention)
        layout = jax.vmap(lambda rows: pack(jax.tree.map(lambda x: x[rows], rollout), most))(minibatches)
        parts = parts_of(layout.rollout, layout, config.microbatches, trials)
        back = jnp.argsort(minibatches.reshape(-1))  # from the order of the minibatches to that of the rollout

        def of_episodes(method, x):
            """Returns what a method of PackedLayout gives for numbers of the parts, for the episodes of the rollout."""
            found = jax.vmap(method)(layout, x.reshape(len(minibatches), -1, *x.shape[2:]))
            return found.reshape(-1, *found.shape[2:])[back]

        # One model is read after the other, each from a copy of its weights that is gathered once for all parts. The
        # copy of a model is made when the one before it has been read, so that they do not exist at the same time (on a
        # CPU they do).
        said: Any = {}
        read: Any = parts.filled
        if isinstance(reward_fn, SequenceScore | ModelScores):
            several = isinstance(reward_fn, ModelScores)
            pairs = zip(reward_fn.parts, reward) if isinstance(reward_fn, ModelScores) else [(reward_fn, reward)]
            found = []
            for number, (one, params) in enumerate(pairs):
                params = gathered(one.config, params, read)
                read = parts.read(functools.partial(one.at_places, params), f"rewarded_parts_{number}")
                found.append(of_episodes(PackedLayout.at_ends, read))
            said["scores"] = jnp.stack(found, axis=1) if several else found[0]
        elif reward_fn:
            said["scores"] = reward_fn(reward, rollout)
        if config.value:
            read = parts.read(functools.partial(values_of, gathered(config.value, value, read)), "valued_parts")
            said["values"] = of_episodes(PackedLayout.unpacked, read)
        ref = gathered(config.policy, ref, read)
        read = parts.read(functools.partial(states_of, ref), "referred_parts")
        policy = gathered(config.policy, policy, read)
        both = dataclasses.replace(parts, rows=(parts.rows, read))
        read = both.read(lambda part: compare(policy, ref, coefs.temperature, *part), "compared_parts")
        said |= {name: of_episodes(PackedLayout.unpacked, x) for name, x in read.items()}

        mask = rollout.completion_mask
        ended = has_eos(rollout, config.eos_id)
        raw_scores, logprobs, ref_logprobs = said.get("scores"), said["logprobs"], said["ref_logprobs"]
        of_each: dict[str, jax.Array] = {}
        scores_of: dict[str, jax.Array] = {}
        if config.mixture:
            assert coefs.reward_weights is not None
            raw_scores, scores_of, of_each = combined(config.mixture, raw_scores, given, coefs.reward_weights, scales)
        scores = adv.apply_missing_eos(raw_scores, ended, config.missing_eos, coefs.missing_eos_value)
        penalty = kl_coef if config.kl_in == "reward" else 0.0
        rewards = adv.shaped_rewards(scores, logprobs, ref_logprobs, mask, penalty, config.kl_estimator)
        if config.whiten_rewards:
            rewards = adv.whiten(rewards, mask, shift_mean=False)
        values, of_totals = said.get("values"), config.estimator.of_totals
        if of_totals is None:  # the estimator reads values
            advantages, returns = adv.gae(rewards, values, mask, coefs.gamma, coefs.lam)
        else:
            advantages = adv.of_completions(rewards, mask, of_totals, config.samples_per_prompt)
            returns = None
        if config.whiten_advantages == "batch":
            advantages = adv.whiten(advantages, mask)
        kl = adv.sequence_kl(logprobs, ref_logprobs, mask)
        sampling_gap = jnp.abs(logprobs - rollout.logprobs)
        metrics = {
            "objective/kl": jnp.mean(kl),
            "objective/kl_k3": jnp.mean(jnp.sum(adv.kl_estimates(logprobs, ref_logprobs, mask).k3, axis=1)),
            "objective/kl_exact": jnp.mean(jnp.sum(said["kl_exact"], axis=1)),
            "objective/kl_coef": kl_coef,
            "objective/entropy": jnp.mean(jnp.sum(said["entropy"], axis=1)),
            "objective/scores": jnp.mean(scores),
            "objective/scores_std": jnp.std(scores),
            "objective/raw_scores": jnp.mean(raw_scores),
            "objective/rewards": jnp.mean(jnp.sum(rewards, axis=1)),
            "objective/completion_length": jnp.mean(jnp.sum(mask, axis=1, dtype=jnp.float32)),
            "objective/eos": jnp.mean(ended, dtype=jnp.float32),
            "objective/logprob_gap_max": jnp.max(jnp.where(mask, sampling_gap, 0.0)),
            "objective/padding": 1 - jnp.mean(rollout.mask, dtype=jnp.float32),
            "objective/padding_packed": 1 - jnp.sum(rollout.mask, dtype=jnp.float32) / parts.places,
            **of_each,
        }
        experience = Experience(
            rollout, logprobs, ref_logprobs, values, rewards, advantages, returns, scores, raw_scores, scores_of
        )
        return experience, metrics

    return score
