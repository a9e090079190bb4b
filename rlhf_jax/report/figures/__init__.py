"""Figures that are readable in print and by the colour-blind.

Okabe and Ito's palette, with a marker and a line style of its own for everything shown, so that what
a colour tells is told twice.
"""

import contextlib
import pathlib

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from rlhf_jax.report.tables import has_ends
from rlhf_jax.runtime.files import own_folder, replacing

# Colour, marker, line. The order keeps neighbours apart in grey, too.
LOOKS = [
    ("#0072B2", "o", "-"),
    ("#D55E00", "^", "--"),
    ("#009E73", "D", "-."),
    ("#CC79A7", "v", ":"),
    ("#E69F00", "s", "-"),
    ("#000000", "*", "--"),
    ("#56B4E9", "X", "-."),
    ("#7F7F7F", "P", ":"),
]
_STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.dpi": 100,
    "savefig.dpi": 170,
    "pdf.fonttype": 42,  # fonts as TrueType: printers and publishers refuse Type 3
}
_WIDTH = 7.0  # inches


@contextlib.contextmanager
def new_figure(path, columns: int, height: float, rows: int = 1, pdf: bool = False, **axes):
    """A figure with its axes, saved at the end as a PNG file and, if asked, a PDF file beside it."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        yield figure, figure.subplots(rows, columns, squeeze=False, **axes)
        path = pathlib.Path(path)
        own_folder(path.parent)
        for file in (path, path.with_suffix(".pdf"))[: 1 + pdf]:
            _save(figure, file)
            figure.set_layout_engine("none")  # the second looks as the first


def _save(figure, path) -> None:
    # Without a date: the same data give the same file.
    with replacing(path) as file:
        figure.savefig(file, format=path.suffix[1:], metadata={"CreationDate": None} if path.suffix == ".pdf" else None)


def arms_of(estimate: dict) -> np.ndarray:
    """f64[2, 1]: how far an interval {value, low, high} reaches below and above its value; 0 where it has no end."""
    if not has_ends(estimate):
        return np.zeros((2, 1))
    value = estimate["value"]
    return np.array([[value - estimate["low"]], [estimate["high"] - value]]).clip(0)


def legend_above(figure, axis) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=max(1, len(labels)))
