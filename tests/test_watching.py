"""Named warnings: each rule warns about rows that are sick in its way, and about no others."""

import collections
import dataclasses
import json
import math
import pathlib
import re

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from rlhf_jax.metrics import MetricsWriter, read_metrics
from rlhf_jax.watching import WARNINGS, new_warnings, windows

NAMES = {rule.name for rule in WARNINGS}
ITERATIONS = 60


def healthy(iterations=ITERATIONS, seed=0, **others):
    """Rows of a PPO stage with the size and the noise of the quickstart's; `others` replaces metrics.

    A metric is a function of the progress from 0 to 1 and of the random numbers of the step.
    """
    rng = np.random.default_rng(seed)
    metrics = {
        "objective/kl": lambda t, r: 4 * (1 - math.exp(-6 * t)) + 0.3 * r.normal() * (t > 0),
        "objective/scores": lambda t, r: -0.1 + 0.7 * (1 - math.exp(-6 * t)) + 0.04 * r.normal(),
        "objective/gold": lambda t, r: -0.1 + 0.4 * (1 - math.exp(-6 * t)) + 0.05 * r.normal(),
        "objective/gold_sem": lambda t, r: 0.05,
        "objective/entropy": lambda t, r: (0.87 - 0.25 * t) * 10,
        "objective/completion_length": lambda t, r: 10 + 5 * math.exp(-20 * t) + 0.6 * r.normal(),
        "objective/eos": lambda t, r: min(1.0, 0.8 + 0.2 * (1 - math.exp(-10 * t)) + 0.02 * r.normal()),
        "objective/logprob_gap_max": lambda t, r: 7e-6 * r.uniform(0.7, 1.3),
        "ppo/policy/clipfrac": lambda t, r: 0.02 * r.uniform(0.3, 1.6),
        "ppo/policy/first_approxkl": lambda t, r: 0.0,
        "ppo/ptx/grad_norm": lambda t, r: 0.7 + 0.5 * math.exp(-20 * t),
        "ppo/ptx/ppo_grad_norm": lambda t, r: 1.3 * r.uniform(0.8, 1.4),
        "ppo/val/explained_variance": lambda t, r: 0.7 * (1 - math.exp(-10 * t)) + 0.08 * r.normal(),
        "watch/most_common": lambda t, r: 0.05 + 0.1 * t,
        "watch/length_score_correlation": lambda t, r: 0.1 * r.normal(),
    } | {name.replace("__", "/"): value for name, value in others.items()}
    rows = []
    for step in range(iterations):
        t = step / (iterations - 1)
        row = {name: value(t, rng) for name, value in metrics.items()}
        rows.append({"step": step + 1, "time": 1e9 + step, **row})
    return rows


def validated(rows, every, **metrics):
    """Adds the metrics of a validation to every `every`-th of the rows."""
    for number in range(every - 1, len(rows), every):
        t = number / (len(rows) - 1)
        rows[number] |= {f"valid/{name.replace('__', '/')}": value(t) for name, value in metrics.items()}
    return rows


def supervised(held_out, steps=400, every=40):
    rng = np.random.default_rng(0)
    rows = [
        {"step": step + 1, "loss": 1 - 0.5 * step / steps + 0.05 * rng.normal(), "grad_norm": 1.0}
        for step in range(steps)
    ]
    return validated(rows, every, loss=held_out)


def warned(rows):
    """Every warning of a stage, as the loop asks for them: after each row, with the rows so far."""
    warnings, fired = [], set()
    for number in range(1, len(rows) + 1):
        new = new_warnings(rows[:number], fired)
        fired |= {warning.name for warning in new}
        warnings += new
    return warnings


def names(rows):
    return {warning.name for warning in warned(rows)}


def grows(t, r):
    return 10 + 14 * t + 0.5 * r.normal()


