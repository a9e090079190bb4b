"""What people judge: a prompt with its completions, read from files of rows.

A row has a prompt in one of the forms of data/row_formats.py, and with it

    completions [, models, finished]    or `chosen` and `rejected`
    completion [, model, finished]      one completion, as `python -m rlhf_jax.generate --out` writes them; the
                                        completions of one prompt are put together, over all files
    nothing more                        where people write demonstrations
"""

import collections
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rlhf_jax.data import messages, other_formats, rows
from rlhf_jax.data.records import ranks_of
from rlhf_jax.data.row_fields import list_of, not_blank, one_of, optional_list, score_of, text_of, whole
from rlhf_jax.data.rows import Row
from rlhf_jax.runtime.errors import InputError

MOST = 9  # completions of a prompt; the paper's labelers ranked 4 to 9, and each has a digit key

# Fields of a source's row that would say something else of the row of a judgment.
_NOT_KEPT = {
    *("completion", "completions", "chosen", "rejected", "answers", "output", "ranks", "scores", "score", "label"),
    *("labels", "labeler", "model", "models", "finished", "sample", "tokens", "logprob", "given", "ratings", "flags"),
}
_OF_GENERATE = {"completion", "sample", "finished", "tokens", "logprob"}


@dataclasses.dataclass(frozen=True)
class Item:
    """A prompt with K completions to rank; K = 0 where a demonstration is to be written.

    Attributes:
        key: a digest of prompt and completions, which names the item in the file of judgments.
        prompt: the fields of the prompt, as the file of judgments has them.
        turns: the prompt for people, as (role, text); the role of a plain prompt is "".
        completions: each as the file of judgments has it, a text or a message.
        texts: the completions for people.
        models: the model that wrote each, or None.
        finished: whether each ended by itself, or None: all did.
        gold: the known ranks of an item that screens labelers; else None.
        others: further fields of its row, which the judgments keep.
    """

    key: str
    prompt: Row
    turns: tuple[tuple[str, str], ...]
    completions: tuple[Any, ...] = ()
    texts: tuple[str, ...] = ()
    models: tuple[str, ...] | None = None
    finished: tuple[bool, ...] | None = None
    gold: tuple[int, ...] | None = None
    others: Row = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class LeftOut:
    """How many things of the files nobody is asked about, each with its reason."""

    repeated_items: int = 0
    repeated_completions: int = 0
    empty_completions: int = 0
    too_few: int = 0

    def __str__(self) -> str:
        said = {
            "items that repeat another": self.repeated_items,
            "completions that repeat another of their prompt": self.repeated_completions,
            "completions without text": self.empty_completions,
            "prompts with fewer than two completions": self.too_few,
        }
        return ", ".join(f"{count} {what}" for what, count in said.items() if count)


def read_comparisons(sources: Sequence[tuple[str, str]]) -> tuple[list[Item], LeftOut]:
    """Returns the items of files with completions.

    Args:
        sources: the files, each with the name of the model that wrote the completions of rows that name none.

    Raises:
        InputError: names file and line of a bad row; or no item is left.
    """
    left_out, found = LeftOut(), []
    single: dict[str, list[tuple[str, Row]]] = collections.defaultdict(list)
    for name, path in sources:
        for place, row in _rows(path):
            with _named(place):
                row = _as_asked(row)
                if _has(row, "completions", "chosen", "answers"):
                    found.append(_comparison(row))
                elif _has(row, "completion"):
                    text_of(row, "model") if "model" in row else None
                    row = {"model": name} | row
                    single[json.dumps(prompt_of(row)[0], sort_keys=True)].append((place, row))
                else:
                    raise InputError("needs one of the fields completions, completion, chosen")
    for places in single.values():
        with _named(places[0][0]):
            item = _together([row for _, row in places], left_out)
        if item is None:
            left_out.too_few += 1
        else:
            found.append(item)
    return _distinct(found, left_out, ", ".join(path for _, path in sources)), left_out


def read_prompts(path: str) -> tuple[list[Item], LeftOut]:
    """Returns the items of a file of prompts, for which people write demonstrations; raises as `read_comparisons`."""
    left_out, found = LeftOut(), []
    for place, row in _rows(path):
        with _named(place):
            found.append(_item(*prompt_of(row), others=_others(row)))
    return _distinct(found, left_out, path), left_out


def read_gold(path: str) -> list[Item]:
    """Returns the items of a file of known rankings: `ranks`, `scores`, or `chosen` and `rejected`.

    Raises:
        InputError: names file and line of a bad row, or of one that prefers nothing.
    """
    found = []
    for place, row in _rows(path):
        with _named(place):
            item = _comparison(_as_asked(row), gold=True)
            if len(set(item.gold or ())) < 2:
                raise InputError("all its completions have one rank, so it cannot tell labelers apart")
            found.append(item)
    return _distinct(found, LeftOut(), path)


def prompt_of(row: Row) -> tuple[Row, tuple[tuple[str, str], ...]]:
    """Returns the fields of a row's prompt and its turns for people; raises InputError if it has none."""
    name = one_of(row, *other_formats.PROMPTS)
    if name == "instruction":
        more = row.get("input") or ""
        prompt = {"instruction": text_of(row, "instruction")} | ({"input": text_of(row, "input")} if more else {})
        return prompt, (("", "\n\n".join(prompt.values())),)
    if name == "prompt" and not messages.is_chat(row["prompt"]):
        return {"prompt": text_of(row, "prompt")}, (("", row["prompt"]),)
    given = [row[name]] if isinstance(row[name], dict) else row[name]
    turns = messages.turns_of(given, name)
    if turns[-1]["role"] == "assistant":
        if name == "prompt" or len(turns) == 1:
            raise InputError(
                f"field {name!r} ends with a turn of the assistant, or has no other; a prompt ends before it"
            )
        given, turns = given[:-1], turns[:-1]
    more = {field: row[field] for field in ("system", "tools") if row.get(field)}
    chat = messages.chat_of({"prompt": given} | more, "prompt")
    shown = [(turn["role"], _content(turn)) for turn in chat.turns]
    if chat.tools:
        shown.insert(0, ("tools", json.dumps(chat.tools, ensure_ascii=False, indent=1)))
    return {"prompt": given} | more, tuple(shown)


