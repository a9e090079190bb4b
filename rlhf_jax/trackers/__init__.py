"""Trackers of experiments, which show the metrics, samples and warnings of runs: `config.trackers` names them.

A run has one `Trackers`, on the first process of a job alone. A stage that trains gets its part of it from `stage`:

    tracked = run.trackers.stage("ppo", restored=100, logged=104)
    tracked.metrics(105, {"objective/kl": 0.3})        # names and values of the row of metrics.jsonl
    tracked.samples(105, [{"step": 105, "of": "greedy", "prompt": "...", "completion": "...", "score": 0.2, ...}])
    tracked.warning(105, {"name": "kl_over_bound", "message": "..."})

`trackers.json` in the work directory keeps what each tracker calls the run, and the last step of each stage that was
logged, so that the next start goes on with the same run. The stages' own files remain the record: no result depends on
a tracker, and one that fails is left alone until the next start.
"""

import contextlib
import json
import math
import pathlib
import sys
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from rlhf_jax.runtime import hosts
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import make_folder, read_if_there, write_json
from rlhf_jax.runtime.progress import Stopped
from rlhf_jax.trackers import mlflow, tensorboard, trackio, wandb
from rlhf_jax.trackers.tracker import Tracked, Tracker, table

FILE = "trackers.json"
FOLDER = "trackers"  # for their files, in the work directory or in the sweep's
_ARM = "arm.json"  # only the work directory of a sweep's arm has it


class Kind(NamedTuple):
    """A kind of tracker: the function that returns its package, and the function that opens a run."""

    package: Callable[[], ModuleType]
    open: Callable[[Tracked], Tracker]


KINDS = {
    "wandb": Kind(wandb.package, wandb.Wandb),
    "trackio": Kind(trackio.package, trackio.Trackio),
    "tensorboard": Kind(tensorboard.package, tensorboard.TensorBoard),
    "mlflow": Kind(mlflow.package, mlflow.MLflow),
}


def check(names: Iterable[str], path: pathlib.Path | None = None) -> None:
    """Checks that the packages of trackers are there, and what a work directory has kept of them.

    Raises:
      InputError: a package is not installed, or `trackers.json` is damaged.
    """
    for name in names:
        try:
            KINDS[name].package()
        except ImportError as error:
            raise InputError(
                f"config.trackers names {name}, which needs the package {error.name or name}: "
                f"pip install 'rlhf_jax[{name}]', or in a checkout EXTRAS={name}; or leave {name} out"
            ) from error
    if path:
        _state(path)


def _state(path: pathlib.Path) -> dict:
    """Returns what `trackers.json` holds: tracker -> {"id", "logged"}."""
    found = read_if_there(path / FILE) or {}
    kinds = [
        [type(kept.get("id")), type(kept.get("logged"))] if isinstance(kept, dict) else [] for kept in found.values()
    ]
    if any(kind != [str, dict] for kind in kinds):
        raise InputError(f"{path / FILE} is damaged: delete it, and the trackers get a new run")
    return found


