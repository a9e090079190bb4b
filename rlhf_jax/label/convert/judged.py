"""What both programs need: rows put together by item, and rows made of what people answered.

A row has fields that the other program has no place for. They travel as one JSON value beside the answers, by labeler:
what people answer there counts, and the rest comes back as it was.
"""

import collections
from collections.abc import Iterable, Sequence
from typing import Any

from rlhf_jax.data.row_formats import parse_row
from rlhf_jax.label.items import key_of, prompt_of
from rlhf_jax.runtime.errors import InputError

NAME = "rlhf_jax"  # of the field that the rest travels in
_ANSWERS = {"prompt", "completions", "completion", "ranks", "ratings", "flags", "labeler", "item"}


def by_item(rows: Iterable[tuple[str, dict]]) -> list[list[dict]]:
    """Returns the rows of each item, each row with its labeler and item.

    Args:
        rows: (place, row) of a file of judgments or of other rankings or demonstrations in our form.

    Raises:
        InputError: names file and line of a row that training would refuse.
    """
    found = collections.defaultdict(list)
    for place, row in rows:
        try:
            if isinstance(row, InputError):
                raise row
            ranked = row.get("completions") is not None
            parse_row(row, "rankings" if ranked else "demonstrations")
            if "ranks" not in row and ranked or not ranked and not isinstance(row.get("completion"), str):
                raise InputError("needs completions and ranks, or a completion, as rlhf_jax.label writes them")
            prompt, _ = prompt_of(row)
        except InputError as error:
            raise InputError(f"{place}: {error}") from None
        key = key_of(prompt, row.get("completions", ()))
        found[key].append(row | {"labeler": str(row.get("labeler") or "unknown"), "item": key})
    return list(found.values())


def shown_prompt(row: dict) -> Any:
    """Returns the prompt of a row as the other program shows it: messages, or a text."""
    prompt, turns = prompt_of(row)
    return prompt["prompt"] if "prompt" in prompt else turns[0][1]


def rest(row: dict, **more) -> dict:
    """Returns the fields of a row that are no answers, how it was ranked, and whether flags were asked for."""
    kept = {name: value for name, value in row.items() if name not in _ANSWERS}
    ranks = {"ranks": row["ranks"], "flags_asked": "flags" in row} if "ranks" in row else {}
    return kept | {"labeler": row["labeler"]} | ranks | more


def row_of(prompt: Any, labeler: str, answers: dict, known: dict | None) -> dict:
    """Returns a row of what a labeler answered; raises InputError if training would refuse it.

    Args:
        prompt: messages or a text.
        labeler: the labeler's name in the other program.
        answers: `completions` and `ranks`, or `completion`, and what else was answered.
        known: what travelled beside it, if anything.
    """
    known = dict(known or {})
    name, ranks = known.pop("labeler", labeler), known.pop("ranks", None)
    if known.pop("flags_asked", False) and "ranks" in answers:  # where no flag was given there is no answer
        answers = {"flags": [[] for _ in answers["ranks"]]} | answers
    if "ranks" in answers and ranks and in_order(ranks) == in_order(answers["ranks"]):
        answers = answers | {"ranks": ranks}  # ties, for which the other program may have no form
    kept = known if "instruction" in known else {"prompt": prompt} | known
    row = kept | answers | {"labeler": name}
    parse_row(row, "rankings" if "ranks" in answers else "demonstrations")
    return row | {"item": key_of(prompt_of(row)[0], answers.get("completions", ()))}


def in_order(ranks: Sequence[int]) -> list[int]:
    """Returns the places of completions from the best to the worst; of those that tie, the first comes first."""
    return sorted(range(len(ranks)), key=lambda place: ranks[place])
