"""The tables of a sweep: means over seeds, differences taken within each seed, and the same numbers as CSV."""

import dataclasses

from rlhf_jax.report import spec
from rlhf_jax.report.names import shown
from rlhf_jax.report.record import label
from rlhf_jax.report.sweep_report import Row, Sweep
from rlhf_jax.report.tables import QUANTITIES, REWARD_QUANTITIES, TextTable, csv_text, has_ends, quantity_of
from rlhf_jax.statistics import mean_over_seeds

_MAIN = tuple(quantity.name for quantity in QUANTITIES if not quantity.title.startswith(" "))  # not the parts of others


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A declared table with its numbers.

    Attributes:
      declared: the declaration.
      means: the means over seeds.
      differences: the differences to the baseline; None without a baseline, or without a setting to compare with it.
      baseline: name of the baseline, or "".
      wide: the same numbers as CSV, with a line for each setting and stage.
    """

    declared: spec.Table
    means: TextTable
    differences: TextTable | None
    baseline: str
    wide: str


def tables_of(sweep: Sweep) -> list[Drawn]:
    """Returns the tables that the experiment file declares, or else the default tables."""
    return [draw(sweep, table) for table in sweep.declared.tables or default_tables(sweep)]


def draw(sweep: Sweep, table: spec.Table) -> Drawn:
    """Returns a table with its numbers.

    A quantity that no arm has gets no column, and a stage that all settings share gets one row.
    """
    settings = sweep.select(table.where)
    baseline, called = sweep.baseline(table.baseline), sweep.names(settings)
    rows = [(setting, stage) for setting in settings for stage in table.stages]
    values = {
        (setting, stage, name): sweep.by_seed(stage, [setting], name)
        for setting, stage in {*rows, *((baseline, stage) for stage in table.stages)}
        if setting is not None
        for name in table.quantities
    }
    names = [name for name in table.quantities if any(values[setting, stage, name] for setting, stage in rows)]
    heads = ["setting", *["stage"] * (len(table.stages) > 1), *(sweep.quantity(name).title for name in names)]
    words = len(heads) - len(names)
    shared = [
        stage
        for stage in table.stages
        if _shared([[values[setting, stage, name] for name in names] for setting in settings])
    ]

    def line(setting, stage, cells):
        """Returns a row of text; the setting None stands for all."""
        return [called.get(setting, "all"), *[label(stage)] * (words > 1), *cells]

    means = [
        line(None, stage, [_mean(sweep, settings, name, values[settings[0], stage, name]) for name in names])
        for stage in shared
    ]
    means += [
        line(setting, stage, [_mean(sweep, [setting], name, values[setting, stage, name]) for name in names])
        for setting, stage in rows
        if stage not in shared
    ]
    compared = (
        {
            (setting, stage, name): _paired(values[setting, stage, name], values[baseline, stage, name])
            for setting, stage in rows
            for name in names
        }
        if baseline
        else {}
    )
    differences = [
        line(setting, stage, [_difference(name, compared[setting, stage, name]) for name in names])
        for setting, stage in rows
        if baseline and setting != baseline and stage not in shared
    ]
    return Drawn(
        table,
        TextTable(heads, means, words),
        TextTable(heads, differences, words) if differences and names else None,
        called.get(baseline, baseline.name) if baseline else "",
        _wide(sweep, rows, names, values, compared),
    )


def long_csv(rows: list[Row]) -> str:
    """Returns rows (see Sweep.rows) as CSV, one number a line."""
    columns = ["arm", "setting", "seed", "status", "reason", "stage", "quantity", "value"]
    return csv_text(columns, [[getattr(row, name) for name in columns] for row in rows])


def estimate(by_seed: dict[int, float]) -> dict | None:
    """Returns the mean {value, low, high} over seeds, or None without a seed."""
    return mean_over_seeds(list(by_seed.values()))._asdict() if by_seed else None


def _shared(values) -> bool:
    """Whether several settings have the same numbers of a stage for each seed, as if it was computed once for all."""
    return len(values) > 1 and any(values[0]) and all(one == values[0] for one in values)


def _mean(sweep, settings, name, by_seed) -> str:
    """Returns the cell of a mean; it says how many seeds have the number if not all do."""
    arms = [arm for arm in sweep.arms if arm.setting in settings]
    if not by_seed:  # the cell says why, if all arms agree on that
        states = {arm.status for arm in arms}
        return states.pop() if len(states) == 1 and states != {"done"} else quantity_of(name).show(None)
    text = quantity_of(name).show(estimate(by_seed))
    seeds = len({arm.seed for arm in arms})
    return text if len(by_seed) == seeds else f"{text} ({len(by_seed)} of {seeds})"


def _paired(values, baseline) -> dict[int, float]:
    """Returns the differences to the baseline by seed."""
    return {seed: value - baseline[seed] for seed, value in values.items() if seed in baseline}


def _difference(name, by_seed) -> str:
    """Returns the cell of a difference, with its sign."""
    return quantity_of(name).show(estimate(by_seed), sign=True)


def _wide(sweep, rows, names, values, compared) -> str:
    """Returns a table as CSV, with the swept fields, the stage, and the numbers behind each mean and difference."""
    columns = [*sweep.swept, "stage"]
    for name in names:
        columns += [f"{name} {part}" for part in ("mean", "low", "high", "seeds")]
        columns += [f"{name} difference {part}" for part in ("mean", "low", "high", "seeds")] if compared else []
    lines = []
    for setting, stage in rows:
        line = [_field(sweep.level(setting, name)) for name in sweep.swept] + [stage]
        for name in names:
            line += _numbers(values[setting, stage, name])
            line += _numbers(compared[setting, stage, name]) if compared else []
        lines.append(line)
    return csv_text(columns, lines)


def _numbers(by_seed) -> list:
    """Returns the mean, the ends of its interval and the number of seeds; an infinite end is an empty field."""
    found = estimate(by_seed)
    ends = [found["low"], found["high"]] if found and has_ends(found) else [None, None]
    return [found and found["value"], *ends, len(by_seed)]


def _field(value):
    """Returns the value of a swept field for CSV."""
    return shown(value) if isinstance(value, (list, tuple)) else value


def default_tables(sweep: Sweep) -> list[spec.Table]:
    """Returns a table of the last policy, and one of the reward model if settings differ in it.

    Both show all settings: the policy by its main quantities, the reward model by its accuracy and calibration.
    """
    found = []
    if policies := sweep.policies():
        found.append(spec.Table(stages=(policies[-1],), quantities=_MAIN, title=label(policies[-1])))
    for stage in sweep.stages:  # a reward model that all arms of a seed share compares no settings
        reward = [
            {
                arm.seed: value
                for arm in sweep.arms
                if arm.setting == setting and (value := sweep.value(arm, stage, "valid/accuracy")) is not None
            }
            for setting in sweep.settings
        ]
        if any(reward) and (not policies or any(one != reward[0] for one in reward)):
            names = tuple(quantity.name for quantity in REWARD_QUANTITIES)
            found.append(spec.Table(stages=(stage,), quantities=names, title=label(stage)))
    return found
