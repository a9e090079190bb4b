"""Does a sweep say what the paper says? One rule of decision for every claim.

A rule (see spec.py) becomes one number for each seed, positive where the seed agrees with the claim; arms of one
seed share data and initial weights, so differences are taken within a seed first. The 95 % Student t interval of its
mean over seeds decides: entirely above 0, the claim holds; entirely below 0, it does not hold; otherwise, and with
fewer than two seeds, it is undecided. Claims are judged one by one, without correction for their number.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from rlhf_jax.evaluate.statistics import Estimate, mean_over_seeds
from rlhf_jax.report import spec
from rlhf_jax.report.record import label
from rlhf_jax.report.sweep import Sweep, is_number, shown
from rlhf_jax.report.tables import title_of

HOLDS, NOT, UNDECIDED = "holds", "does not hold", "undecided"


class Contrast(NamedTuple):
    """One test over seeds: `what` it is the mean of, and what that must be for the claim.

    `margin` None: above `threshold`, by Student's t. Otherwise inside +-margin, by the same interval.
    """

    what: str
    by_seed: dict[int, float]
    threshold: float = 0.0
    margin: float | None = None

    @property
    def estimate(self) -> Estimate | None:
        """Mean and 95 % interval; None without a seed."""
        return mean_over_seeds(list(self.by_seed.values())) if self.by_seed else None

    @property
    def verdict(self) -> str:
        if len(self.by_seed) < 2:
            return UNDECIDED
        _, low, high = self.estimate
        if self.margin is None:
            return HOLDS if low > self.threshold else NOT if high < self.threshold else UNDECIDED
        if -self.margin < low and high < self.margin:
            return HOLDS
        return NOT if low > self.margin or high < -self.margin else UNDECIDED

    @property
    def t(self) -> float:
        """(mean - threshold) / standard error; infinite where seeds do not differ, nan with fewer than two."""
        values = np.array(list(self.by_seed.values())) - self.threshold
        if len(values) < 2:
            return math.nan
        error = values.std(ddof=1) / math.sqrt(len(values))
        return float(values.mean() / error) if error else math.copysign(math.inf, values.mean())

    def sentence(self) -> str:
        if not self.by_seed:
            return f"{self.what}: no seed has all it needs"
        value, low, high = self.estimate
        asked = f", asked within ±{self.margin:g}" if self.margin is not None else ""
        asked = f", asked above {self.threshold:g}" if self.threshold else asked
        if len(self.by_seed) < 2:
            return f"{self.what}: {value:.3g}{asked}, in one seed, and an interval needs two"
        t = f"t = {self.t:.1f}, " if self.margin is None else ""
        return (f"{self.what}: {value:.3g} [{low:.3g}, {high:.3g}]{asked} ({t}df = {len(self.by_seed) - 1}, "
                f"{len(self.by_seed)} seeds)")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a rule has come to: HOLDS, NOT or UNDECIDED, why in one sentence, and the tests behind it."""

    verdict: str
    sentence: str
    tests: tuple[Contrast, ...]

    def to_json(self) -> dict:
        """Plain values; what is not finite is None."""
        def finite(value):
            return value if math.isfinite(value) else None

        return {"verdict": self.verdict, "sentence": self.sentence, "tests": [
            {"what": test.what, "verdict": test.verdict, "by_seed": test.by_seed, "seeds": len(test.by_seed),
             "df": max(0, len(test.by_seed) - 1), "t": finite(test.t), "threshold": test.threshold,
             "margin": test.margin,
             **({} if test.estimate is None else {name: finite(v) for name, v in test.estimate._asdict().items()})}
            for test in self.tests]}


def judge(sweep: Sweep, rule) -> Verdict:
    """Applies a rule of a claim to what a sweep has measured; what is missing makes it undecided, never an error."""
    if isinstance(rule, spec.All):
        parts = [judge(sweep, part) for part in rule.rules]
        found = [part.verdict for part in parts]
        verdict = NOT if NOT in found else UNDECIDED if UNDECIDED in found or not found else HOLDS
        sentence = "; ".join(f"({n}) {part.sentence}" for n, part in enumerate(parts, 1))
        return Verdict(verdict, sentence, tuple(test for part in parts for test in part.tests))
    tests = _TESTS[type(rule)](sweep, rule)
    found = {test.verdict for test in tests}
    verdict = NOT if NOT in found else UNDECIDED if UNDECIDED in found else HOLDS
    lacking = [seed for seed in sweep.seeds if any(seed not in test.by_seed for test in tests)]
    sentence = "; ".join(test.sentence() for test in tests)
    if lacking and len(sweep.seeds) > 1:
        sentence += f"; without seed {', '.join(map(str, lacking))}, which lacks a number"
    return Verdict(verdict, sentence, tuple(tests))


# --- rules -------------------------------------------------------------------------------------------------------


