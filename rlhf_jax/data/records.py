"""The records that rows of data are read as: documents, prompts, demonstrations and rankings."""

import dataclasses
from collections.abc import Hashable, Sequence
from typing import Literal

from rlhf_jax.data.rows import Row

Kind = Literal["documents", "prompts", "demonstrations", "rankings"]


@dataclasses.dataclass(frozen=True)
class Document:
    """Raw text for pretraining, and the split that its source gave it."""

    text: str
    split: str | None = None


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt as the model reads it."""

    prompt: str
    row: Row


@dataclasses.dataclass(frozen=True)
class Demonstration:
    """A prompt and the completion that people want.

    `earlier` are the (prompt, completion) of earlier turns of the same chat, if they are trained on, too.
    """

    prompt: str
    completion: str
    row: Row
    earlier: tuple[tuple[str, str], ...] = ()

    @property
    def each(self) -> "list[Demonstration]":
        """The completions one by one, in their order, each with what stands before it as its prompt."""
        return [Demonstration(*pair, self.row) for pair in (*self.earlier, (self.prompt, self.completion))]


@dataclasses.dataclass(frozen=True)
class Ranking:
    """K completions of one prompt, ranked by one labeler; K = 1 is a completion that has a score.

    `ranks` are >= 1: 1 is best, equal ranks are ties. `finished` says of each completion whether
    it ended by itself (None: all did). `group` is what a split must not divide. `scores` are the
    labeler's, higher is better, where the ranks come from these. `sampled` are the completions' token
    ids as a model of the run wrote them, with the token that ended it: text can be written in several.
    `repeats` counts completions of the row that are left out, because the same text has another rank.
    """

    prompt: str
    completions: tuple[str, ...]
    ranks: tuple[int, ...]
    labeler: str | None
    group: str | None
    models: tuple[str, ...] | None
    finished: tuple[bool, ...] | None
    row: Row
    scores: tuple[float, ...] | None = None
    sampled: tuple[tuple[int, ...], ...] | None = None
    repeats: int = 0

    @property
    def unit(self) -> tuple:
        """The unit whose rankings are not independent: a prompt, whoever ranked; without a prompt, the texts of a row."""
        return (self.prompt,) if self.prompt else ("", self.completions)

    def of(self, places: Sequence[int]) -> "Ranking":
        """The ranking of some of its completions, with what belongs to them."""
        columns = ("completions", "ranks", "models", "finished", "scores", "sampled")
        values = {name: getattr(self, name) for name in columns}
        return dataclasses.replace(
            self, **{name: value and tuple(value[place] for place in places) for name, value in values.items()}
        )

    @property
    def all_tied(self) -> bool:
        """Whether no pair of completions says anything."""
        return len(self.ranks) > 1 and len(set(self.ranks)) == 1


Record = Document | Prompt | Demonstration | Ranking


def without_repeats(completions: Sequence[Hashable], ranks: Sequence[int]) -> list[int]:
    """The places of all but those that repeat an earlier one under another rank: nobody prefers a text to itself."""
    first = {}
    return [place for place, (text, rank) in enumerate(zip(completions, ranks)) if first.setdefault(text, rank) == rank]


def ranks_of(scores: Sequence[float]) -> tuple[int, ...]:
    """1 for the highest score; equal scores tie."""
    return tuple(1 + sum(other > score for other in scores) for score in scores)
