"""The losses against plain loops, against PyTorch, and for what must not change them."""

import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import losses

B, K, C = 3, 5, 7
kwise = jax.jit(losses.bradley_terry_kwise)
pooled = jax.jit(losses.bradley_terry_pooled)
policy_loss = jax.jit(losses.clipped_policy_loss)
value_loss = jax.jit(losses.clipped_value_loss)

seeds = pytest.mark.parametrize("seed", range(4))


def mean(pair):
    return float(pair[0] / pair[1])


def assert_same_loss(a, b, rtol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-6), a, b)


# --- Token cross-entropy --------------------------------------------------------------------------


@seeds
def test_token_cross_entropy_equals_loop(seed):
    rng = np.random.default_rng(seed)
    logprobs = -rng.exponential(size=(B, C)).astype(np.float32)
    loss_mask = (rng.random((B, C)) < 0.6).astype(np.float32)
    total, tokens = losses.token_cross_entropy(logprobs, loss_mask)
    targets = [(b, t) for b in range(B) for t in range(C) if loss_mask[b, t]]
    assert tokens == len(targets)
    np.testing.assert_allclose(total, -sum(logprobs[bt] for bt in targets), rtol=1e-5)


def test_token_cross_entropy_ignores_what_is_not_a_target():
    logprobs = jnp.array([[jnp.nan, -1.0, -jnp.inf, -2.0]])
    loss_mask = jnp.array([[0.0, 1.0, 0.0, 1.0]])
    total, tokens = losses.token_cross_entropy(logprobs, loss_mask)
    assert (total, tokens) == (3.0, 2.0)
    gradient = jax.grad(lambda x: losses.token_cross_entropy(x, loss_mask)[0])(logprobs)
    np.testing.assert_array_equal(gradient, [[0, -1, 0, -1]])


# --- Bradley-Terry --------------------------------------------------------------------------------


