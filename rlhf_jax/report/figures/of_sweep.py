"""The figures of a sweep: means over seeds with 95 % Student t intervals, and each seed as a small point."""

import math
import textwrap

import numpy as np

from rlhf_jax.report import spec
from rlhf_jax.report.figures import LOOKS, arms_of
from rlhf_jax.report.form import is_number
from rlhf_jax.report.names import shown
from rlhf_jax.report.record import label
from rlhf_jax.report.sweep_report import Sweep
from rlhf_jax.report.sweep_tables import estimate
from rlhf_jax.runtime.figures import new_figure, whole_numbers

_MOST_LINES = len(LOOKS)
_WIDE = 84  # letters that fit side by side under a figure
_BESIDE = 10  # distance in points between lines that would hide one another
_SEED = {"markersize": 3, "alpha": 0.55, "linestyle": "none", "markeredgewidth": 0, "zorder": 2}
_JOINED = {"linewidth": 0.7, "alpha": 0.4, "zorder": 1.5}  # thin lines show comparisons within a seed
_MEAN = {
    "markersize": 7,
    "elinewidth": 1.3,
    "capsize": 3,
    "zorder": 3,
    "markeredgecolor": "white",
    "markeredgewidth": 0.6,
}


def draw(sweep: Sweep, figure, path) -> str | None:
    """Draws a declared figure as PNG and PDF, and returns its caption; returns None if there is nothing to draw."""
    return _DRAW[type(figure)](sweep, figure, path)


def _curve(sweep, asked, path):
    """Draws a quantity over a swept field (see spec.Curve)."""
    settings = sweep.select(asked.where, asked.axis)
    levels = sweep.levels(settings, asked.axis)
    groups = _groups(sweep, settings, asked.by)
    lines = {}
    for name, members in groups.items():
        at = [[s for s in members if spec.same(sweep.level(s, asked.axis), level)] for level in levels]
        by_seed = [sweep.by_seed(asked.stage, here, asked.y) if here else {} for here in at]
        if any(by_seed):
            lines[name] = by_seed
    if not lines:
        return None
    quantity = sweep.quantity(asked.y)
    scale, places = _scale(asked.scale, levels)
    with new_figure(path, 1, 3.4, pdf=True) as (figure, ((axis,),)):
        _set_scale(axis, scale, places, levels)
        for n, (name, by_seed) in enumerate(lines.items()):
            colour, marker, line = LOOKS[n % _MOST_LINES]
            beside = min(_BESIDE, 50 / len(lines)) * (n - (len(lines) - 1) / 2)
            along = scale != "category"  # a line between names would suggest values between them
            _means(
                axis,
                places,
                by_seed,
                quantity.scale,
                beside,
                marker,
                colour,
                joined=along,
                linestyle=line if along else "none",
                linewidth=1.5,
                label=name,
            )
        base = sweep.baseline(asked.baseline)
        outside = base is not None and base not in settings
        found = estimate(sweep.by_seed(asked.stage, [base], asked.y)) if outside else None
        if found:
            axis.axhline(
                quantity.scale * found["value"],
                color="#555555",
                linestyle=(0, (6, 3)),
                linewidth=1,
                zorder=1,
                label=f"baseline, {base.name}",
            )
        axis.set_xlabel(asked.x_title or sweep.called(asked.axis))
        axis.set_ylabel(asked.y_title or quantity.title)
        _finish(figure, axis, asked.title, asked.by and sweep.called(asked.by), always=found is not None)
    gone = [shown(level) for n, level in enumerate(levels) if not any(by_seed[n] for by_seed in lines.values())]
    failed = (f" Not drawn: {', '.join(gone)}, where no seed has all arms." if gone else "") + _failed(sweep, settings)
    return (
        f"{quantity.title} of {label(asked.stage)} over {sweep.called(asked.axis)}: means over seeds with 95 % Student t "
        f"intervals; small points are seeds{', joined by thin lines' if scale != 'category' else ''}.{failed}"
    )


