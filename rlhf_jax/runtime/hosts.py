"""Coordinates the processes of a job: joining, work of the first process only, and decisions that all must share.

Every process runs the same program on its part of each array. Only the first process writes the files of a run. It also
decides what depends on them, such as whether a stage is finished or a checkpoint is good, and tells the others. They
would otherwise see a shared folder at different moments.
"""

import contextlib
import hashlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from rlhf_jax.runtime import libtpu
from rlhf_jax.runtime.errors import InputError

# Parts of the messages of errors caused by another process's end, whichever library raises them.
_LOST_PEER = (
    "gloo",
    "nccl",
    "closed by peer",
    "reset by peer",
    "coordination",
    "heartbeat",
    "unavailable:",
    "deadline_exceeded",
)

LONG_STEP = 10.0  # seconds; after a longer step, the processes wait for it to agree on the next one
_failures = itertools.count()  # numbers failures, alike on all processes, because one that is not shared ends the job


class NotJoined(Exception):
    """The processes of a job did not find each other in time; another start may succeed."""


class Alone(Exception):
    """This process failed and not all others did, so the job must be started again."""


def start(
    distributed: str = "",
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    heartbeat_seconds: int = 100,
) -> None:
    """Joins the processes of a job; must be called before anything that touches a device.

    Args:
      distributed: "auto" finds the other processes through the cluster (TPU pod, SLURM, Open MPI, Kubernetes); ""
        joins none unless `coordinator` is given.
      coordinator: HOST:PORT where process 0 listens; requires `num_processes` and `process_id`.
      num_processes: number of processes of the job.
      process_id: number of this process, from 0.
      heartbeat_seconds: time without a sign of life after which a process counts as dead, which ends the job.

    Raises:
      InputError: the flags contradict each other; there is no cluster; or this machine belongs to a pod whose processes
        were not joined.
      NotJoined: another process did not join in time.
    """
    libtpu.set_options()
    if distributed not in ("", "auto"):
        raise InputError(f"--distributed={distributed} is unknown; it can be 'auto'")
    if len({value is None for value in (coordinator, num_processes, process_id)}) > 1:
        raise InputError("--coordinator=HOST:PORT, --num_processes=N and --process_id=I must be given together")
    if coordinator and process_id is not None and num_processes is not None:
        valid = ":" in coordinator and 0 <= process_id < num_processes
    else:
        valid = coordinator is None
    if not valid:
        raise InputError(
            f"--coordinator={coordinator} --num_processes={num_processes} --process_id={process_id}: the coordinator "
            "is HOST:PORT, and ids count from 0 to num_processes - 1"
        )
    if distributed or coordinator:
        # JAX's preemption service would intercept SIGTERM; here the processes agree on stopping through Stop, below.
        jax.config.update("jax_enable_preemption_service", False)
        place = f"process {process_id} of {num_processes} at {coordinator}" if coordinator else "one of this cluster"
        print(f"rlhf_jax: pid {os.getpid()} joins as {place}", file=sys.stderr, flush=True)
        try:
            jax.distributed.initialize(
                coordinator, num_processes, process_id, heartbeat_timeout_seconds=heartbeat_seconds
            )
        except ValueError as error:  # JAX's message does not say which clusters it looked for
            raise InputError(
                "--distributed=auto finds no cluster (TPU pod, SLURM, Open MPI, Kubernetes) around this process; give "
                "--coordinator=HOST:PORT --num_processes=N --process_id=I"
            ) from error
        except RuntimeError as error:
            raise NotJoined(
                f"not all processes of the job joined in time; start it again on all hosts ({str(error).splitlines()[0]})"
            ) from error
    elif jax.process_count() > 1:
        raise InputError(
            f"this machine is one of {jax.process_count()} of a pod: start the command on all of them, with "
            "--distributed=auto"
        )
    if not is_first():
        sys.stdout = open(os.devnull, "w")  # all processes print the same, so only the first one's output is kept


def count() -> int:
    """Returns the number of processes of the job."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the first process, which writes the files."""
    return count() == 1 or jax.process_index() == 0


def on_first(function: Callable, *arguments):
    """Calls a function on the first process only; all processes get its result, or raise its InputError.

    All processes must call this. The function must not call it again, and must return a JSON value.
    """
    if count() == 1:
        return function(*arguments)
    said = {}
    if is_first():
        try:
            said = {"result": function(*arguments)}
        except InputError as error:
            said = {"error": str(error)}
    said = json.loads(_from_first(json.dumps(said).encode()))
    if "error" in said:
        raise InputError(said["error"])
    return said["result"]


