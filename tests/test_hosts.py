"""Several processes of one job: real ones, on this machine, through launch/local.sh or side by side."""

import dataclasses
import functools
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import types

import jax
import numpy as np
import pytest
import tiny
import toy
from compare import assert_same_stage, saved_arrays, timeless

from rlhf_jax import inputs, sharding
from rlhf_jax import run as run_lib
from rlhf_jax.checkpoint import Checkpointer
from rlhf_jax.data.batches import Batch, LengthReport
from rlhf_jax.data.loader import Loader
from rlhf_jax.runtime import hosts
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.workdir import Workdir
from rlhf_jax.stages import pretrain
from rlhf_jax.stages.sft import MixedLoader

ROOT = pathlib.Path(__file__).parent.parent
CONFIG = "tests/support/toy.py"
SHORT = {"pretrain.steps": 60, "pretrain.checkpoint_every": 7, "pretrain.validate_every": 25}
SHORT_FLAGS = [f"--config.{name}={value}" for name, value in SHORT.items()]


@pytest.fixture(scope="session")
def environment():
    """For processes that start with this project, on CPU devices."""
    return {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"} | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": " ".join(flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag),
        "LOCAL_PYTHON": sys.executable,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")]),
        "GRACE": "60",
    }


class Job:
    """A command that runs, and the lines it has printed so far."""

    def __init__(self, command, environment):
        self.process = subprocess.Popen(
            command,
            env=environment,
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.lines = []
        self._reader = threading.Thread(target=lambda: self.lines.extend(iter(self.process.stdout.readline, "")))
        self._reader.start()

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def wait_for(self, pattern: str, seconds: float = 240) -> re.Match:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := re.search(pattern, self.output):
                return found
            assert self.process.poll() is None, self.output
            time.sleep(0.005)
        pytest.fail(f"no '{pattern}' in\n{self.output}")

    def end(self, seconds: float = 900) -> int:
        """Its exit status."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            subprocess.run(["pkill", "-KILL", "-s", str(self.process.pid)])  # its session: local.sh and its processes
            pytest.fail(f"still running after {seconds} s:\n{self.output}")
        finally:
            self._reader.join(10)


def local(count, config, workdir, environment, *flags) -> Job:
    return Job(["bash", "launch/local.sh", str(count), config, f"--workdir={workdir}", *flags], environment)


def alone(config, workdir, environment, *flags, devices=1, program="main") -> Job:
    command = [sys.executable, "-u", "-m", f"rlhf_jax.{program}", f"--config={config}", f"--workdir={workdir}", *flags]
    return Job(command, environment | {"JAX_NUM_CPU_DEVICES": str(devices)})


def free_address() -> str:
    """An address of this machine where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def side_by_side(count, config, workdir, environment, *flags, own=lambda i: [], program="main") -> list[Job]:
    """As on hosts of their own: nothing ends one when another fails. `own`: number -> more flags of that one."""
    joined = f"--coordinator={free_address()}", f"--num_processes={count}"
    return [
        alone(config, workdir, environment, *flags, *joined, f"--process_id={i}", *own(i), program=program)
        for i in range(count)
    ]


# ---------------------------------------------------------------------------- launch/local.sh


def test_a_dry_run_prints_the_commands(environment):
    command = ["bash", "launch/local.sh", "2", "a b.py:x", "--dry-run", "--config.seed=1", "--workdir=runs/y z"]
    shown = environment | {"PORT": "1234", "LOCAL_DEVICES": "4", "LOCAL_PYTHON": "python"}
    printed = subprocess.run(command, env=shown, cwd=ROOT, text=True, capture_output=True, check=True).stdout
    assert printed.splitlines() == [
        rf"JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=4 python -u -m rlhf_jax.main --config=a\ b.py:x --config.seed=1 "
        rf"--workdir=runs/y\ z --coordinator=127.0.0.1:1234 --num_processes=2 --process_id={i} &"
        for i in (0, 1)
    ]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["two", CONFIG], "the first argument is the number of processes, not 'two'"),
        (["2"], "the second argument is the config"),
        (["2", "--workdir=x"], "the second argument is the config"),
    ],
)
def test_wrong_arguments_are_named(arguments, message, environment):
    done = subprocess.run(
        ["bash", "launch/local.sh", *arguments], env=environment, cwd=ROOT, text=True, capture_output=True
    )
    assert done.returncode == 2 and message in done.stderr and done.stdout == ""


