"""Arms side by side: which GPUs a worker gets, what becomes of one that is killed, and a sweep by two of them."""

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest
from toy import get_config as toy_config

from rlhf_jax.runtime import progress
from rlhf_jax.runtime.files import read_json, write_json
from rlhf_jax.runtime.workdir import Workdir
from rlhf_jax.sweep import arms, listing, workers

ROOT = pathlib.Path(__file__).parents[1]
# A worker that takes the arms nobody has and is done with each after `seconds`; "die" kills it at its first.
WORKER = """
import json, os, pathlib, signal, sys, time
path, seconds, end = pathlib.Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
signal.signal(signal.SIGINT, lambda *_: (print("saved"), sys.exit(130)))
for folder in sorted((path / "arms").iterdir()):
    try:
        (folder / "taken").touch(exist_ok=False)
    except FileExistsError:
        continue
    record = lambda status: (folder / "arm.json").write_text(json.dumps({"status": status, "reason": None}))
    record("running")
    if end == "die":
        print("no memory", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(seconds)
    record("done")
"""


@pytest.fixture
def no_gpus(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def four(tmp_path):
    """(Directory of a sweep, its four arms)."""
    chosen = arms.expand(toy_config("ppo"), [{"seed": seed} for seed in range(4)])
    for arm in chosen:
        (tmp_path / "arms" / arm.name).mkdir(parents=True)
    return tmp_path, chosen


def stand_in(path, seconds=0.0, end=""):
    return [sys.executable, "-c", WORKER, str(path), str(seconds), end]


@pytest.mark.parametrize(
    "count, visible, expected",
    [
        (2, "0,1,2,3", [{"CUDA_VISIBLE_DEVICES": "0,2"}, {"CUDA_VISIBLE_DEVICES": "1,3"}]),
        (2, "GPU-a, GPU-b", [{"CUDA_VISIBLE_DEVICES": "GPU-a"}, {"CUDA_VISIBLE_DEVICES": "GPU-b"}]),
        (3, "5", [{"CUDA_VISIBLE_DEVICES": "5", "XLA_CLIENT_MEM_FRACTION": "0.300"}] * 3),
        (2, "", [{}, {}]),
        (2, "-1", [{}, {}]),
        (2, None, [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]),  # as nvidia-smi says
    ],
)
def test_workers_share_the_gpus(count, visible, expected, tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 0\necho 1\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    for name in ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES", "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        monkeypatch.delenv(name, raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert workers.shares(count) == expected
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert workers.shares(count) == [{}] * count


def test_workers_take_the_arms_between_them(four, no_gpus, capfd):
    path, chosen = four
    assert workers.run(2, chosen, path, command=stand_in(path, 0.3)) == {}
    assert all(read_json(path / "arms" / arm.name / "arm.json")["status"] == "done" for arm in chosen)
    said = capfd.readouterr().out
    assert "2 workers for 4 arms" in said and said.count(": done (") == 4 and "(0 to do" in said
    assert workers.run(2, chosen, path, command=["false"]) == {}  # nothing is missing: nobody is started


def test_an_arm_that_failed_is_run_once_more_however_many_workers_come_to_it(four, no_gpus):
    path, chosen = four
    for arm in chosen:
        write_json(path / "arms" / arm.name / "arm.json", {"status": "failed", "reason": "x", "attempts": 2})
    assert workers.run(2, chosen, path, command=["false"]) == {}
    assert set(workers.run(2, chosen[:1], path, retry=True, command=["false"])) == {0}
    assert [read_json(path / "arms" / arm.name / "arm.json")["status"] for arm in chosen] == ["stopped"] + [
        "failed"
    ] * 3


def test_a_worker_that_is_killed_is_named_and_its_arm_is_nobody_s(four, no_gpus):
    path, chosen = four
    ended = workers.run(2, chosen, path, command=stand_in(path, end="die"))
    assert ended == dict.fromkeys((0, 1), "was killed by SIGKILL: no memory")
    file = path / "arms" / chosen[0].name / "arm.json"
    write_json(file, read_json(file) | {"host": os.uname().nodename})
    config = chosen[0].config.to_dict()
    assert listing.unfinished(chosen[:1], path, begun=True) == []
    with Workdir(path / "arms" / chosen[0].name, config):
        assert listing.unfinished(chosen[:1], path, begun=True) == chosen[:1]
    write_json(file, read_json(file) | {"host": "another"})
    assert listing.unfinished(chosen[:1], path, begun=True) == chosen[:1]


def test_ctrl_c_is_passed_on_once(four, no_gpus):
    path, chosen = four

    def interrupt():
        while not all((path / "arms" / arm.name / "taken").exists() for arm in chosen[:2]):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(progress.Stopped) as stopped:
        workers.run(2, chosen, path, command=stand_in(path, 60))
    assert stopped.value.signal == signal.SIGINT and "step" not in str(stopped.value)
    assert all((path / "workers" / f"{number}.log").read_text() == "saved\n" for number in (0, 1))


def test_a_worker_stops_when_the_command_that_started_it_is_gone(tmp_path):
    """Its SIGTERM is that of any stop: what it does, it saves."""
    worker = (
        "import signal, time, pathlib, sys; from rlhf_jax.sweep import workers;"
        "signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path(sys.argv[1]).touch(), sys.exit()));"
        "workers.end_with_parent(); print('up', flush=True); time.sleep(60)"
    )
    parent = (
        "import subprocess, sys, os; worker = subprocess.Popen([sys.executable, '-c', sys.argv[1], sys.argv[2]],"
        "stdout=subprocess.PIPE); worker.stdout.readline(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", parent, worker, tmp_path / "stopped"], cwd=ROOT)
    until = time.monotonic() + 20
    while not (tmp_path / "stopped").exists():
        assert time.monotonic() < until
        time.sleep(0.1)


def test_a_worker_stops_when_the_command_was_gone_before_it_had_begun(tmp_path):
    """The command is killed while its worker still imports."""
    worker = (
        "import os, signal, time, pathlib, sys; first = os.getppid(); pathlib.Path(sys.argv[1], 'up').touch()\n"
        "while os.getppid() == first: time.sleep(0.01)\n"
        "signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path(sys.argv[1], 'stopped').touch(), sys.exit()))\n"
        "from rlhf_jax.sweep import workers\n"
        "workers.end_with_parent(); time.sleep(30)"
    )
    parent = (
        "import pathlib, sys, types; from rlhf_jax.sweep import workers; path = pathlib.Path(sys.argv[2]);"
        "workers.run(1, [types.SimpleNamespace(name='a', number=0)], path, command=[sys.executable, '-c', *sys.argv[1:]])"
    )
    command = subprocess.Popen([sys.executable, "-c", parent, worker, tmp_path], cwd=ROOT)
    until = time.monotonic() + 60
    while not (tmp_path / "up").exists():
        assert time.monotonic() < until and command.poll() is None
        time.sleep(0.05)
    command.kill()
    command.wait()
    until = time.monotonic() + 20
    while not (tmp_path / "stopped").exists():
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.slow
def test_two_workers_compute_what_their_arms_share_once(tmp_path):
    """The command itself: both arms are done, no stage was computed twice, and there is one report."""
    experiment = tmp_path / "experiment.py"
    experiment.write_text(
        "from toy import get_config as toy\n"
        "get_config = lambda arg='': toy('ppo')\n"
        "sweep = lambda h: h.product([h.sweep('ppo.kl_coef', [0.02, 0.3]), h.sweep('seed', range(1))])\n"
    )
    path = tmp_path / "sweep"
    command = [sys.executable, "-m", "rlhf_jax.sweep", f"--config={experiment}", f"--workdir={path}", "--workers=2"]
    environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{ROOT}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr + (path / "workers" / "0.log").read_text()
    assert "2 workers for 2 arms" in done.stdout and (path / "report.md").exists()
    found = {}
    for folder in (path / "arms").iterdir():
        assert read_json(folder / "arm.json")["status"] == "done"
        for stage in toy_config("ppo").stages:
            found.setdefault(stage, []).append("shared_from" in read_json(folder / stage / "done.json"))
    assert {stage: sorted(shared) for stage, shared in found.items()} == {
        stage: [False, stage != "ppo"] for stage in toy_config("ppo").stages
    }
