"""Several processes of one job: real ones, on this machine, through launch/local.sh or side by side."""

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

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import tiny
import toy
from rlhf_jax import hosts, pretrain, sharding
from rlhf_jax import run as run_lib
from rlhf_jax.data.batches import Batch
from rlhf_jax.data.loader import Loader
from rlhf_jax.errors import InputError
from rlhf_jax.metrics import read_metrics
from rlhf_jax.sft import MixedLoader

ROOT = pathlib.Path(__file__).parent.parent
CONFIG = "tests/toy.py"
SHORT = {"pretrain.steps": 60, "pretrain.checkpoint_every": 7, "pretrain.validate_every": 25}
SHORT_FLAGS = [f"--config.{name}={value}" for name, value in SHORT.items()]


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """For processes that start with this project, on CPU devices, with programs compiled once for all of them."""
    return {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "GLIBC_TUNABLES")} | {
        "JAX_PLATFORMS": "cpu",
        "LOCAL_PYTHON": sys.executable,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("programs")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "GRACE": "60",
    }


class Job:
    """A command that runs, and the lines it has printed so far."""

    def __init__(self, command, environment):
        self.process = subprocess.Popen(
            command, env=environment, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
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

    def end(self, seconds: float = 400) -> int:
        """Its exit status."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            pytest.fail(f"still running after {seconds} s:\n{self.output}")
        finally:
            self._reader.join(10)


def local(count, config, workdir, environment, *flags) -> Job:
    return Job(["bash", "launch/local.sh", str(count), config, f"--workdir={workdir}", *flags], environment)


def alone(config, workdir, environment, *flags, devices=1) -> Job:
    command = [sys.executable, "-u", "-m", "rlhf_jax.main", f"--config={config}", f"--workdir={workdir}", *flags]
    return Job(command, environment | {"JAX_NUM_CPU_DEVICES": str(devices)})


def side_by_side(count, config, workdir, environment, *flags) -> list[Job]:
    """As on hosts of their own: nothing ends one when another fails."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    joined = f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}"
    return [alone(config, workdir, environment, *flags, *joined, f"--process_id={i}") for i in range(count)]


def timeless(path) -> list[dict]:
    return [{name: value for name, value in row.items() if name != "time"} for row in read_metrics(path / "metrics.jsonl")]


def arrays_of(path) -> dict[str, np.ndarray]:
    """The output of a stage and all of its last checkpoint."""
    last = max((int(step.name) for step in (path / "checkpoints").iterdir() if step.name.isdecimal()))
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def read(path):
        with ocp.StandardCheckpointer() as reader:
            tree = reader.metadata(path).item_metadata.tree
            wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), tree)
            return reader.restore(path, wanted)

    trees = {"params": read(path / "params"), "state": read(path / "checkpoints" / str(last))}
    return {jax.tree_util.keystr(name): np.asarray(leaf) for name, leaf in jax.tree.leaves_with_path(trees)}


def assert_same_stage(path, expected, stage):
    assert timeless(path / stage) == timeless(expected / stage)
    found, wanted = arrays_of(path / stage), arrays_of(expected / stage)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, name)


# ---------------------------------------------------------------------------- one process's share


@pytest.mark.parametrize("name", tiny.MESHES)
def test_rows_gathered_by_place_are_the_batch(name):
    mesh = tiny.mesh_of(name)
    examples = tiny.documents_of(40, 12)
    loader = Loader(examples, 16, seed=3, name="x")
    mixed = MixedLoader(examples, tiny.documents_of(24, 12, seed=1), 16, 0.25, seed=3, name="x")
    for loader in (loader, mixed):
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
    mixed = MixedLoader(examples, tiny.documents_of(24, 12, seed=1), 16, 0.25, seed=3, name="x")
    for loader in (Loader(examples, 16, seed=3, name="x"), mixed):
        parts = [loader.batch(2, np.arange(16)[half]) for half in (slice(0, 8), slice(8, 16))]
        whole = jax.tree.map(lambda *rows: np.concatenate(rows), *parts)
        jax.tree.map(np.testing.assert_array_equal, whole, loader.batch(2))


@pytest.mark.parametrize(
    "flags, message",
    [
        (("manual",), "--distributed=manual is unknown; it can be 'auto'"),
        (("", "host:1", 2), "--coordinator=HOST:PORT, --num_processes=N and --process_id=I go together"),
        (("", "host:1", 2, 2), "ids count from 0"),
        (("", "host", 2, 0), "the coordinator is HOST:PORT"),
    ],
)
def test_flags_that_join_nothing_are_refused(flags, message):
    with pytest.raises(InputError, match=message):
        hosts.start(*flags)


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
    assert job.end() == 75, job.output
    stopped = re.findall(r"\[(\d)\] rlhf_jax: stopped at pretrain step (\d+); run the same command to go on", job.output)
    assert sorted(process for process, _ in stopped) == ["0", "1"] and len({step for _, step in stopped}) == 1, job.output
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
