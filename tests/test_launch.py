"""The launch scripts: what they would run, line by line, and their control flow against stand-ins for gcloud and xpk.

launch/slurm.sh against a real Slurm: test_launch_slurm.py.
"""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

PROJECT = pathlib.Path(__file__).resolve().parent.parent
POD = ["tpu_pod.sh", "--name=pod", "--zone=us-east5-a"]
RUN = ["--config=experiments/quickstart.py", "--workdir=gs://bucket/runs/a"]
GKE = ["gke.sh", "--cluster=research", "--name=beta", "--type=v5p-128"]
SLURM = ["slurm.sh", "--config=experiments/quickstart.py", "--workdir=/shared/runs/a"]


def launch(script, *flags, env=None):
    command = ["bash", f"launch/{script}", *flags]
    return subprocess.run(command, cwd=PROJECT, env=env, capture_output=True, text=True, timeout=60)


def commands(script, *flags) -> list[str]:
    """The commands that a dry run prints, "+ " cut off."""
    done = launch(script, "--dry-run", *flags)
    assert done.returncode == 0, done.stderr
    lines = [line[2:] for line in done.stdout.splitlines() if line.startswith("+ ")]
    return [re.sub(r"\d{8}T\d{6}", "ATTEMPT", re.sub(r"/tmp/tmp\.\w+", "/tmp/X", line)) for line in lines]


# ---------------------------------------------------------------------------- dry runs


def test_dry_run_of_a_tpu_slice():
    assert commands(*POD, "--type=v5p-32", "--spot", *RUN, "--config.seed=1", "--delete", "--", "--x=it's so") == [
        "gcloud compute tpus tpu-vm create pod --zone=us-east5-a --accelerator-type=v5p-32 "
        "--version=v2-alpha-tpuv5 --spot",
        "gcloud compute tpus tpu-vm scp /tmp/X/rlhf_jax.tgz launch/tpu_worker.sh pod: --zone=us-east5-a --worker=all",
        "gcloud compute tpus tpu-vm ssh pod --zone=us-east5-a --worker=all '--command=bash tpu_worker.sh run ATTEMPT "
        "bucket rlhf_jax.main --distributed=auto --config=experiments/quickstart.py --workdir=../buckets/bucket/runs/a "
        r"""--config.seed=1 '\''--x=it'\''\'\'''\''s so'\'''""",
        "gcloud compute tpus tpu-vm delete pod --zone=us-east5-a --quiet",
    ]


def test_dry_run_of_several_slices_through_a_queued_resource():
    flags = ["--type=v6e-256", "--slices=2", "--project=p", "--config=experiments/quickstart.py", "--workdir=/nfs/a"]
    where = "--zone=us-east5-a --project=p"
    everywhere = f"{where} --node=all --worker=all --batch-size=all"
    assert commands(*POD, *flags) == [
        f"gcloud compute tpus queued-resources create pod {where} --node-count=2 --node-prefix=pod "
        "--accelerator-type=v6e-256 --runtime-version=v2-alpha-tpuv6e",
        f"gcloud compute tpus queued-resources scp /tmp/X/rlhf_jax.tgz launch/tpu_worker.sh pod: {everywhere}",
        f"gcloud compute tpus queued-resources ssh pod {everywhere} '--command=bash tpu_worker.sh run ATTEMPT "
        r"'\'''\'' rlhf_jax.main --distributed=auto --config=experiments/quickstart.py --workdir=/nfs/a'",
    ]


def test_dry_run_of_stop_and_delete():
    assert commands(*POD, "--stop") == [
        "gcloud compute tpus tpu-vm ssh pod --zone=us-east5-a --worker=all '--command=bash tpu_worker.sh stop'"
    ]
    assert commands(*POD, "--queued", "--delete") == [
        "gcloud compute tpus queued-resources delete pod --zone=us-east5-a --force --quiet"
    ]


