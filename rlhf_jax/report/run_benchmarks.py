"""The part of a run's report on benchmarks: the policies side by side, and their differences on the same items."""

import numpy as np

from rlhf_jax.evaluate.harness import results
from rlhf_jax.report.form import NUMBER, TEXT, Maybe, Object, check, check_lines, each, is_number
from rlhf_jax.report.record import Record, label
from rlhf_jax.report.tables import Quantity, TextTable
from rlhf_jax.runtime import finished
from rlhf_jax.runtime.files import read_json_lines
from rlhf_jax.statistics import Estimate, mean, paired_difference

_ESTIMATE = Object({"value": Maybe(NUMBER), "low": Maybe(NUMBER), "high": Maybe(NUMBER)})
_ENTRIES = each(Object({"estimates": each(_ESTIMATE), "items": NUMBER}))
_ROW = Object({"doc_id": NUMBER, "filter": TEXT})


def benchmark_sections(record: Record) -> list[str]:
    """Returns the part of report.md about benchmarks, as Markdown; [] if no policy was asked any."""
    found = {stage: entries for stage in record.evaluations if (entries := _entries(record, stage))}
    if not found:
        return []
    rows, differences = [], []
    for task, metric in _quantities(found):
        quantity = Quantity(f"{task} {metric}", "", None)
        estimates = [entries.get(task, {}).get("estimates", {}).get(metric) for entries in found.values()]
        rows.append([quantity.title, *(quantity.show(_known(estimate)) for estimate in estimates)])
        differences += _differences(record, list(found), task, metric)
    parts = [
        "## Benchmarks",
        "lm-eval asked these benchmarks. `lm_eval.json` in the folder of each stage has its settings and the numbers of "
        "items. ± is half of a 95 % interval over items.",
        TextTable(["", *map(label, found)], rows).markdown(),
    ]
    if differences:
        against = label(_against(record, list(found)))
        parts += [
            f"Differences from {against}, paired over the same items:",
            TextTable(
                ["", *(label(stage) for stage in found if stage != _against(record, list(found)))], differences
            ).markdown(),
        ]
    return parts


def _known(estimate: dict | None) -> dict | None:
    """Returns an estimate, or None if it has no value."""
    return estimate if estimate and estimate["value"] is not None else None


def _entries(record: Record, stage: str) -> dict:
    """Returns the contents of a stage's lm_eval.json; raises InputError if it is damaged."""
    path = record.path / stage / results.SUMMARY
    return check(path, results.read(path.parent), _ENTRIES)


def _quantities(found: dict[str, dict]) -> list[tuple[str, str]]:
    """Returns each task and metric that some policy has, in the order in which they were asked."""
    names = [
        (task, metric) for entries in found.values() for task, entry in entries.items() for metric in entry["estimates"]
    ]
    return list(dict.fromkeys(names))


def _against(record: Record, stages: list[str]) -> str:
    """Returns the policy that the others are compared with: SFT if it was asked, or else the first one."""
    return record.reference if record.reference in stages else stages[0]


def _differences(record: Record, stages: list[str], task: str, metric: str) -> list[list[str]]:
    """Returns the row of a metric in the table of differences; [] if it is no mean over items."""
    items = {stage: _items(record, stage, task, metric) for stage in stages}
    against = _against(record, stages)
    cells = []
    for stage in stages:
        if stage != against:
            shared = sorted(items[stage].keys() & items[against].keys())
            cells.append(_difference(*(np.array([items[name][n] for n in shared]) for name in (stage, against))))
    if not any(cells):
        return []
    quantity = Quantity(f"{task} {metric}", "", None)
    return [[quantity.title, *(quantity.show(cell and cell.to_json(), sign=True) for cell in cells)]]


def _difference(first: np.ndarray, second: np.ndarray) -> Estimate | None:
    """Returns the mean difference over items, or None without an item; of metrics from 0 to 1 as of scores."""
    if not len(first):
        return None
    scores = min(first.min(), second.min()) >= 0 and max(first.max(), second.max()) <= 1
    return paired_difference(first, second) if scores else mean(first - second)


def _items(record: Record, stage: str, task: str, metric: str) -> dict[int, float]:
    """Returns the metric of each item of a task by the item's number; {} if the metric has no number for an item."""
    path = record.path / stage / results.rows_name(task)
    if not finished.checked(path).exists():
        return {}
    name, _, chosen = metric.partition("@")
    rows = [row for row in check_lines(path, read_json_lines(path), _ROW) if row["filter"] == (chosen or "none")]
    found = {row["doc_id"]: row.get(name) for row in rows}
    return {n: float(value) for n, value in found.items()} if all(map(is_number, found.values())) else {}
