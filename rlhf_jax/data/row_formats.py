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

from collections.abc import Mapping

from rlhf_jax.data import template as template_lib
from rlhf_jax.data.records import Demonstration, Document, Kind, Prompt, Ranking, Record, ranks_of, without_repeats
from rlhf_jax.data.row_fields import (
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
from rlhf_jax.data.rows import Row, type_name
from rlhf_jax.data.template import Template
from rlhf_jax.runtime.errors import InputError

MOST_RANK = 2**31 - 1  # they become int32


def parse_row(row: Row, kind: Kind, template: Template = Template(), fields: Mapping[str, str] | None = None) -> Record:
    """Makes the record of one row; raises InputError without naming a place."""
    return PARSERS[kind](_rename(row, fields) if fields else row, row, template)


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
    return Prompt(_prompt_text(row, template), source)


def _demonstration(row: Row, source: Row, template: Template) -> Demonstration:
    if one_of(row, "messages", "completion", "output") == "messages":
        one_of(row, *_PROMPT_FIELDS)
        turns = _turns(row)
        while turns and turns[-1]["role"] != "assistant":
            turns.pop()
        if len(turns) < 2:
            raise InputError(
                "field 'messages' needs an assistant turn after another turn; the last such turn is the completion"
            )
        reply = template.completion(turns[-1]["content"], chat=True)
        return Demonstration(template.chat(turns[:-1]), reply, source)
    text = text_of(row, one_of(row, "completion", "output"))
    return Demonstration(_prompt_text(row, template), _completion(row, text, template), source)


def _ranking(row: Row, source: Row, template: Template) -> Ranking:
    kind = one_of(row, "chosen", "completions", "completion")
    if kind == "completion":
        return _rated(row, source, template)
    prompt, scores = _prompt_text(row, template), None
    if kind == "chosen":
        texts, ranks = (text_of(row, "chosen"), text_of(row, "rejected")), (1, 2)
    else:
        completions = list_of(row, "completions")
        if len(completions) < 2:
            raise InputError(f"field 'completions' has {len(completions)} entries; a ranking needs at least 2")
        texts = tuple(not_blank(text, f"completions[{i}]") for i, text in enumerate(completions))
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
        prompt,
        tuple(_completion(row, texts[place], template) for place in kept),
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
    prompt = _prompt_text(row, template) if any(row.get(name) for name in _PROMPT_FIELDS) else ""
    text = _completion(row, text_of(row, "completion"), template)
    if "score" not in row:
        raise InputError(f"field 'score' is missing; {what_it_has(row)}")
    return Ranking(
        prompt,
        (text,),
        (1,),
        label_of(row, "labeler"),
        label_of(row, "group"),
        None,
        None,
        source,
        (score_of(row["score"], "score"),),
    )


_PROMPT_FIELDS = ("prompt", "instruction", "messages")
PARSERS = {"documents": _document, "prompts": _prompt, "demonstrations": _demonstration, "rankings": _ranking}


def _prompt_text(row: Row, template: Template) -> str:
    name = one_of(row, *_PROMPT_FIELDS)
    if name == "prompt":
        return template.written(text_of(row, "prompt"))
    if name == "instruction":
        given = row.get("input")
        return template.prompt(text_of(row, "instruction"), "" if given is None else string_of(given, "input"))
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
    for i, message in enumerate(list_of(row, "messages")):
        if not isinstance(message, dict):
            raise InputError(
                f'field \'messages[{i}]\' is {type_name(message)}; a message is {{"role": ..., "content": ...}}'
            )
        role = message.get("role")
        if role not in template_lib.ROLES:
            raise InputError(f"field 'messages[{i}].role' is {shown(role)}; roles are {', '.join(template_lib.ROLES)}")
        name, content = f"messages[{i}].content", message.get("content")
        # A system turn without text is one that says nothing; some templates then leave their own away.
        content = string_of(content, name) if role == "system" else not_blank(content, name)
        turns.append({"role": role, "content": content})
    if not any(turn["content"].strip() for turn in turns):
        raise InputError("field 'messages' is empty; a chat has at least one turn")
    return turns
