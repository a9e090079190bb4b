"""What a run, one run with several seeds, or a sweep has shown:

    python -m rlhf_jax.report runs/quickstart
    python -m rlhf_jax.report runs/seed0 runs/seed1 runs/seed2 --out=report_seeds.md
    python -m rlhf_jax.report runs/figures/fig33_ptx_coef --open
    python -m rlhf_jax.report --all runs/figures --publish=docs/reproduction

A run gets `report.md` and `figures/` inside its directory; a sweep `tables/` and `verdicts.json`, too;
several runs are averaged. --all judges every sweep of a directory: REPRODUCTION.md. Everything is read
from files, and what is not there is left out, or named where somebody waits for it.
"""

import importlib.metadata
import os
import pathlib
import platform
import resource
import sys

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tokenizers")


def write(path):
    """Writes the report of a run or of a sweep (a directory with a sweep.json) into its directory.

    Returns:
        What belongs on a terminal, for `show`.

    Raises:
        InputError: the path is neither, or cannot be written.
    """
    from rlhf_jax.report import run_page as run  # not at import: the pipeline needs `machine` alone
    from rlhf_jax.report import sweep_page

    return (sweep_page if (pathlib.Path(path) / "sweep.json").is_file() else run).write(path)


def show(report) -> None:
    """Prints what `write` returned; a log file or a narrow terminal gets whole numbers all the same."""
    from rlhf_jax.runtime import terminal

    terminal.console(width=max(terminal.console().width, 100)).print(report, soft_wrap=True)


def machine() -> dict:
    """Where this process runs, and the most memory it has held: for a stage's done.json."""
    import jax

    from rlhf_jax.runtime import hosts

    devices = jax.devices()
    machines = f" on {hosts.count()} hosts" if hosts.count() > 1 else ""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return {
        "peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30,
        "hardware": f"{len(devices)} x {devices[0].device_kind}{machines}, {os.cpu_count()} cores, "
        f"{platform.system()} {platform.machine()}",
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _PACKAGES},
    }
