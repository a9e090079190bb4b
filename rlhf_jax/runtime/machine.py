"""Describes the machine that a stage ran on, for its done.json."""

import importlib.metadata
import os
import platform
import resource
import sys

import jax

from rlhf_jax.runtime import hosts

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
