"""The report of one run: report.md and figures/ inside its directory.

Everything is read from the files of the run; what a run does not have is left out.
"""

import json
import math
import statistics

import rich.console
from rich.text import Text

from rlhf_jax.evaluate import skills
from rlhf_jax.metrics import lost_steps
from rlhf_jax.report.figures import of_run as figures
from rlhf_jax.report.record import SPLITS, Record, estimate_of, label
from rlhf_jax.report.tables import QUANTITIES, Quantity, Table
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import write_text
from rlhf_jax.runtime.markdown import cell, image, json_code
from rlhf_jax.runtime.terminal import visible
from rlhf_jax.statistics import paired_difference, ratio

_SAMPLES = 8
_SHOWN_CHARACTERS = 280
_MOST_GROUPS = 12  # named one by one


def write(path) -> rich.console.Group:
    """Writes report.md and figures/ into a run's directory.

    Returns:
        The table of policies and what else belongs on a terminal, for rich's `print`.

    Raises:
        InputError: the path is no run, or cannot be written.
    """
    record = Record.load(path)
    record.read_all()  # before anything is written
    drawn = figures.draw_run(record, record.path / "figures")
    policies, weights, tax = policy_table(record), weights_lines(record), tax_lines(record)
    sections = [
        f"# Report of {cell(record.path.name)}",
        "± is half of a 95 % interval over prompts, and over few-shot items for skills: Student's t for means, Wilson's "
        "for shares and for scores between 0 and 1. A mean without ± is of equal numbers. Win rate is "
        f"by {_judge(record)}, on the same prompts; KL is log π − log π of SFT of the sampled "
        "tokens, summed over the completion.",
        "## Policies",
        policies.markdown() if record.evaluations else _NO_POLICY,
    ]
    sections += map(cell, weights)
    if tax:
        sections += ["## Alignment tax", "\n".join(f"- {cell(line)}" for line in tax)]
    if record.reward:
        sections += ["## Reward model", *_reward_sections(record)]
    if drawn:
        sections += [
            "## Figures",
            *(f"{image(name, f'figures/{name}')}\n\n*{cell(caption)}*" for name, caption in drawn),
        ]
    if samples := sample_table(record):
        sections += [
            "## Completions",
            "Sampled at temperature "
            f"{next(iter(record.evaluations.values()))['temperature']:g}; the gold score "
            "(or, without one, the reward score) in brackets.",
            samples.markdown(),
        ]
    if record.data["stages"]:
        sections += ["## Data", *_data_sections(record)]
    sections += ["## How it was made", *_made_sections(record)]
    write_text(record.path / "report.md", "\n\n".join(sections) + "\n")
    lines = [*weights, *tax, f"Figures and more: {record.path / 'report.md'}"]
    if not record.evaluations and not record.reward_splits:
        lines.insert(0, _NO_ACCURACY if record.reward else _NO_POLICY)
        return rich.console.Group(*(Text(visible(line)) for line in lines))
    shown = policies if record.evaluations else reward_table(record)  # of a reward model alone: its accuracy
    return rich.console.Group(
        shown.rich(f"{record.path.name}, ± half of a 95 % interval"), *(Text(visible(line)) for line in lines)
    )


_NO_POLICY = "No policy is evaluated yet."
_NO_ACCURACY = "No validation ranking says that one completion is better than another, so there is no accuracy."


def policy_table(record: Record) -> Table:
    """Quantities down, policies across; quantities that no policy has are left out."""
    rows = []
    for quantity in QUANTITIES:
        found = [record.estimate(stage, quantity.name) for stage in record.evaluations]
        if any(found):
            rows.append([quantity.title, *map(quantity.show, found)])
    return Table(["", *map(label, record.evaluations)], rows)


