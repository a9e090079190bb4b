"""Two or more runs side by side: what differs in their configs, their estimates, curves, warnings and completions.

Runs that have little in common are shown as far as they have it, and a sentence says what cannot be compared.
"""

import json
import os
import pathlib

import rich.console
from rich.text import Text

from rlhf_jax.fields import registry
from rlhf_jax.report.compared_estimates import Compared
from rlhf_jax.report.figures import of_compared as figures
from rlhf_jax.report.record import Record, label
from rlhf_jax.report.run_policies import judged, of_all_categories, shorten
from rlhf_jax.report.run_progress import progress_of
from rlhf_jax.report.run_training import noted_lines
from rlhf_jax.report.tables import REWARD_QUANTITIES, TextTable
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import own_folder, write_text
from rlhf_jax.runtime.markdown import cell, image
from rlhf_jax.runtime.terminal import visible
from rlhf_jax.runtime.workdir import flatten

_NONE = "No policy is evaluated in all of them yet."
_SAMPLES = 6  # prompts whose completions are shown
_READ = ("data", "tokenizer", "prompt_length", "completion_length", "too_long", "long_completions")


def write(paths, out) -> rich.console.Group:
    """Writes the page of several runs to `out`, and its figures into the folder of the same name beside it.

    Returns:
      The part of the page that belongs on a terminal, for rich's `print`.

    Raises:
      InputError: a path is no run or is given twice, there are too many, or the page cannot be written.
    """
    if len(paths) > figures.MOST:
        raise InputError(f"{len(paths)} runs are too many: {figures.MOST} can be told apart in a figure")
    records = {name: Record.load(path) for name, path in _names(paths).items()}
    for record in records.values():
        record.read_all()
    out = pathlib.Path(out)
    stages = _common(records)
    unchanged = _unchanged(records, stages)
    changed = [stage for stage in stages if stage not in unchanged]
    policies = [
        Compared(stage, records, _same(records, _reward_of))
        for stage in changed
        if all(stage in record.evaluations for record in records.values())
    ]
    differing = config_table(records)
    folder = own_folder(out.parent.resolve() / out.stem)
    drawn = figures.draw(records, changed, folder / "figures")
    first, *others = records
    sections = [
        f"# {cell(', '.join(records))}",
        _runs(records).markdown(),
        "## What differs in their configs",
        differing.markdown() if differing.rows else "Nothing differs in the fields of stages that all of them have.",
        "## What cannot be compared",
        "\n".join(f"- {cell(line)}" for line in cautions(records, stages, policies)) or "Nothing.",
        "## Estimates",
        *[f"The same in all of them, and not shown: {cell(', '.join(unchanged))}."] * bool(unchanged),
    ]
    if policies:
        sections += [
            f"Differences are those to {cell(first)}, over the prompts and few-shot items that both have. ± is half of a "
            "95 % interval. A dash says that the rows for a difference are not there, or not of the same kind."
        ]
    for policy in policies:
        sections += [f"### {cell(label(policy.stage))}", policy.table().markdown()]
    if not policies:
        sections += ["No other policy is evaluated in all of them yet." if unchanged else _NONE]
    if (rewards := _rewards(records)) and not _same(records, _reward_of):
        sections += ["### Reward model", rewards.markdown()]
    if drawn:
        sections += ["## Learning curves"]
        sections += [f"{image(name, f'{out.stem}/figures/{name}')}\n\n*{cell(caption)}*" for name, caption in drawn]
    sections += ["## Warnings", _warnings(records)]
    if policies and (samples := _samples(policies[-1])):
        sections += [
            "## Completions",
            f"{cell(label(policies[-1].stage))}, the same prompts. The number in brackets is the gold score, or the reward "
            "score if there is no gold score.",
            samples.markdown(),
        ]
    write_text(out, "\n\n".join(sections) + "\n")
    shown = [
        policy.table().rich(f"{label(policy.stage)}, ± half of a 95 % interval", most=1 + len(records) + len(others))
        for policy in policies[-1:]
    ]
    return rich.console.Group(
        *[differing.rich("what differs in their configs", wrap=True)] * bool(differing.rows),
        *shown,
        *(Text(visible(line)) for line in [*cautions(records, stages, policies), f"written to {out}"]),
    )


def config_table(records: dict[str, Record]) -> TextTable:
    """Returns the table of the fields whose values differ; of a stage that not all runs have there is no field."""
    common, flat = _common(records), {}
    for name, record in records.items():
        sections = {
            field: value
            for field, value in record.config.items()
            if registry.find(value) is None or field in common  # a section of a stage that is not run says nothing
        }
        flat[name] = dict(flatten(sections))
    fields = sorted(set().union(*flat.values()))
    rows = [[field, *(_value(found, field) for found in flat.values())] for field in fields]
    return TextTable(["field", *records], [row for row in rows if len(set(row[1:])) > 1], words=1 + len(records))


