"""Verdicts: numbers that can be worked out by hand, and how often a rule is wrong where nothing is there."""

import dataclasses
import math

import fake_sweep
import numpy as np
import pytest

from rlhf_jax.errors import InputError
from rlhf_jax.evaluate import overoptimization
from rlhf_jax.report import spec, verdicts
from rlhf_jax.report.sweep import Sweep

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
    assert found.verdict == "undecided" and "df = 2, 3 seeds" in found.sentence  # -0.24 to 2.24
    falls = verdicts.judge(sweep, spec.Trend("score", "ppo_ptx", AXIS, "falls"))
    assert list(falls.tests[0].by_seed.values()) == pytest.approx([-1.0, -0.5, -1.5])


def test_the_side_of_the_interval_decides(empty):
    sweep = empty((0.0, 1.0), 3)
    for gains, verdict in (([1, 1.1, 0.9], "holds"), ([-1, -1.1, -0.9], "does not hold"), ([1, -1, 0.5], "undecided"),
                           ([1, 1, 1], "holds"), ([0, 0, 0], "undecided")):  # fmt: skip
        values = np.array([[7.0 + seed, 7.0 + seed + gain] for seed, gain in enumerate(gains)])
        assert verdicts.judge(give(sweep, values), TREND).verdict == verdict, gains
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


@pytest.mark.parametrize("seeds,means,times", [
    (3, (0,) * 7 + (-9,), 1500),  # with the seed's own choice it is 7 %
    (2, (0, 0, 0, 0, 0), 300), (5, (0, 0, 0, 0, -9), 400), (5, (0, -9, 0, -9, -9), 300)])  # fmt: skip
def test_peak_is_rarely_found_where_none_is(empty, seeds, means, times):
    """The hardest nulls: an end is as good as the best inner value, and the other end is far below."""
    rng = np.random.default_rng(seeds)
    sweep = empty(tuple(map(float, range(len(means)))), seeds)
    found = sum(verdicts.judge(give(sweep, np.array(means) + rng.normal(size=(seeds, len(means)))), PEAK).verdict == "holds"
                for _ in range(times))  # fmt: skip
    assert found / times < 0.05


def test_peak_is_found_where_one_is(empty):
    rng = np.random.default_rng(0)
    sweep = empty((0.0, 1.0, 2.0, 3.0, 4.0), 3)
    found = [verdicts.judge(give(sweep, np.array([0, 2, 3, 2, 0]) + rng.normal(0, 0.3, (3, 5))), PEAK).verdict
             for _ in range(100)]  # fmt: skip
    assert found.count("holds") > 90
    upside_down = verdicts.judge(give(sweep, np.array([3, 0, 0, 0, 3]) + rng.normal(0, 0.1, (3, 5))), PEAK)
    assert upside_down.verdict == "does not hold"


def test_a_trend_of_noise_is_found_in_one_of_forty(empty):
    rng = np.random.default_rng(0)
    sweep, times = empty((0.0, 1.0, 2.0, 3.0, 4.0), 3), 1500
    found = [verdicts.judge(give(sweep, rng.normal(size=(3, 5)) + rng.normal(size=(3, 1))), TREND).verdict
             for _ in range(times)]  # fmt: skip
    for verdict in ("holds", "does not hold"):
        assert found.count(verdict) / times == pytest.approx(0.025, abs=0.012)


def test_greater_is_paired_over_seeds(empty):
    sweep = empty((0.0, 1.0, 2.0), 3)
    values = np.array([[0.0, 1.0, 2.0], [10.0, 11.2, 12.0], [20.0, 20.8, 22.0]])
    found = verdicts.judge(give(sweep, values), spec.Greater(at(1.0), at(0.0), "score"))
    assert found.verdict == "holds" and list(found.tests[0].by_seed.values()) == pytest.approx([1.0, 1.2, 0.8])
    assert (found.tests[0].estimate.low, found.tests[0].estimate.high) == pytest.approx(interval([1, 1.2, 0.8]), rel=1e-5)
    both = verdicts.judge(sweep, spec.Greater(at(1.0, 2.0), at(0.0), "score", by=2.0))  # 1.5, 1.6, 1.4
    assert both.verdict == "does not hold" and "asked above 2" in both.sentence
    assert verdicts.judge(sweep, spec.Greater(at(2.0), at(0.0), "score", factor=2.0)).verdict == "undecided"
    assert verdicts.judge(sweep, spec.Greater(at(1.0), -30.0, "score")).verdict == "holds"
    other = spec.Greater(spec.Pick("ppo_ptx", {AXIS: 1.0}, y="kl"), at(0.0), "score")
    assert "kl" in verdicts.judge(sweep, other).sentence.lower()


