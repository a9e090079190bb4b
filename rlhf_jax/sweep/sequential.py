"""Runs arms one after another in one process; arm.json in an arm's folder records its status.

    {"status": "running" | "stopped" | "done" | "failed", "reason", "seconds", "cpu_seconds", "attempts", "reached",
     "last_try", "compilations", "hardware", "versions", "commit", "job", ...}

An arm that failed stays failed, because the same numbers would fail again. An arm that was stopped or killed is
resumed. An arm that was killed twice without a new checkpoint in between counts as failed: a machine that runs out of
memory kills its processes without an error message.

The processes of a job run each arm together. An error that all of them raise ends the arm, and the job goes on with
the next one. If only some processes fail, the job ends, and its next start goes on with the next arm.
"""

import math
import os
import pathlib
import socket
import time
import traceback

import jax

from rlhf_jax import loop, pipeline
from rlhf_jax.runtime import hosts, machine, progress, workdir
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import read_if_there, write_json, write_text
from rlhf_jax.sweep import arms as arms_lib
from rlhf_jax.sweep import slurm
from rlhf_jax.sweep.arms import Arm
from rlhf_jax.sweep.store import Store

MOST_ATTEMPTS = 2  # attempts in a row that are killed without having saved anything new
_CLOCKS = {"seconds": time.monotonic, "cpu_seconds": time.process_time}  # each is summed over all starts of an arm
_COMPILED = "/jax/core/compile/backend_compile_duration"


def run(chosen: list[Arm], path: pathlib.Path, store: Store, retry: bool = False) -> None:
    """Runs or resumes the unfinished ones of these arms, in path/arms/NAME.

    Args:
      chosen: the arms.
      path: folder of the sweep.
      store: the stages that arms share.
      retry: whether to run failed arms again.

    Raises:
      progress.Stopped: the process was asked to stop; the same call resumes.
      hosts.Alone: an arm failed on this process but not on all; the same call on all processes resumes.
    """
    started, at_first = time.monotonic(), None
    with progress.Interrupt() as interrupt:  # each arm has its own; this one counts between two arms
        stop = hosts.Stop(interrupt.asked)
        for place, arm in enumerate(chosen):
            folders = [path / "arms" / later.name for later in chosen[place:]]
            to_do = hosts.on_first(lambda folders=folders: [missing(folder, retry) for folder in folders])
            if not to_do[0]:
                continue
            if signal := stop.agreed(wait=True):
                raise progress.Stopped(f"arm {arm.number}", None, signal)
            if hosts.on_first(workdir.in_use, folders[0]):
                print(
                    f"arm {arm.number}, {arm.name}: another process is at work on it; this arm is left to it",
                    flush=True,
                )
                continue
            left = sum(to_do)
            at_first = at_first or left
            did = at_first - left  # includes arms that other processes have finished meanwhile
            rate = f", about {(time.monotonic() - started) / did * left / 60:.0f} min left" if did else ""
            print(f"\narm {arm.number}, {arm.name} ({left} to do{rate})", flush=True)
            run_arm(arm, folders[0], store)


def missing(folder: pathlib.Path, retry: bool = False) -> bool:
    """Whether an arm is to be run: it is not done, and it has not failed, unless `retry` is set."""
    record = read_if_there(folder / "arm.json") or {}
    if record.get("status") == "failed":
        return retry
    return record.get("status") != "done"


def run_arm(arm: Arm, folder: pathlib.Path, store: Store) -> None:
    """Runs or resumes one arm, and records how it ended.

    Raises:
      progress.Stopped: the process was asked to stop.
      hosts.Alone: the arm failed on this process but not on all.
    """
    with Account(folder) as account:
        if account.given_up:
            return
        with store.tokenizer(arm.config, folder):
            pipeline.run_stages(arm.config, os.fspath(folder), arm.overrides, store)