def test_one_that_fails_ends_all_and_its_status_is_returned(tmp_path, environment):
    """Stand-ins for the program: what it would do takes longer to start."""
    program = tmp_path / "python"
    program.write_text(
        '#!/bin/sh\ncase "$*" in *process_id=1*) echo bad input; exit 2;; esac\necho started\nsleep 60\n'
    )
    program.chmod(0o755)
    begun = time.monotonic()
    job = local(3, CONFIG, tmp_path, environment | {"LOCAL_PYTHON": str(program), "PORT": "1", "GRACE": "1"})
    assert job.end(30) == 2 and time.monotonic() - begun < 20
    assert {"[1] bad input\n", "[0] started\n", "[2] started\n"} < set(job.lines)
    assert "process 1 of 3 ended with status 2" in job.output


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_signals_are_passed_on_once(tmp_path, environment, number, status):
    program = tmp_path / "python"
    program.write_text(
        f"#!{sys.executable}\nimport signal, sys, time\ncaught = []\n"
        "for number in (signal.SIGINT, signal.SIGTERM):\n    signal.signal(number, lambda n, _: caught.append(n))\n"
        "print('started', flush=True)\nwhile not caught:\n    time.sleep(0.01)\ntime.sleep(0.5)\n"
        "print('caught', *map(int, caught))\nsys.exit({2: 130, 15: 75}[caught[0]])\n"
    )
    program.chmod(0o755)
    job = local(2, CONFIG, tmp_path, environment | {"LOCAL_PYTHON": str(program), "PORT": "1"})
    job.wait_for(r"(?s)\[\d\] started.*\[\d\] started")
    os.killpg(job.process.pid, number)  # as a terminal does: to the whole foreground group
    assert job.end(30) == status
    assert {f"[0] caught {int(number)}\n", f"[1] caught {int(number)}\n"} < set(job.lines)


# ---------------------------------------------------------------------------- one process's share


def mixed_loader(examples):
    documents = Loader(tiny.documents_of(24, 12, seed=1), 4, seed=3, name="x/mix")
    return MixedLoader(Loader(examples, 12, seed=3, name="x"), documents)


@pytest.mark.parametrize("name", tiny.MESHES)
def test_rows_gathered_by_place_are_the_batch(name):
    mesh = tiny.mesh_of(name)
    examples = tiny.documents_of(40, 12)
    mixed = mixed_loader(examples)
    for loader in (Loader(examples, 16, seed=3, name="x"), mixed):
        asked = []

        def gather(places, loader=loader):
            asked.append(places)
            return loader.batch(5, places)

        found = sharding.put_rows(gather, 16, mesh)
        assert isinstance(found, Batch) and found.tokens.sharding == sharding.over_batch(mesh)
        jax.tree.map(np.testing.assert_array_equal, found, loader.batch(5))
        assert len(asked) == 1 and asked[0].tolist() == list(range(16))


def test_parts_of_a_batch_make_the_batch():
    examples = tiny.documents_of(40, 12)
    mixed = mixed_loader(examples)
    for loader in (Loader(examples, 16, seed=3, name="x"), mixed):
        parts = [loader.batch(2, np.arange(16)[half]) for half in (slice(0, 8), slice(8, 16))]
        whole = jax.tree.map(lambda *rows: np.concatenate(rows), *parts)
        jax.tree.map(np.testing.assert_array_equal, whole, loader.batch(2))


@pytest.mark.parametrize(
    "flags, message",
    [
        (("manual",), "--distributed=manual is unknown; it can be 'auto'"),
        (("", "host:1", 2), "--coordinator=HOST:PORT, --num_processes=N and --process_id=I must be given together"),
        (("", "host:1", 2, 2), "ids count from 0"),
        (("", "host", 2, 0), "the coordinator is HOST:PORT"),
    ],
)
def test_flags_that_join_nothing_are_refused(flags, message):
    with pytest.raises(InputError, match=message):
        hosts.start(*flags)


def test_auto_outside_a_cluster_says_what_to_give(tmp_path, environment):
    outside = {
        name: value for name, value in environment.items() if not re.match("SLURM|OMPI|KUBERNETES|TPU|CLOUD_TPU", name)
    }
    job = alone(f"{CONFIG}:pretrain", tmp_path, outside, "--distributed=auto")
    assert job.end() == 2 and "finds no cluster" in job.lines[-1] and "Traceback" not in job.output, job.output


