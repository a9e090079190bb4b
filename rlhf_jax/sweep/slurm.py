"""Asks Slurm about jobs. Where Slurm does not answer, for example outside a cluster, the answers are None."""

import os
import subprocess

# States of jobs that were ended from outside and could not record it themselves, in words for the table of a sweep.
_ENDS = {
    "OUT_OF_MEMORY": "it ran out of the memory that Slurm gave its job (OUT_OF_MEMORY)",
    "TIMEOUT": "the time limit of its job came before it had saved (TIMEOUT)",
    "DEADLINE": "the deadline of its job came before it had saved (DEADLINE)",
    "NODE_FAIL": "its node failed (NODE_FAIL)",
    "BOOT_FAIL": "its node failed (BOOT_FAIL)",
    "PREEMPTED": "its job was preempted before it had saved (PREEMPTED)",
    "CANCELLED": "its job was cancelled before it had saved (CANCELLED)",
}


def this_job() -> str | None:
    """Returns the job of this process as squeue names it, e.g. "12", or "12_3" in an array; None outside Slurm."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}" if array else os.environ.get("SLURM_JOB_ID")


def queue() -> set[str] | None:
    """Returns the waiting and running jobs of this user, one entry per array task; None if squeue does not answer."""
    listed = _ask("squeue", "--me", "--noheader", "--array", "--format=%F %K %A")
    if listed is None:
        return None
    found = set()
    for line in listed.splitlines():
        array, task, job = line.split()
        found.add(f"{array}_{task}" if task.isdigit() else job)
    return found


def end_of(job: str) -> str | None:
    """Returns how a job or one of its steps was ended from outside, in words; None if it was not or is unknown."""
    states = _ask("sacct", "--noheader", "--parsable2", "--format=State", f"--jobs={job}") or ""
    if not states.strip():  # a cluster without accounting, where scontrol still knows a job for some minutes
        words = (_ask("scontrol", "--oneliner", "show", "job", job) or "").split()
        states = next((word.removeprefix("JobState=") for word in words if word.startswith("JobState=")), "")
    found = {state.split()[0] for state in states.splitlines() if state.strip()}  # e.g. of "CANCELLED by 1000"
    return next((words for state, words in _ENDS.items() if state in found), None)


def _ask(*command: str) -> str | None:
    """Returns the output of a command of Slurm; None if it is not installed, fails, or takes over 30 seconds."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return None
