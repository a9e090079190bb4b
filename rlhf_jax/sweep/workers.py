"""Arms side by side on one machine: this command several times, each with GPUs of its own, where there are some.

Each worker takes the next arm that nobody is at work on. What two arms need, one of them computes while the other
waits (see store); on CPU the cores are everybody's meanwhile.

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
from rlhf_jax.runtime.errors import EXIT_STOPPED, InputError
from rlhf_jax.runtime.files import not_through_links, write_json
from rlhf_jax.runtime.progress import Interrupt, Stopped
from rlhf_jax.sweep import sequential
from rlhf_jax.sweep.arms import Arm
from rlhf_jax.sweep.listing import record_of

_POLL = 1.0  # seconds
PARENT = "RLHF_JAX_SWEEP"  # tells a worker the number of the process that started it


def run(
    count: int, chosen: list[Arm], path: pathlib.Path, retry: bool = False, command: list[str] | None = None
) -> dict[int, str]:
    """Runs what is missing of these arms, `count` at a time; touches no device.

    Args:
      path: of the sweep, whose sweep.json has these arms.
      retry: also those that failed.
      command: of a worker; by default the one that this process was started with.

    Returns:
      worker -> how it ended, of those that did not come to the end of the arms.

    Raises:
      InputError: the logs cannot be written.
      Stopped: an interrupt was asked for, and passed on; the same call goes on.
    """
    left = [arm for arm in chosen if sequential.missing(path / "arms" / arm.name, retry)]
    if retry:  # here, once: a worker that comes to an arm which has failed does not know when
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
            # In a session of its own, or Ctrl-C would come twice: from the terminal and from here.
            worker = subprocess.Popen(
                command,
                env=os.environ | environment | {PARENT: str(os.getpid())},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            stack.callback(worker.wait)
            stack.callback(worker.kill)  # if it lives: what is saved is good
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
    """What the environments of `count` workers say of the GPUs: {} where there are none, or not to be used."""
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
    """Those that JAX would use, by the names of CUDA_VISIBLE_DEVICES."""
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
    for arm in arms:
        record = record_of(arm, path)
        if record.get("status") == "failed":
            write_json(path / "arms" / arm.name / "arm.json", record | {"status": "stopped"})


def _open(path: pathlib.Path):
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "ab", opener=not_through_links)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error


def _watch(workers: list[subprocess.Popen], left: list[Arm], path: pathlib.Path, interrupt: Interrupt) -> int:
    """Prints what becomes of the arms until all workers have ended; the signal that was passed on to them, or 0."""
    started, asked = time.monotonic(), 0
    said, to_do = {arm.name: None for arm in left}, len(left)
    while True:
        alive = any([worker.poll() is None for worker in workers])  # asked before the arms: their last words count
        if interrupt.asked() and not asked:
            asked = interrupt.asked()
            for worker in workers:
                worker.send_signal(asked)
        for arm in left:
            record = record_of(arm, path)
            status, more = record.get("status"), ""
            if status == said[arm.name] or (status == "stopped" and not said[arm.name]):  # that was before
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
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return "was stopped" if status in (EXIT_STOPPED, EXIT_SAVED) else f"ended with status {status}"


def _last_line(path: pathlib.Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
