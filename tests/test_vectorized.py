"""The vectorized runner leaves behind what the sequential one does; see test_trials for the numbers."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest
from compare import params_of, timeless
from toy import get_config as toy_config

from rlhf_jax.runtime import progress
from rlhf_jax.runtime.files import read_json
from rlhf_jax.sweep import arms, sequential, trials, vectorized
from rlhf_jax.sweep.store import Store

pytestmark = pytest.mark.usefixtures("one_device")
ROOT = pathlib.Path(__file__).resolve().parent.parent
SETTINGS = [
    {"seed": 0, "pretrain.learning_rate": 1e-2, "ppo.kl_coef": 0.02},
    {"seed": 0, "pretrain.learning_rate": 1e-2, "ppo.kl_coef": 0.3},  # has the first one's pretrained model
    {"seed": 0, "pretrain.learning_rate": 1e38, "ppo.kl_coef": 0.02},  # ends in NaN
    {"seed": 0, "pretrain.learning_rate": 1e38, "ppo.kl_coef": 0.3},  # and has no model either
    {"seed": 1, "pretrain.learning_rate": 1e-2, "ppo.kl_coef": 0.02},
]


def accounts(path, chosen) -> list[dict]:
    return [read_json(path / "arms" / arm.name / "arm.json") for arm in chosen]


def test_arms_share_stages_fail_alone_and_go_on_where_they_were_stopped(tmp_path, monkeypatch, capsys):
    chosen = arms.expand(toy_config("pretrain"), SETTINGS)
    fit_stage, calls = trials.fit_stage, []

    def stopped_at_first(runs, stage, folder, at_once):
        calls.append([run.path.name for run in runs])
        if len(calls) == 1:
            raise progress.Stopped(stage, 1)
        return fit_stage(runs, stage, folder, at_once)

    monkeypatch.setattr(trials, "fit_stage", stopped_at_first)
    store = Store(tmp_path / "stages")
    with pytest.raises(progress.Stopped):
        vectorized.run(chosen, tmp_path, store)
    assert {account["status"] for account in accounts(tmp_path, chosen)} == {"stopped"}
    vectorized.run(chosen, tmp_path, store)
    assert calls == [[chosen[number].name for number in (0, 2, 4)]] * 2  # once for each identity
    found = accounts(tmp_path, chosen)
    assert [account["status"] for account in found] == ["done", "done", "failed", "failed", "done"]
    assert found[2]["reason"].startswith("diverged: pretrain step 2: ")
    assert found[3]["reason"] == f"stage 'pretrain' failed in arm {chosen[2].name}, which computes it for this arm too"
    folders = [tmp_path / "arms" / arm.name / "pretrain" for arm in chosen]
    assert read_json(folders[0] / "done.json")["trials"] == 3
    assert read_json(folders[1] / "done.json")["shared_from"].endswith(f"{chosen[0].name}/pretrain")
    assert "pretrain: evaluation of 2 arms" in capsys.readouterr().out  # those that are the first of their kind
    for number in (0, 1, 4):
        names = {file.name for file in folders[number].iterdir()}
        assert {"params", "metrics.jsonl", "evaluation.json", "samples.jsonl"} <= names
    assert not (folders[2] / "done.json").exists() and not list((tmp_path / "trials").iterdir())
    vectorized.run(chosen, tmp_path, store)
    assert len(calls) == 2  # nothing is missing


@pytest.mark.slow
def test_a_whole_sweep_gives_the_rows_and_estimates_of_the_sequential_runner(tmp_path):
    config = toy_config("ppo")
    for stage in ("pretrain", "sft", "reward_model", "ppo"):
        for name in [name for name in config[stage] if name.endswith("optimizer")]:
            config[stage][name].eps = 1e-4  # or Adam makes steps out of rounding errors
    settings = [{"seed": seed, "ppo.ptx_coef": value} for seed in (0, 1) for value in (0.0, 0.5)]
    chosen = arms.expand(config, settings)
    for name, runner in {"all": vectorized, "one": sequential}.items():
        runner.run(chosen, tmp_path / name, Store(tmp_path / name / "stages"))
        assert {account["status"] for account in accounts(tmp_path / name, chosen)} == {"done"}
    for arm in chosen:
        folder, other = (tmp_path / name / "arms" / arm.name for name in ("all", "one"))
        for stage in config.stages:

            def names(path):
                return {file.name for file in (path / stage).iterdir()} - {"checkpoints"}

            assert names(folder) == names(other), stage
            if stage != "collect":
                rows, others = timeless(folder / stage), timeless(other / stage)
                assert [row.keys() for row in rows] == [row.keys() for row in others]
                loss = "ppo/val/loss" if stage == "ppo" else "loss"
                assert rows[0][loss] == pytest.approx(others[0][loss], rel=0.01)
        found, wanted = (read_json(path / "ppo" / "evaluation.json")["estimates"] for path in (folder, other))
        assert found.keys() == wanted.keys()
        assert found["valid_loss"]["value"] == pytest.approx(wanted["valid_loss"]["value"], rel=0.01)


KILLED = """
import os
import pathlib
import signal
import time

