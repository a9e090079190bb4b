"""Keeps compiled programs on the disk, so that the second start of a command does not compile them again.

The folder is ~/.cache/rlhf_jax/programs (XDG_CACHE_HOME replaces ~/.cache). JAX's own variables win:
JAX_ENABLE_COMPILATION_CACHE=false turns the cache off, and JAX_COMPILATION_CACHE_DIR names another folder, or, if it is
empty, none. JAX's key of a program covers the program, the versions, the compiler's options and the device.
"""

import contextlib
import hashlib
import os
import pathlib
import platform

import jax

from rlhf_jax.runtime import hosts, libtpu, machine

ROOM = 4 << 30  # bytes; the programs that were not read for the longest time go first
_LEAST_SECONDS = 0.05  # to read a program that took less to compile saves nothing


def keep() -> None:
    """Lets JAX read and write compiled programs in the user's cache; a folder that cannot be made is no error.

    Commands call this before they compile, and after they have joined the other processes of a job. Several commands
    may run at once: a program that one of them has not written to its end is compiled by the other, with a warning.

    What the compiler has freed is given back to the system (see machine.py).

    A job of several processes keeps no programs. Only its first process writes programs. Without a folder that all of
    them read, the first would not compile while the others do, and would wait for them longer than its network allows.
    """
    libtpu.set_options()
    machine.give_back_after_compiling()
    if hosts.count() > 1:
        return
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or jax.config.jax_compilation_cache_dir:
        return
    folder = _folder()
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # JAX executes what lies there
        make_room(folder, ROOM)
        jax.config.update("jax_compilation_cache_dir", str(folder))
        if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)


def make_room(folder: pathlib.Path, room: int) -> None:
    """Deletes the files of a folder that were not read for the longest time, until the rest has at most `room` bytes."""
    files = [(path, path.stat()) for path in folder.iterdir() if path.is_file()]
    left = sum(stat.st_size for _, stat in files)
    for path, stat in sorted(files, key=lambda file: max(file[1].st_atime, file[1].st_mtime)):
        if left <= room:
            break
        path.unlink(missing_ok=True)
        left -= stat.st_size


def _folder() -> pathlib.Path:
    """Returns the folder of this kind of machine: machine code of one CPU may not run on another with the same home."""
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    return cache / "rlhf_jax" / "programs" / _machine()


def _machine() -> str:
    """Returns a name for the kind of CPU and the number of cores, for which JAX's key may not account."""
    facts = [
        platform.machine(),
        str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
    ]
    with contextlib.suppress(OSError):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        facts += [line for line in lines if line.startswith(("model name", "flags", "Features"))][:2]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]