def _plane(sweep, asked, path):
    """Draws one quantity against another (see spec.Plane)."""
    from matplotlib.patheffects import withStroke  # here, because matplotlib takes memory that training needs

    x_of, y_of = sweep.quantity(asked.x), sweep.quantity(asked.y)
    curves = []
    for part in asked.paths:
        settings = sweep.select(part.where, part.axis)
        if part.axis:
            keys = list(map(spec.key, sweep.levels(settings, part.axis)))
            settings.sort(key=lambda setting: keys.index(spec.key(sweep.level(setting, part.axis))))
        points = []
        for setting in settings:
            xs, ys = (sweep.by_seed(part.stage, [setting], name) for name in (asked.x, asked.y))
            xs = {seed: x_of.scale * (math.sqrt(max(x, 0.0)) if asked.sqrt_x else x) for seed, x in xs.items()}
            ys = {seed: y_of.scale * y for seed, y in ys.items() if seed in xs}
            if ys:
                points.append((setting, {seed: xs[seed] for seed in ys}, ys))
        if points:
            curves.append((part, points))
    if not curves:
        return None
    with new_figure(path, 1, 4.0, pdf=True) as (figure, ((axis,),)):
        for n, (part, points) in enumerate(curves):
            colour, marker, line = LOOKS[n % _MOST_LINES]
            x, y = ([estimate(point[which]) for point in points] for which in (1, 2))
            for _, xs, ys in points:
                axis.plot(list(xs.values()), list(ys.values()), marker, color=colour, **_SEED)
            for seed in sweep.seeds if part.axis else ():
                of_seed = [(xs[seed], ys[seed]) for _, xs, ys in points if seed in ys]
                axis.plot(*zip(*of_seed or [((), ())]), color=colour, **_JOINED)
            ends = {
                f"{name}err": np.concatenate([arms_of(found) for found in all_], axis=1)
                for name, all_ in (("x", x), ("y", y))
            }
            name = label(part.stage) + (f", {sweep.called(part.axis)}" if part.axis else "")
            axis.errorbar(
                [found["value"] for found in x],
                [found["value"] for found in y],
                **ends,
                **_MEAN,
                fmt=marker,
                color=colour,
                linestyle=line if part.axis else "none",
                linewidth=1.5,
                label=part.label or name,
            )
            for (setting, _, _), a, b in zip(points, x, y):
                if part.axis:
                    axis.annotate(
                        shown(sweep.level(setting, part.axis)),
                        (a["value"], b["value"]),
                        (5, -10 if n % 2 else 4),
                        textcoords="offset points",
                        fontsize=7.5,
                        color=colour,
                        zorder=4,
                        path_effects=[withStroke(linewidth=2, foreground="white")],
                    )
        axis.set_xlabel(asked.x_title or _x_title(x_of, asked.sqrt_x))
        axis.set_ylabel(asked.y_title or y_of.title)
        _finish(figure, axis, asked.title, always=True)
    return (
        f"{y_of.title} against {x_of.title}: a point for each setting, with the 95 % Student t intervals of both; "
        "small points are seeds, joined by thin lines. Small numbers are values of the swept field."
    )


