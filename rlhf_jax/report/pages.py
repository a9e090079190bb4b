"""Writes the report of a directory, be it a run or a sweep, and shows it on a terminal."""

import pathlib

from rlhf_jax.report import run_page, sweep_page
from rlhf_jax.runtime import terminal


def write(path):
    """Writes the report of a run or of a sweep into its directory.

    A directory with a sweep.json is a sweep.

    Returns:
      The part of the report that belongs on a terminal, for `show`.

    Raises:
      InputError: the path is neither a run nor a sweep, or cannot be written.
    """
    page = sweep_page if (pathlib.Path(path) / "sweep.json").is_file() else run_page
    return page.write(path)


def show(report) -> None:
    """Prints what `write` returned, at least 100 columns wide: a narrow terminal or a log file cuts no number."""
    terminal.console(width=max(terminal.console().width, 100)).print(report, soft_wrap=True)
