"""Converts a public dataset from the files that its source publishes into the format that training reads.

    python -m rlhf_jax.data.prepare --dataset=hh_rlhf --source=DIR --out=DIR

The folder of --source holds the source's files under their own names; --download fetches them into it first and checks
them. The dataset is written to NAME in the folder of --out, a path that config.data.files may name.
"""

import argparse
import contextlib
import dataclasses
import itertools
import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import rich.status

from rlhf_jax.data import download, folders, prepared, rows
from rlhf_jax.data.public import DATASETS, Dataset, LeftOut
from rlhf_jax.data.row_formats import parse_row
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.fields.options import folder as folder_option
from rlhf_jax.runtime import terminal
from rlhf_jax.runtime.errors import InputError, as_command
from rlhf_jax.runtime.files import write_json

SPLITS = ("train", "valid", "test")
VERSION = "1.0.0"
REPORT = "preparation.json"

_PLACES_SHOWN = 3


@dataclasses.dataclass
class Report:
    """How many published rows were written, and which were not; places are 'file:line'.

    Attributes:
        files: size in bytes of each of the source's files.
        rows: number of rows written, by split.
        left_out: reason -> places of rows that are known to be of no use.
        bad: place -> error, for each row that breaks the format and was skipped.
        shared_groups: a text such as 'test in train' -> number of groups that lie in both splits.
        not_wanted: number of rows that --where left out.
        shortened: number of rows whose prompts were made shorter.
    """

    files: dict[str, int]
    rows: dict[str, int] = dataclasses.field(default_factory=dict)
    left_out: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    bad: dict[str, str] = dataclasses.field(default_factory=dict)
    shared_groups: dict[str, int] = dataclasses.field(default_factory=dict)
    not_wanted: int = 0
    shortened: int = 0

    def __str__(self) -> str:
        lines = [(", ".join(f"{split} {count:,}" for split, count in self.rows.items()) or "no") + " rows"]
        for reason, places in sorted(self.left_out.items()):
            lines.append(f"left out {len(places):,}: {reason} ({_some(places)})")
        if self.bad:
            place, reason = next(iter(self.bad.items()))
            lines.append(f"skipped {len(self.bad):,} bad rows, the first: {place}: {reason}")
        if self.not_wanted:
            lines.append(f"left out {self.not_wanted:,}: not wanted by --where")
        if self.shortened:
            lines.append(f"made the prompts of {self.shortened:,} rows shorter")
        for splits, count in self.shared_groups.items():
            lines.append(
                f"{count:,} groups of {splits} too; training with the published splits leaves their rows out there"
            )
        return "\n".join(lines)


def prepare(
    dataset: Dataset,
    source: pathlib.Path,
    out: pathlib.Path,
    *,
    on_bad_row: str = "error",
    where: Mapping[str, str] | None = None,
    name: str | None = None,
    prompt_tokens: int = 0,
    tokenizer: Tokenizer | None = None,
) -> tuple[pathlib.Path, Report]:
    """Reads the source's files and writes `out`/name/version, completely or not at all.

    Args:
        dataset: the dataset.
        source: folder of the source's files.
        out: folder to write into.
        on_bad_row: 'error' raises at the first row that breaks the format; 'skip' leaves such rows out and lists them.
            Rows that are known to be of no use (LeftOut) are left out either way.
        where: column -> value; only rows with these values are written.
        name: name of the prepared dataset; by default the dataset's own.
        prompt_tokens: longer prompts are made shorter by the source's rule, `Dataset.shorter`. 0 keeps them whole.
        tokenizer: the tokenizer that counts these tokens.

    Returns:
        The folder of the dataset, and the report, which the folder also holds as preparation.json.

    Raises:
        InputError: a file is missing or broken, a row is bad, no row is usable, or nothing can be written.
    """
    where = dict(where or {})
    if unknown := where.keys() - dataset.columns.keys():
        raise InputError(f"--where: {dataset.name} has no column {min(unknown)}; it has {', '.join(dataset.columns)}")
    if prompt_tokens and dataset.shorter is None:
        raise InputError(
            f"--prompt_tokens: leave it out, because {dataset.name} has no rule for prompts that are too long; "
            "config.too_long says what happens to them"
        )
    prepared.check_writable(out, name or dataset.name, VERSION)
    found = source_files(dataset, source)
    report = Report(
        {str(path.relative_to(source)): path.stat().st_size for paths in found.values() for _, path in paths}
    )
    groups: dict[str, set[str]] = {split: set() for split in SPLITS}

    def fit(prompt: str) -> str:
        if tokenizer is None:
            return prompt
        return dataset.fit(prompt, prompt_tokens, lambda text: len(tokenizer.encode_prompts([text])[0]))

    def finish(folder: pathlib.Path) -> None:
        if not report.rows:
            reasons = "; ".join(str(report).splitlines()[1:])
            raise InputError(f"{source}: no row of {dataset.name} is usable; {reasons}")
        report.shared_groups = _shared(groups)
        write_json(folder / REPORT, dataclasses.asdict(report))

    with _Progress(dataset.name, len(report.files)) as progress:
        folder = prepared.write(
            out,
            name or dataset.name,
            VERSION,
            dataset.columns,
            _rows(dataset, found, on_bad_row, where, fit, report, groups, progress),
            description=dataset.about,
            homepage=dataset.homepage,
            finish=finish,
        )
    return folder, report


