"""Intervals cover what they say; calibration measures equal their closed forms."""

import math

from hypothesis import given, strategies as st
import numpy as np
import pytest
import scipy.stats

from rlhf_jax.evaluate import calibration
from rlhf_jax.evaluate.statistics import mean, mean_over_seeds, paired_difference, ratio, share, wilson, win_rate


def coverage(interval, truth, draw, repeats, seed):
    """Share of repeats whose interval holds the truth."""
    rng = np.random.default_rng(seed)
    estimates = [interval(draw(rng)) for _ in range(repeats)]
    return np.mean([estimate.low <= truth <= estimate.high for estimate in estimates])


@pytest.mark.parametrize("units", [3, 10, 64])
def test_a_mean_is_scipys_with_students_t(units):
    values = np.random.default_rng(units).normal(3, 2, units)
    expected = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert mean(values) == pytest.approx((values.mean(), *expected), rel=1e-12)
    assert mean_over_seeds(values, 0.5)[1:] == pytest.approx(scipy.stats.ttest_1samp(values, 0).confidence_interval(0.5))


@pytest.mark.parametrize("units", [10, 64, 500])
@pytest.mark.parametrize("seed", range(2))
def test_an_interval_is_as_wide_as_the_bootstrap_over_units_says(units, seed):
    """Of rows of unequal number and weight, where units differ."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 6, units)
    unit = np.repeat(np.arange(units), sizes)
    values, weights = rng.normal(size=units)[unit] + rng.normal(size=len(unit)), rng.uniform(0.5, 2, len(unit))
    sums = [np.bincount(unit, x) for x in (weights * values, weights)]
    result = scipy.stats.bootstrap(sums, lambda a, b, axis: a.sum(axis) / b.sum(axis), paired=True, vectorized=True,
                                   n_resamples=2000, method="basic", rng=rng)  # fmt: skip
    found = mean(values, weights, unit)
    standard_error = (found.high - found.value) / scipy.stats.t.ppf(0.975, units - 1)
    assert found.value == pytest.approx(np.average(values, weights=weights), rel=1e-12)
    assert standard_error == pytest.approx(result.standard_error, rel=0.2 if units == 10 else 0.1)


def test_means_cover_also_where_values_are_skewed():
    draw = lambda rng: rng.exponential(size=64)
    assert coverage(mean, 1, draw, 1500, 0) > 0.93


def exact_coverage(interval, truth, trials):
    """Of an interval of k successes: the sum over all outcomes of a binomial."""
    covered = [low <= truth <= high for _, low, high in (interval(np.arange(trials) < k) for k in range(trials + 1))]
    return scipy.stats.binom.pmf(np.arange(trials + 1), trials, truth) @ covered


@pytest.mark.parametrize("truth", [0.5, 0.9, 0.97])
def test_win_rates_cover_the_truth_exactly_counted(truth):
    """The percentile bootstrap of 64 prompts covers 83 % at 0.97."""
    assert 0.94 < exact_coverage(lambda won: win_rate(won, np.full(64, 0.5)), truth, 64) < 0.98


@pytest.mark.parametrize("truth, spread", [(0.65, 0.1), (0.65, 0.3), (0.8, 0.1), (0.5, 1.0), (0.97, 1.0)])
def test_accuracy_of_40_prompts_covers_where_its_pairs_are_alike(truth, spread):
    """4 to 9 completions a prompt; `spread` is the correlation within a prompt, 1 where all pairs agree."""
    def draw(rng):
        sizes = (completions := rng.integers(4, 10, 40)) * (completions - 1) // 2
        odds = 1 / spread - 1
        right = rng.beta(truth * odds, (1 - truth) * odds, 40) if odds else rng.random(40) < truth
        unit = np.repeat(np.arange(40), sizes)
        return rng.random(len(unit)) < right[unit], unit

    over_prompts = lambda drawn: share(drawn[0], units=drawn[1])
    assert coverage(over_prompts, truth, draw, 1000, 0) > 0.935
    over_pairs = lambda drawn: share(drawn[0])
    assert coverage(over_pairs, truth, draw, 300, 0) < 0.85


def test_a_share_by_units_is_wilsons_of_as_many_trials_as_the_units_are_worth():
    """Rows that repeat others change nothing; rows that all differ count in full; a unit alone says nothing."""
    rng = np.random.default_rng(0)
    right = rng.random(50) < 0.8
    assert share(np.repeat(right, 7), units=np.repeat(np.arange(50), 7)) == pytest.approx(share(right), rel=1e-9)
    assert share(right, np.full(50, 7.0)) == pytest.approx(share(right), rel=1e-9)
    expected = scipy.stats.binomtest(int(right.sum()), 50).proportion_ci(0.95, "wilson")
    assert share(right)[1:] == pytest.approx(expected, abs=0.01) and share(right).low < expected.low
    halves = share(np.full(50, 0.5))  # all tied: as wide as of coins, not of no width
    assert halves.value == 0.5 and halves.high - halves.low > 0.25
    assert share(np.full(50, 1.0)).low < 0.94 and share(np.full(50, 1.0)).high == 1
    assert share([1, 0, 1, 1], units=["a"] * 4) == (0.75, 0, 1)
    with pytest.raises(ValueError, match="from 0 to 1"):
        share([0.5, 1.5])


def test_units_and_weights_are_of_rows():
    estimate = mean([1.0, 0.0, np.nan], [3, 1, 0])
    assert estimate.value == 0.75
    assert estimate == mean([1.0, 0.0], [3, 1])
    assert mean([2.0] * 9, range(9)) == (2, 2, 2)
    assert mean([1.0, 3.0], units=["a", "a"]) == (2, -math.inf, math.inf)
    with pytest.raises(ValueError, match="at least one"):
        mean([1.0], [0])
    with pytest.raises(ValueError, match="do not go together"):
        mean([1.0, 2.0], units=["a"])


def test_pairing_removes_what_two_policies_share():
    rng = np.random.default_rng(0)
    first = (rng.random(200) < 0.5).astype(float)
    second = np.where(rng.random(200) < 0.2, 0, first)
    estimate = paired_difference(first, second)
    unpaired = 2 * 1.96 * math.sqrt(2 * 0.25 / 200)
    assert 0 < estimate.low < 0.1 < estimate.high and estimate.high - estimate.low < 0.5 * unpaired
    assert win_rate([1, 2, 3, 4], [0, 2, 4, 0]).value == 0.625
    with pytest.raises(ValueError, match="from -1 to 1"):
        paired_difference([2.0], [0.0])


@pytest.mark.parametrize("won, lost", [(0.02, 0.02), (0.03, 0.0), (0.2, 0.1)])
def test_paired_differences_cover_where_almost_all_items_are_alike(won, lost):
    def draw(rng):
        return rng.choice([1, -1, 0], 100, p=[won, lost, 1 - won - lost])

    assert coverage(lambda d: paired_difference(d > 0, d < 0), won - lost, draw, 1000, 0) > 0.94


@pytest.mark.parametrize("lost", [0.3, 0.1, 0.03])
def test_the_share_of_a_loss_that_was_won_back_is_fiellers(lost):
    """Also where the loss is hardly there: then no interval, instead of one that says too much."""
    def draw(rng):
        tax = rng.random(150) < lost
        other = rng.choice([1, -1, 0], 150, p=[0.02, 0.02, 0.96])
        return np.where(rng.random(150) < 0.5, tax, 0) + other, tax * 1.0

    assert coverage(lambda drawn: ratio(*drawn), 0.5, draw, 600, 0) > 0.93


def test_fiellers_interval_ends_where_the_ratio_would_be_rejected():
    top, bottom = np.random.default_rng(2).normal(1, 1, (2, 400))
    _, *ends = ratio(top, bottom)
    for end in ends:
        found = scipy.stats.ttest_1samp(top - end * bottom, 0).statistic
        assert abs(found) == pytest.approx(scipy.stats.t.ppf(0.975, 399), rel=1e-9)
    assert ratio(top, bottom - bottom.mean() + 0.05)[1:] == (-math.inf, math.inf)  # the denominator may well be 0
    assert math.isnan(ratio([1.0, 2.0], [0.0, 0.0]).value)


@pytest.mark.parametrize("successes, trials", [(15, 148), (0, 10), (10, 10), (1, 3)])
def test_wilson_is_scipys(successes, trials):
    expected = scipy.stats.binomtest(successes, trials).proportion_ci(0.95, "wilson")
    assert wilson(successes, trials)[1:] == pytest.approx(expected, abs=1e-12)


def test_wilson_refuses_what_is_no_share():
    for wrong in ((1, 0), (-1, 5), (6, 5)):
        with pytest.raises(ValueError, match="not a share"):
            wilson(*wrong)


@pytest.mark.parametrize("runs", [2, 3, 5])
def test_few_seeds_cover_the_mean(runs):
    share = coverage(mean_over_seeds, 2.0, lambda rng: rng.normal(2, 3, size=runs), 2000, runs)
    assert share == pytest.approx(0.95, abs=0.02)


def test_one_seed_says_nothing_about_the_spread():
    assert mean_over_seeds([0.4]) == (0.4, -math.inf, math.inf)


@given(st.lists(st.tuples(st.floats(0.01, 0.99), st.booleans()), min_size=1, max_size=40),
       st.integers(1, 12))
def test_the_reliability_table_partitions_the_predictions(predictions, bins):
    probabilities, outcomes = np.array(predictions, float).T
    table = calibration.reliability(probabilities, outcomes, bins)
    assert sum(row.count for row in table) == len(predictions)
    assert all(row.low - 1e-12 <= row.probability <= row.high + 1e-12 for row in table)
    total = sum(row.count * row.frequency for row in table)
    assert total == pytest.approx(outcomes.sum())


def test_a_calibrated_sampler_has_no_ece_and_an_overconfident_one_its_closed_form():
    """Claims sigmoid(3 z) where the truth is sigmoid(z), one z for each bin."""
    rng = np.random.default_rng(0)
    truth = np.array([0.35, 0.45, 0.6, 0.7])
    logits = np.log(truth / (1 - truth))
    claims = 1 / (1 + np.exp(-3 * logits))
    which = rng.integers(4, size=100_000)
    outcomes = rng.random(len(which)) < truth[which]
    assert calibration.expected_calibration_error(truth[which], outcomes) < 0.005
    expected = np.abs(claims - truth).mean()
    measured = calibration.expected_calibration_error(claims[which], outcomes)
    assert measured == pytest.approx(expected, abs=0.005) and expected > 0.1
    entropy = -(truth * np.log(truth) + (1 - truth) * np.log(1 - truth)).mean()
    assert calibration.log_loss(truth[which], outcomes) == pytest.approx(entropy, abs=0.005)


def test_ece_of_a_continuous_calibrated_sampler_is_within_its_sampling_error():
    rng = np.random.default_rng(1)
    probabilities = rng.random((30, 2000))
    outcomes = rng.random((30, 2000)) < probabilities
    errors = map(calibration.expected_calibration_error, probabilities, outcomes)
    assert 0 < np.mean(list(errors)) < 0.4 * math.sqrt(10 / 2000)


def test_margins_are_read_from_the_favoured_side():
    probabilities, outcomes = calibration.from_margins([2.0, -2.0, 0.0, -50.0])
    confident = 1 / (1 + math.exp(-2))
    assert probabilities.tolist()[:3] == pytest.approx([confident, confident, 0.5])
    assert outcomes.tolist() == [1, 0, 0.5, 0]
    # The Bradley-Terry loss, -log sigmoid(margin), whatever side it is read from.
    expected = np.log1p(np.exp(-np.array([2.0, -2.0, 0.0]))).mean()
    assert calibration.log_loss(probabilities[:3], outcomes[:3]) == pytest.approx(expected)
    assert math.isfinite(calibration.log_loss(probabilities, outcomes))


def test_certainties_cost_nothing_when_right_and_everything_when_wrong():
    assert calibration.log_loss([1.0, 0.0], [1, 0]) == 0
    assert calibration.log_loss([1.0, 0.5], [0, 0]) == math.inf


def test_accuracy_by_bins_keeps_the_ends_and_drops_empty_bins():
    values = [-1.0, 0.0, 0.5, 1.0, 3.0, 9.0]
    rows = calibration.accuracy_by(values, [1, 1, 0, 1, 0.5, 1], edges=[0, 1, 2, 2.5, 3])
    assert [(row.low, row.high, row.count) for row in rows] == [(0, 1, 2), (1, 2, 1), (2.5, 3, 1)]
    assert [row.accuracy.value for row in rows] == [0.5, 1.0, 0.5]


def test_wrong_probabilities_are_refused():
    with pytest.raises(ValueError, match="outside"):
        calibration.log_loss([1.2], [1])
    with pytest.raises(ValueError, match="as many outcomes"):
        calibration.reliability([0.5, 0.5], [1])
