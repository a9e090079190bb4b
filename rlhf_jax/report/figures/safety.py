"""The figure of safety against usefulness: every policy of a run, and what becomes of it by group of prompts."""

import collections
import re

import numpy as np

from rlhf_jax.evaluate import safety
from rlhf_jax.evaluate.policy import read_rows
from rlhf_jax.report.figures import arms_of
from rlhf_jax.report.figures.of_run import look
from rlhf_jax.report.form import SHARE, Maybe, Object, check_lines
from rlhf_jax.report.record import Record, label
from rlhf_jax.runtime import finished
from rlhf_jax.runtime.figures import legend_above, new_figure
from rlhf_jax.runtime.terminal import visible
from rlhf_jax.statistics import Estimate

_FILE = "safety.png"
_CAPTION = (
    "Safety against usefulness. A completion is safe if it has no rude word and no false statement; it helps if its grade "
    "of helpfulness is above 0.1. Hollow markers are the weights that a stage has trained and does not hand on. Of what "
    "helps and is unsafe, too little is refused; of what is safe and no help, too much: these are signs, because no "
    "prompt of the world must be refused. Below: the parts of the gold score by category of prompt (number of test "
    "prompts){hhh}. Bars are 95 % intervals."
)
_HHH = ", and the accuracy on the group of that name of Anthropic's HHH alignment"
_SHADES = {"#332288": "white", "#DDCC77": "black", "#BBBBDD": "black", "#882255": "white"}  # of outcomes; of their text
_JUDGED = Object({"gold": Maybe(Object({}, dict.fromkeys(safety.PARTS, SHARE)))})
_GROUP = re.compile(r"lm_eval/\w*hhh\w*_(helpful|honest|harmless)/acc")
_LONGEST_NAME, _MOST_GROUPS = 20, 16  # characters; categories
_ALL, _ALIGNMENT = "all prompts", "HHH alignment"


def draw_run(record: Record, folder) -> list[tuple[str, str]]:
    """Draws the figure if two policies or more have gold scores; returns (file name, caption), or nothing."""
    rows = {stage: found for stage, found in record.rows("samples.jsonl").items() if safety.is_judged(found)}
    if len(rows) < 2:
        return []
    groups = _groups(record, rows)
    hhh = any(_ALIGNMENT in found for parts in groups.values() for found in parts.values())
    places = list(dict.fromkeys(name for parts in groups.values() for found in parts.values() for name in found))
    below = max(1.6, 0.7 + 0.27 * len(places))  # inches
    with new_figure(folder / _FILE, 3, 3.9 + below, 2, height_ratios=[3.0, below]) as (figure, axes):
        grid = axes[0, 0].get_gridspec()
        for axis in axes[0]:
            axis.remove()
        plane, bars = figure.add_subplot(grid[0, :2]), figure.add_subplot(grid[0, 2])
        _plane(plane, record, rows)
        _bars(bars, rows)
        counts = {_ALL: len(next(iter(rows.values()))), **_counts(rows)}
        for axis, part in zip(axes[1], safety.PARTS):
            _by_group(axis, part, places, groups, list(rows))
            axis.set_yticks(range(len(places)), [_named(name, counts) for name in places] if axis is axes[1, 0] else [])
        legend_above(figure, [plane])
    return [(_FILE, _CAPTION.format(hhh=_HHH if hhh else ""))]


def _plane(axis, record: Record, rows: dict[str, list[dict]]) -> None:
    """Draws the share of safe completions over helpfulness, one marker for each policy and its other weights."""
    for stage, found in rows.items():
        colour, marker, _ = look(stage, rows)
        others = _other_weights(record, stage)
        for shown, hollow in ((found, False), (others, True)):
            if shown:
                x, y = (estimate._asdict() for estimate in (safety.part(shown, "helpful"), safety.safe(shown)))
                axis.errorbar(
                    100 * x["value"],
                    100 * y["value"],
                    xerr=100 * arms_of(x),
                    yerr=100 * arms_of(y),
                    fmt=marker,
                    color=colour,
                    markerfacecolor="white" if hollow else colour,
                    markersize=8,
                    elinewidth=1,
                    capsize=2.5,
                    alpha=0.7 if hollow else 1,
                    label=None if hollow else _short(label(stage)),
                    zorder=2 if hollow else 3,
                )
    axis.set_xlabel("helpful (%)")
    axis.set_ylabel("safe completions (%)")
    axis.set_title("to the right and up is better")


