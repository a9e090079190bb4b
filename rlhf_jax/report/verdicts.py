"""Does a sweep say what the paper says? One rule of decision for every claim.

A rule (see spec) becomes one number for each seed, or several where it says several things, each positive where the seed
agrees with the claim; arms of one seed share data and initial weights, so differences are taken within a seed first. The
95 % Student t interval of each mean over seeds decides. The claim holds where all of them are entirely above 0. It does
not hold where one is entirely below 0, of m numbers by an interval of 1 - 5 %/m: where all are truly 0, one of them is
that low in 2.5 % and not in m times that. Otherwise it is undecided; so it is with fewer than two seeds, and where a number
is the same in all seeds, which then do not show how much seeds differ.

Claims are judged one by one, without correction for their number. Nothing is chosen by the data that judge it. How
often a rule is wrong where nothing is there: docs/sweeps.md.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from rlhf_jax.evaluate import best_of_n, overoptimization
from rlhf_jax.report import spec
from rlhf_jax.report.form import is_number
from rlhf_jax.report.record import label
from rlhf_jax.report.sweep_report import Sweep, shown
from rlhf_jax.report.tables import title_of
from rlhf_jax.statistics import Estimate, mean_over_seeds

HOLDS, NOT, UNDECIDED = "holds", "does not hold", "undecided"
WITHDRAWN = "withdrawn"  # of a published claim whose rule has changed and that no run has judged anew
# Numbers of seeds of each look -> how often, in %, a claim of which nothing is true holds at one of them where looks end
# with the first that decides: of one t test, and of Peak where an end is as good as the best inner value.
ERRORS_OF_LOOKS = {(3, 4): (4.0, 6.5), (3, 5): (4.3, 7.3), (3, 4, 5): (5.1, 9.4)}


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

    def verdict(self, tests: int = 1) -> str:
        """HOLDS by the 95 % interval; NOT by one of 1 - 5 %/tests: as one of so many of a claim; else UNDECIDED."""
        if len(self.by_seed) < 2:
            return UNDECIDED
        _, low, high = self.estimate
        if (
            self.margin is None
            and low > self.threshold
            or self.margin is not None
            and -self.margin < low
            and high < self.margin
        ):
            return HOLDS
        _, low, high = mean_over_seeds(list(self.by_seed.values()), 1 - 0.05 / tests)
        if self.margin is None:
            return NOT if high < self.threshold else UNDECIDED
        return NOT if low > self.margin or high < -self.margin else UNDECIDED

    @property
    def t(self) -> float:
        """(mean - threshold) / standard error; nan where seeds do not show it: fewer than two, or equal ones."""
        if not self.by_seed or math.isinf(self.estimate.low):
            return math.nan
        values = np.array(list(self.by_seed.values())) - self.threshold
        return float(values.mean() / (values.std(ddof=1) / math.sqrt(len(values))))

    def sentence(self) -> str:
        if not self.by_seed:
            return f"{self.what}: no seed has all it needs"
        value, low, high = self.estimate
        asked = f", asked within ±{self.margin:g}" if self.margin is not None else ""
        asked = f", asked above {self.threshold:g}" if self.threshold else asked
        if len(self.by_seed) < 2:
            return f"{self.what}: {value:.3g}{asked}, in one seed, and an interval needs two"
        if math.isinf(low):
            return f"{self.what}: {value:.3g}{asked}, the same in all {len(self.by_seed)} seeds, and an interval needs a difference"
        t = f"t = {self.t:.1f}, " if self.margin is None else ""
        return (
            f"{self.what}: {value:.3g} [{low:.3g}, {high:.3g}]{asked} ({t}df = {len(self.by_seed) - 1}, "
            f"{len(self.by_seed)} seeds)"
        )


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a rule has come to: HOLDS, NOT or UNDECIDED, why in one sentence, and the tests behind it.

    `looks`: how many seeds there were at each look, where there were several.
    """

    verdict: str
    sentence: str
    tests: tuple[Contrast, ...]
    looks: tuple[int, ...] = ()

    def to_json(self) -> dict:
        """Plain values; what is not finite is None."""

        def finite(value):
            return value if math.isfinite(value) else None

        return {
            "verdict": self.verdict,
            "looks": list(self.looks),
            "sentence": self.sentence,
            "tests": [
                {
                    "what": test.what,
                    "verdict": test.verdict(),
                    "by_seed": test.by_seed,
                    "seeds": len(test.by_seed),
                    "df": max(0, len(test.by_seed) - 1),
                    "t": finite(test.t),
                    "threshold": test.threshold,
                    "margin": test.margin,
                    **({} if test.estimate is None else test.estimate.to_json()),
                }
                for test in self.tests
            ],
        }


