"""The measurements that rules judge, and the words for them."""

import math

import numpy as np

from rlhf_jax.evaluate import best_of_n
from rlhf_jax.report import spec
from rlhf_jax.report.form import is_number
from rlhf_jax.report.names import shown
from rlhf_jax.report.record import label


def along(sweep, stage, axis, quantity, where):
    """Returns the measured values of a field, and a quantity at each of them by seed.

    Returns:
      The values at which some seed has the quantity for all settings, and a dict of seed -> f[values] for the seeds
      that have it at all these values.
    """
    settings = sweep.select(where, axis)
    found = {}
    for level in sweep.levels(settings, axis):
        if by_seed := sweep.by_seed(stage, settings_at(sweep, settings, axis, level), quantity):
            found[spec.key(level)] = level, by_seed
    levels = [level for level, _ in found.values()]
    seeds = [seed for seed in sweep.seeds if found and all(seed in by_seed for _, by_seed in found.values())]
    return levels, {seed: np.array([by_seed[seed] for _, by_seed in found.values()]) for seed in seeds}


def settings_at(sweep, settings, axis, level) -> list:
    """Returns those of some settings that have a value of a field."""
    return [setting for setting in settings if spec.same(sweep.level(setting, axis), level)]


def left_out(sweep, rule, levels) -> str:
    """Returns words on the values of a field that are not among the measured `levels`, or "" if all are."""
    every = sweep.levels(sweep.select(rule.where, rule.axis), rule.axis)
    gone = [shown(level) for level in every if not any(spec.same(level, kept) for kept in levels)]
    return f" (without {', '.join(gone)}, which no arm has)" if gone else ""


def picked(sweep, pick, quantity) -> dict[int, float]:
    """Returns the quantity of a pick, or the difference of two, by seed."""
    if isinstance(pick, spec.Difference):
        a, b = (picked(sweep, part, quantity) for part in (pick.a, pick.b))
        return {seed: a[seed] - b[seed] for seed in a if seed in b}
    if pick.tuned:
        return _tuned(sweep, pick, quantity)[-1]
    return sweep.by_seed(pick.stage, sweep.select(pick.where), pick.y or quantity)


def _tuned(sweep, pick, quantity):
    """Returns the choice of a tuned pick.

    Returns:
      The chosen value of the tuned field, the seed that chooses it, and the quantity of the other seeds there.
    """
    level, chooser = chosen(sweep, pick, quantity)
    if chooser is None:
        return None, None, {}
    settings = settings_at(sweep, sweep.select(pick.where, pick.tuned), pick.tuned, level)
    by_seed = sweep.by_seed(pick.stage, settings, pick.y or quantity)
    return level, chooser, {seed: value for seed, value in by_seed.items() if seed != chooser}


def chosen(sweep, pick, quantity):
    """Returns the value of its tuned field that a pick takes, and the seed that chooses it; None and None without a choice.

    The first seed that has the quantity at all values chooses. With a design it is one of the first look, if any of them can
    choose: so no later look has another choice, and later seeds need the chosen value alone.
    """
    design = sweep.declared.design
    for view in (sweep.first(design.looks[0]), sweep) if design else (sweep,):
        levels, values = along(view, pick.stage, pick.tuned, pick.y or quantity, pick.where)
        if values:
            chooser = next(iter(values))
            best = np.argmax(values[chooser]) if pick.best == "highest" else np.argmin(values[chooser])
            return levels[int(best)], chooser
    return None, None


def in_words(sweep, pick, quantity, beside=None) -> str:
    """Returns a pick or a difference in words; after one `beside` of the same quantity, the quantity is not repeated."""
    repeated = type(beside) is type(pick) and (beside.y or quantity) == (pick.y or quantity)
    said = sweep.quantity(pick.y or quantity).words
    if isinstance(pick, spec.Difference):
        start, end = (_named(sweep, part, quantity) for part in (pick.b, pick.a))
        return f"{'that' if repeated else f'rise of {said}'} from {start} to {end}"
    return f"{'that' if repeated else said} of {_named(sweep, pick, quantity)}"


