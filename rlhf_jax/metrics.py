"""Metrics on their way from the programs to `metrics.jsonl`: one JSON line a step."""

import contextlib
import itertools
import json
import math
import os
import pathlib
import sys
import time
from typing import TextIO

import jax
import numpy as np

from rlhf_jax.runtime import hosts
from rlhf_jax.runtime.errors import InputError, explained
from rlhf_jax.runtime.files import from_json, whole_lines, write_text

_SHOWN_GAPS = 8


def compute(metrics: dict) -> dict[str, float | list[float]]:
    """Fetches scalars from the devices, in one transfer, as floats; arrays of several trials as lists of them.

    This waits for the program that makes them: call it for one step when the next is dispatched.
    """
    return {name: np.asarray(value, np.float64).tolist() for name, value in jax.device_get(metrics).items()}


class MetricsWriter:
    """Appends one line `{"step", "time", name: value, ...}` a call to a JSON-lines file.

    "time" is in seconds since the epoch. Every line is complete on disk before `write` returns;
    NaN and infinities are written as the strings "nan", "inf", "-inf", so each line is valid JSON.
    Write the line of step s and `sync` before saving the checkpoint of step s: then no interruption
    loses it.

    All processes of a job make one, the first writes.

    Args:
      path: the file; its folder exists.
      resume_step: the step restored from a checkpoint: later lines are dropped, because their
        steps are run again. None when nothing was restored: the file starts anew.

    Attributes:
      before: the last step that the file had, before lines were dropped; 0 if it had none.

    In a file that is resumed, a line that is not whole is cut, and one that is there twice is kept once. A sentence
    says which steps have lost their lines.

    Raises:
      InputError: the file cannot be written, or is not one of ours.
    """

    def __init__(self, path, resume_step: int | None):
        self.path = pathlib.Path(path)
        self._file: TextIO | None = None
        self.before: int = hosts.on_first(self._open, resume_step)

    def _open(self, resume_step: int | None) -> int:
        rows, kept = {}, []
        if self.path.exists():
            with contextlib.nullcontext() if resume_step is not None else contextlib.suppress(InputError):
                rows = _rows(self.path)
        if resume_step is not None and self.path.exists():
            kept = [line for step, (line, _) in rows.items() if step <= resume_step]
            if gaps := lost_steps(read_metrics(self.path), resume_step):
                print(f"{self.path} has lost the lines of {gaps}; its curves have gaps there", file=sys.stderr)
        write_text(self.path, "".join(line + "\n" for line in kept))
        with explained(f"write {self.path}"):
            self._file = open(self.path, "a", encoding="utf-8")
        return max(rows, default=0)

    def write(self, step: int, metrics: dict) -> None:
        """Appends the values of one step: numbers (JAX and NumPy scalars too), strings or None."""
        if self._file is None:
            return
        values = {name: _plain(value) for name, value in metrics.items()}
        row = {"step": int(step), "time": round(time.time(), 3)}
        if clash := values.keys() & row.keys():
            raise ValueError(f"a metric cannot be called {' or '.join(sorted(clash))}")
        line = json.dumps(
            row | {name: _encode(value) for name, value in values.items()}, ensure_ascii=False, allow_nan=False
        )
        with explained(f"write {self.path} (step {step})"):
            self._file.write(line + "\n")
            self._file.flush()

    def sync(self) -> None:
        """Returns when the lines are on the disk itself: not even a crash of the machine loses them."""
        if self._file:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is None:
            return
        with explained(f"write {self.path}"):
            self._file.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def read_metrics(path) -> list[dict]:
    """The rows of a metrics file, one a step, NaN and infinities as floats; lines that are not whole are left out.

    Raises:
      InputError: the file cannot be read, or has no whole line at all.
    """
    return [{name: _decode(value) for name, value in row.items()} for _, row in _rows(path).values()]


def lost_steps(rows: list[dict], last: int) -> str:
    """Which of the steps 1 to `last` have no row: "step 3", "steps 4 to 6, 9", or "" where none is missing."""
    there = sorted({row["step"] for row in rows if 1 <= row["step"] <= last})
    gaps = [
        (before + 1, after - 1) for before, after in itertools.pairwise([0, *there, last + 1]) if after - before > 1
    ]
    shown = [str(first) if first == end else f"{first} to {end}" for first, end in gaps]
    more = [f"{len(shown) - _SHOWN_GAPS} more gaps"] if len(shown) > _SHOWN_GAPS else []
    several = any(first != end for first, end in gaps) or len(gaps) > 1
    return f"step{'s' * several} {', '.join(shown[:_SHOWN_GAPS] + more)}" if gaps else ""


def _rows(path) -> dict[int, tuple[str, dict]]:
    """Step -> line and row, in the order of the file; of a step that is there twice the first."""
    rows: dict[int, tuple[str, dict]] = {}
    lines = whole_lines(path, cut=False)
    for line in lines:
        with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
            row = from_json(line)
            if type(row["step"]) is int:
                rows.setdefault(row["step"], (line.decode(), row))
    if not rows and len(lines) > 1:
        raise InputError(
            f"{path}: no line of it is a JSON object with an integer 'step'; put it back as it was, or delete it"
        )
    return rows


def _plain(value):
    """A NumPy or JAX scalar as a Python number, anything else as it is."""
    return value.item() if hasattr(value, "item") and np.ndim(value) == 0 else value


def _encode(value):
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _decode(value):
    return float(value) if value in ("nan", "inf", "-inf") else value
