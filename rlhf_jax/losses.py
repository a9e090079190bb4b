"""The losses of the pipeline: functions from arrays to sums.

Every loss is returned as a total and the weight that divides it, and every statistic as (sum, count). Microbatches and
devices therefore add exactly (`combine`), and the only division is made at the end, globally. Values under a false
mask, NaN included, change neither a result nor a gradient. All arithmetic is float32.

Shapes: B batch, K completions of a prompt, T tokens, C tokens of a completion.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Loss(NamedTuple):
    """A loss and its statistics, each before the division by its weight or count.

    Attributes:
        total: f32[], the sum over all elements; the loss is total / weight.
        weight: f32[], the sum of the elements' weights.
        sums: name -> (sum f32[], count f32[]); the statistic is sum / count.
        maxima: name -> f32[], the maximum over all elements.
    """

    total: jax.Array
    weight: jax.Array
    sums: dict[str, tuple[jax.Array, jax.Array]]
    maxima: dict[str, jax.Array]


def combine(a: Loss, b: Loss) -> Loss:
    """Returns the loss of the union of two disjoint batches."""
    return Loss(
        a.total + b.total,
        a.weight + b.weight,
        jax.tree.map(jnp.add, a.sums, b.sums),
        jax.tree.map(jnp.maximum, a.maxima, b.maxima),
    )


def plus(loss: Loss, name: str, coefficient: jax.Array | float, x: jax.Array, mask: jax.Array) -> Loss:
    """Adds `coefficient` x the token mean of x to a loss, and keeps that mean as the statistic `name`.

    Args:
        loss: a loss whose elements are the tokens of `mask`, so that its weight also divides the sum of x.
        name: name of the new statistic.
        coefficient: scalar.
        x: [B,C].
        mask: bool[B,C].
    """
    total, count = _sum_and_count(x, mask)
    return loss._replace(total=loss.total + coefficient * total, sums=loss.sums | {name: (total, count)})


def labelled(loss: Loss, label: str) -> Loss:
    """Returns the loss with "label/" before the name of each statistic; the loss itself becomes one, "label/loss"."""
    sums = {f"{label}/{name}": value for name, value in loss.sums.items()}
    maxima = {f"{label}/{name}": value for name, value in loss.maxima.items()}
    return Loss(loss.total, loss.weight, {f"{label}/loss": (loss.total, loss.weight), **sums}, maxima)


def token_cross_entropy(logprobs: jax.Array, loss_mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the negative log-likelihood of the target tokens, in nats.

    Args:
        logprobs: [B,T], log-probability of each token.
        loss_mask: [B,T], 1 where the token is a target, 0 elsewhere.

    Returns:
        Summed loss and number of target tokens, both f32[].
    """
    loss_mask = _float32(loss_mask)
    return -jnp.sum(loss_mask * _select(loss_mask > 0, logprobs)), jnp.sum(loss_mask)


# --- Reward model ---------------------------------------------------------------------------------


def bradley_terry_kwise(
    scores: jax.Array, ranks: jax.Array, valid: jax.Array, prompt_weights: jax.Array | None = None
) -> Loss:
    """Returns the comparison loss -log sigmoid(better - worse), with all pairs of a prompt as one element of the batch.

    InstructGPT, equation 1 (Ouyang et al. 2022, section 3.5): every prompt has the same weight whatever its K. The
    paper drops ties, and does not say what it then divides by; here a prompt's loss is the mean over the pairs that are
    kept.

    Args:
        scores: [B,K], the reward model's outputs.
        ranks: i32[B,K], 1 is best, equal ranks tie; or i32[B,L,K], those of L labelers, whose pairs are all kept.
        valid: bool[B,K], False where a prompt has fewer than K completions.
        prompt_weights: [B], or None for 1 each.

    Returns:
        total: sum over prompts of the mean over their kept pairs, times the prompt's weight. weight: sum of the weights
        of the prompts with at least one kept pair. Statistics over pairs, unweighted: "accuracy" (equal scores count
        one half) and "margin", the score of the better completion minus the score of the worse one.
    """
    margins, kept = _ordered_pairs(scores, ranks, valid)
    pairs = jnp.sum(kept, axis=(1, 2))
    weights = _float32(pairs > 0)
    if prompt_weights is not None:
        weights = weights * _float32(prompt_weights)
    losses = -jnp.sum(kept * jax.nn.log_sigmoid(margins), axis=(1, 2)) / jnp.maximum(pairs, 1)
    total = jnp.sum(weights * losses)
    return Loss(total, jnp.sum(weights), _pair_statistics(margins, kept), {})


