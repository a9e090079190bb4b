"""KL, rewards, GAE and whitening against plain loops; the KL controller."""

import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import advantages

B, C = 4, 6
GARBAGE = st.sampled_from([0.0, 1e30, -math.inf, math.nan])
gae = jax.jit(advantages.gae)
whiten = jax.jit(advantages.whiten, static_argnames="shift_mean")
shaped_rewards = jax.jit(advantages.shaped_rewards)

seeds = pytest.mark.parametrize("seed", range(4))


def arrays(seed, count):
    """`count` random arrays f32[B,C], and a mask that is True on 1 to C first tokens of a row."""
    rng = np.random.default_rng(seed)
    mask = np.arange(C) < rng.integers(1, C + 1, size=(B, 1))
    return *rng.normal(size=(count, B, C)).astype(np.float32), mask


def dirty(x, mask, garbage):
    return np.where(mask, x, np.float32(garbage))


# --- KL and rewards -------------------------------------------------------------------------------


@seeds
def test_kl_equals_loop(seed):
    logprobs, ref_logprobs, mask = arrays(seed, 2)
    k1, k2, k3 = advantages.kl_estimates(logprobs, ref_logprobs, mask)
    per_token = advantages.kl_per_token(logprobs, ref_logprobs, mask)
    expected = np.zeros((3, B, C))
    for b in range(B):
        for t in range(C):
            if mask[b, t]:
                d = float(logprobs[b, t]) - float(ref_logprobs[b, t])
                expected[:, b, t] = d, d * d / 2, math.exp(-d) - 1 + d
    np.testing.assert_allclose((k1, k2, k3), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(per_token, k1)
    sequence = advantages.sequence_kl(logprobs, ref_logprobs, mask)
    np.testing.assert_allclose(sequence, expected[0].sum(1), rtol=1e-5, atol=1e-6)


def test_kl_estimates_agree_in_expectation_with_the_exact_kl():
    policy, ref = np.array([0.6, 0.3, 0.1]), np.array([0.2, 0.3, 0.5])
    exact = np.sum(policy * np.log(policy / ref))
    k1, _, k3 = advantages.kl_estimates(jnp.log(policy)[None], jnp.log(ref)[None], jnp.ones((1, 3), bool))
    np.testing.assert_allclose(np.sum(policy * k1), exact, rtol=1e-5)
    np.testing.assert_allclose(np.sum(policy * k3), exact, rtol=1e-5)


def test_kl_of_equal_policies_is_exactly_zero():
    logprobs, mask = arrays(0, 1)
    for estimate in advantages.kl_estimates(logprobs, logprobs, mask):
        np.testing.assert_array_equal(estimate, np.zeros((B, C)))


@hypothesis.settings(deadline=None)
@hypothesis.given(st.lists(st.lists(st.booleans(), min_size=C, max_size=C), min_size=1, max_size=1))
def test_last_token_of_any_mask(rows):
    expected = np.zeros((1, C), bool)
    real = [t for t in range(C) if rows[0][t]]
    expected[0, real[-1:]] = True
    np.testing.assert_array_equal(advantages.last_token(jnp.array(rows)), expected)


@seeds
def test_rewards_equal_loop_and_sum_to_score_minus_kl(seed):
    logprobs, ref_logprobs, mask = arrays(seed, 2)
    scores = np.random.default_rng(seed + 100).normal(size=B).astype(np.float32)
    rewards = shaped_rewards(scores, logprobs, ref_logprobs, mask, 0.02)
    expected = np.zeros((B, C))
    for b in range(B):
        length = int(mask[b].sum())
        for t in range(length):
            expected[b, t] = -0.02 * (float(logprobs[b, t]) - float(ref_logprobs[b, t]))
        expected[b, length - 1] += scores[b]
    np.testing.assert_allclose(rewards, expected, rtol=1e-5, atol=1e-6)
    kl = advantages.sequence_kl(logprobs, ref_logprobs, mask)
    np.testing.assert_allclose(rewards.sum(1), scores - 0.02 * kl, rtol=1e-5, atol=1e-6)


def test_fractional_and_integer_scores_survive():
    zeros, mask = jnp.zeros((2, 3)), jnp.array([[True, True, False], [True, True, True]])
    rewards = shaped_rewards(jnp.array([0.3, -0.7]), zeros, zeros, mask, 0.1)
    np.testing.assert_allclose(rewards, [[0, 0.3, 0], [0, 0, -0.7]], atol=1e-7)
    logprobs = jnp.full((2, 3), 0.5)
    rewards = shaped_rewards(jnp.array([1, 2]), logprobs, zeros, mask, 0.1)
    np.testing.assert_allclose(rewards, [[-0.05, 0.95, 0], [-0.05, -0.05, 1.95]], rtol=1e-6)


def test_a_completion_without_tokens_gets_no_reward():
    zeros = jnp.zeros((1, 3))
    rewards = shaped_rewards(jnp.ones(1), zeros, zeros, jnp.zeros((1, 3), bool), 0.1)
    np.testing.assert_array_equal(rewards, zeros)


@pytest.mark.parametrize("rule, expected", [("none", [2.0, 3.0]), ("replace", [2.0, -1.5]), ("subtract", [2.0, 4.5])])
def test_missing_eos_rules(rule, expected):
    scores = advantages.apply_missing_eos(jnp.array([2, 3]), jnp.array([True, False]), rule, jnp.array(-1.5))
    np.testing.assert_array_equal(scores, expected)


def test_unknown_missing_eos_rule_is_an_error():
    with pytest.raises(ValueError, match="'replace', 'subtract' or 'none', got 'drop'"):
        advantages.apply_missing_eos(jnp.zeros(1), jnp.zeros(1, bool), "drop", 0)


# --- GAE ------------------------------------------------------------------------------------------


def gae_by_loop(rewards, values, mask, gamma, lam):
    """The definition: advantage t is the sum of (gamma lam)^k delta t+k over what is left."""
    result = np.zeros(rewards.shape)
    for b in range(len(rewards)):
        length = int(mask[b].sum())
        deltas = []
        for t in range(length):
            following = float(values[b, t + 1]) if t + 1 < length else 0.0
            deltas.append(float(rewards[b, t]) + gamma * following - float(values[b, t]))
        for t in range(length):
            result[b, t] = sum((gamma * lam) ** (s - t) * deltas[s] for s in range(t, length))
    return result, np.where(mask, result + values, 0)


@seeds
@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (1.0, 0.0)])
def test_gae_equals_loop(seed, gamma, lam):
    rewards, values, mask = arrays(seed, 2)
    result = gae(rewards, values, mask, gamma, lam)
    expected = gae_by_loop(rewards, values, mask, gamma, lam)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