def test_dry_run_of_a_gke_workload():
    assert commands(*GKE, "--zone=us-east5-a", *RUN, "--data=gs://bucket/text", "--delete") == [
        "xpk storage attach bucket --cluster=research --zone=us-east5-a --type=gcsfuse --bucket=bucket "
        "--mount-point=/gs/bucket --readonly=false --auto-mount=false --size=1000 "
        "--mount-options=implicit-dirs,rename-dir-limit=1000000",
        "xpk workload create --cluster=research --zone=us-east5-a --workload=beta --tpu-type=v5p-128 --num-slices=1 "
        "--priority=medium --base-docker-image=python:3.12 --script-dir=/tmp/X --storage=bucket --max-restarts=100 "
        "--restart-on-exit-codes=1,5-255 --termination-grace-period-seconds=300 "
        "'--command=exec env EXTRAS=tpu bash launch/python.sh -m rlhf_jax.main --distributed=auto "
        "--config=experiments/quickstart.py --workdir=/gs/bucket/runs/a --data=/gs/bucket/text'",
        "xpk workload list --cluster=research --zone=us-east5-a --wait-for-job-completion=beta",
        "xpk workload delete --workload=beta --cluster=research --zone=us-east5-a --force",
    ]


def test_dry_run_of_slurm():
    program = f"{PROJECT}/.venv/bin/python -m rlhf_jax.main --distributed=auto --config=experiments/quickstart.py"
    fixed = "--time=24:00:00 --signal=TERM@300 --requeue --open-mode=append --gpus-per-node=8"
    assert commands(*SLURM, "--nodes=2", "--sbatch=--partition=gpu", "--config.ppo.kl_coef=0.1") == [
        "bash launch/python.sh -c pass",
        "mkdir -p /shared/runs/a/slurm",
        f"sbatch --job-name=a --nodes=2 --ntasks-per-node=8 {fixed} --output=/shared/runs/a/slurm/%j.log "
        f"--partition=gpu launch/slurm_job.sh /shared/runs/a 5 ' ' -- {program} --config.ppo.kl_coef=0.1",
    ]
    assert commands(*SLURM, "--seeds=0-1,7", "--processes=1", "--python=/opt/python") == [
        "export JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7",
        "mkdir -p /shared/runs/a/slurm",
        f"sbatch --job-name=a --nodes=1 --ntasks-per-node=1 {fixed} --array=0-2 --output=/shared/runs/a/slurm/%A_%a.log "
        "launch/slurm_job.sh /shared/runs/a 5 'seed=0 --config.seed=0' 'seed=1 --config.seed=1' 'seed=7 --config.seed=7' "
        f"-- {program.replace(f'{PROJECT}/.venv/bin/python', '/opt/python')}",
    ]


def test_dry_run_of_the_arms_of_a_sweep():
    """A task has the number of its arm, and the program is told no more than that."""
    fixed = "--time=4:00:00 --signal=TERM@300 --requeue --open-mode=append --gpus-per-node=1"
    flags = ["--arms=0-2,7", "--parallel=2", "--gpus=1", "--time=4:00:00", "--python=/opt/python", "--", "--submitted"]
    assert commands(*SLURM, *flags) == [
        "export JAX_LOCAL_DEVICE_IDS=0",
        "mkdir -p /shared/runs/a/slurm",
        f"sbatch --job-name=a --nodes=1 --ntasks-per-node=1 {fixed} --array=0-2,7%2 --output=/shared/runs/a/slurm/%A_%a.log "
        "launch/slurm_job.sh /shared/runs/a 5 -- /opt/python -m rlhf_jax.sweep --distributed=auto "
        "--config=experiments/quickstart.py --submitted",
    ]


def test_dry_run_of_a_whole_sweep_in_one_job():
    programs = {}
    for script, *flags in ([*POD, "--type=v5p-32", *RUN], [*GKE, *RUN], SLURM):
        (programs[script],) = [
            line for line in commands(script, *flags, "--program=sweep") if "rlhf_jax.sweep " in line
        ]
    assert "run ATTEMPT bucket rlhf_jax.sweep --distributed=auto " in programs["tpu_pod.sh"]
    assert "--array" not in programs["slurm.sh"] and " 5 ' ' -- " in programs["slurm.sh"]
    assert "python.sh -m rlhf_jax.sweep --distributed=auto " in programs["gke.sh"]