def source_files(dataset: Dataset, source: pathlib.Path) -> dict[str | None, list[tuple[str, pathlib.Path]]]:
    """Returns the source's files: split -> list of (published name, path); raises InputError if one is missing."""
    if not source.is_dir():
        raise InputError(f"--source: {source} is not a folder; give the one that holds the files of {dataset.name}")
    return {
        split: [found for name in names for found in folders.find(source, name, dataset.name)]
        for split, names in dataset.files.items()
    }


def _rows(
    dataset: Dataset,
    found: dict,
    on_bad_row: str,
    where: dict[str, str],
    fit: Callable[[str], str],
    report: Report,
    groups: dict[str, set[str]],
    progress: "_Progress",
) -> Iterator[tuple[str, dict]]:
    """Yields (split, converted row) in the order of the files; counts in `report`, and collects groups by split."""
    for file_split, name, path in [(split, *file) for split, files in found.items() for file in files]:
        progress.next_file()
        published: Iterable[tuple[str, Any]] = rows.read(path, expect=dataset.expect)
        if dataset.assemble:
            published = dataset.assemble(published)
        for place, row in published:
            progress.update(sum(report.rows.values()))
            try:
                if isinstance(row, InputError):
                    raise row
                for ours in dataset.convert(row, name):
                    split = ours.pop("split", file_split)
                    if any(str(ours.get(column)) != value for column, value in where.items()):
                        report.not_wanted += 1
                        continue
                    if len(set(ours.get("completions", ()))) == 1:
                        report.left_out.setdefault("all completions are the same", []).append(place)
                        continue
                    parse_row(ours, dataset.kind)
                    if ours.get("prompt") and (prompt := fit(ours["prompt"])) != ours["prompt"]:
                        ours, report.shortened = {**ours, "prompt": prompt}, report.shortened + 1
                    report.rows[split] = report.rows.get(split, 0) + 1
                    if "group" in ours:
                        groups[split].add(ours["group"])
                    yield split, ours
            except LeftOut as reason:
                report.left_out.setdefault(str(reason), []).append(place)
            except InputError as error:
                if on_bad_row == "error":
                    raise InputError(f"{place}: {error}") from None
                report.bad[place] = str(error)


def _shared(groups: dict[str, set[str]]) -> dict[str, int]:
    """Returns how many groups lie in two splits, for each pair of splits that shares any."""
    pairs = itertools.combinations(SPLITS, 2)
    counts = {f"{later} in {first}": len(groups.get(first, set()) & groups.get(later, set())) for first, later in pairs}
    return {splits: count for splits, count in counts.items() if count}


def _some(places: list[str]) -> str:
    """Returns the first few of a list of places, as text."""
    shown = ", ".join(places[:_PLACES_SHOWN])
    return shown + (", ..." if len(places) > _PLACES_SHOWN else "")


