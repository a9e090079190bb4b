"""Describes a public dataset: the files that its source publishes, and how to convert their rows."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from rlhf_jax.data.records import Kind
from rlhf_jax.data.row_fields import string_of
from rlhf_jax.runtime.errors import InputError

Row = dict[str, Any]


class LeftOut(InputError):
    """A published row that is known to be of no use for training: it is left out and counted, and is no error."""


@dataclasses.dataclass(frozen=True)
class Download:
    """A file of the source: its path in the source folder, its URL, and its SHA-256 in hexadecimal digits."""

    path: str
    url: str
    sha256: str


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A public dataset, or one part of it.

    Attributes:
        name: name of the prepared dataset.
        kind: kind of records that its rows make.
        about: one-line description.
        homepage: URL of the source.
        files: split -> names of published files without their endings, relative to the source folder (see
            `folders.find`). The split None stands for files whose converted rows have a field `split`.
        convert: function (published row, name of its file) -> converted rows. It raises InputError for a row that
            breaks the format, and LeftOut for a row that is known to be of no use.
        columns: name -> one of `prepared.KINDS`, the fields of converted rows.
        expect: type of a published row: dict, list, or object for either.
        assemble: function that makes the rows that `convert` takes from the lines of a file; None if each line is one.
        downloads: the files that --download fetches; empty if no checksum is known from a public source.
        chat: function that replaces a converted row's prompt, a dialogue in the source's markup, by `messages`; None if
            prompts are no such dialogues.
        shorter: function that returns a prompt without its last part, or None if it has no part to spare, for prompts
            that are too long; None if the source has no rule for them.
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
    shorter: Callable[[str], str | None] | None = None

    def as_chat(self) -> "Dataset":
        """Returns the dataset with messages, for the run's chat template, in place of verbatim prompts.

        Raises:
            InputError: the prompts are no dialogues.
        """
        if self.chat is None:
            raise InputError(
                f"--chat: leave it out, because the prompts of {self.name} are not dialogues with markup of their own"
            )
        columns = {"messages": "messages", **self.columns}
        columns = {name: kind for name, kind in columns.items() if name not in ("prompt", "completion")}
        return dataclasses.replace(
            self, columns=columns, convert=lambda row, file: map(self.chat, self.convert(row, file))
        )

    def fit(self, prompt: str, tokens: int, count: Callable[[str], int]) -> str:
        """Returns a prompt of at most `tokens` tokens, which `shorter` makes of a longer one.

        Args:
            prompt: the prompt.
            tokens: the largest number of tokens.
            count: function that returns the number of tokens of a prompt.

        Raises:
            LeftOut: the prompt is too long even without all that `shorter` takes off.
        """
        assert self.shorter is not None
        while count(prompt) > tokens:
            if (cut := self.shorter(prompt)) is None:
                raise LeftOut(f"the prompt is longer than {tokens} tokens without its text")
            prompt = cut
        return prompt


DEMONSTRATION = {"prompt": "text", "completion": "text", "group": "text"}
RANKING = {"prompt": "text", "completions": "texts", "ranks": "ints", "labeler": "text", "group": "text"}


def text(row: Row, name: str) -> str:
    """Returns the text of a field; raises InputError if it is missing, no string, or has half a surrogate pair."""
    return string_of(field(row, name), name)


def filled(row: Row, name: str) -> str:
    """Returns the text of a field; raises LeftOut if it is blank, for a field without which a row is of no use."""
    if not (value := text(row, name)).strip():
        raise LeftOut(f"field {name!r} is empty")
    return value


def number(row: Row, name: str) -> float:
    """Returns the number of a field; raises InputError if it is missing, no number, or NaN."""
    value = field(row, name)
    if type(value) not in (int, float) or value != value:
        raise InputError(f"field {name!r} is not a number")
    return float(value)


def field(row: Row, name: str, kind: type | None = None) -> Any:
    """Returns the value of a field; raises InputError if it is missing or not of type `kind`.

    A name with dots, such as 'info.post', refers to a nested field.
    """
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
