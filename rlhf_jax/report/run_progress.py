"""How far a run is: the state of each stage, its steps, and what is still missing."""

import contextlib
import dataclasses
import datetime
import itertools
import math
import pathlib
import statistics

from rlhf_jax.fields import registry
from rlhf_jax.report.record import Record
from rlhf_jax.report.tables import TextTable
from rlhf_jax.runtime import workdir
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.markdown import cell

DONE, EVALUATING, NOT_EVALUATED = "finished", "being evaluated", "finished, but not evaluated"
BEGINNING, RUNNING, STOPPED, NOT_BEGUN = "about to begin", "running", "stopped", "not begun"
_RECENT = 20  # steps whose median time gives the time left


@dataclasses.dataclass(frozen=True)
class StageProgress:
    """How far a stage is.

    Attributes:
      stage: its name.
      state: one of the states above.
      done: number of steps done; None if none is known, as of a stage that has no steps.
      total: number of its steps; None if unknown.
      unit: what is counted, "steps" or "iterations".
      saved: step of its newest checkpoint, or None.
      last: when its last step was written, in seconds since the epoch, or None.
      seconds: time of a step, in seconds; None with fewer than two steps.
    """

    stage: str
    state: str
    done: int | None
    total: int | None
    unit: str
    saved: int | None
    last: float | None
    seconds: float | None

    @property
    def steps(self) -> str:
        """The steps done in words, as "12 of 40 iterations"; "" of a stage without steps."""
        if self.total is None:
            return "" if self.done is None else f"{self.done} {self.unit}"
        return f"{self.done or 0} of {self.total} {self.unit}"

    @property
    def left(self) -> str:
        """The time that the remaining steps of a running stage take, in words, or ""."""
        if self.state != RUNNING or self.seconds is None or self.total is None or self.done is None:
            return ""
        seconds = max(0, self.total - self.done) * self.seconds
        if not 0 < seconds < 1e9:
            return ""
        minutes = round(seconds / 60)
        if minutes < 1:
            return "less than 1 min"
        return f"about {minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"about {minutes} min"

    @property
    def words(self) -> str:
        """The stage in words, as "ppo is running, 12 of 40 iterations are done"."""
        done = f", {self.steps} are done" if self.steps and self.state in (RUNNING, STOPPED) else ""
        left = f", {self.left} left" if self.left else ""
        again = ""
        if self.state == STOPPED and self.saved is not None:
            again = f"; the same command goes on from its checkpoint after {self.saved}"
        return f"{self.stage} is {self.state}{done}{left}{again}"


@dataclasses.dataclass(frozen=True)
class RunProgress:
    """How far a run is.

    Attributes:
      at_work: whether a process has the run open; None if that cannot be told.
      stages: all its stages, in the order of the pipeline.
      current: the first that is not complete, or None.
    """

    at_work: bool | None
    stages: list[StageProgress]

    @property
    def current(self) -> StageProgress | None:
        return next((stage for stage in self.stages if stage.state != DONE), None)

    @property
    def finished(self) -> bool:
        """Whether all stages are finished and evaluated."""
        return self.current is None

    @property
    def line(self) -> str:
        """The progress as one line."""
        if self.current:
            return self.current.words
        return "all stages are finished" + ("; the run is at its end" if self.at_work else "")

    @property
    def missing(self) -> str:
        """What is still missing, in words."""
        parts = []
        for stage in self.stages:
            if stage.state in (EVALUATING, NOT_EVALUATED):
                parts.append(f"the evaluation of {stage.stage}")
            elif stage.state != DONE:
                parts.append(f"{'the rest of ' if stage.done else ''}{stage.stage}")
        return ", ".join(parts)

    def table(self, noted: dict[str, str]) -> TextTable:
        """Returns the table of the stages; `noted` says in a few words what was noted of a stage."""
        rows = [
            [
                stage.stage,
                stage.state,
                stage.steps or "–",
                stage.left or "–",
                _date(stage.last),
                noted.get(stage.stage, "–"),
            ]
            for stage in self.stages
        ]
        return TextTable(["stage", "state", "steps done", "time left", "last step (UTC)", "noted"], rows, words=2)


