"""launch/slurm.sh against a real Slurm of two nodes on this machine."""

import json
import pathlib
import re
import subprocess
import sys
import time

import pytest
import slurm_cluster

PROJECT = pathlib.Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow

# Stands in for Python: called as `-m rlhf_jax.main FLAGS`, it does what --data says and notes its starts.
PROGRAM = f"""#!{sys.executable}
import json, os, pathlib, signal, sys, time
flags = dict(flag.removeprefix("--").split("=", 1) for flag in sys.argv[3:])
process, workdir = int(os.environ["SLURM_PROCID"]), pathlib.Path(flags["workdir"], flags.get("arms", ""))
workdir.mkdir(parents=True, exist_ok=True)
with open(workdir / f"starts-{{process}}", "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
first = len((workdir / f"starts-{{process}}").read_text().splitlines()) == 1

def lost_its_peer():
    time.sleep(3)
    os.abort()

def terminated(*_):
    signal.signal(signal.SIGTERM, lambda *_: os._exit(130))  # as rlhf_jax: once more, and it stops at once
    time.sleep(3 * process)  # one saves longer than the other
    (workdir / f"saved-{{process}}").touch()
    sys.exit(75)

signal.signal(signal.SIGTERM, terminated)
if flags["data"] == "sum":  # real JAX over both nodes, found by itself
    import jax
    jax.distributed.initialize()
    from jax.experimental import multihost_utils
    found = multihost_utils.process_allgather(jax.numpy.array([jax.process_index()]))
    (workdir / f"found-{{process}}").write_text(str(found.ravel().tolist()))
elif flags["data"] == "wait" and first or flags.get("arms") == "0" and first:
    time.sleep(600)
elif flags["data"] == "crash" or flags["data"] == "crash-once" and first:
    sys.exit(1) if process else lost_its_peer()
elif flags["data"] == "bad" and process:
    sys.exit(2)
elif flags["data"] == "bad":
    lost_its_peer()
elif flags.get("arms") == "7":
    sys.exit(4)
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    slurm_cluster.install()
    with slurm_cluster.running(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}


@pytest.fixture
def submit(cluster, tmp_path):
    (tmp_path / "python").write_text(PROGRAM)
    (tmp_path / "python").chmod(0o755)

    def submit(*flags, nodes=2, python=tmp_path / "python", config="experiments/quickstart.py") -> str:
        """Submits a run in tmp_path / "run"; the number of the job."""
        places = [f"--config={config}", f"--workdir={tmp_path}/run", f"--python={python}"]
        command = ["bash", "launch/slurm.sh", *places, f"--nodes={nodes}", "--gpus=0", *flags]
        done = subprocess.run(command, cwd=PROJECT, env=cluster, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return re.search(r"Submitted batch job (\d+)", done.stdout)[1]

    return submit


def starts(run, process=0) -> int:
    path = run / f"starts-{process}"
    return len(path.read_text().splitlines()) if path.exists() else 0


def wait_for(condition, seconds=60):
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline
        time.sleep(0.2)


def test_processes_on_two_nodes_find_each_other(cluster, submit, tmp_path):
    job = slurm_cluster.wait(cluster, submit("--data=sum"))
    assert (job["JobState"], job["ExitCode"]) == ("COMPLETED", "0:0")
    assert [(tmp_path / "run" / f"found-{process}").read_text() for process in (0, 1)] == ["[0, 1]"] * 2


def test_an_array_has_one_run_a_seed_and_a_line_of_the_sweep(cluster, submit, tmp_path):
    sweep = tmp_path / "sweep.txt"
    sweep.write_text(
        "# two coefficients\n--config.ppo.kl_coef=0.1\n\n--config.ppo.kl_coef=0.2 --config.ppo.microbatches=2\n"
    )
    number = submit("--data=none", "--seeds=0,4", f"--sweep={sweep}", "--config.ppo.lam=0.9", nodes=1)
    found = {}
    for task in range(4):
        assert slurm_cluster.wait(cluster, f"{number}_{task}")["ExitCode"] == "0:0"
        assert "exit code 0" in (tmp_path / "run" / "slurm" / f"{number}_{task}.log").read_text()
    for path in (tmp_path / "run").glob("*/starts-0"):
        (line,) = path.read_text().splitlines()
        found[path.parent.name] = json.loads(line)
    assert sorted(found) == [
        "ppo.kl_coef=0.1,seed=0",
        "ppo.kl_coef=0.1,seed=4",
        "ppo.kl_coef=0.2,ppo.microbatches=2,seed=0",
        "ppo.kl_coef=0.2,ppo.microbatches=2,seed=4",
    ]
    assert found["ppo.kl_coef=0.2,ppo.microbatches=2,seed=4"] == [
        "-m",
        "rlhf_jax.main",
        "--distributed=auto",
        "--config=experiments/quickstart.py",
        "--data=none",
        "--config.ppo.lam=0.9",
        f"--workdir={tmp_path}/run/ppo.kl_coef=0.2,ppo.microbatches=2,seed=4",
        "--config.ppo.kl_coef=0.2",
        "--config.ppo.microbatches=2",
        "--config.seed=4",
    ]


def test_a_run_told_to_stop_is_queued_again(cluster, submit, tmp_path):
    number, run = submit("--data=wait"), tmp_path / "run"
    wait_for(lambda: starts(run, 0) == starts(run, 1) == 1)
    subprocess.run(
        ["scancel", "--signal=TERM", number], env=cluster, check=True
    )  # what Slurm does before the time is up
    wait_for(lambda: (run / "saved-0").exists() and (run / "saved-1").exists())
    job = slurm_cluster.wait(cluster, number)
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("COMPLETED", "0:0", "1")
    log = (run / "slurm" / f"{number}.log").read_text()
    assert "exit code 75" in log and "exit code 0" in log


def test_a_cancelled_run_does_not_come_back(cluster, submit, tmp_path):
    number, run = submit("--data=wait"), tmp_path / "run"
    wait_for(lambda: starts(run, 0) == starts(run, 1) == 1)
    subprocess.run(["scancel", number], env=cluster, check=True)
    wait_for(lambda: (run / "saved-0").exists())
    time.sleep(15)
    assert slurm_cluster.job(cluster, number)["JobState"] == "CANCELLED"
    assert starts(run) == 1


def test_after_a_crash_it_runs_again_in_the_same_allocation(cluster, submit, tmp_path):
    number = submit("--data=crash-once")
    job = slurm_cluster.wait(cluster, number)
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("COMPLETED", "0:0", "0")
    assert starts(tmp_path / "run") == starts(tmp_path / "run", 1) == 2


def test_a_run_that_only_crashes_is_given_up(cluster, submit, tmp_path):
    number = submit("--data=crash", "--max-restarts=1")
    job = slurm_cluster.wait(cluster, number)
    assert job["JobState"] == "FAILED" and job["ExitCode"] not in ("0:0", "2:0")
    assert starts(tmp_path / "run") == 2
    assert "failed 2 times in a row" in (tmp_path / "run" / "slurm" / f"{number}.log").read_text()


def test_bad_input_of_one_process_ends_the_job(cluster, submit, tmp_path):
    number = submit("--data=bad")
    assert slurm_cluster.wait(cluster, number)["ExitCode"] == "2:0"
    assert starts(tmp_path / "run") == 1


def test_the_tasks_of_an_array_are_the_arms_of_a_sweep(cluster, submit, tmp_path):
    """One that is queued again is waited for, and one whose arm failed is not run again."""
    first = submit("--data=arms", "--arms=0-1", nodes=1)
    rest = submit("--data=arms", "--arms=7", f"--sbatch=--dependency=afterany:{first}", nodes=1)
    run = tmp_path / "run"
    wait_for(lambda: starts(run / "0") == 1 and starts(run / "1") == 1)
    subprocess.run(["scancel", "--signal=TERM", f"{first}_0"], env=cluster, check=True)
    wait_for(lambda: "exit code 75" in (run / "slurm" / f"{first}_0.log").read_text())
    assert slurm_cluster.wait(cluster, f"{first}_1")["ExitCode"] == "0:0"
    assert slurm_cluster.job(cluster, rest)["JobState"] == "PENDING" and starts(run / "7") == 0
    assert slurm_cluster.wait(cluster, f"{first}_0")["ExitCode"] == "0:0"
    assert slurm_cluster.wait(cluster, f"{rest}_7")["ExitCode"] == "4:0"
    assert [starts(run / arm) for arm in ("0", "1", "7")] == [2, 1, 1]
    assert json.loads((run / "7" / "starts-0").read_text()) == [
        "-m",
        "rlhf_jax.sweep",
        "--distributed=auto",
        "--config=experiments/quickstart.py",
        "--data=arms",
        f"--workdir={run}",
        "--arms=7",
    ]


TOY = """
from rlhf_jax.config import default_config


