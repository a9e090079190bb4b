"""Verdicts: numbers that can be worked out by hand, and how often a rule is wrong where nothing is there."""

import json
import math
from types import SimpleNamespace

import fake_sweep
import numpy as np
import pytest
from scipy import stats

from rlhf_jax.evaluate import best_of_n
from rlhf_jax.report import spec, verdicts
from rlhf_jax.report.sweep_report import Sweep
from rlhf_jax.report.verdicts import curves, looks
from rlhf_jax.report.verdicts.contrast import Contrast, seeds_to_decide
from rlhf_jax.runtime.errors import InputError

AXIS = "ppo_ptx.ptx_coef"
T975 = {1: 12.706205, 2: 4.302653, 3: 3.182446, 4: 2.776445}  # printed tables of Student's t


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A function: levels and number of seeds -> a sweep whose numbers the test gives."""
    made = {}

    def sweep(levels, seeds):
        if (levels, seeds) not in made:
            arms = fake_sweep.product(seed=tuple(range(seeds)), ppo_ptx__ptx_coef=levels)
            path = tmp_path_factory.mktemp("empty") / "sweep"
            made[levels, seeds] = Sweep(fake_sweep.write(path, arms, lambda *_: {}, fate=lambda _: "missing"))
        return made[levels, seeds]

    return sweep


def give(sweep, values, missing=()):
    """Makes values, f[seeds, levels], what the sweep has measured, but for the (seed, level) in `missing`."""
    levels = sweep.levels(sweep.settings, AXIS)

    def value(arm, stage, quantity):
        place = arm.seed, levels.index(arm.overrides[AXIS])
        return None if place in missing else float(values[place])

    sweep.value = value
    return sweep


def interval(values):
    """The 95 % interval of a mean, from the definition."""
    n = len(values)
    mean = sum(values) / n
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    return mean - T975[n - 1] * spread / math.sqrt(n), mean + T975[n - 1] * spread / math.sqrt(n)


TREND = spec.Trend(y="score", stage="ppo_ptx", axis=AXIS, direction="rises")
PEAK = spec.Peak(y="score", stage="ppo_ptx", axis=AXIS)


def at(*levels, stage="ppo_ptx"):
    return spec.Pick(stage, {AXIS: levels})


def test_trend_is_the_mean_slope_over_ranks(empty):
    sweep = empty((0.0, 1.0, 100.0), 3)
    values = np.array([[1.0, 2.0, 3.0], [5.0, 5.0, 6.0], [0.0, 4.0, 3.0]])
    found = verdicts.judge(give(sweep, values), TREND)
    slopes = [1.0, 0.5, 1.5]  # half of last - first, at three equal steps
    (test,) = found.tests
    assert list(test.by_seed.values()) == pytest.approx(slopes)
    assert (test.estimate.low, test.estimate.high) == pytest.approx(interval(slopes), rel=1e-5)
    assert test.t == pytest.approx(1.0 / (0.5 / math.sqrt(3)))
    assert found.verdict == "undecided" and "1 (-0.242 to 2.24), 3 seeds" in found.sentence
    falls = verdicts.judge(sweep, spec.Trend("score", "ppo_ptx", AXIS, "falls"))
    assert list(falls.tests[0].by_seed.values()) == pytest.approx([-1.0, -0.5, -1.5])


def test_the_side_of_the_interval_decides(empty):
    sweep = empty((0.0, 1.0), 3)
    for gains, verdict in (
        ([1, 1.1, 0.9], "holds"),
        ([-1, -1.1, -0.9], "does not hold"),
        ([1, -1, 0.5], "undecided"),
        ([1, 1, 1], "undecided"),
        ([0, 0, 0], "undecided"),
    ):
        values = np.array([[7.0 + seed, 7.0 + seed + gain] for seed, gain in enumerate(gains)])
        assert verdicts.judge(give(sweep, values), TREND).verdict == verdict, gains
    alike = verdicts.judge(sweep, TREND)  # seeds that do not differ do not show how much seeds differ
    assert "the same in all 3 seeds" in alike.sentence and math.isnan(alike.tests[0].t)
    one = verdicts.judge(give(empty((0.0, 1.0), 1), np.array([[0.0, 9.0]])), TREND)
    assert one.verdict == "undecided" and "an interval needs two" in one.sentence


def test_peak_takes_the_inner_value_that_other_seeds_choose(empty):
    sweep = empty((0.0, 1.0, 2.0, 3.0), 3)
    values = np.array([[0.0, 5.0, 1.0, 0.5], [0.0, 1.0, 4.0, 0.0], [0.2, 3.0, 2.5, 0.1]])
    found = verdicts.judge(give(sweep, values), PEAK)
    # Seed 0: the others' means are 2.0 and 3.25, so the second; seed 1: 4.0, 1.75; seed 2: 3.0, 2.5.
    assert found.tests[0].by_seed == pytest.approx({0: 1.0 - 0.0, 1: 1.0 - 0.0, 2: 3.0 - 0.2})
    assert found.tests[1].by_seed == pytest.approx({0: 1.0 - 0.5, 1: 1.0 - 0.0, 2: 3.0 - 0.1})
    assert "chosen by the other seeds" in found.sentence
    two = verdicts.judge(give(empty((0.0, 1.0), 3), np.ones((3, 2))), PEAK)
    assert two.verdict == "undecided"  # no inner value


def test_a_peak_that_is_there_is_seldom_denied_because_seeds_chose_a_wrong_value(empty):
    """The first inner value is hardly better than both ends, and seven others are worse. By the chosen values: 9 %."""
    sweep, times, rng = empty(tuple(map(float, range(10))), 8), 300, np.random.default_rng(0)
    truth = np.array([0.0, 0.01, *[-0.7] * 7, 0.0])
    found = [verdicts.judge(give(sweep, truth + rng.normal(size=(8, 10))), PEAK).verdict for _ in range(times)]
    assert found.count("does not hold") / times < 0.025 + 2 * math.sqrt(0.025 / times)


def test_every_inner_value_must_be_against_a_peak(empty):
    sweep = empty((0.0, 1.0, 2.0, 3.0), 4)
    noise = np.array(
        [[0.0, 0.01, -0.01, 0.0], [0.0, -0.01, 0.01, 0.01], [0.0, 0.0, 0.02, -0.01], [0.0, 0.02, 0.0, 0.0]]
    )
    found = verdicts.judge(give(sweep, noise + [0, 1, 2, 3]), PEAK)
    assert found.verdict == "does not hold"
    unsure = noise + [0, 1, 2, 3]
    unsure[:, 1] += [3, -4, 1, -4]  # no seed's others choose it, and it may be the best
    found = verdicts.judge(give(sweep, unsure), PEAK)
    assert found.tests[1]._replace(candidates=()).verdict(0.05, 0.025) == "does not hold"
    assert found.verdict == "undecided" and "only if each of the 2 inner values is below it" in found.sentence
    close = noise + [0, 0.0, 0.05, 0.0]
    assert verdicts.judge(give(sweep, close), PEAK, matters=0.2).verdict == "negligible"
    close[:, 1] += [0.3, -0.3, 0.2, -0.2]
    assert verdicts.judge(give(sweep, close), PEAK, matters=0.2).verdict == "undecided"


def test_the_seeds_that_would_decide_a_claim_do_so_as_often_as_is_said():
    """Of several tests all must hold, or one must be against the claim; by simulation of claims judged once."""
    rng, times = np.random.default_rng(0), 2000

    def seeds_for(*means, **fields):
        spread = np.array([-1.0, 1.0]) / math.sqrt(2)  # of standard deviation 1
        tests = [Contrast("", dict(enumerate(mean + spread)), **fields) for mean in means]
        return seeds_to_decide(tests), tests

    for means in ((0.6,), (0.6, 0.6, 0.6), (-0.8, 0.0)):
        count, _ = seeds_for(*means)
        numbers = rng.normal(size=(times, len(means), count)) + np.array(means)[:, None]
        level = 0.05 / len(means)
        holds = np.all([rates_of(numbers[:, k], 0.05)[0] for k in range(len(means))], axis=0)
        against = np.any([rates_of(numbers[:, k], level)[1] for k in range(len(means))], axis=0)
        assert 0.78 < (holds | against).mean() < 0.9, means
    alone, _ = seeds_for(-0.8)
    both, _ = seeds_for(-0.8, 0.0)
    assert alone < both < 30  # at half of the level, and not the hundreds that a mean of 0 would need
    assert seeds_for(0.6, share=0.5)[0] > seeds_for(0.6)[0]
    assert math.isinf(seeds_for(0.0)[0]) and math.isfinite(seeds_for(0.0, matters=0.5)[0])
    assert seeds_for(0.0, margin=0.5)[0] == seeds_for(0.0, matters=0.5)[0]
    equal = Contrast("", {0: 0.1 + 0.2, 1: 0.3, 2: 0.3})  # but for rounding
    assert math.isnan(seeds_to_decide([equal])) and "the same in all 3 seeds" in equal.effect()
    peak = seeds_for(-0.8)[1][0]
    assert seeds_to_decide([peak._replace(candidates=(peak.by_seed, peak.by_seed))]) > seeds_to_decide([peak])
    assert math.isinf(seeds_to_decide([peak._replace(candidates=(peak.by_seed, {0: 0.0, 1: 0.2}))]))


def rates_of(numbers, level):
    """Whether t intervals of a level, of f[N, K], lie above 0, and below it."""
    half = stats.t.isf(level / 2, numbers.shape[1] - 1) * numbers.std(1, ddof=1) / math.sqrt(numbers.shape[1])
    return numbers.mean(1) - half > 0, numbers.mean(1) + half < 0


def test_numbers_that_differ_by_rounding_alone_decide_nothing(empty):
    """In each seed, one setting is above the other by what the claim states; the floating-point differences are 1e-17."""
    sweep = empty((0.0, 1.0), 3)
    give(sweep, np.array([[0.8, 0.85], [0.85, 0.9], [0.75, 0.8]]))
    close = spec.Close(at(1.0), at(0.0), "score", margin=0.02, difference=0.05)
    found = verdicts.judge(sweep, close)
    assert len(set(found.tests[0].by_seed.values())) > 1 and found.verdict == "undecided"
    assert "the same in all 3 seeds" in found.sentence


@pytest.mark.parametrize(
    "seeds,means,times",
    [
        (3, (0,) * 7 + (-9,), 1500),  # with the seed's own choice it is 7 %
        (2, (0, 0, 0, 0, 0), 300),
        (5, (0, 0, 0, 0, -9), 400),
        (5, (0, -9, 0, -9, -9), 300),
    ],
)
def test_peak_is_rarely_found_where_none_is(empty, seeds, means, times):
    """The hardest nulls: an end is as good as the best inner value, and the other end is far below."""
    rng = np.random.default_rng(seeds)
    sweep = empty(tuple(map(float, range(len(means)))), seeds)
    found = sum(
        verdicts.judge(give(sweep, np.array(means) + rng.normal(size=(seeds, len(means)))), PEAK).verdict == "holds"
        for _ in range(times)
    )
    assert found / times < 0.03


def test_peak_is_found_where_one_is(empty):
    rng = np.random.default_rng(0)
    sweep = empty((0.0, 1.0, 2.0, 3.0, 4.0), 3)
    found = [
        verdicts.judge(give(sweep, np.array([0, 2, 3, 2, 0]) + rng.normal(0, 0.3, (3, 5))), PEAK).verdict
        for _ in range(100)
    ]
    assert found.count("holds") > 90
    upside_down = verdicts.judge(give(sweep, np.array([3, 0, 0, 0, 3]) + rng.normal(0, 0.1, (3, 5))), PEAK)
    assert upside_down.verdict == "does not hold"


def test_a_trend_of_noise_is_found_in_one_of_forty(empty):
    rng = np.random.default_rng(0)
    sweep, times = empty((0.0, 1.0, 2.0, 3.0, 4.0), 3), 1500
    found = [
        verdicts.judge(give(sweep, rng.normal(size=(3, 5)) + rng.normal(size=(3, 1))), TREND).verdict
        for _ in range(times)
    ]
    for verdict in ("holds", "does not hold"):
        assert found.count(verdict) / times == pytest.approx(0.025, abs=0.012)


def test_greater_is_paired_over_seeds(empty):
    sweep = empty((0.0, 1.0, 2.0), 3)
    values = np.array([[0.0, 1.0, 2.0], [10.0, 11.2, 12.0], [20.0, 20.8, 22.0]])
    found = verdicts.judge(give(sweep, values), spec.Greater(at(1.0), at(0.0), "score"))
    assert found.verdict == "holds" and list(found.tests[0].by_seed.values()) == pytest.approx([1.0, 1.2, 0.8])
    assert (found.tests[0].estimate.low, found.tests[0].estimate.high) == pytest.approx(
        interval([1, 1.2, 0.8]), rel=1e-5
    )
    both = verdicts.judge(sweep, spec.Greater(at(1.0, 2.0), at(0.0), "score", by=2.0))  # 1.5, 1.6, 1.4
    assert both.verdict == "does not hold" and "must be above 2" in both.sentence
    assert verdicts.judge(sweep, spec.Greater(at(2.0), at(0.0), "score", factor=2.0)).verdict == "undecided"
    assert verdicts.judge(sweep, spec.Greater(at(1.0), -30.0, "score")).verdict == "holds"
    other = spec.Greater(spec.Pick("ppo_ptx", {AXIS: 1.0}, y="kl"), at(0.0), "score")
    assert "kl" in verdicts.judge(sweep, other).sentence.lower()


def test_two_gains_are_compared_within_each_seed(empty):
    sweep = empty((0.0, 1.0, 2.0, 3.0), 3)
    values = np.array([[0.0, 1.0, 5.0, 9.0], [2.0, 2.5, 1.0, 4.0], [7.0, 8.0, 3.0, 6.5]])
    gain, other = spec.Difference(at(3.0), at(2.0)), spec.Difference(at(1.0), at(0.0))
    found = verdicts.judge(give(sweep, values), spec.Greater(gain, other, "score"))
    assert list(found.tests[0].by_seed.values()) == pytest.approx([4.0 - 1.0, 3.0 - 0.5, 3.5 - 1.0])
    assert found.verdict == "holds"
    said = "rise of reward score from PPO-ptx (ptx coef = 2) to PPO-ptx (ptx coef = 3) over that from PPO-ptx (ptx coef = 0)"
    assert found.sentence.startswith(said)
    close = verdicts.judge(sweep, spec.Close(gain, 3.0, "score", 0.9))
    assert list(close.tests[0].by_seed.values()) == pytest.approx([1.0, 0.0, 0.5]) and "undecided" == close.verdict
    mixed = verdicts.judge(sweep, spec.Greater(gain, at(1.0), "score"))
    assert list(mixed.tests[0].by_seed.values()) == pytest.approx([3.0, 0.5, -4.5])
    assert "over reward score of PPO-ptx (ptx coef = 1)" in mixed.sentence
    one = verdicts.judge(give(sweep, values, missing={(1, 2)}), spec.Greater(gain, other, "score"))
    assert list(one.tests[0].by_seed) == [0, 2]
    with pytest.raises(InputError, match="one quantity, not kl and None"):
        spec.Difference(spec.Pick("ppo", y="kl"), spec.Pick("sft"))


def test_close_needs_the_whole_interval_inside(empty):
    sweep = give(empty((0.0, 1.0), 3), np.array([[0.0, 0.1], [5.0, 5.0], [9.0, 8.9]]))
    low, high = interval([0.1, 0.0, -0.1])
    for margin, difference, verdict in (
        (1.01 * high, 0.0, "holds"),
        (0.99 * high, 0.0, "undecided"),
        (0.1, 2.0, "does not hold"),
        (3.0, 2.0, "holds"),
    ):
        rule = spec.Close(at(1.0), at(0.0), "score", margin, difference)
        assert verdicts.judge(sweep, rule).verdict == verdict
    assert verdicts.judge(sweep, spec.Close(at(0.0), 4.0, "score", 100.0)).verdict == "holds"
    straddles = spec.Close(at(1.0), at(0.0), "score", 1.1 * high, difference=0.2 * high)  # mean inside, an end outside
    assert verdicts.judge(sweep, straddles).verdict == "undecided"


def test_gap_of_two_curves_is_over_the_range_of_both():
    above = [(x, 2 * x + 0.3) for x in (3.0, 0.0, 1.0, 2.0)]  # in any order
    below = [(x, 2 * x) for x in (1.5, 5.0)]
    assert curves.mean_gap(above, below) == pytest.approx(0.3)
    assert curves.mean_gap([(0, 0), (1, 1)], [(0, 1), (1, 0)]) == pytest.approx(0.0)
    assert curves.mean_gap([(0, 0), (1, 0), (2, 2)], [(0, 0), (1.5, 0), (2, 0)]) == pytest.approx(0.5)  # a triangle
    for other in ([(4, 1), (5, 1)], [(3, 1), (5, 1)], [(-1, 1), (5, 1)], [(1, 1)], []):
        assert curves.mean_gap(above, other) is None
    bent = [(x, x**0.5) for x in np.linspace(0, 4, 41)]
    for sparse in ([(1, 1), (4, 2)], [(1, 1), (9, 3)], [(0, 0), (1, 1), (4, 2)]):  # of the same curve
        assert curves.mean_gap(bent, sparse) == pytest.approx(0) == curves.mean_gap(sparse, bent)


def test_points_of_one_x_do_not_favour_the_curve_that_has_more_of_them():
    """Eight of twenty points at 0, against one of twenty; interpolation takes the highest of them."""
    rng = np.random.default_rng(0)

    def points(at_0):
        x = np.append(np.zeros(at_0), rng.uniform(0, 1, 20 - at_0))
        return list(zip(x, x + rng.normal(0, 0.1, 20)))

    gaps = [curves.mean_gap(points(8), points(1)) for _ in range(2000)]
    assert abs(np.mean(gaps)) < 3 * np.std(gaps) / math.sqrt(2000)
    assert curves.mean_gap([(0, 0), (0, 2), (1, 1)], [(0, 0), (1, 0)]) == pytest.approx(1.0)
    assert curves.mean_gap([(0, 0), (0, 2)], [(0, 0), (1, 0)]) is None


def test_curves_of_settings_are_compared_at_equal_x_or_its_root(empty):
    """Paths of two settings each; a gap that is linear in x has another mean where x is stretched."""
    sweep = empty((0.0, 1.0, 2.0, 3.0), 3)
    found = {0.0: (1.0, 2.0), 1.0: (9.0, 2.0), 2.0: (1.0, 1.0), 3.0: (4.0, 2.0)}  # level -> (kl, score)
    sweep.value = lambda arm, stage, quantity: found[arm.overrides[AXIS]][quantity == "score"]
    a, b = (spec.Path("ppo_ptx", AXIS, {AXIS: levels}) for levels in ((0.0, 1.0), (2.0, 3.0)))
    for sqrt_x, gap in ((False, 0.5), (True, 0.5)):
        rule = spec.Dominates(a, b, "kl", "score", sqrt_x=sqrt_x)
        assert verdicts.judge(sweep, rule).tests[0].by_seed == pytest.approx(dict.fromkeys(range(3), gap))
    found[2.0] = (2.25, 1.0)  # between 2.25 and 4 the line a is no longer flat
    found[1.0] = (9.0, 10.0)
    for sqrt_x in (False, True):
        place = math.sqrt if sqrt_x else float
        x = [place(level) for level in (2.25, 4.0)]
        line = [2 + 8 * (at_x - 1) / (place(9.0) - 1) for at_x in x]
        rule = spec.Dominates(a, b, "kl", "score", sqrt_x=sqrt_x)
        expected = (line[0] - 1 + line[1] - 2) / 2
        assert list(verdicts.judge(sweep, rule).tests[0].by_seed.values()) == pytest.approx([expected] * 3)


def test_a_seed_without_a_number_is_left_out_and_named(empty):
    sweep = empty((0.0, 1.0, 2.0), 4)
    values = np.outer([1.0, 1.1, 0.9, 1.0], [0.0, 1.0, 2.0]) + np.arange(4)[:, None]
    found = verdicts.judge(give(sweep, values, missing={(3, 1)}), TREND)
    assert list(found.tests[0].by_seed) == [0, 1, 2] and "without seed 3" in found.sentence
    found = verdicts.judge(sweep, spec.Greater(at(1.0, 2.0), at(0.0), "score"))  # no mean of what is left
    assert list(found.tests[0].by_seed) == [0, 1, 2]
    gone = {(seed, 2) for seed in range(4)}
    found = verdicts.judge(give(sweep, values, missing=gone), TREND)
    assert found.verdict == "holds" and "without 2, which no arm has" in found.sentence
    every = {(seed, level) for seed in range(4) for level in range(3)}
    for rule in (
        TREND,
        PEAK,
        spec.Greater(at(1.0), at(0.0), "score"),
        spec.Close(at(1.0), at(0.0), "score", 1.0),
        spec.Dominates(spec.Path("ppo_ptx", AXIS), spec.Path("ppo_ptx", AXIS), "kl", "score"),
        spec.Turns("score", "ppo_ptx", "falls"),
        spec.Law("score", "ppo_ptx", "rl", ("linear",)),
        spec.Law("gold", "ppo_ptx", "best_of_n", ("linear",), over="prompts"),
        spec.Greater(spec.Pick("ppo_ptx", tuned=AXIS), at(0.0), "score"),
    ):
        assert verdicts.judge(give(sweep, values, missing=every), rule).verdict == "undecided"


def test_all_is_as_weak_as_its_weakest(empty):
    sweep = give(empty((0.0, 1.0), 3), np.array([[0.0, 1.0], [1.0, 2.1], [2.0, 2.9]]))
    yes, no = TREND, spec.Trend("score", "ppo_ptx", AXIS, "falls")
    unknown = spec.Greater(at(1.0), at(0.0), "score", by=1.0)
    for rules, verdict in (((yes, yes), "holds"), ((yes, unknown), "undecided"), ((yes, unknown, no), "does not hold")):
        found = verdicts.judge(sweep, spec.All(rules))
        assert found.verdict == verdict and len(found.tests) == len(rules)


def test_one_of_several_is_against_a_claim_at_a_corrected_level(empty):
    sweep = empty((0.0, 1.0), 3)
    gains = np.array([-1.0, -1.3, -0.7])  # t = -5.8: against one claim (4.3), not against one of three (7.6)
    give(sweep, np.stack([np.zeros(3), gains], axis=1))
    yes = spec.Greater(at(0.0), at(1.0), "score")
    assert verdicts.judge(sweep, TREND).verdict == "does not hold"
    assert verdicts.judge(sweep, spec.All((TREND, yes, yes))).verdict == "undecided"
    give(sweep, np.stack([np.zeros(3), 2 * gains - gains.mean()], axis=1) - [[0, 6], [0, 6], [0, 6]])
    assert verdicts.judge(sweep, spec.All((TREND, yes, yes))).verdict == "does not hold"


def test_one_of_several_is_negligible_or_too_far_at_a_corrected_level():
    numbers = dict(enumerate([-0.3, 0.0, 0.3]))  # 0 +- 0.75, and +- 1.3 for one of three
    for test, word in (
        (Contrast("", numbers, matters=1.0), "negligible"),
        (Contrast("", numbers, margin=1.0), "holds"),
    ):
        assert test.verdict() == word and test.verdict(0.05, 0.05 / 3) == (
            "undecided" if word == "negligible" else word
        )
    far = Contrast("", {seed: 2 + number for seed, number in numbers.items()}, margin=1.0)
    assert far.verdict() == "does not hold" and far.verdict(0.05, 0.05 / 3) == "undecided"


def test_a_factor_and_a_number_say_where_the_border_is(empty):
    sweep = give(empty((0.0, 1.0), 3), np.array([[1.0, 2.5], [2.0, 4.7], [3.0, 6.6]]))
    double = verdicts.judge(sweep, spec.Greater(at(1.0), at(0.0), "score", factor=2.0, by=0.1))
    (test,) = double.tests
    assert test.by_seed == pytest.approx({0: 0.5, 1: 0.7, 2: 0.6}) and test.threshold == 0.1
    assert test.t == pytest.approx(0.5 / (0.1 / math.sqrt(3))) and double.verdict == "holds"
    near = verdicts.judge(sweep, spec.Greater(at(0.0), 1.0, "score", factor=2.0), matters=3.0)
    assert (near.tests[0].zero, near.tests[0].threshold, near.verdict) == (2.0, 2.0, "negligible")


def sides_of(numbers, threshold=0.0):
    """Whether t tests of f[N, K] say (holds, does not hold), bool[N] each."""
    half = T975[numbers.shape[1] - 1] * numbers.std(1, ddof=1) / math.sqrt(numbers.shape[1])
    return numbers.mean(1) - half > threshold, numbers.mean(1) + half < threshold


def rates(numbers, threshold=0.0):
    """How often."""
    return tuple(side.mean() for side in sides_of(numbers, threshold))


def test_all_of_three_nulls_is_wrong_in_one_of_forty():
    rng, times, one_look = np.random.default_rng(0), 1500, SimpleNamespace(declared=SimpleNamespace(design=None))
    found = []
    for _ in range(times):
        tests = [Contrast("", dict(enumerate(rng.normal(size=3)))) for _ in range(3)]
        found.append(looks.decided(one_look, [looks.Look(3, [tests])]))
    assert found.count("does not hold") / times < 0.025 + 3 * math.sqrt(0.025 / times) and "holds" not in found


@pytest.mark.parametrize("noise", [0.04, 0.06, 0.08])
def test_a_course_that_never_falls_seldom_turns(noise):
    """And the difference that this replaces, highest less last tenth of the same course, errs far more often."""
    times, steps = 6000, np.arange(20)
    border = 0.025 + 3 * math.sqrt(0.025 / times)
    for level in (0 * steps, 0.2 * (1 - np.exp(-steps / 4)), 0.01 * steps):
        rng = np.random.default_rng(1)
        courses = level + rng.normal(0, noise, (times, 3, 20))
        assert rates(curves.turned(courses), 0.0)[0] < border
        assert rates(curves.turned(courses), 0.05)[0] < border
        if noise == 0.08 and not level.any():
            assert rates(courses.max(-1) - courses[..., -2:].mean(-1), 0.0)[0] > 0.5


def test_a_course_that_wanders_and_never_falls_seldom_turns():
    rng, times = np.random.default_rng(0), 6000
    courses = rng.normal(size=(times, 3, 20))
    for step in range(1, 20):
        courses[..., step] = 0.7 * courses[..., step - 1] + math.sqrt(1 - 0.7**2) * courses[..., step]
    assert 100 * rates(curves.turned(courses))[0] == pytest.approx(3.1, abs=0.7)
    assert rates(curves.turned(courses + 0.1 * np.arange(20)))[0] < 0.03


def test_skewed_noise_of_three_seeds_errs_as_stated():
    found = rates(np.random.default_rng(0).exponential(size=(20_000, 3)) - 1)
    assert tuple(100 * rate for rate in found) == pytest.approx((0.7, 10.9), abs=0.6)


def test_equal_curves_are_told_apart_in_one_of_forty_whatever_their_points():
    rng, times = np.random.default_rng(0), 1000

    def points(x):
        return list(zip(x, 0.2 * np.sqrt(x) + rng.normal(0, 0.03, len(x))))

    gaps = np.array(
        [
            [
                curves.mean_gap(points(rng.uniform(0, 7, 20)), points(np.array([1.0, 5.0]) * rng.uniform(0.8, 1.2, 2)))
                for _ in range(3)
            ]
            for _ in range(times)
        ]
    )
    assert max(rates(gaps)) < 0.025 + 3 * math.sqrt(0.025 / times)


def test_a_fall_that_is_just_large_enough_is_denied_as_stated():
    rng, steps = np.random.default_rng(0), np.arange(20)
    peaked = np.interp(steps, [0, 7, 19], [0.1, 0.2, -0.1])
    fall = peaked.max() - peaked[-2:].mean()
    for seeds, noise, just in ((3, 0.06, 7.9), (5, 0.06, 12.1), (5, 0.04, 15.7)):
        found = curves.turned(peaked + rng.normal(0, noise, (6000, seeds, 20)))
        assert found.mean() < fall
        assert 100 * rates(found, fall)[1] == pytest.approx(just, abs=1.5) and rates(found, fall)[0] < 0.025
        assert rates(found, fall / 1.25)[1] < 0.02


def test_a_fall_is_found():
    rng, steps = np.random.default_rng(0), np.arange(20)
    fall = np.interp(steps, [0, 7, 19], [0.1, 0.2, -0.1])
    for noise, least in ((0.04, 0.9), (0.06, 0.75)):
        found = curves.turned(fall + rng.normal(0, noise, (4000, 3, 20)))
        assert rates(found, 0.05)[0] > least and found.mean() == pytest.approx(0.25, abs=0.03)
    exact = curves.turned(np.stack([fall, fall + 5.0]))
    assert exact == pytest.approx([(fall[6] + fall[8]) / 2 - fall[-2:].mean()] * 2)
    assert curves.turned(np.zeros((1, 20))) is None and curves.turned(np.zeros((3, 5))) is None


def test_other_seeds_choose_the_step_of_a_turn(tmp_path):
    """Two settings; the loss is there at every other step alone, and a seed's own best step does not count."""
    arms = fake_sweep.product(seed=(0, 1, 2), ppo_ptx__ptx_coef=(0.0, 2.0))

    def history(arm, stage, step):
        top = 11 if arm[AXIS] else 21
        bonus = 5.0 * (arm["seed"] == 0 and step == 5)  # would be seed 0's own choice
        return {"gold": -(1 + arm["seed"] / 10) * ((step - top) / 10) ** 2 + arm["seed"] + bonus} | (
            {"loss": abs(step - top) / 10} if step % 2 else {}
        )

    sweep = Sweep(fake_sweep.write(tmp_path / "sweep", arms, lambda *_: {"score": 1.0}, history=history))
    found = verdicts.judge(sweep, spec.Turns("gold", "ppo_ptx", "falls", by=0.5, where={AXIS: 2.0}))
    # 40 steps: of 2, 4, ..., 34 the others' highest is 10 or 12, and the first is taken; the last tenth is 37 to 40.
    assert found.tests[0].by_seed[0] == pytest.approx(-(0.2**2 + 0.0) / 2 + (2.6**2 + 2.7**2 + 2.8**2 + 2.9**2) / 4)
    assert found.verdict == "holds" and "highest step of the other seeds" in found.sentence
    both = verdicts.judge(sweep, spec.Turns("loss", "ppo_ptx", "rises", by=0.5)).tests[0].by_seed
    # 20 losses at steps 1, 3, ..., 39, the last two are 37 and 39; lowest at 11, and 21, both places of the judges.
    first, second = (2.6 + 2.8) / 2 - (0.0 + 0.4) / 2, (1.6 + 1.8) / 2 - (0.0 + 0.4) / 2
    assert both == pytest.approx(dict.fromkeys(range(3), (first + second) / 2))
    assert verdicts.judge(sweep, spec.Turns("none", "ppo_ptx", "falls")).verdict == "undecided"