SICK = {
    "kl_up_reward_down": healthy(
        objective__kl=lambda t, r: 20 * t, objective__gold=lambda t, r: 0.8 * t - 1.0 * t * t + 0.03 * r.normal()
    ),
    "clip_fraction": healthy(ppo__policy__clipfrac=lambda t, r: 0.02 + 0.4 * t),
    "length_with_reward": healthy(
        objective__completion_length=grows, watch__length_score_correlation=lambda t, r: 0.5 + 0.1 * r.normal()
    ),
    "eos_lost": healthy(objective__eos=lambda t, r: 0.9 * (1 - t) ** 2),
    "explained_variance": healthy(ppo__val__explained_variance=lambda t, r: -0.2 + 0.1 * r.normal()),
    "ptx_dwarfs_ppo": healthy(ppo__ptx__grad_norm=lambda t, r: 30.0),
    "entropy_collapse": healthy(objective__entropy=lambda t, r: 8.7 * math.exp(-4 * t)),
    "repeated_completion": healthy(watch__most_common=lambda t, r: 0.05 + 0.9 * t),
    "ratio_off_one": healthy(ppo__policy__first_approxkl=lambda t, r: 0.004),
    "sampler_off": healthy(objective__logprob_gap_max=lambda t, r: 3.0 + r.uniform()),
    "overfitting": supervised(lambda t: 0.8 + 0.3 * (t - 0.4) ** 2),
}


def test_there_are_sick_rows_for_every_rule():
    assert SICK.keys() == NAMES
    assert len(NAMES) == len(WARNINGS)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_rule_warns_once_about_rows_that_are_sick_in_its_way_and_no_other_rule_does(name):
    found = warned(SICK[name])
    assert [warning.name for warning in found] == [name]
    (warning,) = found
    assert warning.metric in SICK[name][-1]
    assert warning.metric in next(rule for rule in WARNINGS if rule.name == name).metrics
    assert f"step {warning.step}: " in warning.message
    assert f"{name} in docs/watching.md" in warning.message
    assert "{" not in warning.message
    assert json.loads(json.dumps(dataclasses.asdict(warning))) == dataclasses.asdict(warning)


@pytest.mark.parametrize("seed", range(20))
def test_healthy_rows_are_quiet(seed):
    rows = validated(
        healthy(seed=seed),
        5,
        score=lambda t: 0.6 * (1 - math.exp(-6 * t)),
        score_sem=lambda t: 0.04,
        scores__judge=lambda t: 0.3 * (1 - math.exp(-6 * t)),
        scores_sem__judge=lambda t: 0.04,
        gold_sem=lambda t: 0.04,
        gold=lambda t: 0.3 * (1 - math.exp(-6 * t)),
        kl=lambda t: 4 * t,
    )
    assert names(rows) == set()


def test_every_bound_is_where_the_page_says_it_is():
    """Rows just beyond a bound warn, and rows just within it do not."""
    level = {
        "clip_fraction": ("ppo__policy__clipfrac", 0.2, +1),
        "eos_lost": ("objective__eos", 0.5 * 0.9, -1),
        "explained_variance": ("ppo__val__explained_variance", 0.0, -1),
        "ptx_dwarfs_ppo": ("ppo__ptx__grad_norm", 10.0, +1),
        "entropy_collapse": ("objective__entropy", 0.25 * 8.0, -1),
        "repeated_completion": ("watch__most_common", 0.5, +1),
        "ratio_off_one": ("ppo__policy__first_approxkl", 1e-3, +1),
        "sampler_off": ("objective__logprob_gap_max", 1.0, +1),
        "length_with_reward": ("objective__completion_length", 15.0, +1),
    }
    start = {"eos_lost": 0.9, "entropy_collapse": 8.0, "length_with_reward": 10.0, "explained_variance": 0.5}
    steady = {
        "ppo__ptx__ppo_grad_norm": lambda t, r: 1.0,
        "objective__completion_length": lambda t, r: 10.0,
        "objective__entropy": lambda t, r: 8.0,
        "watch__length_score_correlation": lambda t, r: 0.3,
    }
    for name, (metric, bound, way) in level.items():
        for beyond in (True, False):
            value = bound + (way if beyond else -way) * (0.02 * abs(bound) + 1e-6)

            def stepped(t, r, name=name, value=value):
                return start.get(name, 0.0) if t < 0.5 else value

            rows = healthy(**(steady | {metric: stepped}))
            assert (name in names(rows)) == beyond, (name, value)