def test_close_needs_the_whole_interval_inside(empty):
    sweep = give(empty((0.0, 1.0), 3), np.array([[0.0, 0.1], [5.0, 5.0], [9.0, 8.9]]))
    low, high = interval([0.1, 0.0, -0.1])
    for margin, difference, verdict in ((1.01 * high, 0.0, "holds"), (0.99 * high, 0.0, "undecided"),
                                        (0.1, 2.0, "does not hold"), (3.0, 2.0, "holds")):  # fmt: skip
        rule = spec.Close(at(1.0), at(0.0), "score", margin, difference)
        assert verdicts.judge(sweep, rule).verdict == verdict
    assert verdicts.judge(sweep, spec.Close(at(0.0), 4.0, "score", 100.0)).verdict == "holds"


def test_gap_of_two_curves_is_over_the_range_of_both():
    above = [(x, 2 * x + 0.3) for x in (3.0, 0.0, 1.0, 2.0)]  # in any order
    below = [(x, 2 * x) for x in (1.5, 5.0)]
    assert verdicts.mean_gap(above, below) == pytest.approx(0.3)
    assert verdicts.mean_gap([(0, 0), (1, 1)], [(0, 1), (1, 0)]) == pytest.approx(0.0)
    assert verdicts.mean_gap([(0, 0), (1, 0), (2, 2)], [(0, 0), (2, 0)]) == pytest.approx(0.5)  # a triangle
    for other in ([(4, 1), (5, 1)], [(3, 1), (5, 1)], [(1, 1)], []):
        assert verdicts.mean_gap(above, other) is None


def test_r_squared_of_each_form():
    rng = np.random.default_rng(0)
    x = np.linspace(0, 4, 30)
    y = 0.3 + 2 * x + rng.normal(size=30)
    assert verdicts.r_squared(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2)
    log = np.log(np.maximum(x, 1e-9))
    assert verdicts.r_squared(x, x * (0.9 - 0.2 * x), "bon") == pytest.approx(1)
    assert verdicts.r_squared(x, x * (0.9 - 0.2 * log), "rl") == pytest.approx(1)
    assert verdicts.r_squared(x, x * (0.9 - 0.2 * log), "bon") < 0.999
    assert math.isnan(verdicts.r_squared([1, 2], [1, 2])) and math.isnan(verdicts.r_squared([1, 2, 3], [1, 1, 1]))
    assert math.isnan(verdicts.r_squared([], []))


def test_where_a_policy_starts_is_fitted_where_it_is_asked():
    x = np.array([0.0, 0.5, 1.0, 2.0, 3.0, 4.0])
    log = np.log(np.where(x > 0, x, 1))
    for form, gain in (("rl", x * (0.9 - 0.2 * log)), ("bon", x * (0.9 - 0.1 * x))):
        assert verdicts.r_squared(x, 5.0 + gain, form, start=True) == pytest.approx(1)
        assert verdicts.r_squared(x, 5.0 + gain, form) < 0.5
    assert verdicts.r_squared(x, x, "linear", start=True) == pytest.approx(1)
    noisy = 5.0 + x * (0.9 - 0.2 * log) + np.array([0.1, -0.2, 0.05, 0.15, -0.1, 0.0])
    law = overoptimization.fit(x[1:] ** 2, noisy[1:], "rl", start=True)
    assert verdicts.r_squared(x[1:], noisy[1:], "rl", start=True) == pytest.approx(law.r_squared)
    assert math.isnan(verdicts.r_squared(x[:3], noisy[:3], "rl", start=True))  # as many points as coefficients


def test_a_seed_without_a_number_is_left_out_and_named(empty):
    sweep = empty((0.0, 1.0, 2.0), 4)
    values = np.tile([0.0, 1.0, 2.0], (4, 1)) + np.arange(4)[:, None]
    found = verdicts.judge(give(sweep, values, missing={(3, 1)}), TREND)
    assert list(found.tests[0].by_seed) == [0, 1, 2] and "without seed 3" in found.sentence
    found = verdicts.judge(sweep, spec.Greater(at(1.0, 2.0), at(0.0), "score"))  # no mean of what is left
    assert list(found.tests[0].by_seed) == [0, 1, 2]
    gone = {(seed, 2) for seed in range(4)}
    found = verdicts.judge(give(sweep, values, missing=gone), TREND)
    assert found.verdict == "holds" and "without 2, which no arm has" in found.sentence
    every = {(seed, level) for seed in range(4) for level in range(3)}
    for rule in (TREND, PEAK, spec.Greater(at(1.0), at(0.0), "score"), spec.Close(at(1.0), at(0.0), "score", 1.0),
                 spec.Dominates(spec.Path("ppo_ptx", AXIS), spec.Path("ppo_ptx", AXIS), "kl", "score"),
                 spec.Linear("score", "kl", "ppo_ptx", 0.9, axis=AXIS)):  # fmt: skip
        assert verdicts.judge(give(sweep, values, missing=every), rule).verdict == "undecided"


