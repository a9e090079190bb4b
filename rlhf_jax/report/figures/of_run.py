"""The figures of one run, and of one run with several seeds.

A figure is left out if the run lacks its data.
"""

import math

import numpy as np

from rlhf_jax.report.figures import arms_of
from rlhf_jax.report.figures.of_training import draw_learning, draw_losses, look
from rlhf_jax.report.record import SPLITS, label
from rlhf_jax.runtime.figures import legend_above, new_figure
from rlhf_jax.runtime.terminal import visible
from rlhf_jax.statistics import mean_over_seeds


def draw_run(record, folder) -> list[tuple[str, str]]:
    """Draws the figures that a run has data for, and returns (file name, caption) of each."""
    figures = {
        "plane.png": (
            _plane,
            "Gold score against retained skill: to the right and up is better. "
            "The arrows start at SFT; bars are 95 % intervals.",
        ),
        "categories.png": (
            _categories,
            "Gold score by category of prompt (number of test prompts), with 95 % intervals.",
        ),
        "learning.png": (
            draw_learning,
            "PPO: means over the batch of each iteration (faint), their moving average, and validations (markers).",
        ),
        "reward_model.png": (
            _reward_model,
            "Reward model: stated confidence against the share of pairs on which it is right, and accuracy by "
            "difference of scores.",
        ),
        "losses.png": (draw_losses, "Training loss of each step (faint), its moving average, and held-out loss."),
    }
    return [(name, caption) for name, (draw, caption) in figures.items() if draw(record, folder / name)]


def _plane(record, path) -> bool:
    """Draws gold score against skills; returns False for fewer than two policies with both."""
    stages = [
        stage
        for stage in record.evaluations
        if record.estimate(stage, "gold/total") and record.estimate(stage, "skills/mean")
    ]
    if len(stages) < 2:
        return False
    with new_figure(path, 1, 3.6) as (figure, axes):
        axis = axes[0, 0]
        points = {}
        for stage in stages:
            x, y = record.estimate(stage, "skills/mean"), record.estimate(stage, "gold/total")
            colour, marker, _ = look(stage, stages)
            points[stage] = 100 * x["value"], y["value"]
            axis.errorbar(
                *points[stage],
                xerr=100 * arms_of(x),
                yerr=arms_of(y),
                fmt=marker,
                color=colour,
                markersize=8,
                elinewidth=1,
                capsize=2.5,
                label=label(stage),
                zorder=3,
            )
        for stage in stages:
            if record.reference in points and stage in record.learned:
                axis.annotate(
                    "",
                    points[stage],
                    points[record.reference],
                    zorder=2,
                    arrowprops={"arrowstyle": "->", "color": "#888888", "shrinkA": 8, "shrinkB": 8},
                )
        axis.set_xlabel("retained skills, mean of three tasks (%)")
        axis.set_ylabel("gold score")
        legend_above(figure, [axis])
    return True


def _categories(record, path) -> bool:
    """Draws gold scores by category of prompt; returns False without categories."""
    stages = [stage for stage, found in record.evaluations.items() if found["categories"]]
    if not stages:
        return False
    found = record.evaluations[stages[-1]]["categories"]
    categories = dict(sorted(found.items(), key=lambda item: -item[1]["count"]))
    with new_figure(path, 1, 1.0 + 0.36 * len(categories)) as (figure, axes):
        axis = axes[0, 0]
        for n, stage in enumerate(stages):
            colour, marker, _ = look(stage, stages)
            found = record.evaluations[stage]["categories"]
            names = [name for name in categories if name in found]
            gold = [found[name]["gold"] for name in names]
            rows = np.array([list(categories).index(name) for name in names], float)
            axis.errorbar(
                [value["value"] for value in gold],
                rows + 0.62 * ((n + 0.5) / len(stages) - 0.5),
                xerr=np.concatenate([arms_of(value) for value in gold], axis=1),
                fmt=marker,
                color=colour,
                markersize=4.5,
                elinewidth=1,
                label=label(stage),
            )
        axis.set_yticks(
            range(len(categories)),
            [f"{visible(name.replace('_', ' '))} ({found['count']})" for name, found in categories.items()],
        )
        axis.set_ylim(len(categories) - 0.5, -0.5)
        axis.grid(axis="y", visible=False)
        for row in range(len(categories) - 1):
            axis.axhline(row + 0.5, color="#DDDDDD", linewidth=0.6)
        axis.set_xlabel("gold score")
        legend_above(figure, [axis])
    return True