def test_a_tuned_pick_is_where_the_first_seed_is_best(empty):
    sweep = empty((0.0, 1.0, 2.0), 3)
    give(sweep, np.array([[0.0, 5.0, 1.0], [0.0, 1.0, 4.0], [0.2, 3.0, 2.5]]))
    found = verdicts.judge(sweep, spec.Greater(spec.Pick("ppo_ptx", tuned=AXIS), at(0.0), "score"))
    assert found.tests[0].by_seed == pytest.approx({1: 1.0, 2: 2.8})
    assert (
        "at ptx coef = 1 (chosen by seed 0) over" in found.sentence and "without seed 0, which lacks" in found.sentence
    )
    give(sweep, np.array([[0.0, 5.0, 1.0], [0.0, 1.0, 4.0], [0.2, 3.0, 2.5]]), missing={(2, 2)})
    less = verdicts.judge(sweep, spec.Greater(spec.Pick("ppo_ptx", tuned=AXIS), at(0.0), "score"))
    assert less.tests == found.tests  # a judge needs the chosen value alone
    lowest = spec.Pick("ppo_ptx", tuned=AXIS, best="lowest")
    assert verdicts.judge(sweep, spec.Greater(lowest, -1.0, "score")).tests[0].by_seed == pytest.approx(
        {1: 0.0, 2: 0.2}
    )


