"""Describes the machine that a stage ran on, for its done.json."""

import ctypes
import dataclasses
import functools
import importlib.metadata
import os
import pathlib
import platform
import resource
import sys

import jax

from rlhf_jax.runtime import hosts

_CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container, v2 and v1
# Options of glibc's mallopt, and the values that it has by itself: the size of a trim, of a block that is kept apart, how
# many of these there may be, and what is taken in advance.
_MALLOPT = {-1: 1 << 17, -2: 1 << 17, -3: 1 << 25, -4: 1 << 16}
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tokenizers")


def described() -> dict:
    """Returns the hardware, the versions of packages, and this process's largest resident memory so far, in GiB."""
    devices = jax.devices()
    machines = f" on {hosts.count()} hosts" if hosts.count() > 1 else ""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, and in KiB elsewhere
    return {
        "peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30,
        "hardware": f"{len(devices)} x {devices[0].device_kind}{machines}, {os.cpu_count()} cores, "
        f"{platform.system()} {platform.machine()}",
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _PACKAGES},
    }


@dataclasses.dataclass(frozen=True)
class Memory:
    """The memory of a device, or of the machine whose CPU devices share it, in bytes.

    Attributes:
      whole: all of it; None where the device does not say.
      free: what is free now; None where the device does not say.
      sharers: number of devices that share it.
      own: what this process has of it besides arrays: Python, JAX and what it has read.
    """

    whole: int | None
    free: int | None
    sharers: int = 1
    own: int = 0


def memory(mesh: jax.sharding.Mesh) -> Memory:
    """Returns the memory of this process's devices of a mesh; on GPUs that is what JAX may allocate."""
    devices = mesh.local_devices
    if devices[0].platform != "cpu":
        stats = devices[0].memory_stats() or {}
        whole = stats.get("bytes_limit")
        return Memory(whole, None if whole is None else whole - stats.get("bytes_in_use", 0))
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    facts = dict(_kibibytes("/proc/meminfo"))
    own = dict(_kibibytes("/proc/self/status")).get("VmRSS", 0)
    free = facts.get("MemAvailable", whole - own)
    for path in _CGROUPS:
        limit = pathlib.Path(path).read_text().strip() if os.path.exists(path) else ""
        if limit.isdecimal() and int(limit) < whole:
            whole, free = int(limit), min(free, int(limit) - own)
    return Memory(whole, free, len(devices), own)


def gives_back_memory() -> bool:
    """Undoes the settings of launch/python.sh, by which the allocator keeps what is freed, in this process.

    Returns:
      Whether there was anything to undo.
    """
    if "glibc.malloc" not in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    libc = ctypes.CDLL(None)
    for option, value in _MALLOPT.items():
        libc.mallopt(option, value)
    libc.malloc_trim(0)
    return True


_COMPILED = "/jax/core/compile/backend_compile_duration"  # the event that JAX records after each compilation
_LONG = 0.2  # seconds of a compilation that leaves memory worth giving back


@functools.cache
def give_back_after_compiling() -> None:
    """Lets this process give back to the system what the compiler has freed, after each compilation that took long.

    The allocator would keep it: hundreds of MiB for the programs of a stage (docs/scaling.md).
    """
    if not sys.platform.startswith("linux") or not hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        return

    def heard(event: str, duration_secs: float, **_: str | int) -> None:
        if event == _COMPILED and duration_secs > _LONG:
            libc.malloc_trim(0)

    jax.monitoring.register_event_duration_secs_listener(heard)


def _kibibytes(path: str):
    """Yields (name, bytes) of the lines "NAME: NUMBER kB" of a file of Linux; nothing elsewhere."""
    if os.path.exists(path):
        for line in pathlib.Path(path).read_text().splitlines():
            name, _, value = line.partition(":")
            if value.endswith(" kB"):
                yield name, int(value.removesuffix(" kB")) * 1024
