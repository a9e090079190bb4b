"""The learning curves of a run: metrics of training, and the validations beside them.

A panel shows a metric of training (faint), its moving average, and the metric of the same thing on validation data. The
figures of several runs side by side have the same panels (see of_compared).
"""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from rlhf_jax.fields import registry
from rlhf_jax.report.figures import LOOKS
from rlhf_jax.report.record import label
from rlhf_jax.report.tables import REFERENCE
from rlhf_jax.runtime.figures import legend_above, new_figure, whole_numbers
from rlhf_jax.runtime.terminal import visible

POLICY_LOOKS = {
    "pretrain": ("#7F7F7F", "s", "-"),
    "sft": ("#0072B2", "o", "-"),
    "ppo": ("#D55E00", "^", "-"),
    "ppo_ptx": ("#009E73", "D", "--"),
}
_MORE_LOOKS = [("#CC79A7", "v", "-."), ("#E69F00", "P", ":"), ("#56B4E9", "X", "-."), ("#000000", "*", ":")]
VALIDATION = {
    "linestyle": (0, (4, 2)),
    "linewidth": 1.1,
    "markersize": 5,
    "markeredgecolor": "white",
    "markeredgewidth": 0.6,
}
_COLUMNS = 3  # panels of losses side by side
_MARKERS = 15  # about as many markers are on a line


@dataclasses.dataclass(frozen=True)
class Panel:
    """A quantity that is followed during training.

    Attributes:
      title: title of the axis, with the unit.
      training: the metric in training.
      validation: the metric in validations, or "".
      scale: factor from the metric to what is drawn.
    """

    title: str
    training: str
    validation: str = ""
    scale: float = 1.0

    def there(self, rows: list[dict]) -> bool:
        """Whether some row has one of the two metrics."""
        return any(_points(rows, name) for name in (self.training, self.validation))

    def beside(self, other: "Panel") -> Iterator[tuple[str, str]]:
        """Returns the pairs of this panel's metrics and another's: both of training, and both of validation."""
        return zip((self.training, self.validation), (other.training, other.validation))


def look(stage: str, stages) -> tuple[str, str, str]:
    """Returns the colour, marker and line of a stage's policy among all stages shown."""
    others = [name for name in stages if name not in POLICY_LOOKS]
    return POLICY_LOOKS.get(stage) or _MORE_LOOKS[others.index(stage) % len(_MORE_LOOKS)]


def rl_panels(curves: dict[str, list[dict]], start: str) -> list[Panel]:
    """Returns the panels of PPO for which there are metrics.

    Args:
      curves: the rows of metrics.jsonl of each stage or run.
      start: name of the policy to which the KL refers.
    """
    known = [
        Panel("reward score", "objective/scores", "valid/score"),
        Panel(f"KL to {start}\n(nats per completion)", "objective/kl", "valid/kl"),
        Panel("completion length (tokens)", "objective/completion_length", "valid/completion_length"),
        Panel("entropy\n(nats per completion)", "objective/entropy"),
        Panel("ends by itself\n(% of completions)", "objective/eos", "valid/eos", 100.0),
        Panel("gold score", "objective/gold", "valid/gold"),
        Panel("loss on pretraining text\n(nats per token)", "ppo/ptx/loss", "valid/ptx_loss"),
    ]
    every = [row for rows in curves.values() for row in rows]
    ends = ("objective/scores/", "valid/scores/")
    names = dict.fromkeys(
        name.removeprefix(end) for row in every for end in ends for name in row if name.startswith(end)
    )
    for name in names:
        shown = visible(name if len(name) <= 40 else f"…{name[-39:]}")
        panel = Panel(f"score of\n{shown}", *(f"{end}{name}" for end in ends))
        if any(row.get(own) not in (None, row.get(whole)) for own, whole in panel.beside(known[0]) for row in every):
            known.append(panel)  # a reward that is alone in training is the score itself
    return [panel for panel in known if panel.there(every)]


def loss_panels(rows: list[dict], unit: str) -> list[Panel]:
    """Returns the panels of a supervised stage for which there are metrics; `unit` is that of its loss."""
    known = [
        Panel(f"loss\n({unit})", "loss", "valid/loss"),
        Panel("accuracy (% of pairs)", "accuracy", "valid/accuracy", 100.0),
        Panel("reward score", "", "valid/score"),
    ]
    return [panel for panel in known if panel.there(rows)]


def draw_learning(record, path) -> bool:
    """Draws the metrics of PPO over its iterations; returns False without them."""
    curves = {stage: rows for stage, rows in record.curves.items() if rows and "objective/kl" in rows[0]}
    starts = {record.config[stage].get("init") for stage in curves}
    start = label(starts.pop()) if len(starts) == 1 and starts <= set(record.config["stages"]) else REFERENCE
    panels = rl_panels(curves, start)
    if not panels:
        return False
    looks = {stage: look(stage, curves) for stage in curves}
    draw_panels(path, panels, {label(stage): (curves[stage], looks[stage]) for stage in curves}, "iteration")
    return True


