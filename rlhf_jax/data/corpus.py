"""A corpus of data files: it has the methods of the embedded world's corpus, but no gold labeler."""

import functools
import os
import pathlib

from rlhf_jax.data import files, ratings
from rlhf_jax.data import rows as rows_lib
from rlhf_jax.data.mixture import Source
from rlhf_jax.data.record_files import ReadReport, read_rows
from rlhf_jax.data.records import Demonstration, Document, Prompt, Ranking, Record
from rlhf_jax.data.splits import HELD_OUT, split_rows
from rlhf_jax.data.template import Template
from rlhf_jax.fields import forms
from rlhf_jax.fields.checks import check_values
from rlhf_jax.fields.run import FILES
from rlhf_jax.runtime.errors import InputError

KINDS = ("documents", "demonstrations", "rankings", "prompts")


class FileCorpus:
    """Reads the files of the `data.files` section and splits their rows into train, valid and test.

    Each kind of rows has its own files, given as `name[@rows][*weight][:split][:theirs=ours;theirs=ours]` and separated
    by commas:

      name: a file, or a folder of a prepared dataset or of files that the module `rows` reads.
      @rows: number of rows to use, evenly spread over the file.
      *weight: relative share of the draws, whatever the file's size; for documents and demonstrations.
      :split: only rows of this split of a folder, or of several, as `a+b`.
      :theirs=ours: names of the file's fields, and of the fields that they stand for.

    The split of a row is a hash of its group, or of its prompt or text if it has none. So one question never lies in
    two splits, whatever the files, and near duplicates do not either. With `splits = "published"`, the row's field
    `split` gives it. See data/splits.py.

    Args:
      config: the `data.files` section.
      template: renders rows with an instruction or messages.
      on_bad_row: "error" or "skip".

    Attributes:
      reports: reports on the rows of the files read so far, by "kind: path".
      split_reports: for each kind, how its rows were divided, and how many were left out for which reason.
    """

    def __init__(self, config, template: Template, on_bad_row: str):
        check_values("data.files.", config, FILES, exact=False)
        self.config, self._template, self._on_bad_row = config, template, on_bad_row
        self.reports: dict[str, ReadReport] = {}
        self.split_reports: dict[str, dict] = {}

    def read(self) -> None:
        """Reads all files that the config names, so that errors in them are reported before anything is computed.

        Raises:
          InputError: a file is missing, broken or without rows, or a field of `data.files` does not fit the rows.
        """
        for kind in KINDS:
            if self.config[kind]:
                self.splits(kind)

    @functools.cached_property
    def checksums(self) -> dict[str, str]:
        """The SHA-256 of every file that is read, by its path relative to `dir`.

        Raises:
          InputError: a file is missing or cannot be read.
        """
        folder = pathlib.Path(self.config.dir)
        entries = [entry for kind in KINDS for entry in forms.entries(self.config[kind])]
        paths = [path for entry in entries for path in rows_lib.paths(folder / entry.name, entry.splits)]
        return {os.path.relpath(path, folder): files.checksum(path) for path in dict.fromkeys(paths)}

    def tokenizer_texts(self) -> list[str]:
        """Returns the texts to train a tokenizer on, of the train split: up to 20,000 documents, all demonstrations."""
        demonstrations = self.demonstrations("train") if self.config.demonstrations else []
        documents = self.documents("train") if self.config.documents else []
        pairs = [f"{row.prompt}{row.completion}" for row in demonstrations]
        return [document.text for document in documents[:20_000]] + pairs

    def has(self, kind: str) -> bool:
        """Whether there are files of a kind of rows; for prompts, of any kind whose rows have a prompt."""
        return any(self.config[name] for name in (KINDS[1:] if kind == "prompts" else [kind]))

    def documents(self, split: str) -> list[Document]:
        """Returns the documents of a split."""
        return self._split("documents", split)

    def demonstrations(self, split: str) -> list[Demonstration]:
        """Returns the demonstrations of a split."""
        return self._split("demonstrations", split)

    def rankings(self, split: str) -> list[Ranking]:
        """Returns the rankings of a split; single rated completions are joined in rankings (see data/ratings.py)."""
        return ratings.compare(self._split("rankings", split), self.config.rated_size, self.config.rated_pairs)

    def prompts(self, split: str, purpose: str) -> list[Prompt]:
        """Returns the distinct prompts of a split, to sample from.

        Without files of prompts, they are those of demonstrations and rankings.

        Raises:
          InputError: no row of the split has a prompt.
        """
        del purpose  # files have one set of prompts
        return self._distinct_prompts(split)

    @functools.cache
    def _distinct_prompts(self, split: str) -> list[Prompt]:
        """Returns each prompt once, because confidence intervals over prompts treat prompts as independent."""
        kinds = (
            ["prompts"]
            if self.config.prompts
            else [kind for kind in ("demonstrations", "rankings") if self.config[kind]]
        )
        rows, found = [row for kind in kinds for row in self._split(kind, split)], {}
        for row in rows:
            if row.prompt:  # a rated completion may have an empty prompt
                found.setdefault(row.prompt, Prompt(row.prompt, row.row))
        if not found:
            raise InputError(
                f"no row of data.files.{' or '.join(kinds) or 'demonstrations'} in the {split} split has a prompt to "
                "sample from; name a file of prompts in data.files.prompts"
            )
        if self.config.prompts and len(found) < len(rows):
            print(
                f"data.files.prompts: {len(rows) - len(found)} rows left out of {split}, because they repeat the prompt of another row"
            )
        return list(found.values())

    def gold(self, prompt: Prompt, completion: str, finished: bool = True) -> None:
        """Returns None: real text has no gold labeler."""
        return None

    def skills(self) -> dict:
        """Returns {}: real text has no skill tests."""
        return {}

    def sources(self, kind: str) -> dict[str, list]:
        """Returns all rows of a kind, by the name of their file."""
        return {source.name: source.rows for source in self._sources(kind)}

    def mixed(self, kind: str, split: str) -> list[Source]:
        """Returns the rows of a split as sources: one per file, or a single one if no file has a weight.

        Raises:
          InputError: the split has no rows, or no rows of a file that has a weight.
        """
        rows = self._split(kind, split)
        if all(source.weight is None for source in self._sources(kind)):
            return [Source(kind, None, rows)]
        name_of = {id(_origin(row)): source.name for source in self._sources(kind) for row in source.rows}
        found = {source.name: Source(source.name, source.weight, []) for source in self._sources(kind)}
        for row in rows:
            found[name_of[id(_origin(row))]].rows.append(row)
        for source in found.values():
            if not source.rows:
                raise InputError(
                    f"data.files.{kind}: '{source.name}' has a weight but no row in the {split} split; give it more rows, "
                    "or leave it out"
                )
        return list(found.values())

    @functools.cache
    def _sources(self, kind: str) -> list[Source]:
        """Returns the rows of each file of a kind, before they are split; raises InputError if no file is named."""
        entries = forms.entries(self.config[kind])
        if not entries:
            raise InputError(f"data.files.{kind} is empty: name files, because a stage of this run needs {kind}")
        return [self._read(kind, entry) for entry in entries]

    def _read(self, kind: str, entry: forms.Entry) -> Source:
        """Reads the rows of one entry of `data.files`, and keeps the report on them."""
        path = pathlib.Path(self.config.dir) / entry.name
        found, report = read_rows(
            path,
            kind,
            self._template,
            on_bad_row=self._on_bad_row,
            fields=entry.fields or None,
            document_end=self.config.document_end or None,
            splits=entry.splits,
            names=self._names(),
            turns=self.config.turns,
        )
        self.reports[f"{kind}: {path}"] = report
        name = ":".join(filter(None, [entry.name, "+".join(entry.splits)]))
        return Source(name, entry.weight, found if entry.count is None else _spread(found, entry.count))

    def _names(self) -> list[str]:
        """Returns the names of the fields by which rows are divided into splits or left out."""
        config = self.config
        wanted = [config.group_field, config.per_user and config.user_field, config.held_out_labelers and "labeler"]
        return [name for name in wanted if name]

    def _rows(self, kind: str) -> list:
        """Returns all rows of a kind."""
        return [row for source in self._sources(kind) for row in source.rows]

    def _split(self, kind: str, split: str) -> list:
        """Returns the rows of a split; raises InputError if there are none.

        Only heldout may be empty, if the config holds out no labelers.
        """
        rows = self.splits(kind)[split]
        if not rows and split == HELD_OUT and not self.config.held_out_labelers:
            return []
        if not rows:
            shares = {
                "train": "lower data.files.valid_share or data.files.test_share",
                "test": "raise data.files.test_share",
            }
            raise InputError(
                f"the {split} split of data.files.{kind} is empty; "
                f"{shares.get(split, 'raise data.files.valid_share')} or give more rows"
            )
        return rows

    def splits(self, kind: str) -> dict[str, list]:
        """Returns the rows of a kind by split: train, valid, test and heldout."""
        if kind == "documents":
            return self._documents
        self._rows(kind)  # raises InputError if the config names no file of this kind
        return self._prompted[kind]

    @functools.cached_property
    def _documents(self) -> dict[str, list]:
        """The documents by split."""
        return self._divide("documents")["documents"]

    @functools.cached_property
    def _prompted(self) -> dict[str, dict[str, list]]:
        """The splits of all other kinds, made together because near duplicates are searched among all prompts."""
        found = self._divide(*(kind for kind in KINDS[1:] if self.config[kind]))
        if "demonstrations" in found and self.config.turns == "all":  # after the split: a chat lies in one
            chats = found["demonstrations"].items()
            found["demonstrations"] = {split: [row for chat in rows for row in chat.each] for split, rows in chats}
        return found

    def _divide(self, *kinds: str) -> dict[str, dict[str, list]]:
        """Returns the rows of some kinds by split, and prints how many were left out and why."""
        splits, facts = split_rows(self.config, {kind: self._rows(kind) for kind in kinds})
        self.split_reports |= facts
        for kind in kinds:
            for reason, count in facts[kind]["left_out"].items():
                print(f"data.files.{kind}: {count} rows left out, because {reason}")
        return splits


def _origin(row: Record) -> object:
    """Returns what a record and the others of its row have in common."""
    return getattr(row, "row", row)


def _spread(rows: list, count: int) -> list:
    """Returns at most `count` rows at even distances, so that files that are sorted by question keep their variety."""
    count = min(count, len(rows))
    return [rows[place * len(rows) // count] for place in range(count)]
