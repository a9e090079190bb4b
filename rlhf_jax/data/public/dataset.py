"""What a public dataset is to us: which files its source publishes, and how their rows become ours."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from rlhf_jax.data.records import Kind, string_of
from rlhf_jax.runtime.errors import InputError

Row = dict[str, Any]


class LeftOut(InputError):
    """A published row that is known to say nothing for our purpose: counted and named, never an error."""


@dataclasses.dataclass(frozen=True)
class Download:
    """A file of the source: where it lies below the source folder, its URL, and its SHA-256."""

    path: str
    url: str
    sha256: str


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A public dataset, or one part of it.

    Attributes:
        name: of the prepared dataset.
        kind: of the records that its rows make.
        about: one line on what it is.
        homepage: of the source.
        files: split -> names of published files without their endings, relative to the source folder;
            `*` stands for anything. The split None: the row says it itself, in the field `split`.
        convert: a published row and the name of its file -> our rows. Raises InputError for a row that
            breaks the format, LeftOut for one that is known to be of no use.
        columns: the fields of our rows and what they hold, see `prepared.KINDS`.
        expect: what a published row is, dict or list.
        assemble: makes rows of which `convert` knows the form from those of a file, where not each
            line is one.
        downloads: what --download fetches; empty where no checksum is known from a public source.
        chat: of rows whose prompt is a dialogue in the source's own markup, the same row with `messages`.
    """

    name: str
    kind: Kind
    about: str
    homepage: str
    files: Mapping[str | None, tuple[str, ...]]
    convert: Callable[[Any, str], Iterable[Row]]
    columns: Mapping[str, str]
    expect: type = dict
    assemble: Callable[[Iterator[tuple[str, Any]]], Iterator[tuple[str, Any]]] | None = None
    downloads: tuple[Download, ...] = ()
    chat: Callable[[Row], Row] | None = None

    def as_chat(self) -> "Dataset":
        """The dataset with messages, for the run's chat template, in place of prompts to the letter."""
        if self.chat is None:
            raise InputError(f"--chat: the prompts of {self.name} are no dialogues in markup of their own")
        columns = {"messages": "messages", **self.columns}
        del columns["prompt"]
        return dataclasses.replace(
            self, columns=columns, convert=lambda row, file: map(self.chat, self.convert(row, file))
        )


DEMONSTRATION = {"prompt": "text", "completion": "text", "group": "text"}
RANKING = {"prompt": "text", "completions": "texts", "ranks": "ints", "labeler": "text", "group": "text"}


def text(row: Row, name: str) -> str:
    """The text of a field; raises InputError where it is missing, no string, or half a character."""
    return string_of(field(row, name), name)


def filled(row: Row, name: str) -> str:
    """The text of a field that a row is of no use without."""
    if not (value := text(row, name)).strip():
        raise LeftOut(f"field {name!r} is empty")
    return value


def number(row: Row, name: str) -> float:
    """The number of a field."""
    value = field(row, name)
    if type(value) not in (int, float) or value != value:
        raise InputError(f"field {name!r} is not a number")
    return float(value)


def field(row: Row, name: str, kind: type | None = None) -> Any:
    """The value of a field, of a type where one is given; `name` may be nested, as 'info.post'."""
    value = row
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            has = ", ".join(map(repr, row))
            has = has if len(has) <= 100 else has[:97] + "..."
            raise InputError(f"field {name!r} is missing; the row has {has}")
        value = value[part]
    if kind is not None and not isinstance(value, kind):
        raise InputError(f"field {name!r} must be {'a list' if kind is list else 'an object'}")
    return value
