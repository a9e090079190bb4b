"""Rows in the public formats -> typed records.

A row is one JSON object on a line of a .jsonl file (or .jsonl.xz, .jsonl.gz), or one of the other
things that `rows` reads. Its own fields say which format it has: the prompt is one of

    prompt                   text that the model reads to the letter, or messages
    instruction [, input]    rendered by the run's template
    messages [, tools]       [{role, content}, ...] (see data/messages.py), rendered by the run's template
    conversations            the same in ShareGPT's form, [{from, value}, ...]

and what belongs to it depends on the kind of data:

    documents        text (or a .txt file: split at `<|endoftext|>` lines, else at blank lines)
    prompts          nothing more
    demonstrations   completion | output | the assistant's turns of messages
    rankings         chosen, rejected | completions, ranks or scores [, labeler, group, models, finished]
                     | completion, score (rated by itself; may lack a prompt)

A completion is text, or one message of the assistant. `other_formats` lists the forms of other programs that are read,
too. Ranks are whole numbers from 1 (best) to MOST_RANK, and scores are numbers from -MOST_SCORE to MOST_SCORE. Fields
of other names are kept in the record's `row`.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from rlhf_jax.data import messages, other_formats
from rlhf_jax.data.records import Demonstration, Document, Kind, Prompt, Ranking, Record, ranks_of, without_repeats
from rlhf_jax.data.row_fields import (
    field_of,
    label_of,
    list_of,
    not_blank,
    one_of,
    optional_list,
    score_of,
    shown,
    string_of,
    text_of,
    what_it_has,
    whole,
)
from rlhf_jax.data.rows import Row
from rlhf_jax.data.template import Template, Turn
from rlhf_jax.runtime.errors import InputError

MOST_RANK = 2**31 - 1  # they become int32


Turns = Literal["last", "all"]


def parse_row(
    row: Row,
    kind: Kind,
    template: Template = Template(),
    fields: Mapping[str, str] | None = None,
    turns: Turns = "last",
) -> Record:
    """Makes the record of one row; raises InputError without naming a place.

    Args:
        row: the row.
        kind: the kind of the record.
        template: renders instructions and messages.
        fields: the row's names of fields -> ours.
        turns: which of the assistant's turns are completions, in a demonstration that is a chat.
    """
    ours = _rename(row, fields) if fields else row
    if kind == "documents":
        return _document(ours, row, template)
    ours = other_formats.as_ours(ours)
    return (
        _demonstration(ours, row, template, turns) if kind == "demonstrations" else PARSERS[kind](ours, row, template)
    )


def _rename(row: Row, fields: Mapping[str, str]) -> Row:
    for theirs, ours in fields.items():
        if theirs not in row:
            raise InputError(f"field {theirs!r}, to be read as {ours!r}, is missing; {what_it_has(row)}")
        if ours in row and ours not in fields:
            raise InputError(f"fields {theirs!r}, to be read as {ours!r}, and {ours!r} are both there; remove one")
    return {fields.get(name, name): value for name, value in row.items()}


def _document(row: Row, source: Row, template: Template) -> Document:
    return Document(text_of(row, "text"), source.get("split"))


def _prompt(row: Row, source: Row, template: Template) -> Prompt:
    return Prompt(_context(row, template).text, source)


def _demonstration(row: Row, source: Row, template: Template, turns: Turns = "last") -> Demonstration:
    kind = one_of(row, *other_formats.CHATS, "completion", "output")
    if kind in other_formats.CHATS:
        one_of(row, *other_formats.PROMPTS)
        chat, prompt = messages.chat_of(row, kind), 1
    elif messages.is_chat(row[kind]) and messages.is_chat(row.get("prompt")):
        chat = messages.chat_of(row, "prompt")
        prompt = len(chat.turns)
        chat.turns.extend(messages.turns_of(row[kind], kind))
    else:
        context = _context(row, template)
        return Demonstration(context.text, _completion(context, row[kind], kind, template), source)
    replies = [i for i, turn in enumerate(chat.turns) if i >= prompt and _is_trained(turn, f"{kind}[{i}]")]
    if not replies:
        raise InputError(
            f"field {kind!r} needs an assistant turn after another turn; the last such turn is the completion"
        )
    pairs = [
        (template.chat(chat.turns[:i], chat.tools), template.reply(chat.turns[i]))
        for i in (replies if turns == "all" else replies[-1:])
    ]
    return Demonstration(*pairs[-1], source, earlier=tuple(pairs[:-1]))


def _is_trained(turn: Turn, name: str) -> bool:
    """Whether a turn is a completion: it is the assistant's, and its `weight` (OpenAI's) is not 0."""
    weight = turn.get("weight", 1)
    if weight not in (0, 1):
        raise InputError(f"field '{name}.weight' is {shown(weight)}; it must be 0 or 1")
    return turn["role"] == "assistant" and weight == 1


def _ranking(row: Row, source: Row, template: Template) -> Ranking:
    kind = one_of(row, "chosen", "completions", "completion")
    if kind == "completion":
        return _rated(row, source, template)
    context, scores = _context(row, template), None
    if kind == "chosen":
        names, ranks = ("chosen", "rejected"), (1, 2)
        texts = tuple(_completion(context, field_of(row, name), name, template) for name in names)
    else:
        completions = list_of(row, "completions")
        if len(completions) < 2:
            raise InputError(f"field 'completions' has {len(completions)} entries; a ranking needs at least 2")
        texts = tuple(_completion(context, value, f"completions[{i}]", template) for i, value in enumerate(completions))
        if isinstance(row.get("labels"), list) and row.get("ranks") is None and row.get("scores") is None:
            raise InputError(
                "field 'labels' judges the steps of one answer (stepwise supervision), which no stage learns from; give "
                "whole answers as `completions`, with ranks or scores"
            )
        if one_of(row, "ranks", "scores") == "scores":
            given = list_of(row, "scores", len(texts))
            scores = tuple(score_of(score, f"scores[{i}]") for i, score in enumerate(given))
            ranks = ranks_of(scores)
        else:
            given = list_of(row, "ranks", len(texts))
            ranks = tuple(whole(rank) for rank in given)
            if not all(rank and 1 <= rank <= MOST_RANK for rank in ranks):
                raise InputError(
                    f"field 'ranks' is {shown(given)}; ranks are whole numbers from 1 (best) to "
                    f"{MOST_RANK}, equal for a tie"
                )
    models = optional_list(row, "models", len(texts), str, "strings")
    finished = optional_list(row, "finished", len(texts), bool, "true or false")
    kept = without_repeats(list(zip(texts, finished)) if finished else texts, ranks)
    if len(kept) < 2:
        raise InputError("all completions are the same text, and one is ranked above another; leave the row out")

    def chosen(values):
        return values and tuple(values[place] for place in kept)

    return Ranking(
        context.text,
        chosen(texts),
        chosen(ranks),
        label_of(row, "labeler"),
        label_of(row, "group"),
        chosen(models),
        chosen(finished),
        source,
        chosen(scores),
        repeats=len(texts) - len(kept),
    )


def _rated(row: Row, source: Row, template: Template) -> Ranking:
    has_prompt = any(row.get(name) for name in other_formats.PROMPTS)
    context = _context(row, template) if has_prompt else _Context("", "instruction")
    text = _completion(context, field_of(row, "completion"), "completion", template)
    if "score" not in row:
        raise InputError(f"field 'score' is missing; {what_it_has(row)}")
    return Ranking(
        context.text,
        (text,),
        (1,),
        label_of(row, "labeler"),
        label_of(row, "group"),
        None,
        None,
        source,
        (score_of(row["score"], "score"),),
    )


PARSERS = {"documents": _document, "prompts": _prompt, "demonstrations": _demonstration, "rankings": _ranking}


class _Context(NamedTuple):
    """What a completion follows: the text of the prompt, and where it comes from."""

    text: str
    form: Literal["written", "instruction", "chat"]


def _context(row: Row, template: Template) -> _Context:
    """Returns the prompt of a row as the model reads it."""
    name = one_of(row, *other_formats.PROMPTS)
    if name == "instruction":
        given = row.get("input")
        text = template.prompt(text_of(row, "instruction"), "" if given is None else string_of(given, "input"))
        return _Context(text, "instruction")
    if name == "prompt" and not messages.is_chat(row["prompt"]):
        return _Context(template.written(text_of(row, "prompt")), "written")
    turns, tools = messages.chat_of(row, name)
    if turns[-1]["role"] == "assistant" and name in other_formats.CHATS:
        turns = turns[:-1]
    if not turns:
        raise InputError(f"field {name!r} needs a turn before the assistant's turn")
    if turns[-1]["role"] == "assistant":
        raise InputError("field 'prompt' ends with a turn of the assistant; a prompt ends before the assistant answers")
    return _Context(template.chat(turns, tools), "chat")


def _completion(context: _Context, value: Any, name: str, template: Template) -> str:
    """Returns a completion as it follows its prompt.

    Only what follows a rendered prompt is rendered; behind a prompt of text it is written as the model reads it.
    """
    if messages.is_chat(value):
        if context.form != "chat":
            raise InputError(
                f"field {name!r} has messages and the prompt is text; write the prompt as messages, too, or the "
                "completion as text"
            )
        return template.reply(messages.reply_of(value, name))
    text = not_blank(value, name)
    if context.form == "written":
        return template.written_completion(text)
    return template.completion(text, chat=context.form == "chat")
