"""Sweeps that run until their claims are decided: which arms each look runs, and how an interruption goes on."""

import os
import pathlib
import subprocess
import sys
import types

import fake_sweep
import pytest

from rlhf_jax.report import spec, verdicts
from rlhf_jax.report.sweep_report import Sweep
from rlhf_jax.report.verdicts import looks
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import read_json
from rlhf_jax.sweep import until_decided

ROOT = pathlib.Path(__file__).parents[1]
AXIS = "ppo_ptx.ptx_coef"
DESIGN = spec.Design((2, 4, 6), "pocock")
LEVELS = (0.0, 1.0, 2.0, 3.0)  # no claim reads the last


def above(level):
    return spec.Greater(spec.Pick("ppo_ptx", {AXIS: level}), spec.Pick("ppo_ptx", {AXIS: 0.0}), "score")


CLAIMS = (spec.Claim("a", "strong", above(1.0)), spec.Claim("a", "weak", above(2.0)))


def score(arm, stage):
    seed = arm["seed"]
    return {"score": {0.0: 0.0, 1.0: 5 + 0.01 * (-1) ** seed, 2.0: (-1.0) ** seed, 3.0: 1.0}[arm[AXIS]]}


class Runs:
    """A sweep in a folder, whose arms are done at once; keeps the (seed, level) of each round."""

    def __init__(self, path, claims=CLAIMS):
        arms = fake_sweep.product(seed=tuple(DESIGN.seeds), ppo_ptx__ptx_coef=LEVELS)
        declared = spec.Declared(claims=claims, design=DESIGN)
        self.path = fake_sweep.write(path, arms, score, declared, fate=lambda _: "missing")
        self.named = read_json(self.path / "sweep.json")["arms"]
        numbered = [
            types.SimpleNamespace(number=n, config=types.SimpleNamespace(seed=arm["seed"]))
            for n, arm in enumerate(arms)
        ]
        self.experiment = types.SimpleNamespace(path="file.py", arms=numbered, declared=declared)
        self.rounds, self.failing, self.most = [], {}, None

    def __call__(self, some, retry):
        self.rounds.append([])
        for arm in some:
            overrides, folder = self.named[arm.number]["overrides"], self.path / "arms" / self.named[arm.number]["name"]
            if folder.exists():
                if not retry:
                    continue
                for file in sorted(folder.rglob("*"), reverse=True):
                    file.unlink() if file.is_file() else file.rmdir()
                folder.rmdir()
            if self.most == 0:
                raise KeyboardInterrupt
            self.most = self.most and self.most - 1
            place = overrides["seed"], overrides[AXIS]
            status, reason = self.failing.get(place, ("done", None))
            fake_sweep.write_arm(folder, overrides, score, status, reason, fake_sweep.CONFIG, None, 1)
            self.rounds[-1].append(place)

    def run(self, retry=False):
        self.rounds = []
        until_decided.run(self.experiment, self.path, self, retry)
        return self.rounds

    @property
    def verdicts(self):
        return [(found.verdict, found.looks) for found in verdicts.judge_all(Sweep(self.path))]


EXPECTED = [
    [(seed, level) for seed in (0, 1) for level in LEVELS],
    [(seed, level) for seed in (2, 3) for level in (0.0, 2.0)],
    [(seed, level) for seed in (4, 5) for level in (0.0, 2.0)],
]


def test_each_look_runs_what_open_claims_need(tmp_path, capsys):
    sweep = Runs(tmp_path / "sweep")
    assert until_decided.first_look(sweep.experiment) == until_decided.to_run(sweep.path, take=False) == list(range(8))
    assert sweep.run() == EXPECTED
    assert sweep.verdicts == [("holds", (2,)), ("undecided", (2, 4, 6))]
    said = capsys.readouterr().out
    assert "0 of 2 claims have their verdict" in said and "open: strong" in said
    assert "1 of 2 claims have their verdict" in said and "holds at 2 seeds: strong" in said
    assert "open, undecided at 4 seeds: weak" in said and "the next look is at 6 seeds: 4 arms to run" in said
    assert "2 of 2 claims have their verdict" in said and sweep.run() == []