def bradley_terry_pooled(scores: jax.Array, ranks: jax.Array, valid: jax.Array) -> Loss:
    """Returns the loss of `bradley_terry_kwise` with the same weight for every kept pair of the batch.

    The paper rejects this alternative, in which a prompt with many pairs dominates. The overfitting it reports comes
    from shuffling the pool of pairs; to reproduce it, give each pair as a row of its own, K = 2.

    Returns:
        total: sum over kept pairs. weight: number of kept pairs. Statistics as in `bradley_terry_kwise`.
    """
    margins, kept = _ordered_pairs(scores, ranks, valid)
    total = -jnp.sum(kept * jax.nn.log_sigmoid(margins))
    return Loss(total, jnp.sum(kept), _pair_statistics(margins, kept), {})


def score_regression(scores: jax.Array, targets: jax.Array, valid: jax.Array) -> Loss:
    """Returns the squared error of each score to its own target: the alternative to comparisons.

    Args:
        scores: [B,K], the reward model's outputs.
        targets: [B,K], given by labelers, or made by `rank_targets`.
        valid: bool[B,K], False where a prompt has fewer than K completions.

    Returns:
        total: summed squared error. weight: number of valid completions.
    """
    errors = _select(valid, scores) - _select(valid, targets)
    return Loss(jnp.sum(errors**2), jnp.sum(_float32(valid)), {}, {})


def direct_preference(
    log_ratios: jax.Array, ranks: jax.Array, valid: jax.Array, beta: jax.Array, label_smoothing: jax.Array
) -> Loss:
    """Returns the DPO loss: `bradley_terry_kwise` of the implicit rewards beta log(pi / pi_ref).

    It trains a policy from comparisons without RL: Rafailov et al. 2023 (DPO), equation 7, extended to rankings, where
    all pairs of a prompt share the weight of one element. With label_smoothing e, a pair counts as reversed with
    probability
    e: (1 - e) -log sigmoid(margin) + e -log sigmoid(-margin). If e is the true probability that the worse completion
    wins, this is the expected loss over infinitely many comparisons.

    Args:
        log_ratios: [B,K], log pi - log pi_ref of whole completions, nats.
        ranks: i32[B,K], 1 is best, equal ranks tie.
        valid: bool[B,K], False where a prompt has fewer than K completions.
        beta: [B], the KL coefficient: the loss seeks the optimum of the reward under this price of a nat.
        label_smoothing: [B], in [0, 1/2].

    Returns:
        total, weight and statistics as in `bradley_terry_kwise`. Further statistics: over pairs, "chosen_reward" and
        "rejected_reward", the implicit rewards of the better and the worse completion; over completions, "log_ratio".
    """
    rewards = _float32(beta)[:, None] * _select(valid, log_ratios)
    loss = bradley_terry_kwise(rewards, ranks, valid)
    margins, kept = _ordered_pairs(rewards, ranks, valid)
    pairs = jnp.sum(kept, axis=(1, 2))
    # -log sigmoid(-m) = m - log sigmoid(m), so smoothing adds label_smoothing x margin to the loss of a pair.
    smoothed = jnp.sum(label_smoothing * jnp.sum(kept * margins, axis=(1, 2)) / jnp.maximum(pairs, 1))
    statistics = {
        "chosen_reward": (jnp.sum(jnp.sum(kept, axis=2) * rewards), jnp.sum(pairs)),
        "rejected_reward": (jnp.sum(jnp.sum(kept, axis=1) * rewards), jnp.sum(pairs)),
        "log_ratio": _sum_and_count(log_ratios, valid),
    }
    return loss._replace(total=loss.total + smoothed, sums=loss.sums | statistics)


