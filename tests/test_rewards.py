"""Reward models on files of preferences, against numbers worked out by hand and an optimizer of SciPy."""

import numpy as np
import pytest
import scipy.optimize

from rlhf_jax.evaluate.rewards import length, rewardbench


def test_the_best_of_four_counts_its_part_where_several_share_the_highest_score():
    assert rewardbench.best_of([3, 1, 2, 0]) == 1
    assert rewardbench.best_of([3, 3, 2, 3]) == pytest.approx(1 / 3)
    assert rewardbench.best_of([2, 3, 2, 1]) == 0
    assert rewardbench.best_of([2, 3, 2, 1], chosen=1) == 1


def test_ties_weigh_accuracy_and_margins_as_rewardbench_2():
    references = {"a": ([5.0], [1.0]), "b": ([1.0], [2.0]), "c": ([4.0], [3.0])}
    tied = {
        "a": ([4.0, 3.0], [0.0]),  # gap 3 above spread 1; the smaller gap of both rows is 3
        "b": ([4.0, 2.0], [1.0]),  # gap 1 below spread 2; the reference is wrong by 1
        "c": ([6.0, 4.0], [1.0]),  # gap 3 above spread 2; the reference's gap of 1 is below it
    }
    found = rewardbench.ties(references, tied)
    margin = np.mean(np.tanh([3 / 1 - 1, -1 / 2 - 1, 1 / 2 - 1]))
    assert found[:5] == pytest.approx((2 / 3, 1, 2 / 3, 1 / 3, margin))
    assert found.score == pytest.approx(0.3 * 2 / 3 + 0.3 + 0.2 * 2 / 3 + 0.2 / 3 + 0.01 * margin)


def test_equal_correct_answers_have_the_full_margin_and_no_gap_counts_nothing():
    assert rewardbench.ties({1: ([2.0], [1.0])}, {1: ([2.0, 2.0], [1.0])}).margin == 1
    assert rewardbench.ties({1: ([2.0], [2.0])}, {1: ([2.0, 2.0], [2.0])}).margin == 0
    with pytest.raises(ValueError, match="no question"):
        rewardbench.ties({1: ([2.0], [1.0])}, {2: ([2.0], [1.0])})


def test_the_length_probe_counts_pairs_by_which_completion_is_longer():
    found = length.probe([1.0, -1.0, 1.0, 0.0, 2.0], [30, 20, 10, 40, 10], [10, 10, 30, 20, 10])
    assert found.longer_is_better.value == pytest.approx(3 / 4)
    assert found.longer_scores_higher.value == pytest.approx((1 + 0 + 0 + 0.5) / 4)
    assert found.accuracy_longer_better.value == pytest.approx(0.5)
    assert found.accuracy_shorter_better.value == 1
    assert found.accuracy_matched.value == 1 and found.matched_pairs == 1


def test_the_length_probe_has_intervals_over_prompts():
    rng = np.random.default_rng(1)
    columns = rng.normal(size=40), rng.integers(1, 30, 40), rng.integers(1, 30, 40)
    once = length.probe(*columns, units=range(40))
    twice = length.probe(*(np.repeat(column, 2) for column in columns), units=np.repeat(range(40), 2))
    for name in ("longer_is_better", "longer_scores_higher", "accuracy_longer_better", "accuracy_shorter_better"):
        assert getattr(twice, name) == pytest.approx(getattr(once, name)), name


def test_the_regression_agrees_with_an_optimizer_and_tells_length_from_quality():
    random = np.random.default_rng(0)
    longer = random.integers(-20, 21, 400)
    margins = 0.3 * longer + random.normal(size=400)  # a reward model that reads length
    sign = np.where(random.random(400) < 1 / (1 + np.exp(-0.2 * longer)), 1, -1)  # people who read length too
    margins, longer = margins * sign, longer * sign
    x = np.stack([margins, longer], axis=1)
    x = x / np.sqrt((x**2).mean(axis=0))
    best = scipy.optimize.minimize(lambda w: np.logaddexp(0, -x @ w).sum() + (w**2).sum() / 200, np.zeros(2)).x
    found = length.probe(margins, 100 + longer, np.full(400, 100))
    np.testing.assert_allclose([found.margin_weight, found.length_weight], best, atol=1e-3)
    assert found.length_weight > 1 > abs(found.margin_weight)


def test_perfect_scores_have_finite_weights_and_kinds_without_pairs_are_none():
    found = length.probe([5.0, 5.0], [10, 10], [10, 10])
    assert np.isfinite(found.margin_weight) and found.length_weight == 0
    assert found.longer_is_better is None and found.accuracy_shorter_better is None
