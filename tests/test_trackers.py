"""Trackers: what is logged is read back from each tracker's own local store, also after a kill."""

import importlib.util
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import types

import pytest
import tracked
from toy import get_config

from rlhf_jax import trackers
from rlhf_jax.fields import checks
from rlhf_jax.fields.run import COMMON
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.trackers import Trackers
from rlhf_jax.trackers.tracker import Tracker, fields, table

# Trackio reads it when it is imported first, which only trackers do.
os.environ["TRACKIO_DIR"] = tempfile.mkdtemp()
for variable in ("WANDB_MODE", "MLFLOW_TRACKING_URI", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
    os.environ.pop(variable, None)

SUPPORT = pathlib.Path(__file__).parent / "support"
PACKAGES = {"wandb": "wandb", "trackio": "trackio", "tensorboard": "tensorboardX", "mlflow": "mlflow"}
CONFIG = {"seed": 3, "ppo": {"kl_coef": 0.05, "stages": ["a", "b"], "seed": None}}
SAMPLE = {
    "step": 2,
    "of": "greedy",
    "prompt": "say | hello\nto mira .",
    "completion": "<b>hello</b>, mira",
    "score": 0.25,
    "scores": {"reward_model": 0.5, "length": None},
    "kl": 1.5,
    "length": 4,
}
COLUMNS = ["step", "of", "prompt", "completion", "score", "score/reward_model", "score/length", "kl", "length"]


def needs(name: str) -> None:
    if importlib.util.find_spec(PACKAGES[name]) is None:
        pytest.skip(f"{PACKAGES[name]} is not installed: pip install 'rlhf_jax[{name}]'")


@pytest.fixture(params=sorted(PACKAGES))
def name(request):
    needs(request.param)
    return request.param


without_mlflow = pytest.mark.parametrize(  # which takes most of the time
    "name", ["tensorboard", "trackio", "wandb", pytest.param("mlflow", marks=pytest.mark.slow)], indirect=True
)


@pytest.fixture
def project(tmp_path):
    return f"of-{tmp_path.name}"  # Trackio's folder is one for all tests


def row_of(step: int) -> dict:
    return {"objective/kl": step / 8, "time/step": 0.5, "note": "a text"}


def log(run: Trackers, stage: str, restored: int, logged: int, steps) -> None:
    stage_trackers = run.stage(stage, restored, logged)
    for step in steps:
        stage_trackers.metrics(step, row_of(step))


def points(steps) -> list[tuple[int, float]]:
    return [(step, step / 8) for step in steps]


@without_mlflow
def test_a_run_of_two_stages_is_resumed_in_the_second(name, project, tmp_path, capfd):
    path = tmp_path / "sft_run"
    path.mkdir()
    with Trackers((name,), project, path, CONFIG) as run:
        log(run, "sft", 0, 0, [1, 2, 3])
        ppo = run.stage("ppo", 0, 0)
        for step in (1, 2):
            ppo.metrics(step, row_of(step))
        ppo.samples(2, [SAMPLE, SAMPLE | {"completion": "bye"}])
        ppo.warning(2, {"name": "kl_over_bound", "message": "the KL is 9.1, over 8", "step": 2})
    first = json.loads((path / trackers.FILE).read_text())[name]
    with Trackers((name,), project, path, CONFIG) as run:
        # The checkpoint is of step 1; steps 2 and 3 were logged, and 3 was killed before the tracker had it.
        log(run, "ppo", 1, 2, [2, 3, 4])
    second = json.loads((path / trackers.FILE).read_text())[name]
    assert second == {"id": first["id"], "logged": {"sft": 3, "ppo": 4}}

    found = tracked.READERS[name](path / "trackers", path, project)
    assert found.points["sft/objective/kl"] == points([1, 2, 3])
    assert found.points["ppo/objective/kl"] == points([1, 2, 3, 4])
    assert found.points.keys() == {f"{stage}/{metric}" for stage in ("sft", "ppo") for metric in list(row_of(1))[:2]}
    assert (found.name, found.group, found.config["seed"]) == ("sft_run", None, 3)
    # What is not repeated stays; TensorBoard forgets the repeated step, with its table, until the stage logs it again.
    if name != "tensorboard":
        [(metric, step, columns, rows)] = found.tables
        assert (metric, step, columns) == ("ppo/samples", 2, COLUMNS)
        assert [line[2:4] for line in rows] == [[SAMPLE["prompt"], SAMPLE["completion"]], [SAMPLE["prompt"], "bye"]]
        [warning] = found.warnings
        assert warning.endswith("the KL is 9.1, over 8")
    assert [line.split(",")[0] for line in capfd.readouterr().out.splitlines()] == [
        f"{name}: a new run",
        f"{name}: the run goes on",
    ]


def test_tensorboard_has_tables_and_warnings(project, tmp_path):
    needs("tensorboard")
    with Trackers(("tensorboard",), project, tmp_path, CONFIG) as run:
        stage = run.stage("ppo", 0, 0)
        stage.samples(2, [SAMPLE])
        stage.warning(2, {"name": "kl_over_bound", "message": "the KL is 9.1"})
    found = tracked.of_tensorboard(tmp_path, tmp_path, project)
    assert found.warnings == ["the KL is 9.1"]
    [(_, step, columns, [line])] = found.tables
    assert (step, columns) == (2, COLUMNS)
    assert "|".join(line[2:]).startswith(r"say \| hello ⏎ to mira .|<b>hello</b>, mira|0.25|0.5||1.5")


def test_arms_of_a_sweep_are_runs_of_its_group_and_can_be_open_together(name, project, tmp_path):
    sweep = tmp_path / "fig33"
    arms = [sweep / "arms" / arm for arm in ("ptx_coef=0,seed=0", "ptx_coef=2,seed=0")]
    runs = []
    for arm in arms:
        arm.mkdir(parents=True)
        (arm / "arm.json").write_text("{}")
        runs.append(Trackers((name,), project, arm, CONFIG))
    stages = [run.stage("ppo", 0, 0) for run in runs]
    for step in (1, 2):
        for place, stage in enumerate(stages):
            stage.metrics(step, {"objective/kl": place + step / 8})
    for run in runs:
        run.close()
    if name == "wandb":
        folders = list((sweep / "trackers" / "wandb").glob("offline-run-*"))
        assert len(folders) == 2
        return
    for place, arm in enumerate(arms):
        found = tracked.READERS[name](sweep / "trackers", arm, project)
        assert found.points == {"ppo/objective/kl": [(1, place + 0.125), (2, place + 0.25)]}
        assert found.name == arm.name and found.group == (None if name == "tensorboard" else "fig33")


def test_two_work_directories_of_one_name_are_two_runs_of_trackio(project, tmp_path):
    needs("trackio")
    import trackio

    for folder in ("a", "b", "a"):
        path = tmp_path / folder / "beta"
        path.mkdir(parents=True, exist_ok=True)
        logged = 2 * (path / trackers.FILE).exists()
        with Trackers(("trackio",), project, path, CONFIG) as run:
            log(run, "ppo", logged, logged, [logged + 1, logged + 2])
    runs = list(trackio.Api().runs(project))
    steps = [[row["step"] for row in trackio.SQLiteStorage.get_logs(project, "beta", run_id=run.id)] for run in runs]
    assert sorted(steps) == [[1, 2], [1, 2, 3, 4]]


# W&B's process of this process; and how libraries know that they are tested, in which case they report nothing.
_NOT_INHERITED = (
    "WANDB_SERVICE",
    "PYTEST_CURRENT_TEST",
    "PYTEST_VERSION",
    "CI",
    "GITHUB_ACTIONS",
    "GITLAB_CI",
    "TRAVIS",
)


def in_process(code: str, *arguments, **environment) -> subprocess.CompletedProcess:
    """Runs code in a process of its own, in which the names of this file's imports are there."""
    start = "import os, pathlib, signal, socket, sys, time\nfrom rlhf_jax.trackers import Trackers\n"
    paths = [os.fspath(SUPPORT.parent.parent), os.fspath(SUPPORT)]
    return subprocess.run(
        [sys.executable, "-c", start + code, *map(os.fspath, arguments)],
        env={name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
        | {"PYTHONPATH": os.pathsep.join(paths)}
        | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


KILLED = """
name, project, path = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
stage = Trackers((name,), project, path, {"seed": 3}).stage("ppo", 0, 0)
for step in range(1, 6):
    stage.metrics(step, {"objective/kl": step / 8})
time.sleep(1.5)
for step in range(6, 9):
    stage.metrics(step, {"objective/kl": step / 8})
os.kill(os.getpid(), signal.SIGKILL)
"""


@without_mlflow
def test_a_killed_run_has_no_step_twice_and_at_most_the_last_second_is_missing(name, project, tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    ended = in_process(KILLED, name, project, path)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    with Trackers((name,), project, path, {"seed": 3}) as run:
        log(run, "ppo", 4, 8, range(5, 12))  # the checkpoint is of step 4, and metrics.jsonl had 8 lines
    steps = [step for step, _ in tracked.READERS[name](path / "trackers", path, project).points["ppo/objective/kl"]]
    assert steps == sorted(set(steps))
    missing = set(range(1, 12)) - set(steps)
    assert missing <= ({5, 6, 7} if name == "wandb" else set())  # W&B holds a row until the next one


NETWORK = """
import ipaddress
outside = []

def recorded(function):
    def call(self, address, *rest):
        if self.family != getattr(socket, "AF_UNIX", None) and not ipaddress.ip_address(address[0]).is_loopback:
            outside.append(address)
            raise OSError("no network")
        return function(self, address, *rest)
    return call

def asked(host, *rest, found=socket.getaddrinfo, **more):
    if host not in ("localhost", "127.0.0.1", "::1", None):
        outside.append(host)
        raise OSError("no network")
    return found(host, *rest, **more)

socket.socket.connect, socket.socket.connect_ex = map(recorded, (socket.socket.connect, socket.socket.connect_ex))
socket.getaddrinfo = asked
path = pathlib.Path(sys.argv[1])
with Trackers(sys.argv[3:], sys.argv[2], path, {"seed": 3}) as run:
    stage = run.stage("ppo", 0, 0)
    stage.metrics(1, {"objective/kl": 0.5})
    stage.samples(1, [{"step": 1, "prompt": "a", "completion": "b"}])
    stage.warning(1, {"name": "kl_over_bound", "message": "over"})
time.sleep(1)
print("outside:", outside)
"""


def test_no_tracker_calls_the_network_unless_asked(project, tmp_path):
    """Neither this process nor W&B's other one, which would go through the proxy; a key and a token tempt them."""
    names = [name for name in sorted(PACKAGES) if importlib.util.find_spec(PACKAGES[name])]
    called = []
    with socket.create_server(("127.0.0.1", 0)) as proxy:

        def accept():
            while True:
                try:
                    connection, _ = proxy.accept()
                except OSError:
                    return
                called.append(connection.recv(200))
                connection.close()

        threading.Thread(target=accept, daemon=True).start()
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        proxies = {name: address for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")}
        secrets = {"HF_TOKEN": "hf_" + "a" * 34, "WANDB_API_KEY": "a" * 40}
        ended = in_process(NETWORK, tmp_path, project, *names, **proxies, **secrets, NO_PROXY="", no_proxy="")
        proxy.shutdown(socket.SHUT_RDWR)
    assert ended.stdout.splitlines()[-1:] == ["outside: []"], ended.stdout + ended.stderr
    assert called == []
    assert "failed" not in ended.stderr
    assert json.loads((tmp_path / trackers.FILE).read_text()).keys() == set(names)


class Fragile(Tracker):
    """Fails in one of its methods."""

    id, place = "1", "nowhere"
    fails, calls = "", []

    def __init__(self, run):
        self._note("open")

    def _note(self, doing):
        self.calls.append(doing)
        if doing == self.fails:
            raise RuntimeError(f"no {doing} today\nand more")

    def begin(self, stage, restored, logged, sure):
        self._note("begin")
        return logged

    def metrics(self, stage, step, row):
        self._note("metrics")

    def samples(self, stage, step, columns, rows):
        self._note("samples")

    def warning(self, stage, step, name, message):
        self._note("warning")

    def close(self, failed):
        self._note("close")


class Solid(Fragile):
    calls = []


@pytest.mark.parametrize("fails", ["open", "begin", "metrics", "samples", "warning", "close"])
def test_a_tracker_that_fails_says_so_once_and_the_others_go_on(tmp_path, monkeypatch, capsys, fails):
    monkeypatch.setattr(Fragile, "fails", fails)
    monkeypatch.setattr(Fragile, "calls", [])
    monkeypatch.setattr(Solid, "fails", "")
    monkeypatch.setattr(Solid, "calls", [])
    kinds = {name: trackers.Kind(lambda: types, kind) for name, kind in (("fragile", Fragile), ("solid", Solid))}
    monkeypatch.setattr(trackers, "KINDS", kinds)
    with Trackers(("fragile", "solid"), "p", tmp_path) as run:
        for name in ("sft", "ppo"):
            stage = run.stage(name, 0, 0)
            for step in (1, 2):
                stage.metrics(step, row_of(step))
                stage.samples(step, [SAMPLE])
                stage.warning(step, {"name": "w", "message": "m"})
    said = [line for line in capsys.readouterr().err.splitlines() if line]
    assert said == [f"the tracker fragile failed ({fails}: no {fails} today); the run goes on without it"]
    assert Fragile.calls[-1] == fails and Fragile.calls.count(fails) == 1
    assert Solid.calls == ["open"] + 2 * ["begin", *2 * ["metrics", "samples", "warning"]] + ["close"]


def test_other_processes_of_a_job_have_no_trackers(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers.hosts, "is_first", lambda: False)
    with Trackers(("wandb",), "p", tmp_path) as run:
        log(run, "sft", 0, 0, [1])
    assert list(tmp_path.iterdir()) == []


def test_the_fields_name_the_trackers():
    assert COMMON.parts["trackers"].allowed.each.names == tuple(trackers.KINDS)
    config = get_config()
    for wrong in (("comet",), ("wandb", "wandb")):
        config.trackers = wrong
        with pytest.raises(InputError, match="config.trackers|trackers=") as said:
            checks.check(config)
        assert "wandb, trackio, tensorboard and mlflow" in str(said.value)


@pytest.mark.parametrize("name", sorted(PACKAGES))
def test_a_missing_package_is_one_sentence(name, monkeypatch):
    for module in (PACKAGES[name], "torch.utils.tensorboard", "mlflow.tracking", "sqlalchemy"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=f"names {name}, which needs .*: pip install 'rlhf_jax\\[{name}\\]'"):
        trackers.check((name,))


def test_damaged_notes_are_refused_before_anything_is_computed(tmp_path):
    for text in ('{"wandb": {"id": 1, "logged": {}}}', '{"wandb": 1}', "{"):
        (tmp_path / trackers.FILE).write_text(text)
        with pytest.raises(InputError, match="trackers.json"):
            trackers.check((), tmp_path)


def test_tables_and_fields():
    assert table([{"step": 1, "prompt": "a"}, SAMPLE]) == (
        COLUMNS,
        [[1, None, "a", *[None] * 6], [2, "greedy", SAMPLE["prompt"], SAMPLE["completion"], 0.25, 0.5, None, 1.5, 4]],
    )
    assert fields(CONFIG) == {"seed": 3, "ppo.kl_coef": 0.05, "ppo.stages": ["a", "b"], "ppo.seed": None}
    assert fields({"empty": {}}) == {"empty": {}}
