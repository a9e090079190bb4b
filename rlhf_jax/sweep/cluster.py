"""Submits arms to Slurm, one job per arm, through launch/slurm.sh; each job runs `rlhf_jax.sweep --arms=N --submitted`.

Up to two job arrays are submitted. The first has one arm for each stage that arms share and that is not computed yet.
The second has the other arms, and waits until the first has ended. A task has the number of its arm. If a shared stage
is missing even then, a job of the second array computes it, or waits for the job that does (see store).

    DIR/slurm/jobs.json    job -> number of an arm -> name of the arm
    DIR/slurm/JOB_N.log    the output of arm N
"""

import collections
import os
import pathlib
import re
import subprocess
import sys

from rlhf_jax.runtime import shipped
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import read_if_there, write_json
from rlhf_jax.sweep import arms as arms_lib
from rlhf_jax.sweep import sequential, slurm
from rlhf_jax.sweep.arms import Arm
from rlhf_jax.sweep.store import held, identities

_SCRIPT = shipped.find("launch/slurm.sh")


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
    """Submits the arms that are neither finished nor in Slurm's queue, and writes path/sweep.json.

    Args:
      arms: the arms to choose from.
      path: folder of the sweep.
      stages: folder of the stages that arms share.
      described: the content of sweep.json.
      flags: flags of the sweep command, with --config first; launch/slurm.sh passes them on.
      slurm_flags: flags of launch/slurm.sh, such as --gpus=1.
      retry: whether to submit failed arms again.
      dry_run: whether to print the commands only.

    Raises:
      InputError: launch/slurm.sh is missing, it or Slurm refuses the jobs, or the existing arms have another config.
    """
    if not _SCRIPT.is_file():
        raise InputError(f"--runner=cluster submits jobs with {_SCRIPT}, which is not there: install rlhf_jax anew")
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
    """Returns the arms to run first, and the others.

    The first ones are chosen so that each stage that several arms share and nobody has computed is in one of them.
    """
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
    """Returns the numbers of arms as sbatch --array takes them, e.g. "0-3,7"."""
    parts = []
    for number in sorted(arm.number for arm in arms):
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)


def settle(arms: list[Arm], path: pathlib.Path) -> None:
    """Corrects the records of arms that are marked as running, but whose Slurm job has ended.

    Such an arm becomes "stopped", with what Slurm knows of the job's end as the reason, and the next start resumes it.
    It becomes "failed" instead if this was its last attempt and the attempt saved nothing new.
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
        record = read_if_there(file)  # read again, because the job may have written before it left the queue
        if job not in queue and record["status"] == "running" and record["job"] == job:
            too_often = record.get("last_try") and record.get("reached") == sequential.reached(file.parent)
            reason = sequential.killed(record["attempts"], job) + f"; job {job}"
            write_json(file, record | {"status": "failed" if too_often else "stopped", "reason": reason})


def submitted(arms: list[Arm], path: pathlib.Path) -> list[Arm]:
    """Returns the arms that a job was submitted for, at any time; all arms if nobody has kept the jobs."""
    jobs = read_if_there(path / "slurm" / "jobs.json") or {}
    names = {name for of_job in jobs.values() for name in of_job.values()}
    return [arm for arm in arms if arm.name in names or not names]


def _queued(arms: list[Arm], path: pathlib.Path) -> list[Arm]:
    """Returns the arms whose job waits or runs in Slurm's queue."""
    jobs = read_if_there(path / "slurm" / "jobs.json") or {}
    queue = slurm.queue() if jobs else None
    waiting = {
        (int(number), name)
        for job, names in jobs.items()
        for number, name in names.items()
        if f"{job}_{number}" in (queue or ())
    }  # if the number belongs to another arm by now, the job does not count: it will refuse to run
    return [arm for arm in arms if (arm.number, arm.name) in waiting]


def _submit_array(arms: list[Arm], path: pathlib.Path, flags: list[str], slurm_flags: list[str], dry_run: bool) -> str:
    """Submits an array of jobs, one per arm, and records it in jobs.json; returns the job's number, "FIRST" if dry."""
    command = ["bash", os.fspath(_SCRIPT), f"--workdir={path}", f"--arms={ranges(arms)}", f"--python={sys.executable}"]
    command += ["--dry-run"] * dry_run + slurm_flags + flags
    done = subprocess.run(command, capture_output=True, text=True)
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
