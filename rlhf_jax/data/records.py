"""Rows in the public formats -> typed records.

A row is one JSON object on a line of a .jsonl file (or .jsonl.xz, .jsonl.gz), or one of the other
things that `rows` reads. Its own fields say which format it has: the prompt is one of

    prompt                   text that the model reads to the letter
    instruction [, input]    rendered by the run's template
    messages                 [{role, content}, ...], rendered by the run's template

and what belongs to it depends on the kind of data:

    documents        text (or a .txt file: split at `<|endoftext|>` lines, else at blank lines)
    prompts          nothing more
    demonstrations   completion | output | the last assistant turn of messages
    rankings         chosen, rejected | completions, ranks or scores [, labeler, group, models, finished]
                     | completion, score (rated by itself; may lack a prompt)

Ranks are whole numbers from 1 (best) to MOST_RANK, and scores are numbers from -MOST_SCORE to MOST_SCORE. Fields of
other names are kept in the record's `row`.
"""

import dataclasses
import json
import os
import re
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any, Literal

from rlhf_jax.data import documents, files, rows
from rlhf_jax.data import template as template_lib
from rlhf_jax.data.rows import Row, check_characters, type_name
from rlhf_jax.data.template import Template
from rlhf_jax.runtime.errors import InputError

Kind = Literal["documents", "prompts", "demonstrations", "rankings"]

MOST_RANK = 2**31 - 1  # they become int32
MOST_SCORE = 1e9  # float32 keeps seven digits, and squares of larger ones do not fit into sums

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,2})?", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Document:
    """Raw text for pretraining, and the split that its source gave it."""

    text: str
    split: str | None = None


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt as the model reads it."""

    prompt: str
    row: Row


@dataclasses.dataclass(frozen=True)
class Demonstration:
    """A prompt and the completion that people want."""

    prompt: str
    completion: str
    row: Row


@dataclasses.dataclass(frozen=True)
class Ranking:
    """K completions of one prompt, ranked by one labeler; K = 1 is a completion that has a score.

    `ranks` are >= 1: 1 is best, equal ranks are ties. `finished` says of each completion whether
    it ended by itself (None: all did). `group` is what a split must not divide. `scores` are the
    labeler's, higher is better, where the ranks come from these. `sampled` are the completions' token
    ids as a model of the run wrote them, with the token that ended it: text can be written in several.
    `repeats` counts completions of the row that are left out, because the same text has another rank.
    """

    prompt: str
    completions: tuple[str, ...]
    ranks: tuple[int, ...]
    labeler: str | None
    group: str | None
    models: tuple[str, ...] | None
    finished: tuple[bool, ...] | None
    row: Row
    scores: tuple[float, ...] | None = None
    sampled: tuple[tuple[int, ...], ...] | None = None
    repeats: int = 0

    @property
    def unit(self) -> tuple:
        """The unit whose rankings are not independent: a prompt, whoever ranked; without a prompt, the texts of a row."""
        return (self.prompt,) if self.prompt else ("", self.completions)

    def of(self, places: Sequence[int]) -> "Ranking":
        """The ranking of some of its completions, with what belongs to them."""
        columns = ("completions", "ranks", "models", "finished", "scores", "sampled")
        values = {name: getattr(self, name) for name in columns}
        return dataclasses.replace(
            self, **{name: value and tuple(value[place] for place in places) for name, value in values.items()}
        )

    @property
    def all_tied(self) -> bool:
        """Whether no pair of completions says anything."""
        return len(self.ranks) > 1 and len(set(self.ranks)) == 1


Record = Document | Prompt | Demonstration | Ranking


@dataclasses.dataclass(frozen=True)
class ReadReport:
    """What became of a file's rows: skipped ones as ('file:line', reason)."""

    path: str
    kept: int
    skipped: tuple[tuple[str, str], ...]
    all_tied: int
    repeats: int = 0  # completions left out

    def __str__(self) -> str:
        text = f"{self.path}: {self.kept} rows"
        if self.all_tied:
            text += f", {self.all_tied} of them rank all completions equally"
        if self.repeats:
            text += f", {self.repeats} completions left out because they repeat another one under another rank"
        if self.skipped:
            text += f", {len(self.skipped)} bad ones skipped"
        return text


