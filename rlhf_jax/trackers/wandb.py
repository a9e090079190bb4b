"""Weights & Biases: a run for a work directory, offline unless WANDB_MODE says otherwise.

The metrics of a stage have its name before theirs (`ppo/objective/kl`), and are drawn over its own steps
(`ppo/step`), which start at 1 in each stage. So a run is one line of W&B's table of runs, as its users expect, and a
sweep can be filtered and grouped by any field of the config; a W&B run for each stage would have the fields of all
stages in each of its lines, and the metrics of one.

W&B numbers the rows of a run, and takes only rising numbers. Ours are the step, plus the steps of the stages before:
a process that goes on with a run begins with the number after the last one. An online run is resumed as it is. Of an
offline run, each process that works on it leaves a folder with the same run id and with the rows that it has added.
"""

import os
import uuid

from rlhf_jax.trackers.tracker import Tracked, Tracker, load

_LONGEST = 128  # characters of a name or a group


def package():
    """Returns the package, which sends no reports of its own errors."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    return load(["wandb"])


class Wandb(Tracker):
    """See the top of the file."""

    def __init__(self, run: Tracked):
        self._package, self._logged = package(), run.logged
        self._before: dict[str, int] = {}  # stage -> number of the row before its first step
        self._last = sum(run.logged.values())
        mode = os.environ.get("WANDB_MODE") or "offline"
        settings = {
            "console": "off",  # the terminal stays that of the run
            "silent": True,
            "finish_timeout": 60.0,  # a lost network holds the end of a run no longer; `wandb sync` sends the rest
            "x_transaction_log_flush_interval": 1.0,  # seconds of rows that a killed process loses; 15 by default
        }
        self._run = self._package.init(
            project=run.project,
            name=run.name[:_LONGEST],
            group=run.group and run.group[:_LONGEST],
            id=run.id or uuid.uuid4().hex[:12],
            resume="allow",
            mode=mode,
            dir=os.fspath(run.local),
            config=run.config,
            allow_val_change=True,  # of the few fields that may change between two starts
            reinit="create_new",  # many arms of a sweep are trained by one process
            settings=self._package.Settings(**settings),
        )
        self.id = self._run.id
        where = f"in {run.local / 'wandb'}; `wandb sync` sends it" if mode == "offline" else f"at {self._run.url}"
        self.place = f"{mode} {where}"

    def begin(self, stage: str, restored: int, logged: int, sure: int) -> int:
        others = sum(steps for name, steps in self._logged.items() if name != stage)
        self._before[stage] = others
        self._last = max(self._last, others + logged)
        self._run.define_metric(f"{stage}/step", hidden=True)
        self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        return max(sure, logged - 1)  # W&B holds a row until the next one comes, so that a kill loses the last

    def _log(self, stage: str, step: int, row: dict) -> None:
        number = self._before[stage] + step
        if number >= self._last:
            row = {f"{stage}/step": step, **row}  # else it becomes part of a later row, whose step stays
        self._last = max(self._last, number)
        self._run.log(row, step=self._last)

    def metrics(self, stage: str, step: int, row: dict[str, float]) -> None:
        self._log(stage, step, {f"{stage}/{name}": value for name, value in row.items()})

    def samples(self, stage: str, step: int, columns: list[str], rows: list[list]) -> None:
        table = self._package.Table(columns=columns, data=rows, allow_mixed_types=True)
        self._log(stage, step, {f"{stage}/samples": table})

    def warning(self, stage: str, step: int, name: str, message: str) -> None:
        """Sends an alert, and adds the warning to the run's summary, which is a column of the table of runs."""
        self._run.alert(title=f"{name} ({stage}, step {step})", text=message, level=self._package.AlertLevel.WARN)
        self._run.summary[f"{stage}/warnings/{name}"] = f"step {step}: {message}"

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))