def weights_lines(record: Record) -> list[str]:
    """Which weights of a PPO stage are its policy, and what the others reach on the same prompts."""
    names = {"ema": "the moving average of its parameters", "params": "its last parameters"}
    lines = []
    for stage, found in record.evaluations.items():
        if others := found.get("other_weights"):
            shown = [
                f"{quantity.title} {quantity.show(estimate)}"
                for quantity in QUANTITIES
                if quantity.name in ("gold/total", "score", "kl")
                and (estimate := estimate_of(others["estimates"], quantity.name))
            ]
            own = {"ema": "params", "params": "ema"}[others["weights"]]
            lines.append(
                f"The policy of {label(stage)} is {names[own]}; {names[others['weights']]}: {', '.join(shown)}."
            )
    return lines


def tax_lines(record: Record) -> list[str]:
    """What PPO lost of SFT's skills, and what share of it each PPO-ptx policy kept.

    Differences are paired by few-shot item.
    """
    rows = {stage: found for stage, found in record.rows("skills.jsonl").items() if found}
    if record.reference not in rows or record.plain not in rows:
        return []
    tasks = {stage: [row["task"] for row in found] for stage, found in rows.items()}
    for stage in (record.plain, *record.mixed):
        if stage in tasks and tasks[stage] != tasks[record.reference]:
            files = [record.path / name / "skills.jsonl" for name in (stage, record.reference)]
            raise InputError(f"{files[0]} is of other few-shot items than {files[1]}: one of them is not of this run")
    scores = {stage: skills.scores_and_weights(found) for stage, found in rows.items()}
    sft, weights = scores[record.reference]
    ppo, _ = scores[record.plain]
    lines = [
        f"{label(record.plain)} lost {_points(paired_difference(sft, ppo, weights))} of SFT's "
        f"retained skills{_loss_change(record, record.plain)}."
    ]
    for stage in record.mixed:
        if stage in rows:
            ptx, _ = scores[stage]
            line = f"{label(stage)} lost {_points(paired_difference(sft, ptx, weights))}{_loss_change(record, stage)}"
            if weights @ (sft - ppo) > 0:
                line += f": it recovered {_recovered(ratio(ptx - ppo, sft - ppo, weights))}"
            lines.append(f"{line}.")
    return lines


def sample_table(record: Record) -> Table | None:
    """A few test prompts, of as many categories as possible, with the completions side by side."""
    samples = record.rows("samples.jsonl")
    if not samples:
        return None
    by_index = [{row["index"]: row for row in rows} for rows in samples.values()]
    shared = [row for row in next(iter(samples.values())) if all(row["index"] in rows for rows in by_index)]
    rank = {}  # of a row within its category: firsts of all categories come before seconds
    counts = {}
    for row in shared:
        rank[row["index"]] = counts[row["category"]] = counts.get(row["category"], 0) + 1
    chosen = sorted(shared, key=lambda row: rank[row["index"]])[:_SAMPLES]
    return Table(
        ["prompt", *map(label, samples)],
        [[_shorten(row["prompt"]), *(_judged(rows[row["index"]]) for rows in by_index)] for row in chosen],
        words=1 + len(samples),
    )


def _judge(record):
    kinds = {found["win_rate_by"] for found in record.evaluations.values()}
    return "reward score (this text has no gold score)" if kinds == {"score"} else "gold score"


def _points(estimate) -> str:
    half = 50 * (estimate.high - estimate.low)
    return f"{100 * estimate.value:.1f} ± {half:.1f} points"


def _recovered(share) -> str:
    if math.isinf(share.low):
        return f"{100 * share.value:.0f} % of the loss; these items are too few to give that share an interval"
    return f"{100 * share.value:.0f} % [{100 * share.low:.0f}, {100 * share.high:.0f}] of the loss"


def _loss_change(record, stage) -> str:
    losses = [record.estimate(name, "valid_loss") for name in (stage, record.reference)]
    if None in losses:
        return ""
    return f" (held-out loss {losses[0]['value'] - losses[1]['value']:+.3f} nats per token)"


