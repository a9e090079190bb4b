"""The files that the arms of a sweep left, each read once; what cannot be read becomes a note."""

import functools
import pathlib

import numpy as np

from rlhf_jax.evaluate.policy import read_rows
from rlhf_jax.metrics import lost_steps, read_metrics
from rlhf_jax.report.form import is_number
from rlhf_jax.runtime import finished
from rlhf_jax.runtime.errors import InputError


class Files:
    """Reads the files of arms.

    Attributes:
      notes: a sentence for each file that could not be read.
      read: the files that were asked for, whether they are there or not.
    """

    def __init__(self):
        self.notes: list[str] = []
        self.read: list[pathlib.Path] = []
        self.json, self.rows = functools.cache(self._json), functools.cache(self._rows)

    def _json(self, path: str) -> dict | None:
        """Returns a JSON file, or None if it is missing or damaged."""
        self.read.append(pathlib.Path(path))
        try:
            return finished.read_if_there(path)
        except InputError as error:
            self.notes.append(f"{error}.")
            return None

    def _rows(self, path: str) -> list[dict]:
        """Returns the rows of a file of JSON lines, each with its step; none if the file is missing or damaged."""
        self.read.append(pathlib.Path(path))
        try:
            if not finished.checked(path).exists():
                return []
            if pathlib.Path(path).name == "metrics.jsonl":
                rows = read_metrics(path)
                if rows and (lost := lost_steps(rows, max(row["step"] for row in rows))):
                    self.notes.append(f"{path} has lost the lines of {lost}.")
                return rows
            rows = [{"step": number} | row for number, row in enumerate(read_rows(path), 1)]
            return [row for row in rows if is_number(row["step"])]
        except (ValueError, TypeError, OSError) as error:
            self.notes.append(f"{path if path not in str(error) else ''} {error}.".lstrip())
            return []


def summary(values, how) -> float | None:
    """Returns the summary `how` of the values of a metric (see spec.SUMMARIES), or None for an unknown one."""
    if how == "mean_last_10%":
        return float(np.mean(values[-max(1, len(values) // 10) :]))
    return {"last": values[-1], "first": values[0]}.get(how)


def numbers(value, at=()) -> dict[str, float]:
    """Returns the numbers in nested dicts by path.

    An interval {value, low, high} is one number, its value. Paths omit the name "estimates" at their start.
    """
    if isinstance(value, dict):
        if is_number(value.get("value")):
            return {"/".join(at): value["value"]}
        found = {}
        for name, inner in value.items():
            found |= numbers(inner, at if name == "estimates" and not at else (*at, name))
        return found
    return {"/".join(at): value} if is_number(value) else {}
