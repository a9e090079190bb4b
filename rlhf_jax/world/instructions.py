"""Prompts and demonstrations in rows: which category, which split, which purpose.

The *instance* of a task (its kind and what was filled in, whatever the wording) decides the split,
so no paraphrase of a training prompt is ever a test prompt; the wording decides the purpose, so the
prompts of SFT, reward model and PPO differ too.
"""

import random

from rlhf_jax.runtime.errors import InputError
from rlhf_jax.world import tasks_on_knowledge, tasks_on_text  # noqa: F401  they fill KINDS
from rlhf_jax.world.knowledge import NUMBERS
from rlhf_jax.world.language import bucket
from rlhf_jax.world.tasks import KINDS, Draft

SHARES = {  # Table 1 of InstructGPT, in percent.
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

_FLAWED = 0.16  # asked for; not every draft can have a flaw
_DECORATED = 0.17  # prompts that get a constraint besides those their kind may bring
_WORDS = ("indeed", "well", "truly", "now", "friend")
_LONGEST = 44  # words: with the template and a small vocabulary still under 64 tokens
_TRIES = 2000


def split_of(kind: str, instance: tuple) -> str:
    """The split that an instance belongs to: 8 in 10 train, 1 valid, 1 test."""
    if KINDS[kind].held_out:
        return "heldout_kinds"
    return {0: "valid", 1: "test"}.get(bucket(repr((kind, *instance)), 10), "train")


def purpose_of(instruction: str, text: str) -> str:
    """The purpose that a wording belongs to."""
    return PURPOSES[bucket(f"purpose {instruction}\n{text}", len(PURPOSES))]


def category_shares(split: str) -> dict[str, float]:
    """The categories that have kinds in the split, and their shares in percent of all."""
    held_out = split == "heldout_kinds"
    present = {kind.category for kind in KINDS.values() if kind.held_out == held_out}
    return {category: share for category, share in SHARES.items() if category in present}


def draw(world, rng: random.Random, category: str, split: str) -> tuple[str, Draft]:
    """One kind of the category and a draft of it, whose instance belongs to the split."""
    names = [
        name
        for name, kind in KINDS.items()
        if kind.category == category and kind.held_out == (split == "heldout_kinds")
    ]
    weights = [KINDS[name].weight for name in names]
    while True:
        (name,) = rng.choices(names, weights)
        draft = KINDS[name].draw(world, rng, rng.random() < _FLAWED)
        if split_of(name, draft.instance) == split:
            draft = _decorate(rng, draft)
            if len(f"{draft.instruction} {draft.input}".split()) <= _LONGEST:
                return name, draft


def _decorate(rng: random.Random, draft: Draft) -> Draft:
    """Adds an explicit constraint to some prompts, and obeys it unless the draft is flawed."""
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
    return sum(token.isalnum() for token in text.split())


_SAYINGS = {
    "most": "use at most {} words",
    "use": "use the word {}",
    "start": "start with the word {}",
    "avoid": "do not mention the {}",
    "one_sentence": "use one sentence",
}


def _categories(split: str, offset: float):
    """Endless categories in the proportions of Table 1, evenly spread (golden-ratio sequence)."""
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


def rows(world, split: str, count: int, purpose: str = "sft") -> list[dict]:
    """The first `count` prompts of a split and purpose, no two the same.

    Returns:
        {instruction, input, output, category, kind, id, split, spec}; `output` is a
        demonstration, `spec` what `gold.score` needs.

    Raises:
        InputError: no such split or purpose, or the split has not that many prompts.
    """
    if split not in SPLITS:
        raise InputError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
    if purpose not in PURPOSES:
        raise InputError(f"purpose must be one of {', '.join(PURPOSES)}, not {purpose!r}")
    rng = random.Random(f"instructions {world.seed} {split} {purpose}")
    categories = _categories(split, rng.random())
    seen, found = set(), []
    while len(found) < count:
        category = next(categories)
        for _ in range(_TRIES):
            kind, draft = draw(world, rng, category, split)
            prompt = draft.instruction, draft.input
            if prompt not in seen and purpose_of(*prompt) == purpose:
                break
        else:
            raise InputError(
                f"split {split!r}, purpose {purpose!r} has fewer than {count} prompts: "
                f"{category} ran out after {len(found)} rows"
            )
        seen.add(prompt)
        found.append(
            {
                "instruction": draft.instruction,
                "input": draft.input,
                "output": draft.output,
                "category": category,
                "kind": kind,
                "id": f"{split}.{purpose}.{len(found):05d}",
                "split": split,
                "spec": draft.spec,
            }
        )
    return found
