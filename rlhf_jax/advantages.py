"""From log-probabilities, scores and values to advantages, and the controller of the KL coefficient.

The functions are the KL estimates, shaped rewards, GAE, estimators without a value model, and whitening. They take
arrays and return float32 arrays. Masks are True on the tokens of the completion; elsewhere results are 0, and the
inputs there, NaN included, have no effect.

Shapes: B batch, C tokens of a completion, N prompts, K completions of a prompt.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

WHITEN_EPSILON = 1e-8  # as in OpenAI's lm-human-preferences
KL_ESTIMATORS = ("k1", "k2", "k3")


class KLEstimates(NamedTuple):
    """Estimates f32[B,C] of KL(policy || ref) from sampled tokens, with d = log pi - log pi_ref (Schulman 2020).

    "Unbiased" refers to the value and not to the gradient. As a loss on tokens that the policy itself sampled, only k2
    has the gradient of KL(policy || ref) in expectation, for each token by itself. In the reward, only k1 stands for
    the KL. docs/kl.md derives where PPO ends with each of them.

    Attributes:
        k1: d; unbiased, can be negative; its gradient is 0 in expectation.
        k2: d^2 / 2; biased, with little variance; its gradient is that of KL(policy || ref).
        k3: exp(-d) - 1 + d; unbiased, never negative; its gradient is that of KL(ref || policy).
    """

    k1: jax.Array
    k2: jax.Array
    k3: jax.Array


def kl_per_token(logprobs: jax.Array, ref_logprobs: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns log pi - log pi_ref of the sampled tokens (k1), f32[B,C], in nats.

    Both log-probabilities, [B,C], are taken at the sampling temperature.
    """
    return _select(mask, logprobs) - _select(mask, ref_logprobs)


def kl_estimates(logprobs: jax.Array, ref_logprobs: jax.Array, mask: jax.Array) -> KLEstimates:
    """Returns k1, k2 and k3 of every token, in nats; the arguments are those of `kl_per_token`."""
    k1 = kl_per_token(logprobs, ref_logprobs, mask)
    return KLEstimates(k1, 0.5 * k1**2, jnp.expm1(-k1) + k1)


def sequence_kl(logprobs: jax.Array, ref_logprobs: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns the project's `kl`: log pi - log pi_ref of the whole completion, f32[B], nats per completion."""
    return jnp.sum(kl_per_token(logprobs, ref_logprobs, mask), axis=1)


def last_token(mask: jax.Array) -> jax.Array:
    """Returns bool[B,C], True only on the last real token: EOS, or the token at which the completion was cut."""
    real_from_here = jnp.cumsum(mask[:, ::-1], axis=1)[:, ::-1]
    return mask & (real_from_here == 1)


def apply_missing_eos(scores: jax.Array, has_eos: jax.Array, rule: str, value: jax.Array | float) -> jax.Array:
    """Returns the scores f32[B] after the rule for completions that did not end with EOS.

    Args:
        scores: [B].
        has_eos: bool[B], whether each completion ended with EOS.
        rule: "replace" the score by `value` (Ziegler et al. 2019; Huang et al. 2024 with -1),
            "subtract" `value` from the score, or "none".
        value: scalar.

    Raises:
        ValueError: the rule is unknown.
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
    """Returns rewards f32[B,C]: -kl_coef x KL on every token, and the score on the last real token.

    InstructGPT, section 3.5. With k1 the rewards of a completion sum to score - kl_coef x `sequence_kl`. A completion
    without a real token gets no reward.

    Args:
        scores: [B].
        logprobs: [B,C], under the policy that sampled.
        ref_logprobs: [B,C], under the reference.
        mask: bool[B,C].
        kl_coef: scalar.
        estimator: estimator of a token's KL, the name of a field of `KLEstimates`.
    """
    scores = jnp.asarray(scores, jnp.float32)[:, None]
    penalties = kl_coef * getattr(kl_estimates(logprobs, ref_logprobs, mask), estimator)
    return jnp.where(last_token(mask), scores, 0) - penalties


def gae(
    rewards: jax.Array, values: jax.Array, mask: jax.Array, gamma: jax.Array | float, lam: jax.Array | float
) -> tuple[jax.Array, jax.Array]:
    """Returns advantages by generalised advantage estimation (Schulman et al. 2016); the completion's end is terminal.

    Args:
        rewards: [B,C].
        values: [B,C], value before each token is chosen.
        mask: bool[B,C], True on the first tokens of a row, then False.
        gamma: scalar, the discount.
        lam: scalar, GAE's lambda.

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


class Choices(NamedTuple):
    """The choices of the KL penalty and of whitening, which depend on each other and on the advantage estimator.

    Attributes:
        kl_in: place of the penalty, "reward" or "loss".
        kl_estimator: estimator of a token's penalty, "k1", "k2" or "k3".
        whiten_advantages: what advantages are whitened over, "batch" or "minibatch", or "none".
    """

    kl_in: str
    kl_estimator: str
    whiten_advantages: str


class Estimator(NamedTuple):
    """An estimator of advantages.

    Attributes:
        paper: the choices of the paper that proposed the estimator.
        of_totals: function from the total rewards f32[N,K] of K completions of N prompts to their advantages f32[N,K],
          which all tokens of a completion share. None: `gae` gives each token its advantage, with a value model.
        compares: whether the completions of a prompt are compared with each other, so that K must be at least 2.
    """

    paper: Choices
    of_totals: Callable[[jax.Array], jax.Array] | None = None
    compares: bool = False

    @property
    def reads_values(self) -> bool:
        """Whether the estimator needs a value model."""
        return self.of_totals is None


def of_completions(
    rewards: jax.Array, mask: jax.Array, of_totals: Callable[[jax.Array], jax.Array], samples: int = 1
) -> jax.Array:
    """Returns advantages f32[B,C] without a value model: all tokens of a completion share its advantage.

    The completion is treated as one action, and its value is the undiscounted sum of its rewards. The sum includes the
    KL penalty if the penalty is part of the rewards.

    Args:
        rewards: [B,C].
        mask: bool[B,C].
        of_totals: as in `Estimator`.
        samples: K. The completions of a prompt are neighbours: rows 0 to K - 1 belong to the first prompt.
    """
    totals = jnp.sum(_select(mask, rewards), axis=1)
    advantages = of_totals(totals.reshape(-1, samples))
    return _select(mask, advantages.reshape(-1, 1))


def rloo(totals: jax.Array) -> jax.Array:
    """Returns REINFORCE leave-one-out advantages f32[N,K] of totals [N,K].

    The baseline of a completion is the mean of the prompt's other completions (Kool et al. 2019; Ahmadian et al. 2024,
    arXiv 2402.14740). It does not depend on the completion itself, so the gradient is unbiased. The advantage equals
    K / (K - 1) x the difference to the mean of all K completions.
    """
    samples = totals.shape[1]
    return (totals - jnp.mean(totals, axis=1, keepdims=True)) * (samples / (samples - 1))


def grpo(totals: jax.Array) -> jax.Array:
    """Returns group-relative advantages f32[N,K] of totals [N,K].

    The totals are centred on the prompt's mean and divided by its standard deviation (Shao et al. 2024, arXiv
    2402.03300, section 4.1.2). The variance is biased, and `WHITEN_EPSILON` is added to it, so that equal totals get
    advantage 0.
    """
    centred = totals - jnp.mean(totals, axis=1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=1, keepdims=True) + WHITEN_EPSILON)


