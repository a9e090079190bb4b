"""The figures of several runs side by side: one for each metric, with the curves of all runs over one another."""

import math
import pathlib
import re

from rlhf_jax.fields import registry
from rlhf_jax.report.figures import LOOKS
from rlhf_jax.report.figures.of_training import VALIDATION, Panel, curve, loss_panels, rl_panels
from rlhf_jax.report.record import Record, label
from rlhf_jax.report.tables import REFERENCE
from rlhf_jax.runtime.figures import legend_above, new_figure, whole_numbers
from rlhf_jax.runtime.terminal import visible

MOST = len(LOOKS)  # runs that can be told apart
_COLUMNS = 3


def draw(records: dict[str, Record], stages: list[str], folder) -> list[tuple[str, str]]:
    """Draws a figure for each metric that a stage of some run has, with a panel for each such stage.

    Args:
      records: the runs by name, at most MOST.
      stages: the stages that they have in common.
      folder: where the PNG files are written.

    Returns:
      (name of the file, caption) of each figure.
    """
    by_metric: dict[str, list[tuple[str, Panel]]] = {}
    for stage in stages:
        for panel in _panels(records, stage):
            by_metric.setdefault(panel.training or panel.validation, []).append((stage, panel))
    drawn = []
    for metric, panels in by_metric.items():
        name = f"{re.sub('[^A-Za-z0-9]+', '_', metric).strip('_')}.png"
        if name not in dict(drawn):
            validated = _draw(records, panels, pathlib.Path(folder) / name)
            title = " ".join(panels[0][1].title.split()) if len({panel.title for _, panel in panels}) == 1 else metric
            more = "; markers are validations" if validated else ""
            drawn.append((name, f"{title[:1].upper()}{title[1:]}: moving averages{more}."))
    return drawn


def _panels(records: dict[str, Record], stage: str) -> list[Panel]:
    """Returns the panels of a stage for which some run has metrics."""
    curves = {name: record.curves.get(stage, []) for name, record in records.items()}
    kind = registry.KINDS[next(iter(records.values())).kind(stage)]
    if kind.loss_unit:
        return loss_panels([row for rows in curves.values() for row in rows], kind.loss_unit)
    return rl_panels(curves, REFERENCE)


def _draw(records: dict[str, Record], panels: list[tuple[str, Panel]], path) -> bool:
    """Draws a metric: a panel for each stage, a line for each run; returns whether there are validations."""
    validated = False
    columns = min(_COLUMNS, len(panels))
    height = math.ceil(len(panels) / columns)
    alike = len({panel.title for _, panel in panels}) == 1  # losses of stages can have other units
    with new_figure(path, columns, 0.4 + 2.6 * height, height, sharey=alike) as (figure, axes):
        for axis, (stage, panel) in zip(axes.flat, panels):
            for (name, record), drawn_as in zip(records.items(), LOOKS):
                rows = record.curves.get(stage, [])
                curve(axis, rows, panel, drawn_as, visible(name), faint=len(records) < 4)
                validated = validated or any(panel.validation in row for row in rows)
            axis.set_title(label(stage))
            if axis in axes[:, 0] or not alike:
                axis.set_ylabel(panel.title)
            axis.set_xlabel("iteration" if "/" in panel.training else "optimizer step")
            whole_numbers(axis, 5)
        for axis in axes.flat[len(panels) :]:
            axis.remove()
        if validated:
            axes.flat[0].plot([], [], "o", color="#555555", **VALIDATION, label="validation")
        legend_above(figure, axes.flat[: len(panels)])
    return validated
