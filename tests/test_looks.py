"""Looks at claims: how often they err, by simulation, which numbers they read, and that none is taken twice."""

import dataclasses
import math
import types

import fake_sweep
import numpy as np
import pytest
from scipy import stats

from rlhf_jax.report import spec, verdicts
from rlhf_jax.report.sweep_report import Sweep
from rlhf_jax.report.verdicts import looks
from rlhf_jax.report.verdicts.contrast import Contrast
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import read_json, write_json
from rlhf_jax.statistics.sequential import SPENDING, levels

AXIS = "ppo_ptx.ptx_coef"
LOOKS = (3, 5, 8, 12)


def sweep_of(design):
    """What the decision about looks asks of a sweep."""
    return types.SimpleNamespace(declared=types.SimpleNamespace(design=design))


def looks_at(numbers, design, **fields):
    """The looks at a claim whose seeds gave these numbers, f[tests, seeds]."""
    return [
        looks.Look(seeds, [[Contrast("", dict(enumerate(row[:seeds])), **fields) for row in np.atleast_2d(numbers)]])
        for seeds in design.looks
    ]


def sides(numbers, level, border=0.0):
    """Whether t intervals of this level, of f[times, seeds], lie above a border, and below it."""
    half = stats.t.isf(level / 2, numbers.shape[1] - 1) * numbers.std(1, ddof=1) / math.sqrt(numbers.shape[1])
    return numbers.mean(1) - half > border, numbers.mean(1) + half < border


def border_of(rate, times):
    return rate + 3 * math.sqrt(rate / times)


@pytest.mark.parametrize("spending", SPENDING)
def test_a_claim_of_which_nothing_is_true_is_decided_in_one_of_twenty(spending):
    """By the code that judges; the vectorised simulation of test_sequential.py is the sharper one."""
    design, times = spec.Design(LOOKS, spending), 600
    rng = np.random.default_rng(0)
    found = [looks.decided(sweep_of(design), looks_at(rng.normal(size=12), design)) for _ in range(times)]
    for verdict in ("holds", "does not hold"):
        assert found.count(verdict) / times == pytest.approx(0.025, abs=0.02)


@pytest.mark.parametrize("spending", SPENDING)
def test_a_difference_that_matters_is_seldom_called_negligible(spending):
    """The hardest case: the difference is the smallest that matters. And one of 0 is called so often enough."""
    rng, times = np.random.default_rng(1), 40_000
    noise = rng.normal(size=(times, 12))
    for truth, low, high in ((1.5, 0.0, border_of(0.025, times)), (0.0, 0.9, 1.0)):
        called = np.zeros(times, bool)
        for seeds, level in zip(LOOKS, levels(LOOKS, spending)):
            numbers = truth + noise[:, :seeds]
            called |= sides(numbers, level, -1.5)[0] & sides(numbers, level, 1.5)[1]
        assert low <= called.mean() <= high
    design = spec.Design(LOOKS, spending)
    numbers = 0.1 * noise[0]
    assert looks.decided(sweep_of(design), looks_at(numbers, design, matters=1.5)) == "negligible"
    assert looks.decided(sweep_of(design), looks_at(5 + numbers, design, matters=1.5)) == "holds"
    assert looks.decided(sweep_of(design), looks_at(-5 + numbers, design, matters=1.5)) == "does not hold"


@pytest.mark.parametrize("spending, power", [("obrien_fleming", (0.58, 0.87, 0.996)), ("pocock", (0.45, 0.77, 0.985))])
def test_the_power_of_four_looks(spending, power):
    """At a difference of 0.7, 1 and 1.5 standard deviations of a seed, as docs/sweeps.md prints."""
    rng, times = np.random.default_rng(2), 40_000
    noise = rng.normal(size=(times, 12))
    for difference, expected in zip((0.7, 1.0, 1.5), power):
        found = np.zeros(times, bool)
        for seeds, level in zip(LOOKS, levels(LOOKS, spending)):
            found |= sides(difference + noise[:, :seeds], level)[0]
        assert found.mean() == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("spending, held", [("obrien_fleming", 0.942), ("pocock", 0.917)])