def _from_first(message: bytes) -> bytes:
    """Returns the message of the first process on all processes."""
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(message))))
    room = 1 << max(10, (size - 1).bit_length())  # padded to powers of two, so that few programs are compiled
    buffer = np.frombuffer(message[:size].ljust(room, b" "), np.uint8)
    return multihost_utils.broadcast_one_to_all(buffer).tobytes()[:size]


def least(number: float) -> float:
    """Returns the least of the numbers of all processes, in float32; all processes must call this."""
    return number if count() == 1 else float(multihost_utils.process_allgather(np.float32(number)).min())


def fetch(tree):
    """Returns a tree of arrays as NumPy arrays, even if they are spread over processes; all processes must call it."""

    def whole(x):
        spans = isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated)
        return multihost_utils.process_allgather(x, tiled=True) if spans else np.asarray(x)

    return jax.tree.map(whole, tree)


class Stop:
    """Tells whether any process was asked to stop, with the same answer at the same step on all processes.

    The answer of several processes is computed on the devices, as the metrics of a step are, and read one step late, so
    that the devices never wait for the host. So a job of several processes stops one step later than a single process.
    If steps are long, the answer is read at once: the wait is then small compared to another step.

    Args:
      asked: function that returns the signal that this process received, or 0.
    """

    def __init__(self, asked: Callable[[], int]):
        self._asked = asked
        self._pending = None
        self._before: float | None = None
        self._long = True  # the first step counts as long, because it compiles
        if count() > 1:
            mesh = jax.sharding.Mesh(np.array(jax.devices()), "all")
            self._one_each = NamedSharding(mesh, PartitionSpec("all"))
            self._largest = jax.jit(lambda x: x.max(0), out_shardings=NamedSharding(mesh, PartitionSpec()))

    def agreed(self, wait: bool = False) -> int:
        """Returns the signal to stop at, or 0; all processes must call this once per step.

        Args:
          wait: whether to read the answer at once, and not one step late.
        """
        if count() == 1:
            return self._asked()
        now = time.monotonic()
        mine = [self._asked(), int(self._before is None or now - self._before > LONG_STEP)]
        self._before = now
        row = np.array([mine], np.int32)
        vote = self._largest(jax.make_array_from_callback((jax.device_count(), 2), self._one_each, lambda _: row))
        vote, self._pending = (vote, None) if wait or self._long else (self._pending, vote)
        if vote is None:  # the first call without a wait has no earlier answer to read
            return 0
        signal, long = np.asarray(vote).tolist()
        self._long = bool(long)
        return signal


def lost_peer(error: BaseException) -> bool:
    """Whether an error means that another process of the job has ended, by its message."""
    return count() > 1 and any(sign in str(error).lower() for sign in _LOST_PEER)


def leave(code: int) -> None:
    """Ends this process at once, without waiting for other processes or for threads that still write.

    A file that a thread was writing stays incomplete under a temporary name; the next start removes it.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # the reader of the stream may be gone
            stream.flush()
    if count() > 1 and is_first():
        time.sleep(2)  # the first process hosts the coordinator; the others get time to report their own errors
    os._exit(code)


def all_failed(reason: str, seconds: float = 60.0) -> bool:
    """Whether every process of the job failed for this reason, in which case they may go on together.

    Uses no device: if this process failed alone, the devices of the others may be waiting for its part of a program.

    Args:
      reason: the reason, which must be equal on all processes.
      seconds: how long to wait for the other processes.
    """
    if count() == 1:
        return True
    # JAX's barrier without devices has no public name but Orbax's. Orbax takes long to import, and few jobs come here.
    from orbax.checkpoint import multihost

    digest = hashlib.sha256(reason.encode()).hexdigest()[:16]
    try:
        barrier = f"rlhf_jax/failed/{next(_failures)}/{digest}"
        multihost.get_barrier_sync_fn()(key=barrier, timeout_ms=int(seconds * 1000))
        return True
    except jax.errors.JaxRuntimeError:
        return False


def describe() -> str:
    """Returns the name of this process for messages, e.g. "process 1 of 4"."""
    return f"process {jax.process_index()} of {count()}"