class Account:
    """Keeps the arm.json of an arm, from its start to its end; use as a context manager.

    An error ends the arm and not the sweep: it is recorded and suppressed. Two kinds of exceptions pass through:
    interrupts, and errors that ended only some of several processes.

    Args:
      folder: folder of the arm.
      most_attempts: number of attempts that may be killed before the arm counts as failed; None does not count them,
        for a process that runs several arms and whose end says nothing about this one.
      together: number of arms that this process runs at once; each arm is charged this fraction of the time.

    Attributes:
      given_up: whether the arm was killed too often to be tried again, so that nothing is to be run.
    """

    def __init__(self, folder: pathlib.Path, most_attempts: int | None = MOST_ATTEMPTS, together: int = 1):
        self._path, self._most_attempts, self._together = folder / "arm.json", most_attempts or math.inf, together

    def __enter__(self):
        before, self._reached = hosts.on_first(self._open)
        self._before = before
        saved_more = before.get("reached", self._reached) != self._reached
        self._attempts = 1 if saved_more else before.get("attempts", 0) + 1
        if self._most_attempts == math.inf:
            self._attempts = max(1, self._attempts - 1)
        killed_too_often = before.get("status") == "running" and self._attempts > self._most_attempts
        # If another process is running the arm, opening its work directory will say so.
        self.given_up = killed_too_often and not hosts.on_first(workdir.in_use, self._path.parent)
        if self.given_up:
            self._write("failed", killed(self._attempts - 1, before.get("job")))
            return self
        self._spent = {name: before.get(name, 0.0) for name in _CLOCKS}
        self._started, self._compilations = {name: clock() for name, clock in _CLOCKS.items()}, 0
        jax.monitoring.register_event_duration_secs_listener(self._count)
        self._write("running")
        return self

    def __exit__(self, kind, error, trace):
        if self.given_up:
            return False
        jax.monitoring.unregister_event_duration_listener(self._count)
        if error is None:
            self._write("done")
        elif isinstance(error, (progress.Stopped, KeyboardInterrupt)):
            self._attempts -= 1
            # Stopped is raised on all processes; KeyboardInterrupt, by a second Ctrl-C, on this one only.
            self._write("stopped", together=isinstance(error, progress.Stopped))
        elif isinstance(error, Exception) and not hosts.lost_peer(error):
            self._failed(error)
            return True
        return False

    def _failed(self, error: Exception):
        """Records an error; raises hosts.Alone if other processes have not failed for the same reason."""
        reason = explain(error)
        together = hosts.all_failed(reason)
        if together and hosts.on_first(lambda: isinstance(error, workdir.InUse)):
            hosts.on_first(self._leave_to_other)
            print(f"rlhf_jax.sweep: {reason}; this arm is left to it", flush=True)
            return
        self._write("failed", reason if together else f"{reason} ({hosts.describe()})", together)
        if not isinstance(error, (InputError, loop.NonFinite)):
            trace = "".join(traceback.format_exception(error))
            self._save(write_text, self._path.with_name("traceback.txt"), trace, together)
        if not together:
            raise hosts.Alone(
                f"{hosts.describe()} failed alone: {reason}; start the same command on all hosts again"
            ) from error
        print(f"rlhf_jax.sweep: the arm failed: {reason}", flush=True)

    def _leave_to_other(self):
        """Restores the arm.json that another job wrote before this one, unless the other job has written since."""
        if read_if_there(self._path) == self._written:
            write_json(self._path, self._before)

    def _open(self):
        """Makes the folder of the arm; returns its arm.json, {} if new, and how far its stages are."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return read_if_there(self._path) or {}, reached(self._path.parent)

    def _count(self, event, seconds, **_):
        """Counts a compilation; a listener of jax.monitoring."""
        self._compilations += event == _COMPILED

    def _write(self, status: str, reason: str | None = None, together: bool = True):
        """Writes arm.json with a status, and remembers what was written."""
        facts = {
            "status": status,
            "reason": reason,
            "attempts": self._attempts,
            "reached": self._reached,
            "last_try": self._attempts >= self._most_attempts,
            "host": socket.gethostname(),
            "job": slurm.this_job(),
        }
        if not self.given_up:
            facts |= {
                **{
                    name: round(self._spent[name] + (clock() - self._started[name]) / self._together, 3)
                    for name, clock in _CLOCKS.items()
                },
                "compilations": self._compilations,
                "commit": arms_lib.commit(),
                **machine.described(),
            }
        self._written = facts
        self._save(write_json, self._path, facts, together)

    def _save(self, write, path, content, together):
        """Writes a file: on the first process if all processes call this (`together`), else on this process."""
        if together:
            hosts.on_first(write, path, content)
        else:
            write(path, content)


def reached(folder: pathlib.Path) -> dict[str, str]:
    """Returns how far each stage of an arm is: "evaluated", "done" or the step of its newest checkpoint, by stage."""
    found = {}
    for stage in sorted(path for path in folder.iterdir() if path.is_dir()):
        steps = [int(path.name) for path in stage.glob("checkpoints/*") if path.name.isdigit()]
        marks = {"evaluation.json": "evaluated", "done.json": "done"}
        said = [word for file, word in marks.items() if (stage / file).exists()]
        if said or steps:
            found[stage.name] = said[0] if said else str(max(steps))
    return found


def killed(times: int, job: str | None) -> str:
    """Returns the reason to record for an arm whose process was killed; Slurm is asked about its job.

    Args:
      times: how often the arm was killed.
      job: the Slurm job, or None.
    """
    end = job and slurm.end_of(job)
    count = "once" if times == 1 else f"{times} times"
    return f"killed {count}{f': {end}' if end else ' without a word, as when memory runs out'}"


def explain(error: Exception) -> str:
    """Returns in one line why an arm failed."""
    if isinstance(error, loop.NonFinite):
        return f"diverged: {error}"
    text = str(error).strip().splitlines()
    text = text[0] if text else ""
    if isinstance(error, InputError):
        return text
    if "RESOURCE_EXHAUSTED" in text or isinstance(error, MemoryError):
        return f"out of memory: {text}"
    return f"{type(error).__name__}: {text}"
