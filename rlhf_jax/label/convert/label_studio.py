"""Label Studio's JSON of tasks, as its export writes and its import reads it.

    [{"data": {"prompt": ..., "items": [{"id": "completion_1", "title": "1", "body": ...}, ...]},
      "annotations": [{"completed_by": 1, "result": [
        {"type": "ranker", "from_name": "rank", "to_name": "answers", "value": {"ranker": {"rank_1": ["completion_2"], ...}}}]}]}]

A ranking is that of a `Ranker` over a `List`: one list from the best to the worst, or buckets, from which we read ties. A
`Pairwise` has {"selected": "left"} or "right". A demonstration is the text of a `TextArea`.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rlhf_jax.data import messages
from rlhf_jax.data.row_fields import shown
from rlhf_jax.label.convert import judged
from rlhf_jax.runtime.errors import InputError

PROMPTS = ("prompt", "instruction", "question", "messages", "text", "task")
SIDES = (("answer1", "answer2"), ("text1", "text2"), ("left", "right"), ("response1", "response2"))
_OURS = re.compile(r"rank_(\d+)")


def to_tasks(rows: Iterable[tuple[str, dict]]) -> list[dict]:
    """Returns the tasks of judgments with their annotations, one task for each item."""
    tasks = []
    for group in judged.by_item(rows):
        first, completions = group[0], group[0].get("completions", ())
        prompt = judged.shown_prompt(first)
        names = [f"completion_{number}" for number in range(1, len(completions) + 1)]
        data: dict[str, Any] = {"prompt": prompt if isinstance(prompt, str) else _chat_text(prompt)}
        if completions:
            texts = map(_text, completions)
            data["items"] = [{"id": name, "title": name[11:], "body": text} for name, text in zip(names, texts)]
        asked = {"prompt": prompt} | ({"completions": list(completions)} if completions else {})
        data[judged.NAME] = asked | {"rows": [judged.rest(row) for row in group]}
        tasks.append({"data": data, "annotations": [{"result": _results(row, names)} for row in group]})
    return tasks


def to_rows(
    tasks: list, prompt: str | None = None, buckets: Sequence[str] = (), sides: Sequence[str] = ()
) -> Iterator[dict | None]:
    """Yields the row of each annotation, or None for one that was cancelled or says nothing.

    Args:
        tasks: the content of the file.
        prompt: the field of `data` that is the prompt; by default the first of PROMPTS that there is.
        buckets: the names of the ranker's buckets, the best first; by default rank_1, rank_2, ...
        sides: the fields of `data` that a pairwise comparison has on the left and on the right.

    Raises:
        InputError: a task is none, or it is not clear what to read in it.
    """
    for number, task in enumerate(tasks, start=1):
        try:
            if not isinstance(task, dict) or not isinstance(task.get("data"), dict):
                raise InputError("has no `data`; give the export of the form JSON, not JSON_MIN or CSV")
            for annotation in task.get("annotations") or ():
                yield _row(task["data"], annotation, prompt, buckets, sides)
        except InputError as error:
            raise InputError(f"task {number}: {error}") from None


def _results(row: dict, names: list[str]) -> list[dict]:
    """Returns the results of one annotation."""
    found = [_result("labeler", "prompt", "textarea", {"text": [row["labeler"]]})]
    if not names:
        return [*found, _result("demonstration", "prompt", "textarea", {"text": [row["completion"]]})]
    ranked: dict[str, list] = {f"rank_{rank}": [] for rank in sorted(set(row["ranks"]))}
    for name, rank in zip(names, row["ranks"]):
        ranked[f"rank_{rank}"].append(name)
    found.append(_result("rank", "answers", "ranker", {"ranker": ranked}))
    for number, rating in enumerate(row.get("ratings", ()), start=1):
        found.append(_result(f"quality_{number}", "prompt", "rating", {"rating": rating}))
    for number, flags in enumerate(row.get("flags", ()), start=1):
        found.append(_result(f"marks_{number}", "prompt", "choices", {"choices": flags}))
    return found


def _result(name: str, to_name: str, kind: str, value: dict) -> dict:
    return {"id": f"{name}_{to_name}", "from_name": name, "to_name": to_name, "type": kind, "value": value}


def _row(data: dict, annotation: Any, prompt: str | None, buckets: Sequence[str], sides: Sequence[str]) -> dict | None:
    results = annotation.get("result") if isinstance(annotation, dict) else None
    if not isinstance(results, list) or not all(isinstance(part, dict) for part in results):
        raise InputError("an annotation has no list `result`")
    if annotation.get("was_cancelled"):
        return None
    by_name = {part.get("from_name"): part["value"] for part in results if isinstance(part.get("value"), dict)}
    typed = by_name.pop("labeler", {}).get("text")
    labeler = str(typed[0]) if isinstance(typed, list) and typed else _who(annotation.get("completed_by"))
    ranker = next((part for part in results if part.get("type") == "ranker"), None)
    pairwise = next((part for part in results if part.get("type") == "pairwise"), None)
    if ranker is not None:
        answers = _ranked(data, ranker["value"].get("ranker"), buckets)
        answers |= _ratings_and_flags(by_name, answers.pop("names"))
    elif pairwise is not None:
        answers = _compared(data, pairwise, sides)
    else:
        texts = [value["text"] for value in by_name.values() if value.get("text")]
        answers = {"completion": texts[0][0] if isinstance(texts[0], list) else texts[0]} if len(texts) == 1 else {}
        if len(texts) > 1:
            raise InputError(f"an annotation has several texts, of {', '.join(map(str, by_name))}; keep one")
    if not answers:
        return None
    ours = data.get(judged.NAME)
    ours = ours if isinstance(ours, dict) else {}
    name = prompt or next((name for name in PROMPTS if name in data), None)
    if name not in data:
        raise InputError(
            f"has no field {name or 'prompt'} in `data`; it has {', '.join(data)}: name the prompt's by --prompt"
        )
    known = next((row for row in ours.get("rows", ()) if row.get("labeler") == labeler), None)
    return judged.row_of(ours.get("prompt", data[name]), labeler, answers, known)


def _ranked(data: dict, value: Any, buckets: Sequence[str]) -> dict:
    """Returns the completions of a Ranker and their ranks; {} without two of them."""
    lists = [value for value in data.values() if isinstance(value, list) and value]
    lists = [value for value in lists if all(isinstance(part, dict) and "id" in part for part in value)]
    if len(lists) != 1:
        raise InputError(f"has {len(lists)} lists of items with an id in `data`; a ranking needs one")
    items = {str(part["id"]): part for part in lists[0]}
    ranks = {str(name): rank for rank, names in enumerate(_levels(value, buckets), start=1) for name in names}
    if not ranks.keys() <= items.keys():
        raise InputError(f"ranks {shown(sorted(ranks.keys() - items.keys()))}, which are no ids of its items")
    names = [name for name in items if name in ranks]
    completions = [items[name].get("body") or items[name].get("title") for name in names]
    ours = data.get(judged.NAME)
    if isinstance(ours, dict) and len(ours.get("completions", ())) == len(names):
        completions = ours["completions"]  # messages, which a body shows as text
    return (
        {"completions": completions, "ranks": [ranks[name] for name in names], "names": names}
        if len(names) > 1
        else {"names": []}
    )


def _levels(value: Any, buckets: Sequence[str]) -> list[list]:
    """Returns the ids of each rank, the best first."""
    if isinstance(value, list):
        return [[name] for name in value]
    if not isinstance(value, dict) or not all(isinstance(names, list) for names in value.values()):
        raise InputError(f"the ranker's value {shown(value)} is neither a list nor buckets")
    named = {name: names for name, names in value.items() if name != "_"}  # "_" has what nobody has moved
    if buckets:
        if unknown := named.keys() - {*buckets}:
            raise InputError(f"--buckets lacks {', '.join(sorted(unknown))}; it names all, the best first")
        return [named[name] for name in buckets if named.get(name)]
    if all(_OURS.fullmatch(name) for name in named):
        return [named[name] for name in sorted(named, key=lambda name: int(name[5:])) if named[name]]
    if len(named) == 1:
        return [[name] for name in next(iter(named.values()))]
    raise InputError(f"the ranker has the buckets {', '.join(named)}; say by --buckets which is best, then the next")


def _compared(data: dict, result: dict, sides: Sequence[str]) -> dict:
    """Returns the two texts of a Pairwise and their ranks; {} if none is selected."""
    selected = result["value"].get("selected") if isinstance(result.get("value"), dict) else None
    if selected not in ("left", "right"):
        return {}
    tags = str(result.get("to_name", "")).split(",")
    names = next(
        (pair for pair in (sides, tags, *SIDES) if len(pair) == 2 and all(name in data for name in pair)), None
    )
    if names is None:
        raise InputError(f"compares {', '.join(tags)}; say by --sides=LEFT,RIGHT which fields of `data` these are")
    return {"completions": [data[name] for name in names], "ranks": [1, 2] if selected == "left" else [2, 1]}


def _ratings_and_flags(by_name: dict, names: list[str]) -> dict:
    numbers = [name.removeprefix("completion_") for name in names]
    ratings = [by_name.get(f"quality_{number}", {}).get("rating") for number in numbers]
    found: dict[str, list] = {"ratings": ratings} if names and all(type(rating) is int for rating in ratings) else {}
    if any(str(name).startswith("marks_") for name in by_name):
        found["flags"] = [by_name.get(f"marks_{number}", {}).get("choices", []) for number in numbers]
    return found


def _who(given: Any) -> str:
    """Returns the name of `completed_by`: a number, or an object with an address."""
    if isinstance(given, dict):
        given = given.get("email") or given.get("id")
    return "unknown" if given is None else str(given)


def _chat_text(turns: list) -> str:
    return "\n\n".join(f"{turn['role']}: {turn.get('content', '')}" for turn in messages.turns_of(turns, "prompt"))


def _text(completion: Any) -> str:
    return (
        messages.reply_of(completion, "completions").get("content", "") if messages.is_chat(completion) else completion
    )
