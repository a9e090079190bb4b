"""Runs arms side by side on one machine, in several worker processes; each has its own GPUs if the machine has enough.

A worker is the same command, started with --worker. Each worker takes the next arm that no other is working on. A
stage that several arms share is computed by one of them while the others wait (see store). On CPU, all workers use all
cores.

    DIR/workers/K.log    the output of worker K
"""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

from rlhf_jax.job import EXIT_SAVED
from rlhf_jax.runtime.errors import EXIT_STOPPED, explained
from rlhf_jax.runtime.files import not_through_links, write_json
from rlhf_jax.runtime.progress import Interrupt, Stopped
from rlhf_jax.sweep import sequential
from rlhf_jax.sweep.arms import Arm
from rlhf_jax.sweep.listing import record_of

_POLL = 1.0  # seconds between two looks at the workers and their arms
PARENT = "RLHF_JAX_SWEEP"  # tells a worker the number of the process that started it


def run(
    count: int, chosen: list[Arm], path: pathlib.Path, retry: bool = False, command: list[str] | None = None
) -> dict[int, str]:
    """Runs or resumes the unfinished ones of these arms, `count` at a time; this process touches no device.

    Args:
      count: the largest number of workers.
      chosen: the arms.
      path: folder of the sweep, whose sweep.json has these arms.
      retry: whether to run failed arms again.
      command: command of a worker; by default the one that started this process, with --worker.

    Returns:
      Worker -> how it ended, for each worker with an exit status other than 0.

    Raises:
      InputError: the logs cannot be written.
      Stopped: the process was asked to stop, and has passed this on to its workers; the same call resumes.
    """
    left = [arm for arm in chosen if sequential.missing(path / "arms" / arm.name, retry)]
    if retry:  # done once, here: a worker cannot tell an old failure from one of this call
        _forgive(left, path)
    if not left:
        return {}
    count = min(count, len(left))
    command = command or [sys.executable, "-m", "rlhf_jax.sweep", "--worker", *sys.argv[1:]]
    environments, logs = shares(count), path / "workers"
    with Interrupt() as interrupt, contextlib.ExitStack() as stack:
        workers = []
        for number, environment in enumerate(environments):
            log = stack.enter_context(_open(logs / f"{number}.log"))
            # In its own session, because otherwise a Ctrl-C would reach it twice: from the terminal and from here.
            worker = subprocess.Popen(
                command,
                env=os.environ | environment | {PARENT: str(os.getpid())},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            stack.callback(worker.wait)
            stack.callback(worker.kill)  # matters only if this process fails; what the worker has saved stays good
            workers.append(worker)
        print(f"{count} workers for {len(left)} arms; their output: {logs}", flush=True)
        asked = _watch(workers, left, path, interrupt)
    if asked:
        raise Stopped("the arms that were at work", None, asked)
    return {
        number: f"{_end(worker.returncode)}: {_last_line(logs / f'{number}.log')}"
        for number, worker in enumerate(workers)
        if worker.returncode
    }


def shares(count: int) -> list[dict[str, str]]:
    """Returns the environment variables that share the machine's GPUs among `count` workers; {} each without GPUs.

    With enough GPUs, each worker gets its own. Otherwise workers share GPUs, each with its part of 90 % of the memory,
    unless XLA_CLIENT_MEM_FRACTION or XLA_PYTHON_CLIENT_MEM_FRACTION is set.
    """
    gpus = _gpus()
    if not gpus:
        return [{} for _ in range(count)]
    if count <= len(gpus):
        return [{"CUDA_VISIBLE_DEVICES": ",".join(gpus[number::count])} for number in range(count)]
    shared = (
        {}
        if os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION")
        else {
            "XLA_CLIENT_MEM_FRACTION": os.environ.get("XLA_CLIENT_MEM_FRACTION")
            or f"{0.9 / -(-count // len(gpus)):.3f}"
        }
    )
    return [{"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)], **shared} for number in range(count)]


def end_with_parent() -> None:
    """Stops this process as SIGTERM does, saving, once the one that started it is gone, however that ended.

    That may have been before this call: a worker imports for seconds.
    """
    parent = int(os.environ.get(PARENT) or os.getppid())

    def watch():
        while os.getppid() == parent:
            time.sleep(_POLL)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _gpus() -> list[str]:
    """Returns the GPUs that JAX would use, as CUDA_VISIBLE_DEVICES names them; [] without GPUs."""
    if os.environ.get("JAX_PLATFORMS", "cuda").split(",")[0] not in ("cuda", "gpu"):
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return listed.stdout.split() if listed.returncode == 0 else []


def _forgive(arms: list[Arm], path: pathlib.Path) -> None:
    """Marks failed arms as stopped, so that workers run them again."""
    for arm in arms:
        record = record_of(arm, path)
        if record.get("status") == "failed":
            write_json(path / "arms" / arm.name / "arm.json", record | {"status": "stopped"})


def _open(path: pathlib.Path):
    """Opens a log for appending, and makes its folder; raises InputError if that fails."""
    with explained(f"write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "ab", opener=not_through_links)


def _watch(workers: list[subprocess.Popen], left: list[Arm], path: pathlib.Path, interrupt: Interrupt) -> int:
    """Prints changes of the arms' status until all workers have ended; passes an interrupt on to them.

    Returns:
      The signal that was passed on, or 0.
    """
    started, asked = time.monotonic(), 0
    said, to_do = {arm.name: None for arm in left}, len(left)
    while True:
        # Asked before the records are read, so that the workers' last records are printed too.
        alive = any([worker.poll() is None for worker in workers])
        if interrupt.asked() and not asked:
            asked = interrupt.asked()
            for worker in workers:
                worker.send_signal(asked)
        for arm in left:
            record = record_of(arm, path)
            status, more = record.get("status"), ""
            # An arm that is "stopped" at first was stopped in an earlier call.
            if status == said[arm.name] or (status == "stopped" and not said[arm.name]):
                continue
            said[arm.name] = status
            if status in ("done", "failed"):
                to_do -= 1
                minutes = (time.monotonic() - started) / 60 / (len(left) - to_do)
                more = f" ({to_do} to do, about {minutes * to_do:.0f} min left)"
            reason = f": {record['reason']}" if record["reason"] and status != "running" else ""
            print(f"arm {arm.number}, {arm.name}: {status}{reason}{more}", flush=True)
        if not alive:
            return asked
        time.sleep(_POLL)


def _end(status: int) -> str:
    """Returns in words how a worker ended, by its exit status."""
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return "was stopped" if status in (EXIT_STOPPED, EXIT_SAVED) else f"ended with status {status}"


def _last_line(path: pathlib.Path) -> str:
    """Returns the last line of a log that is not blank."""
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
