"""The embedded world as a corpus: the examples that stages read, and the gold judgement of their completions."""

import functools
import random

from rlhf_jax.data.mixture import Source
from rlhf_jax.data.records import Demonstration, Document, Prompt
from rlhf_jax.data.row_formats import parse_row
from rlhf_jax.data.template import Template
from rlhf_jax.world import World, gold, instructions


class WorldCorpus:
    """A corpus made of a world; data.corpus.FileCorpus has the same methods for files.

    Args:
      config: the section `data.world`.
      template: the template that makes a prompt from an instruction and its input.
      skill_items: number of few-shot items of each skill.
    """

    def __init__(self, config, template: Template, skill_items: int):
        self.world = World(config.seed)
        self.reports = self.split_reports = {}  # empty: they are about files, and a world has none
        self._config, self._template, self._skill_items = config, template, skill_items

    checksums: dict[str, str] = {}  # checksums of the files that are read: none

    def read(self) -> None:
        """Does nothing: examples are made when they are needed."""

    def has(self, kind: str) -> bool:
        """Returns whether there are rows of a kind. There are no rankings: a collect stage makes them."""
        counts = {"documents": self._config.documents, "demonstrations": self._config.demonstrations, "rankings": 0}
        return counts.get(kind, 1) > 0

    def tokenizer_texts(self) -> list[str]:
        """Returns the texts to train a tokenizer on."""
        return self.world.texts_for_tokenizer()

    @functools.cache
    def documents(self, split: str) -> list[Document]:
        """Returns the pretraining documents of a split."""
        count = self._config.documents if split == "train" else self._config.valid_documents
        return [Document(text) for text in self.world.documents(split, count)]

    @functools.cache
    def demonstrations(self, split: str) -> list[Demonstration]:
        """Returns the demonstrations of a split."""
        count = self._config.demonstrations if split == "train" else self._config.valid_demonstrations
        rows = self.world.demonstrations(split, count, self._config.careless)
        return [parse_row(row, "demonstrations", self._template) for row in rows]

    @functools.cache
    def demonstrations_of_kinds(self, count: int, seed: int) -> list[Demonstration]:
        """Returns as many training demonstrations as `demonstrations`, in equal parts of `count` kinds of tasks.

        The seed draws the kinds; those of a smaller count are among those of a larger one.
        """
        names = instructions.kinds_of("train")
        kinds = random.Random(f"kinds {seed}").sample(names, len(names))[:count]
        rows = self.world.demonstrations("train", self._config.demonstrations, self._config.careless, kinds)
        return [parse_row(row, "demonstrations", self._template) for row in rows]

    @functools.cache
    def prompts(self, split: str, purpose: str) -> list[Prompt]:
        """Returns the prompts of a split for a purpose, "rm" or "ppo"."""
        count = {
            "train": self._config.rm_prompts if purpose == "rm" else self._config.ppo_prompts,
            "valid": self._config.valid_prompts,
        }.get(split, self._config.test_prompts)
        if split == "test" and self._config.test_kinds == "unseen":
            kinds = instructions.kinds_of("heldout_kinds")
            rows = self.world.instructions("heldout_kinds", count, purpose, kinds)
        else:
            rows = self.world.instructions(split, count, purpose)
        return [parse_row(row, "prompts", self._template) for row in rows]

    def demonstration_of(self, prompt: Prompt) -> Demonstration:
        """Returns what a writer of demonstrations answers to a prompt."""
        row = prompt.row | {"output": self.world.written(prompt.row, self._config.careless)}
        return parse_row(row, "demonstrations", self._template)

    def mixed(self, kind: str, split: str) -> list[Source]:
        """Returns the examples of a kind and split as a mixture of one source, which has no weight."""
        return [Source(kind, None, getattr(self, kind)(split))]

    def gold(self, prompt: Prompt, completion: str, finished: bool = True) -> gold.Gold:
        """Returns the gold judgement of a completion; see `gold.score`."""
        return gold.score(self.world, prompt.row, completion, finished)

    @functools.cache
    def skills(self) -> dict[str, list[dict]]:
        """Returns the few-shot prompts of each skill; see `skills.prompts`."""
        return self.world.skills(self._skill_items)