def test_a_tuned_field_is_run_at_its_choice_after_the_first_look(tmp_path):
    tuned = spec.Claim("a", "tuned", spec.Greater(spec.Pick("ppo_ptx", tuned=AXIS), 0.0, "score"))
    sweep = Runs(tmp_path / "sweep", (tuned,))
    assert sweep.run() == [EXPECTED[0], [(2, 1.0), (3, 1.0)]]
    assert sweep.verdicts == [("holds", (2, 4))]


@pytest.mark.parametrize("most", [3, 10, 13])
def test_an_interruption_changes_nothing(tmp_path, most):
    """Wherever it falls: the arms, the looks and the verdicts are those of a sweep that was not stopped."""
    sweep, whole = Runs(tmp_path / "sweep"), Runs(tmp_path / "whole")
    sweep.most = most
    with pytest.raises(KeyboardInterrupt):
        sweep.run()
    before, sweep.most = [place for places in sweep.rounds for place in places], None
    assert len(before) == most
    after = [place for places in sweep.run() for place in places]
    assert before + after == [place for places in whole.run() for place in places]
    assert read_json(sweep.path / looks.FILE) == read_json(whole.path / looks.FILE)
    assert sweep.verdicts == whole.verdicts


def test_an_arm_that_failed_holds_its_look_up_and_one_that_diverged_does_not(tmp_path, capsys):
    sweep = Runs(tmp_path / "sweep")
    sweep.failing = {(2, 2.0): ("failed", "out of memory: x"), (3, 0.0): ("failed", "diverged: step 3")}
    assert sweep.run() == [*EXPECTED[:2], []]
    assert "the next look is not taken: 1 of its arms have failed" in capsys.readouterr().out
    assert sweep.verdicts[1] == ("undecided", (2,))
    sweep.failing = {(3, 0.0): sweep.failing[3, 0.0]}
    assert sweep.run(retry=True) == [[(2, 2.0)], EXPECTED[2]]
    assert sweep.verdicts[1] == ("undecided", (2, 4, 6))


def test_what_cannot_be_judged_is_refused_before_it_runs(tmp_path):
    sweep = Runs(tmp_path / "sweep")
    until_decided.check(sweep.experiment, sweep.path)
    sweep.run()
    sweep.experiment.declared = spec.Declared(claims=CLAIMS, design=spec.Design((2, 3, 6)))
    with pytest.raises(InputError, match="looks of another DESIGN than file.py"):
        until_decided.check(sweep.experiment, sweep.path)
    for declared in (spec.Declared(claims=CLAIMS), spec.Declared(design=DESIGN)):
        sweep.experiment.declared = declared
        with pytest.raises(InputError, match="needs claims and their looks: give file.py"):
            until_decided.check(sweep.experiment, sweep.path)


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["--workers=2", "--runner=vectorized"])
def test_other_runners_go_on_to_the_next_look(tmp_path, runner):
    """The command itself, on the toy model: one claim holds at the first look, and the arms of a second are run for the other."""
    experiment, path = tmp_path / "experiment.py", tmp_path / "sweep"
    experiment.write_text(
        "from rlhf_jax.report import spec\n"
        "from toy import get_config as toy\n"
        "get_config = lambda arg='': toy('ppo')\n"
        "AXIS, DESIGN = 'ppo.kl_coef', spec.Design((2, 3), 'pocock')\n"
        "sweep = lambda h: h.product([h.sweep(AXIS, [0.02, 5.0]), h.sweep('seed', DESIGN.seeds)])\n"
        "ONE, OTHER = (spec.Pick('ppo', {AXIS: beta}) for beta in (0.02, 5.0))\n"
        "CLAIMS = (\n"
        "    spec.Claim('a', 'sure', spec.Close(ONE, OTHER, 'completion_length', margin=1000)),\n"
        "    spec.Claim('a', 'unsure', spec.Greater(ONE, OTHER, 'kl')),\n"
        ")\n"
    )
    command = [sys.executable, "-m", "rlhf_jax.sweep", f"--config={experiment}", f"--workdir={path}", "--until-decided"]
    folders = f"{ROOT}:{ROOT / 'tests/support'}"
    environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "PYTHONPATH": folders}
    done = subprocess.run([*command, runner], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "holds at 2 seeds: sure" in done.stdout and "the next look is at 3 seeds: 2 arms to run" in done.stdout
    taken = read_json(path / looks.FILE)["claims"].values()
    assert sorted([look["seeds"] for look in claim] for claim in taken) == [[2], [2, 3]]