@pytest.mark.parametrize(
    "flags, sentence",
    [
        ([*POD, *RUN, "--tpye=v5p-32"], "unknown flag '--tpye=v5p-32'; the flags are --name "),
        ([*POD, *RUN, "seed"], "unknown flag 'seed'"),
        ([*POD, *RUN], "--type is missing: there is no slice pod in us-east5-a; say what to make"),
        ([*POD, *RUN, "--type=v9-8"], "--type=v9-8: its software is not known here; name it with --runtime"),
        ([*POD, *RUN, "--type=v5p-32", "--slices=two"], "--slices=two is not a whole number"),
        ([*POD], "--config is missing: the experiment, e.g."),
        ([*POD, "--config=experiments/quickstart.py"], "--workdir is missing: where the run lives, e.g."),
        ([*POD, RUN[0], "--workdir=runs/a"], "--workdir=runs/a: every worker must see it; give gs://BUCKET/FOLDER"),
        ([*POD, RUN[1], "--config=experiments/nothing.py"], "--config=experiments/nothing.py: no such file in "),
        ([*POD, RUN[1], f"--config={PROJECT}/experiments/quickstart.py"], "give a path inside the project"),
        ([*POD, *RUN, "--data=gs://other/d"], "--data=gs://other/d: give a folder in the bucket of --workdir"),
        (["tpu_pod.sh", "--zone=z", *RUN], "--name is missing"),
        (["gke.sh", *RUN, "--name=b"], "--cluster is missing"),
        ([*GKE, "--name=Beta", *RUN], "--name=Beta: at most 40 of a-z, 0-9 and -"),
        ([*GKE, RUN[0], "--workdir=a"], "--workdir=a: every worker must see it"),
        ([*SLURM, "--workdir=runs/a"], "--workdir=runs/a: give an absolute path"),
        ([*SLURM, "--seeds=a"], "--seeds=a: give numbers and ranges, e.g. 0-3,7"),
        ([*SLURM, "--seeds=1,0-2"], "two runs of the sweep would live in one folder, seed=1"),
        ([*SLURM, "--sweep=nothing"], "--sweep=nothing: no such file in "),
        ([*SLURM, "--sweep=/dev/null"], "--sweep=/dev/null"),
        ([*SLURM, "--processes=3"], "--processes=3: with 8 GPUs a node, give 8 (one a GPU) or 1"),
        ([*SLURM, "--arms=3:7"], "--arms=3:7: give numbers and ranges, e.g. 0-5,9"),
        ([*SLURM, "--arms=3", "--seeds=0"], "--arms=3: a sweep has its own seeds"),
        ([*SLURM, "--arms=3", "--parallel=x"], "--parallel=x is not a whole number"),
        ([*SLURM, "--program=chat"], "unknown flag '--program=chat'"),
        ([*SLURM, "--gpus=all"], "--gpus=all is not a whole number"),
    ],
)
def test_a_wrong_flag_is_one_sentence(flags, sentence):
    done = launch(flags[0], "--dry-run", *flags[1:])
    assert done.returncode == 2
    assert sentence in done.stderr and done.stderr.startswith(f"{flags[0]}: ") and done.stderr.count("\n") == 1


