"""Step 3, the mathematics: PPO-ptx as three programs, sample -> score -> update.

    sample  policy, prompts            -> Rollout      (generate.sample)
    score   policy, ref, reward, value -> Experience   (log-probs, scores, rewards, advantages)
    update  one optimizer step of policy and value on a minibatch, with the ptx gradient accumulated

Source: InstructGPT (Ouyang et al. 2022), section 3.5 and appendix C.4. The programs are compiled in programs.py.

Shapes: B batch (episodes), P prompt, C completion, T = P + C, D embed, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from rlhf_jax import advantages as adv
from rlhf_jax import lora, losses, model, optim, train
from rlhf_jax.data.batches import Batch
from rlhf_jax.generate import Rollout, ended_by, is_end
from rlhf_jax.model import TransformerConfig
from rlhf_jax.ppo.mixture import Mixture, combined, of_each_model
from rlhf_jax.token_loss import token_loss
from rlhf_jax.train import TrainState


@dataclasses.dataclass(frozen=True)
class PPOConfig:
    """The static configuration: everything that shapes the programs. Numbers that do not are in Coefficients."""

    policy: TransformerConfig
    value: TransformerConfig | None  # None: there is no separate value model
    eos_id: int | tuple[int, ...]  # the token that ends a completion, or all such tokens
    mixture: Mixture | None = None  # what the score consists of; None: it is that of a single reward model
    missing_eos: str = "replace"  # rule for the scores; or "subtract", "none" (advantages.apply_missing_eos)
    advantage: str = "gae"  # a name of advantages.ESTIMATORS
    samples_per_prompt: int = 1  # completions of a prompt, in neighbouring rows of a batch
    kl_in: str = "reward"  # where the KL penalty is; or "loss"
    kl_estimator: str = "k1"  # estimator of a token's penalty; or "k2", "k3"
    entropy_bonus: bool = False  # whether Coefficients.entropy_coef is used
    whiten_rewards: bool = False
    whiten_advantages: str = "batch"  # what they are whitened over; or "minibatch", "none"
    score_parts: int = 1  # parts of the batch in `score`, each the size of an update's microbatch
    microbatches: int = 1  # parts of a minibatch
    ptx_microbatches: int = 1  # parts of the pretraining batch of a minibatch
    schedule: str = "constant"  # schedule of both learning rates, by optimizer step; see optim.schedule
    total_steps: int = 1  # optimizer step at which a decay ends
    warmup_steps: int = 0
    warmup_from: float = 0.1  # fraction of the peak at which the warm-up starts
    final_fraction: float = 0.0  # fraction of the peak at which a decay ends
    averaged: bool = True  # whether the state has a moving average of the policy

    @property
    def estimator(self) -> adv.Estimator:
        """The advantage estimator that `advantage` names."""
        return adv.ESTIMATORS[self.advantage]

    @property
    def shared_value(self) -> bool:
        """Whether the value is a scalar head on the policy's trunk, stored among the policy's parameters."""
        return self.estimator.reads_values and self.value is None


@struct.dataclass
class Coefficients:
    """The numbers that an ablation sweeps, f32[] each: arguments of the programs, so a change never recompiles.

    `reward_weights`, f32[N], are the weights of a mixture of rewards; None without one.
    """

    ptx_coef: jax.Array  # weight of the pretraining gradient (the paper's gamma)
    learning_rate: jax.Array
    value_learning_rate: jax.Array
    temperature: jax.Array
    cliprange: jax.Array
    cliprange_value: jax.Array
    vf_coef: jax.Array  # weight of the value loss; it multiplies the gradient of a separate value model
    entropy_coef: jax.Array  # weight of the entropy bonus; the entropy is in nats per token
    gamma: jax.Array  # discount
    lam: jax.Array  # lambda of GAE
    missing_eos_value: jax.Array  # see advantages.apply_missing_eos
    ema_decay: jax.Array  # per optimizer step; see train.averaged
    kl_target: jax.Array  # nats per completion; target of the adaptive KL controller, 0 if there is none
    kl_horizon: jax.Array  # episodes; see advantages.update_kl_coef
    reward_weights: jax.Array | None = None


@struct.dataclass
class PPOState:
    """Everything that an iteration changes; of models with adapters, the parameters are the adapters and heads alone."""

    policy: TrainState  # with a shared trunk, its parameters include the scalar head
    value: TrainState | None  # None: there is no separate value model
    kl_coef: jax.Array  # f32[], the state of the KL controller (the paper's beta)
    scales: dict[str, jax.Array] | None = None  # of standardised rewards (see mixture.py); None: there are none

    @property
    def language_model(self) -> dict:
        """The parameters to sample from: the policy's, without a scalar head."""
        return model.without_scalar_head(self.policy.params)

    @property
    def value_params(self) -> dict | None:
        """The parameters of the separate value model, or None."""
        return None if self.value is None else self.value.params


