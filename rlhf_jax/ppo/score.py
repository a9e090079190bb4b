"""The program that scores rollouts: log-probabilities, scores, rewards and advantages.

Source: InstructGPT (Ouyang et al. 2022), section 3.5 and appendix C.4.

Shapes: B batch (episodes), C completion, M reward models.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlhf_jax import advantages as adv
from rlhf_jax import lora, model
from rlhf_jax.generate import Rollout
from rlhf_jax.ppo.completions import RewardFn, completion_states, completion_values, divisor, has_eos, values_at
from rlhf_jax.ppo.mixture import combined, of_each_model
from rlhf_jax.ppo.state import Coefficients, Experience, PPOConfig


def make_score(config: PPOConfig, reward_fn: RewardFn | None) -> Callable:
    """Returns the program that scores a rollout.

    The program maps (policy, value or None, ref, reward parameters, rollout, kl_coef, coefs, base, given, scales) to
    (Experience, metrics). `base` are the frozen parameters of those models of which the others are adapters (see
    lora.py), or None. With a mixture, `reward_fn` is `mixture.ModelScores`, or None if the mixture has no reward model;
    `given` has the scores from the host, and `scales` those of the state. Without one, both are None.
    """

    def read(params, rollout, temperature):
        """Returns the models' outputs for one part of the batch, by name: f32[B, C] each, scores f32[B]."""
        policy, value, ref, reward = params

        def compare(states, ref_states, completions):
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

        states, ref_states = (completion_states(config.policy, x, rollout) for x in (policy, ref))
        compared = model.by_chunks(config.policy, compare, states, ref_states, rollout.completions)
        said = {name: jnp.where(rollout.completion_mask, x, 0.0) for name, x in compared.items()}
        if config.shared_value:
            said["values"] = values_at(config.policy, policy, states, rollout.completion_mask)
        elif config.estimator.reads_values:
            said["values"] = completion_values(config.value, value, rollout)
        return said | ({"scores": reward_fn(reward, rollout)} if reward_fn else {})

    def score(
        policy, value, ref, reward, rollout: Rollout, kl_coef, coefs: Coefficients, base=None, given=None, scales=None
    ):
        models = (None if trained is None else lora.joined(base, trained) for trained in (policy, value, ref))
        params = (*models, of_each_model(functools.partial(lora.joined, base), reward))
        parts = jax.tree.map(lambda x: x.reshape(-1, config.score_parts, *x.shape[1:]).swapaxes(0, 1), rollout)
        said = jax.lax.map(lambda part: read(params, part, coefs.temperature), parts)
        said = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), said)

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
            **of_each,
        }
        experience = Experience(
            rollout, logprobs, ref_logprobs, values, rewards, advantages, returns, scores, raw_scores, scores_of
        )
        return experience, metrics

    return score
