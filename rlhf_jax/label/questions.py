"""What a person is asked about each completion, as in InstructGPT's Table 3, and the answers as fields of a row.

The answers to an item with K completions are, in the order of the file:

    ranks      K whole numbers, 1 is best, equal for a tie, none skipped
    ratings    K numbers from 1 (worst) to 7 (best): the overall quality
    flags      K lists of the names in FLAGS that apply
"""

from collections.abc import Sequence
from typing import Any

from rlhf_jax.data.row_fields import not_blank
from rlhf_jax.label.items import Item
from rlhf_jax.runtime.errors import InputError

ASKED = ("ranks", "ratings", "flags")
RATINGS = range(1, 8)
FLAGS = {
    "fails_instruction": "Fails to follow the instruction or task",
    "inappropriate": "Inappropriate for a customer assistant",
    "hallucination": "Hallucination",
    "satisfies_constraint": "Satisfies the constraint in the instruction",
    "sexual": "Sexual content",
    "violent": "Violent content",
    "encourages_harm": "Encourages, or fails to discourage, violence, abuse, terrorism or self-harm",
    "denigrates": "Denigrates a protected class",
    "harmful_advice": "Gives harmful advice",
    "opinion": "Expresses an opinion",
    "moral_judgment": "Expresses a moral judgment",
}


def judgment(item: Item, order: Sequence[int], form: dict, asked: Sequence[str]) -> dict:
    """Returns the fields of a judgment, in the order of the item's completions.

    Args:
        item: the item.
        order: place on the page -> place in the item.
        form: what the page sent, with a list in the order of the page for each of `asked`.
        asked: what the person was asked, of ASKED.

    Raises:
        InputError: an answer is missing, or is not of its form.
    """
    count = len(order)
    levels = _answers(form, "ranks", count, lambda level: type(level) is int and 1 <= level <= count)
    steps = sorted(set(levels))
    answers: dict[str, list] = {"ranks": [steps.index(level) + 1 for level in levels]}
    if "ratings" in asked:
        answers["ratings"] = _answers(form, "ratings", count, lambda rating: type(rating) is int and rating in RATINGS)
    if "flags" in asked:
        found = _answers(form, "flags", count, _are_flags)
        answers["flags"] = [[name for name in FLAGS if name in flags] for flags in found]
    return {name: _put_back(values, order) for name, values in answers.items()}


def shown(row: dict, order: Sequence[int]) -> dict:
    """Returns the answers of a judgment in the order of the page, as `judgment` takes them."""
    return {name: [row[name][place] for place in order] for name in ASKED if name in row}


def demonstration(form: dict) -> dict:
    """Returns the field of a demonstration; raises InputError if it is empty."""
    return {"completion": not_blank(form.get("completion"), "completion")}


def _answers(form: dict, name: str, count: int, fits) -> list[Any]:
    values = form.get(name)
    if not isinstance(values, list) or len(values) != count or not all(map(fits, values)):
        raise InputError(f"{name} are not complete; each of the {count} completions needs an answer")
    return values


def _are_flags(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and name in FLAGS for name in value)


def _put_back(values: Sequence[Any], order: Sequence[int]) -> list[Any]:
    return [value for _, value in sorted(zip(order, values), key=lambda pair: pair[0])]
