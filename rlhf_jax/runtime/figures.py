"""Figures with one style, which are saved whole or not at all."""

import contextlib
import pathlib

from rlhf_jax.runtime.files import own_folder, replacing

_STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 8.5,
    "text.parse_math": False,  # a $ in somebody's name or title begins no formula, which might not even parse
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.dpi": 100,
    "savefig.dpi": 170,
    "pdf.fonttype": 42,  # embeds fonts as TrueType, because printers and publishers refuse Type 3
}
_WIDTH = 7.0  # inches


@contextlib.contextmanager
def new_figure(path, columns: int, height: float, rows: int = 1, pdf: bool = False, **axes):
    """Yields a figure and its axes, and saves the figure at the end of the block.

    Args:
      path: path of the PNG file; its folder is made if it is missing.
      columns: number of axes side by side.
      height: height of the figure in inches.
      rows: number of rows of axes.
      pdf: whether a PDF file is written beside the PNG file.
      axes: further arguments of `Figure.subplots`.
    """
    import matplotlib  # here, because matplotlib takes memory that training needs
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        yield figure, figure.subplots(rows, columns, squeeze=False, **axes)
        path = pathlib.Path(path)
        own_folder(path.parent)
        for file in (path, path.with_suffix(".pdf"))[: 1 + pdf]:
            _save(figure, file)
            figure.set_layout_engine("none")  # a new layout would make the second file differ from the first


def _save(figure, path: pathlib.Path) -> None:
    """Writes a figure without a date, so that the same data give the same file."""
    with replacing(path) as file:
        figure.savefig(file, format=path.suffix[1:], metadata={"CreationDate": None} if path.suffix == ".pdf" else None)


def whole_numbers(axis, most: int = 10) -> None:
    """Puts the ticks of an x axis at whole numbers: at most so many intervals."""
    from matplotlib.ticker import MaxNLocator  # here, because matplotlib takes memory that training needs

    axis.xaxis.set_major_locator(MaxNLocator(most, integer=True))


def legend_above(figure, axes) -> None:
    """Puts one legend above a figure; it shows each label of the given axes once."""
    handles = {name: handle for axis in axes for handle, name in zip(*axis.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=max(1, len(handles)))
