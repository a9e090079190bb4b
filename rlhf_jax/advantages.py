"""From log-probabilities, scores and values to advantages, and the coefficient of the KL.

KL, shaped rewards, GAE, estimators without a value model, whitening: arrays in, float32 arrays out. Masks are True on the tokens of
the completion. Elsewhere results are 0, and whatever stands there, NaN included, changes nothing.

Shapes: B batch, C tokens of a completion.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

WHITEN_EPSILON = 1e-8  # as in OpenAI's lm-human-preferences
ESTIMATORS = ("gae", "rloo", "grpo", "reinforce")  # of advantages; all but the first do without values
GROUPED = ("rloo", "grpo")  # compare the completions of one prompt
KL_ESTIMATORS = ("k1", "k2", "k3")


class KLEstimates(NamedTuple):
    """Estimates f32[B,C] of KL(policy || ref) from sampled tokens; d = log pi - log pi_ref (Schulman 2020).

    "Unbiased" is said of the value. As a loss, on tokens that the policy itself sampled, the expected
    gradients are others: only that of k2 is the gradient of KL(policy || ref), of a token by itself. In
    the reward only k1 stands for the KL. docs/kl.md has where each of them ends.

    Attributes:
        k1: d; unbiased, can be negative; the gradient is 0 in expectation.
        k2: d^2 / 2; biased, with little variance; the gradient is that of KL(policy || ref).
        k3: exp(-d) - 1 + d; unbiased, never negative; the gradient is that of KL(ref || policy).
    """

    k1: jax.Array
    k2: jax.Array
    k3: jax.Array


def kl_per_token(logprobs: jax.Array, ref_logprobs: jax.Array, mask: jax.Array) -> jax.Array:
    """log pi - log pi_ref of the sampled tokens (k1), f32[B,C], in nats.

    Both log-probabilities, [B,C], are taken at the sampling temperature.
    """
    return _select(mask, logprobs) - _select(mask, ref_logprobs)


def kl_estimates(logprobs: jax.Array, ref_logprobs: jax.Array, mask: jax.Array) -> KLEstimates:
    """k1, k2 and k3 of every token, in nats; arguments as in `kl_per_token`."""
    k1 = kl_per_token(logprobs, ref_logprobs, mask)
    return KLEstimates(k1, 0.5 * k1**2, jnp.expm1(-k1) + k1)


def sequence_kl(logprobs: jax.Array, ref_logprobs: jax.Array, mask: jax.Array) -> jax.Array:
    """The project's `kl`: log pi - log pi_ref of the completion, f32[B], nats per completion."""
    return jnp.sum(kl_per_token(logprobs, ref_logprobs, mask), axis=1)


def last_token(mask: jax.Array) -> jax.Array:
    """bool[B,C], True on the last real token alone: EOS, or where the completion was cut."""
    real_from_here = jnp.cumsum(mask[:, ::-1], axis=1)[:, ::-1]
    return mask & (real_from_here == 1)


def apply_missing_eos(scores: jax.Array, has_eos: jax.Array, rule: str, value: jax.Array | float) -> jax.Array:
    """Scores f32[B] after the rule for completions that did not end.

    Args:
        scores: [B].
        has_eos: bool[B].
        rule: "replace" the score by `value` (Ziegler et al. 2019; Huang et al. 2024 with -1),
            "subtract" `value` from it, or "none".
        value: scalar.

    Raises:
        ValueError: an unknown rule.
    """
    scores = jnp.asarray(scores, jnp.float32)
    if rule == "none":
        return scores
    if rule == "replace":
        return jnp.where(has_eos, scores, value)
    if rule == "subtract":
        return jnp.where(has_eos, scores, scores - value)
    raise ValueError(f"missing-EOS rule must be 'replace', 'subtract' or 'none', got {rule!r}")


def shaped_rewards(
    scores: jax.Array,
    logprobs: jax.Array,
    ref_logprobs: jax.Array,
    mask: jax.Array,
    kl_coef: jax.Array | float,
    estimator: str = "k1",
) -> jax.Array:
    """Rewards f32[B,C]: -kl_coef x KL on every token, and the score on the last real one.

    InstructGPT, section 3.5. With k1 the rewards of a completion sum to score - kl_coef x
    `sequence_kl`; a completion without a real token gets none.

    Args:
        scores: [B].
        logprobs: [B,C], of the policy that sampled.
        ref_logprobs: [B,C].
        mask: bool[B,C].
        kl_coef: scalar.
        estimator: of the KL of a token, a field of `KLEstimates`.
    """
    scores = jnp.asarray(scores, jnp.float32)[:, None]
    penalties = kl_coef * getattr(kl_estimates(logprobs, ref_logprobs, mask), estimator)
    return jnp.where(last_token(mask), scores, 0) - penalties


