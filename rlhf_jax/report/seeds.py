"""The report of several runs that differ in their seed: means, Student t intervals and differences between policies.

A difference is taken within each run first, so that what the policies of a run have in common cancels. A share of the
alignment tax is the ratio of two means of differences.
"""

import math
import os
import pathlib

import numpy as np
import rich.console
from rich.text import Text

from rlhf_jax.report import run_reward
from rlhf_jax.report.figures import of_run as figures
from rlhf_jax.report.record import Record, label, reference_label
from rlhf_jax.report.tables import QUANTITIES, REFERENCE, TextTable
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import write_text
from rlhf_jax.runtime.markdown import cell, image
from rlhf_jax.runtime.terminal import visible
from rlhf_jax.statistics import mean_over_seeds, ratio

_PANELS = {
    "gold/total": "gold score",
    "win_rate": f"win rate against {REFERENCE} (%)",
    "skills/mean": "retained skills (%)",
    "valid_loss": "held-out loss (nats per token)",
}


def write(paths, out) -> rich.console.Group:
    """Writes the tables over runs to `out`, and their figure beside it.

    Returns:
      The two tables, for rich's `print`.

    Raises:
      InputError: a path is no run or is given twice, or no policy is evaluated in all runs.
    """
    real = [os.path.realpath(path) for path in paths]
    if again := [path for path, place in zip(paths, real) if real.count(place) > 1]:
        raise InputError(f"{again[0]} is given more than once; an interval over runs needs different runs")
    records = [Record.load(path) for path in paths]
    stages = [stage for stage in records[0].evaluations if all(stage in record.evaluations for record in records)]
    if not stages:
        raise InputError(f"{', '.join(map(str, paths))}: no policy is evaluated in all of them")
    out = pathlib.Path(out)
    means, differences = mean_table(records, stages), difference_table(records, stages)
    figure = out.parent.resolve() / f"{out.stem}.png"  # the folder that was asked for, even if a link leads to it
    reference = _reference(records)
    panels = {
        title.replace(REFERENCE, reference): {
            stage: [100 * value if "%" in title else value for value in values]
            for stage in stages
            if None not in (values := _values(records, stage, name))
        }
        for name, title in _PANELS.items()
    }
    figures.draw_seeds({title: found for title, found in panels.items() if found}, stages, figure)
    interval = (
        f"± is a 95 % Student t interval over {len(records)} runs, and the range of a share of the tax is Fieller's"
    )
    runs = [f"- {cell(os.fspath(record.path))} (seed {cell(record.config.get('seed'))})" for record in records]
    write_text(
        out,
        "\n\n".join(
            [
                f"# {len(records)} runs",
                f"{interval}.",
                means.markdown(),
                "## Differences within a run",
                differences.markdown(),
                image("by policy", figure.name),
                "*Small points: runs, joined over policies; large ones: their means with intervals.*",
                *_reward_models(records),
                "## Runs",
                "\n".join(runs),
            ]
        )
        + "\n",
    )
    return rich.console.Group(
        means.rich(interval), differences.rich("differences within a run"), Text(visible(f"written to {out}"))
    )


def _reward_models(records) -> list[str]:
    """Returns the section on the reward models of the runs; nothing where they are not measured beside a bag of words."""
    table = run_reward.reward_table_over_runs(records)
    if table is None:
        return []
    said = (
        "Accuracy on validation pairs of the training labelers; the interval of a run is over prompts, that of the mean over "
        "runs. The ceiling is the accuracy of a judge who knows the mean utility of these labelers, and the last column says "
        "how much of the way from the bag of words to the ceiling the reward model has gone."
    )
    return ["## Reward models", table.markdown(), said]


def mean_table(records, stages) -> TextTable:
    """Returns the table of means over runs, of quantities by policy."""
    rows = []
    for quantity in QUANTITIES:
        found = [_values(records, stage, quantity.name) for stage in stages]
        if any(None not in values for values in found):
            rows.append(
                [
                    quantity.against(_reference(records)).title,
                    *("–" if None in values else quantity.show(mean_over_seeds(values)._asdict()) for values in found),
                ]
            )
    return TextTable(["", *map(label, stages)], rows)


