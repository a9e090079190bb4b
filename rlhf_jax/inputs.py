"""The data that stages read from a run's corpus, and data_report.json, which records how the data were used."""

import dataclasses
import functools

import jax

from rlhf_jax.data import mixture, packing
from rlhf_jax.data.batches import Batch, LengthReport
from rlhf_jax.data.text_batches import pack_documents
from rlhf_jax.fields import registry
from rlhf_jax.run import Run
from rlhf_jax.runtime import hosts
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import read_if_there, write_json


def need(run: Run, stage: str, kind: str, split: str, purpose: str = "ppo") -> list:
    """Returns the records of a split that a stage will read; none in a run without data.

    Args:
      run: the run.
      stage: the stage, for error messages.
      kind: kind of the records, one of data.corpus.KINDS.
      split: "train", "valid" or "test".
      purpose: use of prompts, "rm" or "ppo".

    Raises:
      InputError: there are no such records, or their files cannot be read.
    """
    if run.corpus is None:
        return []
    if not run.corpus.has(kind):
        source = run.config.data.source
        ways = [] if (source, kind) == ("world", "rankings") else [f"data.{source}.{kind}"]
        ways += ["a collect stage before it"] if kind == "rankings" else []
        raise InputError(f"{stage} needs {kind}, and there are none: give {' or '.join(ways)}")
    try:
        of_kind = getattr(run.corpus, kind)
        rows = of_kind(split, purpose) if kind == "prompts" else of_kind(split)
    except InputError as error:
        raise InputError(f"{stage} needs {kind} of the {split} split: {error}") from None
    if not rows:
        raise InputError(f"{stage} needs {kind} of the {split} split, but there are none; give more rows")
    return rows


def packed_documents(run: Run, split: str, length: int) -> tuple[Batch, LengthReport, mixture.Mixture | None]:
    """Returns the documents of a split in rows of `length` tokens, the report of their lengths, and their mixture.

    The mixture is None if the sources of the documents have no weights.

    Raises:
      InputError: the corpus has no documents.
    """
    folder = run.path / "tokens" if run.workdir else None
    pack = functools.partial(pack_documents, tokenizer=run.tokenizer, length=length, folder=folder)
    return mixture.build(run.corpus.mixed("documents", split), pack)


def held_out_documents(run: Run, length: int) -> Batch:
    """Returns held-out documents in rows of `length` tokens, at most config.evaluate.document_rows of them.

    The rows are spread evenly over the split; document_rows = 0 takes them all, and None as many as are in proportion
    to the training.

    Raises:
      InputError: the corpus has no documents.
    """
    packed, *_ = packed_documents(run, "valid", length)
    most = run.config.evaluate.document_rows
    return spread(packed, _in_proportion(run) if most is None else most)


def spread(examples: Batch, most: int) -> Batch:
    """Returns at most `most` rows at even distances, or all of them if it is 0."""
    every = -(-len(examples.tokens) // most) if most else 1
    return jax.tree.map(lambda x: x[::every], examples)


def _in_proportion(run: Run) -> int:
    """Returns a tenth of the rows that the longest stage reads, from 64 to 1,024 of them."""
    kinds = {stage: registry.of(run.config, stage) for stage in run.config.stages}
    longest = max((kind.rows_read(run, stage) for stage, kind in kinds.items() if kind.rows_read), default=0)
    return min(1024, max(64, int(longest) // 10))


def report_data(run: Run, stage: str, records: str, report: LengthReport) -> None:
    """Prints how many of a stage's records were used, cut or dropped, and keeps it in data_report.json.

    The file also keeps the checks of the data files read so far.

    Raises:
      InputError: another host read other data than the first.
    """
    print(f"{stage}: {records} {report}")
    first = hosts.on_first(_write_data_report, run, stage, records, report)
    if first != dataclasses.asdict(report):
        raise InputError(
            f"{stage}: {hosts.describe()} reads other {records} than process 0 (here {report}): give all hosts the "
            "same files"
        )


def report_epochs(run: Run, stage: str, records: str, mixed: mixture.Mixture | None, draws: int) -> None:
    """Prints and records how often a stage sees each source of a mixture; `draws` is the number of rows it draws."""
    if mixed is None:
        return
    epochs = mixed.epochs(draws)
    shown = ", ".join(f"{name} {value:.3g}" for name, value in epochs.items())
    print(f"{stage}: epochs of the {records} {shown}")
    hosts.on_first(_add_to_data_report, run, "epochs", stage, records, epochs)


def report_packing(run: Run, stage: str, report: packing.PackingReport) -> None:
    """Prints and records the share of padding before and after packing."""
    print(f"{stage}: packed {report}")
    hosts.on_first(_add_to_data_report, run, "packing", stage, "demonstrations", dataclasses.asdict(report))


def _write_data_report(run: Run, stage: str, records: str, report: LengthReport) -> dict:
    """Writes the report of a stage's records, and returns it for comparison with that of other hosts."""
    _add_to_data_report(run, "stages", stage, records, dataclasses.asdict(report))
    return dataclasses.asdict(report)


def _add_to_data_report(run: Run, section: str, stage: str, records: str, value: dict) -> None:
    """Sets section -> stage -> records of data_report.json to `value`, and updates its facts about files and splits."""
    path = run.path / "data_report.json"
    facts = {"files": {}, "stages": {}} | (read_if_there(path) or {})
    facts["files"] |= {name: dataclasses.asdict(read) for name, read in run.corpus.reports.items()}
    facts["splits"] = facts.get("splits", {}) | run.corpus.split_reports
    facts.setdefault(section, {}).setdefault(stage, {})[records] = value
    write_json(path, facts)