def test_laws_of_runs_and_of_prompts_are_judged_from_files(tmp_path):
    arms = fake_sweep.product(seed=(0, 1, 2), ppo_ptx__ptx_coef=(0.0, 2.0))

    def history(arm, stage, step):
        d = 0.1 * step
        noise = 0.005 * math.cos(5 * step + arm["seed"])
        return {"kl": d**2, "gold": arm["seed"] + d * (0.5 - 0.3 * math.log(d)) + noise, "line": 0.4 * d + noise}

    path = fake_sweep.write(tmp_path / "sweep", arms, lambda *_: {"score": 1.0}, history=history)
    n = best_of_n.grid(64)
    d = np.sqrt(best_of_n.kl(n))
    for number, folder in enumerate(sorted(path.glob("arms/*/ppo_ptx"))):
        rng = np.random.default_rng(number)
        gold = d * (0.5 - 0.2 * d) + rng.normal(0, 0.02, (40, len(n)))
        rows = [{"n": n.tolist(), "gold": (3 + row - row[0]).tolist()} for row in gold]
        (folder / "by_prompt.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sweep = Sweep(path)

    def judged(*rule, **more):
        return verdicts.judge(sweep, spec.Law(*rule, **more))

    found = judged("gold", "ppo_ptx", "rl", ("constant", "linear", "kl"), x="kl")
    assert found.verdict == "holds" and len(found.tests) == 3 and "other seeds and steps" in found.sentence
    assert judged("line", "ppo_ptx", "rl", ("linear",), x="kl").verdict != "holds"
    assert judged("line", "ppo_ptx", "linear", ("kl",), x="kl").verdict == "holds"
    found = judged("gold", "ppo_ptx", "best_of_n", ("constant", "linear", "log_n"), over="prompts")
    assert found.verdict == "holds" and "other prompts and n" in found.sentence
    assert judged("gold", "ppo_ptx", "linear", ("best_of_n",), over="prompts").verdict == "does not hold"
    assert judged("score", "ppo_ptx", "linear", ("kl",), over="prompts").verdict == "undecided"  # no such judge
    for wrong in (("linear", ("linear",)), ("linear", ()), ("cubic", ("linear",)), ("linear", ("cubic",))):
        with pytest.raises(InputError, match="Law: "):
            spec.Law("gold", "ppo_ptx", *wrong)


def test_failures_are_counted_and_plain_values_written(tmp_path):
    arms = fake_sweep.product(seed=(0, 1, 2), ppo_ptx__ptx_coef=(0.0, 2.0))
    path = fake_sweep.write(
        tmp_path / "sweep",
        arms,
        lambda *_: {"score": 1.0},
        fate=lambda arm: ("failed", "nan") if arm[AXIS] == 0.0 else "done",
    )
    sweep = Sweep(path)
    found = verdicts.judge(sweep, spec.Greater(at(0.0), at(2.0), "failed", by=0.5))
    assert found.verdict == "undecided" and "the same in all 3 seeds" in found.sentence
    assert verdicts.judge(sweep, spec.Greater(at(2.0), at(0.0), "score")).verdict == "undecided"  # 0.0 never ended
    plain = found.to_json()
    assert plain["tests"][0]["t"] is None and plain["tests"][0]["df"] == 2  # seeds do not differ: there is no t
    assert (plain["tests"][0]["value"], plain["tests"][0]["low"]) == (1.0, None)


def test_steps_of_runs_are_compared_at_equal_kl(tmp_path):
    """A penalty that only slows: the same gold at each KL, at other steps; the proxy's score 0.5 higher."""
    arms = fake_sweep.product(seed=(0, 1, 2), ppo_ptx__ptx_coef=(0.0, 2.0))

    def history(arm, stage, step):
        kl = step * (1.0 if arm[AXIS] else 3.0)
        noise = 0.02 * np.cos(7 * arm["seed"] + step)
        return {
            "objective/kl": kl,
            "objective/gold": kl * 0.1 + noise,
            "objective/scores": kl * 0.1 + (0.5 + 0.001 * arm["seed"] if arm[AXIS] else 0),
        }

    sweep = Sweep(fake_sweep.write(tmp_path / "sweep", arms, lambda *_: {"score": 1.0}, history=history))
    slow, fast = spec.Path("ppo_ptx", where={AXIS: 2.0}), spec.Path("ppo_ptx", where={AXIS: 0.0})

    def judged(kind, y, **margin):
        return verdicts.judge(sweep, kind(slow, fast, "objective/kl", y, file="metrics.jsonl", **margin))

    assert judged(spec.Coincides, "objective/gold", margin=0.05).verdict == "holds"
    assert judged(spec.Coincides, "objective/scores", margin=0.05).verdict == "does not hold"
    found = judged(spec.Dominates, "objective/scores")
    assert found.verdict == "holds" and list(found.tests[0].by_seed.values()) == pytest.approx([0.5, 0.501, 0.502])
    assert judged(spec.Dominates, "objective/gold").verdict == "undecided"
    assert judged(spec.Dominates, "no/metric").verdict == "undecided"
