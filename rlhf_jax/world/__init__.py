"""The embedded world: stands for the internet, the users and the labelers; all from one seed."""

import random

from rlhf_jax.world import documents, instructions, language, skills
from rlhf_jax.world.knowledge import Knowledge


class World:
    """A small English-like world in which everything that is asked can be checked.

    Attributes:
        seed: two worlds of one seed give the same text in every process.
        knowledge: what is true.
        toy: the second language.
    """

    def __init__(self, seed: int = 0):
        self.seed = seed
        self.knowledge = Knowledge(seed)
        self.toy = language.ToyLanguage(seed)

    def documents(self, split: str, count: int) -> list[str]:
        """The first `count` pretraining documents of `train` or `valid`."""
        return documents.documents(self, split, count)

    def instructions(self, split: str, count: int, purpose: str = "sft") -> list[dict]:
        """The first `count` prompts with demonstrations; see `instructions.rows`."""
        return instructions.rows(self, split, count, purpose)

    def demonstrations(self, split: str, count: int, careless: float = 0.0) -> list[dict]:
        """The first `count` prompts for SFT; a share of the demonstrations is rude or rambles."""
        rows = self.instructions(split, count, purpose="sft")
        for row in rows:
            rng = random.Random(f"demonstration {self.seed} {row['id']}")
            if rng.random() < careless:
                row["output"] = documents.careless(rng, row["output"], rng.choice(documents.HABITS))
        return rows

    def skills(self, count: int) -> dict[str, list[dict]]:
        """Few-shot prompts with answers for three skills of the base model."""
        return skills.prompts(self, count)

    def texts_for_tokenizer(self) -> list[str]:
        """Text in the proportions that training sees: documents, then prompts and answers."""
        rows = self.instructions("train", 1000)
        prompts = [f"{row['instruction']}\n{row['input']}\n{row['output']}" for row in rows]
        return self.documents("train", 8000) + prompts
