"""Argilla 2's JSON of records, as `dataset.records.to_json` writes and `from_json` reads it.

    [{"id": ..., "fields": {"prompt": ..., "completion_1": ..., "completion_2": ...},
      "responses": {"ranking": [{"value": ["completion_2", "completion_1"], "user_id": ...}]},
      "metadata": {...}, "suggestions": {}, "vectors": {}}]

A ranking is the list of names of fields from the best to the worst; Argilla's server also has {"value", "rank"}, with
ties. A demonstration is the answer to a text question. Users are UUIDs; a labeler's is made of the name.
"""

import json
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

from rlhf_jax.data import messages
from rlhf_jax.data.row_fields import shown, whole
from rlhf_jax.label.convert import judged
from rlhf_jax.runtime.errors import InputError

PROMPTS = ("prompt", "instruction", "input", "question", "messages", "text")
RANKING, DEMONSTRATION = "ranking", "demonstration"


def to_records(rows: Iterable[tuple[str, dict]]) -> list[dict]:
    """Returns the records of judgments, one for each item."""
    records = []
    for group in judged.by_item(rows):
        first, completions = group[0], group[0].get("completions", ())
        names = [f"completion_{number}" for number in range(1, len(completions) + 1)]
        fields = {"prompt": judged.shown_prompt(first)} | dict(zip(names, map(_text, completions)))
        responses: dict[str, list] = {}
        travelling = {}
        for row in group:
            user = str(uuid.uuid5(uuid.NAMESPACE_URL, f"rlhf_jax/labelers/{row['labeler']}"))
            travelling[user] = judged.rest(row, completions=list(completions)) if completions else judged.rest(row)

            def answer(question: str, value: Any, user=user) -> None:
                responses.setdefault(question, []).append({"value": value, "user_id": user})

            if completions:
                answer(RANKING, [names[place] for place in judged.in_order(row["ranks"])])
                for number, rating in enumerate(row.get("ratings", ()), start=1):
                    answer(f"quality_{number}", rating)
                for number, flags in enumerate(row.get("flags", ()), start=1):
                    if flags:
                        answer(f"marks_{number}", flags)
            else:
                answer(DEMONSTRATION, row["completion"])
        metadata = {judged.NAME: json.dumps(travelling, ensure_ascii=False)}
        records.append(
            {
                "id": first["item"],
                "fields": fields,
                "metadata": metadata,
                "suggestions": {},
                "responses": responses,
                "vectors": {},
                "_server_id": None,
            }
        )
    return records


def to_rows(records: list, prompt: str | None = None, question: str | None = None) -> Iterator[dict | None]:
    """Yields the row of each response, or None for one that was not submitted.

    Args:
        records: the content of the file.
        prompt: the field of the prompt; by default the first of PROMPTS that there is.
        question: the question to read; by default the one whose answers rank fields, or else the one text question.

    Raises:
        InputError: a record is none, or it is not clear what to read in it.
    """
    for number, record in enumerate(records, start=1):
        try:
            yield from _rows_of(record, prompt, question)
        except InputError as error:
            raise InputError(f"record {number}: {error}") from None


def _rows_of(record: Any, prompt: str | None, question: str | None) -> Iterator[dict | None]:
    fields = record.get("fields") if isinstance(record, dict) else None
    if not isinstance(fields, dict) or not isinstance(responses := record.get("responses") or {}, dict):
        raise InputError("has no `fields` and `responses`; give what dataset.records.to_json has written")
    name = prompt or next((name for name in PROMPTS if name in fields), None)
    if name not in fields:
        raise InputError(
            f"has no field {name or 'prompt'}; its fields are {', '.join(fields)}: name the prompt's by --prompt"
        )
    travelling = _travelling(record)
    question = question or _question(responses, fields)
    if question is None:
        return
    for response in responses.get(question, ()):
        if not isinstance(response, dict) or "value" not in response:
            raise InputError(f"the response {shown(response)} to {question} has no value")
        if response.get("status") not in (None, "submitted"):
            yield None
            continue
        user = str(response.get("user_id") or "unknown")
        known = travelling.get(user)
        answers = _answers(response["value"], fields, known, question)
        if "ranks" in answers:
            answers |= _ratings_and_flags(responses, user, answers.pop("names"))
        yield judged.row_of(fields[name], user, answers, {k: v for k, v in (known or {}).items() if k != "completions"})


def _answers(value: Any, fields: dict, known: dict | None, question: str) -> dict:
    """Returns the completions and ranks, or the completion, that a value says."""
    if isinstance(value, str):
        return {"completion": value}
    ranks = _ranks(value)
    if not ranks or not ranks.keys() <= fields.keys():
        raise InputError(f"the answer {shown(value)} to {question} ranks no fields; name another by --question")
    names = [name for name in fields if name in ranks]
    completions = [fields[name] for name in names]
    if known and len(known.get("completions", ())) == len(names):
        completions = known["completions"]  # messages, which a field of text shows as text
    return {"completions": completions, "ranks": [ranks[name] for name in names], "names": names}


def _ranks(value: Any) -> dict[str, int]:
    """Returns name -> rank of an answer to a ranking question; {} if it is none."""
    if not isinstance(value, list) or not value:
        return {}
    if all(isinstance(name, str) for name in value):
        return {name: place for place, name in enumerate(value, start=1)}
    if not all(isinstance(part, dict) and isinstance(part.get("value"), str) for part in value):
        return {}
    ranks = {part["value"]: whole(part.get("rank")) for part in value}
    return {name: rank for name, rank in ranks.items() if rank}


def _question(responses: dict, fields: dict) -> str | None:
    """Returns the question whose answers rank fields, or else the one that was answered by a text."""
    answers = {
        name: [part.get("value") for part in given if isinstance(part, dict)] for name, given in responses.items()
    }
    ranking = [
        name for name, values in answers.items() if any(len(_ranks(v).keys() & fields.keys()) > 1 for v in values)
    ]
    texts = [name for name, values in answers.items() if values and all(isinstance(value, str) for value in values)]
    found = ranking or texts
    if len(found) > 1:
        raise InputError(f"has the questions {', '.join(found)}; name the one to read by --question")
    return found[0] if found else None


def _ratings_and_flags(responses: dict, user: str, names: list[str]) -> dict:
    def given(question: str) -> Any:
        found = (part["value"] for part in responses.get(question, ()) if str(part.get("user_id")) == user)
        return next(found, None)

    numbers = [name.removeprefix("completion_") for name in names]
    ratings = [given(f"quality_{number}") for number in numbers]
    found = {"ratings": ratings} if all(type(rating) is int for rating in ratings) else {}
    flags = [given(f"marks_{number}") for number in numbers]
    if any(flags):
        found["flags"] = [names or [] for names in flags]
    return found


def _travelling(record: dict) -> dict:
    metadata = record.get("metadata")
    try:
        found = json.loads(metadata[judged.NAME]) if isinstance(metadata, dict) and judged.NAME in metadata else {}
    except (ValueError, TypeError, RecursionError):
        found = {}
    return found if isinstance(found, dict) else {}


def _text(completion: Any) -> str:
    return (
        messages.reply_of(completion, "completions").get("content", "") if messages.is_chat(completion) else completion
    )
