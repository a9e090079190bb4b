"""Rows as other programs publish them -> rows with the fields that `row_formats` reads.

{"input": {"messages": ...}, "preferred_output": ..., "non_preferred_output": ...}
                                                     OpenAI's preferences: `messages`, `chosen`, `rejected`
{"chosen": ..., "rejected": ...}, with the prompt inside
                                                     TRL's implicit prompt: `messages` or `prompt`, and the two answers
{"prompt": "hi", "messages": [hi, ...]}              a prompt that its messages repeat: `messages`
{"completion": ..., "label": true}                   TRL's unpaired preferences: a `score` of 1, or of 0 for false
{"prompt": ..., "answers": [{"answer": ..., "rank": 1.0, "model": ...}, ...]}
                                                     Nectar's rankings: `completions`, `ranks` and `models`
"""

import os
from collections.abc import Sequence

from rlhf_jax.data import messages
from rlhf_jax.data.row_fields import shown, string_of, what_it_has
from rlhf_jax.data.rows import Row
from rlhf_jax.data.template import Turn
from rlhf_jax.runtime.errors import InputError

CHATS = ("messages", "conversations")  # the second is ShareGPT's
PROMPTS = ("prompt", "instruction", *CHATS)  # the fields of which a row with a prompt has one
HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"  # the turns of hh-rlhf's dialogues


def as_ours(row: Row) -> Row:
    """Returns a row with our fields; raises InputError if what it says twice differs, or if it has no prompt to find."""
    if isinstance(row.get("preferred_output"), list):
        row = _openai_preference(row)
    if isinstance(row.get("answers"), list) and row.get("completions") is None:
        row = _nectar(row)
    if isinstance(row.get("label"), bool) and row.get("completion") is not None and row.get("score") is None:
        row = row | {"score": float(row["label"])}
    if row.get("chosen") is not None and row.get("rejected") is not None:
        row = _with_prompt(row)
    return _without_repeated_prompt(row)


def is_rendered(row: Row) -> bool:
    """Whether a template writes the prompt of a row; else the row has it as text."""
    return not isinstance(as_ours(row).get("prompt"), str)


def cut_dialogues(chosen: str, rejected: str) -> tuple[str, str, str] | None:
    """Divides two of hh-rlhf's dialogues at the last turn that both begin: (prompt, one answer, the other answer).

    None: they share no turn of Human's before one of Assistant's.
    """
    shared = os.path.commonprefix([chosen, rejected])
    if (place := shared.rfind(ASSISTANT)) < 0 or not shared.startswith(HUMAN):
        return None
    place += len(ASSISTANT)
    return chosen[:place], chosen[place:], rejected[place:]


def _openai_preference(row: Row) -> Row:
    given = row.get("input")
    if not isinstance(given, dict):
        raise InputError("field 'input' must be an object with the messages before preferred_output")
    others = {name: row[name] for name in row if name not in ("input", "preferred_output", "non_preferred_output")}
    answers = {"chosen": row["preferred_output"], "rejected": row.get("non_preferred_output")}
    return others | {name: given[name] for name in ("messages", "tools") if name in given} | answers


def _nectar(row: Row) -> Row:
    """Returns a row of ranked answers with a column for each of their fields; others have no ranks, and stay as they are.

    The space after its prompt belongs to the completions (see data/template.py).
    """
    answers, prompt = row["answers"], row.get("prompt")
    if not all(isinstance(answer, dict) and {"answer", "rank"} <= answer.keys() for answer in answers):
        return row
    texts = [answer["answer"] for answer in answers]
    others = {name: value for name, value in row.items() if name != "answers"}
    if isinstance(prompt, str) and prompt.endswith(ASSISTANT + " "):
        others["prompt"] = prompt[:-1]
        texts = [f" {text.lstrip(' ')}" if isinstance(text, str) else text for text in texts]
    columns = {"completions": texts, "ranks": [answer["rank"] for answer in answers]}
    models = [answer.get("model") for answer in answers]
    return others | columns | ({"models": models} if all(isinstance(model, str) for model in models) else {})