@struct.dataclass
class Experience:
    """A rollout with the models' outputs for it; the first axis of every field is the batch."""

    rollout: Rollout
    logprobs: jax.Array  # f32[B, C] under the sampling policy, recomputed by teacher forcing
    ref_logprobs: jax.Array  # f32[B, C] under the reference
    values: jax.Array | None  # f32[B, C], value before each token is chosen; None if the estimator reads no values
    rewards: jax.Array  # f32[B, C], the score on the last token, less the KL penalty if it is in the reward
    advantages: jax.Array  # f32[B, C]
    returns: jax.Array | None  # f32[B, C], targets of the values; None if there are none
    scores: jax.Array  # f32[B], reward-model scores after the missing-EOS rule


def completion_states(config: TransformerConfig, params: dict, rollout: Rollout) -> jax.Array:
    """Returns the hidden states [B, C, D] from which the completion tokens are predicted."""
    prompt_length = rollout.prompt_mask.shape[1]
    return model.masked_hidden_states(config, params, rollout.tokens, rollout.mask)[:, prompt_length - 1 : -1]


def completion_logprobs(config: TransformerConfig, params: dict, rollout: Rollout, temperature) -> jax.Array:
    """Returns log pi of the sampled tokens, f32[B, C], in nats at the sampling temperature; 0 on padding."""
    states = completion_states(config, params, rollout)
    logprobs = model.target_logprobs(config, params, states, rollout.completions, _divisor(temperature))
    return jnp.where(rollout.completion_mask, logprobs, 0.0)


def _divisor(temperature):
    """Returns the divisor of the logits: the temperature, or 1 for greedy sampling (temperature 0 or below)."""
    return jnp.where(temperature <= 0.0, 1.0, temperature)


def completion_values(config: TransformerConfig, params: dict, rollout: Rollout) -> jax.Array:
    """Returns V(s_t), f32[B, C], the value before each completion token is chosen; 0 on padding."""
    return _values_at(config, params, completion_states(config, params, rollout), rollout.completion_mask)


def _values_at(config: TransformerConfig, params: dict, states: jax.Array, mask: jax.Array) -> jax.Array:
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


def has_eos(rollout: Rollout, eos_id: int | tuple[int, ...]) -> jax.Array:
    """Returns bool[B]: whether each completion ended with an end token, and was not cut at its maximum length."""
    return jnp.any(is_end(rollout.completions, eos_id) & rollout.completion_mask, axis=1)


RewardFn = Callable[[Any, Rollout], jax.Array]  # (reward params, rollout) -> f32[B], or f32[B, M] of M models


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
            logits = model.lm_logits(config.policy, policy, states, _divisor(temperature))
            ref_logits = model.lm_logits(config.policy, ref, ref_states, _divisor(temperature))
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
            said["values"] = _values_at(config.policy, policy, states, rollout.completion_mask)
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
        if config.mixture:
            assert coefs.reward_weights is not None
            raw_scores, of_each = combined(config.mixture, raw_scores, given, coefs.reward_weights, scales)
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
        experience = Experience(rollout, logprobs, ref_logprobs, values, rewards, advantages, returns, scores)
        return experience, metrics

    return score


def policy_loss(config: PPOConfig, coefs: Coefficients, kl_coef, params: dict, part: Experience) -> losses.Loss:
    """Returns the loss of the policy's parameters on a minibatch, or on a microbatch of it.

    It is the clipped policy loss plus the terms that the configuration asks for:
      kl_in="loss": kl_coef x the token mean of the KL estimate (Shao et al. 2024, section 4.1.1, with k3);
      entropy_bonus: -entropy_coef x the token mean of the entropy;
      a shared trunk: vf_coef x the value loss (Schulman et al. 2017, equation 9).
    """
    rollout, mask = part.rollout, part.rollout.completion_mask
    states = completion_states(config.policy, params, rollout)
    divisor = _divisor(coefs.temperature)
    new_logprobs = model.target_logprobs(config.policy, params, states, rollout.completions, divisor)
    new_logprobs = jnp.where(mask, new_logprobs, 0.0)
    loss = losses.clipped_policy_loss(new_logprobs, part.logprobs, part.advantages, mask, coefs.cliprange)
    loss = losses.labelled(loss, "policy")
    if config.kl_in == "loss":
        kl = getattr(adv.kl_estimates(new_logprobs, part.ref_logprobs, mask), config.kl_estimator)
        loss = losses.plus(loss, "policy/kl", kl_coef, kl, mask)
    if config.entropy_bonus:
        entropy = model.by_chunks(
            config.policy, lambda x: _entropy(model.lm_logits(config.policy, params, x, divisor)), states
        )
        loss = losses.plus(loss, "policy/entropy", -coefs.entropy_coef, entropy, mask)
    if config.shared_value:
        v_loss = _value_loss(coefs, _values_at(config.policy, params, states, mask), part)
        loss = loss._replace(total=loss.total + coefs.vf_coef * v_loss.total, sums=loss.sums | v_loss.sums)
    return loss


def _entropy(logits: jax.Array) -> jax.Array:
    """Returns the entropies f32[...], in nats, of the distributions with these logits [..., V]."""
    all_logprobs = jax.nn.log_softmax(logits)
    return -jnp.sum(jnp.exp(all_logprobs) * all_logprobs, axis=-1)


