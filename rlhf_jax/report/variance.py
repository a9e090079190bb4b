"""Where the variance of a claim's number comes from: from seeds, or from the prompts and samples of the evaluation.

Every policy completes the same test prompts, and the files of a stage have what it did with each of them. So the number of a
claim can be computed for each prompt alone, if it is a sum of what arms have: that of a Trend, Greater or Close. Then

    seeds        what differs between seeds whatever the prompts: data order, labels, initial weights
    evaluation   what would vanish with more test prompts; it is within the interval over seeds
    prompts      what other test prompts would change in all seeds alike; it is not within that interval

Data that all seeds share, such as the texts of a world with one `data.world.seed`, add to none of the three.
"""

import copy
import functools
import math

import numpy as np

from rlhf_jax.report import spec
from rlhf_jax.report.form import is_number
from rlhf_jax.report.sweep_report import ArmRecord, Sweep
from rlhf_jax.report.tables import TextTable
from rlhf_jax.report.verdicts import Verdict
from rlhf_jax.report.verdicts.rules import contrasts_of
from rlhf_jax.statistics.variance import Parts, parts

_FIELDS = {
    "score": "score",
    "kl": "kl",
    "completion_length": "length",
    "eos": "finished",
}  # quantity -> field of samples.jsonl
ABOUT = (
    "A seed's number varies because seeds differ, and because the evaluation has few test prompts and one sample of each. The "
    "second part vanishes with more prompts (`evaluate.prompts`), the first with more seeds. Other test prompts would move all "
    "seeds alike: by that much, which no interval over seeds contains. Data that all seeds share would add to it; that was not "
    "measured."
)


def table(sweep: Sweep, verdicts: list[tuple[spec.Claim, Verdict]]) -> TextTable | None:
    """Returns the table of the variance of each number that can be split, or None if none can."""
    rows = []
    for claim, verdict in verdicts:
        if not verdict.looks or not all(map(_is_sum, spec.simple(claim.rule))):
            continue
        view = sweep.first(verdict.looks[-1]) if sweep.declared.design else sweep
        for number, test in enumerate(verdict.tests):
            if (found := _split(view, claim.rule, number, test)) is not None:
                rows.append([test.what, *_cells(test, *found)])
    heads = [
        "number",
        "standard deviation of a seed",
        "of its variance: seeds",
        "evaluation",
        "other test prompts",
        "prompts",
    ]
    return TextTable(heads, rows) if rows else None


def _cells(test, components: Parts, prompts: int) -> list[str]:
    """Returns the cells of a number."""
    evaluation = components.rest / prompts
    total = components.seeds + evaluation
    share = evaluation / total
    unit = f" {test.unit}" if test.unit else ""
    return [
        f"{test.show(math.sqrt(total))}{unit}",
        f"{100 * (1 - share):.0f} %",
        f"{100 * share:.0f} %",
        f"±{test.show(math.sqrt(components.prompts / prompts))}{unit}",
        str(prompts),
    ]


def _is_sum(rule) -> bool:
    """Whether the number of a simple rule is a sum of what arms have, each times a constant."""
    tuned = any(getattr(pick, "tuned", None) for pick in spec.compared(rule))
    return isinstance(rule, (spec.Trend, spec.Greater, spec.Close)) and not tuned


def _split(sweep: Sweep, rule, number: int, test) -> tuple[Parts, int] | None:
    """Returns the components of the number of a rule, and the number of prompts; None if the files do not give them."""

    @functools.cache
    def known(place: int, stage: str, quantity: str) -> tuple[np.ndarray, tuple] | None:
        return _by_prompt(sweep, sweep_arms[place], stage, quantity)

    sweep_arms = {arm.number: arm for arm in [*sweep.arms, *sweep.later]}
    asked: list[tuple[np.ndarray, tuple] | None] = []

    def value_at(prompt):
        def value(arm: ArmRecord, stage: str, quantity: str) -> float | None:
            found = known(arm.number, stage, quantity)
            asked.append(found)
            return None if found is None or prompt >= len(found[0]) else float(found[0][prompt])

        return value

    def numbers(prompt: int) -> dict[int, float]:
        view = copy.copy(sweep)
        view.value = value_at(prompt)
        return [contrast for part in contrasts_of(view, rule) for contrast in part][number].by_seed

    first = numbers(0)
    kinds = {() if found is None else found[1] for found in asked}
    if len(kinds) != 1 or len(first) < 2 or first.keys() != test.by_seed.keys():
        return None
    prompts = len(strata := kinds.pop())
    values = np.array([list(numbers(prompt).values()) for prompt in range(prompts)]).T
    border = getattr(rule, "difference", 0.0) if isinstance(rule, spec.Close) else 0.0
    if not np.allclose(values.mean(1), list(test.by_seed.values()), rtol=1e-3, atol=1e-6 + 1e-9 * abs(border)):
        return None  # it is no sum of the prompts' numbers after all, or the files are not of one evaluation
    found = parts(values, strata)
    return (found, prompts) if found and found.seeds + found.rest else None  # without variance nothing is to be split


def _by_prompt(sweep: Sweep, arm: ArmRecord, stage: str, quantity: str) -> tuple[np.ndarray, tuple] | None:
    """Returns a quantity for each test prompt, or for each item of the skills, so that the mean is the quantity; or None.

    Beside it stands the task of each item, or "" for each prompt: the tasks are what they are, whatever items are drawn.
    """
    if not sweep.finished(arm, stage):
        return None
    name, _, part = quantity.partition("/")
    if name == "skills":
        rows = sweep.history(arm, stage, "skills.jsonl")
        rows = [row for row in rows if part in ("mean", row.get("task"))]
        tasks = tuple(str(row.get("task")) for row in rows)
        weights = [len(rows) / (len(set(tasks)) * tasks.count(task)) for task in tasks]
        values = [row["score"] * weight if is_number(row.get("score")) else None for row, weight in zip(rows, weights)]
    else:
        rows = sweep.history(arm, stage, "samples.jsonl")
        if name == "gold":
            values = [(row.get("gold") or {}).get(part) for row in rows]
        else:
            values = [row.get(_FIELDS.get(quantity, "")) for row in rows]
        values = [float(value) if isinstance(value, bool) else value for value in values]
        tasks = ("",) * len(rows)
    return (np.array(values, float), tasks) if values and all(map(is_number, values)) else None