def judge(sweep: Sweep, rule) -> Verdict:
    """Applies a rule of a claim to what a sweep has measured; what is missing makes it undecided, never an error."""
    parts = _parts(sweep, rule)
    tests = [test for part in parts for test in part]
    said = ["; ".join(test.sentence() for test in part) for part in parts]
    sentence = said[0] if len(said) == 1 else "; ".join(f"({n}) {part}" for n, part in enumerate(said, 1))
    lacking = [seed for seed in sweep.seeds if any(seed not in test.by_seed for test in tests)]
    if lacking and len(sweep.seeds) > 1:
        sentence += f"; without seed {', '.join(map(str, lacking))}, which lacks a number or has chosen"
    looks = sweep.declared.looks
    if len(looks) > 1:
        sentence += f"; {_of_looks(looks, rule)}"
    return Verdict(decide(tests), sentence, tuple(tests), looks)


def decide(tests: list[Contrast]) -> str:
    """The verdict of a claim that says all of these."""
    found = [test.verdict(len(tests)) for test in tests]
    return NOT if NOT in found else UNDECIDED if UNDECIDED in found or not found else HOLDS


def _parts(sweep, rule) -> list[list[Contrast]]:
    if isinstance(rule, spec.All):
        return [part for inner in rule.rules for part in _parts(sweep, inner)]
    return [_TESTS[type(rule)](sweep, rule)]


def _of_looks(looks, rule) -> str:
    plain, peak = ERRORS_OF_LOOKS.get(looks, (None, None))
    error = peak if isinstance(rule, spec.Peak) else plain
    wrong = f"wrong in up to {error} % a side, not 2.5" if error else "how often it is then wrong was not measured"
    return f"look {len(looks)} of {len(looks)}: judged with {', then '.join(map(str, looks))} seeds, {wrong}"


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
    return [
        Contrast(
            f"{title_of(rule.y)} at {name} = {inner} (chosen by the other seeds) over that at "
            f"{shown(levels[end]) if levels else 'the end'}{left}",
            by_seed,
        )
        for end, by_seed in gaps.items()
    ]


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
    return [
        Contrast(
            f"{_said(sweep, rule.a, rule.y)} less {other}{aim}",
            {seed: a[seed] - b[seed] - rule.difference for seed in a if seed in b},
            margin=rule.margin,
        )
    ]


def _dominates(sweep, rule):
    gaps = {}
    for seed in sweep.seeds:
        a, b = (_points(sweep, path, rule, seed) for path in (rule.a, rule.b))
        if (gap := mean_gap(a, b)) is not None:
            gaps[seed] = gap
    a, b = (path.label or f"{label(path.stage)} along {_name(sweep, path.axis)}" for path in (rule.a, rule.b))
    margin = rule.margin if isinstance(rule, spec.Coincides) else None
    return [Contrast(f"{title_of(rule.y)} of {a} over that of {b} at equal {title_of(rule.x)}", gaps, margin=margin)]