def comparisons(seed, count=K):
    """Random scores, ranks with ties, validity; the last prompt has ties alone."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(scale=2, size=(B, count)).astype(np.float32)
    ranks = rng.integers(1, 4, size=(B, count)).astype(np.int32)
    ranks[-1] = 2
    valid = np.arange(count) < rng.integers(1, count + 1, size=(B, 1))
    valid[0] = True
    return scores, ranks, valid


def pairs_of(ranks, valid):
    """(winner, loser) of every kept pair of one prompt, found by looking at all of them."""
    count = len(ranks)
    return [(i, j) for i in range(count) for j in range(count) if valid[i] and valid[j] and ranks[i] < ranks[j]]


def kwise_by_loop(scores, ranks, valid):
    total, prompts, correct, margin, pairs = 0.0, 0, 0.0, 0.0, 0
    for b in range(len(scores)):
        kept = pairs_of(ranks[b], valid[b])
        if not kept:
            continue
        margins = [float(scores[b, i]) - float(scores[b, j]) for i, j in kept]
        total += sum(math.log1p(math.exp(-m)) for m in margins) / len(kept)
        prompts += 1
        correct += sum(0.5 if m == 0 else float(m > 0) for m in margins)
        margin += sum(margins)
        pairs += len(kept)
    return total, prompts, correct, margin, pairs


@seeds
def test_kwise_equals_loop(seed):
    scores, ranks, valid = comparisons(seed)
    total, prompts, correct, margin, pairs = kwise_by_loop(scores, ranks, valid)
    loss = kwise(scores, ranks, valid)
    np.testing.assert_allclose(loss.total, total, rtol=1e-5)
    assert loss.weight == prompts < B
    np.testing.assert_allclose(loss.sums["accuracy"], (correct, pairs))
    np.testing.assert_allclose(loss.sums["margin"], (margin, pairs), rtol=1e-5)


def test_kwise_without_ties_is_equation_1():
    scores = np.random.default_rng(0).normal(size=(1, 9)).astype(np.float32)
    ranks = np.arange(1, 10)[None]
    loss = kwise(scores, ranks, np.ones((1, 9), bool))
    pairs = [(i, j) for i in range(9) for j in range(i + 1, 9)]
    assert loss.sums["margin"][1] == len(pairs) == 36
    expected = np.mean([np.log1p(np.exp(scores[0, j] - scores[0, i])) for i, j in pairs])
    np.testing.assert_allclose(loss.total / loss.weight, expected, rtol=1e-5)


def test_kwise_weighs_prompts_alike_and_pooled_weighs_pairs_alike():
    scores = np.array([[0.0, 1.0, 2.0, 3.0], [5.0, 0.0, 0.0, 0.0]], np.float32)
    ranks = np.array([[1, 2, 3, 4], [1, 2, 2, 2]], np.int32)
    valid = np.array([[True] * 4, [True, True, False, False]])
    wrong = [math.log1p(math.exp(d)) for d in (1, 1, 1, 2, 2, 3)]
    right = math.log1p(math.exp(-5))
    grouped = kwise(scores, ranks, valid)
    shuffled = pooled(scores, ranks, valid)
    np.testing.assert_allclose(mean(grouped[:2]), (np.mean(wrong) + right) / 2, rtol=1e-5)
    np.testing.assert_allclose(mean(shuffled[:2]), np.mean([*wrong, right]), rtol=1e-5)
    assert mean(shuffled.sums["accuracy"]) == pytest.approx(1 / 7)


@seeds
def test_pooled_equals_kwise_on_one_row_per_pair(seed):
    scores, ranks, valid = comparisons(seed)
    rows = [(b, i, j) for b in range(B) for i, j in pairs_of(ranks[b], valid[b])]
    row_scores = np.array([[scores[b, i], scores[b, j]] for b, i, j in rows])
    row_ranks = np.array([[ranks[b, i], ranks[b, j]] for b, i, j in rows])
    as_rows = kwise(row_scores, row_ranks, np.ones_like(row_ranks, bool))
    assert_same_loss(pooled(scores, ranks, valid), as_rows)


def test_kwise_prompt_weights():
    scores, ranks, valid = comparisons(0)
    first, second = (kwise(scores[[b]], ranks[[b]], valid[[b]]) for b in (0, 1))
    assert first.weight == 1
    weighted = kwise(scores, ranks, valid, np.array([0.5, 3.0, 7.0]))
    np.testing.assert_allclose(weighted.total, 0.5 * first.total + 3 * second.total, rtol=1e-5)
    assert weighted.weight == 0.5 + 3 * second.weight  # The third prompt has ties alone.


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(seed=st.integers(0, 2**32 - 1), order=st.permutations(range(K)), shift=st.floats(-9, 9))
def test_kwise_does_not_depend_on_order_or_a_constant(seed, order, shift):
    scores, ranks, valid = comparisons(seed)
    loss = kwise(scores, ranks, valid)
    assert_same_loss(kwise(scores[:, order], ranks[:, order], valid[:, order]), loss)
    assert_same_loss(kwise(scores + np.float32(shift), ranks, valid), loss, rtol=1e-4)
    assert_same_loss(kwise(scores, 10 * ranks - 7, valid), loss)


@hypothesis.settings(deadline=None, max_examples=30)
@hypothesis.given(
    seed=st.integers(0, 2**32 - 1),
    garbage=st.sampled_from([0.0, -1e30, 3e38, math.inf, math.nan]),
    rank=st.integers(-5, 5),
)
def test_kwise_does_not_depend_on_padding(seed, garbage, rank):
    scores, ranks, valid = comparisons(seed)
    padding = np.full((B, 2), garbage, np.float32)
    padded_scores = np.concatenate([np.where(valid, scores, garbage), padding], 1)
    padded_ranks = np.concatenate([np.where(valid, ranks, rank), np.full((B, 2), rank)], 1)
    padded_valid = np.concatenate([valid, np.zeros((B, 2), bool)], 1)
    for loss in (kwise, pooled):
        expected = loss(scores, ranks, valid)
        padded = loss(np.float32(padded_scores), np.int32(padded_ranks), padded_valid)
        assert_same_loss(padded, expected)
    gradient = np.asarray(kwise_gradient(padded_scores, padded_ranks, padded_valid))
    assert np.all(gradient[~padded_valid] == 0)
    expected = kwise_gradient(scores, ranks, valid)
    np.testing.assert_allclose(gradient[:, :K], expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(gradient.sum(1), 0, atol=1e-6)


@jax.jit
@jax.grad
def kwise_gradient(scores, ranks, valid):
    return losses.bradley_terry_kwise(scores, ranks, valid).total


def test_kwise_is_finite_for_huge_margins():
    scores = np.array([[-3e4, 3e4]], np.float32)
    ranks, valid = np.array([[1, 2]], np.int32), np.ones((1, 2), bool)
    assert kwise(scores, ranks, valid).total == 6e4
    np.testing.assert_allclose(kwise_gradient(scores, ranks, valid), [[-1, 1]])
    np.testing.assert_allclose(kwise_gradient(-scores, ranks, valid), [[0, 0]])


def test_equal_scores_are_half_right():
    scores, ranks, valid = comparisons(1)
    for loss in (kwise, pooled):
        result = loss(np.zeros_like(scores), ranks, valid)
        assert mean(result.sums["accuracy"]) == 0.5
        np.testing.assert_allclose(mean(result[:2]), math.log(2), rtol=1e-6)


def test_ties_contribute_nothing():
    scores, ranks, valid = comparisons(1)
    gradient = kwise_gradient(scores, ranks, valid)
    np.testing.assert_array_equal(gradient[-1], np.zeros(K))
    all_tied = kwise(scores, np.ones_like(ranks), valid)
    assert all_tied.total == all_tied.weight == 0


@seeds
def test_kwise_equals_torch(seed):
    torch = pytest.importorskip("torch", reason="PyTorch is the second opinion")
    scores, ranks, valid = comparisons(seed)
    r = torch.tensor(scores, requires_grad=True)
    prompts = []
    for b in range(B):
        kept = pairs_of(ranks[b], valid[b])
        if kept:
            winners, losers = torch.tensor(kept).T
            prompts.append(-torch.nn.functional.logsigmoid(r[b, winners] - r[b, losers]).mean())
    total = torch.stack(prompts).sum()
    total.backward()
    np.testing.assert_allclose(kwise(scores, ranks, valid).total, total.item(), rtol=1e-5)
    gradient = kwise_gradient(scores, ranks, valid)
    np.testing.assert_allclose(gradient, r.grad.numpy(), rtol=1e-5, atol=1e-7)


@seeds
def test_rank_targets_equal_loop(seed):
    _, ranks, valid = comparisons(seed)
    expected = np.zeros((B, K))
    for b in range(B):
        for i in range(K):
            others = [j for j in range(K) if j != i and valid[b, j]]
            if valid[b, i] and others:
                results = [np.sign(ranks[b, j] - ranks[b, i]) for j in others]
                expected[b, i] = np.mean(results)
    targets = losses.rank_targets(ranks, valid)
    np.testing.assert_allclose(targets, expected, rtol=1e-6)
    np.testing.assert_allclose(targets.sum(1), 0, atol=1e-6)


def test_rank_targets_of_several_labelers_are_the_mean_of_those_who_tell_completions_apart():
    _, ranks, valid = comparisons(0)
    _, others, _ = comparisons(1)
    equal = np.ones_like(ranks)
    targets = losses.rank_targets(np.stack([ranks, others, equal], axis=1), valid)
    np.testing.assert_allclose(
        targets, (losses.rank_targets(ranks, valid) + losses.rank_targets(others, valid)) / 2, rtol=1e-5, atol=1e-7
    )


def test_score_regression():
    scores = np.array([[1.0, -2.0, np.nan]], np.float32)
    targets = np.array([[0.5, 1.0, np.nan]], np.float32)
    valid = np.array([[True, True, False]])
    loss = losses.score_regression(scores, targets, valid)
    assert (loss.total, loss.weight) == (0.25 + 9, 2)
    gradient = jax.grad(lambda x: losses.score_regression(x, targets, valid).total)(scores)
    np.testing.assert_allclose(gradient, [[1, -6, 0]])


# --- PPO ------------------------------------------------------------------------------------------


def experience(seed):
    """new and old log-probabilities or values, advantages or returns, a prefix mask."""
    rng = np.random.default_rng(seed)
    old = rng.normal(size=(B, C)).astype(np.float32)
    new = old + rng.normal(scale=0.3, size=(B, C)).astype(np.float32)
    target = rng.normal(size=(B, C)).astype(np.float32)
    mask = np.arange(C) < rng.integers(1, C + 1, size=(B, 1))
    return new, old, target, mask


@seeds
def test_policy_loss_equals_loop(seed):
    new, old, advantages, mask = experience(seed)
    total, clipped_tokens, ratios, log_ratios = 0.0, 0, [], []
    for b in range(B):
        for t in range(C):
            if not mask[b, t]:
                continue
            log_ratio = float(new[b, t]) - float(old[b, t])
            ratio, advantage = math.exp(log_ratio), float(advantages[b, t])
            clipped_ratio = min(max(ratio, 0.8), 1.2)
            total -= min(ratio * advantage, clipped_ratio * advantage)
            clipped_tokens += clipped_ratio * advantage < ratio * advantage
            ratios.append(ratio)
            log_ratios.append(log_ratio)
    loss = policy_loss(new, old, advantages, mask, 0.2)
    assert loss.weight == len(ratios) == mask.sum()
    np.testing.assert_allclose(loss.total, total, rtol=1e-4)
    assert {name: count for name, (_, count) in loss.sums.items()} == dict.fromkeys(
        ("ratio", "clipfrac", "approxkl", "approxkl_k3"), loss.weight
    )
    assert loss.sums["clipfrac"][0] == clipped_tokens > 0
    np.testing.assert_allclose(mean(loss.sums["ratio"]), np.mean(ratios), rtol=1e-5)
    np.testing.assert_allclose(loss.maxima["ratio_max"], max(ratios), rtol=1e-5)
    log_ratios = np.array(log_ratios)
    np.testing.assert_allclose(mean(loss.sums["approxkl"]), np.mean(log_ratios**2) / 2, rtol=1e-4)
    k3 = np.mean(np.exp(log_ratios) - 1 - log_ratios)
    np.testing.assert_allclose(mean(loss.sums["approxkl_k3"]), k3, rtol=1e-4)


@seeds
def test_value_loss_equals_loop(seed):
    new, old, returns, mask = experience(seed)
    total, errors, clipped_tokens, real = 0.0, [], 0, []
    for b in range(B):
        for t in range(C):
            if not mask[b, t]:
                continue
            near = min(max(new[b, t], old[b, t] - 0.2), old[b, t] + 0.2)
            error, near_error = (new[b, t] - returns[b, t]) ** 2, (near - returns[b, t]) ** 2
            total += 0.5 * max(error, near_error)
            clipped_tokens += near_error > error
            errors.append(error)
            real.append(returns[b, t])
    loss = value_loss(new, old, returns, mask, 0.2)
    means = {name: mean(pair) for name, pair in loss.sums.items()}
    assert loss.weight == len(errors)
    np.testing.assert_allclose(loss.total, total, rtol=1e-5)
    np.testing.assert_allclose(loss.sums["clipfrac"], (clipped_tokens, len(errors)))
    np.testing.assert_allclose(means["error"], np.mean(errors), rtol=1e-5)
    np.testing.assert_allclose(means["vpred"], new[mask].mean(), rtol=1e-4)
    explained = losses.explained_variance(means["error"], returns, mask)
    np.testing.assert_allclose(explained, 1 - np.mean(errors) / np.var(real), rtol=1e-4)


@pytest.mark.parametrize("centre, deviation", [(100, 0.05), (-3000, 1.0), (0.0, 1e-4)])
def test_explained_variance_loses_nothing_to_a_large_mean(centre, deviation):
    rng = np.random.default_rng(0)
    mask = rng.random((64, 24)) < 0.8
    returns = np.where(mask, rng.normal(centre, deviation, mask.shape), np.nan).astype(np.float32)
    error = np.float32(0.247 * deviation**2)
    expected = 1 - error / np.var(returns[mask].astype(np.float64))
    assert jax.jit(losses.explained_variance)(error, returns, mask) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("value", [0.0, 2.1, -331.7])
def test_explained_variance_of_constant_returns_is_zero(value):
    assert jax.jit(losses.explained_variance)(0.3, np.full((7, 9), value, np.float32), np.ones((7, 9), bool)) == 0


def test_infinite_value_cliprange_is_no_clipping():
    new, old, returns, mask = experience(0)
    loss = value_loss(new, old, returns, mask, jnp.inf)
    np.testing.assert_allclose(loss.total, 0.5 * loss.sums["error"][0], rtol=1e-6)
    assert loss.sums["clipfrac"][0] == 0
    gradient = jax.grad(lambda x: value_loss(x, old, returns, mask, jnp.inf).total)(new)
    np.testing.assert_allclose(gradient, np.where(mask, new - returns, 0), rtol=1e-5)


def test_before_the_first_update_the_ratio_is_exactly_one():
    _, logprobs, advantages, mask = experience(0)
    loss = policy_loss(logprobs, logprobs, advantages, mask, 0.2)
    assert mean(loss.sums["ratio"]) == loss.maxima["ratio_max"] == 1
    for name in ("clipfrac", "approxkl", "approxkl_k3"):
        assert loss.sums[name][0] == 0
    gradient = jax.grad(lambda x: policy_loss(x, logprobs, advantages, mask, 0.2).total)(logprobs)
    np.testing.assert_allclose(gradient, np.where(mask, -advantages, 0), rtol=1e-6)


@pytest.mark.parametrize(
    "ratio, advantage, moves", [(1.5, 1, False), (1.5, -1, True), (0.5, 1, True), (0.5, -1, False), (1.1, 1, True)]
)
def test_clipping_stops_only_the_gradient_that_leads_further_away(ratio, advantage, moves):
    def total(new):
        arrays = (jnp.zeros((1, 1)), jnp.full((1, 1), advantage), jnp.ones((1, 1), bool))
        return policy_loss(new, *arrays, 0.2).total

    gradient = jax.grad(total)(jnp.full((1, 1), math.log(ratio)))
    np.testing.assert_allclose(gradient, -advantage * ratio if moves else 0, rtol=1e-6)


@hypothesis.settings(deadline=None, max_examples=30)
@hypothesis.given(seed=st.integers(0, 2**32 - 1), garbage=st.sampled_from([0.0, -1e30, 3e38, -math.inf, math.nan]))
def test_ppo_losses_do_not_depend_on_padding(seed, garbage):
    *arrays, mask = experience(seed)
    clean = [np.where(mask, x, 0) for x in arrays]
    dirty = [np.where(mask, x, np.float32(garbage)) for x in arrays]
    for loss, gradient in ((policy_loss, policy_gradient), (value_loss, value_gradient)):
        assert_same_loss(loss(*dirty, mask, 0.2), loss(*clean, mask, 0.2), rtol=0)
        np.testing.assert_array_equal(gradient(*dirty, mask), gradient(*clean, mask))
        assert np.all(np.asarray(gradient(*dirty, mask))[~mask] == 0)


@jax.jit
@jax.grad
def policy_gradient(new_logprobs, logprobs, advantages, mask):
    return losses.clipped_policy_loss(new_logprobs, logprobs, advantages, mask, 0.2).total


@jax.jit
@jax.grad
def value_gradient(new_values, values, returns, mask):
    return losses.clipped_value_loss(new_values, values, returns, mask, 0.2).total


@seeds
def test_ppo_losses_equal_torch(seed):
    torch = pytest.importorskip("torch", reason="PyTorch is the second opinion")
    new, old, target, mask = experience(seed)
    x = torch.tensor(new, requires_grad=True)
    old_, target_, mask_ = torch.tensor(old), torch.tensor(target), torch.tensor(mask)

    ratio = (x - old_).exp()
    surrogate = torch.min(ratio * target_, ratio.clamp(0.8, 1.2) * target_)
    policy_total = -surrogate[mask_].sum()
    (policy_grad,) = torch.autograd.grad(policy_total, x)
    loss = policy_loss(new, old, target, mask, 0.2)
    np.testing.assert_allclose(loss.total, policy_total.item(), rtol=1e-4)
    ours = policy_gradient(new, old, target, mask)
    np.testing.assert_allclose(ours, policy_grad.numpy(), rtol=1e-5, atol=1e-7)

    near = torch.max(torch.min(x, old_ + 0.2), old_ - 0.2)
    value_total = 0.5 * torch.max((x - target_) ** 2, (near - target_) ** 2)[mask_].sum()
    (value_grad,) = torch.autograd.grad(value_total, x)
    loss = value_loss(new, old, target, mask, 0.2)
    np.testing.assert_allclose(loss.total, value_total.item(), rtol=1e-5)
    ours = value_gradient(new, old, target, mask)
    np.testing.assert_allclose(ours, value_grad.numpy(), rtol=1e-5, atol=1e-7)


# --- All ------------------------------------------------------------------------------------------


def test_microbatches_combine_to_the_whole():
    parts = slice(None, 1), slice(1, None)
    pairwise, tokenwise = comparisons(2), experience(2)
    cases = [(kwise, pairwise, ()), (pooled, pairwise, ())]
    cases += [(policy_loss, tokenwise, (0.2,)), (value_loss, tokenwise, (0.2,))]
    for loss, arrays, coefs in cases:
        first, second = (loss(*(x[part] for x in arrays), *coefs) for part in parts)
        assert_same_loss(losses.combine(first, second), loss(*arrays, *coefs))


def test_results_are_float32_whatever_comes_in():
    def half(arrays):
        return [jnp.asarray(x, jnp.bfloat16) for x in arrays]

    scores, ranks, valid = comparisons(0)
    *arrays, mask = experience(0)
    results = [
        losses.token_cross_entropy(*half((arrays[0], mask))),
        losses.bradley_terry_kwise(*half([scores]), ranks, valid),
        losses.bradley_terry_pooled(*half([scores]), ranks, valid),
        losses.score_regression(*half([scores, scores]), valid),
        losses.clipped_policy_loss(*half(arrays), mask, 0.2),
        losses.clipped_value_loss(*half(arrays), mask, 0.2),
    ]
    assert {x.dtype for x in jax.tree.leaves(results)} == {jnp.dtype(jnp.float32)}


def test_another_cliprange_does_not_recompile():
    *arrays, mask = experience(0)
    for loss in (losses.clipped_policy_loss, losses.clipped_value_loss):
        traces = []
        program = jax.jit(lambda *args: (traces.append(1), loss(*args))[1])
        totals = {float(program(*arrays, mask, cliprange).total) for cliprange in (0.1, 0.2, 0.3)}
        assert len(traces) == 1 and len(totals) == 3


# --- Put together ---------------------------------------------------------------------------------


@pytest.mark.parametrize("garbage", [0.0, math.nan])
def test_a_term_is_added_as_a_token_mean_and_logged_without_its_coefficient(garbage):
    *arrays, mask = experience(0)
    rng = np.random.default_rng(9)
    x = np.where(mask, rng.normal(size=mask.shape), garbage).astype(np.float32)
    loss = losses.labelled(policy_loss(*arrays, mask, 0.2), "policy")
    more = losses.plus(loss, "policy/kl", 0.3, x, mask)
    expected = np.mean([float(value) for value, real in zip(x.ravel(), mask.ravel()) if real])
    assert mean(more.sums["policy/kl"]) == pytest.approx(expected, rel=1e-5)
    assert float((more.total - loss.total) / loss.weight) == pytest.approx(0.3 * expected, abs=1e-5)
    assert mean(more.sums["policy/loss"]) == pytest.approx(float(loss.total / loss.weight))
    assert more.sums.keys() == {
        "policy/kl",
        "policy/loss",
        *(f"policy/{name}" for name in policy_loss(*arrays, mask, 0.2).sums),
    }
    assert more.maxima.keys() == {"policy/ratio_max"}


def test_the_rankings_of_several_labelers_add_their_pairs():
    """Against the loop over labelers; a labeler to whom all completions tie says nothing, and one labeler is what it was."""
    rng = np.random.default_rng(5)
    scores, valid = rng.normal(size=(3, 4)), np.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]], bool)
    ranks = rng.integers(1, 4, (3, 2, 4))
    found = losses.bradley_terry_kwise(scores, np.concatenate([ranks, np.ones((3, 1, 4), int)], axis=1), valid)
    total, weight, right, pairs = 0.0, 0, 0.0, 0
    for row in range(3):
        margins = [
            scores[row, i] - scores[row, j]
            for own in ranks[row]
            for i in range(4)
            for j in range(4)
            if own[i] < own[j] and valid[row, i] and valid[row, j]
        ]
        if margins:
            total, weight = total + np.mean(np.logaddexp(0, -np.array(margins))), weight + 1
        right, pairs = right + sum(margin > 0 for margin in margins), pairs + len(margins)
    np.testing.assert_allclose((found.total, found.weight), (total, weight), rtol=1e-6)
    np.testing.assert_allclose(found.sums["accuracy"], (right, pairs), rtol=1e-6)
    alone = losses.bradley_terry_kwise(scores, ranks[:, :1], valid)
    same = losses.bradley_terry_kwise(scores, ranks[:, 0], valid)
    np.testing.assert_array_equal(alone.total, same.total)