@seeds
def test_gae_at_the_ends_of_lam(seed):
    rewards, values, mask = arrays(seed, 2)
    rewards, values = np.where(mask, rewards, 0), np.where(mask, values, 0)
    reward_to_go = rewards[:, ::-1].cumsum(1)[:, ::-1]
    result, returns = gae(rewards, values, mask, 1.0, 1.0)
    np.testing.assert_allclose(returns, reward_to_go, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(result, reward_to_go - values, rtol=1e-5, atol=1e-5)

    next_values = np.append(values[:, 1:], np.zeros((B, 1)), axis=1)
    _, returns = gae(rewards, values, mask, 0.9, 0.0)
    np.testing.assert_allclose(returns, rewards + 0.9 * next_values, rtol=1e-5, atol=1e-5)


def test_a_perfect_value_function_leaves_no_advantage():
    rewards, mask = arrays(3, 1)
    values = np.where(mask, rewards, 0)[:, ::-1].cumsum(1)[:, ::-1]
    result, _ = gae(rewards, values, mask, 1.0, 0.95)
    np.testing.assert_allclose(result, 0, atol=1e-5)


def test_the_gae_program_does_not_grow_with_the_completion():
    def size(length):
        x, mask = jnp.zeros((2, length)), jnp.ones((2, length), bool)
        return len(jax.make_jaxpr(advantages.gae)(x, x, mask, 1.0, 0.95).jaxpr.eqns)

    assert size(8) == size(800)


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(seed=st.integers(0, 2**32 - 1), garbage=GARBAGE)
def test_nothing_depends_on_padding(seed, garbage):
    x, y, mask = arrays(seed, 2)
    scores = x[:, 0]
    clean, noisy = ((dirty(x, mask, g), dirty(y, mask, g)) for g in (0, garbage))
    results = [
        (
            advantages.kl_estimates(*pair, mask),
            advantages.sequence_kl(*pair, mask),
            shaped_rewards(scores, *pair, mask, 0.1),
            gae(*pair, mask, 1.0, 0.95),
            whiten(pair[0], mask),
            whiten(pair[0], mask, shift_mean=False),
        )
        for pair in (clean, noisy)
    ]
    jax.tree.map(np.testing.assert_array_equal, *results)
    for leaf in jax.tree.leaves(results[1]):
        assert np.all(np.isfinite(leaf))
        assert leaf.shape == (B,) or np.all(np.asarray(leaf)[~mask] == 0)

    padded_mask = np.pad(mask, ((0, 2), (0, 3)))
    padded = [np.pad(p, ((0, 2), (0, 3)), constant_values=garbage) for p in noisy]
    for unpadded, result in zip(results[0][3], gae(*padded, padded_mask, 1.0, 0.95), strict=True):
        np.testing.assert_allclose(result[:B, :C], unpadded, rtol=1e-6)
    whitened = whiten(padded[0], padded_mask)
    np.testing.assert_allclose(whitened[:B, :C], results[0][4], rtol=1e-4, atol=1e-5)


# --- Whitening ------------------------------------------------------------------------------------


@seeds
def test_whitening_equals_loop(seed):
    x, mask = arrays(seed, 1)
    x = 3 * x + 5
    real = [float(x[b, t]) for b in range(B) for t in range(C) if mask[b, t]]
    mean = sum(real) / len(real)
    var = sum((value - mean) ** 2 for value in real) / len(real)
    np.testing.assert_allclose(advantages.masked_mean(x, mask), mean, rtol=1e-5)
    np.testing.assert_allclose(advantages.masked_var(x, mask), var, rtol=1e-5)
    expected = np.where(mask, (x - mean) / math.sqrt(var), 0)
    np.testing.assert_allclose(whiten(x, mask), expected, rtol=1e-4, atol=1e-5)
    kept_mean = np.where(mask, (x - mean) / math.sqrt(var) + mean, 0)
    np.testing.assert_allclose(whiten(x, mask, shift_mean=False), kept_mean, rtol=1e-4)


@seeds
def test_whitened_statistics(seed):
    x, mask = arrays(seed, 1)
    x = 0.01 * x - 3
    for shift_mean, mean in ((True, 0), (False, advantages.masked_mean(x, mask))):
        whitened = whiten(x, mask, shift_mean=shift_mean)
        np.testing.assert_allclose(advantages.masked_mean(whitened, mask), mean, atol=1e-3)
        np.testing.assert_allclose(advantages.masked_var(whitened, mask), 1, rtol=1e-3)


@pytest.mark.parametrize("centre, deviation", [(100, 0.05), (-3000, 1.0)])
def test_whitening_loses_nothing_to_a_large_mean(centre, deviation):
    rng = np.random.default_rng(0)
    x, mask = rng.normal(centre, deviation, (64, 24)).astype(np.float32), rng.random((64, 24)) < 0.8
    real = np.float64(x[mask])
    np.testing.assert_allclose(jax.jit(advantages.masked_var)(x, mask), real.var(), rtol=1e-3)
    np.testing.assert_allclose(whiten(x, mask)[mask], (real - real.mean()) / real.std(), atol=2e-3)


def test_whitening_uses_the_global_batch_and_not_each_row():
    x = np.array([[0.0, 2.0], [10.0, 12.0]], np.float32)
    whitened = whiten(x, np.ones((2, 2), bool))
    np.testing.assert_allclose(whitened, (x - 6) / math.sqrt(26), rtol=1e-5)


def test_whitening_of_nothing_and_of_a_constant_is_finite():
    x = np.full((2, 2), 0.1, np.float32)
    np.testing.assert_array_equal(whiten(x, np.zeros((2, 2), bool)), np.zeros((2, 2)))
    np.testing.assert_allclose(whiten(x, np.ones((2, 2), bool)), 0, atol=1e-3)


# --- KL controller --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kl, factor", [(6.0, 1), (6.6, 1 + 0.1 * 0.0512), (60.0, 1 + 0.2 * 0.0512), (-3.0, 1 - 0.2 * 0.0512)]
)
def test_adaptive_kl_coef(kl, factor):
    kl_coef = advantages.update_kl_coef(jnp.float32(0.15), kl, 512, target=6.0, horizon=10_000)
    np.testing.assert_allclose(kl_coef, 0.15 * factor, rtol=1e-6)