def _history(sweep, asked, path):
    """Draws a metric during training (see spec.History)."""
    curves = {}
    called = sweep.names(sweep.select(asked.where))
    for setting in called:
        by_seed = {}
        for seed in sweep.seeds:
            arm = sweep.arm(setting, seed)
            rows = sweep.history(arm, asked.stage, asked.file) if arm else []
            points = [
                (row["step"], row[asked.x], row[asked.y])
                for row in rows
                if all(is_number(row.get(name)) and math.isfinite(row[name]) for name in (asked.x, asked.y))
            ]
            if points:
                by_seed[seed] = np.array(points, float)
        if by_seed:
            curves[called[setting]] = by_seed
    if not curves:
        return None
    left = len(curves) - _MOST_LINES
    with new_figure(path, 1, 3.6, pdf=True) as (figure, ((axis,),)):
        for n, (name, by_seed) in enumerate(list(curves.items())[:_MOST_LINES]):
            colour, marker, line = LOOKS[n]
            smooth = [_smoothed(points) for points in by_seed.values()]
            for points in smooth:
                axis.plot(_root(points[:, 1], asked.sqrt_x), points[:, 2], color=colour, linewidth=0.7, alpha=0.45)
            mean = _mean_by_step(smooth)
            x = _root(mean[:, 1], asked.sqrt_x)
            axis.plot(
                x,
                mean[:, 2],
                line,
                color=colour,
                linewidth=2,
                label=name,
                marker=marker,
                markersize=5,
                markevery=max(1, len(mean) // 6),
                markeredgecolor="white",
                markeredgewidth=0.5,
            )
        if asked.x == "step":
            whole_numbers(axis)
        axis.set_xlabel(asked.x_title or _x_title(sweep.quantity(asked.x), asked.sqrt_x))
        axis.set_ylabel(asked.y_title or sweep.quantity(asked.y).title)
        _finish(figure, axis, asked.title)
    return (
        f"{sweep.quantity(asked.y).title} of {label(asked.stage)} over {sweep.quantity(asked.x).title}: thin lines are seeds, thick ones their mean (moving "
        f"averages of a twentieth of the run).{f' {left} further settings are not drawn.' if left > 0 else ''}"
        f"{_failed(sweep, sweep.select(asked.where))}"
    )


def _dots(sweep, asked, path):
    """Draws a quantity by stage (see spec.Dots)."""
    quantity = sweep.quantity(asked.y)
    groups = {}
    for name, members in _groups(sweep, sweep.select(asked.where), asked.by).items():
        by_stage = {stage: found for stage in asked.stages if (found := sweep.by_seed(stage, members, asked.y))}
        if by_stage:
            groups[name] = by_stage
    stages = [stage for stage in asked.stages if any(stage in found for found in groups.values())]
    if not stages:
        return None
    with new_figure(path, 1, 3.4, pdf=True) as (figure, ((axis,),)):
        if asked.level is not None:
            axis.axhline(quantity.scale * asked.level, color="#555555", linestyle=(0, (6, 3)), linewidth=1, zorder=1)
        for n, (name, by_stage) in enumerate(groups.items()):
            colour, marker, _ = LOOKS[n % _MOST_LINES]
            beside = min(25, 270 / len(stages) / len(groups)) * (n - (len(groups) - 1) / 2)
            _means(
                axis,
                range(len(stages)),
                [by_stage.get(stage, {}) for stage in stages],
                quantity.scale,
                beside,
                marker,
                colour,
                linestyle="none",
                label=name,
            )
        names = [textwrap.fill(label(stage), _WIDE // len(stages), break_long_words=False) for stage in stages]
        axis.set_xticks(range(len(stages)), names)
        axis.set_xlim(-0.5, len(stages) - 0.5)
        axis.grid(axis="x", visible=False)
        axis.set_ylabel(quantity.title if not asked.y_title else asked.y_title)
        _finish(figure, axis, asked.title, asked.by and sweep.called(asked.by))
    return f"{quantity.title} by stage: means over seeds with 95 % Student t intervals; small points are seeds."


_DRAW = {spec.Curve: _curve, spec.Plane: _plane, spec.History: _history, spec.Dots: _dots}


# --- lines -------------------------------------------------------------------------------------------------------


def _groups(sweep, settings, by) -> dict:
    """Returns the settings of each line by its name; without `by`, one line has no name."""
    if by is None:
        return {None: settings}
    return {
        shown(level): [setting for setting in settings if spec.same(sweep.level(setting, by), level)]
        for level in sweep.levels(settings, by)
    }


def _means(axis, places, by_seed, scale, beside, marker, colour, joined=False, **line) -> None:
    """Draws means with intervals over seeds `beside` points to the right of their places, and seeds beside them."""
    for seed in sorted(set().union(*by_seed)) if joined else ():
        points = [(place, scale * found[seed]) for place, found in zip(places, by_seed) if seed in found]
        axis.plot(*zip(*points), color=colour, transform=_moved(axis, beside + _BESIDE / 2), **_JOINED)
    there = [
        (place, scale * np.array(list(found.values())), estimate(found))
        for place, found in zip(places, by_seed)
        if found
    ]
    for place, values, _ in there:
        axis.plot(
            [place] * len(values), values, marker, color=colour, transform=_moved(axis, beside + _BESIDE / 2), **_SEED
        )
    arms = np.concatenate([scale * arms_of(found) for *_, found in there], axis=1)
    axis.errorbar(
        [place for place, *_ in there],
        [scale * found["value"] for *_, found in there],
        yerr=arms,
        fmt=marker,
        color=colour,
        transform=_moved(axis, beside),
        **_MEAN,
        **line,
    )
    for place, values, found in there:  # matplotlib ignores moved points in the limits of an axis
        ends = scale * found["value"] + scale * arms_of(found).ravel() * (-1, 1)
        axis.update_datalim([(place, y) for y in (*values, *ends)])
    axis.autoscale_view()


def _moved(axis, points):
    """Returns the transform of an axis, moved to the right by some points."""
    from matplotlib.transforms import offset_copy  # here, because matplotlib takes memory that training needs

    return offset_copy(axis.transData, axis.figure, x=points, units="points")


def _smoothed(points):
    """Returns the centred moving average of the columns of f[N, 3], over a twentieth of the rows."""
    half = len(points) // 40
    return np.array([points[max(0, i - half) : i + half + 1].mean(axis=0) for i in range(len(points))])


def _mean_by_step(curves):
    """Returns the mean over seeds at the steps that all of them have, f[N, 3]."""
    steps = sorted(set.intersection(*({round(step, 6) for step in points[:, 0]} for points in curves)))
    picked = [points[np.isin(np.round(points[:, 0], 6), steps)] for points in curves]
    count = min(map(len, picked))
    return np.mean([points[:count] for points in picked], axis=0) if count else curves[0][:0]


def _root(x, wanted):
    """Returns x, or its root if that is wanted."""
    return np.sqrt(np.maximum(x, 0)) if wanted else x


def _x_title(quantity, sqrt_x) -> str:
    """Returns the title of the x axis."""
    return f"√({quantity.title})" if sqrt_x else quantity.title


def _failed(sweep, settings) -> str:
    """Returns a sentence on the arms that are not done, or ""."""
    gone = sum(arm.setting in settings and arm.status != "done" for arm in sweep.arms)
    return f" Arms that are not done: {gone} of {sum(arm.setting in settings for arm in sweep.arms)}." if gone else ""


# --- the axis of a swept field -----------------------------------------------------------------------------------


def _scale(wanted: str, levels) -> tuple[str, list[float]]:
    """Returns the scale of the axis (linear, log, symlog or category), and the place of each value on it."""
    if not all(map(is_number, levels)) or wanted == "category":
        return "category", list(range(len(levels)))
    positive = [level for level in levels if level > 0]
    if wanted == "auto":
        wanted = "log" if positive and max(positive) > 20 * min(positive) else "linear"
    if wanted == "log" and len(positive) < len(levels):
        wanted = "symlog"
    return wanted, [float(level) for level in levels]


def _set_scale(axis, scale, places, levels) -> None:
    """Gives the x axis its scale and its labels."""
    from matplotlib.ticker import (
        NullFormatter,
        NullLocator,
    )  # here, because matplotlib takes memory that training needs

    if scale == "symlog":
        axis.set_xscale("symlog", linthresh=min(abs(place) for place in places if place), linscale=0.7)
    elif scale == "log":
        axis.set_xscale("log")
    if scale in ("log", "symlog"):
        axis.xaxis.set_major_formatter("{x:g}")  # matplotlib's own labels are formulas, which figures do not parse
        axis.xaxis.set_minor_formatter(NullFormatter())
    if scale == "category" or len(places) <= 12:
        axis.set_xticks(places, [shown(level) for level in levels], rotation=0)
        axis.xaxis.set_minor_locator(NullLocator())
    if scale == "category":
        axis.set_xlim(-0.5, len(places) - 0.5)


def _finish(figure, axis, title, by=None, always=False) -> None:
    """Adds the title and, above the data, a legend of the lines with names.

    Args:
      figure: the figure.
      axis: its axis.
      title: the title, or "".
      by: the title of the legend, or None.
      always: whether a line that is alone gets a legend, too.
    """
    handles, labels = axis.get_legend_handles_labels()
    named = [(handle, name) for handle, name in zip(handles, labels) if name]
    if len(named) > (0 if always or by else 1):
        columns = max(1, min(len(named), 90 // (max(len(name) for _, name in named) + 6)))
        figure.legend(*zip(*named), loc="outside upper center", ncols=columns, title=by)
        figure.set_figheight(figure.get_figheight() + 0.17 * (math.ceil(len(named) / columns) - 1))
    if title:
        axis.set_title(title, fontsize=10)
