"""Arms one after another in one process; what became of each is in its arm.json.

    {"status": "running" | "stopped" | "done" | "failed", "reason", "seconds", "cpu_seconds", "attempts",
     "compilations", "hardware", "versions", "commit", ...}

An arm that failed stays failed: the same numbers would fail again. One that was stopped, or killed once, is
resumed; killed twice, it counts as failed (a machine out of memory kills without a word).
"""

import os
import pathlib
import socket
import time
import traceback

import jax

from rlhf_jax import hosts, loop, pipeline, progress, report, workdir
from rlhf_jax.errors import InputError
from rlhf_jax.files import read_if_there, write_json, write_text
from rlhf_jax.sweep import arms as arms_lib
from rlhf_jax.sweep.arms import Arm
from rlhf_jax.sweep.store import Store

MOST_ATTEMPTS = 2  # that end without a word
_CLOCKS = {"seconds": time.monotonic, "cpu_seconds": time.process_time}  # of all its starts together
_COMPILED = "/jax/core/compile/backend_compile_duration"


def run(chosen: list[Arm], path: pathlib.Path, store: Store, retry: bool = False) -> None:
    """Runs what is missing of these arms, in path/arms/NAME.

    Args:
      retry: also those that failed.

    Raises:
      progress.Stopped: an interrupt was asked for; the same call goes on.
    """
    started, did = time.monotonic(), 0
    for place, arm in enumerate(chosen):
        folder = path / "arms" / arm.name
        if not missing(folder, retry):
            continue
        left = len([later for later in chosen[place:] if missing(path / "arms" / later.name, retry)])
        rate = f", about {(time.monotonic() - started) / did * left / 60:.0f} min left" if did else ""
        print(f"\narm {arm.number} of {len(chosen)}, {arm.name} ({left} to do{rate})", flush=True)
        run_arm(arm, folder, store)
        did += 1


def missing(folder: pathlib.Path, retry: bool = False) -> bool:
    """Whether an arm is to be run: not if it is done or has failed, unless failures are to be tried again."""
    record = hosts.on_first(read_if_there, folder / "arm.json") or {}
    if record.get("status") == "failed":
        return retry
    return record.get("status") != "done"


def run_arm(arm: Arm, folder: pathlib.Path, store: Store) -> None:
    """Runs or resumes one arm, and records how it ended.

    Raises:
      progress.Stopped: an interrupt was asked for.
    """
    with Account(folder) as account:
        if account.given_up:
            return
        with store.tokenizer(arm.config, folder):
            pipeline.run_stages(arm.config, os.fspath(folder), arm.overrides, store)


class Account:
    """The arm.json of an arm, from its start to its end; use as a context manager.

    An error ends the arm, not the sweep: it is recorded and goes no further. Only an interrupt does.

    Args:
      most_attempts: that end without a word.

    Attributes:
      given_up: the arm was killed too often to be tried again; there is nothing to do.
    """

    def __init__(self, folder: pathlib.Path, most_attempts: float = MOST_ATTEMPTS):
        self._path, self._most_attempts = folder / "arm.json", most_attempts

    def __enter__(self):
        before = self._before = hosts.on_first(self._open)
        killed = before.get("status") == "running"
        self._attempts = before.get("attempts", 0) + 1
        self.given_up = killed and self._attempts > self._most_attempts
        if self.given_up:
            self._write("failed", f"killed {self._attempts - 1} times without a word, as when memory runs out")
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
        elif isinstance(error, workdir.InUse):  # another job's arm: its account is not ours
            hosts.on_first(write_json, self._path, self._before)
            print(f"rlhf_jax.sweep: {error}; this arm is left to it", flush=True)
            return True
        elif isinstance(error, (progress.Stopped, KeyboardInterrupt)):
            self._attempts -= 1
            self._write("stopped")
        elif isinstance(error, Exception) and not hosts.lost_peer(error):
            reason = explain(error)
            self._write("failed", reason)
            print(f"rlhf_jax.sweep: the arm failed: {reason}", flush=True)
            if not isinstance(error, (InputError, loop.NonFinite)):
                trace = "".join(traceback.format_exception(error))
                hosts.on_first(write_text, self._path.with_name("traceback.txt"), trace)
            return True
        return False

    def _open(self):
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return read_if_there(self._path) or {}

    def _count(self, event, seconds, **_):
        self._compilations += event == _COMPILED

    def _write(self, status: str, reason: str | None = None):
        facts = {"status": status, "reason": reason, "attempts": self._attempts, "host": socket.gethostname()}
        if not self.given_up:
            facts |= {
                **{name: round(self._spent[name] + clock() - self._started[name], 3) for name, clock in _CLOCKS.items()},
                "compilations": self._compilations,
                "commit": arms_lib.commit(),
                **report.machine(),
            }
        hosts.on_first(write_json, self._path, facts)


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
