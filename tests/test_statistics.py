"""Intervals cover what they say; calibration measures equal their closed forms."""

import math

import numpy as np
import pytest
import scipy.stats
from coverage_of_shares import Cell, measure, now
from hypothesis import given
from hypothesis import strategies as st

from rlhf_jax.statistics import (
    Estimate,
    calibration,
    difference_of_shares,
    mean,
    mean_over_seeds,
    paired_difference,
    ratio,
    share,
    win_rate,
)


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
    assert mean_over_seeds(values, 0.5)[1:] == pytest.approx(
        scipy.stats.ttest_1samp(values, 0).confidence_interval(0.5)
    )


@pytest.mark.parametrize("units", [10, 64, 500])
@pytest.mark.parametrize("seed", range(2))
def test_an_interval_is_as_wide_as_the_bootstrap_over_units_says(units, seed):
    """Of rows of unequal number and weight, where units differ."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 6, units)
    unit = np.repeat(np.arange(units), sizes)
    values, weights = rng.normal(size=units)[unit] + rng.normal(size=len(unit)), rng.uniform(0.5, 2, len(unit))
    sums = [np.bincount(unit, x) for x in (weights * values, weights)]
    result = scipy.stats.bootstrap(
        sums,
        lambda a, b, axis: a.sum(axis) / b.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=2000,
        method="basic",
        rng=rng,
    )
    found = mean(values, weights, unit)
    standard_error = (found.high - found.value) / scipy.stats.t.ppf(0.975, units - 1)
    assert found.value == pytest.approx(np.average(values, weights=weights), rel=1e-12)
    assert standard_error == pytest.approx(result.standard_error, rel=0.2 if units == 10 else 0.1)


def test_means_cover_also_where_values_are_skewed():
    def draw(rng):
        return rng.exponential(size=64)

    assert coverage(mean, 1, draw, 1500, 0) > 0.93


def exact_coverage(interval, truth, trials):
    """Of an interval of k successes: the sum over all outcomes of a binomial."""
    covered = [low <= truth <= high for _, low, high in (interval(np.arange(trials) < k) for k in range(trials + 1))]
    return scipy.stats.binom.pmf(np.arange(trials + 1), trials, truth) @ covered


@pytest.mark.parametrize("truth", [0.5, 0.9, 0.97])
def test_win_rates_cover_the_truth_exactly_counted(truth):
    """The percentile bootstrap of 64 prompts covers 83 % at 0.97."""
    assert 0.94 < exact_coverage(lambda won: win_rate(won, np.full(64, 0.5)), truth, 64) < 0.98


@pytest.mark.parametrize(
    "cell, least, widest",
    [
        (Cell(0.5, 40, "unequal", 0.1), 0.94, 1.25),
        (Cell(0.65, 40, "unequal", 0.3), 0.94, 1.25),
        (Cell(0.9, 40, "unequal", 0.6), 0.94, 1.3),
        (Cell(0.97, 40, "unequal", 0.6), 0.94, 1.45),
        (Cell(0.97, 64, "equal", 0.3, "logit-normal"), 0.94, 1.65),
        (Cell(0.97, 64, "equal", 0.6, "logit-normal"), 0.94, 1.4),
    ],
    ids=str,
)
def test_accuracy_covers_where_pairs_of_a_prompt_are_alike(cell, least, widest):
    """Wilson's interval with the variance that prompts show, taken as known, holds the last three in 80 to 86 %."""
    found = measure(cell, {"now": now, "oracle": cell.oracle}, 1500)
    assert found["now"][0] > least and found["now"][1] < widest * found["oracle"][1]


def test_accuracy_over_pairs_as_if_they_were_independent_would_not_cover():
    rng, cell, held = np.random.default_rng(0), Cell(0.65, 40, "unequal", 0.3), 0
    for _ in range(300):
        right, pairs = cell.draw(rng)
        _, low, high = share(np.repeat([1, 0], np.array([right.sum(), (pairs - right).sum()], int)))
        held += low <= cell.share <= high
    assert held / 300 < 0.85


@pytest.mark.parametrize(
    "scores, weights", [((0, 0.25, 0.5, 1), (0.3, 0.3, 0.2, 0.2)), ((1, 0.4, 0.16), (0.97, 0.025, 0.005))]
)
def test_scores_between_0_and_1_cover_as_narrowly_as_their_spread_allows(scores, weights):
    """Graded scores, as gold's parts are: where most differ by Student's t, where few do by more."""
    rng, truth = np.random.default_rng(0), np.dot(scores, weights)
    drawn = rng.choice(scores, (1000, 100), p=weights)
    _, low, high = np.array([share(row) for row in drawn]).T
    assert np.mean((low <= truth) & (truth <= high)) > 0.94
    if len(scores) == 4:
        students = [mean(row).high - mean(row).low for row in drawn]
        assert np.mean(high - low) == pytest.approx(np.mean(students), rel=0.03)


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
    assert share([0.99] + [1.0] * 49).low < 0.94  # one that is hardly less makes nothing surer
    with pytest.raises(ValueError, match="from 0 to 1"):
        share([0.5, 1.5])


