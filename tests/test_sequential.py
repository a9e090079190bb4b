"""Looks: the bounds that books print, and how often the intervals of all looks miss the truth, by simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from rlhf_jax.statistics import sequential

MANY = (1000, 2000, 3000, 4000)  # so many seeds that the variance is as good as known


def normal_bounds(levels):
    return [float(stats.norm.isf(level / 2)) for level in levels]


def test_with_many_seeds_bounds_are_those_of_books():
    """Jennison and Turnbull 2000, Tables 2.1 and 2.3, and Lan and DeMets' of four looks (ldbounds, gsDesign)."""
    pocock, last = 2.361, 2.024
    assert sequential.error(MANY, [2 * stats.norm.sf(pocock)] * 4) == pytest.approx(0.05, abs=5e-4)
    bounds = [last * math.sqrt(4 / look) for look in (1, 2, 3, 4)]
    assert sequential.error(MANY, [2 * stats.norm.sf(bound) for bound in bounds]) == pytest.approx(0.05, abs=5e-4)
    assert normal_bounds(sequential.levels(MANY)) == pytest.approx([4.333, 2.963, 2.359, 2.014], abs=6e-3)
    assert normal_bounds(sequential.levels(MANY, "pocock")) == pytest.approx([2.368, 2.368, 2.358, 2.350], abs=8e-3)


def test_one_look_is_a_t_test():
    for spending in sequential.SPENDING:
        assert sequential.levels((7,), spending) == pytest.approx((0.05,))
        assert sequential.levels((7,), spending, 0.01) == pytest.approx((0.01,))


@pytest.mark.parametrize("spending", sequential.SPENDING)
@pytest.mark.parametrize("looks", [(3, 5, 8, 12), (3, 4, 5), (4, 6)])
@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_the_intervals_of_all_looks_contain_the_truth(looks, spending, alpha):
    """The levels of normal numbers with a known variance would miss it in 5.2 to 6.1 % of cases."""
    rng, times = np.random.default_rng(looks[1]), 150_000
    numbers = rng.normal(size=(times, looks[-1]))
    missed = np.zeros(times, bool)
    for seeds, level in zip(looks, sequential.levels(looks, spending, alpha)):
        among = numbers[:, :seeds]
        half = stats.t.isf(level / 2, seeds - 1) * among.std(1, ddof=1) / math.sqrt(seeds)
        missed |= np.abs(among.mean(1)) > half
    assert missed.mean() == pytest.approx(alpha, abs=4 * math.sqrt(alpha / times))


def test_how_many_seeds_find_a_difference():
    for difference, seeds in ((0.5, 34), (0.8, 15), (1.0, 10)):  # as power tables of the t test print
        assert sequential.seeds_to_find(difference, 1.0) == seeds == sequential.seeds_to_find(-3 * difference, 3.0)
    assert sequential.seeds_to_find(1.0, 0.001) == 2 and sequential.seeds_to_find(0.0, 1.0) is None
    rng = np.random.default_rng(0)
    for difference in (0.7, 2.0):
        seeds = sequential.seeds_to_find(difference, 1.0)
        found = []
        for count in (seeds, seeds - 1):
            numbers = rng.normal(difference, 1.0, (40_000, count))
            found.append((stats.ttest_1samp(numbers, 0, axis=1, alternative="greater").pvalue < 0.025).mean())
        assert found[0] > 0.8 - 0.008 and found[1] < 0.8 + 0.008


@pytest.mark.parametrize("spending, expected", [("obrien_fleming", 0.0508), ("pocock", 0.0531)])
def test_a_claim_whose_first_seed_chooses_errs_as_docs_say(spending, expected):
    """It has one seed less at each look, and the levels of the design."""
    design, has = (3, 5, 8, 12), (2, 4, 7, 11)
    given = sequential.levels(design, spending)
    assert sequential.error(has, given) == pytest.approx(expected, abs=2e-4)
    rng, times = np.random.default_rng(0), 60_000
    numbers, wrong = rng.normal(size=(times, 11)), np.zeros(times, bool)
    for seeds, level in zip(has, given):
        wrong |= stats.ttest_1samp(numbers[:, :seeds], 0, axis=1).pvalue < level
    assert wrong.mean() == pytest.approx(expected, abs=3 * math.sqrt(expected / times))