def draw_panels(path, panels: list[Panel], lines: dict[str, tuple], unit: str) -> None:
    """Draws panels two by two, each with all lines.

    Args:
      path: path of the PNG file.
      panels: the panels.
      lines: name of a stage or run -> (its rows of metrics, its colour, marker and line).
      unit: title of the x axis.
    """
    height, columns = math.ceil(len(panels) / 2), min(2, len(panels))
    with new_figure(path, columns, 0.3 + 2.0 * height + 0.4 * (height == 1), height, sharex=True) as (figure, axes):
        for axis, panel in zip(axes.flat, panels):
            for name, (rows, drawn_as) in lines.items():
                curve(axis, rows, panel, drawn_as, visible(name))
            axis.set_ylabel(panel.title)
        for axis in axes.flat[len(panels) :]:
            axis.remove()
        for axis in (axes.flat[place] for place in range(len(panels)) if place + columns >= len(panels)):
            axis.set_xlabel(unit)
            axis.tick_params(labelbottom=True)
            whole_numbers(axis)
        if any(_points(rows, panel.validation) for panel in panels for rows, _ in lines.values()):
            axes[0, 0].plot([], [], "o", color="#555555", **VALIDATION, label="validation")
        legend_above(figure, axes.flat[: len(panels)])


def draw_losses(record, path) -> bool:
    """Draws training and held-out losses, and accuracies, a panel for each stage; returns False without losses."""
    panels = [
        (stage, rows, panel)
        for stage, rows in record.curves.items()
        if (unit := registry.KINDS[record.kind(stage)].loss_unit)
        for panel in loss_panels(rows, unit)
    ]
    if not panels:
        return False
    columns = min(_COLUMNS, len(panels))
    rows_of_panels = math.ceil(len(panels) / columns)
    with new_figure(path, columns, 2.5 * rows_of_panels, rows_of_panels) as (figure, axes):
        for axis, (stage, rows, panel) in zip(axes.flat, panels):
            curve(axis, rows, panel, (LOOKS[0][0], "o", "-"), "training", (LOOKS[1][0], "held out"))
            axis.set_title(label(stage))
            axis.set_xlabel("optimizer step")
            axis.set_ylabel(panel.title)
            whole_numbers(axis, 4)
            if panel.training == "loss":
                _without_peaks(axis, rows, panel)
        for axis in axes.flat[len(panels) :]:
            axis.remove()
        legend_above(figure, axes.flat[: len(panels)])
    return True


def curve(axis, rows, panel: Panel, drawn_as, name: str, validation: tuple | None = None, faint: bool = True) -> None:
    """Draws a metric of training, its centred moving average, and the metric of validations with markers.

    Args:
      axis: the axis.
      rows: rows of metrics.jsonl.
      panel: the two metrics.
      drawn_as: colour, marker and line.
      name: the label of the moving average.
      validation: colour and label of the validations; None: the same colour, and no label.
      faint: whether the values of each step are drawn behind their average.
    """
    colour, marker, line = drawn_as
    if points := _points(rows, panel.training):
        steps, values = map(np.asarray, zip(*points))
        values = panel.scale * values
        if faint:
            axis.plot(steps, values, color=colour, linewidth=0.8, alpha=0.3)
        half = len(values) // 40
        smooth = [values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))]
        alone = {"marker": marker, "markersize": 4} if len(points) == 1 else {}  # one point has no line
        axis.plot(steps, smooth, linestyle=line, color=colour, linewidth=1.6, label=name, **alone)
    if points := _points(rows, panel.validation):
        steps, values = map(np.asarray, zip(*points))
        colour, name = validation or (colour, "_")  # a label that starts with _ is in no legend
        every = max(1, len(values) // _MARKERS)
        axis.plot(
            steps, panel.scale * values, marker, color=colour, zorder=3, markevery=every, label=name, **VALIDATION
        )


def _without_peaks(axis, rows, panel: Panel) -> None:
    """Limits an axis of losses so that the peak of the first steps does not flatten the rest."""
    train, valid = (_points(rows, name) for name in (panel.training, panel.validation))
    if train:
        ceiling = max([np.quantile([value for _, value in train], 0.98), *(value for _, value in valid)])
        floor = min(value for _, value in train + valid)
        margin = 0.1 * (ceiling - floor) or 0.1  # a stage of one step has a single loss
        axis.set_ylim(floor - margin, ceiling + margin)


def _points(rows, name) -> list[tuple[int, float]]:
    """Returns (step, value) of a metric, for the steps at which it is finite."""
    return [(row["step"], row[name]) for row in rows if math.isfinite(row.get(name, math.nan))]
