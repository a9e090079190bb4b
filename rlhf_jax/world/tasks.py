"""What a task is: a prompt, a demonstration, and all that the gold labeler needs to judge answers.

A kind of task is a function of (world, rng, flawed) that draws one Draft; `flawed` asks for a
demonstration that is one fact or one item short, as people's are now and then (not every kind can
be). The kinds themselves are in tasks_on_knowledge.py and tasks_on_text.py.
"""

from typing import Callable, NamedTuple

from rlhf_jax.world import language
from rlhf_jax.world.knowledge import CLASS_OF, ENTITIES, PLACES

ANYTHING = tuple(CLASS_OF) + PLACES  # every word that an event can be about


class Draft(NamedTuple):
    """A prompt and its demonstration before they are given to a split."""

    instance: tuple  # what is asked, whatever the wording
    instruction: str
    input: str
    output: str
    spec: dict


class Kind(NamedTuple):
    """A family of tasks."""

    category: str
    weight: float  # among the kinds of the category
    held_out: bool  # never trained on
    draw: Callable


KINDS: dict[str, Kind] = {}


def task(category: str, weight: float = 1, held_out: bool = False):
    """Registers a function as a kind of task, under its name."""

    def register(draw):
        KINDS[draw.__name__] = Kind(category, weight, held_out, draw)
        return draw

    return register


def any_entity(rng) -> str:
    """Of each class equally often."""
    return rng.choice(ENTITIES[rng.choice(sorted(ENTITIES))])


def answer_spec(answers, options, **more) -> dict:
    """The spec of a task that wants one of `answers` and none of the other `options`."""
    return {"task": "answer", "answers": list(answers), "options": list(options), **more}


def draw_list(rng, flawed, items, options, count, shape=language.name):
    """The text and spec of a task that wants `count` of `items`."""
    chosen = rng.sample(sorted(items), count - (flawed and count > 1))
    spec = {"task": "list", "items": list(items), "options": list(options), "count": count}
    return f"{language.listing(map(shape, chosen))} .", spec | {"flaw": len(chosen) < count}