def progress_of(record: Record) -> RunProgress:
    """Returns how far a run is, by its files and its lock."""
    at_work = at_work_on(record.path)
    stages: list[StageProgress] = []
    before = True  # all earlier stages are complete
    for stage in record.config["stages"]:
        state = _state(record, stage, at_work if before else False)
        before = before and state == DONE
        stages.append(_progress(record, stage, state))
    return RunProgress(at_work, stages)


def state_lines(progress: RunProgress) -> list[str]:
    """Returns sentences on an unfinished run for a terminal; none on a finished one."""
    if progress.finished:
        return []
    return [f"Unfinished: {progress.line}.", f"Still missing: {progress.missing}."]


def unfinished_sections(progress: RunProgress, noted: dict[str, str]) -> list[str]:
    """Returns the part of report.md on how far an unfinished run is, as Markdown; none of a finished one.

    Args:
      progress: how far the run is.
      noted: stage -> what was noted of it, in a few words.
    """
    if progress.finished:
        return []
    return [
        f"**Unfinished**: {cell(progress.line)}.",
        f"Still missing: {cell(progress.missing)}. Numbers and curves are those that there were when this was written.",
        progress.table(noted).markdown(),
    ]


def _state(record: Record, stage: str, at_work: bool | None) -> str:
    """Returns the state of a stage, given whether a process may be at work on it."""
    if stage in record.done:
        if not _to_evaluate(record, stage) or (record.path / stage / "evaluation.json").exists():
            return DONE
        return EVALUATING if at_work else NOT_EVALUATED
    begun = (record.path / stage).is_dir()
    if at_work is None:
        return "running or stopped" if begun else NOT_BEGUN
    if at_work:
        return RUNNING if begun else BEGINNING
    return STOPPED if begun else NOT_BEGUN


def _to_evaluate(record: Record, stage: str) -> bool:
    """Whether the pipeline evaluates a stage; a policy of another shape than the run's is not evaluated."""
    kind = registry.of(record.config, stage)
    return kind.evaluate is not None and (kind.gives != "policy" or not record.config[stage].get("model"))


def _progress(record: Record, stage: str, state: str) -> StageProgress:
    """Returns how far a stage in a state is."""
    section, rows = record.config[stage], record.curves.get(stage, [])
    unit = "iterations" if "iterations" in registry.of(record.config, stage).fields.parts else "steps"
    total = record.totals.get(stage, section.get(unit))
    saved = _newest_checkpoint(record.path / stage)
    done = max([row["step"] for row in rows] + [saved] * (saved is not None), default=None)
    times = [row["time"] for row in rows if math.isfinite(row.get("time", math.nan))]
    gaps = [after - before for before, after in itertools.pairwise(times[-_RECENT - 1 :])]
    return StageProgress(
        stage,
        state,
        done,
        total if isinstance(total, int) and not isinstance(total, bool) else None,
        unit,
        saved,
        times[-1] if times else None,
        statistics.median(gaps) if gaps else None,
    )


def _newest_checkpoint(folder: pathlib.Path) -> int | None:
    """Returns the step of the newest checkpoint of a stage, or None; what is being written or removed is passed over."""
    found = []
    with contextlib.suppress(OSError):
        found = [int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdecimal()]
    return max(found, default=None)


def at_work_on(path: pathlib.Path) -> bool | None:
    """Returns whether a process has a run open; None if its lock cannot be tried, as in a folder of somebody else."""
    try:
        return workdir.in_use(path)
    except (OSError, InputError):
        return None


def _date(seconds: float | None) -> str:
    """Returns a time in seconds since the epoch as a date, or a dash."""
    with contextlib.suppress(ValueError, OverflowError, OSError):
        if seconds:
            return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
    return "–"
