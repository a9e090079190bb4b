"""The parts of a run's report on what its stages noted while they trained: warnings, early ends, and completions."""

from rlhf_jax.report.form import is_number
from rlhf_jax.report.record import Record, label
from rlhf_jax.report.run_policies import shorten
from rlhf_jax.report.tables import TextTable
from rlhf_jax.runtime.markdown import cell

_PROMPTS = 4  # validation prompts that are shown
_ITERATIONS = 4  # iterations whose highest and lowest rollouts are shown
_WARNINGS = 40  # warnings of a stage that are listed one by one


def noted_lines(record: Record) -> list[str]:
    """Returns sentences on the stages that ended early or gave warnings, for the summary."""
    lines = [
        f"{label(stage)} ended early: {done['stopped'].rstrip('.')}."
        for stage, done in record.done.items()
        if done.get("stopped")
    ]
    for stage, rows in record.warnings.items():
        first = {}
        for row in rows:
            first.setdefault(row["name"], row["step"])
        names = ", ".join(f"{name} (first at {step})" for name, step in list(first.items())[:_WARNINGS])
        lines.append(f"{label(stage)} has {_counted(len(rows), 'warning')}: {names}; see Warnings.")
    return lines


def noted_of(record: Record, stage: str) -> str:
    """Returns what was noted of a stage in a few words for the table of stages, or a dash."""
    early = ["ended early"] if record.done.get(stage, {}).get("stopped") else []
    warned = [_counted(len(record.warnings[stage]), "warning")] if stage in record.warnings else []
    return ", ".join(early + warned) or "–"


def warning_sections(record: Record) -> list[str]:
    """Returns the part of report.md with the warnings of each stage, as Markdown; [] if there are none."""
    if not record.warnings:
        return []
    rows = []
    for stage, found in record.warnings.items():
        rows += [
            [label(stage), str(row["step"]), row["name"], row["message"], row.get("metric") or "–", _value(row)]
            for row in found[:_WARNINGS]
        ]
        if len(found) > _WARNINGS:
            rows.append([label(stage), "", f"{len(found) - _WARNINGS} more", f"in {stage}/warnings.jsonl", "", ""])
    heads = ["stage", "step", "warning", "what it says", "metric", "value"]
    return [
        "## Warnings",
        "A warning says at which step a rule about the metrics of training was met. It changes nothing in the run.",
        TextTable(heads, rows, words=5).markdown(),
    ]


def sample_sections(record: Record) -> list[str]:
    """Returns the part of report.md with completions at several iterations, as Markdown; [] if there are none."""
    sections = []
    for stage, rows in record.training_samples.items():
        for text, table in (_validation(rows), _extremes(rows)):
            if table:
                sections += [f"{cell(label(stage))}: {text}", table.markdown()]
    return ["## Completions in training", *sections] if sections else []


def _validation(rows: list[dict]) -> tuple[str, TextTable | None]:
    """Returns the completions of a few validation prompts at the first, a middle and the last iteration."""
    by_step = _by_step(rows, "validation")
    steps = spread(sorted(by_step), 3)
    shared = [index for index in by_step[steps[-1]] if all(index in by_step[step] for step in steps)] if steps else []
    table = TextTable(
        ["prompt", *(f"after {step}" for step in steps)],
        [
            [shorten(by_step[steps[-1]][index][0]["prompt"]), *(_judged(by_step[step][index][0]) for step in steps)]
            for index in shared[:_PROMPTS]
        ],
        words=1 + len(steps),
    )
    text = (
        "the completions of the same validation prompts after some iterations. In brackets: the score, and the KL in "
        "nats."
    )
    return text, table if shared else None


def _extremes(rows: list[dict]) -> tuple[str, TextTable | None]:
    """Returns the rollouts with the highest and the lowest score of a few iterations, the last one first."""
    found = {name: _by_step(rows, name) for name in ("highest", "lowest")}
    steps = spread(sorted(set().union(*found.values())), _ITERATIONS)
    table = []
    for step in reversed(steps):
        for name, sign in (("highest", -1), ("lowest", 1)):
            drawn = [row for rows_of in found[name].get(step, {}).values() for row in rows_of]
            drawn.sort(key=lambda row: sign * (row.get("score") or 0.0))
            table += [
                [str(step), name, shorten(row["prompt"]), _completion(row), *map(_number, _numbers(row))]
                for row in drawn[:1]
            ]
    heads = ["iteration", "score is", "prompt", "completion", "score", "KL (nats)", "length (tokens)"]
    text = (
        "the rollouts with the highest and the lowest score of some iterations. Reward hacking shows in the highest "
        "ones first."
    )
    return text, TextTable(heads, table, words=4) if table else None


def _judged(row: dict) -> str:
    """Returns a completion with its score and KL in brackets."""
    score, kl, _ = _numbers(row)
    said = ", ".join(text for text in (_scores(row, score), kl is not None and f"KL {kl:.2f}") if text)
    return f"{_completion(row)} ({said})" if said else _completion(row)


def _counted(number: int, what: str) -> str:
    """Returns a number of things in words, as "1 warning" or "2 warnings"."""
    return f"{number} {what}{'s' * (number != 1)}"


def spread(items: list, most: int) -> list:
    """Returns at most `most` items that are spread evenly, the first and the last of them included."""
    if len(items) <= most:
        return items
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]


def _by_step(rows: list[dict], of: str) -> dict[int, dict[int, list[dict]]]:
    """Returns the rows of one kind: step -> index of the prompt -> rows."""
    found: dict[int, dict[int, list[dict]]] = {}
    for row in rows:
        if row["of"] == of:
            found.setdefault(row["step"], {}).setdefault(row["index"], []).append(row)
    return found


def _completion(row: dict) -> str:
    """Returns a completion, cut to the length that a table shows; an ellipsis marks one that did not end by itself."""
    return shorten(row["completion"]) + ("" if row["finished"] else " …")


def _numbers(row: dict) -> list[float | None]:
    """Returns the score, the KL and the length of a row."""
    return [row.get(name) for name in ("score", "kl", "length")]


def _scores(row: dict, score: float | None) -> str:
    """Returns the score in words, followed by that of each reward if there are several."""
    several = {name: value for name, value in (row.get("scores") or {}).items() if value is not None}
    each = ", ".join(f"{name} {value:.2f}" for name, value in several.items()) if len(several) > 1 else ""
    return ", ".join(text for text in ("" if score is None else f"{score:.2f}", each) if text)


def _number(value: float | None) -> str:
    """Returns a number with four digits, or a dash."""
    return "–" if value is None else f"{value:.4g}"


def _value(row: dict) -> str:
    """Returns the value of a warning as text."""
    value = row.get("value")
    return _number(value) if is_number(value) else "–" if value is None else str(value)
