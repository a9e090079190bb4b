"""Several processes, one program: who does what once, and what all of them must agree on.

Every process runs the same program on its part of each array. Files of a run are written by the first
process alone; what depends on them (a stage is finished, a checkpoint is good) is decided there and
told to the others, who would otherwise see a shared folder each at another moment.
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

from rlhf_jax.runtime.errors import InputError

# How errors read that come from another process's end, whichever library noticed it first.
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

LONG_STEP = 1.0  # seconds from which on the host waits for a step before it gives the devices the next
_failures = itertools.count()  # that all processes went on from: the same number everywhere


class NotJoined(Exception):
    """The processes of a job did not find each other in time; they may at the next start."""


class Alone(Exception):
    """This process failed, and not all others did: the job must be started again."""


def start(
    distributed: str = "",
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    heartbeat_seconds: int = 100,
) -> None:
    """Joins the processes of a job; must come before anything that touches a device.

    Args:
      distributed: "auto" finds the others through the cluster (TPU pod, SLURM, Open MPI, Kubernetes); "" joins
        nobody unless `coordinator` is given.
      coordinator: HOST:PORT where process 0 listens; with it the number of processes and the id of this one.
      heartbeat_seconds: a process not heard of for so long counts as dead, and its death ends the job.

    Raises:
      InputError: flags that contradict each other, no cluster, or a pod whose processes were not joined.
      NotJoined: another process did not come in time.
    """
    explicit = coordinator, num_processes, process_id
    if distributed not in ("", "auto"):
        raise InputError(f"--distributed={distributed} is unknown; it can be 'auto'")
    if any(value is not None for value in explicit) and None in explicit:
        raise InputError("--coordinator=HOST:PORT, --num_processes=N and --process_id=I go together")
    if coordinator is not None and not (":" in coordinator and 0 <= process_id < num_processes):
        raise InputError(
            f"--coordinator={coordinator} --num_processes={num_processes} --process_id={process_id}: the coordinator "
            "is HOST:PORT, and ids count from 0 to num_processes - 1"
        )
    if distributed or coordinator:
        # Stopping at a signal is agreed on by Stop below; JAX's own service would take SIGTERM away from us.
        jax.config.update("jax_enable_preemption_service", False)
        place = f"process {process_id} of {num_processes} at {coordinator}" if coordinator else "one of this cluster"
        print(f"rlhf_jax: pid {os.getpid()} joins as {place}", file=sys.stderr, flush=True)
        try:
            jax.distributed.initialize(*explicit, heartbeat_timeout_seconds=heartbeat_seconds)
        except ValueError as error:  # JAX does not say which cluster it looked for
            raise InputError(
                "--distributed=auto finds no cluster (TPU pod, SLURM, Open MPI, Kubernetes) around this process; give "
                "--coordinator=HOST:PORT --num_processes=N --process_id=I"
            ) from error
        except RuntimeError as error:
            raise NotJoined(f"the processes of the job did not all come: {str(error).splitlines()[0]}") from error
    elif jax.process_count() > 1:
        raise InputError(
            f"this machine is one of {jax.process_count()} of a pod: start the command on all of them, with --distributed=auto"
        )
    if not is_first():
        sys.stdout = open(os.devnull, "w")  # what all say alike, the first says


def count() -> int:
    """The number of processes."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the process that writes."""
    return count() == 1 or jax.process_index() == 0


def on_first(function: Callable, *arguments):
    """Calls a function on the first process alone; all processes get its result, or raise its InputError.

    All must come here, and the function must not come here again. Its result is a JSON value.
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
    """The first process's message, everywhere."""
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(message))))
    room = 1 << max(10, (size - 1).bit_length())  # few sizes, so that few programs are compiled
    buffer = np.frombuffer(message[:size].ljust(room, b" "), np.uint8)
    return multihost_utils.broadcast_one_to_all(buffer).tobytes()[:size]


def fetch(tree):
    """NumPy arrays of a tree of arrays, also of those that lie on several processes; all must come here."""

    def whole(x):
        spans = isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated)
        return multihost_utils.process_allgather(x, tiled=True) if spans else np.asarray(x)

    return jax.tree.map(whole, tree)


class Stop:
    """Whether any process was asked to stop: the same answer at the same step everywhere.

    The question travels on the devices like a step's metrics do and is read one step late, so that the
    devices never wait for the host; a job of several processes therefore stops one step later than one.
    Where steps are long, it is read at once: then nothing is lost by waiting, and much by a step more.

    Args:
      asked: () -> the signal that this process got, or 0.

    Attributes:
      long: whether the steps between the last two questions were so on any process.
    """

    def __init__(self, asked: Callable[[], int]):
        self._asked = asked
        self._pending = None
        self._before = None
        self.long = True  # the first one compiles
        if count() > 1:
            mesh = jax.sharding.Mesh(np.array(jax.devices()), "all")
            self._one_each = NamedSharding(mesh, PartitionSpec("all"))
            self._largest = jax.jit(lambda x: x.max(0), out_shardings=NamedSharding(mesh, PartitionSpec()))

    def agreed(self, wait: bool = False) -> int:
        """The signal to stop at, or 0; to be asked once a step, by all. With `wait`, no step late."""
        now = time.monotonic()
        mine = [self._asked(), int(self._before is None or now - self._before > LONG_STEP)]
        self._before = now
        if count() == 1:
            signal, self.long = mine[0], bool(mine[1])
            return signal
        row = np.array([mine], np.int32)
        vote = self._largest(jax.make_array_from_callback((jax.device_count(), 2), self._one_each, lambda _: row))
        vote, self._pending = (vote, None) if wait or self.long else (self._pending, vote)
        if vote is None:  # the first that is not waited for
            return 0
        signal, long = np.asarray(vote).tolist()
        self.long = bool(long)
        return signal


def lost_peer(error: BaseException) -> bool:
    """Whether an error means that another process ended."""
    return count() > 1 and any(sign in str(error).lower() for sign in _LOST_PEER)


def leave(code: int) -> None:
    """Ends this process, without waiting for others, who may never come, nor for threads that still write.

    What a thread was writing is incomplete under another name, and removed at the next start.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # nobody reads it any more
            stream.flush()
    if count() > 1 and is_first():
        time.sleep(2)  # it carries the coordination: those who fail with it may say so first
    os._exit(code)


def all_failed(reason: str, seconds: float = 60.0) -> bool:
    """Whether every process of the job failed for this reason: waits so long for the others to say so.

    No device is asked: where one process failed alone, those of the others are busy with what it has left.
    Processes that all failed may go on together.
    """
    if count() == 1:
        return True
    from jax._src import distributed  # what Orbax waits at, too; JAX has no public name for it

    digest = hashlib.sha256(reason.encode()).hexdigest()[:16]
    try:
        barrier = f"rlhf_jax/failed/{next(_failures)}/{digest}"
        distributed.global_state.client.wait_at_barrier(barrier, int(seconds * 1000))
        return True
    except jax.errors.JaxRuntimeError:
        return False


def describe() -> str:
    """This process, for messages: "process 1 of 4"."""
    return f"process {jax.process_index()} of {count()}"
