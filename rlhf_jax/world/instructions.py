"""Prompts with demonstrations, and their category, split and purpose.

The *instance* of a task, which is its kind and what was filled in, decides the split, whatever the wording. So no
paraphrase of a training prompt is ever a test prompt. The wording decides the purpose, so the prompts of SFT, reward
model and PPO differ too.
"""

import itertools
import random
from collections.abc import Sequence

from rlhf_jax.runtime.errors import InputError
from rlhf_jax.world import tasks_on_knowledge, tasks_on_text  # noqa: F401  they fill KINDS
from rlhf_jax.world.knowledge import NUMBERS
from rlhf_jax.world.language import bucket
from rlhf_jax.world.tasks import KINDS, Draft

SHARES = {  # share of each category in percent: InstructGPT, Table 1
    "generation": 45.6,
    "open_qa": 12.4,
    "brainstorming": 11.2,
    "chat": 8.4,
    "rewrite": 6.6,
    "summarization": 4.2,
    "classification": 3.5,
    "other": 3.5,
    "closed_qa": 2.6,
    "extract": 1.9,
}
SPLITS = ("train", "valid", "test", "heldout_kinds")
PURPOSES = ("sft", "rm", "ppo")

_FLAWED = 0.16  # share of drafts that are asked to have a flaw; not every kind can have one
_DECORATED = 0.17  # share of prompts that get a constraint, of those whose kind did not bring one
_WORDS = ("indeed", "well", "truly", "now", "friend")
_LONGEST = 44  # largest number of words of a prompt: with the template, under 64 tokens of a small vocabulary
_TRIES = 2000  # number of drafts after which a category counts as exhausted


def split_of(kind: str, instance: tuple) -> str:
    """Returns the split that an instance belongs to: 8 in 10 are train, 1 is valid, 1 is test."""
    if KINDS[kind].held_out:
        return "heldout_kinds"
    return {0: "valid", 1: "test"}.get(bucket(repr((kind, *instance)), 10), "train")


def purpose_of(instruction: str, text: str) -> str:
    """Returns the purpose that the wording of a prompt belongs to."""
    return PURPOSES[bucket(f"purpose {instruction}\n{text}", len(PURPOSES))]


def category_shares(split: str) -> dict[str, float]:
    """Returns the categories with kinds in a split, with their shares in percent of all prompts in Table 1."""
    held_out = split == "heldout_kinds"
    present = {kind.category for kind in KINDS.values() if kind.held_out == held_out}
    return {category: share for category, share in SHARES.items() if category in present}


def kinds_of(split: str) -> list[str]:
    """Returns the names of the kinds of tasks in a split."""
    return [name for name, kind in KINDS.items() if kind.held_out == (split == "heldout_kinds")]


def draw(world, rng: random.Random, category: str, split: str) -> tuple[str, Draft]:
    """Returns the name of a kind of the category, and a draft of this kind whose instance belongs to the split."""
    return draw_of(world, rng, [name for name in kinds_of(split) if KINDS[name].category == category], split)


def draw_of(world, rng: random.Random, names: Sequence[str], split: str) -> tuple[str, Draft]:
    """Returns one of these names of kinds, by their weights, and a draft of this kind whose instance belongs to the split."""
    weights = [KINDS[name].weight for name in names]
    while True:
        (name,) = rng.choices(names, weights)
        draft = KINDS[name].draw(world, rng, rng.random() < _FLAWED)
        if split_of(name, draft.instance) == split:
            draft = _decorate(rng, draft)
            if len(f"{draft.instruction} {draft.input}".split()) <= _LONGEST:
                return name, draft


def _decorate(rng: random.Random, draft: Draft) -> Draft:
    """Adds an explicit constraint to some prompts, and completes the spec.

    The demonstration obeys the constraint, except for a few, which then count as flawed.
    """
    spec = {"constraints": [], "flaw": False} | draft.spec
    output, instruction = draft.output, draft.instruction
    if not spec["constraints"] and rng.random() < _DECORATED:
        forms = ["most"] if spec["task"] in ("rewrite", "title") else ["most", "use", "start"]
        form, word = rng.choice(forms), rng.choice(_WORDS)
        if form == "most":
            spec["constraints"] = [[form, min(_count_words(output) + rng.randint(0, 2), 20)]]
        else:
            spec["constraints"] = [[form, word]]
            if rng.random() < 0.12 and not spec["flaw"]:
                spec["flaw"] = True
            else:
                output = f"{word} , {output}"
    for form, argument in spec["constraints"]:
        if form in _SAYINGS:
            said = NUMBERS[argument] if form == "most" else argument
            instruction += f" {_SAYINGS[form].format(said)} ."
    spec["words"] = _count_words(output)
    return draft._replace(instruction=instruction, output=output, spec=spec)


def _count_words(text: str) -> int:
    """Returns the number of words of a text, without punctuation."""
    return sum(token.isalnum() for token in text.split())


_SAYINGS = {
    "most": "use at most {} words",
    "use": "use the word {}",
    "start": "start with the word {}",
    "avoid": "do not mention the {}",
    "one_sentence": "use one sentence",
}


def _categories(split: str, offset: float):
    """Yields categories without end, in the proportions of Table 1.

    A golden-ratio sequence spreads them evenly, so that the first rows have these proportions too.
    """
    shares = category_shares(split)
    point = offset
    while True:
        point = (point + 0.6180339887498949) % 1
        left = point * sum(shares.values())
        for category, share in shares.items():
            left -= share
            if left < 0:
                break
        yield category


def rows(world, split: str, count: int, purpose: str = "sft", kinds: Sequence[str] = ()) -> list[dict]:
    """Returns the first `count` prompts of a split and purpose, all different.

    Args:
        world: the world.
        split: one of SPLITS.
        count: number of prompts.
        purpose: one of PURPOSES.
        kinds: names of kinds of the split, which share the prompts in equal parts; () means all kinds, in the proportions of
            Table 1.

    Returns:
        Rows {instruction, input, output, category, kind, id, split, spec}. `output` is a demonstration, and `spec`
        holds what `gold.score` needs.

    Raises:
        InputError: the split or the purpose does not exist, or the split has fewer prompts.
    """
    if split not in SPLITS:
        raise InputError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
    if purpose not in PURPOSES:
        raise InputError(f"purpose must be one of {', '.join(PURPOSES)}, not {purpose!r}")
    rng = random.Random(f"instructions {world.seed} {split} {purpose}")
    parts = itertools.cycle(kinds) if kinds else _categories(split, rng.random())
    seen, found = set(), []
    while len(found) < count:
        part = next(parts)
        for _ in range(_TRIES):
            kind, draft = draw_of(world, rng, [part], split) if kinds else draw(world, rng, part, split)
            prompt = draft.instruction, draft.input
            if prompt not in seen and purpose_of(*prompt) == purpose:
                break
        else:
            raise InputError(
                f"split {split!r}, purpose {purpose!r} has fewer than {count} prompts: "
                f"{part} ran out after {len(found)} rows"
            )
        seen.add(prompt)
        found.append(
            {
                "instruction": draft.instruction,
                "input": draft.input,
                "output": draft.output,
                "category": KINDS[kind].category,
                "kind": kind,
                "id": f"{split}.{purpose}.{len(found):05d}",
                "split": split,
                "spec": draft.spec,
            }
        )
    return found