def _with_prompt(row: Row) -> Row:
    """Returns a row of two answers with the prompt in a field of its own, if it is inside the answers."""
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(chosen, list) and isinstance(rejected, list):
        return _with_messages(row)
    if isinstance(chosen, str) and isinstance(rejected, str):
        if all(row.get(name) is None for name in PROMPTS):
            prompt, chosen, rejected = _cut_texts(row)
            return row | {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    return row


def _with_messages(row: Row) -> Row:
    """Returns a row of two lists of messages with the turns that both begin with as `messages`, if there are any."""
    sides = {name: messages.turns_of(row[name], name) for name in ("chosen", "rejected")}
    if any(turns[0]["role"] == "assistant" for turns in sides.values()) and any(map(row.get, PROMPTS)):
        return row
    count = len(_shared(*sides.values()))
    longest = max(map(len, sides.values()))
    if count == longest:
        raise InputError("fields 'chosen' and 'rejected' are the same; leave the row out")
    if not count:
        raise InputError("fields 'chosen' and 'rejected' share no turn, so there is no prompt; give it as `prompt`")
    for name, turns in sides.items():
        if len(turns) != count + 1 or turns[-1]["role"] != "assistant":
            raise InputError(
                f"fields 'chosen' and 'rejected' have the first {count} turns in common, and '{name}' must have one of "
                f"the assistant after them; it has {len(turns) - count}"
                + (f", of {turns[-1]['role']}" if len(turns) == count + 1 else "")
            )
    prompt = sides["chosen"][:count]
    others = {name: value for name, value in row.items() if name != "prompt"}
    if (given := row.get("messages")) is not None:  # UltraFeedback has the chosen dialogue once more
        if messages.turns_of(given, "messages")[:count] != prompt:
            raise InputError("fields 'messages' and 'chosen' belong to different formats; keep one")
    if (given := row.get("prompt")) is not None:
        _check_same(given, prompt, "chosen")
    answers = {name: row[name][-1:] for name in sides}
    return others | {"messages": row["chosen"][:count]} | answers


def _without_repeated_prompt(row: Row) -> Row:
    """Returns a row without its `prompt` where `messages` has this text, too, as UltraChat's rows do."""
    given, turns = row.get("prompt"), row.get("messages")
    if isinstance(given, str) and isinstance(turns, list) and turns:
        _check_same(given, messages.turns_of(turns, "messages"), "messages")
        return {name: value for name, value in row.items() if name != "prompt"}
    return row


def _check_same(given, turns: Sequence[Turn], name: str) -> None:
    """Raises InputError unless a row's `prompt` is the text of one of the turns, or these turns themselves."""
    same = messages.turns_of(given, "prompt") == list(turns) if messages.is_chat(given) else False
    texts = [turn.get("content", "").strip() for turn in turns if turn["role"] == "user"]
    if not same and not (isinstance(given, str) and given.strip() in texts):
        raise InputError(f"fields 'prompt' and {name!r} belong to different formats: no turn has this prompt; keep one")


def _shared(first: Sequence[Turn], second: Sequence[Turn]) -> list[Turn]:
    """Returns the turns that two chats begin with, both."""
    count = next((i for i, pair in enumerate(zip(first, second)) if pair[0] != pair[1]), min(len(first), len(second)))
    return list(first[:count])


def _cut_texts(row: Row) -> tuple[str, str, str]:
    """Divides two texts that begin with the same prompt: (prompt, one answer, the other answer).

    hh-rlhf's dialogues are cut before their last answers. Of other texts, the prompt is what they have in common, up to a
    space, as far as the row has no other text that may be its prompt.
    """
    texts = chosen, rejected = string_of(row["chosen"], "chosen"), string_of(row["rejected"], "rejected")
    if parts := cut_dialogues(*texts):
        if any(HUMAN in answer for answer in parts[1:]):
            raise InputError("fields 'chosen' and 'rejected' differ before the last turn; leave the row out")
        return parts
    others = [name for name, value in row.items() if isinstance(value, str) and name not in ("chosen", "rejected")]
    if others:
        raise InputError(f"needs one of the fields {', '.join(PROMPTS)}; {what_it_has(row)}")
    if chosen == rejected:
        raise InputError("all completions are the same text, and one is ranked above another; leave the row out")
    shared = os.path.commonprefix(texts)
    place = max(shared.rfind(" "), shared.rfind("\n") + 1)
    if not shared[:place].strip():
        raise InputError(
            f"fields 'chosen' ({shown(chosen[:40])}) and 'rejected' ({shown(rejected[:40])}) begin differently, so there "
            "is no prompt in them; give it as `prompt`"
        )
    return shared[:place], chosen[place:], rejected[place:]