def test_page_has_every_rule_with_its_bound_and_its_metrics(project_page):
    rows = {line.split("`")[1]: line for line in project_page.splitlines() if line.startswith("| `")}
    assert rows.keys() >= NAMES
    for rule in WARNINGS:
        condition = rows[rule.name].split("|")[2]
        assert re.search(rf"(?<![\d.]){re.escape(f'{rule.bound:g}')}(?![\d]|\.\d)", condition), rule.name
        for name in rule.metrics:
            assert f"`{name}`" in rows[rule.name], name


@pytest.fixture
def project_page():
    return (pathlib.Path(__file__).resolve().parent.parent / "docs" / "watching.md").read_text(encoding="utf-8")


# --- Rewards that fall ----------------------------------------------------------------------------


def falls(t):
    return 0.8 * t - t * t


@pytest.mark.parametrize("metric", ["gold", "scores/judge", "score"])
def test_validations_see_a_reward_that_falls(metric):
    error = metric.replace("scores/", "scores_sem/") if "/" in metric else f"{metric}_sem"
    rows = validated(healthy(120), 10, kl=lambda t: 20 * t, **{metric: falls, error: lambda t: 0.02})
    found = warned(rows)
    assert [(warning.name, warning.metric) for warning in found] == [("kl_up_reward_down", f"valid/{metric}")]
    assert found[0].step % 10 == 0


def test_a_reward_of_the_mixture_is_no_judge():
    rows = validated(healthy(120, **{"objective/scores/judge": lambda t, r: 0.0}), 10, kl=lambda t: 20 * t)
    rows = validated(rows, 10, scores__judge=falls, scores_sem__judge=lambda t: 0.01)
    assert names(rows) == set()


def test_a_reward_that_falls_at_a_kl_that_hardly_rises_is_no_exploit():
    rows = healthy(
        objective__kl=lambda t, r: 4.0 if t < 0.5 else 4.2, objective__gold=lambda t, r: falls(t) + 0.03 * r.normal()
    )
    assert names(rows) == set()


def test_a_reward_that_falls_at_a_kl_that_does_not_rise_is_no_exploit():
    rows = healthy(objective__kl=lambda t, r: 4.0, objective__gold=lambda t, r: falls(t) + 0.03 * r.normal())
    assert names(rows) == set()


def test_a_fall_within_the_standard_error_of_the_prompts_is_no_fall():
    def rows(error):
        return validated(healthy(120), 10, kl=lambda t: 20 * t, score=falls, score_sem=lambda t: error)

    assert names(rows(0.01)) == {"kl_up_reward_down"}
    assert names(rows(0.3)) == set()


def test_a_reward_without_its_standard_error_is_not_watched():
    assert names(validated(healthy(120), 10, kl=lambda t: 20 * t, score=falls)) == set()


def test_a_fall_of_less_than_a_fifth_of_the_rise_is_no_fall():
    def rows(fall):
        return healthy(
            400,
            objective__kl=lambda t, r: 20 * t,
            objective__gold=lambda t, r: (2 * t if t < 0.5 else 1 - fall * (2 * t - 1)) + 1e-3 * r.normal(),
            objective__gold_sem=lambda t, r: 1e-3,
        )

    assert names(rows(0.25)) == {"kl_up_reward_down"}
    assert names(rows(0.15)) == set()


# --- A policy that collapses --------------------------------------------------------------------