def test_fixed_kl_coef():
    assert advantages.update_kl_coef(jnp.float32(0.02), 60.0, 512, None, 10_000) == np.float32(0.02)


def test_adaptive_kl_coef_settles_where_the_kl_meets_its_target():
    kl_coef = jnp.float32(0.15)
    for _ in range(400):
        kl_coef = advantages.update_kl_coef(kl_coef, 0.3 / kl_coef, 512, target=6.0, horizon=10_000)
    np.testing.assert_allclose(kl_coef, 0.3 / 6.0, rtol=1e-2)


# --- All ------------------------------------------------------------------------------------------


def test_other_coefficients_do_not_recompile():
    x, y, mask = arrays(0, 2)
    traces = []

    @jax.jit
    def program(kl_coef, gamma, lam, target, horizon, missing_eos_value):
        traces.append(1)
        has_eos = mask[:, -1]
        scores = advantages.apply_missing_eos(x[:, 0], has_eos, "replace", missing_eos_value)
        rewards = advantages.shaped_rewards(scores, x, y, mask, kl_coef)
        kl = advantages.sequence_kl(x, y, mask).mean()
        next_kl_coef = advantages.update_kl_coef(kl_coef, kl, B, target, horizon)
        return advantages.gae(rewards, x, mask, gamma, lam), next_kl_coef

    program(0.1, 1.0, 0.95, 6.0, 100.0, -1.0)
    program(0.2, 0.9, 0.9, 3.0, 200.0, -2.0)
    assert len(traces) == 1