def test_the_scripts_are_clean():
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    scripts = sorted(PROJECT.glob("launch/*.sh"))
    done = subprocess.run(["shellcheck", *scripts], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# ---------------------------------------------------------------------------- a TPU slice of two workers

# In place of gcloud: a slice of two workers, whose homes are folders. Its state is a file.
GCLOUD = f"""#!{sys.executable}
import os, pathlib, shutil, subprocess, sys
cloud = pathlib.Path(os.environ["CLOUD"])
action, *flags = sys.argv[4:]
with open(cloud / "calls", "a") as file:
    file.write(action + "\\n")
state = cloud / "state"
homes = [cloud / "0", cloud / "1"]
now = state.read_text() if state.exists() else None
if action == "create":
    assert now is None
    state.write_text("READY")
    for home in homes:
        shutil.rmtree(home / "rlhf_jax_run", ignore_errors=True)
elif now is None:
    sys.exit("ERROR: NOT_FOUND: no such slice")
elif action == "describe":
    print(now)
elif action == "delete":
    state.unlink()
elif now != "READY":
    sys.exit(1)
elif action == "scp":
    for home in homes:
        for file in flags[:2]:
            shutil.copy(file, home)
elif action == "ssh":
    (command,) = [flag.removeprefix("--command=") for flag in flags if flag.startswith("--command=")]
    workers = [
        subprocess.Popen(["bash", "-c", command], cwd=home, env=os.environ | {{"HOME": str(home)}}) for home in homes
    ]
    codes = [worker.wait() for worker in workers]
    if state.read_text() != "READY":
        sys.exit(255)
    sys.exit(next(filter(None, codes), 0))
"""

# In place of .venv/bin/python: what the next line of the worker's plan says.
PYTHON = """#!/usr/bin/env bash
if [[ "$1" != -m ]]; then exit 0; fi
echo "$*" >> ~/starts
action="$(head -n 1 ~/plan)"
sed -i 1d ~/plan
echo "program: $action"
case "$action" in
  preempted) echo -n PREEMPTED > "$CLOUD/state"; exit 137 ;;
  wait) trap 'exit 75' TERM; until [[ -e "$CLOUD/go" ]]; do sleep 0.1; done ;;
  *) exit "$action" ;;
esac
"""


class Slice:
    """The stand-in for a slice of two workers, and a way to run tpu_pod.sh against it."""

    def __init__(self, folder):
        self.cloud = folder / "cloud"
        tools = folder / "tools"
        self.env = os.environ | {"CLOUD": str(self.cloud), "TPU_POD_POLL_SECONDS": "0"}
        self.env["PATH"] = f"{tools}:{self.env['PATH']}"
        executable(tools / "gcloud", GCLOUD)
        executable(tools / "gcsfuse", '#!/bin/sh\necho "$*" >> ~/mounts\n')
        stamp = subprocess.run("cksum < setup.cfg", shell=True, cwd=PROJECT, capture_output=True, text=True).stdout
        for home in (self.cloud / "0", self.cloud / "1"):
            executable(home / "rlhf_jax" / ".venv" / "bin" / "python", PYTHON)
            (home / "rlhf_jax" / ".venv" / "installed[tpu]").write_text(stamp)

    def plan(self, *workers):
        """What the program does on each worker, start by start."""
        for worker, actions in enumerate(workers):
            (self.cloud / str(worker) / "plan").write_text("".join(f"{action}\n" for action in actions))

    def start(self, *flags) -> subprocess.Popen:
        command = ["bash", "launch/tpu_pod.sh", *POD[1:], *flags]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, cwd=PROJECT, env=self.env, stdout=pipe, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )

    def launch(self, *flags) -> tuple[int, str]:
        process = self.start(*flags)
        output, _ = process.communicate(timeout=60)
        return process.returncode, output

    def calls(self, *of) -> list[str]:
        calls = (self.cloud / "calls").read_text().split()
        return [call for call in calls if not of or call in of]

    def starts(self, worker=0) -> list[str]:
        path = self.cloud / str(worker) / "starts"
        return path.read_text().splitlines() if path.exists() else []


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def wait_for(condition):
    deadline = time.time() + 30
    while not condition():
        assert time.time() < deadline
        time.sleep(0.05)


@pytest.fixture
def slice_of_two(tmp_path):
    made = Slice(tmp_path)
    yield made
    (made.cloud / "go").touch()  # what a failed test left waiting ends


def test_a_slice_is_made_used_on_all_workers_and_kept(slice_of_two):
    slice_of_two.plan(["0"], ["0"])
    code, output = slice_of_two.launch("--type=v5p-16", *RUN, "--config.seed=1")
    assert code == 0, output
    assert slice_of_two.calls() == ["describe", "create", "describe", "scp", "ssh"]
    for worker in (0, 1):
        assert slice_of_two.starts(worker) == [
            "-m rlhf_jax.main --distributed=auto --config=experiments/quickstart.py "
            "--workdir=../buckets/bucket/runs/a --config.seed=1"
        ]
        home = slice_of_two.cloud / str(worker)
        assert (home / "rlhf_jax" / "rlhf_jax" / "main.py").exists()
        assert (home / "mounts").read_text().split()[-2:] == ["bucket", f"{home}/buckets/bucket"]
    assert output.count("program: 0") == 2  # both are followed
    assert "is still there and costs money" in output
    assert "bash launch/tpu_pod.sh --name=pod --zone=us-east5-a --delete" in output


def test_a_slice_that_is_there_is_used_and_deleted_when_asked(slice_of_two):
    (slice_of_two.cloud / "state").write_text("READY")
    slice_of_two.plan(["0"], ["0"])
    code, output = slice_of_two.launch(*RUN, "--delete")  # no --type: nothing is made
    assert code == 0, output
    assert slice_of_two.calls() == ["describe", "scp", "ssh", "delete"]


