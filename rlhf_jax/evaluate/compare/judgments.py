"""Judgments: which of two completions of a prompt is better, and what several of them say together."""

import dataclasses
from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

Contest = tuple[str, str]  # the names of two policies


@dataclasses.dataclass(frozen=True)
class Judgment:
    """What a judge said of two completions.

    Attributes:
        prompt: what both answer. Judgments of one prompt are not independent.
        number: of the pair of completions, where a prompt has several for the same two policies.
        first, second: names of the policies, in the order in which the judge saw their completions.
        score: 1 where the first is better, 0 where the second is, 1/2 for a tie; or the judge's probability of the first.
        lengths: characters of the two completions; None where nobody knows.
        judge: name of the judge.
        ordered: whether the judge saw one after the other, and the file says which was first.
    """

    prompt: Hashable
    number: int
    first: str
    second: str
    score: float
    lengths: tuple[int, int] | None
    judge: str = ""
    ordered: bool = True

    @property
    def pair(self) -> tuple:
        """What is judged: the same for both orders, and for all judges."""
        return self.prompt, self.number, frozenset((self.first, self.second))


class Comparison(NamedTuple):
    """What all judgments of a pair of completions say: the mean score of the first, and its characters less the second's."""

    prompt: Hashable
    score: float
    longer: int | None


def comparisons(judgments: Iterable[Judgment], names: Sequence[str]) -> dict[Contest, list[Comparison]]:
    """Returns the comparisons of each two policies that were judged, the one that stands first in `names` as the first."""
    place = {name: number for number, name in enumerate(names)}
    found: dict[Contest, dict[tuple, list[tuple[float, int | None]]]] = {}
    for judgment in judgments:
        lengths = judgment.lengths
        longer, score = lengths and lengths[0] - lengths[1], judgment.score
        contest = judgment.first, judgment.second
        if place[judgment.first] > place[judgment.second]:
            contest, score, longer = contest[::-1], 1 - score, None if longer is None else -longer
        pair = judgment.prompt, judgment.number
        found.setdefault(contest, {}).setdefault(pair, []).append((score, longer))
    ordered = sorted(found, key=lambda contest: (place[contest[0]], place[contest[1]]))
    return {contest: [_mean(pair[0], said) for pair, said in found[contest].items()] for contest in ordered}


def _mean(prompt: Hashable, said: list[tuple[float, int | None]]) -> Comparison:
    return Comparison(prompt, sum(score for score, _ in said) / len(said), said[0][1])