def test_a_plain_interval_of_the_seeds_at_which_a_claim_was_decided_holds_less_often(spending, held):
    """What tables show, at a difference of half a standard deviation of a seed; docs/sweeps.md says so."""
    rng, times = np.random.default_rng(4), 40_000
    numbers = 0.5 + rng.normal(size=(times, 12))
    left, covered = np.ones(times, bool), np.zeros(times, bool)
    for seeds, level in zip(LOOKS, levels(LOOKS, spending)):
        stops = left & (np.logical_or(*sides(numbers[:, :seeds], level)) | (seeds == 12))
        covered |= stops & ~np.logical_or(*sides(numbers[:, :seeds], 0.05, 0.5))
        left &= ~stops
    assert covered.mean() == pytest.approx(held, abs=0.005)


@pytest.mark.parametrize("spending", SPENDING)
def test_peak_is_rarely_found_at_a_look(spending):
    """The hardest null: an end is as good as the best inner value, and the other end is far below."""
    rng, times = np.random.default_rng(3), 30_000
    values = rng.normal(size=(times, 12, 6)) - [0, 0, 0, 0, 0, 9]
    held, left = np.zeros(times, bool), np.ones(times, bool)
    for seeds, level in zip(LOOKS, levels(LOOKS, spending)):
        among = values[:, :seeds]
        best = 1 + (among.sum(1, keepdims=True) - among)[..., 1:-1].argmax(-1)
        best = np.take_along_axis(among, best[..., None], -1)[..., 0]
        (above, below), (above_last, _) = (sides(best - among[..., end], level / 2) for end in (0, -1))
        held |= left & above & above_last
        left &= ~(held | below)
    assert held.mean() < 0.035


def test_holm_keeps_the_error_of_a_family():
    """Ten claims, nine of which are about nothing: one is called something in 5 % of cases, and without Holm in 37 %."""
    design, times = spec.Design(LOOKS), 150
    rng, plain, corrected, true = np.random.default_rng(5), 0, 0, 0
    sweep = sweep_of(design)
    for _ in range(times):
        claims = [looks_at(rng.normal(size=12) + 2.5 * (claim == 0), design) for claim in range(10)]
        found = verdicts.holm(sweep, [""] * 10, claims)
        corrected += any(word != "undecided" for word in found[1:])
        plain += any(looks.decided(sweep, each) != "undecided" for each in claims[1:])
        true += found[0] == "holds"
    assert corrected / times < border_of(0.05, times) < 0.25 < plain / times and true / times > 0.9


def test_holm_is_the_step_down_procedure():
    """Against p-values of t tests, sorted and compared with 5 %/m, 5 %/(m - 1), ..., for one look."""
    rng, design = np.random.default_rng(5), spec.Design((6,))
    for _ in range(60):
        numbers = rng.normal(size=(5, 6)) + rng.choice([0, 0.9, 2], size=(5, 1))
        p = stats.ttest_1samp(numbers, 0, axis=1).pvalue
        rejected = set()
        for rank, claim in enumerate(np.argsort(p)):
            if p[claim] > 0.05 / (5 - rank):
                break
            rejected.add(int(claim))
        found = verdicts.holm(sweep_of(design), [""] * 5, [looks_at(row, design) for row in numbers])
        assert {claim for claim, word in enumerate(found) if word != "undecided"} == rejected
        apart = verdicts.holm(sweep_of(design), list("abcde"), [looks_at(row, design) for row in numbers])
        assert {claim for claim, word in enumerate(apart) if word != "undecided"} == set(np.flatnonzero(p < 0.05))