def test_results_are_float32_whatever_comes_in():
    x, y, mask = arrays(0, 2)
    x, y = jnp.asarray(x, jnp.bfloat16), jnp.asarray(y, jnp.bfloat16)
    results = [
        advantages.kl_estimates(x, y, mask),
        advantages.sequence_kl(x, y, mask),
        advantages.apply_missing_eos(x[:, 0], mask[:, 0], "subtract", 1),
        advantages.shaped_rewards(x[:, 0], x, y, mask, 0.1),
        advantages.gae(x, y, mask, 1.0, 0.95),
        advantages.whiten(x, mask),
        advantages.masked_mean(x, mask),
        advantages.masked_var(x, mask),
    ]
    assert {leaf.dtype for leaf in jax.tree.leaves(results)} == {jnp.dtype(jnp.float32)}


# --- Without values -------------------------------------------------------------------------------

of_completions = jax.jit(advantages.of_completions, static_argnames=("of_totals", "samples"))


@seeds
@pytest.mark.parametrize("estimator", ["rloo", "grpo", "reinforce"])
def test_a_constant_on_the_scores_of_a_prompt_changes_nothing(seed, estimator):
    rewards, mask = arrays(seed, 1)
    bonus = np.array([5.0, 5.0, -2.0, -2.0] if estimator != "reinforce" else [5.0] * 4, np.float32)
    more = rewards + np.where(advantages.last_token(mask), bonus[:, None], 0)
    found = [of_completions(x, mask, advantages.ESTIMATORS[estimator].of_totals, 2) for x in (rewards, more)]
    np.testing.assert_allclose(*found, atol=2e-5)
    assert np.abs(found[0]).max() > 0.1 and np.all(np.asarray(found[0])[~mask] == 0)
    # On one of its completions it does.
    one = rewards + mask * np.float32([[1], [0], [0], [0]])
    found = [of_completions(x, mask, advantages.ESTIMATORS[estimator].of_totals, 4) for x in (rewards, one)]
    assert np.abs(found[0] - found[1]).max() > 0.01


