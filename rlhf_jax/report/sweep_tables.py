"""The tables of a sweep: means over seeds, differences paired by seed, and the same numbers as CSV."""

import dataclasses

from rlhf_jax.report import spec
from rlhf_jax.report.record import label
from rlhf_jax.report.sweep_report import Row, Sweep, shown
from rlhf_jax.report.tables import QUANTITIES, REWARD_QUANTITIES, Table, csv_text, has_ends, quantity_of
from rlhf_jax.statistics import mean_over_seeds

_MAIN = tuple(quantity.name for quantity in QUANTITIES if not quantity.title.startswith(" "))  # no parts of another


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A declared table with its numbers: rows of text, and `wide`, one CSV line a setting and stage."""

    declared: spec.Table
    means: Table
    differences: Table | None  # None: no baseline, or nothing to compare with it
    baseline: str  # what differences are to
    wide: str


def tables_of(sweep: Sweep) -> list[Drawn]:
    """Those of the experiment file, else one of all settings for the last policy and one for the reward model."""
    return [draw(sweep, table) for table in sweep.declared.tables or default_tables(sweep)]


def draw(sweep: Sweep, table: spec.Table) -> Drawn:
    """Fills a table. A quantity that no arm has is left out; a stage that all settings share has one row of text."""
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
    heads = ["setting", *["stage"] * (len(table.stages) > 1), *(quantity_of(name).title for name in names)]
    words = len(heads) - len(names)
    shared = [
        stage
        for stage in table.stages
        if _shared([[values[setting, stage, name] for name in names] for setting in settings])
    ]

    def line(setting, stage, cells):
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
        Table(heads, means, words),
        Table(heads, differences, words) if differences and names else None,
        called.get(baseline, baseline.name) if baseline else "",
        _wide(sweep, rows, names, values, compared),
    )


def long_csv(rows: list[Row]) -> str:
    """One number a line; see Sweep.rows."""
    columns = ["arm", "setting", "seed", "status", "reason", "stage", "quantity", "value"]
    return csv_text(columns, [[getattr(row, name) for name in columns] for row in rows])


def estimate(by_seed: dict[int, float]) -> dict | None:
    """{value, low, high} over seeds; None without any."""
    return mean_over_seeds(list(by_seed.values()))._asdict() if by_seed else None


def _shared(values) -> bool:
    """Whether several settings have the same numbers of a stage for each seed, as where it was computed once for all."""
    return len(values) > 1 and any(values[0]) and all(one == values[0] for one in values)


def _mean(sweep, settings, name, by_seed) -> str:
    arms = [arm for arm in sweep.arms if arm.setting in settings]
    if not by_seed:  # why, where all arms agree on it
        states = {arm.status for arm in arms}
        return states.pop() if len(states) == 1 and states != {"done"} else quantity_of(name).show(None)
    text = quantity_of(name).show(estimate(by_seed))
    seeds = len({arm.seed for arm in arms})
    return text if len(by_seed) == seeds else f"{text} ({len(by_seed)} of {seeds})"


def _paired(values, baseline) -> dict[int, float]:
    return {seed: value - baseline[seed] for seed, value in values.items() if seed in baseline}


def _difference(name, by_seed) -> str:
    return quantity_of(name).show(estimate(by_seed), sign=True)


def _wide(sweep, rows, names, values, compared) -> str:
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
    """Mean, low, high, number of seeds; an infinite end is an empty field."""
    found = estimate(by_seed)
    ends = [found["low"], found["high"]] if found and has_ends(found) else [None, None]
    return [found and found["value"], *ends, len(by_seed)]


def _field(value):
    return shown(value) if isinstance(value, (list, tuple)) else value


def default_tables(sweep: Sweep) -> list[spec.Table]:
    """All settings by the main quantities of the last policy, and of the reward model where settings differ in it."""
    found = []
    if policies := sweep.policies():
        found.append(spec.Table(stages=(policies[-1],), quantities=_MAIN, title=label(policies[-1])))
    for stage in sweep.stages:  # a reward model that all arms of a seed share is no table of settings
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