@pytest.mark.parametrize("after", [1, 2, 3, 10])
def test_a_collapse_in_the_first_iterations_is_seen(after):
    def broken(good, bad):
        return lambda t, r: good * r.uniform(0.9, 1.1) if round(t * (ITERATIONS - 1)) < after else bad

    rows = healthy(
        objective__eos=broken(0.8, 0.0), objective__entropy=broken(8.7, 1e-5), watch__most_common=broken(0.04, 1.0)
    )
    assert names(rows) == {"eos_lost", "entropy_collapse", "repeated_completion"}


# --- Length ---------------------------------------------------------------------------------------


def test_length_that_grows_is_no_sign_where_long_completions_score_no_better():
    assert names(healthy(objective__completion_length=grows)) == set()


@pytest.mark.parametrize(("correlation", "told"), [(0.15, False), (0.25, True)])
def test_the_longest_must_score_best_by_the_correlation_of_the_page(correlation, told):
    rows = healthy(objective__completion_length=grows, watch__length_score_correlation=lambda t, r: correlation)
    assert ("length_with_reward" in names(rows)) == told


def test_length_that_grows_with_a_score_that_does_not_is_no_sign():
    rows = healthy(
        objective__completion_length=grows,
        objective__scores=lambda t, r: 0.1 * r.normal(),
        watch__length_score_correlation=lambda t, r: 0.5,
    )
    assert names(rows) == set()


def test_without_the_correlation_length_and_score_decide():
    rows = healthy(objective__completion_length=grows)
    for row in rows:
        del row["watch/length_score_correlation"]
    assert names(rows) == {"length_with_reward"}


# --- Validations of supervised stages -------------------------------------------------------------


def test_a_held_out_loss_that_falls_or_wobbles_is_quiet():
    assert names(supervised(lambda t: 0.9 - 0.1 * t)) == set()
    assert names(supervised(lambda t: 0.8 + 0.02 * math.sin(40 * t))) == set()


def test_a_held_out_loss_that_rises_by_less_than_the_bound_is_quiet():
    def rows(rise):
        return supervised(lambda t: 0.8 if t < 0.5 else 0.8 * (1 + rise * (2 * t - 1) / 0.75))

    assert names(rows(0.035)) == {"overfitting"}
    assert names(rows(0.012)) == set()


def test_a_held_out_loss_that_rises_with_the_training_loss_is_another_matter():
    rows = supervised(lambda t: 0.8 + 0.3 * t)
    for row in rows:
        row["loss"] = 1 + row["step"] / 400
    assert names(rows) == set()


# --- Rows as they can be --------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.0, 1e6])
def test_noise_around_a_constant_hardly_ever_warns(level):
    """Of 50 stages in which nothing changes, at most 1 gets a warning from a rule that compares two times."""
    count = collections.Counter()
    for seed in range(50):
        rng = np.random.default_rng(seed)

        def noise(t, r, rng=rng):
            return level + max(abs(level), 1) * 0.2 * rng.standard_t(4)

        rows = healthy(
            100,
            seed,
            objective__gold=noise,
            objective__scores=noise,
            objective__completion_length=lambda t, r: 20 + 3 * r.normal(),
            objective__eos=lambda t, r: r.binomial(16, 0.7) / 16,
            objective__entropy=lambda t, r: 16 * r.lognormal(sigma=0.3),
            watch__most_common=lambda t, r: r.uniform(0.25, 0.65),
            watch__length_score_correlation=lambda t, r: 0.6,
            objective__kl=lambda t, r: 10 * t,
            ppo__val__explained_variance=lambda t, r: 0.1 + 0.1 * r.normal(),
        )
        count.update(
            names(
                validated(rows, 7, score=lambda t, rng=rng: rng.normal(), score_sem=lambda t: 1.0, kl=lambda t: 10 * t)
            )
        )
    assert sum(count.values()) <= 1, count


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.text(max_size=5),
    st.sampled_from(["nan", "inf", "-inf"]),
    st.integers(),
    st.just(10**400),
    st.floats(),
    st.lists(st.floats(), max_size=2),
)
METRICS = sorted({name for rule in WARNINGS for name in rule.metrics} | {"valid/scores/a", "valid/score_sem"})