def test_one_process_is_first_and_agrees_with_itself():
    assert hosts.count() == 1 and hosts.is_first()
    assert hosts.on_first(lambda x: (x, {}), 3) == (3, {})
    asked = iter([0, signal.SIGTERM])
    stop = hosts.Stop(lambda: next(asked))
    assert [stop.agreed(), stop.agreed()] == [0, signal.SIGTERM]


# ---------------------------------------------------------------------------- stopping and going on


def train(config, path):
    """The first stage of a config, in this process on two devices, without what comes after it."""
    with run_lib.start(config, path) as run:
        pretrain.run_stage(run, "pretrain")


def test_two_processes_stop_together_and_one_goes_on_as_if_never_stopped(tmp_path, environment, monkeypatch):
    """SIGTERM to one of two. What they leave, one process with two devices finishes, to the bit as it would alone."""
    job = local(2, f"{CONFIG}:pretrain", tmp_path / "two", environment, *SHORT_FLAGS)
    job.wait_for(r"\[0\] pretrain 1/60")
    os.kill(int(job.wait_for(r"pid (\d+) joins as process 1 of 2")[1]), signal.SIGTERM)
    assert job.end(240) == 75, job.output
    stopped = re.findall(
        r"\[(\d)\] rlhf_jax: stopped at pretrain step (\d+); run the same command to go on", job.output
    )
    assert sorted(process for process, _ in stopped) == ["0", "1"] and len({step for _, step in stopped}) == 1, (
        job.output
    )
    assert "[1] pretrain" not in job.output
    step = int(stopped[0][1])
    assert 1 <= step < 60 and [row["step"] for row in timeless(tmp_path / "two" / "pretrain")] == [*range(1, step + 1)]
    assert (tmp_path / "two" / "pretrain" / "checkpoints" / str(step) / "manifest.json").exists()

    monkeypatch.setattr(sharding, "make_mesh", functools.partial(sharding.make_mesh, devices=jax.devices()[:2]))
    config = toy.get_config("pretrain")
    config.update_from_flattened_dict(SHORT)
    for name in ("two", "one"):
        train(config, tmp_path / name)
    assert_same_stage(tmp_path / "two", tmp_path / "one", "pretrain")


@pytest.mark.slow
def test_ctrl_c_of_one_process_has_its_own_status(tmp_path, environment):
    """One process, SIGINT: saved all the same, 130."""
    job = alone(f"{CONFIG}:pretrain", tmp_path, environment, *SHORT_FLAGS)
    job.wait_for("pretrain 1/60")
    job.process.send_signal(signal.SIGINT)
    assert job.end() == 130 and "stopped at pretrain step" in job.output, job.output


# ---------------------------------------------------------------------------- the whole pipeline


@pytest.fixture(scope="session")
def one_process(tmp_path_factory, environment):
    """devices -> the folder of a whole run by one process that nothing disturbed."""

    @functools.cache
    def run(devices):
        path = tmp_path_factory.mktemp("one") / "run"
        job = alone(CONFIG, path, environment, *divide(devices), devices=devices)
        assert job.end() == 0, job.output
        return path

    return run


def divide(devices) -> list[str]:
    """The flags with which the toy's minibatches divide over so many devices."""
    return ["--config.ppo_ptx.microbatches=1"] if devices > 2 else []


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_the_whole_pipeline_by_several_processes_is_that_of_one(one_process, tmp_path, environment, count):
    """One device each, against one process with as many: every text and, for two, every bit of every number.

    The sum of four numbers depends on their order, which is another between processes than within one.
    """
    expected, path = one_process(count), tmp_path / "run"
    job = local(count, CONFIG, path, environment, *divide(count))
    assert job.end() == 0, job.output
    for stage in toy.TRAINED:
        if count == 2:
            assert_same_stage(path, expected, stage)
        else:
            assert_close_stage(path, expected, stage)
    exact = {file.relative_to(expected) for name in ("comparisons.*", "skills.jsonl") for file in expected.rglob(name)}
    texts = {file.relative_to(expected) for file in expected.rglob("samples.jsonl")}
    if count == 2:
        exact |= texts | {file.relative_to(expected) for file in expected.rglob("evaluation.json")}
    assert len(exact) >= 7 and len(texts) == 4
    for file in exact:
        assert untimed(path / file) == untimed(expected / file), file
    for file in texts:
        assert completions(path / file) == completions(expected / file), file
    assert (path / "report.md").exists() and not list(path.rglob("*tmp*"))


