"""Draws the length distributions of a dataset."""

import pathlib

import numpy as np

from rlhf_jax.runtime.figures import legend_above, new_figure

# Colour-blind safe colours, by Okabe and Ito.
_COLOURS = {"train": "#0072B2", "valid": "#D55E00", "test": "#009E73", "heldout": "#CC79A7"}
_LINES = {"train": "-", "valid": "--", "test": ":", "heldout": "-."}


def draw(lengths: dict, unit: str, path) -> None:
    """Draws a panel for each kind of rows and each of its texts: the share of texts by length, one line per split.

    Lengths are on a logarithmic axis; the short vertical lines on it mark the medians.

    Args:
      lengths: kind -> part -> split -> i64[N].
      unit: unit of the lengths, "tokens" or "characters".
      path: path of the picture.
    """
    panels = [(kind, part, found) for kind, parts in lengths.items() for part, found in parts.items()]
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    path = pathlib.Path(path)
    target = path.parent.resolve() / path.name  # the folder that was asked for, even if a link leads to it
    with new_figure(target, columns, 0.4 + 2.4 * rows, rows) as (figure, axes):
        for axis, (kind, part, by_split) in zip(axes.flat, panels):
            _panel(axis, by_split)
            axis.set_title(part if part == kind else f"{part} of the {kind}")
            axis.set_xlabel(f"length ({unit})")
            axis.set_ylabel("share (%)")
        for axis in list(axes.flat)[len(panels) :]:
            axis.remove()
        legend_above(figure, figure.axes)


def _panel(axis, by_split: dict[str, np.ndarray]) -> None:
    """Draws the histograms of lengths, by split, on an axis."""
    from matplotlib.ticker import LogLocator, NullFormatter  # here, because matplotlib takes memory that training needs

    every = np.concatenate(list(by_split.values())).clip(1)
    edges = np.unique(np.round(np.geomspace(every.min(), every.max() + 1, 21)))
    if len(edges) < 2:
        edges = np.array([edges[0], edges[0] + 1])
    for name, own in by_split.items():
        own = own.clip(1)
        counts, _ = np.histogram(own, edges)
        style = {"color": _COLOURS[name], "linestyle": _LINES[name], "linewidth": 1.4}
        axis.stairs(100 * counts / len(own), edges, label=name, **style)
        axis.axvline(np.median(own), ymax=0.05, **style | {"linestyle": "-", "linewidth": 2})
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:.0f}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.tick_params(axis="x", labelsize=7)
    axis.set_ylim(bottom=0)