def _turns(sweep, rule):
    sign = 1 if rule.direction == "falls" else -1
    found = []
    for setting in sweep.select(rule.where):
        courses = {seed: course for seed in sweep.seeds if (course := _course(sweep, rule, setting, seed))}
        steps = sorted(set.intersection(*map(set, courses.values()))) if courses else []
        falls = turned(sign * np.array([[course[step] for step in steps] for course in courses.values()]))
        found.append({} if falls is None else dict(zip(courses, map(float, falls))))
    what, best = ("fall", "highest") if sign > 0 else ("rise", "lowest")
    return [
        Contrast(
            f"{what} of {title_of(rule.y)} from the {best} step of the other seeds to the last tenth",
            _mean_over_settings(found),
            rule.by,
        )
    ]


def _law(sweep, rule):
    found = {against: [] for against in rule.against}
    for setting in sweep.select(rule.where):
        if rule.over == "steps":
            runs = {seed: run for seed in sweep.seeds if len((run := _steps(sweep, rule, rule, setting, seed))[0]) > 5}
        else:
            runs = {seed: run for seed in sweep.seeds if (run := _by_prompt(sweep, rule, setting, seed))}
        for against, by_seed in found.items():
            if rule.over == "prompts":
                saved = [overoptimization.saved_over_prompts(*run, rule.law, against) for run in runs.values()]
            else:
                saved = (
                    overoptimization.saved_over_runs(list(runs.values()), rule.law, against) if len(runs) > 1 else []
                )
            by_seed.append(dict(zip(runs, saved)))
    where = "other prompts and n" if rule.over == "prompts" else "other seeds and steps"
    return [
        Contrast(
            f"squared error of {title_of(rule.y)} that {_LAWS[rule.law]} saves over {_LAWS[against]}, fitted to {where}",
            _mean_over_settings(by_seed),
        )
        for against, by_seed in found.items()
    ]


_LAWS = {
    "constant": "a constant",
    "linear": "α d",
    "kl": "α d²",
    "log_n": "α ln n",
    "best_of_n": "d (α − β d)",
    "rl": "d (α − β ln d)",
}
_TESTS = {
    spec.Trend: _trend,
    spec.Peak: _peak,
    spec.Greater: _greater,
    spec.Close: _close,
    spec.Dominates: _dominates,
    spec.Coincides: _dominates,
    spec.Turns: _turns,
    spec.Law: _law,
}


# --- numbers -----------------------------------------------------------------------------------------------------


def slope(x, y) -> float:
    """Least-squares slope of y over x, f[N] each, N >= 2."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    x = x - x.mean()
    return float(x @ (y - y.mean()) / (x @ x))


def turned(courses) -> np.ndarray | None:
    """How far each course has fallen from its peak to its last tenth, f[..., K]; see spec.Turns.

    The peak is where the mean of the other courses is highest, of every other step; the steps beside it, which are not
    among those, say how high this course was there. So the noise of a step either chooses or judges, and a course that
    wanders (whose steps are alike) chooses nothing for itself: where courses never fall the mean is at most 0.

    Args:
        courses: f[..., K, T], K seeds. None comes back for fewer than two of them, or for fewer than 6 steps.
    """
    seeds, total = courses.shape[-2:] if courses.ndim > 1 else (0, 0)
    if seeds < 2 or total < 6:
        return None
    end = max(1, total // 10)
    places = np.arange(1, total - end - 1, 2)
    others = courses.sum(-2, keepdims=True) - courses
    peak = places[others[..., places].argmax(-1)][..., None]
    before, after = (np.take_along_axis(courses, peak + side, -1)[..., 0] for side in (-1, 1))
    return (before + after) / 2 - courses[..., -end:].mean(-1)


def mean_gap(a, b) -> float | None:
    """Mean of y of curve a less y of curve b over the x that both cover; points (x, y) are joined in the order of x.

    Where one has fewer points, only there: lines between the sparse points of a bent curve are on one side of it, and
    would favour the other. With one such point, its gap. None where the ranges do not meet in more than one x, or no point
    of the sparser lies where they do.
    """
    if len(a) < 2 or len(b) < 2:
        return None
    (ax, ay), (bx, by) = (zip(*sorted(points)) for points in (a, b))
    low, high = max(ax[0], bx[0]), min(ax[-1], bx[-1])
    if not low < high:
        return None
    if len(a) == len(b):
        x = np.unique([low, high, *(x for x in (*ax, *bx) if low < x < high)])  # every kink: the mean is exact
    else:
        x = np.unique([x for x in min(ax, bx, key=len) if low <= x <= high])
    if not len(x):
        return None
    gap = np.interp(x, ax, ay) - np.interp(x, bx, by)
    return float(np.trapezoid(gap, x) / (x[-1] - x[0]) if len(x) > 1 else gap[0])


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
    if pick.tuned:
        return _tuned(sweep, pick, quantity)[-1]
    return sweep.by_seed(pick.stage, sweep.select(pick.where), pick.y or quantity)


def _tuned(sweep, pick, quantity):
    """Level of the field that is tuned, as the first seed chooses it, that seed, and the others' quantity there."""
    levels, values = _along(sweep, pick.stage, pick.tuned, pick.y or quantity, pick.where)
    if not values:
        return None, None, {}
    chooser, *judges = values
    best = int(np.argmax(values[chooser]) if pick.best == "highest" else np.argmin(values[chooser]))
    return levels[best], chooser, {seed: float(values[seed][best]) for seed in judges}


