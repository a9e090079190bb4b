"""The split of a variance: components that are known, by simulation, and the numbers of a sweep's prompts."""

import json

import fake_sweep
import numpy as np
import pytest

from rlhf_jax.report import spec, variance
from rlhf_jax.report.sweep_report import Sweep
from rlhf_jax.report.verdicts import judge_all
from rlhf_jax.statistics.variance import parts

AXIS = "ppo_ptx.ptx_coef"


def test_components_are_those_that_were_put_in():
    rng, found = np.random.default_rng(0), []
    for _ in range(300):
        values = rng.normal(0, 2, (6, 1)) + rng.normal(0, 3, (1, 40)) + rng.normal(0, 5, (6, 40))
        found.append(parts(values))
    assert np.mean(found, axis=0) == pytest.approx([4, 9, 25], rel=0.1)
    assert parts(np.ones((1, 5))) is None and parts(np.ones((3, 1))) is None
    assert parts(np.arange(3.0)[:, None] + np.zeros((3, 4))) == pytest.approx((1.0, 0.0, 0.0))


def test_what_strata_differ_by_is_no_variance_of_prompts():
    """Two tasks of 30 and 10 items, each with half of the weight in the mean; the variance of the mean is what new items give."""
    rng, tasks, found, means = np.random.default_rng(0), np.repeat([0, 1], [30, 10]), [], []
    weights = 40 / 2 / np.array([30, 10])[tasks]
    for _ in range(400):
        seeds = rng.normal(0, 2, (6, 1)) + rng.normal(0, 1, (6, 2))[:, tasks]  # a seed's own, and its own in each task
        items = np.array([5.0, -5.0])[tasks] + rng.normal(0, 3, 40)
        values = weights * (seeds + items + rng.normal(0, 4, (6, 40)))
        found.append(parts(values, tasks))
        means.append((weights * items).mean())
    seeds, prompts, rest = np.mean(found, axis=0)
    assert seeds == pytest.approx(4 + 1 / 2, rel=0.1)
    assert prompts / 40 == pytest.approx(np.var(means), rel=0.15)
    assert rest / 40 == pytest.approx(4**2 * (1 / 30 + 1 / 10) / 4, rel=0.1)
    assert np.mean([parts(values).prompts / 40 for _ in range(3)]) > 2 * prompts / 40
    assert parts(values, [0] * 39 + [1]) is None


def test_skills_are_split_by_items_of_their_task(tmp_path):
    rng, seeds = np.random.default_rng(2), 4
    tasks = ["easy"] * 50 + ["hard"] * 30
    known = rng.random(80) < np.where(np.array(tasks) == "easy", 0.95, 0.1)
    scores = {seed: (known ^ (rng.random(80) < 0.1)).astype(float) for seed in range(seeds)}
    easy, hard = (
        {seed: found[places].mean() for seed, found in scores.items()} for places in (slice(50), slice(50, 80))
    )
    pick = spec.Pick("ppo_ptx")
    claims = tuple(spec.Claim("a", name, spec.Greater(pick, 0.1, f"skills/{name}")) for name in ("mean", "hard"))
    path = fake_sweep.write(
        tmp_path / "sweep",
        fake_sweep.product(seed=tuple(range(seeds)), ppo_ptx__ptx_coef=(0.0,)),
        lambda arm, _: {"skills/mean": (easy[arm["seed"]] + hard[arm["seed"]]) / 2, "skills/hard": hard[arm["seed"]]},
        spec.Declared(claims=claims),
    )
    for folder in path.glob("arms/*/ppo_ptx"):
        seed = json.loads((folder.parent / "overrides.json").read_text())["seed"]
        rows = [{"task": task, "score": score} for task, score in zip(tasks, scores[seed])]
        (folder / "skills.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sweep = Sweep(path)
    mean, only = variance.table(sweep, list(zip(claims, judge_all(sweep)))).rows
    assert (mean[-1], only[-1]) == ("80", "30")
    values = np.array(list(scores.values()))
    expected = parts(values[:, 50:])
    assert float(only[4].split()[0].removeprefix("±")) == pytest.approx(100 * np.sqrt(expected.prompts / 30), rel=0.01)
    weights = np.array([80 / 100] * 50 + [80 / 60] * 30)
    expected = parts(values * weights, tasks)
    assert float(mean[4].split()[0].removeprefix("±")) == pytest.approx(100 * np.sqrt(expected.prompts / 80), rel=0.01)


def test_the_numbers_of_a_sweep_are_split_by_prompts(tmp_path):
    """A difference of two arms whose seeds differ by 0.1 and whose prompts differ by 1 in each arm by itself."""
    rng, prompts, seeds = np.random.default_rng(1), 200, 5
    shift = {seed: 0.1 * rng.normal() for seed in range(seeds)}
    gold = {
        (seed, level): (level + shift[seed]) * (level > 0) + rng.normal(0, 1, prompts)
        for seed in range(seeds)
        for level in (0.0, 1.0)
    }
    high, low = (spec.Pick("ppo_ptx", {AXIS: level}) for level in (1.0, 0.0))
    claims = (
        spec.Claim("a", "b", spec.Greater(high, low, "gold/total")),
        spec.Claim("a", "e", spec.Greater(spec.Difference(high, low), 0.0, "gold/total")),
        spec.Claim("a", "f", spec.Greater(spec.Difference(spec.Pick("ppo_ptx", tuned=AXIS), low), 0.0, "gold/total")),
        spec.Claim("a", "c", spec.Trend("gold/total", "ppo_ptx", AXIS, "rises")),
        spec.Claim("a", "d", spec.Trend("valid_loss", "ppo_ptx", AXIS, "rises")),
    )
    arms = fake_sweep.product(seed=tuple(range(seeds)), ppo_ptx__ptx_coef=(0.0, 1.0))
    path = fake_sweep.write(
        tmp_path / "sweep",
        arms,
        lambda arm, _: {"gold/total": gold[arm["seed"], arm[AXIS]].mean(), "valid_loss": arm["seed"]},
        spec.Declared(claims=claims),
    )
    for folder in path.glob("arms/*/ppo_ptx"):
        arm = json.loads((folder.parent / "overrides.json").read_text())
        rows = [{"gold": {"total": value}} for value in gold[arm["seed"], arm[AXIS]]]
        (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sweep = Sweep(path)
    verdicts = list(zip(claims, judge_all(sweep)))
    table = variance.table(sweep, verdicts)
    assert len(table.rows) == 3  # the held-out loss has no file of prompts, and a choice is no sum
    values = np.array([gold[seed, 1.0] - gold[seed, 0.0] for seed in range(seeds)])
    expected = parts(values)
    by_seed = values.mean(1)
    share = expected.rest / prompts / (expected.seeds + expected.rest / prompts)
    for row in table.rows:
        assert float(row[1]) == pytest.approx(by_seed.std(ddof=1), rel=0.01) and row[-1] == str(prompts)
        assert row[3] == f"{100 * share:.0f} %"
