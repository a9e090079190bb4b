"""The program that updates: one optimizer step of policy and value on a minibatch, with the ptx gradient accumulated.

Source: InstructGPT (Ouyang et al. 2022), section 3.5 and appendix C.4.

Shapes: B batch (episodes), C completion, D embed, V vocabulary.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rlhf_jax import advantages as adv
from rlhf_jax import lora, losses, model, optim, train
from rlhf_jax.data.batches import Batch
from rlhf_jax.ppo import packing
from rlhf_jax.ppo.completions import completion_states, completion_values, divisor, values_at
from rlhf_jax.ppo.state import Coefficients, Experience, PPOConfig, PPOState
from rlhf_jax.token_loss import token_loss


def policy_loss(config: PPOConfig, coefs: Coefficients, kl_coef, params: dict, part: Experience) -> losses.Loss:
    """Returns the loss of the policy's parameters on a minibatch, or on a microbatch of it.

    It is the clipped policy loss plus the terms that the configuration asks for:
      kl_in="loss": kl_coef x the token mean of the KL estimate (Shao et al. 2024, section 4.1.1, with k3);
      entropy_bonus: -entropy_coef x the token mean of the entropy;
      a shared trunk: vf_coef x the value loss (Schulman et al. 2017, equation 9).
    """
    rollout, mask = part.rollout, part.rollout.completion_mask
    states = completion_states(config.policy, params, rollout)
    temperature = divisor(coefs.temperature)
    new_logprobs = model.target_logprobs(config.policy, params, states, rollout.completions, temperature)
    new_logprobs = jnp.where(mask, new_logprobs, 0.0)
    loss = losses.clipped_policy_loss(new_logprobs, part.logprobs, part.advantages, mask, coefs.cliprange)
    loss = losses.labelled(loss, "policy")
    if config.kl_in == "loss":
        kl = getattr(adv.kl_estimates(new_logprobs, part.ref_logprobs, mask), config.kl_estimator)
        loss = losses.plus(loss, "policy/kl", kl_coef, kl, mask)
    if config.entropy_bonus:
        entropy = model.by_chunks(
            config.policy, lambda x: _entropy(model.lm_logits(config.policy, params, x, temperature)), states
        )
        loss = losses.plus(loss, "policy/entropy", -coefs.entropy_coef, entropy, mask)
    if config.shared_value:
        v_loss = _value_loss(coefs, values_at(config.policy, params, states, mask), part)
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


def _parts(config: PPOConfig, minibatch: Experience, trials: str | None) -> packing.Parts:
    """Returns a minibatch in packed rows: Experience with its fields per token, in parts."""
    layout = packing.pack(minibatch.rollout, packing.most_of(config.policy.attention))
    nothing: dict[str, Any] = {"rollout": None, "scores": None, "raw_scores": None, "scores_of": {}}
    per_token = jax.tree.map(layout.packed, dataclasses.replace(minibatch, **nothing))
    rows = dataclasses.replace(per_token, rollout=layout.rollout)
    rows, layout = jax.tree.map(lambda x: x[None], (rows, layout))
    return packing.parts_of(rows, layout, config.microbatches, trials)


def make_update(
    config: PPOConfig,
    optimizer: optax.GradientTransformation,
    value_optimizer: optax.GradientTransformation,
    trials: str | None = None,
) -> Callable:
    """Returns the program that makes one optimizer step of the policy and of the value model.

    The program maps (state, minibatch, ptx batch or None, coefs, base) to (state, metrics). The PPO gradient and ptx_coef
    times the pretraining gradient are accumulated into one optimizer step (C.4). `base` is as in `make_score`, and so is
    the argument `trials`.
    """

    def update(
        state: PPOState, minibatch: Experience, ptx: Batch | None, coefs: Coefficients, base: dict | None = None
    ):
        if config.whiten_advantages == "minibatch":
            whitened = adv.whiten(minibatch.advantages, minibatch.rollout.completion_mask)
            minibatch = dataclasses.replace(minibatch, advantages=whitened)

        parts = _parts(config, minibatch, trials)

        def policy_loss_fn(params, part):
            return policy_loss(config, coefs, state.kl_coef, lora.joined(base, params), part)

        grads, loss = parts.gradients(policy_loss_fn, state.policy.params, "policy_parts")
        found = train.loss_metrics(loss)
        if state.value is not None:

            def value_loss_fn(params, part):
                return value_loss(config, coefs, lora.joined(base, params), part)

            value_grads, v_loss = parts.gradients(value_loss_fn, state.value.params, "value_parts")
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

            ptx_shape = config.policy.of_rows(config.ptx_segments)

            def ptx_loss_fn(params, part, _):
                return token_loss(ptx_shape, lora.joined(base, params), part)

            no_key = jax.random.key(0)  # `gradients` wants a key, but PPO has no dropout
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