def read_rows(
    path: str | os.PathLike,
    kind: Kind,
    template: Template = Template(),
    *,
    on_bad_row: Literal["error", "skip"] = "error",
    fields: Mapping[str, str] | None = None,
    document_end: str | None = None,
    splits: Collection[str] = (),
    names: Collection[str] = (),
) -> tuple[list[Record], ReadReport]:
    """Reads a file or folder of rows of one kind.

    Args:
        path: what `rows.read` reads, or .txt for documents.
        kind: which records to make.
        template: renders rows with an instruction or messages.
        on_bad_row: raise at the first bad row, or skip bad rows and report them. A file that is
            broken as a whole is an error either way.
        fields: the file's names -> ours, e.g. {'question': 'instruction', 'answer': 'output'}.
        document_end: regular expression between the documents of a .txt file, where they are
            divided neither by `<|endoftext|>` lines nor by blank lines.
        splits: only these of a folder that publishes splits.
        names: fields of the file that hold a name, a string or a whole number, wherever a row has them.

    Raises:
        InputError: one sentence that names file and line, and what would be right.
    """
    if kind not in _PARSERS:
        raise InputError(f"kind is {kind!r}; it must be one of {', '.join(_PARSERS)}")
    if on_bad_row not in ("error", "skip"):
        raise InputError(f"on_bad_row is {on_bad_row!r}; it must be 'error' or 'skip'")
    file_type = files.file_type(path)
    if file_type == ".txt" and kind == "documents":
        texts = documents.split(files.read_text(path), document_end)
        return [Document(text) for text in texts], ReadReport(str(path), len(texts), (), 0)
    if file_type not in rows.SUFFIXES and not os.path.isdir(path):
        wanted = (".txt", *rows.SUFFIXES) if kind == "documents" else rows.SUFFIXES
        raise InputError(f"{path}: {kind} are read from {', '.join(wanted)} files, or a folder of them")

    records, skipped = [], []
    for where, row in rows.read(path, splits=splits):
        try:
            if isinstance(row, InputError):
                raise row
            for name in names:
                if row.get(name) != "":
                    _label(row, name)
            records.append(parse_row(row, kind, template, fields))
        except InputError as error:
            if on_bad_row == "error":
                raise InputError(f"{where}: {error}") from None
            skipped.append((where, str(error)))
    if not records:
        first = f"; the first of {len(skipped)} bad rows: {skipped[0][1]}" if skipped else ""
        raise InputError(f"{path}: no usable row{first}")
    counts = ()
    if kind == "rankings":
        counts = sum(record.all_tied for record in records), sum(record.repeats for record in records)
    return records, ReadReport(str(path), len(records), tuple(skipped), *(counts or [0]))


def parse_row(row: Row, kind: Kind, template: Template = Template(), fields: Mapping[str, str] | None = None) -> Record:
    """Makes the record of one row; raises InputError without naming a place."""
    return _PARSERS[kind](_rename(row, fields) if fields else row, row, template)


def _rename(row: Row, fields: Mapping[str, str]) -> Row:
    for theirs, ours in fields.items():
        if theirs not in row:
            raise InputError(f"field {theirs!r}, to be read as {ours!r}, is missing; {_has(row)}")
        if ours in row and ours not in fields:
            raise InputError(f"fields {theirs!r}, to be read as {ours!r}, and {ours!r} are both there; remove one")
    return {fields.get(name, name): value for name, value in row.items()}


def _document(row: Row, source: Row, template: Template) -> Document:
    return Document(_text(row, "text"), source.get("split"))


def _prompt(row: Row, source: Row, template: Template) -> Prompt:
    return Prompt(_prompt_text(row, template), source)


def _demonstration(row: Row, source: Row, template: Template) -> Demonstration:
    if _one_of(row, "messages", "completion", "output") == "messages":
        _one_of(row, *_PROMPT_FIELDS)
        turns = _turns(row)
        while turns and turns[-1]["role"] != "assistant":
            turns.pop()
        if len(turns) < 2:
            raise InputError(
                "field 'messages' needs an assistant turn after another turn; the last such turn is the completion"
            )
        reply = template.completion(turns[-1]["content"], chat=True)
        return Demonstration(template.chat(turns[:-1]), reply, source)
    text = _text(row, _one_of(row, "completion", "output"))
    return Demonstration(_prompt_text(row, template), _completion(row, text, template), source)