def reinforce(totals: jax.Array) -> jax.Array:
    """Returns REINFORCE advantages f32[N,K] of totals [N,K], with the mean of the batch as the baseline."""
    return totals - jnp.mean(totals)


ESTIMATORS = {
    # InstructGPT, section 3.5. The paper does not mention whitening; OpenAI's released code whitens.
    "gae": Estimator(Choices("reward", "k1", "batch")),
    # Ahmadian et al. 2024 (arXiv 2402.14740), sections 2.1 and 2.2.
    "rloo": Estimator(Choices("reward", "k1", "none"), rloo, compares=True),
    # Shao et al. 2024 (arXiv 2402.03300), section 4.1.1.
    "grpo": Estimator(Choices("loss", "k3", "none"), grpo, compares=True),
    # The baseline method of Ahmadian et al. 2024.
    "reinforce": Estimator(Choices("reward", "k1", "none"), reinforce),
}


def masked_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns the mean f32[] over everything the mask selects, all rows together; 0 if it selects nothing."""
    return jnp.sum(_select(mask, x)) / jnp.maximum(jnp.sum(mask), 1)


def masked_var(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns the biased variance f32[] over everything the mask selects; 0 if it selects nothing."""
    return masked_mean((_select(mask, x) - masked_mean(x, mask)) ** 2, mask)


def whiten(x: jax.Array, mask: jax.Array, shift_mean: bool = True) -> jax.Array:
    """Returns `x` f32[B,C] scaled to variance 1 over all its real tokens.

    `x` must be the global batch or a global minibatch, not one device's part. The variance is biased (Huang et al.,
    detail 18), and `WHITEN_EPSILON` is added to it.

    Args:
        x: [B,C].
        mask: bool[B,C].
        shift_mean: True makes the mean 0 (advantages), False keeps it as it is (rewards).
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
    """Returns the KL coefficient f32[] of the next iteration. The coefficient is the controller's entire state.

    Args:
        kl_coef: f32[], the coefficient of this iteration.
        kl: f32[], mean `sequence_kl` of this iteration, in nats.
        episodes: number of completions in this iteration.
        target: the KL to steer to, in nats (Ziegler et al. 2019); None keeps the coefficient as it is.
        horizon: number of episodes in which a KL that is off by 20 % or more changes the coefficient by about 20 %.
    """
    kl_coef = jnp.asarray(kl_coef, jnp.float32)
    if target is None:
        return kl_coef
    error = jnp.clip(kl / target - 1, -0.2, 0.2)
    return kl_coef * (1 + error * episodes / horizon)


def _select(mask, x):
    """Returns `x` in float32, and 0 where the mask is False. Applied before any arithmetic, so that NaN cannot leak."""
    return jnp.where(mask, jnp.asarray(x, jnp.float32), 0)