def _named(sweep, pick, quantity) -> str:
    """Returns what a pick chooses, in words."""
    where = ", ".join(
        f"{name_of(sweep, name)} = {' or '.join(map(shown, value if isinstance(value, tuple) else (value,)))}"
        for name, value in pick.where.items()
    )
    words = pick.label or (f"{label(pick.stage)} ({where})" if where else label(pick.stage))
    if pick.tuned:
        level, chooser, _ = _tuned(sweep, pick, quantity)
        words += f" at {name_of(sweep, pick.tuned)} = {shown(level)} (chosen by seed {chooser})"
    return words


def name_of(sweep, axis) -> str:
    """Returns the name of a field, or "settings" for none."""
    return sweep.called(axis) if axis else "settings"


def printed(sweep, quantity) -> dict:
    """Returns how a difference of a quantity is printed: the fields `scale` and `unit` of its Contrast."""
    found = sweep.quantity(quantity)
    if found.scale == 100:
        return {"scale": 100.0, "unit": "points"}
    unit = found.title.rpartition(" (")[2].removesuffix(")") if found.title.endswith(")") else ""
    return {"scale": found.scale, "unit": unit}


def points(sweep, path, rule, seed) -> list[tuple[float, float]]:
    """Returns the points (x, y) of a path on the plane of a rule, for one seed."""
    found = []
    for setting in sweep.select(path.where, path.axis):
        if spec.of_metrics(rule):
            found += zip(*steps(sweep, path, rule, setting, seed))
            continue
        arm = sweep.arm(setting, seed)
        x, y = (arm and sweep.value(arm, path.stage, name) for name in (rule.x, rule.y))
        if x is not None and y is not None and not (rule.sqrt_x and x < 0):
            found.append((math.sqrt(x) if rule.sqrt_x else x, y))
    return found


def steps(sweep, path, rule, setting, seed) -> tuple[np.ndarray, np.ndarray]:
    """Returns x and y of the steps of one run; both are empty if the run has not finished the stage."""
    rows = _rows(sweep, path.stage, setting, seed, getattr(rule, "file", "metrics.jsonl"))
    found = [(row.get(rule.x), row.get(rule.y)) for row in rows]
    found = [(x, y) for x, y in found if is_number(x) and is_number(y) and math.isfinite(x) and math.isfinite(y)]
    x, y = np.array(found, float).reshape(-1, 2).T
    return (np.sqrt(np.maximum(x, 0)) if getattr(rule, "sqrt_x", False) else x), y  # an estimate of KL can be below 0


def course(sweep, rule, setting, seed) -> dict[int, float]:
    """Returns the metric of a rule by step, for the steps of one run that have it."""
    rows = _rows(sweep, rule.stage, setting, seed, "metrics.jsonl")
    return {row["step"]: row[rule.y] for row in rows if is_number(row.get(rule.y)) and math.isfinite(row[rule.y])}


def by_prompt(sweep, rule, setting, seed):
    """Returns what a best_of_n stage gains at each n.

    Returns:
      The KL of each n, f[M], and the gain of each prompt over n = 1, f[P, M]. None if there are too few numbers.
    """
    rows = _rows(sweep, rule.stage, setting, seed, "by_prompt.jsonl")
    columns = [row.get(name) for row in rows for name in ("n", rule.y)]
    if len(rows) < 8 or not all(isinstance(column, list) and all(map(is_number, column)) for column in columns):
        return None
    if len({len(column) for column in columns}) > 1 or len(columns[0]) < 6:
        return None
    values = np.array([row[rule.y] for row in rows], float)
    return best_of_n.kl(rows[0]["n"]), values - values[:, :1]


def _rows(sweep, stage, setting, seed, file) -> list[dict]:
    """Returns the rows of a file of a finished stage, or no rows."""
    arm = sweep.arm(setting, seed)
    return sweep.history(arm, stage, file) if arm and sweep.finished(arm, stage) else []


def mean_over_settings(found: list[dict[int, float]]) -> dict[int, float]:
    """Returns the mean over settings by seed, for the seeds that every setting has."""
    seeds = [seed for seed in found[0] if all(seed in by_seed for by_seed in found)] if found else []
    return {seed: float(np.mean([by_seed[seed] for by_seed in found])) for seed in seeds}
