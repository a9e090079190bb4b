"""Arms one after another in one process; what became of each is in its arm.json.

    {"status": "running" | "stopped" | "done" | "failed", "reason", "seconds", "cpu_seconds", "attempts", "reached",
     "last_try", "compilations", "hardware", "versions", "commit", "job", ...}

An arm that failed stays failed: the same numbers would fail again. One that was stopped, or killed, is resumed;
killed twice without a new checkpoint between, it counts as failed (a machine out of memory kills without a word).

Several processes of a job run an arm together. What they all fail of is the end of the arm alone; where one fails
and others do not, the job ends, and its next start goes on with the next arm.
"""

import math
import os
import pathlib
import socket
import time
import traceback

import jax

from rlhf_jax import loop, pipeline, report
from rlhf_jax.runtime import hosts, progress, workdir
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import read_if_there, write_json, write_text
from rlhf_jax.sweep import arms as arms_lib
from rlhf_jax.sweep import slurm
from rlhf_jax.sweep.arms import Arm
from rlhf_jax.sweep.store import Store

MOST_ATTEMPTS = 2  # in a row that end without a word, and without having saved anything new
_CLOCKS = {"seconds": time.monotonic, "cpu_seconds": time.process_time}  # of all its starts together
_COMPILED = "/jax/core/compile/backend_compile_duration"


def run(chosen: list[Arm], path: pathlib.Path, store: Store, retry: bool = False) -> None:
    """Runs what is missing of these arms, in path/arms/NAME.

    Args:
      retry: also those that failed.

    Raises:
      progress.Stopped: an interrupt was asked for; the same call goes on.
      hosts.Alone: an arm failed on this process and not on all; the same call on all goes on.
    """
    started, at_first = time.monotonic(), None
    with progress.Interrupt() as interrupt:  # around those of the arms: between two of them, it is asked here
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
            did = at_first - left  # by whomever
            rate = f", about {(time.monotonic() - started) / did * left / 60:.0f} min left" if did else ""
            print(f"\narm {arm.number}, {arm.name} ({left} to do{rate})", flush=True)
            run_arm(arm, folders[0], store)


def missing(folder: pathlib.Path, retry: bool = False) -> bool:
    """Whether an arm is to be run: not if it is done or has failed, unless failures are to be tried again."""
    record = read_if_there(folder / "arm.json") or {}
    if record.get("status") == "failed":
        return retry
    return record.get("status") != "done"


def run_arm(arm: Arm, folder: pathlib.Path, store: Store) -> None:
    """Runs or resumes one arm, and records how it ended.

    Raises:
      progress.Stopped: an interrupt was asked for.
      hosts.Alone: it failed on this process and not on all.
    """
    with Account(folder) as account:
        if account.given_up:
            return
        with store.tokenizer(arm.config, folder):
            pipeline.run_stages(arm.config, os.fspath(folder), arm.overrides, store)


class Account:
    """The arm.json of an arm, from its start to its end; use as a context manager.

    An error ends the arm, not the sweep: it is recorded and goes no further. Only an interrupt does, and what
    ended one process of several.

    Args:
      most_attempts: that end without a word; None: they are not counted, because what kills this process says
        nothing of this arm.
      together: the arms that this process runs at once; each counts its part of the time.

    Attributes:
      given_up: the arm was killed too often to be tried again; there is nothing to do.
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
        # Or another process is running it, as its work directory will say.
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
            # A second Ctrl-C comes to one process alone.
            self._write("stopped", together=isinstance(error, progress.Stopped))
        elif isinstance(error, Exception) and not hosts.lost_peer(error):
            self._failed(error)
            return True
        return False

    def _failed(self, error: Exception):
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
                f"{hosts.describe()} failed alone, start the same command on all hosts again: {reason}"
            ) from error
        print(f"rlhf_jax.sweep: the arm failed: {reason}", flush=True)

    def _leave_to_other(self):
        """Another job's arm: its account is not ours, unless it has been written since."""
        if read_if_there(self._path) == self._written:
            write_json(self._path, self._before)

    def _open(self):
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return read_if_there(self._path) or {}, reached(self._path.parent)

    def _count(self, event, seconds, **_):
        self._compilations += event == _COMPILED

    def _write(self, status: str, reason: str | None = None, together: bool = True):
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
                **report.machine(),
            }
        self._written = facts
        self._save(write_json, self._path, facts, together)

    def _save(self, write, path, content, together):
        """`together`: all processes are here; else this one writes, the last one to know the arm."""
        if together:
            hosts.on_first(write, path, content)
        else:
            write(path, content)


def reached(folder: pathlib.Path) -> dict[str, str]:
    """Stage -> "evaluated", "done" or the step of its newest checkpoint."""
    found = {}
    for stage in sorted(path for path in folder.iterdir() if path.is_dir()):
        steps = [int(path.name) for path in stage.glob("checkpoints/*") if path.name.isdigit()]
        marks = {"evaluation.json": "evaluated", "done.json": "done"}
        said = [word for file, word in marks.items() if (stage / file).exists()]
        if said or steps:
            found[stage.name] = said[0] if said else str(max(steps))
    return found


def killed(times: int, job: str | None) -> str:
    """Why an arm whose process ended without a word counts as failed; Slurm may know of its job."""
    end = job and slurm.end_of(job)
    count = "once" if times == 1 else f"{times} times"
    return f"killed {count}{f': {end}' if end else ' without a word, as when memory runs out'}"


def explain(error: Exception) -> str:
    """Why an arm failed, in a line."""
    if isinstance(error, loop.NonFinite):
        return f"diverged: {error}"
    text = str(error).strip().splitlines()
    text = text[0] if text else ""
    if isinstance(error, InputError):
        return text
    if "RESOURCE_EXHAUSTED" in text or isinstance(error, MemoryError):
        return f"out of memory: {text}"
    return f"{type(error).__name__}: {text}"