def cautions(records: dict[str, Record], stages: list[str], policies: list[Compared]) -> list[str]:
    """Returns sentences on what the runs do not have in common."""
    lines = []
    for name, record in records.items():
        if alone := [stage for stage in record.config["stages"] if stage not in stages]:
            lines.append(f"{name} has stages that not all have, and that are not shown: {', '.join(alone)}.")
        progress = progress_of(record)
        if not progress.finished:
            lines.append(f"{name} is unfinished: {progress.line}.")
    if not _same(records, lambda record: json.dumps([record.config.get(name) for name in _READ], sort_keys=True)):
        lines.append("The runs read other data, or cut it at other lengths: losses and means are of other texts.")
    if not policies:
        return lines
    first, *others = records
    for other in others:
        if not policies[-1].pairs(first, other):
            lines.append(f"{first} and {other} have no test prompt in common, so nothing of them is paired.")
    if (
        any(record.estimate(policies[-1].stage, "score") for record in records.values())
        and not policies[-1].same_reward
    ):
        lines.append(
            "Reward scores are of other reward models in each run: their levels and differences cannot be compared."
        )
    if not _same(records, lambda record: _trained(record, record.reference)):
        lines.append("KL and win rates of each run refer to its own reference, which is not the same in all.")
    return lines


def _names(paths) -> dict[str, str]:
    """Returns the path of each run by a short name: its folder, or the path as it is given where folders are alike."""
    if again := {os.fspath(path) for path in paths if sum(_real(path) == _real(other) for other in paths) > 1}:
        raise InputError(f"{min(again)} is given more than once; a comparison is of different runs")
    folders = [pathlib.Path(path).absolute().name for path in paths]
    return {os.fspath(path) if folders.count(name) > 1 else name: path for path, name in zip(paths, folders)}


def _real(path) -> str:
    """Returns the folder to which a path leads."""
    return os.path.realpath(path)


def _common(records: dict[str, Record]) -> list[str]:
    """Returns the stages that all runs have, of one kind, in the order of the first."""
    first, *others = records.values()
    return [
        stage
        for stage in first.config["stages"]
        if all(stage in other.config["stages"] and other.kind(stage) == first.kind(stage) for other in others)
    ]


def _same(records: dict[str, Record], of) -> bool:
    """Whether something that is known of each run is the same in all."""
    found = [of(record) for record in records.values()]
    return None not in found and len(set(found)) == 1


def _reward_of(record: Record) -> str | None:
    """Returns what tells the reward model of a run's scores from others, or None if nothing does."""
    trained = next((s for s in record.config["stages"] if registry.of(record.config, s).gives == "reward"), None)
    if trained:
        return _trained(record, trained)
    learned = [stage for stage in record.config["stages"] if "reward" in record.config[stage]]
    return json.dumps([record.config[stage]["reward"] for stage in learned]) if learned else None


def _trained(record: Record, stage: str | None) -> str | None:
    """Returns what tells the training of a stage from others: its metrics without times, or None if there are none.

    Trainings whose metrics agree to the bit have given the same weights.
    """
    rows = record.curves.get(stage, []) if stage else []
    values = [{name: value for name, value in row.items() if not name.startswith("time")} for row in rows]
    return json.dumps(values, sort_keys=True) if values else None


def _unchanged(records: dict[str, Record], stages: list[str]) -> list[str]:
    """Returns the stages that were trained alike in all runs, and of whose policies all estimates are the same."""
    return [
        stage
        for stage in stages
        if _same(records, lambda record: _trained(record, stage))
        and _same(
            records, lambda record: json.dumps(record.evaluations.get(stage, {}).get("estimates"), sort_keys=True)
        )
    ]


def _value(found: dict, field: str) -> str:
    """Returns the value of a field as JSON, or a dash."""
    return json.dumps(found[field], ensure_ascii=False) if field in found else "–"


def _runs(records: dict[str, Record]) -> TextTable:
    """Returns the table of the runs: where they are, and how far."""
    rows = [[name, os.fspath(record.path), progress_of(record).line] for name, record in records.items()]
    return TextTable(["run", "directory", "state"], rows, words=3)


def _rewards(records: dict[str, Record]) -> TextTable | None:
    """Returns the table of the reward models, or None without one."""
    rows = []
    for quantity in REWARD_QUANTITIES:
        split, _, name = quantity.name.partition("/")
        found = [record.reward_splits.get(split, {}).get(name) for record in records.values()]
        if any(value is not None for value in found):
            rows.append([quantity.title, *(quantity.show(_estimate(value)) for value in found)])
    return TextTable(["", *records], rows) if rows else None


def _estimate(value) -> dict | None:
    """Returns a number or an estimate as an estimate."""
    return value if value is None or isinstance(value, dict) else {"value": value, "low": None, "high": None}


def _warnings(records: dict[str, Record]) -> str:
    """Returns what the stages of each run warned of, as a list in Markdown."""
    lines = [f"{name}: {line}" for name, record in records.items() for line in noted_lines(record) or ["none."]]
    return "\n".join(f"- {cell(line)}" for line in lines)


def _samples(policy: Compared) -> TextTable | None:
    """Returns the completions of a few prompts that all runs have in common, or None without one."""
    first, *others = policy.records
    by_other = [{id(ours): theirs for ours, theirs in policy.pairs(first, other)} for other in others]
    rows = policy.records[first].rows("samples.jsonl").get(policy.stage, [])
    shared = [row for row in rows if all(id(row) in found for found in by_other)]
    shown = [
        [shorten(row["prompt"]), judged(row), *(judged(found[id(row)]) for found in by_other)]
        for row in of_all_categories(shared, _SAMPLES)
    ]
    return TextTable(["prompt", *policy.records], shown, words=1 + len(policy.records)) if shown else None