def gae(
    rewards: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    gamma: jax.Array | float,
    lam: jax.Array | float,
) -> tuple[jax.Array, jax.Array]:
    """Generalised advantage estimation (Schulman et al. 2016); the completion's end is terminal.

    Args:
        rewards: [B,C].
        values: [B,C], before each token is chosen.
        mask: bool[B,C], True on the first tokens of a row, then False.
        gamma: discount, scalar.
        lam: scalar.

    Returns:
        advantages, and returns = advantages + values, both f32[B,C].
    """
    rewards, values = _select(mask, rewards), _select(mask, values)
    next_values = jnp.pad(values[:, 1:], ((0, 0), (0, 1)))
    deltas = rewards + gamma * next_values - values

    def backward(advantage, delta):
        advantage = delta + gamma * lam * advantage
        return advantage, advantage

    _, advantages = jax.lax.scan(backward, jnp.zeros_like(deltas[:, 0]), deltas.T, reverse=True)
    return advantages.T, advantages.T + values


def of_completions(rewards: jax.Array, mask: jax.Array, estimator: str, samples: int = 1) -> jax.Array:
    """Advantages f32[B,C] without a value model: a completion is one action, and all its tokens share its advantage.

    What a completion is worth is the sum of its rewards, not discounted: the KL is in it where it is in
    the rewards.

    Args:
        rewards: [B,C].
        mask: bool[B,C].
        estimator: "rloo", "grpo" or "reinforce".
        samples: completions of a prompt; they are neighbours: rows 0 to samples - 1 are of the first.

    Raises:
        ValueError: an unknown estimator.
    """
    totals = jnp.sum(_select(mask, rewards), axis=1)
    if estimator == "rloo":
        advantages = rloo(totals.reshape(-1, samples))
    elif estimator == "grpo":
        advantages = grpo(totals.reshape(-1, samples))
    elif estimator == "reinforce":
        advantages = totals - jnp.mean(totals)
    else:
        raise ValueError(f"estimator must be 'rloo', 'grpo' or 'reinforce', got {estimator!r}")
    return _select(mask, advantages.reshape(-1, 1))


def rloo(totals: jax.Array) -> jax.Array:
    """REINFORCE leave-one-out, of [X,K] completions of X prompts: less the mean of the prompt's other completions.

    Kool et al. 2019; Ahmadian et al. 2024 (arXiv 2402.14740). What is subtracted does not depend on the
    completion, so the gradient is unbiased. It is K / (K - 1) x what is left over the mean of all K.
    """
    samples = totals.shape[1]
    return (totals - jnp.mean(totals, axis=1, keepdims=True)) * (samples / (samples - 1))


def grpo(totals: jax.Array) -> jax.Array:
    """Group-relative, of [X,K]: less the prompt's mean, over its standard deviation.

    Shao et al. 2024 (arXiv 2402.03300), section 4.1.2. The variance is biased and `WHITEN_EPSILON` is
    added to it, so that completions which are worth the same get 0.
    """
    centred = totals - jnp.mean(totals, axis=1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=1, keepdims=True) + WHITEN_EPSILON)


def masked_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean f32[] over all that the mask selects, not row by row; 0 if it selects nothing."""
    return jnp.sum(_select(mask, x)) / jnp.maximum(jnp.sum(mask), 1)


def masked_var(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Biased variance f32[] over all that the mask selects; 0 if it selects nothing."""
    return masked_mean((_select(mask, x) - masked_mean(x, mask)) ** 2, mask)


def whiten(x: jax.Array, mask: jax.Array, shift_mean: bool = True) -> jax.Array:
    """`x` f32[B,C] scaled to variance 1 over all its real tokens: give it the global batch, or a global minibatch.

    The variance is biased (Huang et al., detail 18), and `WHITEN_EPSILON` is added to it.

    Args:
        x: [B,C].
        mask: bool[B,C].
        shift_mean: True makes the mean 0 (advantages), False leaves it as it is (rewards).
    """
    mean = masked_mean(x, mask)
    whitened = (_select(mask, x) - mean) * jax.lax.rsqrt(masked_var(x, mask) + WHITEN_EPSILON)
    return _select(mask, whitened if shift_mean else whitened + mean)


def update_kl_coef(
    kl_coef: jax.Array,
    kl: jax.Array,
    episodes: jax.Array | int,
    target: jax.Array | float | None,
    horizon: jax.Array | float,
) -> jax.Array:
    """The KL coefficient f32[] of the next iteration, which is all the state of the controller.

    Args:
        kl_coef: f32[], in this iteration.
        kl: f32[], mean `sequence_kl` of this iteration.
        episodes: number of completions in this iteration.
        target: the KL to steer to (Ziegler et al. 2019), or None to leave the coefficient as it is.
        horizon: episodes in which a KL off by 20 % or more moves the coefficient by about 20 %.
    """
    kl_coef = jnp.asarray(kl_coef, jnp.float32)
    if target is None:
        return kl_coef
    error = jnp.clip(kl / target - 1, -0.2, 0.2)
    return kl_coef * (1 + error * episodes / horizon)


def _select(mask, x):
    """`x` in float32, 0 where the mask is False; done before any arithmetic, so NaN cannot leak."""
    return jnp.where(mask, jnp.asarray(x, jnp.float32), 0)