def _ranking(row: Row, source: Row, template: Template) -> Ranking:
    kind = _one_of(row, "chosen", "completions", "completion")
    if kind == "completion":
        return _rated(row, source, template)
    prompt, scores = _prompt_text(row, template), None
    if kind == "chosen":
        texts, ranks = (_text(row, "chosen"), _text(row, "rejected")), (1, 2)
    else:
        completions = _list(row, "completions")
        if len(completions) < 2:
            raise InputError(f"field 'completions' has {len(completions)} entries; a ranking needs at least 2")
        texts = tuple(_not_blank(text, f"completions[{i}]") for i, text in enumerate(completions))
        if _one_of(row, "ranks", "scores") == "scores":
            given = _list(row, "scores", len(texts))
            scores = tuple(_score(score, f"scores[{i}]") for i, score in enumerate(given))
            ranks = ranks_of(scores)
        else:
            given = _list(row, "ranks", len(texts))
            ranks = tuple(_whole(rank) for rank in given)
            if not all(rank and 1 <= rank <= MOST_RANK for rank in ranks):
                raise InputError(
                    f"field 'ranks' is {_shown(given)}; ranks are whole numbers from 1 (best) to "
                    f"{MOST_RANK}, equal for a tie"
                )
    models = _optional_list(row, "models", len(texts), str, "strings")
    finished = _optional_list(row, "finished", len(texts), bool, "true or false")
    kept = without_repeats(list(zip(texts, finished)) if finished else texts, ranks)
    if len(kept) < 2:
        raise InputError("all completions are the same text, and one is ranked above another; leave the row out")

    def chosen(values):
        return values and tuple(values[place] for place in kept)

    return Ranking(
        prompt,
        tuple(_completion(row, texts[place], template) for place in kept),
        chosen(ranks),
        _label(row, "labeler"),
        _label(row, "group"),
        chosen(models),
        chosen(finished),
        source,
        chosen(scores),
        repeats=len(texts) - len(kept),
    )


def without_repeats(completions: Sequence[Hashable], ranks: Sequence[int]) -> list[int]:
    """The places of all but those that repeat an earlier one under another rank: nobody prefers a text to itself."""
    first = {}
    return [place for place, (text, rank) in enumerate(zip(completions, ranks)) if first.setdefault(text, rank) == rank]


def _rated(row: Row, source: Row, template: Template) -> Ranking:
    prompt = _prompt_text(row, template) if any(row.get(name) for name in _PROMPT_FIELDS) else ""
    text = _completion(row, _text(row, "completion"), template)
    if "score" not in row:
        raise InputError(f"field 'score' is missing; {_has(row)}")
    return Ranking(
        prompt,
        (text,),
        (1,),
        _label(row, "labeler"),
        _label(row, "group"),
        None,
        None,
        source,
        (_score(row["score"], "score"),),
    )


def ranks_of(scores: Sequence[float]) -> tuple[int, ...]:
    """1 for the highest score; equal scores tie."""
    return tuple(1 + sum(other > score for other in scores) for score in scores)


_PROMPT_FIELDS = ("prompt", "instruction", "messages")
_PARSERS = {"documents": _document, "prompts": _prompt, "demonstrations": _demonstration, "rankings": _ranking}


def _prompt_text(row: Row, template: Template) -> str:
    name = _one_of(row, *_PROMPT_FIELDS)
    if name == "prompt":
        return template.written(_text(row, "prompt"))
    if name == "instruction":
        given = row.get("input")
        return template.prompt(_text(row, "instruction"), "" if given is None else string_of(given, "input"))
    turns = _turns(row)
    if turns[-1]["role"] == "assistant":
        turns.pop()
    if not turns:
        raise InputError("field 'messages' needs a turn before the assistant's turn")
    return template.chat(turns)


def _completion(row: Row, text: str, template: Template) -> str:
    """Only what follows a rendered prompt is rendered; beside `prompt` it is written as the model reads it."""
    if row.get("prompt") is not None:
        return template.written_completion(text)
    return template.completion(text, chat=row.get("messages") is not None)