REWARDED = """
import toy

def get_config():
    config = toy.get_config()
    config.stages, config.evaluate.skill_items = ("ppo",), 0
    config.ppo.update(init="", iterations=2, reward="told:near(size=2), far=told:near(size=30)", reward_standardize=True)
    return config
"""
TOLD = """
import json, os, pathlib

def near(texts, prompts, rows, size):
    with open(os.environ["CALLS"], "a") as file:
        file.write(json.dumps([os.getpid(), size, texts, prompts]) + "\\n")
    return [-abs(len(text) - size) / 10 for text in texts]

def broken(texts, prompts, rows):
    return [1 / 0]
"""


@pytest.mark.slow
def test_a_reward_function_runs_on_the_first_host_once_and_all_hosts_have_its_scores(tmp_path, environment):
    (tmp_path / "rewarded.py").write_text(REWARDED)
    (tmp_path / "told.py").write_text(TOLD)
    config = str(tmp_path / "rewarded.py")

    def calls_of(path):
        return [json.loads(line) for line in path.read_text().splitlines()]

    one = alone(config, tmp_path / "one", environment | {"CALLS": str(tmp_path / "one.jsonl")}, devices=2)
    assert one.end() == 0, one.output
    two = local(2, config, tmp_path / "two", environment | {"CALLS": str(tmp_path / "two.jsonl")})
    assert two.end() == 0, two.output
    assert_same_stage(tmp_path / "two", tmp_path / "one", "ppo")
    found, wanted = calls_of(tmp_path / "two.jsonl"), calls_of(tmp_path / "one.jsonl")
    assert [call[1:] for call in found] == [call[1:] for call in wanted]
    assert len({call[0] for call in found}) == 1 and [len(call[2]) for call in found[:4]] == [8] * 4
    failed = local(2, config, tmp_path / "failed", environment, "--config.ppo.reward=told:broken")
    assert failed.end() == 2, failed.output
    said = re.findall(r"\[(\d)\] rlhf_jax: ppo.reward: told:broken raised ZeroDivisionError", failed.output)
    assert sorted(said) == ["0", "1"], failed.output  # each host's log has the sentence


def assert_close_stage(path, expected, stage):
    """To the float32 tolerance that a few steps of Adam leave of another order of summation."""
    for row, wanted in zip(timeless(path / stage), timeless(expected / stage), strict=True):
        for name in ("ppo/val/explained_variance", "objective/logprob_gap_max"):  # both near 0 / 0
            row.pop(name, None), wanted.pop(name, None)
        assert row == pytest.approx(wanted, rel=2e-2, abs=2e-4), (stage, row["step"])
    found, wanted = saved_arrays(path / stage), saved_arrays(expected / stage)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=5e-2, err_msg=name)


def completions(path) -> list[str]:
    return [json.loads(line)["completion"] for line in path.read_text().splitlines()]