import toy
from rlhf_jax.sweep.trials import programs

supervised_of = programs.supervised_of


def killed(trainings, mesh):
    state, advance = supervised_of(trainings, mesh)

    def step(state, number, active):
        if number == 3 and "KILLED_WITH" in os.environ:
            while not list(pathlib.Path(os.environ["KILLED_WITH"]).glob("trials/*/checkpoints/2")):
                time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGKILL)
        return advance(state, number, active)

    return state, step


programs.supervised_of = killed


def get_config():
    return toy.get_config("pretrain")


def sweep(h):
    return h.zipit([h.sweep("pretrain.learning_rate", [1e-2, 3e-3, 3e-3]), h.sweep("seed", [0, 0, 1])])
"""


@pytest.mark.slow
def test_a_group_killed_and_resumed_is_the_group_never_killed(tmp_path):
    """Bitwise: three trials on two devices, killed by SIGKILL in step 4 of 5, when 2 are saved."""
    (tmp_path / "killed.py").write_text(KILLED)
    devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    environment = os.environ | devices | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])}

    def swept(name, **variables) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "rlhf_jax.sweep", "--runner=vectorized", f"--config={tmp_path / 'killed.py'}"]
        return subprocess.run(
            [*command, f"--workdir={tmp_path / name}"],
            cwd=ROOT,
            env=environment | variables,
            capture_output=True,
            text=True,
        )

    done = swept("resumed", KILLED_WITH=str(tmp_path / "resumed"))
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
    assert len(list((tmp_path / "resumed" / "trials").iterdir())) == 1
    for name in ("resumed", "whole"):
        done = swept(name)
        assert done.returncode == 0, done.stdout + done.stderr
        assert ("pretrain x 3 1/5" in done.stdout) == (name == "whole")  # the other one goes on at step 3
        assert not list((tmp_path / name / "trials").iterdir())
    assert "pretrain: evaluation of 3 arms" in done.stdout
    for arm in sorted((tmp_path / "whole" / "arms").iterdir()):
        stages = [tmp_path / name / "arms" / arm.name / "pretrain" for name in ("resumed", "whole")]
        assert timeless(stages[0]) == timeless(stages[1]) and len(timeless(stages[0])) == 5
        found, wanted = map(params_of, stages)
        assert all((found[name] == wanted[name]).all() for name in wanted)
        assert (stages[0] / "samples.jsonl").read_text() == (stages[1] / "samples.jsonl").read_text()
        assert read_json(tmp_path / "resumed" / "arms" / arm.name / "arm.json")["status"] == "done"


def test_a_stage_that_is_validated_while_it_trains_is_trained_by_itself():
    config = toy_config()
    assert vectorized._stacks(config, "ppo") and vectorized._stacks(config, "sft")
    config.ppo.validate_every = 2
    assert not vectorized._stacks(config, "ppo") and not vectorized._stacks(config, "collect")