def best_likelihood(logprobs: jax.Array, ranks: jax.Array, valid: jax.Array) -> Loss:
    """Returns the negative log-likelihood of the best completion of each prompt: what SFT on preferred answers learns.

    The others of the prompt are not in it, so nothing says what to avoid. Of several best ones, the mean counts.

    Args:
        logprobs: [B,K], log pi of whole completions, nats.
        ranks: i32[B,K], 1 is best, equal ranks tie.
        valid: bool[B,K], False where a prompt has fewer than K completions.

    Returns:
        total: summed over prompts. weight: number of prompts of whose completions one is better than another.
    """
    _, kept = _ordered_pairs(logprobs, ranks, valid)
    best = jnp.sum(kept, axis=2) * (jnp.sum(kept, axis=1) == 0)  # better than some, and none is better
    count = jnp.sum(best > 0, axis=1)
    means = jnp.sum((best > 0) * _select(valid, logprobs), axis=1) / jnp.maximum(count, 1)
    return Loss(-jnp.sum(means), jnp.sum(_float32(count > 0)), {}, {})


def rank_targets(ranks: jax.Array, valid: jax.Array) -> jax.Array:
    """Returns regression targets f32[B,K] in [-1, 1], made from ranks.

    The target of a completion is its mean result against the prompt's other completions, where a win is 1, a tie 0 and
    a loss -1. The targets of a prompt sum to 0. Padding, and the only completion of a prompt, get 0.

    Args:
        ranks: i32[B,K], 1 is best, equal ranks tie; or i32[B,L,K], of whose labelers the mean is taken. A labeler to
            whom all completions are equal is left out.
        valid: bool[B,K], False where a prompt has fewer than K completions.
    """
    ranks = ranks if ranks.ndim == 3 else ranks[:, None]
    both = (valid[:, :, None] & valid[:, None, :])[:, None]
    results = jnp.sign(ranks[..., None, :] - ranks[..., :, None]) * both
    labelers = jnp.sum(jnp.any(results != 0, axis=(2, 3)), axis=1, keepdims=True)
    others = jnp.sum(valid, axis=1, keepdims=True) - 1
    return _float32(jnp.sum(results, axis=(1, 3))) / jnp.maximum(labelers * others, 1)


def _ordered_pairs(scores, ranks, valid):
    """Returns the margins f32[B,K,K], score i - score j, and kept f32[B,K,K], the number of labelers who rank i above j."""
    scores = _select(valid, scores)
    ranks = ranks if ranks.ndim == 3 else ranks[:, None]
    kept = (ranks[..., :, None] < ranks[..., None, :]) & (valid[:, :, None] & valid[:, None, :])[:, None]
    return scores[:, :, None] - scores[:, None, :], jnp.sum(_float32(kept), axis=1)


def _pair_statistics(margins, kept):
    """Returns (sum, count) of "accuracy" and of "margin" over the kept pairs."""
    pairs = jnp.sum(kept)
    correct = (1 + jnp.sign(margins)) / 2
    return {"accuracy": (jnp.sum(kept * correct), pairs), "margin": (jnp.sum(kept * margins), pairs)}


# --- PPO ------------------------------------------------------------------------------------------


