"""What a tracker is told of a run, and what every tracker does."""

import dataclasses
import importlib
import pathlib
from collections.abc import Iterable, Sequence
from types import ModuleType

_FIRST, _LAST = ("step", "of", "prompt", "completion", "score"), ("kl", "length")


@dataclasses.dataclass(frozen=True)
class Tracked:
    """A run, as a tracker has to know it.

    Attributes:
      project: the project, or experiment, that the run belongs to.
      name: the run's name: that of its work directory, which for an arm of a sweep is the arm's.
      group: the sweep's name; None for a run that is no arm.
      path: the work directory.
      local: the folder for a tracker's files: `trackers` in the work directory, or in the sweep's for an arm, whose runs
        then lie together. It exists.
      config: the run's whole config, as JSON values.
      id: what the tracker called the run when it was opened for the first time; None: it is new.
      logged: stage -> the last step that was logged, by earlier processes and, as the run goes on, by this one.
    """

    project: str
    name: str
    group: str | None
    path: pathlib.Path
    local: pathlib.Path
    config: dict
    id: str | None = None
    logged: dict[str, int] = dataclasses.field(default_factory=dict)


class Tracker:
    """A run in one tracker. To make one opens the run, or goes on with it; any method may raise anything.

    Attributes:
      id: what the tracker calls the run.
      place: where a person finds the run, in a few words.
    """

    id: str
    place: str

    def begin(self, stage: str, restored: int, logged: int, sure: int) -> int:
        """Prepares for the steps of a stage, and returns the last one that is not to be logged.

        A stage that was killed repeats its steps after the checkpoint, with the same values as before. Unless a tracker
        can say itself what it has, those that had been logged are left out.

        Args:
          stage: name of the stage.
          restored: step of the checkpoint; 0: the stage starts anew.
          logged: the last step that earlier processes have logged; what a killed process had not yet sent counts as logged.
          sure: the last step that they had logged when one of them ended in good order, or began.
        """
        return logged

    def metrics(self, stage: str, step: int, row: dict[str, float]) -> None:
        """Logs the metrics of a step."""
        raise NotImplementedError

    def samples(self, stage: str, step: int, columns: list[str], rows: list[list]) -> None:
        """Logs a table of completions."""
        raise NotImplementedError

    def warning(self, stage: str, step: int, name: str, message: str) -> None:
        """Logs a warning."""
        raise NotImplementedError

    def close(self, failed: bool) -> None:
        """Ends the run for this process, once what was logged is written or sent.

        Args:
          failed: whether the run ended with an error.
        """
        raise NotImplementedError


def load(modules: Iterable[str]) -> ModuleType:
    """Returns the first of these modules that is installed.

    Raises:
      ImportError: none of them is.
    """
    failures = []
    for module in modules:
        try:
            return importlib.import_module(module)
        except ImportError as error:
            failures.append(error)
    raise failures[0]


def table(rows: Sequence[dict]) -> tuple[list[str], list[list]]:
    """Returns the columns and the rows of a table of samples; each of their `scores` gets a column, "score/NAME"."""
    flat = [
        {name: value for name, value in row.items() if name != "scores"}
        | {f"score/{name}": value for name, value in (row.get("scores") or {}).items()}
        for row in rows
    ]
    found = dict.fromkeys(name for row in flat for name in row)
    others = [name for name in found if name not in (*_FIRST, *_LAST)]
    columns = [name for name in (*_FIRST, *others, *_LAST) if name in found]
    return columns, [[row.get(name) for name in columns] for row in flat]


def fields(config: dict, prefix: str = "") -> dict:
    """Returns the fields of a nested config by their dotted names."""
    found: dict = {}
    for name, value in config.items():
        found |= fields(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {prefix + name: value}
    return found
