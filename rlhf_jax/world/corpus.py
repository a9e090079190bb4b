"""The embedded world as a corpus: what the stages read, and the gold judgement of what they write."""

import functools

from rlhf_jax.data.mixture import Source
from rlhf_jax.data.records import Demonstration, Document, Prompt, parse_row
from rlhf_jax.data.template import Template
from rlhf_jax.world import World, gold


class WorldCorpus:
    """See data.corpus.FileCorpus for the same methods over files.

    Args:
      config: the `data.world` section.
      skill_items: few-shot items a skill.
    """

    def __init__(self, config, template: Template, skill_items: int):
        self.world = World(config.seed)
        self.reports = self.split_reports = {}  # nothing is read from files
        self._config, self._template, self._skill_items = config, template, skill_items

    checksums: dict[str, str] = {}  # of files

    def read(self) -> None:
        """Nothing: it is made when it is asked for."""

    def has(self, kind: str) -> bool:
        """Whether there are rows of a kind; nobody has ranked any yet, that is what a collect stage is for."""
        counts = {"documents": self._config.documents, "demonstrations": self._config.demonstrations, "rankings": 0}
        return counts.get(kind, 1) > 0

    def tokenizer_texts(self) -> list[str]:
        return self.world.texts_for_tokenizer()

    @functools.cache
    def documents(self, split: str) -> list[Document]:
        count = self._config.documents if split == "train" else self._config.valid_documents
        return [Document(text) for text in self.world.documents(split, count)]

    @functools.cache
    def demonstrations(self, split: str) -> list[Demonstration]:
        count = self._config.demonstrations if split == "train" else self._config.valid_demonstrations
        rows = self.world.demonstrations(split, count, self._config.careless)
        return [parse_row(row, "demonstrations", self._template) for row in rows]

    @functools.cache
    def prompts(self, split: str, purpose: str) -> list[Prompt]:
        count = {
            "train": self._config.rm_prompts if purpose == "rm" else self._config.ppo_prompts,
            "valid": self._config.valid_prompts,
        }.get(split, self._config.test_prompts)
        rows = self.world.instructions(split, count, purpose=purpose)
        return [parse_row(row, "prompts", self._template) for row in rows]

    def mixed(self, kind: str, split: str) -> list[Source]:
        """One source, without a weight."""
        return [Source(kind, None, getattr(self, kind)(split))]

    def gold(self, prompt: Prompt, completion: str, finished: bool = True) -> gold.Gold:
        return gold.score(self.world, prompt.row, completion, finished)

    @functools.cache
    def skills(self) -> dict[str, list[dict]]:
        return self.world.skills(self._skill_items)
