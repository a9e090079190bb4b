"""The arms of a sweep as jobs of Slurm: which are submitted, in which order, and what becomes of those it kills.

Stand-ins for sbatch, squeue and sacct; a real Slurm: test_launch_slurm.py.
"""

import errno
import json
import os
import signal

import pytest
from toy import get_config as toy_config

from rlhf_jax.report.spec import Declared
from rlhf_jax.runtime import files, progress
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import read_json, write_json
from rlhf_jax.runtime.workdir import InUse, Workdir
from rlhf_jax.sweep import arms, cluster, grid, sequential, slurm
from rlhf_jax.sweep.store import identities

DESCRIBED = {
    "experiment": "experiments/quickstart.py",
    "config": json.loads(json.dumps(toy_config().to_dict())),
    "arms": [],
}
# Each prints what the test wrote into the file of its name.
SBATCH = """#!/bin/sh
echo "$*" >> $CLUSTER/submitted
echo "Submitted batch job $((40 + $(wc -l < $CLUSTER/submitted)))"
"""
TELL = """#!/bin/sh
cat $CLUSTER/{name}.txt
"""


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """A Slurm that takes every job; its queue is tools / "squeue.txt", the ends of jobs tools / "sacct.txt"."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name, text in {
        "sbatch": SBATCH,
        "squeue": TELL.format(name="squeue"),
        "sacct": TELL.format(name="sacct"),
    }.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
        (folder / f"{name}.txt").write_text("")
    monkeypatch.setenv("CLUSTER", str(folder))
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    return folder


def made(config=None) -> list[arms.Arm]:
    """3 coefficients of the last stage x 2 seeds, the seed varying fastest."""
    seeds, coefficients = grid.sweep("seed", range(2)), grid.sweep("ppo_ptx.ptx_coef", [0.0, 0.5, 2.0])
    return arms.expand(config or toy_config(), grid.product([coefficients, seeds]))


def record(path, arm, **facts) -> None:
    folder = path / "arms" / arm.name
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "arm.json", facts)


def numbers(*parts):
    return [[arm.number for arm in part] for part in parts]


def test_the_first_arm_of_every_shared_stage_runs_before_the_others(tmp_path):
    chosen = made()
    assert numbers(*cluster.waves(chosen, tmp_path)) == [[0, 1], [2, 3, 4, 5]]
    fixed = toy_config()  # one pretrained model under both seeds: arm 1 is still the first with its SFT
    fixed.pretrain.seed = 7
    assert numbers(*cluster.waves(made(fixed), tmp_path)) == [[0, 1], [2, 3, 4, 5]]
    last = toy_config("pretrain")  # nothing is shared: one array
    alone = arms.expand(last, grid.sweep("seed", range(3)))
    assert numbers(*cluster.waves(alone, tmp_path)) == [[], [0, 1, 2]]
    for stage, identity in identities(chosen[1].config).items():
        if stage != "ppo_ptx":
            write_json((tmp_path / identity).mkdir() or tmp_path / identity / "x.json", {})
    assert numbers(*cluster.waves(chosen, tmp_path)) == [[0], [1, 2, 3, 4, 5]]  # seed 1's stages are in the store


def test_numbers_are_written_as_sbatch_reads_them():
    chosen = made()
    assert cluster.ranges(chosen) == "0-5"
    assert cluster.ranges([chosen[number] for number in (5, 0, 3, 1)]) == "0-1,3,5"


def submit(path, chosen, flags=("--config=experiments/quickstart.py", "--", "--submitted"), **options):
    cluster.submit(chosen, path, path / "stages", DESCRIBED, list(flags), ["--gpus=0"], **options)


def arrays(tools) -> list[tuple[str, str | None]]:
    """(the arms, what they wait for) of each sbatch."""
    found = []
    lines = (tools / "submitted").read_text().splitlines() if (tools / "submitted").exists() else []
    for line in lines:
        words = dict(
            word.removeprefix("--").split("=", 1) for word in line.split() if word.startswith("--") and "=" in word
        )
        found.append((words["array"], words.get("dependency")))
    return found


def test_only_what_is_missing_and_not_queued_is_submitted(tools, tmp_path, capsys):
    path, chosen = tmp_path / "sweep", made()
    submit(path, chosen, dry_run=True)
    assert arrays(tools) == [] and not path.exists()
    assert "--dependency=afterany:FIRST" in capsys.readouterr().out
    submit(path, chosen)
    assert arrays(tools) == [("0-1", None), ("2-5", "afterany:41")]
    assert read_json(path / "sweep.json") == DESCRIBED
    assert read_json(path / "slurm" / "jobs.json")["41"] == {"0": chosen[0].name, "1": chosen[1].name}
    assert "--submitted" in (tools / "submitted").read_text()

    (tools / "squeue.txt").write_text("42 3 45\n42 5 46\n99 2 99\n50 N/A 50\n")  # 0, 1, 2 and 4 have left it
    record(path, chosen[0], status="done")
    record(path, chosen[1], status="failed", reason="diverged")
    record(path, chosen[4], status="stopped")
    submit(path, chosen)
    assert arrays(tools)[2:] == [("2,4", None)] or arrays(tools)[2:] == [("2", None), ("4", "afterany:43")]
    assert "in Slurm's queue before: 3,5" in capsys.readouterr().out
    (tools / "squeue.txt").write_text("")
    before = len(arrays(tools))
    submit(path, chosen[:2])
    assert len(arrays(tools)) == before and "nothing to submit" in capsys.readouterr().out
    submit(path, chosen[:2], retry=True)
    assert arrays(tools)[before:] == [("1", None)]


def test_a_script_or_a_slurm_that_refuses_is_a_sentence(tools, tmp_path):
    with pytest.raises(
        InputError, match="the arms 0-1 were not submitted: slurm.sh: --config=nothing.py: no such file"
    ):
        submit(tmp_path / "sweep", made(), flags=["--config=nothing.py"])
    (tools / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition' >&2\nexit 1\n")
    with pytest.raises(InputError, match="not submitted: sbatch: error: invalid partition"):
        submit(tmp_path / "sweep", made())


def test_a_job_runs_what_was_submitted_or_nothing(tmp_path):
    chosen = made()
    experiment = arms.Experiment("figure.py", "", chosen, Declared())
    write_json(tmp_path / "sweep.json", arms.describe(experiment, toy_config(), {}))
    arms.check_submitted(tmp_path, experiment, toy_config(), chosen)
    longer = arms.expand(toy_config(), [*[arm.overrides for arm in chosen], {"ppo_ptx.ptx_coef": 9.0, "seed": 0}])
    arms.check_submitted(tmp_path, arms.Experiment("figure.py", "", longer, Declared()), toy_config(), longer[:6])
    turned = arms.expand(toy_config(), [arm.overrides for arm in reversed(chosen)])
    other = toy_config()
    other.sft.epochs = 9.0
    for found, config in ((turned, toy_config()), (longer[6:], toy_config()), (chosen, other)):
        with pytest.raises(InputError, match="differs from .*sweep.json, because figure.py was changed after"):
            whole = longer if found == longer[6:] else found
            arms.check_submitted(tmp_path, arms.Experiment("figure.py", "", whole, Declared()), config, found[:1])


def test_arms_are_added_to_a_sweep_but_not_changed_under_it(tmp_path):
    def described(config, settings):
        return arms.describe(arms.Experiment("figure.py", "", arms.expand(config, settings), Declared()), config, {})

    seeds, config = grid.sweep("seed", range(4)), toy_config()
    arms.write(tmp_path / "new", described(config, seeds[:2]))
    config.platform = "cpu"  # changes no result
    arms.write(tmp_path / "new", described(config, seeds))
    assert len(read_json(tmp_path / "new" / "sweep.json")["arms"]) == 4
    config.sft.epochs = 9.0
    with pytest.raises(InputError, match=r"sft.epochs was 2.0 and is now 9.0"):
        arms.write(tmp_path / "new", described(config, seeds))


# ---------------------------------------------------------------------------- arms that are killed


def test_what_slurm_killed_is_said_with_its_reason(tools, tmp_path):
    chosen = made()
    running = {"status": "running", "attempts": 1, "seconds": 5.0}
    for arm, job in zip(chosen, ["41_0", "41_1", "42_2", None]):
        record(tmp_path, arm, **running, job=job)
    record(tmp_path, chosen[1], **running | {"attempts": 2, "job": "41_1", "reached": {}, "last_try": True})
    (tools / "squeue.txt").write_text("42 2 44\n")
    (tools / "sacct.txt").write_text("FAILED\nCOMPLETED\nOUT_OF_MEMORY\n")  # the job, its script, its program
    cluster.settle(chosen, tmp_path)
    found = [read_json(tmp_path / "arms" / arm.name / "arm.json") for arm in chosen[:4]]
    assert [facts["status"] for facts in found] == ["stopped", "failed", "running", "running"]
    assert (
        found[0]["reason"] == "killed once: it ran out of the memory that Slurm gave its job (OUT_OF_MEMORY); job 41_0"
    )
    assert found[1]["reason"].startswith("killed 2 times: it ran out") and found[0]["seconds"] == 5.0
    assert sequential.missing(tmp_path / "arms" / chosen[0].name) and not sequential.missing(
        tmp_path / "arms" / chosen[1].name
    )


@pytest.mark.parametrize(
    "said, words",
    [("CANCELLED by 1000\n", "cancelled"), ("TIMEOUT\n", "time limit"), ("COMPLETED\n", None), ("", None)],
)
def test_the_ends_of_jobs_in_words(tools, said, words):
    (tools / "sacct.txt").write_text(said)
    (tools / "scontrol").symlink_to("/bin/false")
    found = slurm.end_of("12_3")
    assert (words in found) if words else found is None


def test_without_slurm_nothing_is_known(tools, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert slurm.queue() is None and slurm.end_of("12") is None and slurm.this_job() is None
    chosen = made()
    record(tmp_path, chosen[0], status="running", attempts=1, job="12")
    cluster.settle(chosen, tmp_path)
    assert read_json(tmp_path / "arms" / chosen[0].name / "arm.json")["status"] == "running"


def attempt(folder, end=None) -> dict:
    """One start of an arm that does nothing; killed unless it has an end. What it left."""
    account = sequential.Account(folder)
    account.__enter__()
    if end and not account.given_up:
        account.__exit__(type(end), end, None)
    return read_json(folder / "arm.json")


def test_an_arm_that_is_killed_is_given_up_only_where_it_saves_nothing_new(tools, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    for step in (10, 20, 30):
        assert attempt(tmp_path)["attempts"] == 1
        (tmp_path / "ppo" / "checkpoints" / str(step)).mkdir(parents=True)
    found = attempt(tmp_path)
    assert (found["status"], found["reached"], found["job"]) == ("running", {"ppo": "30"}, "12_3")
    assert attempt(tmp_path)["attempts"] == 2
    (tools / "sacct.txt").write_text("OUT_OF_MEMORY\n")
    found = attempt(tmp_path)
    assert found["status"] == "failed" and "killed 2 times: it ran out of the memory" in found["reason"]


def test_an_arm_of_another_job_keeps_that_job_s_account(tmp_path):
    theirs = {"status": "running", "attempts": 1, "job": "7"}
    write_json(tmp_path / "arm.json", theirs)
    assert attempt(tmp_path, InUse("in use by process 7")) == theirs
    account = sequential.Account(tmp_path)
    account.__enter__()
    write_json(tmp_path / "arm.json", theirs | {"status": "done"})  # they came to their end meanwhile
    account.__exit__(InUse, InUse("in use by process 7"), None)
    assert read_json(tmp_path / "arm.json")["status"] == "done"


def test_a_disk_without_locks_is_refused(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", flock)
    with pytest.raises(
        InputError, match=r"\.lock cannot be locked \(No locks available\): give a folder on a disk with"
    ):
        Workdir(tmp_path, {})


# ---------------------------------------------------------------------------- signals between arms


def test_a_signal_that_comes_in_the_last_step_of_an_arm_stops_before_the_next(tmp_path, monkeypatch, capsys):
    ran = []

    def run_arm(arm, folder, store):
        with progress.Interrupt():  # the arm's own, which saw it and had no step left to stop before
            if arm.number == 1:
                os.kill(os.getpid(), signal.SIGTERM)
        ran.append(arm.number)

    monkeypatch.setattr(sequential, "run_arm", run_arm)
    with pytest.raises(progress.Stopped, match="stopped at arm 2;") as stopped:
        sequential.run(made(), tmp_path, None)
    assert ran == [0, 1] and stopped.value.signal == signal.SIGTERM