def untimed(path) -> str:
    return re.sub(r'"seconds": [0-9.]+', "", path.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_another_number_of_devices_sees_the_same_data(one_process):
    for stage in ("pretrain", "sft"):
        rows = {devices: timeless(one_process(devices) / stage) for devices in (1, 2, 4)}
        for devices in (2, 4):
            for row, expected in zip(rows[devices], rows[1], strict=True):
                assert row == pytest.approx(expected, rel=1e-4), (stage, devices)


# ---------------------------------------------------------------------------- what ends a job


@pytest.mark.slow
@pytest.mark.parametrize("victim, number", [(1, signal.SIGKILL), (0, signal.SIGKILL), (1, signal.SIGSTOP)])
def test_a_dead_peer_ends_the_job_and_a_new_start_resumes(tmp_path, environment, victim, number):
    flags = ["--config.pretrain.steps=100000", "--config.pretrain.checkpoint_every=10", "--heartbeat_seconds=10"]
    arguments = 2, f"{CONFIG}:pretrain", tmp_path, environment, *flags
    jobs = side_by_side(*arguments)
    jobs[0].wait_for("pretrain 1/100000")
    while not list(tmp_path.glob("pretrain/checkpoints/[0-9]*/manifest.json")):
        time.sleep(0.1)
    died = time.monotonic()
    jobs[victim].process.send_signal(number)
    status = jobs[1 - victim].end(60)
    assert time.monotonic() - died < 30
    output = jobs[1 - victim].output
    assert status in (
        (76, -signal.SIGABRT) if victim == 0 else (76,) if number == signal.SIGKILL else (-signal.SIGABRT, 76)
    )
    if status == 76:
        assert f"process {1 - victim} of 2: another process of the job ended or cannot be reached" in output
        assert "Traceback" not in output
    else:
        assert "another task died" in output
    jobs[victim].process.kill()
    jobs[victim].end()
    saved = max(row["step"] for row in timeless(tmp_path / "pretrain")) // 10 * 10
    job = local(*arguments)
    first = int(job.wait_for(r"\[0\] pretrain (\d+)/100000")[1])
    assert saved - 20 < first - 1 <= saved
    job.process.terminate()
    assert job.end() == 75, job.output
    steps = [row["step"] for row in timeless(tmp_path / "pretrain")]
    assert steps == [*range(1, len(steps) + 1)]


@pytest.mark.slow
def test_a_job_is_refused_while_another_process_works_in_its_folder(tmp_path, environment):
    with Workdir(tmp_path, {}):
        job = local(2, f"{CONFIG}:pretrain", tmp_path, environment)
        assert job.end() == 2, job.output
    assert f"in use by process {os.getpid()}" in job.output and "Traceback" not in job.output


@pytest.mark.slow
def test_a_full_disk_is_a_sentence_from_every_process_and_older_checkpoints_stay(disk_of, environment):
    """1 MiB holds the checkpoints of steps 2 and 4; that of step 5 is begun while both are there."""
    disk = disk_of("1m")
    job = local(2, f"{CONFIG}:pretrain", disk / "run", environment)
    assert job.end() == 2, job.output
    for process in range(2):
        sentence = (
            rf"^\[{process}\] rlhf_jax: cannot save the checkpoint \S+/5: the disk is full; what was saved before is"
        )
        assert re.search(sentence, job.output, re.MULTILINE), job.output
    assert "Traceback" not in job.output
    with Checkpointer(disk / "run" / "pretrain" / "checkpoints") as checkpointer:
        assert checkpointer.steps() == [2, 4]


def test_a_host_that_read_other_data_than_the_first_is_refused(monkeypatch):
    run, here = types.SimpleNamespace(_write_data_report=None), LengthReport(given=10, dropped=1, cut=0, longest=5)
    for first in (here, dataclasses.replace(here, given=9)):
        monkeypatch.setattr(hosts, "on_first", lambda *_, first=first: dataclasses.asdict(first))
        if first == here:
            inputs.report_data(run, "sft", "demonstrations", here)
        else:
            with pytest.raises(InputError, match="sft: .* reads other demonstrations than process 0 .*the same files"):
                inputs.report_data(run, "sft", "demonstrations", here)


@pytest.mark.slow
def test_a_folder_that_not_every_host_sees_is_refused(tmp_path, environment):
    jobs = side_by_side(
        2,
        f"{CONFIG}:pretrain",
        tmp_path / "shared",
        environment,
        "--heartbeat_seconds=10",
        own=lambda i: [f"--workdir={tmp_path / 'other'}"] if i == 1 else [],
    )
    assert jobs[1].end(120) == 2, jobs[1].output
    assert "other is not the same folder on every host (process 1 of 2 does not find its config.json)" in jobs[1].output
    assert jobs[0].end(120) in (76, -signal.SIGABRT), jobs[0].output
    assert not (tmp_path / "other").exists()


# ---------------------------------------------------------------------------- sweeps

# A sweep whose stage says how it ends instead of training, so that what is seen is the sweep around it.
SWEEP = """
import dataclasses
import functools
import sys

import toy
from rlhf_jax import loop, pipeline
from rlhf_jax.fields import registry
from rlhf_jax.report import pages
from rlhf_jax.runtime import hosts

SECOND = "--process_id=1" in sys.argv


def get_config():
    return toy.get_config("pretrain")


def sweep(h):
    return h.sweep("seed", [0, 5, 6, 9, 1])


def run_stage(run, stage):
    if run.seed == 5:
        raise loop.NonFinite("pretrain step 3: loss not finite")
    if run.seed == 6:
        raise ValueError("no program fits")
    if run.seed == 9 and SECOND:
        raise OSError("its disk is gone")
    hosts.on_first(int)


registry.KINDS["pretrain"] = dataclasses.replace(registry.KINDS["pretrain"], run=run_stage)
pipeline.evaluate = pipeline.policy.rescore = lambda *_: None
pages.write, pages.show = str, print
hosts.all_failed = functools.partial(hosts.all_failed, seconds=20)
"""


FAILED = """
import sys
from rlhf_jax.runtime import hosts

address, number = sys.argv[1], int(sys.argv[2])
hosts.start("", address, 2, number)
print(hosts.all_failed("no memory", 60), file=sys.stderr)
print(hosts.all_failed(f"the disk of {number} is full", 1), file=sys.stderr)
hosts.leave(0)
"""


def test_processes_find_out_whether_all_failed_for_one_reason(environment):
    address = free_address()
    jobs = [Job([sys.executable, "-c", FAILED, address, str(number)], environment) for number in range(2)]
    for job in jobs:
        assert job.end(120) == 0, job.output
        assert [line.strip() for line in job.lines if line.strip() in ("True", "False")] == ["True", "False"]


@pytest.mark.slow
def test_arms_that_fail_on_all_hosts_end_alone_and_one_that_fails_on_one_host_ends_the_job(tmp_path, environment):
    (tmp_path / "sweep.py").write_text(SWEEP)
    path = tmp_path / "sweep"

    def accounts() -> list[tuple]:
        """(status, reason) of every arm, in their order."""
        arms = json.loads((path / "sweep.json").read_text())["arms"]
        files = [path / "arms" / arm["name"] / "arm.json" for arm in arms]
        found = [json.loads(file.read_text()) if file.exists() else {} for file in files]
        return [(facts.get("status"), facts.get("reason")) for facts in found]

    jobs = side_by_side(2, str(tmp_path / "sweep.py"), path, environment, program="sweep")
    assert jobs[1].end(400) == 76, jobs[1].output
    assert "process 1 of 2 failed alone" in jobs[1].output and "its disk is gone" in jobs[1].output
    assert jobs[0].end(200) in (76, -signal.SIGABRT), jobs[0].output
    ended = [
        ("done", None),
        ("failed", "diverged: pretrain step 3: loss not finite"),
        ("failed", "ValueError: no program fits"),
        ("failed", "OSError: its disk is gone (process 1 of 2)"),
    ]
    assert accounts() == [*ended, (None, None)]
    assert "OSError" in (path / "arms" / "seed=9" / "traceback.txt").read_text()
    job = local(2, str(tmp_path / "sweep.py"), path, environment, "--program=sweep")
    assert job.end(400) == 4, job.output
    assert accounts() == [*ended, ("done", None)] and f"[0] {path}\n" in job.lines  # the report, by the first alone
    assert job.output.count(": seed=5 failed: diverged") == 2


@pytest.mark.slow
def test_killed_at_twenty_moments_is_the_run_never_killed(one_process, tmp_path, environment):
    """kill -9 of a PPO run that saves every iteration; each time the newest good checkpoint is still there."""
    settings = ["--config.ppo.iterations=40", "--config.ppo.checkpoint_every=1"]

    def prepared(name):
        path = tmp_path / name
        path.mkdir()
        for file in ("template.txt", "tokenizer.json"):
            shutil.copy(one_process(1) / file, path)
        for stage in toy.STAGES[:4]:
            shutil.copytree(one_process(1) / stage, path / stage)
        return path

    whole = prepared("whole")
    job = alone(f"{CONFIG}:ppo", whole, environment, *settings)
    assert job.end() == 0, job.output
    moments, kills, starts, killed = random.Random(0), 0, 0, prepared("killed0")
    saved = 0
    while True:
        starts += 1
        assert starts < 60
        job = alone(f"{CONFIG}:ppo", killed, environment, *settings)
        job.wait_for(r"ppo (\d+)/40|ppo: finished before")
        time.sleep(moments.uniform(0, 1.2))
        if kills < 20:
            job.process.kill()
        if job.end() != 0:
            assert job.process.returncode == -signal.SIGKILL, job.output
            kills += 1
        elif kills == 20:
            break
        else:  # it came to its end: from the start again
            assert_same_stage(killed, whole, "ppo")
            killed, saved = prepared(f"killed{starts}"), 0
            continue
        with Checkpointer(killed / "ppo" / "checkpoints") as checkpointer:
            before, saved = saved, checkpointer.latest_step() or 0
        assert saved >= before
    assert kills == 20
    assert_same_stage(killed, whole, "ppo")