def _turns(row: Row) -> list[dict[str, str]]:
    turns = []
    for i, message in enumerate(_list(row, "messages")):
        if not isinstance(message, dict):
            raise InputError(
                f'field \'messages[{i}]\' is {type_name(message)}; a message is {{"role": ..., "content": ...}}'
            )
        role = message.get("role")
        if role not in template_lib.ROLES:
            raise InputError(f"field 'messages[{i}].role' is {_shown(role)}; roles are {', '.join(template_lib.ROLES)}")
        name, content = f"messages[{i}].content", message.get("content")
        # A system turn without text is one that says nothing; some templates then leave their own away.
        content = string_of(content, name) if role == "system" else _not_blank(content, name)
        turns.append({"role": role, "content": content})
    if not any(turn["content"].strip() for turn in turns):
        raise InputError("field 'messages' is empty; a chat has at least one turn")
    return turns


def _one_of(row: Row, *names: str) -> str:
    """The one field of `names` that the row has; null counts as absent."""
    present = [name for name in names if row.get(name) is not None] or [name for name in names if name in row]
    if len(present) == 1:
        return present[0]
    if present:
        raise InputError(f"fields {' and '.join(map(repr, present))} belong to different formats; keep one")
    raise InputError(f"needs one of the fields {', '.join(names)}; {_has(row)}")


def _text(row: Row, name: str) -> str:
    if name not in row:
        raise InputError(f"field {name!r} is missing; {_has(row)}")
    return _not_blank(row[name], name)


def _not_blank(value: Any, name: str) -> str:
    if not string_of(value, name).strip():
        raise InputError(f"field {name!r} is empty; give its text or leave the row out")
    return value


def string_of(value: Any, name: str) -> str:
    """The text of a field; raises InputError where it is no string, or holds half a character."""
    if type(value) is not str:  # Binary is no text
        raise InputError(f"field {name!r} is {type_name(value)}; it must be a string")
    check_characters(value, name)
    return value


def _score(value: Any, name: str) -> float:
    if type(value) is str and len(value) < 50 and _NUMBER.fullmatch(value.strip()):  # CSV knows no numbers
        value = float(value)
    if type(value) not in (int, float) or not abs(value) <= MOST_SCORE:
        raise InputError(
            f"field {name!r} is {_shown(value)}; it must be a number from -{MOST_SCORE:.0f} to {MOST_SCORE:.0f}"
        )
    return float(value)


def _whole(value: Any) -> int | None:
    """The whole number that a value is, also as 1.0; None if it is none."""
    whole = type(value) is int or type(value) is float and value.is_integer()
    return int(value) if whole else None


def _list(row: Row, name: str, length: int | None = None) -> list:
    if name not in row:
        raise InputError(f"field {name!r} is missing; {_has(row)}")
    value = row[name]
    if not isinstance(value, list):
        raise InputError(f"field {name!r} is {type_name(value)}; it must be a list")
    if length is not None and len(value) != length:
        raise InputError(f"field {name!r} has {len(value)} entries for {length} completions; it needs one for each")
    return value


def _optional_list(row: Row, name: str, length: int, entry: type, entries: str) -> tuple | None:
    if row.get(name) is None:
        return None
    value = _list(row, name, length)
    if any(type(item) is not entry for item in value):
        raise InputError(f"field {name!r} is {_shown(value)}; it must be a list of {entries}")
    return tuple(value)


def _label(row: Row, name: str) -> str | None:
    value = row.get(name)
    if (number := _whole(value)) is not None:
        return str(number)
    if value is not None and type(value) is not str:
        what = _shown(value) if type(value) is float else type_name(value)
        raise InputError(f"field {name!r} is {what}; it must be a string or a whole number")
    return None if value is None else _not_blank(value, name)


def _has(row: Row) -> str:
    if not row:
        return "the row has no fields"
    names = ", ".join(map(repr, row))
    return f"the row has {_shortened(names)}; other names are mapped by `fields`"


def _shown(value: Any) -> str:
    return _shortened(json.dumps(value, default=str))


def _shortened(text: str) -> str:
    return text if len(text) <= 100 else text[:97] + "..."
