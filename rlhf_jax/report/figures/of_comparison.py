"""The figure of a comparison of policies: win rates, and ratings where there are more than two."""

import numpy as np

from rlhf_jax.report.figures import LOOKS, arms_of
from rlhf_jax.runtime.figures import legend_above, new_figure
from rlhf_jax.runtime.terminal import visible

_MOST_IN_A_MATRIX = 12


def draw(found: dict, path) -> None:
    """Draws what `evaluate.compare.summarize` returns.

    Two policies: their win rate as it is, and at equal length. More: ratings, and the win rate of each over each.
    """
    rated = {name: rating["elo"] for name, rating in found["ratings"].items() if rating["elo"]}
    if len(found["ratings"]) > 2 and rated:
        _tournament(found, rated, path)
    else:
        _rates(found["contests"], path)


def _rates(contests: list[dict], path) -> None:
    with new_figure(path, 1, 1.2 + 0.5 * len(contests)) as (figure, axes):
        axis = axes[0, 0]
        for place, (name, title) in enumerate({"win_rate": "win rate", "length_controlled": "at equal length"}.items()):
            known = [(row, contest[name]) for row, contest in enumerate(contests) if contest[name]]
            colour, marker, _ = LOOKS[place]
            if known:
                axis.errorbar(
                    [100 * estimate["value"] for _, estimate in known],
                    [row + 0.2 * (place - 0.5) for row, _ in known],
                    xerr=100 * np.concatenate([arms_of(estimate) for _, estimate in known], axis=1),
                    fmt=marker,
                    color=colour,
                    elinewidth=1,
                    capsize=2.5,
                    label=title,
                )
        axis.axvline(50, color="#888888", linewidth=1, linestyle=":")
        titles = [visible(f"{contest['first']} over {contest['second']}") for contest in contests]
        axis.set_yticks(range(len(contests)), titles)
        axis.set_ylim(len(contests) - 0.5, -0.5)
        axis.set_xlim(0, 100)
        axis.grid(axis="y", visible=False)
        axis.set_xlabel("share of prompts (%), a tie as half a win; bars are 95 % intervals")
        legend_above(figure, [axis])


def _tournament(found: dict, rated: dict[str, dict], path) -> None:
    order = sorted(rated, key=lambda name: -rated[name]["value"])
    order += [name for name in found["ratings"] if name not in rated]
    matrix = len(order) <= _MOST_IN_A_MATRIX
    with new_figure(path, 1 + matrix, max(2.4, 1.0 + 0.32 * len(order))) as (_, axes):
        axis = axes[0, 0]
        for row, name in enumerate(order):
            if name in rated:
                colour, marker, _ = LOOKS[row % len(LOOKS)]
                bars = {"xerr": arms_of(rated[name]), "elinewidth": 1, "capsize": 2.5}
                axis.errorbar(rated[name]["value"], row, fmt=marker, color=colour, markersize=6, **bars)
            else:
                axis.text(0.5, row, "no finite rating", transform=axis.get_yaxis_transform(), ha="center", va="center")
        axis.axvline(1000, color="#888888", linewidth=1, linestyle=":")
        axis.set_yticks(range(len(order)), [visible(name) for name in order])
        axis.set_ylim(len(order) - 0.5, -0.5)
        axis.grid(axis="y", visible=False)
        axis.set_xlabel("rating on Elo's scale, mean 1000")
        if matrix:
            _matrix(axes[0, 1], found["contests"], order)


def _matrix(axis, contests: list[dict], order: list[str]) -> None:
    """Writes the win rate of each policy (row) over each other (column) on a shade of it."""
    rates = np.full((len(order), len(order)), np.nan)
    for contest in contests:
        row, column = order.index(contest["first"]), order.index(contest["second"])
        rates[row, column], rates[column, row] = contest["win_rate"]["value"], 1 - contest["win_rate"]["value"]
    axis.imshow(rates, cmap="PuOr_r", vmin=-0.1, vmax=1.1, aspect="auto")
    for (row, column), rate in np.ndenumerate(rates):
        if np.isfinite(rate):
            dark = abs(rate - 0.5) > 0.38
            axis.text(column, row, f"{100 * rate:.0f}", ha="center", va="center", color="white" if dark else "black")
    axis.set_xticks(range(len(order)), [visible(name) for name in order], rotation=30, ha="right")
    axis.set_yticks(range(len(order)), [])
    axis.grid(visible=False)
    axis.set_title("win rate of row over column (%)")
