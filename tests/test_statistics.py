"""Intervals cover what they say; calibration measures equal their closed forms."""

import math
import statistics

from hypothesis import given, strategies as st
import numpy as np
import pytest

from rlhf_jax.evaluate import calibration
from rlhf_jax.evaluate.statistics import (
    bootstrap, mean_over_seeds, paired_difference, student_t_quantile, wilson, win_rate)


def coverage(interval, truth, draw, repeats, seed):
    """Share of repeats whose interval holds the truth."""
    rng = np.random.default_rng(seed)
    estimates = [interval(draw(rng)) for _ in range(repeats)]
    return np.mean([estimate.low <= truth <= estimate.high for estimate in estimates])


@pytest.mark.parametrize("seed", range(3))
def test_bootstrap_covers_the_mean(seed):
    share = coverage(
        lambda x: bootstrap(x, resamples=400), 1, lambda rng: rng.exponential(size=100), 300, seed)
    assert 0.88 < share < 0.985


def test_bootstrap_over_prompts_covers_where_pairs_alone_would_not():
    """Ten pairs of a prompt share its difficulty: the interval must widen for it."""
    def draw(rng):
        difficulty = rng.uniform(0.3, 1.0, size=(60, 1))
        return (rng.random((60, 10)) < difficulty).astype(float)

    def by_prompt(correct):
        return bootstrap(correct.mean(1), np.full(60, 10), resamples=300)

    assert coverage(by_prompt, 0.65, draw, 200, 0) > 0.89
    assert coverage(lambda correct: wilson(correct.sum(), correct.size), 0.65, draw, 200, 0) < 0.87


@pytest.mark.parametrize('units', [1, 7, 256, 70000])  # also more than are resampled at once
def test_bootstrap_is_a_plain_loop_over_resamples(units):
    rng = np.random.default_rng(units)
    values, weights = rng.normal(size=units), rng.random(units) + 0.1
    rng, means = np.random.default_rng(5), []
    for _ in range(12):
        chosen = rng.integers(units, size=units)
        means.append((values * weights)[chosen].sum() / weights[chosen].sum())
    found = bootstrap(values, weights, seed=5, resamples=12)[1:]
    assert found == pytest.approx(np.quantile(means, [0.025, 0.975]), rel=1e-12)


def test_bootstrap_weighs_units_and_repeats_itself():
    estimate = bootstrap([1.0, 0.0, 5.0], [3, 1, 0], seed=4)
    assert estimate.value == 0.75
    assert estimate == bootstrap([1.0, 0.0], [3, 1], seed=4)
    many = np.random.default_rng(0).normal(size=50)
    assert bootstrap(many, seed=1) == bootstrap(many, seed=1) != bootstrap(many, seed=2)
    assert bootstrap([2.0] * 9, range(9)) == (2, 2, 2)
    with pytest.raises(ValueError, match="at least one"):
        bootstrap([1.0], [0])


def test_bootstrap_is_as_wide_as_the_standard_error():
    values = np.random.default_rng(0).normal(size=400)
    estimate = bootstrap(values)
    expected = 2 * 1.96 * values.std() / 20
    assert estimate.high - estimate.low == pytest.approx(expected, rel=0.1)
    narrower = bootstrap(values, confidence=0.5)
    assert narrower.high - narrower.low == pytest.approx(2 * 0.674 * values.std() / 20, rel=0.1)


def test_pairing_removes_what_two_runs_share():
    rng = np.random.default_rng(0)
    prompt = rng.normal(size=200) * 10
    first, second = prompt + 0.5 + rng.normal(size=200), prompt + rng.normal(size=200)
    estimate = paired_difference(first, second)
    assert 0 < estimate.low < 0.5 < estimate.high < 1
    assert win_rate([1, 2, 3, 4], [0, 2, 4, 0]).value == 0.625


@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_wilson_covers_the_share_exactly_counted(share):
    """Its coverage, summed over all outcomes of a binomial."""
    trials = 100
    covered = sum(
        math.comb(trials, k) * share**k * (1 - share)**(trials - k)
        for k in range(trials + 1)
        if wilson(k, trials).low <= share <= wilson(k, trials).high)
    assert 0.93 < covered < 0.985


def test_wilson_solves_its_equation_and_stays_in_range():
    estimate = wilson(15, 148)
    for end in (estimate.low, estimate.high):
        deviation = abs(15 / 148 - end) / math.sqrt(end * (1 - end) / 148)
        assert deviation == pytest.approx(statistics.NormalDist().inv_cdf(0.975))
    assert wilson(0, 10)[:2] == pytest.approx((0, 0), abs=1e-12) and 0.2 < wilson(0, 10).high < 0.35
    assert wilson(10, 10).high == pytest.approx(1)
    for wrong in ((1, 0), (-1, 5), (6, 5)):
        with pytest.raises(ValueError, match="not a share"):
            wilson(*wrong)


@pytest.mark.parametrize("freedom, quantile", [
    (1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (9, 2.26216), (30, 2.04227)])
def test_student_t_quantiles_are_the_tables(freedom, quantile):
    assert student_t_quantile(0.975, freedom) == pytest.approx(quantile, rel=1e-5)


def test_student_t_tends_to_the_normal_and_is_zero_in_the_middle():
    assert student_t_quantile(0.95, 4000) == pytest.approx(1.644854, abs=1e-3)
    assert student_t_quantile(0.5, 7) == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="no quantile"):
        student_t_quantile(0.3, 2)


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