@seeds
def test_the_samples_of_a_prompt_have_advantages_that_sum_to_0(seed):
    totals = np.random.default_rng(seed).normal(size=(5, 4)).astype(np.float32)
    for estimator in (advantages.rloo, advantages.grpo):
        np.testing.assert_allclose(estimator(totals).sum(1), np.zeros(5), atol=1e-5)
    np.testing.assert_allclose(np.var(advantages.grpo(totals), axis=1), np.ones(5), rtol=1e-5)


def test_completions_that_are_worth_the_same_get_no_advantage():
    for estimator in (advantages.rloo, advantages.grpo):
        np.testing.assert_array_equal(estimator(np.full((2, 3), 0.5, np.float32)), np.zeros((2, 3)))


def test_the_baseline_of_reinforce_is_that_of_the_batch_and_not_of_the_prompt():
    np.testing.assert_allclose(advantages.reinforce(np.float32([[1, 3], [6, 10]])), [[-4, -2], [1, 5]])


def test_two_completions_by_hand():
    np.testing.assert_allclose(advantages.rloo(np.float32([[1, 4]])), [[-3, 3]])
    np.testing.assert_allclose(advantages.rloo(np.float32([[1, 4, 7]])), [[-4.5, 0, 4.5]])
    np.testing.assert_allclose(advantages.grpo(np.float32([[1, 4]])), [[-1, 1]], rtol=1e-6)


@pytest.mark.parametrize("garbage", [1e30, math.nan])
def test_padding_has_no_part_in_what_a_completion_is_worth(garbage):
    rewards, mask = arrays(0, 1)
    for estimator in ("rloo", "grpo", "reinforce"):
        found = [
            of_completions(dirty(rewards, mask, x), mask, advantages.ESTIMATORS[estimator].of_totals, 2)
            for x in (0.0, garbage)
        ]
        np.testing.assert_array_equal(*found)


@seeds
def test_the_penalty_can_be_any_estimate_of_the_kl(seed):
    logprobs, ref_logprobs, mask = arrays(seed, 2)
    scores = np.float32([1.5, -0.25, 0.0, 2.0])
    for estimator in advantages.KL_ESTIMATORS:
        expected = scores.astype(np.float64)
        for b in range(B):
            for t in range(C):
                if mask[b, t]:
                    d = float(logprobs[b, t]) - float(ref_logprobs[b, t])
                    expected[b] -= 0.3 * {"k1": d, "k2": d * d / 2, "k3": math.exp(-d) - 1 + d}[estimator]
        rewards = advantages.shaped_rewards(scores, logprobs, ref_logprobs, mask, 0.3, estimator)
        np.testing.assert_allclose(rewards.sum(1), expected, rtol=1e-4, atol=1e-5)