def test_units_and_weights_are_of_rows():
    estimate = mean([1.0, 0.0, np.nan], [3, 1, 0])
    assert estimate.value == 0.75
    assert estimate == mean([1.0, 0.0], [3, 1])
    assert mean([1.0, 3.0], units=["a", "a"]) == (2, -math.inf, math.inf)
    with pytest.raises(ValueError, match="at least one"):
        mean([1.0], [0])
    with pytest.raises(ValueError, match="do not go together"):
        mean([1.0, 2.0], units=["a"])


def test_units_that_do_not_differ_do_not_show_how_much_units_differ():
    for values, units in (([0.1] * 9, None), ([0.0, 0.0], None), ([1.0, 3.0, 3.0, 1.0], ["a", "a", "b", "b"])):
        assert mean(values, units=units)[1:] == (-math.inf, math.inf)
    assert mean([2.0] * 9, range(9))[0] == 2 and mean([0.1] * 9)[0] == pytest.approx(0.1)
    assert mean_over_seeds([0.7 - 0.1] * 3)[1:] == (-math.inf, math.inf)
    lost = np.random.default_rng(0).uniform(0.2, 0.9, 40)
    assert ratio(0.7 * lost, lost)[1:] == (-math.inf, math.inf)
    assert mean([0.0] * 4).to_json() == {"value": 0.0, "low": None, "high": None}
    assert Estimate(1.0, 0.5, 1.5).to_json() == {"value": 1.0, "low": 0.5, "high": 1.5}


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


@pytest.mark.parametrize("same_prompts", [True, False])
@pytest.mark.parametrize("first, second", [(0.68, 0.65), (0.97, 0.9)])
def test_the_difference_of_two_accuracies_covers_and_knows_the_prompts_they_share(first, second, same_prompts):
    """Two groups of labelers judge the pairs of 40 prompts, and agree on whether a prompt is hard."""
    rng, held, widths = np.random.default_rng(0), 0, {"paired": [], "unpaired": []}
    prompts = np.repeat(np.arange(40), 10)
    others = prompts if same_prompts else prompts + 40
    for _ in range(600):
        hard = rng.random(40) < 0.3
        for_first = rng.random(400) < np.where(hard, 1 - (1 - first) * 2, 1 - (1 - first) * 4 / 7)[prompts]
        hard = hard if same_prompts else rng.random(40) < 0.3
        for_second = rng.random(400) < np.where(hard, 1 - (1 - second) * 2, 1 - (1 - second) * 4 / 7)[prompts]
        value, low, high = difference_of_shares(for_first, for_second, prompts, others)
        assert value == pytest.approx(for_first.mean() - for_second.mean())
        held += low <= first - second <= high
        if len(widths["paired"]) < 100:
            widths["paired"].append(high - low)
            _, low, high = difference_of_shares(for_first, for_second, prompts, prompts + 40)
            widths["unpaired"].append(high - low)
    assert held / 600 > 0.94
    narrower = np.mean(widths["paired"]) / np.mean(widths["unpaired"])
    assert narrower < 0.95 if same_prompts else narrower == 1


def test_the_difference_of_two_accuracies_by_newcombe():
    """His method 10 for no prompt in common: the roots of the squared distances to the ends of the two intervals."""
    first, second = np.arange(30) < 24, np.arange(50) < 20
    value, low, high = difference_of_shares(first, second, range(30), range(30, 80))
    a, b = share(first), share(second)
    assert low == pytest.approx(value - math.hypot(a.value - a.low, b.high - b.value))
    assert high == pytest.approx(value + math.hypot(a.high - a.value, b.value - b.low))
    half = np.arange(30) < 15
    alike = difference_of_shares(half, half, range(30), range(30))  # in every unit: not of no width
    assert alike.value == 0 and -0.1 < alike.low < -0.05 < 0.05 < alike.high < 0.1


@pytest.mark.parametrize("runs", [2, 3, 5])
def test_few_seeds_cover_the_mean(runs):
    share = coverage(mean_over_seeds, 2.0, lambda rng: rng.normal(2, 3, size=runs), 2000, runs)
    assert share == pytest.approx(0.95, abs=0.02)


def test_one_seed_says_nothing_about_the_spread():
    assert mean_over_seeds([0.4]) == (0.4, -math.inf, math.inf)


@given(st.lists(st.tuples(st.floats(0.01, 0.99), st.booleans()), min_size=1, max_size=40), st.integers(1, 12))
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