def test_holm_gives_no_claim_another_verdict_than_its_own():
    """A difference that is negligible, of which the wider interval leaves what matters and is above 0."""
    design = spec.Design((6,))
    numbers = 1 + 0.5 * np.array([-1, 1, -1, 1, -1, 1.0])  # 1 +- 0.57, and +- 0.93 at 5 %/5
    claims = [looks_at(numbers, design, matters=1.6)] + [looks_at(np.array([-1, 1] * 3), design)] * 4
    sweep = sweep_of(design)
    assert looks.decided(sweep, claims[0]) == "negligible" and looks.decided(sweep, claims[0], 0.01) == "holds"
    assert verdicts.holm(sweep, [""] * 5, claims)[0] == "undecided"


# ---------------------------------------------------------------------------- what a look reads

DESIGN = spec.Design((2, 4, 6), "pocock")
GREATER = spec.Greater(spec.Pick("ppo_ptx", {AXIS: 1.0}), spec.Pick("ppo_ptx", {AXIS: 0.0}), "score")
CLAIMS = (
    spec.Claim("a", "strong", GREATER, matters=0.01),
    spec.Claim(
        "a", "weak", spec.Greater(spec.Pick("ppo_ptx", {AXIS: 2.0}), spec.Pick("ppo_ptx", {AXIS: 0.0}), "score")
    ),
)


def make(path, there, numbers, design=DESIGN, diverged=(), claims=CLAIMS):
    """A sweep of three settings; the arms for which there(seed, level) is true are done, or have diverged."""
    arms = fake_sweep.product(seed=tuple(design.seeds), ppo_ptx__ptx_coef=(0.0, 1.0, 2.0))
    return fake_sweep.write(
        path,
        arms,
        lambda arm, _: {"score": numbers(arm["seed"], arm[AXIS])},
        spec.Declared(claims=claims, design=design),
        fate=lambda arm: (
            "missing"
            if not there(arm["seed"], arm[AXIS])
            else ("failed", "diverged: step 3")
            if (arm["seed"], arm[AXIS]) in diverged
            else "done"
        ),
    )


def strong_and_weak(seed, level):
    """Level 1 is 5 above level 0, and level 2 now above it and now below."""
    return {0.0: 0.0, 1.0: 5 + 0.01 * (-1) ** seed, 2.0: (-1) ** seed}[level]


def test_a_look_waits_for_all_its_arms_and_reads_its_seeds_alone(tmp_path):
    none = verdicts.judge_all(
        Sweep(make(tmp_path / "0", lambda seed, level: (seed, level) != (1, 1.0), strong_and_weak))
    )
    assert none[0].looks == () and none[0].ahead == 2 and "not judged yet" in none[0].sentence
    path = make(tmp_path / "1", lambda seed, level: seed < 3 or level == 1.0, strong_and_weak)
    sweep = Sweep(path)
    strong, weak = verdicts.judge_all(sweep)
    assert (strong.verdict, strong.looks, strong.ahead) == ("holds", (2,), None)
    assert strong.tests[0].by_seed.keys() == {0, 1} and "look 1 of 3" in strong.sentence
    assert (weak.verdict, weak.looks, weak.ahead) == ("undecided", (2,), 4) and "the next at 4 seeds" in weak.sentence
    assert [arm.seed for arm in sweep.later] == [3, 3, 4, 4, 5, 5]  # level 1 has begun
    assert {(arm.seed, arm.overrides[AXIS]) for arm in looks.needed(sweep, CLAIMS[1], 3)} == {
        (seed, level) for seed in range(3) for level in (0.0, 2.0)
    }
    gains = spec.Difference(GREATER.a, GREATER.b), spec.Difference(GREATER.a, spec.Pick("ppo_ptx", {AXIS: 2.0}))
    claim = spec.Claim("a", "b", spec.Greater(*gains, "score"))
    assert {arm.overrides[AXIS] for arm in looks.needed(sweep, claim, 2)} == {0.0, 1.0, 2.0}