@hypothesis.given(
    st.lists(
        st.tuples(st.integers(1, 3), st.dictionaries(st.sampled_from(METRICS), VALUES, max_size=len(METRICS))),
        max_size=25,
    )
)
@hypothesis.settings(max_examples=100)
def test_no_row_raises(parts):
    step, rows = 0, []
    for gap, row in parts:
        step += gap
        rows.append({"step": step, **row})
    for warning in warned(rows):
        assert warning.name in NAMES
        assert math.isfinite(warning.value)


@hypothesis.given(st.lists(st.floats(-1e12, 1e12), min_size=30, max_size=30), st.sampled_from(METRICS))
def test_no_numbers_raise(values, metric):
    rows = healthy(30)
    for row, value in zip(rows, values, strict=True):
        row[metric] = value
    warned(rows)


def test_rows_of_older_runs_without_a_rule_s_metrics_are_quiet():
    for name, rows in SICK.items():
        read = next(rule for rule in WARNINGS if rule.name == name).metrics
        assert name not in names([{k: v for k, v in row.items() if k not in read} for row in rows])


def test_gaps_do_not_hide_a_sick_run():
    assert names([row for row in SICK["eos_lost"] if row["step"] % 7]) == {"eos_lost"}


def test_what_a_resumed_stage_reads_gives_the_warnings_of_one_that_was_not_stopped(tmp_path):
    rows = SICK["clip_fraction"]
    with MetricsWriter(tmp_path / "metrics.jsonl", None) as writer:
        for row in rows[:40]:
            writer.write(row["step"], {k: v for k, v in row.items() if k not in ("step", "time")})
    resumed = read_metrics(tmp_path / "metrics.jsonl")[:20] + rows[20:]
    told = [(warning.step, warning.name) for warning in warned(rows)]
    assert [(warning.step, warning.name) for warning in warned(resumed)] == told
    assert new_warnings(resumed[:40], {"clip_fraction"}) == []


def test_no_rows_are_quiet():
    assert new_warnings([], set()) == []


def test_the_work_of_a_step_does_not_grow_with_the_steps():
    """Reads are counted, and not timed."""
    reads = collections.Counter()

    class Counted(list):
        def __getitem__(self, place):
            reads[len(self)] += 1
            return super().__getitem__(place)

    for length in (1_000, 100_000):
        rows = healthy(1_000) * (length // 1_000)
        new_warnings(Counted(rows), set())
    assert reads[100_000] <= reads[1_000] < 500


def test_new_warnings_leaves_what_it_is_given():
    rows, fired = SICK["clip_fraction"], set()
    before = json.dumps(rows)
    assert new_warnings(rows, fired)
    assert fired == set()
    assert json.dumps(rows) == before


def test_the_variance_of_a_window_is_that_of_the_noise_with_and_without_a_trend():
    """The mean of many windows has the variance of the noise; a trend of one deviation a row adds half as much."""
    noise = np.random.default_rng(0).normal(size=(4_000, 8)) * 3
    for trend, expected in ((0.0, 9.0), (3.0, 13.5)):
        rows = [[{"x": value} for value in line + trend * np.arange(8)] for line in noise]
        found = [windows.at_end(line, windows.metric("x"), 8) for line in rows]
        assert np.mean([mean.variance for mean in found]) == pytest.approx(expected, rel=0.03)
        assert found[0].value == pytest.approx(np.mean([row["x"] for row in rows[0]]))
        assert found[0].error == pytest.approx(math.sqrt(found[0].variance / 8))


def test_the_error_of_a_difference_weighs_windows_by_their_length():
    one, other = windows.Mean(0.0, 4.0, 5), windows.Mean(0.0, 1.0, 3)
    pooled = (4 * 4.0 + 2 * 1.0) / 6
    assert windows.error_of_difference(one, other) == pytest.approx(math.sqrt(pooled * (1 / 5 + 1 / 3)))
