"""Rewrites the report of a run or a sweep while it goes on.

The files that a report reads are looked at every few seconds, and the report is written again where one of them has
changed. Nothing in the run is touched, and the process has a low priority: training comes first.
"""

import contextlib
import os
import pathlib
import time
from collections.abc import Callable

from rlhf_jax.report import pages
from rlhf_jax.runtime.errors import InputError

_FILES = ("*.json", "*/*.json", "*/*.jsonl", "arms/*/*.json", "arms/*/*/*.json", "arms/*/*/*.jsonl")
_OWN = {"verdicts.json"}
_PATIENCE = 1.0  # seconds after which a file that could not be read is tried once more
_NICE = 10


def follow(path, every: float, written: Callable[[], None] = lambda: None, sleep=time.sleep) -> None:
    """Writes the report of a directory until its run or sweep is finished, and prints a line at each change.

    Args:
      path: directory of a run or a sweep, which has begun.
      every: seconds between two looks.
      written: called after each writing.
      sleep: waits a number of seconds.

    Raises:
      InputError: the path is neither a run nor a sweep, a file stays damaged, or the report cannot be written.
      KeyboardInterrupt: Ctrl-C; the report is as it was last written.
    """
    with contextlib.suppress(OSError):
        os.nice(_NICE)
    before, said = None, None
    while True:
        progress = _patient(lambda: pages.progress_of(path), sleep)
        now = _state(path), progress.at_work
        if now != before:
            _patient(lambda: pages.write(path), sleep)
            written()
            before = now
        if progress.line != said:
            print(progress.line, flush=True)
            said = progress.line
        if progress.finished and not progress.at_work:
            return
        sleep(every)


def _patient(read: Callable, sleep):
    """Returns what a function reads; what cannot be read may be on its way to the disk, and is tried once more."""
    try:
        return read()
    except InputError:
        sleep(_PATIENCE)
        return read()


def _state(path) -> list[tuple]:
    """Returns the names, times and sizes of the files that a report reads."""
    found = []
    for pattern in _FILES:
        for file in pathlib.Path(path).glob(pattern):
            with contextlib.suppress(OSError):  # it has just been removed
                stat = file.stat()
                found += [(str(file), stat.st_mtime_ns, stat.st_size)] * (file.name not in _OWN)
    return sorted(found)