def _judged(row) -> str:
    worth = row["gold"]["total"] if row["gold"] else row["score"]
    text = _shorten(row["completion"]) + ("" if row["finished"] else " …")
    return text if worth is None else f"{text} ({worth:.2f})"


def _shorten(text: str) -> str:
    text = text.strip()
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 2] + " …"


def _data_sections(record: Record) -> list[str]:
    """What was read from files, then what was too long for each stage."""
    files = [
        [name, str(read["kept"]), str(len(read["skipped"])), str(read["all_tied"])]
        for name, read in record.data["files"].items()
    ]
    lengths = [
        [label(stage), records, *(str(found.get(name, 0)) for name in _FATES)]
        for stage, reports in record.data["stages"].items()
        for records, found in reports.items()
    ]
    tables = [
        Table(
            ["stage", "records", "given", "dropped", "prompt cut left", "cut", "repeats left out", "longest (tokens)"],
            lengths,
            words=2,
        )
    ]
    if files:
        tables.insert(0, Table(["file", "rows", "bad rows skipped", "rankings without a preference"], files))
    if splits := record.data.get("splits"):
        names = ("train", "valid", "test", "heldout")
        tables.append(
            Table(
                ["rows", *names, "near-duplicate prompts", "left out"],
                [
                    [
                        kind,
                        *(str(found["rows"].get(name, 0)) for name in names),
                        str(found["near_duplicates"]["in_clusters"]),
                        "; ".join(f"{count}: {reason}" for reason, count in found["left_out"].items()) or "–",
                    ]
                    for kind, found in splits.items()
                ],
            )
        )
    if mixed := record.data.get("epochs"):
        tables.append(
            Table(
                ["stage", "source", "epochs"],
                [
                    [label(stage), f"{records}: {name}", f"{epochs:.3g}"]
                    for stage, kinds in mixed.items()
                    for records, found in kinds.items()
                    for name, epochs in found.items()
                ],
                words=2,
            )
        )
    if packed := record.data.get("packing"):
        tables.append(
            Table(
                ["packed", "rows of a batch", "padding (%)", "without packing"],
                [
                    [
                        label(stage),
                        str(found["rows_after"]),
                        f"{100 * found['padding_after']:.1f}",
                        f"{found['rows_before']} rows, {100 * found['padding_before']:.1f} %",
                    ]
                    for stage, kinds in packed.items()
                    for found in kinds.values()
                ],
            )
        )
    return [table.markdown() for table in tables]


_FATES = ("given", "dropped", "prompts_cut", "cut", "repeats", "longest")


def reward_table(record: Record) -> Table:
    """What the reward model reached, by the labelers of the rankings."""
    splits, labelers = record.reward_splits, record.reward.get("labelers", {})
    fold = labelers.get("folds", {}).get(labelers.get("held_out_group")) or {}
    ceilings = {"valid": fold.get("in_group"), "heldout": fold.get("held_out")}
    rows = [["accuracy (%)", *(_percent(facts["accuracy"]) for facts in splits.values())]]
    if any(ceilings.get(name) for name in splits):
        rows.append(
            ["accuracy that the labelers' noise allows (%)", *(_percent(ceilings.get(name)) for name in splits)]
        )
    if any("bag_of_words_accuracy" in facts for facts in splits.values()):
        rows.append(
            [
                "accuracy of a bag of words (%)",
                *(_percent(facts.get("bag_of_words_accuracy")) for facts in splits.values()),
            ]
        )
    rows += [
        [title, *(_plain(facts.get(name)) for facts in splits.values())]
        for name, title in {
            "log_loss": "log-loss (nats per pair)",
            "ece": "expected calibration error",
            "pairs": "pairs",
            "rankings": "rankings",
            "prompts": "prompts",
        }.items()
        if any(name in facts for facts in splits.values())
    ]
    return Table(["", *(SPLITS.get(name, name) for name in splits)], rows)