def key_of(prompt: Row, completions: Sequence[Any]) -> str:
    """Returns the digest that names an item."""
    text = json.dumps([prompt, list(completions)], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _comparison(row: Row, gold: bool = False) -> Item:
    """Returns the item of a row that has all completions of a prompt."""
    row = other_formats.as_ours(row)
    ranks: tuple[int, ...] | None = None
    if _has(row, "chosen"):
        completions, ranks = [row["chosen"], row.get("rejected")], (1, 2)
    else:
        completions = list_of(row, "completions")
        if gold and one_of(row, "ranks", "scores") == "scores":
            given = list_of(row, "scores", len(completions))
            ranks = ranks_of([score_of(score, f"scores[{n}]") for n, score in enumerate(given)])
        elif gold:
            ranks = tuple(whole(rank) or 0 for rank in list_of(row, "ranks", len(completions)))
            if not all(rank >= 1 for rank in ranks):
                raise InputError("field 'ranks' must hold whole numbers from 1 (best), equal for a tie")
    count = len(completions)
    if not 2 <= count <= MOST:
        raise InputError(f"field 'completions' has {count} entries; a person ranks 2 to {MOST}")
    columns = {
        "models": optional_list(row, "models", count, str, "strings"),
        "finished": optional_list(row, "finished", count, bool, "true or false"),
    }
    item = _item(*prompt_of(row), completions, gold=ranks if gold else None, others=_others(row), **columns)
    if len(set(item.texts)) < count:
        raise InputError("field 'completions' has the same text twice; keep one")
    return item


def _together(group: Sequence[Row], left_out: LeftOut) -> Item | None:
    """Returns the item of rows of one prompt with a completion each; None if fewer than two texts are left."""
    kept: dict[str, Row] = {}
    for row in group:
        text = row["completion"] if isinstance(row["completion"], str) else _text(row["completion"], "completion")
        left_out.empty_completions += not text.strip()
        left_out.repeated_completions += bool(text.strip()) and text in kept
        if text.strip():
            kept.setdefault(text, row)
    if len(kept) > MOST:
        raise InputError(f"its prompt has {len(kept)} completions; a person ranks at most {MOST}: give fewer samples")
    if len(kept) < 2:
        return None
    prompt, turns = prompt_of(group[0])
    completions = [row["completion"] for row in kept.values()]
    if "prompt" not in prompt or messages.is_chat(prompt["prompt"]):
        # Behind a prompt that a template writes, the template also writes the space before the completion.
        if all(isinstance(text, str) and text.startswith(" ") for text in completions):
            completions = [text[1:] for text in completions]
    finished = tuple(row.get("finished", True) is not False for row in kept.values())
    models = tuple(row["model"] for row in kept.values())
    return _item(prompt, turns, completions, models=models, finished=finished, others=_others(group[0]))


def _item(prompt, turns, completions: Sequence[Any] = (), **columns) -> Item:
    texts = tuple(_text(value, f"completions[{place}]") for place, value in enumerate(completions))
    return Item(key_of(prompt, completions), prompt, turns, tuple(completions), texts, **columns)


def _text(value: Any, name: str) -> str:
    """Returns a completion for people."""
    return _content(messages.reply_of(value, name)) if messages.is_chat(value) else not_blank(value, name)


def _content(turn: dict) -> str:
    calls = [json.dumps(call["function"], ensure_ascii=False, indent=1) for call in turn.get("tool_calls", ())]
    return "\n\n".join(filter(None, [turn.get("content", ""), *calls]))


def _as_asked(row: Row) -> Row:
    """Returns a row of `rlhf_jax.generate` with the prompt that it was given, instead of the text that the model read."""
    if not row.keys() >= _OF_GENERATE:
        return row
    given = row.get("given")
    asked = given.get("prompt") if isinstance(given, dict) else None
    if isinstance(asked, str):  # it became a turn: --chat
        asked = [{"role": "user", "content": asked}]
    if any(row.get(name) for name in ("instruction", *other_formats.CHATS)):
        return {name: value for name, value in row.items() if name != "prompt"}
    return row | {"prompt": asked} if asked else row


def _others(row: Row) -> Row:
    used = {*other_formats.PROMPTS, "input", "system", "tools", *_NOT_KEPT}
    return {name: value for name, value in row.items() if name not in used}


def _has(row: Row, *names: str) -> bool:
    return any(row.get(name) is not None for name in names)


def _rows(path: str) -> Iterator[tuple[str, Row]]:
    for place, row in rows.read(path):
        if isinstance(row, InputError):
            raise InputError(f"{place}: {row}")
        yield place, row


class _named:
    """Context in which an InputError of a row gets the row's place."""

    def __init__(self, place: str):
        self._place = place

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, InputError):
            raise InputError(f"{self._place}: {error}") from None


def _distinct(found: Iterable[Item], left_out: LeftOut, where: str) -> list[Item]:
    items: dict[str, Item] = {}
    for item in found:
        left_out.repeated_items += item.key in items
        items.setdefault(item.key, item)
    if not items:
        said = f" ({left_out})" if str(left_out) else ""
        raise InputError(f"{where}: there is nothing to judge{said}")
    return list(items.values())