class Trackers:
    """The trackers of a run; use as a context manager. A tracker is opened when the first stage trains.

    Args:
      names: the trackers, of `KINDS`.
      project: the project that the run is shown in.
      path: the work directory.
      config: the run's config, nested mappings of JSON values.
    """

    def __init__(
        self,
        names: Sequence[str] = (),
        project: str = "",
        path: pathlib.Path = pathlib.Path(),
        config: dict | None = None,
    ):
        self._project, self._path, self._config = project, path, json.loads(json.dumps(config or {}))
        self._to_open = list(names) if names and hosts.is_first() else []
        self._open: dict[str, Tracker] = {}
        self._kept: dict[str, dict] = {}

    def stage(self, stage: str, restored: int, logged: int) -> "StageTrackers":
        """Returns the trackers of a stage that trains now.

        Args:
          stage: name of the stage.
          restored: step of the checkpoint that it goes on from; 0: it starts anew.
          logged: the last step that the stage had logged before this process; it may be after the checkpoint.
        """
        if self._to_open and not self._kept:
            self._kept = _state(self._path)
        sure = {name: kept["logged"].get(stage, 0) for name, kept in self._kept.items()}
        for name in (*self._open, *self._to_open):
            if name in self._kept:
                self._kept[name]["logged"][stage] = max(logged, sure[name])
        while self._to_open:
            self._start(self._to_open.pop(0))
        if self._open:
            self._save()
        skipped = {
            name: self._try(name, "begin", stage, restored, self._kept[name]["logged"].get(stage, 0), sure.get(name, 0))
            for name in list(self._open)
        }
        return StageTrackers(self, stage, skipped)

    def _start(self, name: str) -> None:
        """Opens a tracker."""
        path = self._path.resolve()
        sweep = path.parent.parent if (path / _ARM).exists() else None
        kept = self._kept.get(name)
        logged = kept["logged"] if kept else {}
        try:
            local = make_folder((sweep or path) / FOLDER)
            run = Tracked(
                project=self._project,
                name=path.name,
                group=sweep.name if sweep else None,
                path=path,
                local=local,
                config=self._config,
                id=kept["id"] if kept else None,
                logged=logged,
            )
            tracker = KINDS[name].open(run)
        except (Exception, SystemExit) as error:
            self._gave_up(name, "open", error)
            return
        self._open[name] = tracker
        self._kept[name] = {"id": tracker.id, "logged": logged}
        if not sweep:
            print(f"{name}: {'the run goes on' if kept else 'a new run'}, {tracker.place}", flush=True)

    def _save(self) -> None:
        write_json(self._path / FILE, self._kept)

    def _try(self, name: str, doing: str, *arguments) -> Any:
        """Calls a method of a tracker that is open; one that fails is open no longer."""
        try:
            return getattr(self._open[name], doing)(*arguments)
        except (Exception, SystemExit) as error:
            self._gave_up(name, doing, error)

    def _gave_up(self, name: str, doing: str, error: BaseException) -> None:
        self._open.pop(name, None)
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        print(f"the tracker {name} failed ({doing}: {said}); the run goes on without it", file=sys.stderr, flush=True)

    def log(self, stage: str, step: int, skipped: dict[str, int], doing: str, *arguments) -> None:
        """Has every open tracker log something of a step, unless it has it already (see Tracker.begin)."""
        for name in list(self._open):
            if step > skipped[name] or not skipped[name]:
                self._try(name, doing, stage, step, *arguments)
                self._kept[name]["logged"][stage] = max(step, self._kept[name]["logged"].get(stage, 0))

    def close(self, failed: bool = False) -> None:
        """Ends the run in its trackers, for this process."""
        for name in list(self._open):
            self._try(name, "close", failed)
        if self._open:
            with contextlib.suppress(InputError):  # as of a full disk; the next start looks into metrics.jsonl, too
                self._save()
        self._open = {}

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.close(failed=error is not None and not isinstance(error, (Stopped, KeyboardInterrupt)))


class StageTrackers:
    """The trackers of a stage that trains; those that fail are silent."""

    def __init__(self, run: Trackers, stage: str, skipped: dict[str, int]):
        self._run, self._stage, self._skipped = run, stage, skipped

    def metrics(self, step: int, row: dict) -> None:
        """Logs the metrics of a step, by the names of metrics.jsonl; values that are no finite numbers are left out."""
        numbers = {
            name: float(value)
            for name, value in row.items()
            if isinstance(value, (int, float)) and math.isfinite(value)
        }
        self._run.log(self._stage, step, self._skipped, "metrics", numbers)

    def samples(self, step: int, rows: Sequence[dict]) -> None:
        """Logs completions as a table.

        Args:
          step: the step that they were looked at in.
          rows: the completions: step, of (what they are a sample of), prompt, completion, score, scores (name -> value),
            kl, length; a value that there is not is None or absent.
        """
        if rows:
            self._run.log(self._stage, step, self._skipped, "samples", *table(rows))

    def warning(self, step: int, row: dict) -> None:
        """Logs a warning: its name and its message."""
        self._run.log(self._stage, step, self._skipped, "warning", row["name"], row["message"])