def clipped_policy_loss(
    new_logprobs: jax.Array, logprobs: jax.Array, advantages: jax.Array, mask: jax.Array, cliprange: jax.Array | float
) -> Loss:
    """Returns the negative of PPO's clipped objective: max(-A r, -A clip(r, 1 - cliprange, 1 + cliprange)).

    Args:
        new_logprobs: [B,C], under the policy being trained.
        logprobs: [B,C], under the policy that sampled; r = exp(new_logprobs - logprobs).
        advantages: [B,C].
        mask: bool[B,C], True on the completion's tokens.
        cliprange: scalar.

    Returns:
        total: sum over tokens. weight: number of tokens. Statistics over tokens: "ratio"; "clipfrac", the share where
        the clipped term is the larger; "approxkl", (log r)^2 / 2 as OpenAI logs it; "approxkl_k3", r - 1 - log r.
        Maxima: "ratio_max".
    """
    advantages = _select(mask, advantages)
    log_ratio = _select(mask, new_logprobs) - _select(mask, logprobs)
    ratio = jnp.exp(log_ratio)
    unclipped = -advantages * ratio
    clipped = -advantages * jnp.clip(ratio, 1 - cliprange, 1 + cliprange)
    losses = jnp.maximum(unclipped, clipped)
    sums = {
        "ratio": _sum_and_count(ratio, mask),
        "clipfrac": _sum_and_count(clipped > unclipped, mask),
        "approxkl": _sum_and_count(0.5 * log_ratio**2, mask),
        "approxkl_k3": _sum_and_count(jnp.expm1(log_ratio) - log_ratio, mask),
    }
    total, weight = _sum_and_count(losses, mask)
    return Loss(total, weight, sums, {"ratio_max": jnp.max(_select(mask, ratio))})


def clipped_value_loss(
    new_values: jax.Array, values: jax.Array, returns: jax.Array, mask: jax.Array, cliprange_value: jax.Array | float
) -> Loss:
    """Returns PPO's clipped value loss: half the larger of two squared errors, of the value and of the clipped value.

    Args:
        new_values: [B,C], from the value model being trained.
        values: [B,C], from the value model when the completions were scored.
        returns: [B,C], the targets.
        mask: bool[B,C], True on the completion's tokens.
        cliprange_value: scalar, the largest difference of the clipped value from `values`; infinity turns clipping off.

    Returns:
        total: sum over tokens. weight: number of tokens. Statistics over tokens: "vpred", the new value; "error", the
        squared error of the unclipped value (see `explained_variance`); "clipfrac", the share where the clipped term is
        the larger; "returns".
    """
    new_values, values, returns = (_select(mask, x) for x in (new_values, values, returns))
    near = jnp.clip(new_values, values - cliprange_value, values + cliprange_value)
    unclipped = (new_values - returns) ** 2
    clipped = (near - returns) ** 2
    losses = 0.5 * jnp.maximum(unclipped, clipped)
    sums = {
        "vpred": _sum_and_count(new_values, mask),
        "error": _sum_and_count(unclipped, mask),
        "clipfrac": _sum_and_count(clipped > unclipped, mask),
        "returns": _sum_and_count(returns, mask),
    }
    total, weight = _sum_and_count(losses, mask)
    return Loss(total, weight, sums, {})


def explained_variance(error: jax.Array, returns: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns 1 - error / variance of the returns, f32[]; 0 if the returns do not vary.

    The mean of the returns is subtracted before squaring: in float32 a large mean would leave nothing of the difference
    "mean of squares minus square of the mean".

    Args:
        error: f32[], mean squared error of the values that predict the returns.
        returns: [B,C], all returns and not a part of them, because their variance is about their own mean.
        mask: bool[B,C].
    """
    total, count = _sum_and_count(returns, mask)
    count = jnp.maximum(count, 1)
    mean = total / count
    variance = jnp.sum(_select(mask, returns - mean) ** 2) / count
    varies = variance > (1e-6 * mean) ** 2  # more than float32 rounding alone would give
    return jnp.where(varies, 1 - error / jnp.where(varies, variance, 1), 0)


def _float32(x):
    return jnp.asarray(x, jnp.float32)


def _select(mask, x):
    """Returns `x` in float32, and 0 where the mask is False. Applied before any arithmetic, so that NaN cannot leak."""
    return jnp.where(mask, _float32(x), 0)


def _sum_and_count(x, mask):
    return jnp.sum(_select(mask, x)), jnp.sum(_float32(mask))
