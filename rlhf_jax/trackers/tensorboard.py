"""TensorBoard: event files in the folder of each stage.

TensorBoard takes a folder for a run and lets a person choose runs and overlay them. So each stage is a run, and its
metrics have the names of metrics.jsonl: `objective/kl` of PPO and of PPO-ptx are two lines of one chart.

A resumed stage tells TensorBoard to forget the steps after its checkpoint, and logs them again: none is there twice.
"""

import json
import os
from typing import Any

from rlhf_jax.trackers.tracker import Tracked, Tracker, load

FOLDER = "tensorboard"  # in that of the stage


def package():
    """Returns the package: tensorboardX, or PyTorch's writer."""
    return load(["tensorboardX", "torch.utils.tensorboard"])


class TensorBoard(Tracker):
    """See the top of the file."""

    def __init__(self, run: Tracked):
        self._package, self._run = package(), run
        self._writer: Any = None
        self.id = run.name
        self.place = f"`tensorboard --logdir {run.path}`"

    def begin(self, stage: str, restored: int, logged: int, sure: int) -> int:
        self.close(failed=False)
        folder = os.fspath(self._run.path / stage / FOLDER)
        # The suffix is for a stage that is resumed within a second, as whose name files have their time.
        suffix = f".{restored:09}"
        self._writer = self._package.SummaryWriter(folder, purge_step=restored + 1, filename_suffix=suffix)
        self._writer.add_text("config", _code(json.dumps(self._run.config, indent=1)), restored)
        return restored

    def metrics(self, stage: str, step: int, row: dict[str, float]) -> None:
        for name, value in row.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # so that a checkpoint has the steps before it in the file

    def samples(self, stage: str, step: int, columns: list[str], rows: list[list]) -> None:
        lines = [columns, ["---"] * len(columns), *rows]
        text = "\n".join("|" + "|".join(map(_cell, line)) + "|" for line in lines)
        self._writer.add_text("samples", text, step)

    def warning(self, stage: str, step: int, name: str, message: str) -> None:
        self._writer.add_text(f"warnings/{name}", message, step)

    def close(self, failed: bool) -> None:
        if self._writer:
            self._writer.close()
            self._writer = None


def _code(text: str) -> str:
    """Returns Markdown that shows a text as it is."""
    return "".join(f"    {line}\n" for line in text.splitlines())


def _cell(value) -> str:
    """Returns a value as a cell of a Markdown table."""
    text = f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
    return text.replace("|", "\\|").replace("\n", " ⏎ ")
