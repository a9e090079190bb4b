"""Writes the report of a directory, be it a run or a sweep, shows it on a terminal, and says how far the directory is."""

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
    return _page(path).write(path)


def progress_of(path):
    """Returns how far a run or a sweep is: an object with `finished`, `at_work` and `line`, a sentence on it.

    Raises:
      InputError: the path is neither a run nor a sweep.
    """
    return _page(path).progress_of(path)


def show(report) -> None:
    """Prints what `write` returned, at least 100 columns wide: a narrow terminal or a log file cuts no number."""
    terminal.console(width=max(terminal.console().width, 100)).print(report, soft_wrap=True)


def _page(path):
    """Returns the module that reports a directory."""
    return sweep_page if (pathlib.Path(path) / "sweep.json").is_file() else run_page