TUNED = (spec.Claim("a", "tuned", spec.Greater(spec.Pick("ppo_ptx", tuned=AXIS), 0.0, "score")),)


def best_at_one_then_at_two(seed, level):
    """Of the three levels, 1 is the best for the seeds of the first look and 2 for later ones."""
    return {0.0: 0.0, 1.0: 5 + 0.01 * (-1) ** seed, 2.0: 1.0 if seed < 2 else 9.0}[level]


def chosen_alone(seed, level):
    """Whether a sweep that runs no more than open claims need has an arm, up to the second look."""
    return seed < 2 or seed < 4 and level == 1.0


def asked_for(sweep, seeds):
    return {(arm.seed, arm.overrides[AXIS]) for arm in looks.needed(sweep, TUNED[0], seeds)}


EARLY = {(seed, level) for seed in (0, 1) for level in (0.0, 1.0, 2.0)}


def test_a_later_look_needs_a_tuned_field_at_its_choice_alone(tmp_path):
    sweep = Sweep(make(tmp_path / "sweep", lambda seed, _: seed < 2, best_at_one_then_at_two, claims=TUNED))
    assert asked_for(sweep, 2) == EARLY and asked_for(sweep, 4) == EARLY | {(2, 1.0), (3, 1.0)}
    every = {(seed, level) for seed in range(4) for level in (0.0, 1.0, 2.0)}
    none = Sweep(make(tmp_path / "none", lambda *_: False, best_at_one_then_at_two, claims=TUNED))
    assert asked_for(none, 4) == every
    apart = {(0, 0.0), (1, 1.0)}  # no seed of the first look has all levels, so a later one chooses
    late = Sweep(make(tmp_path / "late", lambda *_: True, best_at_one_then_at_two, diverged=apart, claims=TUNED))
    assert asked_for(late, 4) == every
    assert "at ptx coef = 2 (chosen by seed 2)" in verdicts.judge_all(late)[0].sentence


def test_the_verdict_on_a_tuned_field_needs_no_other_arms(tmp_path):
    pruned, whole = (
        verdicts.judge_all(Sweep(make(tmp_path / str(n), there, best_at_one_then_at_two, claims=TUNED)))[0]
        for n, there in enumerate((chosen_alone, lambda *_: True))
    )
    assert pruned.to_json() == whole.to_json() and (pruned.verdict, pruned.looks) == ("holds", (2, 4))
    assert pruned.tests[0].by_seed == pytest.approx({1: 4.99, 2: 5.01, 3: 4.99})


def test_seeds_after_the_first_look_do_not_move_the_choice(tmp_path):
    """Not even if none of the first look has a number at the value that they would choose."""
    diverged = {(0, 2.0), (1, 2.0)}
    for n, there in enumerate((chosen_alone, lambda *_: True)):
        path = make(tmp_path / str(n), there, best_at_one_then_at_two, diverged=diverged, claims=TUNED)
        assert asked_for(Sweep(path), 4) == EARLY | {(2, 1.0), (3, 1.0)}
        found = verdicts.judge_all(Sweep(path))[0]
        assert "at ptx coef = 1 (chosen by seed 0)" in found.sentence and found.looks == (2, 4)
        assert found.tests[0].by_seed == pytest.approx({1: 4.99, 2: 5.01, 3: 4.99})


def test_a_failed_arm_ends_a_look_too_and_the_last_look_says_how_many_seeds_are_wanted(tmp_path):
    path = make(tmp_path / "sweep", lambda *_: True, strong_and_weak, diverged={(1, 2.0)})
    strong, weak = verdicts.judge_all(Sweep(path))
    assert weak.looks == (2, 4, 6) and weak.ahead is None and "without seed 1" in weak.sentence
    found = weak.tests[0]
    spread = np.std(list(found.by_seed.values()), ddof=1)
    seeds = weak.seeds_to_decide
    power = stats.nct.sf(
        stats.t.isf(0.025, seeds - 1), seeds - 1, np.mean(list(found.by_seed.values())) * seeds**0.5 / spread
    )
    assert power > 0.8 and seeds > 6 and f"{seeds} seeds, judged once, would decide it" in weak.sentence