def _bars(axis, rows: dict[str, list[dict]]) -> None:
    """Draws the four outcomes of each policy, which add up to 100 %."""
    left = np.zeros(len(rows))
    found = [safety.outcomes(shown) for shown in rows.values()]
    for name, (shade, colour) in zip(safety.OUTCOMES, _SHADES.items()):
        shares = np.array([100 * shown[name].value for shown in found])
        axis.barh(range(len(rows)), shares, left=left, color=shade, height=0.62, label=name)
        for row, (start, width) in enumerate(zip(left, shares)):
            if width >= 9:
                axis.text(start + width / 2, row, f"{width:.0f}", ha="center", va="center", color=colour, fontsize=8)
        left += shares
    axis.set_yticks(range(len(rows)), [_short(label(stage)) for stage in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlim(0, 100)
    axis.grid(visible=False)
    axis.set_xlabel("completions (%)")
    axis.legend(
        loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=2, fontsize=7.5, columnspacing=0.9, handlelength=1
    )


def _by_group(axis, part: str, places: list[str], groups: dict, stages: list[str]) -> None:
    """Draws a part of the gold score by group, side by side for the policies."""
    for n, stage in enumerate(stages):
        colour, marker, _ = look(stage, stages)
        known = [(place, groups[stage][part][name]) for place, name in enumerate(places) if name in groups[stage][part]]
        axis.errorbar(
            [100 * estimate["value"] for _, estimate in known],
            [place + 0.66 * ((n + 0.5) / len(stages) - 0.5) for place, _ in known],
            xerr=100 * np.concatenate([arms_of(estimate) for _, estimate in known], axis=1),
            fmt=marker,
            color=colour,
            markersize=3.5,
            elinewidth=0.8,
        )
    axis.set_ylim(len(places) - 0.5, -0.5)
    axis.set_xlim(-3, 103)
    axis.grid(axis="y", visible=False)
    for place in range(len(places) - 1):
        edge = places[place] == _ALL or places[place + 1] == _ALIGNMENT
        axis.axhline(place + 0.5, color="#888888" if edge else "#DDDDDD", linewidth=0.6)
    axis.set_title(f"{part} (%)")


def _groups(record: Record, rows: dict[str, list[dict]]) -> dict[str, dict[str, dict[str, dict]]]:
    """Returns policy -> part -> group -> estimate: all prompts, the categories by their number, and HHH if it was asked."""
    found = {}
    for stage, shown in rows.items():
        categories = [name for name in _counts(rows) if any(row["category"] == name for row in shown)]
        members = {_ALL: shown} | {name: [row for row in shown if row["category"] == name] for name in categories}
        found[stage] = {
            part: {name: _plain(safety.part(group, part)) for name, group in members.items()} for part in safety.PARTS
        }
        for name in record.evaluations[stage]["estimates"]:
            group = _GROUP.match(name)
            if group and (estimate := record.estimate(stage, name)):
                found[stage][group[1]].setdefault(_ALIGNMENT, estimate)
    return found


def _named(group: str, counts: dict[str, int]) -> str:
    """Returns the name of a group, shortened to what has room, and its number of test prompts."""
    return f"{_short(group.replace('_', ' '))} ({counts[group]})" if group in counts else group


def _short(name: str) -> str:
    """Returns a name on one line, cut to what has room."""
    name = visible(" ".join(name.split()))
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 2]} …"


def _counts(rows: dict[str, list[dict]]) -> dict[str, int]:
    """Returns the number of test prompts of each of the largest categories, the largest first."""
    names = [row["category"] for row in next(iter(rows.values())) if row["category"] is not None]
    return dict(sorted(collections.Counter(names).items(), key=lambda item: (-item[1], item[0]))[:_MOST_GROUPS])


def _other_weights(record: Record, stage: str) -> list[dict] | None:
    """Returns the judged samples of the weights that a stage does not hand on; None if there are none."""
    others = record.evaluations[stage].get("other_weights")
    path = record.path / stage / f"samples.{others['weights']}.jsonl" if others else None
    if path is None or not finished.checked(path).exists():
        return None
    rows = check_lines(path, read_rows(path), _JUDGED)
    return rows if safety.is_judged(rows) else None


def _plain(estimate: Estimate) -> dict:
    return estimate._asdict()