def test_a_preempted_slice_is_replaced_and_the_run_goes_on(slice_of_two):
    slice_of_two.plan(["preempted", "75", "134", "0"], ["134", "75", "134", "0"])
    code, output = slice_of_two.launch("--type=v5p-16", *RUN, "--spot")
    assert code == 0, output
    assert slice_of_two.calls("create", "delete") == ["create", "delete", "create"]
    assert len(slice_of_two.starts(0)) == len(slice_of_two.starts(1)) == 4


@pytest.mark.parametrize(
    "workers, expected",
    [
        (("2", "2"), 2),
        (("3", "134"), 3),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((("134", "2"), 2), (("4", "4"), 4))),
    ],
)
def test_what_cannot_get_better_is_not_run_again(slice_of_two, workers, expected):
    slice_of_two.plan([workers[0], "0"], [workers[1], "0"])
    code, output = slice_of_two.launch("--type=v5p-16", *RUN)
    assert code == expected, output
    assert len(slice_of_two.starts()) == 1 and "delete" not in slice_of_two.calls()


def test_a_run_that_only_crashes_is_given_up(slice_of_two):
    slice_of_two.plan(*[["1", "75", *["1"] * 9]] * 2)
    code, output = slice_of_two.launch("--type=v5p-16", *RUN, "--max-restarts=1", "--delete")
    assert code == 1 and "failed 2 times in a row: given up" in output
    assert len(slice_of_two.starts()) == 4  # what was stopped with everything saved has not failed
    assert slice_of_two.calls()[-1] == "delete"


def test_gcloud_that_cannot_answer_makes_nothing(slice_of_two):
    tools = slice_of_two.cloud.parent / "tools"
    executable(tools / "gcloud", "#!/bin/sh\necho 'ERROR: you are not logged in' >&2\nexit 1\n")
    code, output = slice_of_two.launch("--type=v5p-16", *RUN)
    assert code == 2 and "you are not logged in" in output and "cannot say whether the slice pod is there" in output


def test_the_run_outlives_its_follower_and_is_followed_again(slice_of_two):
    slice_of_two.plan(["wait"], ["wait"])
    follower = slice_of_two.start("--type=v5p-16", *RUN)
    wait_for(lambda: slice_of_two.starts(0) and slice_of_two.starts(1))
    os.killpg(follower.pid, signal.SIGKILL)
    follower.communicate()
    again = slice_of_two.start(*RUN)
    code, output = slice_of_two.launch(*RUN, "--config.seed=7")
    assert code == 2 and "another run is under way on this slice" in output
    (slice_of_two.cloud / "go").touch()
    assert "program: wait" in again.communicate(timeout=30)[0]
    assert again.returncode == 0 and len(slice_of_two.starts()) == 1


def test_a_call_repeated_after_a_lost_connection_starts_nothing(slice_of_two, tmp_path):
    slice_of_two.plan(["134", "0"], [])
    home = slice_of_two.cloud / "0"
    subprocess.run(["tar", "-czf", home / "rlhf_jax.tgz", "launch", "setup.cfg"], cwd=PROJECT, check=True)
    command = ["bash", PROJECT / "launch" / "tpu_worker.sh", "run"]
    env = slice_of_two.env | {"HOME": str(home)}
    codes = [
        subprocess.run([*command, attempt, "", "rlhf_jax.main", "--x"], env=env).returncode
        for attempt in ("1", "1", "2")
    ]
    assert codes == [134, 134, 0] and len(slice_of_two.starts()) == 2


def test_a_run_that_was_told_to_stop_is_not_run_again(slice_of_two):
    slice_of_two.plan(["wait", "0"], ["wait", "0"])
    follower = slice_of_two.start("--type=v5p-16", *RUN)
    wait_for(lambda: slice_of_two.starts(0) and slice_of_two.starts(1))
    time.sleep(0.3)  # its trap
    assert slice_of_two.launch("--stop")[0] == 0
    output, _ = follower.communicate(timeout=30)
    assert follower.returncode == 75, output
    assert len(slice_of_two.starts()) == 1


# ---------------------------------------------------------------------------- GKE

