"""Arms as jobs of their own on Slurm, through launch/slurm.sh; each is `rlhf_jax.sweep --arms=N --submitted`.

Two arrays of jobs are submitted: first an arm for each of the stages that arms share and that nobody has computed
yet, then the others, which wait until the first have ended. The number of a task is that of its arm. Jobs of the
second array that come to a stage which is not there all the same compute it, or wait for who does (see store).

    DIR/slurm/jobs.json    job -> number -> name of its arms
    DIR/slurm/JOB_N.log    the output of arm N
"""

import collections
import os
import pathlib
import re
import subprocess
import sys

from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import read_if_there, write_json
from rlhf_jax.sweep import arms as arms_lib
from rlhf_jax.sweep import sequential, slurm
from rlhf_jax.sweep.arms import Arm
from rlhf_jax.sweep.store import held, identities

_SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "launch" / "slurm.sh"


def submit(
    arms: list[Arm],
    path: pathlib.Path,
    stages: pathlib.Path,
    described: dict,
    flags: list[str],
    slurm_flags: list[str],
    retry: bool = False,
    dry_run: bool = False,
) -> None:
    """Submits what is missing of these arms and not submitted yet, and writes path/sweep.json.

    Args:
      stages: where arms share stages.
      described: the content of sweep.json.
      flags: of the program, with --config first, which launch/slurm.sh hands on.
      slurm_flags: for launch/slurm.sh, such as --gpus=1.
      retry: also those that failed.
      dry_run: only print the commands.

    Raises:
      InputError: there is no launch/slurm.sh, it or Slurm refuses, or the arms that are there have another config.
    """
    if not _SCRIPT.is_file():
        raise InputError(f"--runner=cluster submits jobs with {_SCRIPT}, which is not there: run it from a checkout")
    path = path.absolute()
    if not dry_run:
        settle(arms, path)
    missing = [arm for arm in arms if sequential.missing(path / "arms" / arm.name, retry)]
    queued = _queued(missing, path)
    todo = [arm for arm in missing if arm not in queued]
    if queued:
        print(f"in Slurm's queue before: {ranges(queued)}")
    if not todo:
        print("nothing to submit")
        return
    if not dry_run:
        arms_lib.write(path, described)
    first, rest = waves(todo, stages)
    job = _submit_array(first or rest, path, flags, slurm_flags, dry_run)
    if first and rest:
        _submit_array(rest, path, flags, [*slurm_flags, f"--sbatch=--dependency=afterany:{job}"], dry_run)


def waves(arms: list[Arm], stages: pathlib.Path) -> tuple[list[Arm], list[Arm]]:
    """The arms that run first, one for each stage that several arms share and nobody has computed; and the others."""
    found = [identities(arm.config).values() for arm in arms]
    counts = collections.Counter(identity for each in found for identity in each)
    wanted = {identity for identity, count in counts.items() if count > 1 and not held(stages, identity)}
    first = []
    for arm, each in zip(arms, found):
        if wanted.intersection(each):
            first.append(arm)
            wanted.difference_update(each)
    return first, [arm for arm in arms if arm not in first]


def ranges(arms: list[Arm]) -> str:
    """The numbers of arms as sbatch writes them, "0-3,7"."""
    parts = []
    for number in sorted(arm.number for arm in arms):
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)


def settle(arms: list[Arm], path: pathlib.Path) -> None:
    """Records of arms that are said to be running, but whose Slurm job has ended, that they were killed, and how.

    They are resumed by the next start, like any arm that was stopped; not if it was too often.
    """
    running = {}
    for arm in arms:
        file = path / "arms" / arm.name / "arm.json"
        record = read_if_there(file) or {}
        if record.get("status") == "running" and record.get("job"):
            running[file] = record["job"]
    queue = slurm.queue() if running else set()
    if queue is None or not running:
        return
    for file, job in running.items():
        record = read_if_there(file)  # again: until it left the queue, the job may have written
        if job not in queue and record["status"] == "running" and record["job"] == job:
            too_often = record.get("last_try") and record.get("reached") == sequential.reached(file.parent)
            reason = sequential.killed(record["attempts"], job) + f"; job {job}"
            write_json(file, record | {"status": "failed" if too_often else "stopped", "reason": reason})


def _queued(arms: list[Arm], path: pathlib.Path) -> list[Arm]:
    jobs = read_if_there(path / "slurm" / "jobs.json") or {}
    queue = slurm.queue() if jobs else None
    waiting = {
        (int(number), name)
        for job, names in jobs.items()
        for number, name in names.items()
        if f"{job}_{number}" in (queue or ())
    }  # a job whose number is another arm's now will refuse to run
    return [arm for arm in arms if (arm.number, arm.name) in waiting]


def _submit_array(arms: list[Arm], path: pathlib.Path, flags: list[str], slurm_flags: list[str], dry_run: bool) -> str:
    """The number of the job."""
    command = ["bash", os.fspath(_SCRIPT), f"--workdir={path}", f"--arms={ranges(arms)}", f"--python={sys.executable}"]
    command += ["--dry-run"] * dry_run + slurm_flags + flags
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    print(done.stdout, end="", flush=True)
    if dry_run and not done.returncode:
        return "FIRST"
    submitted = re.search(r"^Submitted batch job (\d+)", done.stdout, re.MULTILINE)
    if done.returncode or not submitted:
        said = done.stderr.strip().splitlines() or ["sbatch said no number of a job"]
        raise InputError(f"the arms {ranges(arms)} were not submitted: {said[-1]}")
    jobs = path / "slurm" / "jobs.json"
    write_json(jobs, (read_if_there(jobs) or {}) | {submitted[1]: {str(arm.number): arm.name for arm in arms}})
    return submitted[1]
