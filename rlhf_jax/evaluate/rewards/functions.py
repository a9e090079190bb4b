"""Reward functions as judges of files, beside the models of models.py: they read texts, and need no tokenizer."""

import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rlhf_jax.data.chat_template import shown
from rlhf_jax.data.records import Prompt, Ranking
from rlhf_jax.fields.rewards import Reward
from rlhf_jax.rewards.functions import RewardFunction

_BATCH = 256  # completions of a call


class Asked(NamedTuple):
    """A completion, and its prompt with the row that both come from."""

    prompt: Prompt
    text: str


class FunctionJudge:
    """A reward function that scores completions. Its attributes are those of scoring.Judge.

    Args:
        reward: the function and its options.

    Raises:
        InputError: there is no such function, or it cannot be called with the options.
    """

    is_reward, scores, unit, limit = True, ("score",), "words", ""

    def __init__(self, reward: Reward):
        self._function = RewardFunction(reward, "--reward")
        self.name = reward.name
        self.identity = f"{reward.text} {self._function.checksum}"

    def encode(self, rankings: Sequence[Ranking]) -> list[list[Asked] | None]:
        """Returns what the function is asked about each ranking."""
        return [
            [Asked(Prompt(ranking.prompt, ranking.row), shown(text)) for text in ranking.completions]
            for ranking in rankings
        ]

    def key(self, row: Asked) -> tuple:
        """Returns what tells one question from another."""
        return row.prompt.prompt, row.text, json.dumps(row.prompt.row, sort_keys=True, default=str)

    def length(self, row: Asked) -> int:
        """Returns the number of words of a completion."""
        return len(row.text.split())

    def __call__(self, rows: Sequence[Asked]) -> Iterator[list[tuple[int, float]]]:
        """Yields, batch by batch, the number of each row and its score."""
        for start in range(0, len(rows), _BATCH):
            part = rows[start : start + _BATCH]
            scores = self._function([row.prompt for row in part], [row.text for row in part])
            yield list(enumerate(scores.tolist(), start))