def test_a_look_that_was_taken_is_not_taken_again(tmp_path):
    path = make(tmp_path / "sweep", lambda seed, level: seed < 2, strong_and_weak)
    looks.record(Sweep(path))
    for file in path.glob("arms/*ptx_coef=1.0/ppo_ptx/evaluation.json"):  # as when an arm is run again
        write_json(file, fake_sweep.evaluation({"score": -5.0 + 0.01 * ("seed=0" in str(file))}, "ppo"))
    assert verdicts.judge_all(Sweep(path))[0].verdict == "holds"
    (path / looks.FILE).unlink()
    assert verdicts.judge_all(Sweep(path))[0].verdict == "does not hold"
    looks.record(Sweep(path))
    changed = spec.Design((2, 5, 6))
    assert looks.other_design(path, changed) and not looks.other_design(path, DESIGN)
    (path / looks.FILE).write_text('{"claims": {"a": [{"seeds": 2}]}}')
    with pytest.raises(InputError, match="looks.json is damaged"):
        verdicts.judge_all(Sweep(path))


def test_a_look_at_a_peak_is_read_as_it_was_taken(tmp_path):
    """And looks of earlier versions, which have no candidates, can be read."""
    claims = (spec.Claim("a", "peak", spec.Peak("score", "ppo_ptx", AXIS)),)
    path = make(tmp_path / "sweep", lambda *_: True, strong_and_weak, claims=claims)
    first = verdicts.judge_all(Sweep(path))
    assert first[0].tests[0].candidates[0].keys() == set(range(len(first[0].tests[0].by_seed)))
    looks.record(Sweep(path))
    assert verdicts.judge_all(Sweep(path)) == first
    taken = read_json(path / looks.FILE)
    for look in next(iter(taken["claims"].values())):
        for test in look["parts"][0]:
            del test["candidates"]
    write_json(path / looks.FILE, taken)
    assert verdicts.judge_all(Sweep(path))[0].tests[0].candidates == ()


def test_a_sweep_without_a_design_is_judged_once_by_all_its_seeds(tmp_path):
    path = make(tmp_path / "sweep", lambda *_: True, strong_and_weak)
    write_json(path / "sweep.json", {name: v for name, v in read_json(path / "sweep.json").items() if name != "design"})
    strong, weak = verdicts.judge_all(Sweep(path))
    assert strong.looks == weak.looks == (6,) and strong.level == 0.05 and "look" not in strong.sentence


def test_what_matters_is_checked_when_a_claim_is_made():
    close = spec.Close(spec.Pick("ppo_ptx", {AXIS: 1.0}), spec.Pick("ppo_ptx", {AXIS: 0.0}), "score", 0.1)
    both = spec.All((GREATER, close))
    assert spec.Claim("a", "b", both, matters=0.2).smallest() == [0.2, None]
    assert spec.Claim("a", "b", both, matters=(0.3, None)).smallest() == [0.3, None]
    assert spec.Claim("a", "b", close).smallest() == [None]
    for rule, matters, words in (
        (GREATER, 0.0, "above 0"),
        (GREATER, (0.1, 0.2), "one for each rule"),
        (close, 0.1, "leave matters out"),
        (both, (0.1, 0.1), "leave matters out"),
        (dataclasses.replace(GREATER, by=0.1), 0.1, "leave matters out"),
    ):
        with pytest.raises(InputError, match=words):
            spec.Claim("a", "b", rule, matters=matters)
    for wrong in ((), (1, 3), (5, 3), (3, 3)):
        with pytest.raises(InputError, match="Design: looks="):
            spec.Design(wrong)
    with pytest.raises(InputError, match="Design: spending must be one of"):
        spec.Design(spending="even")