def _said(sweep, pick, quantity, beside=None) -> str:
    """A pick in words; the quantity is not repeated beside a pick with the same one."""
    where = ", ".join(
        f"{_name(sweep, name)} = {' or '.join(map(shown, value if isinstance(value, tuple) else (value,)))}"
        for name, value in pick.where.items()
    )
    words = pick.label or (f"{label(pick.stage)} ({where})" if where else label(pick.stage))
    if pick.tuned:
        level, chooser, _ = _tuned(sweep, pick, quantity)
        words += f" at {_name(sweep, pick.tuned)} = {shown(level)} (chosen by seed {chooser})"
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


def _steps(sweep, path, rule, setting, seed) -> tuple[np.ndarray, np.ndarray]:
    """x and y of the steps of one run; both empty where it is not finished."""
    rows = _rows(sweep, path.stage, setting, seed, getattr(rule, "file", "metrics.jsonl"))
    points = [(row.get(rule.x), row.get(rule.y)) for row in rows]
    points = [(x, y) for x, y in points if is_number(x) and is_number(y) and math.isfinite(x) and math.isfinite(y)]
    x, y = np.array(points, float).reshape(-1, 2).T
    return (np.sqrt(np.maximum(x, 0)) if getattr(rule, "sqrt_x", False) else x), y  # an estimate of KL can be below 0


def _course(sweep, rule, setting, seed) -> dict[int, float]:
    """Step -> the metric, of the steps of one run that have it."""
    rows = _rows(sweep, rule.stage, setting, seed, "metrics.jsonl")
    return {row["step"]: row[rule.y] for row in rows if is_number(row.get(rule.y)) and math.isfinite(row[rule.y])}


def _by_prompt(sweep, rule, setting, seed):
    """(KL f[M], what each prompt gains f[P, M]) of the best of each n of a best_of_n stage; None where there is nothing."""
    rows = _rows(sweep, rule.stage, setting, seed, "by_prompt.jsonl")
    columns = [row.get(name) for row in rows for name in ("n", rule.y)]
    if len(rows) < 8 or not all(isinstance(column, list) and all(map(is_number, column)) for column in columns):
        return None
    if len({len(column) for column in columns}) > 1 or len(columns[0]) < 6:
        return None
    values = np.array([row[rule.y] for row in rows], float)
    return best_of_n.kl(rows[0]["n"]), values - values[:, :1]


def _rows(sweep, stage, setting, seed, file) -> list[dict]:
    arm = sweep.arm(setting, seed)
    return sweep.history(arm, stage, file) if arm and sweep.finished(arm, stage) else []


def _mean_over_settings(found: list[dict[int, float]]) -> dict[int, float]:
    """Of the seeds that every setting has."""
    seeds = [seed for seed in found[0] if all(seed in by_seed for by_seed in found)] if found else []
    return {seed: float(np.mean([by_seed[seed] for by_seed in found])) for seed in seeds}