def _reward_sections(record: Record) -> list[str]:
    """The table by split, then accuracy by labeler group, then what the labelers allow."""
    splits, labelers = record.reward_splits, record.reward.get("labelers", {})
    said = (
        []
        if record.reward.get("demonstrations", 1)
        else [
            "There were no demonstrations that could average 0: a score has no zero of its own, only differences count."
        ]
    )
    if not splits:
        return [_NO_ACCURACY, *said]
    sections = [reward_table(record).markdown(), *said]
    groups = {group: value for facts in splits.values() for group, value in facts.get("by_group", {}).items() if group}
    if len(groups) > _MOST_GROUPS:  # such as a group for each question
        low, *_, high = sorted(groups.values())
        sections.append(
            f"Accuracy in {len(groups)} groups: {_percent(low)} to {_percent(high)} %, "
            f"median {_percent(statistics.median(groups.values()))} %."
        )
    elif groups:
        sections.append(
            "Accuracy by group of labelers (%): "
            + ", ".join(f"{cell(group)} {_percent(value)}" for group, value in groups.items())
            + "."
        )
    if gap := record.reward.get("labeler_gap"):
        found = _percent({"low": None, "high": None} | gap)  # older runs have no interval
        sections.append(
            f"Accuracy on training labelers less that on held-out labelers: {found} points. Of a judge who knows what "
            f"the mean training labeler wants: {_percent(gap['planted'])} points."
        )
    known = {
        "agreement_in_group": "two labelers of one group agree on",
        "agreement_across": "two of different groups on",
        "ceiling_each_labeler_known": "a judge who knew each labeler would be right on",
    }
    stated = [f"{text} {_percent(labelers[name])} %" for name, text in known.items() if name in labelers]
    return sections + (["Of the validation pairs, " + "; ".join(stated) + "."] if stated else [])


def _percent(value) -> str:
    """Of an estimate with its interval, of a number, or of None."""
    if value is not None and not isinstance(value, dict):
        value = {"value": value, "low": None, "high": None}
    return Quantity("", "", 1, 100).show(value)


def _plain(value) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _made_sections(record: Record) -> list[str]:
    """Seed, overrides, time and memory by stage, versions."""
    model = ", ".join(
        f"{name} {record.config['model'][name]}"
        for name in ("num_layers", "embed_dim", "num_heads")
        if name in record.config.get("model", {})
    )
    facts = [
        cell(f"seed: {record.config.get('seed')}"),
        cell(f"model: {model}"),
        f"overrides: {json_code(record.overrides) if record.overrides else 'none'}",
    ]
    hardware = {done["hardware"]: None for done in record.done.values() if "hardware" in done}
    versions = {json.dumps(done["versions"]): done["versions"] for done in record.done.values() if "versions" in done}
    facts += [cell(f"hardware: {name}") for name in hardware]
    facts += [
        cell("versions: " + ", ".join(f"{name} {number}" for name, number in found.items()))
        for found in versions.values()
    ]
    lost = {stage: lost_steps(rows, max(row["step"] for row in rows)) for stage, rows in record.curves.items() if rows}
    facts += [cell(f"{stage}/metrics.jsonl has lost the lines of {steps}") for stage, steps in lost.items() if steps]
    rows = [
        [
            stage,
            _duration(done["seconds"]),
            _duration(done.get("evaluation_seconds")),
            _memory(done),
            done["finished_at"],
        ]
        for stage, done in record.done.items()
    ]
    seconds = [done["seconds"] + done.get("evaluation_seconds", 0) for done in record.done.values()]
    rows.append(["all", _duration(sum(seconds)), "", "", ""])
    columns = ["stage", "time", "evaluation", "peak memory so far", "finished"]
    return ["\n".join(f"- {fact}" for fact in facts), Table(columns, rows).markdown()]


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def _memory(done) -> str:
    return f"{done['peak_memory_gib']:.2f} GiB" if "peak_memory_gib" in done else "–"