def _reference(records) -> str:
    """Returns the label of what KL and win rates of all runs refer to."""
    return reference_label(found.get("reference") for record in records for found in record.evaluations.values())


def difference_table(records, stages) -> TextTable:
    """Returns the table of differences between stages: the mean, and the value of each run."""
    base, sft, plain = records[0].base, records[0].reference, records[0].plain
    mixed = [stage for stage in records[0].mixed if stage in stages]
    names = ("gold/helpful", *_PANELS)
    helpful, gold, wins, skill, loss = (next(one for one in QUANTITIES if one.name == name) for name in names)
    rows = []

    def add(title, quantity, terms, less=0.0):
        """Adds a row: the sum of factor x value over `terms` (stage -> factor), less a constant."""
        by_stage = {stage: _values(records, stage, quantity.name) for stage in terms if stage in stages}
        if len(by_stage) == len(terms) and not any(None in values for values in by_stage.values()):
            _append(
                rows,
                title,
                quantity,
                [
                    sum(factor * by_stage[stage][n] for stage, factor in terms.items()) - less
                    for n in range(len(records))
                ],
            )

    add("gold: SFT − base", gold, {sft: 1, base: -1})
    for stage in filter(None, [plain, *mixed]):
        add(f"gold: {label(stage)} − SFT", gold, {stage: 1, sft: -1})
    for stage in mixed:
        add(f"gold: {label(stage)} − {label(plain or '')}", gold, {stage: 1, plain: -1})
    for stage in filter(None, [plain, *mixed]):
        add(f"helpful: {label(stage)} − SFT", helpful, {stage: 1, sft: -1})
    for stage in filter(None, [plain, *mixed]):
        add(f"win rate of {label(stage)} − 50 (%)", wins, {stage: 1}, less=0.5)
    for quantity, name in ((skill, "skills (points)"), (loss, "held-out loss")):
        for stage in filter(None, [plain, *mixed]):
            add(f"{name}: {label(stage)} − SFT", quantity, {stage: 1, sft: -1})
        for stage in mixed:
            add(f"{name}: {label(stage)} − midpoint of PPO and SFT", quantity, {stage: 1, plain: -0.5, sft: -0.5})
            values = [_values(records, key, quantity.name) for key in (sft, plain, stage) if key in stages]
            if len(values) == 3 and not any(None in by_run for by_run in values):
                rows.append([f"{name}: share of the tax recovered by {label(stage)} (%)", *_recovered(*values)])
    return TextTable(["", "mean", *(record.path.name for record in records)], rows)


def _append(rows, title, quantity, values) -> None:
    """Adds the row of a number that each run has."""
    shown = [f"{quantity.scale * value:+.{quantity.digits}f}" for value in values]
    rows.append([title, quantity.show(mean_over_seeds(values)._asdict()), *shown])


def _recovered(sft, plain, mixed) -> list[str]:
    """Returns the share of the alignment tax that is won back: the ratio of the means, and the share of each run.

    The interval is Fieller's. The mean of the runs' shares would hang on the runs whose tax is nearest to 0.
    """
    won, lost = np.subtract(mixed, plain), np.subtract(sft, plain)
    value, low, high = (100 * number for number in ratio(won, lost))
    over_runs = (
        "–" if math.isnan(value) else f"{value:.0f}" if math.isinf(low) else f"{value:.0f} ({low:.0f} to {high:.0f})"
    )
    return [over_runs, *(f"{100 * a / b:+.0f}" if b else "–" for a, b in zip(won, lost))]


def _values(records, stage, name) -> list[float | None]:
    """Returns a quantity of a policy in each run; None for a run without it."""
    found = [record.estimate(stage, name) for record in records]
    return [estimate and estimate["value"] for estimate in found]