def value_loss(config: PPOConfig, coefs: Coefficients, params: dict, part: Experience) -> losses.Loss:
    """Returns the clipped value loss of a separate value model on a minibatch, or on a microbatch of it."""
    assert config.value is not None
    return _value_loss(coefs, completion_values(config.value, params, part.rollout), part)


def _value_loss(coefs: Coefficients, new_values: jax.Array, part: Experience) -> losses.Loss:
    """Returns the clipped value loss of new values f32[B, C] against the returns of `part`."""
    assert part.values is not None and part.returns is not None
    mask = part.rollout.completion_mask
    loss = losses.clipped_value_loss(new_values, part.values, part.returns, mask, coefs.cliprange_value)
    return losses.labelled(loss, "val")


def make_update(
    config: PPOConfig, optimizer: optax.GradientTransformation, value_optimizer: optax.GradientTransformation
) -> Callable:
    """Returns the program that makes one optimizer step of the policy and of the value model.

    The program maps (state, minibatch, ptx batch or None, coefs, base) to (state, metrics). The PPO gradient and ptx_coef
    times the pretraining gradient are accumulated into one optimizer step (C.4). `base` is as in `make_score`.
    """

    def update(
        state: PPOState, minibatch: Experience, ptx: Batch | None, coefs: Coefficients, base: dict | None = None
    ):
        no_key = jax.random.key(0)  # `gradients` wants a key, but PPO has no dropout
        if config.whiten_advantages == "minibatch":
            whitened = adv.whiten(minibatch.advantages, minibatch.rollout.completion_mask)
            minibatch = dataclasses.replace(minibatch, advantages=whitened)

        def policy_loss_fn(params, part, _):
            return policy_loss(config, coefs, state.kl_coef, lora.joined(base, params), part)

        grads, loss = train.gradients(policy_loss_fn, state.policy.params, minibatch, no_key, config.microbatches)
        found = train.loss_metrics(loss)
        if state.value is not None:

            def value_loss_fn(params, part, _):
                return value_loss(config, coefs, lora.joined(base, params), part)

            value_grads, v_loss = train.gradients(
                value_loss_fn, state.value.params, minibatch, no_key, config.microbatches
            )
            found |= train.loss_metrics(v_loss)
        metrics = {f"ppo/{name}": value for name, value in found.items() if name != "loss"}
        if config.estimator.reads_values:
            assert minibatch.returns is not None
            metrics["ppo/val/explained_variance"] = losses.explained_variance(
                metrics["ppo/val/error"], minibatch.returns, minibatch.rollout.completion_mask
            )
        if ptx is not None:
            # The barrier keeps XLA from merging the two computations: PPO's gradient has the same bits without ptx.
            grads = jax.lax.optimization_barrier(grads)

            def ptx_loss_fn(params, part, _):
                return token_loss(config.policy, lora.joined(base, params), part)

            ptx_grads, p_loss = train.gradients(ptx_loss_fn, state.policy.params, ptx, no_key, config.ptx_microbatches)
            metrics |= _ptx_metrics(grads, ptx_grads, p_loss, coefs.ptx_coef)
            grads = jax.tree.map(lambda g, p: g + coefs.ptx_coef * p, grads, ptx_grads)

        rate = optim.schedule(
            config.schedule,
            state.policy.step,
            config.total_steps,
            warmup_steps=config.warmup_steps,
            warmup_from=config.warmup_from,
            final=config.final_fraction,
        )
        policy, norm = train.apply_gradients(
            state.policy, grads, optimizer, coefs.learning_rate * rate, coefs.ema_decay
        )
        metrics |= {"ppo/policy/grad_norm": norm, "ppo/learning_rate": coefs.learning_rate * rate}
        value = None
        if state.value is not None:
            value_grads = jax.tree.map(lambda g: coefs.vf_coef * g, value_grads)
            value, metrics["ppo/val/grad_norm"] = train.apply_gradients(
                state.value, value_grads, value_optimizer, coefs.value_learning_rate * rate
            )
        return PPOState(policy, value, state.kl_coef, state.scales), metrics

    return update


def _ptx_metrics(grads, ptx_grads, loss, ptx_coef):
    """Returns metrics of the pretraining gradient, f32[] each.

    They are the ptx loss, the norm of the PPO gradient, the norm of ptx_coef times the pretraining gradient, and the
    cosine of the two gradients.
    """
    norm, ptx_norm = optax.tree.norm(grads), ptx_coef * optax.tree.norm(ptx_grads)
    # vdot would flatten its arguments, and flattening a sharded array gathers all of it (270 GiB a device at 175B).
    products = jax.tree.map(lambda g, p: jnp.sum(g * p), grads, ptx_grads)
    dot = ptx_coef * optax.tree.sum(products)
    return {
        "ppo/ptx/loss": loss.total / jnp.maximum(loss.weight, 1e-8),
        "ppo/ptx/ppo_grad_norm": norm,
        "ppo/ptx/grad_norm": ptx_norm,
        "ppo/ptx/cosine": dot / jnp.maximum(norm * ptx_norm, 1e-20),
    }
