"""The part of a run's report on its reward model."""

import statistics
from collections.abc import Sequence

from rlhf_jax.report.record import SPLITS, Record
from rlhf_jax.report.tables import Quantity, TextTable
from rlhf_jax.runtime.markdown import cell
from rlhf_jax.statistics import mean_over_seeds

_MOST_GROUPS = 12  # groups of labelers that are named one by one
NO_ACCURACY = "No validation ranking says that one completion is better than another, so there is no accuracy."


def reward_table(record: Record) -> TextTable:
    """Returns the table of the reward model's results, by the labelers of the rankings."""
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
    if any("above_bag_of_words" in facts for facts in splits.values()):
        rows.append(
            [
                "accuracy above that of the bag of words (points)",
                *(_percent(facts.get("above_bag_of_words")) for facts in splits.values()),
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
    return TextTable(["", *(SPLITS.get(name, name) for name in splits)], rows)


def reward_table_over_runs(records: Sequence[Record]) -> TextTable | None:
    """Returns the table of the reward models of several runs on the pairs of training labelers, a row for each run.

    The last row has their means, with Student t intervals over the runs. None where a run has no bag of words beside
    its reward model.
    """
    rows, found = [], []
    for record in records:
        facts, labelers = record.reward_splits.get("valid", {}), (record.reward or {}).get("labelers", {})
        if "above_bag_of_words" not in facts:
            return None
        ceiling = (labelers.get("folds", {}).get(labelers.get("held_out_group")) or {}).get("in_group")
        model, words = facts["accuracy"]["value"], facts["bag_of_words_accuracy"]["value"]
        share = (model - words) / (ceiling - words) if ceiling and ceiling > words else None
        shown = [facts["accuracy"], facts["bag_of_words_accuracy"], facts["above_bag_of_words"], ceiling, share]
        rows.append([record.path.name, *map(_percent, shown)])
        found.append((model, words, model - words, ceiling, share))
    means = [
        "–" if None in values else _percent(mean_over_seeds(values)._asdict()) for values in map(list, zip(*found))
    ]
    head = ["run", "reward model (%)", "bag of words (%)", "difference", "ceiling (%)", "share of the way (%)"]
    return TextTable(head, [*rows, ["mean", *means]])


def reward_sections(record: Record) -> list[str]:
    """Returns the table by split, the accuracy by group of labelers, and the limits that the labelers set."""
    splits, labelers = record.reward_splits, record.reward.get("labelers", {})
    said = (
        []
        if record.reward.get("demonstrations", 1)
        else [
            "There were no demonstrations whose mean score could be set to 0, so only differences of scores mean "
            "anything."
        ]
    )
    if not splits:
        return [NO_ACCURACY, *said]
    sections = [reward_table(record).markdown(), *said]
    if deciders := next((facts["by_decider"] for facts in splits.values() if "by_decider" in facts), None):
        sections += [_DECIDED, decider_table(deciders).markdown()]
    groups = {group: value for facts in splits.values() for group, value in facts.get("by_group", {}).items() if group}
    if len(groups) > _MOST_GROUPS:  # for instance if each question is a group
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
            f"Accuracy on training labelers less that on held-out labelers: {found} points. For a judge who knows what "
            f"the mean training labeler wants, it is {_percent(gap['planted'])} points."
        )
    known = {
        "agreement_in_group": "two labelers of one group agree on",
        "agreement_across": "two of different groups on",
        "ceiling_each_labeler_known": "a judge who knew each labeler would be right on",
    }
    stated = [f"{text} {_percent(labelers[name])} %" for name, text in known.items() if name in labelers]
    return sections + (["Of the validation pairs, " + "; ".join(stated) + "."] if stated else [])


_DECIDED = (
    "Accuracy by what decides between the two completions of a pair: the part of the gold labeler's total in which they "
    "differ most. The last column is the accuracy of a judge who knows the mean utility of the training labelers."
)
_DECIDERS = {
    "topic": "one answers another prompt",
    "fact": "a statement is false",
    "task": "how far the task is done",
    "rude": "rude words",
    "constraint": "a constraint of the prompt",
    "length": "rambling, repeated or cut off",
    "taste": "taste alone",
}


def decider_table(deciders: list[dict]) -> TextTable:
    """Returns the table of accuracies by kind of pair, from `by_decider` of a reward model's evaluation (`evaluate.deciders`)."""
    judges = {
        "accuracy": "reward model (%)",
        "bag_of_words": "bag of words (%)",
        "ceiling": "what the labelers' noise allows (%)",
    }
    rows = [
        [
            _DECIDERS.get(found["decider"], found["decider"]),
            _plain(found["pairs"]),
            *(_percent(found.get(name)) for name in judges),
        ]
        for found in deciders
    ]
    return TextTable(["what decides", "pairs", *judges.values()], rows)


def _percent(value) -> str:
    """Returns an estimate with its interval, or a number, in percent; None is a dash."""
    if value is not None and not isinstance(value, dict):
        value = {"value": value, "low": None, "high": None}
    return Quantity("", "", 1, 100).show(value)


def _plain(value) -> str:
    """Returns a number as text; None is a dash."""
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
