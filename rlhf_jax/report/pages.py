"""The page of a run or of a sweep."""

import pathlib

from rlhf_jax.report import run_page, sweep_page
from rlhf_jax.runtime import terminal


def write(path):
    """Writes the report of a run or of a sweep (a directory with a sweep.json) into its directory.

    Returns:
        What belongs on a terminal, for `show`.

    Raises:
        InputError: the path is neither, or cannot be written.
    """
    page = sweep_page if (pathlib.Path(path) / "sweep.json").is_file() else run_page
    return page.write(path)


def show(report) -> None:
    """Prints what `write` returned; a log file or a narrow terminal gets whole numbers all the same."""
    terminal.console(width=max(terminal.console().width, 100)).print(report, soft_wrap=True)
