"""Tasks: a prompt, a demonstration, and everything that the gold labeler needs to judge answers.

A kind of task is a function (world, rng, flawed) that draws one Draft. `flawed` asks for a demonstration that lacks one
fact or one item, as demonstrations of people sometimes do; not every kind can. The kinds themselves are in
tasks_on_knowledge.py and tasks_on_text.py.
"""

from collections.abc import Callable
from typing import NamedTuple

from rlhf_jax.world import language
from rlhf_jax.world.knowledge import CLASS_OF, ENTITIES, PLACES

ANYTHING = tuple(CLASS_OF) + PLACES  # every word that an event can be about


class Draft(NamedTuple):
    """A prompt and its demonstration, before they are assigned to a split.

    Attributes:
        instance: what the prompt asks for, independent of its wording.
        instruction: the instruction.
        input: the text that the instruction is about; "" if there is none.
        output: the demonstration.
        spec: what `gold.score` needs.
    """

    instance: tuple
    instruction: str
    input: str
    output: str
    spec: dict


class Kind(NamedTuple):
    """A kind of task.

    Attributes:
        category: category of InstructGPT's Table 1.
        weight: relative frequency among the kinds of the category.
        held_out: whether prompts of the kind are kept out of all training on instructions.
        draw: (world, rng, flawed) -> Draft.
    """

    category: str
    weight: float
    held_out: bool
    draw: Callable


KINDS: dict[str, Kind] = {}


def task(category: str, weight: float = 1, held_out: bool = False):
    """Returns a decorator that registers a function as a kind of task, under the function's name."""

    def register(draw):
        KINDS[draw.__name__] = Kind(category, weight, held_out, draw)
        return draw

    return register


def any_entity(rng) -> str:
    """Returns a random entity; all classes are equally likely."""
    return rng.choice(ENTITIES[rng.choice(sorted(ENTITIES))])


def answer_spec(answers, options, **more) -> dict:
    """Returns the spec of a task that asks for one of `answers`, and for none of the other `options`."""
    return {"task": "answer", "answers": list(answers), "options": list(options), **more}


def draw_list(rng, flawed, items, options, count, shape=language.name):
    """Returns the demonstration and the spec of a task that asks for `count` of `items`.

    Args:
        rng: the source of randomness.
        flawed: whether the demonstration lacks one item.
        items: the right items.
        options: all words of the same sort, right or wrong.
        count: number of items that the prompt asks for.
        shape: item -> its phrase in the demonstration.
    """
    chosen = rng.sample(sorted(items), count - (flawed and count > 1))
    spec = {"task": "list", "items": list(items), "options": list(options), "count": count}
    return f"{language.listing(map(shape, chosen))} .", spec | {"flaw": len(chosen) < count}