def _reward_model(record, path) -> bool:
    """Draws calibration and accuracy of the reward model; returns False without them."""
    splits = record.reward_splits
    if not splits:
        return False
    looks = dict(zip(splits, [("#0072B2", "o"), ("#D55E00", "^"), ("#009E73", "D")]))
    with new_figure(path, 2, 3.0) as (figure, (axes,)):
        axes[0].plot([0.5, 1], [0.5, 1], color="#888888", linewidth=1, linestyle=":")
        for name, facts in splits.items():
            colour, marker = looks[name]
            rows = []
            for row in facts["reliability"]:
                low, high = row.get("interval", [row["frequency"]] * 2)  # older runs have no interval
                rows.append({"value": row["frequency"], "low": low, "high": high, "stated": row["probability"]})
            axes[0].errorbar(
                [row["stated"] for row in rows],
                [row["value"] for row in rows],
                yerr=np.concatenate([arms_of(row) for row in rows], axis=1) if rows else None,
                fmt=f"{marker}-",
                color=colour,
                markersize=5,
                elinewidth=1,
                capsize=2,
                label=f"{SPLITS.get(name, name)} ({facts['pairs']} pairs)",
            )
        axes[0].set_xlabel("stated probability of being right")
        axes[0].set_ylabel("share of pairs that are right")
        bins = sorted({_edges(row) for facts in splits.values() for row in facts.get("by_margin", [])})
        for n, (name, facts) in enumerate(splits.items()):
            colour, marker = looks[name]
            rows = facts.get("by_margin", [])
            axes[1].errorbar(
                [bins.index(_edges(row)) + 0.16 * (n - (len(splits) - 1) / 2) for row in rows],
                [row["accuracy"]["value"] for row in rows],
                yerr=np.concatenate([arms_of(row["accuracy"]) for row in rows], axis=1) if rows else None,
                fmt=marker,
                color=colour,
                markersize=5,
                elinewidth=1,
                capsize=2,
            )
        axes[1].axhline(0.5, color="#888888", linewidth=1, linestyle=":")
        axes[1].set_xticks(range(len(bins)), [_interval(*edges) for edges in bins])
        axes[1].set_xlabel("difference of scores")
        axes[1].set_ylabel("accuracy")
        legend_above(figure, [axes[0]])
    return True


def draw_seeds(values: dict[str, dict[str, list[float]]], stages, path) -> None:
    """Draws a panel for each quantity: a dot for each seed, joined over policies, and the mean with its interval.

    Args:
      values: title of the axis -> stage -> a value for each seed, in one order of seeds.
      stages: the policies, from left to right.
      path: path of the PNG file.
    """
    rows = math.ceil(len(values) / 2)
    with new_figure(path, 2, 2.5 * rows, rows) as (_, axes):
        for axis in axes.flat[len(values) :]:
            axis.remove()
        for axis, (title, by_stage) in zip(axes.flat, values.items()):
            shown = [stage for stage in stages if stage in by_stage]
            for seed in zip(*(by_stage[stage] for stage in shown)):
                axis.plot(range(len(shown)), seed, color="#AAAAAA", linewidth=0.8, marker=".", markersize=5)
            for n, stage in enumerate(shown):
                colour, marker, _ = look(stage, stages)
                mean = mean_over_seeds(by_stage[stage])
                axis.errorbar(
                    n,
                    mean.value,
                    yerr=arms_of(mean._asdict()),
                    fmt=marker,
                    color=colour,
                    markersize=7,
                    capsize=4,
                    elinewidth=1.4,
                    zorder=3,
                )
            axis.set_xticks(range(len(shown)), [label(stage) for stage in shown])
            axis.set_xlim(-0.5, len(shown) - 0.5)
            axis.grid(axis="x", visible=False)
            axis.set_ylabel(title)


def _edges(row: dict) -> tuple[float, float]:
    """Returns the edges of a bin of margins.

    The last bin has no upper edge: the file has None in its place, or infinity if it is older.
    """
    return row["low"], math.inf if row["high"] is None else row["high"]


def _interval(low: float, high: float) -> str:
    """Returns the name of a bin of margins."""
    return f"over {low:g}" if math.isinf(high) else f"{low:g} to {high:g}"