def test_all_is_as_weak_as_its_weakest(empty):
    sweep = give(empty((0.0, 1.0), 3), np.array([[0.0, 1.0], [1.0, 2.1], [2.0, 2.9]]))
    yes, no = TREND, spec.Trend("score", "ppo_ptx", AXIS, "falls")
    unknown = spec.Greater(at(1.0), at(0.0), "score", by=1.0)
    for rules, verdict in (((yes, yes), "holds"), ((yes, unknown), "undecided"), ((yes, unknown, no), "does not hold")):
        found = verdicts.judge(sweep, spec.All(rules))
        assert found.verdict == verdict and len(found.tests) == len(rules)


def test_history_and_failures(tmp_path):
    """Reward linear in the root of KL, and the arms that diverged, from files."""
    arms = fake_sweep.product(seed=(0, 1, 2), ppo_ptx__ptx_coef=(0.0, 2.0))

    def history(overrides, stage, step):
        jagged = 100.0 if step % 2 else -100.0
        return {"objective/kl": step**2 / 100, "objective/scores": 3.0 * step / 10 - 1, "jagged": step**2 + jagged}

    path = fake_sweep.write(tmp_path / "sweep", arms, lambda *_: {"score": 1.0}, history=history,
                            fate=lambda arm: ("failed", "nan") if arm[AXIS] == 0.0 else "done")  # fmt: skip
    sweep = Sweep(path)
    kept = {AXIS: 2.0}
    line = spec.Linear("objective/scores", "objective/kl", "ppo_ptx", 0.99, sqrt_x=True, where=kept)
    found = verdicts.judge(sweep, line)
    assert found.verdict == "holds" and found.tests[0].estimate.value == pytest.approx(1)
    bent = spec.Linear("objective/scores", "objective/kl", "ppo_ptx", 0.99, where=kept)
    assert verdicts.judge(sweep, bent).verdict == "does not hold"
    assert verdicts.judge(sweep, spec.Linear("objective/scores", "no/metric", "ppo_ptx", 0.9)).verdict == "undecided"
    jagged = spec.Linear("jagged", "objective/kl", "ppo_ptx", 0.99, where=kept)
    assert verdicts.judge(sweep, jagged).tests[0].estimate.value < 0.99
    smooth = dataclasses.replace(jagged, window=2)
    assert verdicts.judge(sweep, smooth).tests[0].estimate.value == pytest.approx(1)
    with pytest.raises(InputError, match="window=0 must be at least 1"):
        dataclasses.replace(jagged, window=0)
    with pytest.raises(InputError, match="start is of the forms bon and rl"):
        dataclasses.replace(jagged, form="linear", start=True)
    started = spec.Linear("objective/scores", "objective/kl", "ppo_ptx", 0.99999, sqrt_x=True, where=kept, form="bon")
    assert verdicts.judge(sweep, started).verdict == "does not hold"  # it began at -1
    found_start = verdicts.judge(sweep, dataclasses.replace(started, start=True))
    assert found_start.verdict == "holds" and "of a start and d (α − β d)" in found_start.sentence
    diverged = spec.Greater(at(0.0), at(2.0), "failed", by=0.5)
    assert verdicts.judge(sweep, diverged).verdict == "holds"
    assert verdicts.judge(sweep, spec.Greater(at(2.0), at(0.0), "score")).verdict == "undecided"  # 0.0 never ended
    plain = found.to_json()
    assert plain["tests"][0]["t"] is None and plain["tests"][0]["df"] == 2  # seeds do not differ: t is infinite


def test_steps_of_runs_are_compared_at_equal_kl(tmp_path):
    """A penalty that only slows: the same gold at each KL, at other steps; the proxy's score 0.5 higher."""
    arms = fake_sweep.product(seed=(0, 1, 2), ppo_ptx__ptx_coef=(0.0, 2.0))

    def history(arm, stage, step):
        kl = step * (1.0 if arm[AXIS] else 3.0)
        noise = 0.02 * np.cos(7 * arm["seed"] + step)
        return {"objective/kl": kl, "objective/gold": kl * 0.1 + noise, "objective/scores": kl * 0.1 + (0.5 if arm[AXIS] else 0)}

    sweep = Sweep(fake_sweep.write(tmp_path / "sweep", arms, lambda *_: {"score": 1.0}, history=history))
    slow, fast = spec.Path("ppo_ptx", where={AXIS: 2.0}), spec.Path("ppo_ptx", where={AXIS: 0.0})

    def judged(kind, y, **margin):
        return verdicts.judge(sweep, kind(slow, fast, "objective/kl", y, file="metrics.jsonl", **margin))

    assert judged(spec.Coincides, "objective/gold", margin=0.05).verdict == "holds"
    assert judged(spec.Coincides, "objective/scores", margin=0.05).verdict == "does not hold"
    found = judged(spec.Dominates, "objective/scores")
    assert found.verdict == "holds" and list(found.tests[0].by_seed.values()) == pytest.approx([0.5] * 3)
    assert judged(spec.Dominates, "objective/gold").verdict == "undecided"
    assert judged(spec.Dominates, "no/metric").verdict == "undecided"