def _trend(sweep, rule):
    levels, values = _along(sweep, rule.stage, rule.axis, rule.y, rule.where)
    sign = 1 if rule.direction == "rises" else -1
    ranks = np.arange(len(levels), dtype=float)
    slopes = {seed: sign * slope(ranks, y) for seed, y in values.items()} if len(levels) > 1 else {}
    left = _left_out(sweep, rule, levels)
    what = "rise" if sign > 0 else "fall"
    name = _name(sweep, rule.axis)
    return [Contrast(f"{what} of {title_of(rule.y)} from one value of {name} to the next{left}", slopes)]


def _peak(sweep, rule):
    """Where an end is as good as the best inner value this says "holds" in at most 5 % (3 to 5 seeds, up to 8 values).

    With the seed's own choice it would be up to 9 %. (Simulated; the choices of different seeds are not independent,
    so it is a little more than the 2.5 % of one t test.)
    """
    levels, values = _along(sweep, rule.stage, rule.axis, rule.y, rule.where)
    gaps = {0: {}, -1: {}}
    picked = []
    if len(levels) > 2 and len(values) > 1:
        for seed, y in values.items():
            others = np.mean([found for other, found in values.items() if other != seed], axis=0)
            best = 1 + int(np.argmax(others[1:-1]))
            picked.append(levels[best])
            for end, by_seed in gaps.items():
                by_seed[seed] = float(y[best] - y[end])
    inner = " or ".join(shown(level) for level in dict.fromkeys(picked)) or "an inner value"
    name, left = _name(sweep, rule.axis), _left_out(sweep, rule, levels)
    return [Contrast(f"{title_of(rule.y)} at {name} = {inner} (chosen by the other seeds) over that at "
                    f"{shown(levels[end]) if levels else 'the end'}{left}", by_seed) for end, by_seed in gaps.items()]


def _greater(sweep, rule):
    a = _picked(sweep, rule.a, rule.y)
    if is_number(rule.b):
        return [Contrast(_said(sweep, rule.a, rule.y), a, rule.factor * rule.b + rule.by)]
    b = _picked(sweep, rule.b, rule.y)
    times = "" if rule.factor == 1 else f"{rule.factor:g} x "
    what = f"{_said(sweep, rule.a, rule.y)} over {times}{_said(sweep, rule.b, rule.y, rule.a)}"
    return [Contrast(what, {seed: a[seed] - rule.factor * b[seed] for seed in a if seed in b}, rule.by)]


def _close(sweep, rule):
    a = _picked(sweep, rule.a, rule.y)
    b = dict.fromkeys(a, rule.b) if is_number(rule.b) else _picked(sweep, rule.b, rule.y)
    other = f"{rule.b:g}" if is_number(rule.b) else _said(sweep, rule.b, rule.y, rule.a)
    aim = f" and less {rule.difference:g}" if rule.difference else ""
    return [Contrast(f"{_said(sweep, rule.a, rule.y)} less {other}{aim}",
                     {seed: a[seed] - b[seed] - rule.difference for seed in a if seed in b}, margin=rule.margin)]


def _dominates(sweep, rule):
    gaps = {}
    for seed in sweep.seeds:
        a, b = (_points(sweep, path, rule, seed) for path in (rule.a, rule.b))
        if (gap := mean_gap(a, b)) is not None:
            gaps[seed] = gap
    a, b = (path.label or f"{label(path.stage)} along {_name(sweep, path.axis)}" for path in (rule.a, rule.b))
    margin = rule.margin if isinstance(rule, spec.Coincides) else None
    return [Contrast(f"{title_of(rule.y)} of {a} over that of {b} at equal {title_of(rule.x)}", gaps, margin=margin)]


def _linear(sweep, rule):
    over = {}
    for seed in sweep.seeds:
        found = [r_squared(x, y, rule.form, rule.start) for x, y in _fit_points(sweep, rule, seed)]
        if found and not any(map(math.isnan, found)):
            over[seed] = float(np.mean(found))
    d = f"√({title_of(rule.x)})" if rule.sqrt_x else title_of(rule.x)
    start = "a start and " if rule.start else ""
    forms = {"linear": f"linear in {d}", "bon": f"of {start}d (α − β d), d = {d}", "rl": f"of {start}d (α − β ln d), d = {d}"}
    return [Contrast(f"R² of {title_of(rule.y)} {forms[rule.form]}", over, rule.r2)]


_TESTS = {spec.Trend: _trend, spec.Peak: _peak, spec.Greater: _greater, spec.Close: _close,
          spec.Dominates: _dominates, spec.Coincides: _dominates,
          spec.Linear: _linear}  # fmt: skip


# --- numbers -----------------------------------------------------------------------------------------------------


def slope(x, y) -> float:
    """Least-squares slope of y over x, f[N] each, N >= 2."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    x = x - x.mean()
    return float(x @ (y - y.mean()) / (x @ x))


def r_squared(x, y, form: str = "linear", start: bool = False) -> float:
    """1 - (squares left) / (squares about the mean of y) of a fit of y, f[N], over d = x; nan where it says nothing.

    A fit needs more points than coefficients, and y must vary. Forms and `start` as in spec.Linear; d = 0 counts as 0 in
    d ln d.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    log = np.log(np.where(x > 0, x, 1.0))
    columns = {"linear": [np.ones_like(x), x], "bon": [x, -x * x], "rl": [x, -x * log]}[form]
    columns += [np.ones_like(x)] if start and form != "linear" else []
    spread = ((y - y.mean()) ** 2).sum() if len(y) else 0.0
    if len(y) <= len(columns) or spread == 0:
        return math.nan
    columns = np.stack(columns, axis=1)
    left = y - columns @ np.linalg.lstsq(columns, y, rcond=None)[0]
    return float(1 - (left**2).sum() / spread)


