"""The parts of a run's report on its policies: their table, the alignment tax, and completions side by side."""

import math

from rlhf_jax.evaluate import skills
from rlhf_jax.report.record import Record, estimate_of, label, reference_label
from rlhf_jax.report.tables import QUANTITIES, TextTable
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.statistics import paired_difference, ratio

_SAMPLES = 8  # prompts whose completions are shown
_SHOWN_CHARACTERS = 280  # length of a prompt or completion in the table


def policy_table(record: Record) -> TextTable:
    """Returns the table of quantities by policy, without the quantities that no policy has."""
    rows = []
    for quantity in QUANTITIES:
        found = [record.estimate(stage, quantity.name) for stage in record.evaluations]
        if any(found):
            rows.append([quantity.against(reference(record)).title, *map(quantity.show, found)])
    return TextTable(["", *map(label, record.evaluations)], rows)


def reference(record: Record) -> str:
    """Returns the name of the policy to which win rates and KL refer."""
    return reference_label(found.get("reference") for found in record.evaluations.values())


def reference_lines(record: Record) -> list[str]:
    """Returns sentences on what references that are no stages of the run reach, each once."""
    lines = {}
    for found in record.evaluations.values():
        if estimates := found.get("reference_estimates"):
            shown = [
                f"{quantity.title} {quantity.show(estimate)}"
                for quantity in QUANTITIES
                if quantity.name in ("gold/total", "score", "completion_length", "eos")
                and (estimate := estimate_of(estimates, quantity.name))
            ]
            lines[f"The reference, {label(found['reference'])}, reaches {', '.join(shown)}."] = None
    return list(lines)


def weights_lines(record: Record) -> list[str]:
    """Returns sentences on which weights of a PPO stage are its policy, and on the results of its other weights."""
    names = {"ema": "the moving average of its parameters", "params": "its last parameters"}
    lines = []
    for stage, found in record.evaluations.items():
        if others := found.get("other_weights"):
            shown = [
                f"{quantity.against(reference(record)).title} {quantity.show(estimate)}"
                for quantity in QUANTITIES
                if quantity.name in ("gold/total", "score", "kl")
                and (estimate := estimate_of(others["estimates"], quantity.name))
            ]
            own = names[{"ema": "params", "params": "ema"}[others["weights"]]]
            if record.config.get(stage, {}).get("output") == "best":
                own = "the best of its validations"
            lines.append(
                f"The policy of {label(stage)} is {own}. With {names[others['weights']]} instead, it reaches "
                f"{', '.join(shown)}."
            )
    return lines


def judge(record: Record) -> str:
    """Returns the name of the score that decides wins."""
    kinds = {found["win_rate_by"] for found in record.evaluations.values()}
    return "reward score (this text has no gold score)" if kinds == {"score"} else "gold score"


def tax_lines(record: Record) -> list[str]:
    """Returns sentences on the skills that PPO lost, and on the share that each PPO-ptx policy recovered.

    Differences are taken within each few-shot item.
    """
    rows = {stage: found for stage, found in record.rows("skills.jsonl").items() if found}
    if record.reference not in rows or record.plain not in rows:
        return []
    tasks = {stage: [row["task"] for row in found] for stage, found in rows.items()}
    for stage in (record.plain, *record.mixed):
        if stage in tasks and tasks[stage] != tasks[record.reference]:
            files = [record.path / name / "skills.jsonl" for name in (stage, record.reference)]
            raise InputError(
                f"{files[0]} has other few-shot items than {files[1]}: one of the two belongs to another run"
            )
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


def _points(estimate) -> str:
    """Returns a difference of shares in points, with half of its interval."""
    half = 50 * (estimate.high - estimate.low)
    return f"{100 * estimate.value:.1f} ± {half:.1f} points"


def _recovered(share) -> str:
    """Returns the recovered share of a loss with its interval, if it has one."""
    if math.isinf(share.low):
        return f"{100 * share.value:.0f} % of the loss; these items are too few to give that share an interval"
    return f"{100 * share.value:.0f} % [{100 * share.low:.0f}, {100 * share.high:.0f}] of the loss"


def _loss_change(record, stage) -> str:
    """Returns the change of the held-out loss since SFT, in brackets, or "" if it is unknown."""
    losses = [record.estimate(name, "valid_loss") for name in (stage, record.reference)]
    if None in losses:
        return ""
    return f" (held-out loss {losses[0]['value'] - losses[1]['value']:+.3f} nats per token)"


def sample_table(record: Record) -> TextTable | None:
    """Returns a table of a few test prompts, of as many categories as possible, with all completions side by side."""
    samples = record.rows("samples.jsonl")
    if not samples:
        return None
    by_index = [{row["index"]: row for row in rows} for rows in samples.values()]
    shared = [row for row in next(iter(samples.values())) if all(row["index"] in rows for rows in by_index)]
    return TextTable(
        ["prompt", *map(label, samples)],
        [
            [shorten(row["prompt"]), *(judged(rows[row["index"]]) for rows in by_index)]
            for row in of_all_categories(shared, _SAMPLES)
        ],
        words=1 + len(samples),
    )


def of_all_categories(rows: list[dict], most: int) -> list[dict]:
    """Returns at most `most` rows of samples.jsonl, of as many categories of prompts as possible."""
    rank = {}  # place of a row within its category: the first rows of all categories come before the second ones
    counts = {}
    for number, row in enumerate(rows):
        rank[number] = counts[row["category"]] = counts.get(row["category"], 0) + 1
    return [rows[number] for number in sorted(rank, key=rank.get)[:most]]


def judged(row: dict) -> str:
    """Returns a completion with its score in brackets."""
    worth = row["gold"]["total"] if row["gold"] else row["score"]
    text = shorten(row["completion"]) + ("" if row["finished"] else " …")
    return text if worth is None else f"{text} ({worth:.2f})"


def shorten(text: str) -> str:
    """Returns a text cut to the length that a table shows."""
    text = text.strip()
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 2] + " …"