XPK = """#!/usr/bin/env bash
echo "$*" >> "$CLOUD/calls"
case "$1 $2 $*" in
  "storage list"*) cat "$CLOUD/storages" ;;
  "workload list"*--wait-for-job-completion=*) exit "$(cat "$CLOUD/ended")" ;;
  "workload list"*) cat "$CLOUD/workloads" ;;
  "workload create"*)
    for flag in "$@"; do [[ "$flag" != --script-dir=* ]] || (cd "${flag#*=}" && find . -type f | sort > "$CLOUD/code"); done
    ;;
esac
"""


@pytest.fixture
def xpk(tmp_path):
    """gke.sh with a stand-in for xpk; returns (exit code, first two words of its calls)."""
    for name, text in {"storages": "", "workloads": "", "ended": "0"}.items():
        (tmp_path / name).write_text(text)
    executable(tmp_path / "tools" / "xpk", XPK)
    env = os.environ | {"CLOUD": str(tmp_path), "PATH": f"{tmp_path}/tools:{os.environ['PATH']}"}

    def run(*flags):
        done = launch(*GKE, *RUN, *flags, env=env)
        calls = (tmp_path / "calls").read_text().splitlines()
        (tmp_path / "calls").unlink()
        return done.returncode, [" ".join(call.split()[:2]) for call in calls]

    return run


def test_a_workload_is_made_once_and_followed(xpk, tmp_path):
    assert xpk() == (0, ["storage list", "storage attach", "workload list", "workload create", "workload list"])
    code = (tmp_path / "code").read_text().split()
    assert "./rlhf_jax/main.py" in code and "./setup.cfg" in code and "./launch/python.sh" in code
    assert not any(re.match(r"\./(\.git|\.venv|runs)(/|$)", name) for name in code)
    (tmp_path / "storages").write_text("NAME    TYPE\n------  ----\nbucket  gcsfuse\n")
    (tmp_path / "workloads").write_text("Jobset Name  Status\nbeta-2  Running\n")
    assert xpk() == (0, ["storage list", "workload list", "workload create", "workload list"])
    (tmp_path / "workloads").write_text("Jobset Name  Status\nbeta    Running\n")
    (tmp_path / "ended").write_text("125")
    assert xpk() == (125, ["storage list", "workload list", "workload list"])
    assert xpk("--delete") == (125, ["storage list", "workload list", "workload list", "workload delete"])


# ---------------------------------------------------------------------------- launch/figures.sh


@pytest.fixture
def figures(tmp_path):
    """A project of three experiment files, whose Python writes down what it is asked and ends as STATUS says."""
    (tmp_path / "launch").mkdir()
    (tmp_path / "experiments/figures").mkdir(parents=True)
    shutil.copy(PROJECT / "launch/figures.sh", tmp_path / "launch")
    (tmp_path / "launch/python.sh").write_text('echo "$*" >> asked\n[[ "$*" != *fig2.py* ]] || exit "${STATUS:-0}"\n')
    for name in ("fig1", "fig2", "world"):
        (tmp_path / f"experiments/figures/{name}.py").write_text("" if name == "world" else "def sweep(h):\n    pass\n")

    def run(*flags, **env):
        done = subprocess.run(
            ["bash", tmp_path / "launch/figures.sh", *flags], env=os.environ | env, capture_output=True, text=True
        )
        asked = tmp_path / "asked"
        return done, [
            line.removeprefix("-m rlhf_jax.") for line in asked.read_text().splitlines()
        ] if asked.exists() else []

    return run


def test_all_figures_share_their_stages_and_end_in_one_page(figures):
    where = "--workdir=here/{0} --stages=here/stages --until-decided"
    assert figures("--retry", RUNS="here", STATUS="4")[1] == [  # failed arms are a result
        f"sweep --config=experiments/figures/{name}.py {where.format(name)} --retry" for name in ("fig1", "fig2")
    ] + ["report --all here"]


def test_figures_can_be_chosen_and_an_unknown_one_is_refused(figures):
    done, asked = figures("fig1", "fig3")
    assert done.returncode == 2 and not asked
    assert done.stderr == "there is no experiments/figures/fig3.py; the names are those of the files there\n"
    assert len(figures("fig1")[1]) == 2


def test_figures_that_are_stopped_go_no_further(figures):
    done, asked = figures(STATUS="130")
    assert done.returncode != 0 and len(asked) == 2