class _Progress:
    """Shows the number of rows made and of files read: a live line on a terminal, else a line every ten seconds."""

    def __init__(self, name: str, files: int):
        self._name, self._files, self._file, self._next_line = name, files, 0, time.monotonic() + 10
        console = terminal.console(sys.stderr)
        self._live = console.status(name) if sys.stderr.isatty() else contextlib.nullcontext()

    def next_file(self) -> None:
        """Notes that the next file is being read."""
        self._file += 1

    def update(self, count: int) -> None:
        """Shows that `count` rows are made."""
        text = f"{self._name}: {count:,} rows, file {self._file} of {self._files}"
        if isinstance(self._live, rich.status.Status):
            if count % 100 == 0:
                self._live.update(text)
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + 10
            print(text, file=sys.stderr, flush=True)

    def __enter__(self):
        self._live.__enter__()
        return self

    def __exit__(self, *error):
        self._live.__exit__(*error)


def _described(dataset: Dataset) -> str:
    """Returns the entry of a dataset in the text of --help."""
    names = dict.fromkeys(name.strip("|") for names in dataset.files.values() for name in names)
    return (
        (
            f"  {dataset.name} ({dataset.kind})\n      {dataset.about}; {dataset.homepage}\n"
            f"      files: {', '.join(names)}"
        )
        .replace("; \n", "\n")
        .replace("|", " or ")
    )


@as_command("rlhf_jax.data.prepare", stopped="stopped, nothing is written")
def main(arguments: list[str] | None = None) -> None:
    listed = "\n".join(map(_described, DATASETS.values()))
    parser = argparse.ArgumentParser(
        prog="python -m rlhf_jax.data.prepare",
        description=__doc__,
        epilog=f"datasets:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dataset", required=True, help="The name of the dataset; the list is below.")
    parser.add_argument("--source", type=folder_option, required=True, help="The folder of the published files.")
    parser.add_argument(
        "--out", type=folder_option, required=True, help="The folder to write the prepared dataset into."
    )
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help="Keep only rows with this value, such as lang=en. It may be given several times.",
    )
    parser.add_argument(
        "--chat",
        action="store_true",
        help="Write dialogues as messages for a chat template, and not in the markup of the source.",
    )
    parser.add_argument(
        "--prompt_tokens",
        type=int,
        default=0,
        metavar="N",
        help="Make longer prompts shorter, by the source's own rule, until they have at most N tokens. 0 (the default) "
        "keeps them whole.",
    )
    parser.add_argument(
        "--tokenizer",
        type=folder_option,
        metavar="FILE",
        help="The tokenizer that counts these tokens: a tokenizer.json, or the folder that has one.",
    )
    parser.add_argument("--name", help="The name of the prepared dataset. The default is that of --dataset.")
    parser.add_argument(
        "--on_bad_row",
        choices=("error", "skip"),
        default="error",
        help="What happens at a row that breaks the format: the command ends (the default), or skips and lists it.",
    )
    parser.add_argument(
        "--download", action="store_true", help="First download the files that are missing in --source."
    )
    options = parser.parse_args(arguments)
    if options.dataset not in DATASETS:
        raise InputError(f"--dataset: '{options.dataset}' must be one of {', '.join(DATASETS)}")
    dataset = DATASETS[options.dataset]
    if wrong := [pair for pair in options.where if "=" not in pair]:
        raise InputError(f"--where: '{wrong[0]}' must be COLUMN=VALUE")
    if options.download:
        download.fetch(dataset, options.source)
    if options.chat:
        dataset = dataset.as_chat()
    if options.prompt_tokens < 0 or bool(options.prompt_tokens) != bool(options.tokenizer):
        raise InputError("--prompt_tokens needs a number from 1, and --tokenizer, which counts the tokens")
    tokenizer = Tokenizer.load(options.tokenizer) if options.tokenizer else None
    folder, report = prepare(
        dataset,
        options.source,
        options.out,
        on_bad_row=options.on_bad_row,
        where=dict(pair.split("=", 1) for pair in options.where),
        name=options.name,
        prompt_tokens=options.prompt_tokens,
        tokenizer=tokenizer,
    )
    print(f"{folder}: {dataset.kind}\n{report}")


if __name__ == "__main__":
    sys.exit(main())
