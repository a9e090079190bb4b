"""The numbers of each rule: one for each seed, positive if the seed agrees with the claim."""

import numpy as np

from rlhf_jax.evaluate import overoptimization
from rlhf_jax.report import spec
from rlhf_jax.report.form import is_number
from rlhf_jax.report.names import shown
from rlhf_jax.report.record import label
from rlhf_jax.report.sweep_report import Sweep
from rlhf_jax.report.verdicts import curves, measured
from rlhf_jax.report.verdicts.contrast import Contrast


def contrasts_of(sweep: Sweep, rule) -> list[list[Contrast]]:
    """Returns the tests of a rule, as a list for each simple rule in it: an `All` holds several."""
    if isinstance(rule, spec.All):
        return [part for inner in rule.rules for part in contrasts_of(sweep, inner)]
    return [_TESTS[type(rule)](sweep, rule)]


def _trend(sweep, rule):
    """Returns the test of the slope of y over the rank of the field's values."""
    levels, values = measured.along(sweep, rule.stage, rule.axis, rule.y, rule.where)
    sign = 1 if rule.direction == "rises" else -1
    ranks = np.arange(len(levels), dtype=float)
    slopes = {seed: sign * curves.slope(ranks, y) for seed, y in values.items()} if len(levels) > 1 else {}
    left = measured.left_out(sweep, rule, levels)
    what = "rise" if sign > 0 else "fall"
    name = measured.name_of(sweep, rule.axis)
    what = f"{what} of {sweep.quantity(rule.y).words} from one value of {name} to the next{left}"
    return [Contrast(what, slopes, **measured.printed(sweep, rule.y))]


def _peak(sweep, rule):
    """Returns the tests of the inner value that the other seeds choose, against each end.

    The choices of different seeds are not independent. If an end is as good as the best inner value, intervals of 95 % would
    let the claim hold in up to 5.5 % of cases, and not in 2.5 %. So the intervals are those of half the level, 97.5 %. If each
    seed chose for itself, it would be up to 9 %. (The rates were simulated, for 3 to 12 seeds and up to 8 values.)

    Seeds that choose a wrong value make the number too low. If the best inner value was hardly better than both ends, and the
    others far worse, such numbers would be against the claim in up to 11 % of cases. So that a claim does not hold, or is
    negligible, is judged by each inner value (`Contrast.candidates`): the best of them is among these, and no choice is made.
    """
    levels, values = measured.along(sweep, rule.stage, rule.axis, rule.y, rule.where)
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
    name, left = measured.name_of(sweep, rule.axis), measured.left_out(sweep, rule, levels)
    return [
        Contrast(
            f"{sweep.quantity(rule.y).words} at {name} = {inner} (chosen by the other seeds) over that at "
            f"{shown(levels[end]) if levels else 'the end'}{left}",
            by_seed,
            **measured.printed(sweep, rule.y),
            share=0.5,
            candidates=tuple(
                {seed: float(y[place] - y[end]) for seed, y in values.items()} for place in range(1, len(levels) - 1)
            )
            if by_seed
            else (),
        )
        for end, by_seed in gaps.items()
    ]


def _greater(sweep, rule):
    """Returns the test of a - factor * b."""
    a = measured.picked(sweep, rule.a, rule.y)
    if is_number(rule.b):
        border, how = rule.factor * rule.b, measured.printed(sweep, rule.a.y or rule.y)
        how["unit"] = how["unit"].replace("points", "%")  # a share, and no difference of shares
        return [Contrast(measured.in_words(sweep, rule.a, rule.y), a, border + rule.by, zero=border, **how)]
    b = measured.picked(sweep, rule.b, rule.y)
    times = "" if rule.factor == 1 else f"{rule.factor:g} x "
    what = f"{measured.in_words(sweep, rule.a, rule.y)} over {times}{measured.in_words(sweep, rule.b, rule.y, rule.a)}"
    gaps = {seed: a[seed] - rule.factor * b[seed] for seed in a if seed in b}
    return [Contrast(what, gaps, rule.by, **measured.printed(sweep, rule.a.y or rule.y))]


def _close(sweep, rule):
    """Returns the test of a - b - difference."""
    a = measured.picked(sweep, rule.a, rule.y)
    b = dict.fromkeys(a, rule.b) if is_number(rule.b) else measured.picked(sweep, rule.b, rule.y)
    other = f"{rule.b:g}" if is_number(rule.b) else measured.in_words(sweep, rule.b, rule.y, rule.a)
    aim = f" and less {rule.difference:g}" if rule.difference else ""
    return [
        Contrast(
            f"{measured.in_words(sweep, rule.a, rule.y)} less {other}{aim}",
            {seed: a[seed] - b[seed] - rule.difference for seed in a if seed in b},
            margin=rule.margin,
            **measured.printed(sweep, rule.a.y or rule.y),
        )
    ]


def _dominates(sweep, rule):
    """Returns the test of the mean gap between two paths."""
    gaps = {}
    for seed in sweep.seeds:
        a, b = (measured.points(sweep, path, rule, seed) for path in (rule.a, rule.b))
        if (gap := curves.mean_gap(a, b)) is not None:
            gaps[seed] = gap
    a, b = (
        path.label or f"{label(path.stage)} along {measured.name_of(sweep, path.axis)}" for path in (rule.a, rule.b)
    )
    margin = rule.margin if isinstance(rule, spec.Coincides) else None
    return [
        Contrast(
            f"{sweep.quantity(rule.y).words} of {a} over that of {b} at equal {sweep.quantity(rule.x).words}",
            gaps,
            margin=margin,
            **measured.printed(sweep, rule.y),
        )
    ]


def _turns(sweep, rule):
    """Returns the test of the fall of a metric from its highest step to the last tenth."""
    sign = 1 if rule.direction == "falls" else -1
    found = []
    for setting in sweep.select(rule.where):
        courses = {seed: course for seed in sweep.seeds if (course := measured.course(sweep, rule, setting, seed))}
        steps = sorted(set.intersection(*map(set, courses.values()))) if courses else []
        falls = curves.turned(sign * np.array([[course[step] for step in steps] for course in courses.values()]))
        found.append({} if falls is None else dict(zip(courses, map(float, falls))))
    what, best = ("fall", "highest") if sign > 0 else ("rise", "lowest")
    return [
        Contrast(
            f"{what} of {sweep.quantity(rule.y).words} from the {best} step of the other seeds to the last tenth",
            measured.mean_over_settings(found),
            rule.by,
            **measured.printed(sweep, rule.y),
        )
    ]


def _law(sweep, rule):
    """Returns the tests of the squared error that a law saves, against each of its rivals."""
    found = {against: [] for against in rule.against}
    for setting in sweep.select(rule.where):
        if rule.over == "steps":
            runs = {
                seed: run
                for seed in sweep.seeds
                if len((run := measured.steps(sweep, rule, rule, setting, seed))[0]) > 5
            }
        else:
            runs = {seed: run for seed in sweep.seeds if (run := measured.by_prompt(sweep, rule, setting, seed))}
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
            f"squared error of {sweep.quantity(rule.y).words} that {_LAWS[rule.law]} saves over {_LAWS[against]}, "
            f"fitted to {where}",
            measured.mean_over_settings(by_seed),
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