def mean_gap(a, b) -> float | None:
    """Mean of y of curve a less y of curve b over the x that both cover; points (x, y) are joined in the order of x.

    None where the ranges do not meet in more than one x.
    """
    if len(a) < 2 or len(b) < 2:
        return None
    (ax, ay), (bx, by) = (zip(*sorted(points)) for points in (a, b))
    low, high = max(ax[0], bx[0]), min(ax[-1], bx[-1])
    if not low < high:
        return None
    x = np.unique([low, high, *(x for x in (*ax, *bx) if low < x < high)])  # every kink: the mean is exact
    return float(np.trapezoid(np.interp(x, ax, ay) - np.interp(x, bx, by), x) / (high - low))


# --- what rules look at ------------------------------------------------------------------------------------------


def _along(sweep, stage, axis, quantity, where):
    """The values of the axis that some seed has in full, and seed -> quantity f[levels] of the seeds that have all."""
    settings = sweep.select(where, axis)
    found = {}
    for level in sweep.levels(settings, axis):
        here = [setting for setting in settings if spec.same(sweep.level(setting, axis), level)]
        if by_seed := sweep.by_seed(stage, here, quantity):
            found[spec.key(level)] = level, by_seed
    levels = [level for level, _ in found.values()]
    seeds = [seed for seed in sweep.seeds if found and all(seed in by_seed for _, by_seed in found.values())]
    return levels, {seed: np.array([by_seed[seed] for _, by_seed in found.values()]) for seed in seeds}


def _left_out(sweep, rule, levels) -> str:
    every = sweep.levels(sweep.select(rule.where, rule.axis), rule.axis)
    gone = [shown(level) for level in every if not any(spec.same(level, kept) for kept in levels)]
    return f" (without {', '.join(gone)}, which no arm has)" if gone else ""


def _picked(sweep, pick, quantity) -> dict[int, float]:
    return sweep.by_seed(pick.stage, sweep.select(pick.where), pick.y or quantity)


def _said(sweep, pick, quantity, beside=None) -> str:
    """A pick in words; the quantity is not repeated beside a pick with the same one."""
    where = ", ".join(f"{_name(sweep, name)} = {' or '.join(map(shown, value if isinstance(value, tuple) else (value,)))}"
                      for name, value in pick.where.items())
    words = pick.label or (f"{label(pick.stage)} ({where})" if where else label(pick.stage))
    quantity = pick.y or quantity
    if beside is not None and (beside.y or quantity) == quantity:
        return f"that of {words}"
    return f"{title_of(quantity)} of {words}"


def _name(sweep, axis) -> str:
    return sweep.short.get(axis, axis or "settings")


def _points(sweep, path, rule, seed) -> list[tuple[float, float]]:
    points = []
    for setting in sweep.select(path.where, path.axis):
        if spec.of_metrics(rule):
            points += zip(*_steps(sweep, path, rule, setting, seed))
            continue
        arm = sweep.arm(setting, seed)
        x, y = (arm and sweep.value(arm, path.stage, name) for name in (rule.x, rule.y))
        if x is not None and y is not None and not (rule.sqrt_x and x < 0):
            points.append((math.sqrt(x) if rule.sqrt_x else x, y))
    return points


def _fit_points(sweep, rule, seed):
    """(x, y) of each fit: one a run over its steps, or one over the seed's settings along the axis."""
    settings = sweep.select(rule.where, rule.axis)
    if rule.axis is not None:
        points = _points(sweep, rule, rule, seed)
        return [tuple(map(np.array, zip(*points)))] if points else []
    return [_steps(sweep, rule, rule, setting, seed, rule.window) for setting in settings]


def _steps(sweep, path, rule, setting, seed, window=1) -> tuple[np.ndarray, np.ndarray]:
    """x and y of the steps of one run, means over each `window` of them; both empty where it is not finished."""
    arm = sweep.arm(setting, seed)
    rows = sweep.history(arm, path.stage, rule.file) if arm and sweep.finished(arm, path.stage) else []
    points = [(row.get(rule.x), row.get(rule.y)) for row in rows]
    points = [(x, y) for x, y in points if is_number(x) and is_number(y) and math.isfinite(x) and math.isfinite(y)]
    points = np.array(points, float).reshape(-1, 2)
    whole = len(points) // window * window
    x, y = points[:whole].reshape(-1, window, 2).mean(axis=1).T
    return (np.sqrt(np.maximum(x, 0)) if rule.sqrt_x else x), y  # an estimate of KL can be below 0
