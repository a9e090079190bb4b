"""The embedded world, which stands for the internet, the users and the labelers; all of it is drawn from one seed."""

import random
from collections.abc import Sequence

from rlhf_jax.world import documents, instructions, language, skills
from rlhf_jax.world.knowledge import Knowledge


class World:
    """A small English-like world in which the answer to every prompt can be checked.

    Attributes:
        seed: the seed. Worlds of the same seed give the same texts in every process.
        knowledge: the facts that are true.
        toy: the second language, for translation.
    """

    def __init__(self, seed: int = 0):
        self.seed = seed
        self.knowledge = Knowledge(seed)
        self.toy = language.ToyLanguage(seed)

    def documents(self, split: str, count: int) -> list[str]:
        """Returns the first `count` pretraining documents of the split `train` or `valid`."""
        return documents.documents(self, split, count)

    def instructions(self, split: str, count: int, purpose: str = "sft", kinds: Sequence[str] = ()) -> list[dict]:
        """Returns the first `count` prompts with demonstrations; see `instructions.rows`."""
        return instructions.rows(self, split, count, purpose, kinds)

    def demonstrations(self, split: str, count: int, careless: float = 0.0, kinds: Sequence[str] = ()) -> list[dict]:
        """Returns the first `count` prompts for SFT; the share `careless` of the demonstrations is rude or rambling."""
        rows = self.instructions(split, count, purpose="sft", kinds=kinds)
        return [row | {"output": self.written(row, careless)} for row in rows]

    def written(self, row: dict, careless: float) -> str:
        """Returns a person's answer to a row of `instructions`: its demonstration, rude or rambling with probability `careless`."""
        rng = random.Random(f"demonstration {self.seed} {row['id']}")
        if rng.random() < careless:
            return documents.careless(rng, row["output"], rng.choice(documents.HABITS))
        return row["output"]

    def skills(self, count: int) -> dict[str, list[dict]]:
        """Returns `count` few-shot prompts with answers for each of the base model's three skills."""
        return skills.prompts(self, count)

    def texts_for_tokenizer(self) -> list[str]:
        """Returns texts to train a tokenizer on, in training's proportions: documents, then prompts with answers."""
        rows = self.instructions("train", 1000)
        prompts = [f"{row['instruction']}\n{row['input']}\n{row['output']}" for row in rows]
        return self.documents("train", 8000) + prompts