def get_config():
    config = default_config()
    config.stages = ("pretrain",)
    config.prompt_length, config.completion_length = 64, 8
    config.tokenizer.vocab_size = 400
    config.model.update(num_layers=1, embed_dim=32, num_heads=2, max_length=80, dtype="float32", remat="none")
    config.data.world.update(documents=60, valid_documents=8, test_prompts=8, valid_prompts=16)
    config.pretrain.update(length=40, batch_size=8, steps=150, learning_rate=1e-2, checkpoint_every=50)
    config.evaluate.update(prompts=8, batch_size=8, skill_items=2)
    return config
"""


# Two settings x two seeds, one of which diverges; arms of one seed share the pretrained model.
SWEEP = (
    TOY.replace('("pretrain",)', '("pretrain", "sft")')
    + """

def sweep(h):
    arms = h.product([h.sweep("sft.learning_rate", [1e-2, 3e-3]), h.sweep("seed", range(2))])
    arms[3]["sft.learning_rate"] = 1e38
    return arms
"""
)


def test_a_sweep_runs_side_by_side_and_is_resumed_by_the_same_command(cluster, tmp_path):
    (tmp_path / "sweep.py").write_text(SWEEP)
    path = tmp_path / "run"
    program = [sys.executable, "-m", "rlhf_jax.sweep", f"--config={tmp_path}/sweep.py", f"--workdir={path}"]
    program += ["--config.data.world.demonstrations=24", "--config.data.world.valid_demonstrations=8"]
    program += ["--config.sft.batch_size=8", "--config.sft.epochs=2", "--config.pretrain.steps=600"]

    def submit() -> tuple[str, list[str]]:
        command = [*program, "--runner=cluster", "--", "--gpus=0", "--max-restarts=1"]
        done = subprocess.run(command, cwd=PROJECT, env=cluster, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout, re.findall(r"Submitted batch job (\d+)", done.stdout)

    _, (first, rest) = submit()
    arms = [path / "arms" / arm["name"] for arm in json.loads((path / "sweep.json").read_text())["arms"]]
    metrics = [arm / "pretrain" / "metrics.jsonl" for arm in arms]
    wait_for(lambda: all(file.exists() for file in metrics[:2]), 400)
    assert not (arms[0] / "pretrain" / "done.json").exists()  # the two are at it together
    subprocess.run(["scancel", "--signal=TERM", f"{first}_0"], env=cluster, check=True)
    wait_for(lambda: "exit code 75" in (path / "slurm" / f"{first}_0.log").read_text(), 120)
    assert slurm_cluster.job(cluster, rest)["JobState"] == "PENDING"  # what is queued again is waited for
    subprocess.run(["scancel", rest], env=cluster, check=True)
    said, (again,) = submit()
    assert "in Slurm's queue before: 0-1" in said and "--array=2-3 " in said
    tasks = [f"{first}_0", f"{first}_1", f"{again}_2", f"{again}_3"]
    codes = [slurm_cluster.wait(cluster, task, seconds=600)["ExitCode"] for task in tasks]
    logs = "".join(file.read_text() for file in (path / "slurm").glob("*.log"))
    assert codes == ["0:0", "0:0", "0:0", "4:0"], logs
    found = [json.loads((arm / "arm.json").read_text()) for arm in arms]
    assert [facts["status"] for facts in found] == ["done", "done", "done", "failed"]
    assert [facts["job"] for facts in found] == tasks and found[3]["reason"].startswith("diverged: sft step ")
    shared = ["shared_from" in json.loads((arm / "pretrain" / "done.json").read_text()) for arm in arms]
    assert sorted(shared[0::2]) == sorted(shared[1::2]) == [False, True]
    steps = [json.loads(line)["step"] for line in metrics[0].read_text().splitlines()]
    assert steps == sorted(set(steps)) and steps[-1] == 600
    assert (path / "report.md").exists()  # by the last one
    assert submit()[0].strip() == "nothing to submit"


def test_a_real_run_on_two_nodes_is_stopped_and_goes_on(cluster, submit, tmp_path):
    if "distributed" not in (PROJECT / "rlhf_jax" / "main.py").read_text():
        pytest.skip("rlhf_jax.main knows no --distributed yet")
    (tmp_path / "toy.py").write_text(TOY)
    metrics = tmp_path / "run" / "pretrain" / "metrics.jsonl"
    number = submit(python=sys.executable, config=tmp_path / "toy.py")
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") > 3, 120)
    subprocess.run(["scancel", "--signal=TERM", number], env=cluster, check=True)
    wait_for(lambda: slurm_cluster.job(cluster, number)["JobState"] == "PENDING")
    job = slurm_cluster.wait(cluster, number, seconds=240)
    log = (tmp_path / "run" / "slurm" / f"{number}.log").read_text()
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("COMPLETED", "0:0", "1"), log
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == sorted(set(steps)) and steps[-1] == 150  # none twice, though two processes made two starts
    assert "exit code 75" in log and (tmp_path / "run" / "pretrain" / "done.json").exists()
