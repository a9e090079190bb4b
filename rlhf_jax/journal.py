"""What a stage writes while it trains: metrics, samples and warnings, to a file each and to the trackers.

    metrics.jsonl             a row for each step
    training_samples.jsonl    completions that were looked at, where the stage has any
    warnings.jsonl            a row for each warning, when there is the first one

A resumed stage goes on with the rows of the steps up to its checkpoint.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

from rlhf_jax import metrics as metrics_lib
from rlhf_jax import trackers, watching
from rlhf_jax.runtime import hosts
from rlhf_jax.runtime.errors import explained
from rlhf_jax.runtime.files import from_json, json_lines_text, whole_lines, write_text

METRICS, SAMPLES, WARNINGS = "metrics.jsonl", "training_samples.jsonl", "warnings.jsonl"
VALIDATION = "valid/"  # how the names of a validation's metrics begin


class Journal:
    """The files of one stage; all processes of a job must call its methods, and the first writes.

    Args:
      folder: the stage's.
      resume_step: the step that was restored from a checkpoint; None: the stage begins.
      tracked: (resume_step or 0, last step that the stage had logged before) -> the trackers of the stage.

    Attributes:
      validated: the metrics of the steps with a validation, the same on all processes.

    Raises:
      InputError: a file cannot be written, or is not one of ours.
    """

    def __init__(
        self, folder: pathlib.Path, resume_step: int | None, tracked: Callable[[int, int], trackers.StageTrackers]
    ):
        self._folder = folder
        self._metrics = metrics_lib.MetricsWriter(folder / METRICS, resume_step)
        self._trackers = tracked(resume_step or 0, self._metrics.before)
        hosts.on_first(self._forget, resume_step)
        self._rows: list[dict] = metrics_lib.read_metrics(folder / METRICS) if hosts.is_first() else []
        self._fired = {row.get("name") for row in _rows_if_there(folder / WARNINGS)} if hosts.is_first() else set()
        self.validated: list[dict] = hosts.on_first(lambda: list(filter(_is_validated, self._rows)))

    def _forget(self, resume_step: int | None) -> None:
        """Drops the samples and warnings of steps that are run again."""
        for name in (SAMPLES, WARNINGS):
            if (path := self._folder / name).exists():
                rows = read_rows(path)
                write_text(path, json_lines_text(row for row in rows if row["step"] <= (resume_step or 0)))

    def write(self, step: int, row: dict, samples: Sequence[dict] = ()) -> None:
        """Appends the metrics of a step, the completions that were looked at after it, and what it warns of."""
        self._metrics.write(step, row)
        if _is_validated(row):
            self.validated.append({"step": step} | row)
        if not hosts.is_first():
            return
        self._trackers.metrics(step, row)
        if samples:
            samples = [{"step": step} | sample for sample in samples]
            self._append(SAMPLES, samples)
            if any(sample.get("of") == "validation" for sample in samples):  # a table for every step would be too many
                self._trackers.samples(step, samples)
        self._rows.append({"step": step} | row)
        for warning in watching.new_warnings(self._rows, self._fired):
            self._warn(warning)

    def _warn(self, warning: watching.RunWarning) -> None:
        self._fired.add(warning.name)
        print(f"{self._folder.name}: warning: {warning.message}", flush=True)
        self._append(WARNINGS, [dataclasses.asdict(warning)])
        self._trackers.warning(warning.step, dataclasses.asdict(warning))

    def _append(self, name: str, rows: Sequence[dict]) -> None:
        with explained(f"write {self._folder / name}"), open(self._folder / name, "a", encoding="utf-8") as file:
            file.write(json_lines_text(rows))

    def sync(self) -> None:
        """Returns when the metrics are on the disk itself: not even a crash of the machine loses them."""
        self._metrics.sync()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._metrics.close()


def _is_validated(row: dict) -> bool:
    return any(name.startswith(VALIDATION) for name in row)


def _rows_if_there(path: pathlib.Path) -> list[dict]:
    return read_rows(path) if path.exists() else []


def read_rows(path) -> list[dict]:
    """Returns the rows of a file of samples or warnings; lines that a killed process has not finished are left out."""
    rows = []
    for line in whole_lines(path):
        try:
            row = from_json(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows
