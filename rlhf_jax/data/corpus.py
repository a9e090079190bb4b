"""A folder of files as a corpus: the same methods as the embedded world's, without a gold labeler."""

import functools
import os
import pathlib

from rlhf_jax.data import files, ratings
from rlhf_jax.data import rows as rows_lib
from rlhf_jax.data.mixture import Source
from rlhf_jax.data.records import Demonstration, Document, Prompt, Ranking, ReadReport, read_rows
from rlhf_jax.data.splits import HELD_OUT, split_rows
from rlhf_jax.data.template import Template
from rlhf_jax.fields import forms
from rlhf_jax.fields.checks import check_values
from rlhf_jax.fields.run import FILES
from rlhf_jax.runtime.errors import InputError

KINDS = ("documents", "demonstrations", "rankings", "prompts")


class FileCorpus:
    """Reads the files of the `data.files` section and splits their rows into train, valid and test.

    Each kind of rows has files of its own, as `name[@rows][*weight][:split][:theirs=ours;theirs=ours]`,
    separated by commas: a name is a file's or a folder's (of a prepared dataset, or one as `rows`
    reads it); `@rows` takes so many rows, evenly spread over the file; `*weight` gives it that share of
    the draws, whatever its size (documents and demonstrations); `:split` only a split that a
    folder publishes, or several as `a+b`; then come the names of fields that are not ours.

    The split of a row is a hash of its group (or, where it has none, its prompt or text), so one
    question never lies in two splits, whatever the file; near duplicates neither. With `splits =
    "published"` it is what the row's field `split` says. See data/splits.py.

    Args:
      config: the `data.files` section.
      template: renders rows with an instruction or messages.
      on_bad_row: "error" or "skip".

    Attributes:
      reports: what became of the rows of the files read so far, by "kind: path".
      split_reports: how the rows of each kind were divided, and what was left out.
    """

    def __init__(self, config, template: Template, on_bad_row: str):
        check_values("data.files.", config, FILES, exact=False)
        self.config, self._template, self._on_bad_row = config, template, on_bad_row
        self.reports: dict[str, ReadReport] = {}
        self.split_reports: dict[str, dict] = {}

    def read(self) -> None:
        """Reads all files that the config names, so that what is wrong with any is said before anything is computed.

        Raises:
          InputError: a file is missing, broken or without rows, or a field of `data.files` does not fit them.
        """
        for kind in KINDS:
            if self.config[kind]:
                self.splits(kind)

    @functools.cached_property
    def checksums(self) -> dict[str, str]:
        """The SHA-256 of every file that is read, by its path from `dir`.

        Raises:
          InputError: one is missing or cannot be read.
        """
        folder = pathlib.Path(self.config.dir)
        entries = [entry for kind in KINDS for entry in forms.entries(self.config[kind])]
        paths = [path for entry in entries for path in rows_lib.paths(folder / entry.name, entry.splits)]
        return {os.path.relpath(path, folder): files.checksum(path) for path in dict.fromkeys(paths)}

    def tokenizer_texts(self) -> list[str]:
        demonstrations = self.demonstrations("train") if self.config.demonstrations else []
        documents = self.documents("train") if self.config.documents else []
        pairs = [f"{row.prompt}{row.completion}" for row in demonstrations]
        return [document.text for document in documents[:20_000]] + pairs

    def has(self, kind: str) -> bool:
        """Whether there are files of a kind of rows; of prompts, any that have some."""
        return any(self.config[name] for name in (KINDS[1:] if kind == "prompts" else [kind]))

    def documents(self, split: str) -> list[Document]:
        return self._split("documents", split)

    def demonstrations(self, split: str) -> list[Demonstration]:
        return self._split("demonstrations", split)

    def rankings(self, split: str) -> list[Ranking]:
        return ratings.compare(self._split("rankings", split), self.config.rated_size, self.config.rated_pairs)

    def prompts(self, split: str, purpose: str) -> list[Prompt]:
        """Prompts to sample from, each once; without files of their own, those of the other rows."""
        del purpose  # files have one set of prompts
        return self._distinct_prompts(split)

    @functools.cache
    def _distinct_prompts(self, split: str) -> list[Prompt]:
        """Samples for one prompt are not independent: an interval over prompts may count it once."""
        kinds = (
            ["prompts"]
            if self.config.prompts
            else [kind for kind in ("demonstrations", "rankings") if self.config[kind]]
        )
        rows, found = [row for kind in kinds for row in self._split(kind, split)], {}
        for row in rows:
            if row.prompt:  # a completion that is rated by itself may have none
                found.setdefault(row.prompt, Prompt(row.prompt, row.row))
        if not found:
            raise InputError(
                f"no row of data.files.{' or '.join(kinds) or 'demonstrations'} in the {split} split has a prompt to "
                "sample from; name some in data.files.prompts"
            )
        if self.config.prompts and len(found) < len(rows):
            print(
                f"data.files.prompts: {len(rows) - len(found)} rows left out of {split}, because they repeat another's prompt"
            )
        return list(found.values())

    def gold(self, prompt: Prompt, completion: str, finished: bool = True) -> None:
        """Real text has no gold labeler."""
        return None

    def skills(self) -> dict:
        return {}

    def sources(self, kind: str) -> dict[str, list]:
        """The rows of a kind by the name of their file, before any split."""
        return {source.name: source.rows for source in self._sources(kind)}

    def mixed(self, kind: str, split: str) -> list[Source]:
        """The rows of a split by their file, with its weight, in the order of the split.

        Raises:
          InputError: the split, or a file with a weight in it, has no rows.
        """
        rows = self._split(kind, split)
        if all(source.weight is None for source in self._sources(kind)):
            return [Source(kind, None, rows)]
        name_of = {id(row): source.name for source in self._sources(kind) for row in source.rows}
        found = {source.name: Source(source.name, source.weight, []) for source in self._sources(kind)}
        for row in rows:
            found[name_of[id(row)]].rows.append(row)
        for source in found.values():
            if not source.rows:
                raise InputError(f"data.files.{kind}: '{source.name}' has a weight and no row in the {split} split")
        return list(found.values())

    @functools.cache
    def _sources(self, kind: str) -> list[Source]:
        entries = forms.entries(self.config[kind])
        if not entries:
            raise InputError(f"data.files.{kind} names no file, and a stage of this run needs {kind}")
        return [self._read(kind, entry) for entry in entries]

    def _read(self, kind: str, entry: forms.Entry) -> Source:
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
        )
        self.reports[f"{kind}: {path}"] = report
        name = ":".join(filter(None, [entry.name, "+".join(entry.splits)]))
        return Source(name, entry.weight, found if entry.count is None else _spread(found, entry.count))

    def _names(self) -> list[str]:
        """The fields by which rows are divided."""
        config = self.config
        wanted = [config.group_field, config.per_user and config.user_field, config.held_out_labelers and "labeler"]
        return [name for name in wanted if name]

    def _rows(self, kind: str) -> list:
        return [row for source in self._sources(kind) for row in source.rows]

    def _split(self, kind: str, split: str) -> list:
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
        """The rows of a kind by split: train, valid, test and heldout."""
        if kind == "documents":
            return self._documents
        self._rows(kind)  # says what is missing
        return self._prompted[kind]

    @functools.cached_property
    def _documents(self) -> dict[str, list]:
        return self._divide("documents")["documents"]

    @functools.cached_property
    def _prompted(self) -> dict[str, dict[str, list]]:
        """All other kinds at once: near duplicates are looked for among all prompts."""
        return self._divide(*(kind for kind in KINDS[1:] if self.config[kind]))

    def _divide(self, *kinds: str) -> dict[str, dict[str, list]]:
        splits, facts = split_rows(self.config, {kind: self._rows(kind) for kind in kinds})
        self.split_reports |= facts
        for kind, reason, count in ((kind, *item) for kind in kinds for item in facts[kind]["left_out"].items()):
            print(f"data.files.{kind}: {count} rows left out, because {reason}")
        return splits


def _spread(rows: list, count: int) -> list:
    """At most `count` rows at even distances, so that files sorted by question keep their variety."""
    count = min(count, len(rows))
    return [rows[place * len(rows) // count] for place in range(count)]
