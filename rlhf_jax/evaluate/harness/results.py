"""What lm-eval found, as estimates with intervals, in the folder of a stage or in one of one's own.

lm_eval.json            for each task: its estimates, how many items, and how it was asked
lm_eval.TASK.jsonl      lm-eval's row for each item: the item, what was asked, the answers, the metrics
evaluation.json         has the estimates of a stage, too, under the names lm_eval/TASK/METRIC
"""

import importlib
import json
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rlhf_jax import statistics
from rlhf_jax.evaluate.harness.tasks import Options, Tasks
from rlhf_jax.runtime import finished
from rlhf_jax.statistics import Estimate

PREFIX = "lm_eval/"  # of the names of estimates
SUMMARY = "lm_eval.json"
_RESAMPLES = 200  # of a metric that is no mean, such as BLEU


def summarize(found: dict[str, Any], tasks: Tasks, options: Options, cut: dict[str, int]) -> dict[str, dict]:
    """Returns the entries of lm_eval.json, by task or group.

    Args:
        found: what `Tasks.run` returns.
        tasks: the tasks.
        options: how they were asked.
        cut: how many requests of each kind were cut to the model's context.
    """
    entries = {}
    for name, result in found["results"].items():
        rows = found["samples"].get(name, [])
        estimates = {}
        for key, value in result.items():
            metric, _, chosen = key.partition(",")
            if chosen and not metric.endswith("_stderr") and isinstance(value, int | float | np.number):
                label = metric if chosen == "none" else f"{metric}@{chosen}"
                items = [row[metric] for row in rows if row["filter"] == chosen and metric in row]
                how = tasks.aggregation(name, metric) if name in tasks.names else None
                estimates[label] = estimate(float(value), items, how).to_json()
        entries[name] = {
            "estimates": estimates,
            "items": len({row["doc_id"] for row in rows}),
            "version": found["versions"].get(name),
            "num_fewshot": found["n-shot"].get(name),
            "higher_is_better": found["higher_is_better"].get(name, {}),
            "options": as_asked(options),
            "cut_to_the_context": dict(cut),
        }
    return entries


def as_asked(options: Options) -> dict[str, Any]:
    """Returns the options that differ from a task's own, as lm_eval.json has them."""
    return {name: value for name, value in options._asdict().items() if value not in (None, False)}


def estimate(value: float, items: Sequence, how: Callable | None) -> Estimate:
    """Returns lm-eval's value of a metric with a 95 % interval over items.

    A mean over items has the project's interval for means, or for shares where items are right or wrong. Any other
    metric, such as BLEU, has a normal interval with the standard deviation of 200 resamples of the items. A group has
    none.

    Args:
        value: the value.
        items: what the metric has of each item.
        how: the function that turns items into the value; None for a group.
    """
    if not items or how is None or not np.isfinite(value):
        return Estimate(value, -math.inf, math.inf)
    if all(isinstance(item, bool | int | float | np.number) for item in items):
        numbers = np.asarray(items, np.float64)
        if np.isfinite(numbers).all() and abs(numbers.mean() - value) < 1e-9 * max(1.0, abs(value)):
            interval = statistics.share if np.isin(numbers, (0.0, 1.0)).all() else statistics.mean
            return interval(numbers)._replace(value=value)
    generator = np.random.default_rng(0)
    resampled = [how([items[n] for n in generator.integers(len(items), size=len(items))]) for _ in range(_RESAMPLES)]
    reach = 1.96 * float(np.std(resampled, ddof=1)) or math.inf  # equal items do not show how much items differ
    return Estimate(value, value - reach, value + reach)


def write(folder: pathlib.Path, found: dict[str, Any], entries: dict[str, dict]) -> None:
    """Writes the files of a folder; tasks that were evaluated before stay in them.

    Args:
        folder: a stage's folder, or any other.
        found: what `Tasks.run` returns.
        entries: what `summarize` makes of it.
    """
    plain_of = importlib.import_module("lm_eval.utils").handle_non_serializable

    for name, rows in found["samples"].items():
        plain = json.loads(json.dumps(rows, default=plain_of))
        finished.write_json_lines(folder / rows_name(name), plain)
    finished.write_json(folder / SUMMARY, read(folder) | entries)
    evaluation = finished.read_if_there(folder / "evaluation.json")
    if evaluation and "estimates" in evaluation:
        evaluation["estimates"] |= {
            f"{PREFIX}{name}/{metric}": value
            for name, entry in entries.items()
            for metric, value in entry["estimates"].items()
        }
        finished.write_json(folder / "evaluation.json", evaluation)


def rows_name(task: str) -> str:
    """Returns the name of the file of a task's items."""
    return f"lm_eval.{task.replace('/', '_')}.jsonl"


def read(folder: pathlib.Path) -> dict[str, dict]:
    """Returns the entries of lm_eval.json in a folder; {} without the file."""
    return finished.read_if_there(folder / SUMMARY) or {}
