"""The parts of a run's report on its origin: its data, its config, the machine and the time."""

import json

from rlhf_jax.metrics import lost_steps
from rlhf_jax.report.record import Record, label
from rlhf_jax.report.run_training import noted_of
from rlhf_jax.report.tables import TextTable
from rlhf_jax.runtime.markdown import cell, json_code

# Names in data_report.json, in the order of the columns of `_lengths`.
_FATES = ("given", "dropped", "prompts_cut", "cut", "repeats", "longest")


def data_sections(record: Record) -> list[str]:
    """Returns the tables of the data as Markdown: files, lengths by stage, splits, mixtures and packing."""
    data = record.data
    tables = [_files(data["files"])] * bool(data["files"]) + [_lengths(data["stages"])]
    for name, table in (("models", _models), ("splits", _splits), ("epochs", _epochs), ("packing", _packing)):
        if found := data.get(name):
            tables.append(table(found))
    return [table.markdown() for table in tables]


def _files(files: dict) -> TextTable:
    """Returns the table of what became of the rows of each file."""
    rows = [[name, str(read["kept"]), str(len(read["skipped"])), str(read["all_tied"])] for name, read in files.items()]
    return TextTable(["file", "rows", "bad rows skipped", "rankings without a preference"], rows)


def _models(models: dict) -> TextTable:
    """Returns the table of the models that the run has used and not trained."""
    rows = [[name, found["folder"], found["checksum"][:16]] for name, found in models.items()]
    return TextTable(["model used", "folder", "checksum (SHA-256)"], rows, words=2)


def _lengths(stages: dict) -> TextTable:
    """Returns the table of what became of the records of each stage, by their length."""
    rows = [
        [label(stage), records, *(str(found.get(name, 0)) for name in _FATES)]
        for stage, reports in stages.items()
        for records, found in reports.items()
    ]
    fates = ["given", "dropped", "prompt cut at its start", "cut", "repeats left out", "longest (tokens)"]
    return TextTable(["stage", "records", *fates], rows, words=2)


def _splits(splits: dict) -> TextTable:
    """Returns the table of the number of rows in each split, by kind of rows."""
    names = ("train", "valid", "test", "heldout")
    rows = [
        [
            kind,
            *(str(found["rows"].get(name, 0)) for name in names),
            str(found["near_duplicates"]["in_clusters"]),
            "; ".join(f"{count}: {reason}" for reason, count in found["left_out"].items()) or "–",
        ]
        for kind, found in splits.items()
    ]
    return TextTable(["rows", *names, "near-duplicate prompts", "left out"], rows)


def _epochs(stages: dict) -> TextTable:
    """Returns the table of how often each stage saw each source of a mixture."""
    rows = [
        [label(stage), f"{records}: {name}", f"{epochs:.3g}"]
        for stage, kinds in stages.items()
        for records, found in kinds.items()
        for name, epochs in found.items()
    ]
    return TextTable(["stage", "source", "epochs"], rows, words=2)


def _packing(stages: dict) -> TextTable:
    """Returns the table of rows and padding, with and without packing."""
    rows = [
        [
            label(stage),
            str(found["rows_after"]),
            f"{100 * found['padding_after']:.1f}",
            f"{found['rows_before']} rows, {100 * found['padding_before']:.1f} %",
        ]
        for stage, kinds in stages.items()
        for found in kinds.values()
    ]
    return TextTable(["packed stage", "rows of a batch", "padding (%)", "without packing"], rows)


def origin_sections(record: Record) -> list[str]:
    """Returns a list of facts (seed, model, overrides, machine, versions) and the table of time and memory by stage."""
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
            _parts(record.curves.get(stage, [])),
            _duration(done.get("evaluation_seconds")),
            _memory(done),
            done["finished_at"],
            noted_of(record, stage),
        ]
        for stage, done in record.done.items()
    ]
    seconds = [done["seconds"] + done.get("evaluation_seconds", 0) for done in record.done.values()]
    rows.append(["all", _duration(sum(seconds)), "", "", "", "", ""])
    columns = ["stage", "time", "of which", "evaluation", "peak memory so far", "finished", "noted"]
    return ["\n".join(f"- {fact}" for fact in facts), TextTable(columns, rows).markdown()]


def _parts(rows: list[dict]) -> str:
    """Returns how the time of a stage's steps is divided, e.g. "sample 40 %, score 10 %, update 50 %", or a dash."""
    names = dict.fromkeys(name for row in rows for name in row if name.startswith("time/"))
    sums = {name.removeprefix("time/"): sum(row.get(name, 0.0) for row in rows) for name in names}
    if len(sums) < 2 or not sum(sums.values()):
        return "–"
    return ", ".join(f"{name} {value / sum(sums.values()):.0%}".replace("%", " %") for name, value in sums.items())


def _duration(seconds: float | None) -> str:
    """Returns a duration in words, or a dash for None."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def _memory(done) -> str:
    """Returns the peak of memory that a done.json tells, or a dash."""
    return f"{done['peak_memory_gib']:.2f} GiB" if "peak_memory_gib" in done else "–"
