"""Estimates of one policy in several runs, with the differences over the prompts that two runs have in common."""

import dataclasses

from rlhf_jax.evaluate import skills
from rlhf_jax.report.record import Record, reference_label
from rlhf_jax.report.tables import QUANTITIES, Quantity, TextTable
from rlhf_jax.statistics import Estimate, mean, paired_difference, win_rate

_OF_A_ROW = {  # quantity -> its value for a row of samples.jsonl
    "score": lambda row: row["score"],
    "kl": lambda row: row.get("kl"),
    "completion_length": lambda row: row.get("length"),
    "eos": lambda row: float(bool(row["finished"])),
}
_PARTS = "gold/"  # parts of the gold score; all but the total are shares
_SHARES = ("eos",)
_SCORES = ("score",)  # quantities that need one reward model for all runs


@dataclasses.dataclass(frozen=True)
class Compared:
    """A policy of several runs.

    Attributes:
      stage: name of the policy's stage.
      records: the runs, by name.
      same_reward: whether one reward model has given the scores of all.
    """

    stage: str
    records: dict[str, Record]
    same_reward: bool

    def table(self) -> TextTable:
        """Returns the estimates of each run, and how far each later run differs from the first."""
        first, *others = self.records
        rows = []
        reference = reference_label(record.evaluations[self.stage].get("reference") for record in self.records.values())
        for quantity in QUANTITIES:
            found = [record.estimate(self.stage, quantity.name) for record in self.records.values()]
            if any(found):
                differences = [self.difference(quantity.name, first, other) for other in others]
                rows.append(
                    [
                        quantity.against(reference).title,
                        *map(quantity.show, found),
                        *(quantity.show(found and found.to_json(), sign=True) for found in differences),
                    ]
                )
        wins = [self.wins(first, other) for other in others]
        if any(wins):
            quantity = Quantity(f"wins against {first} (%)", "", 1, 100)
            shown = [quantity.show(found and found.to_json()) for found in wins]
            rows.append([quantity.title, "–", *shown, *["–"] * len(others)])
        return TextTable(["", *self.records, *(f"{other} − {first}" for other in others)], rows)

    def pairs(self, first: str, second: str) -> list[tuple[dict, dict]]:
        """Returns the completions of the prompts that two runs have in common, as rows of samples.jsonl."""
        ours, theirs = (_by_prompt(self._rows("samples.jsonl", name)) for name in (first, second))
        return [(row, theirs[key]) for key, row in ours.items() if key in theirs]

    def difference(self, quantity: str, first: str, second: str) -> Estimate | None:
        """Returns the mean of second less first over common prompts or few-shot items; None if it is unknown."""
        if quantity.startswith("skills/"):
            return self._skill(quantity.removeprefix("skills/"), first, second)
        if quantity in _SCORES and not self.same_reward:
            return None
        values = [[_value(row, quantity) for row in pair] for pair in self.pairs(first, second)]
        if not values or any(None in pair for pair in values):
            return None
        ours, theirs = zip(*values)
        if quantity in _SHARES or quantity.startswith(_PARTS) and quantity != "gold/total":
            return paired_difference(theirs, ours)
        return mean([b - a for a, b in values])

    def wins(self, first: str, second: str) -> Estimate | None:
        """Returns the share of common prompts on which the second run is better, by gold or by the same reward model."""
        for quantity in ("gold/total", "score"):
            values = [[_value(row, quantity) for row in pair] for pair in self.pairs(first, second)]
            if values and not any(None in pair for pair in values):
                ours, theirs = zip(*values)
                return win_rate(theirs, ours) if quantity not in _SCORES or self.same_reward else None
        return None

    def _skill(self, task: str, first: str, second: str) -> Estimate | None:
        """Returns the difference in a few-shot task, or in the mean of all tasks, over the items of both."""
        ours, theirs = (
            _by_prompt(row for row in self._rows("skills.jsonl", name) if task in ("mean", row["task"]))
            for name in (first, second)
        )
        if not ours or list(ours) != list(theirs):
            return None
        (before, weights), (after, _) = (skills.scores_and_weights(list(rows.values())) for rows in (ours, theirs))
        return paired_difference(after, before, weights)

    def _rows(self, file: str, name: str) -> list[dict]:
        """Returns the rows of a file of the policy in a run."""
        return self.records[name].rows(file).get(self.stage, [])


def _by_prompt(rows) -> dict[tuple, dict]:
    """Returns rows by their prompt, and by which of the rows with this prompt they are."""
    found: dict[tuple, dict] = {}
    count: dict[tuple, int] = {}
    for row in rows:
        key = row.get("task"), row.get("prompt")
        count[key] = count.get(key, 0) + 1
        found[*key, count[key]] = row
    return found


def _value(row: dict, quantity: str) -> float | None:
    """Returns a quantity of a row of samples.jsonl, or None."""
    if quantity.startswith(_PARTS):
        return (row.get("gold") or {}).get(quantity.removeprefix(_PARTS))
    return _OF_A_ROW[quantity](row) if quantity in _OF_A_ROW else None
