"""The labelers of the embedded world: five groups who mostly agree, and choose with noise.

A labeler's utility of a completion, in units where two completions of one prompt differ by 1 (root
mean square) in their standardised gold total:

    total + private * (taste of the group + 1/2 * individual taste)

Tastes are traits of a completion (`traits`), freed of the part that the gold total explains and
scaled to the same unit. Each group likes one; an individual taste is a random direction among them.

A choice adds Gumbel noise to utility / temperature and sorts, so that without ties the marginal of
every pair is exactly Bradley-Terry, sigmoid(utility difference / temperature), whatever else is
ranked beside it. Ties come from grading: noisy utilities fall into grades of width `GRADE`, with
borders drawn anew each time, and completions of one grade tie.

`fit_panel` finds temperature and private so that, on given completions, two labelers of a group
agree 72.6 % (InstructGPT, section 3.4) and a reward model that knows the mean utility of four
groups is 2.8 points better on those than on the fifth (section 4.1: 72.4 % against 69.6 %).
Probabilities are known, so agreement, ceilings and that gap are sums over pairs, not simulations.
"""

import dataclasses
import functools
import math
import re
import zlib
from typing import NamedTuple

import numpy as np

from rlhf_jax.runtime.errors import InputError

GROUPS = ("brevity", "warmth", "exactness", "detail", "caution")
LABELERS_PER_GROUP = 8
INDIVIDUAL = 0.5  # length of an individual taste, where the group's is 1
GRADE = 0.4  # in units of the noise; equal utilities then tie 10 % of the time
MAX_PRIVATE = 1.5
MAX_PAIRS_TO_FIT = 2000

_WARM = frozenset(
    "care dear enjoy friend fun glad great happy hello help hi kind nice please pleasure sorry "
    "sweet thank thanks welcome".split()
)
_CAREFUL = frozenset(
    "believe could likely may maybe might perhaps possibly probably seems sometimes think usually".split()
)


class Labeler(NamedTuple):
    """One person of a panel."""

    index: int
    group: str

    @property
    def name(self) -> str:
        return f"{self.group}-{self.index % LABELERS_PER_GROUP}"


@dataclasses.dataclass(frozen=True)
class Candidates:
    """Completions of one prompt with their traits. Made by `candidates`."""

    prompt_id: str
    texts: tuple[str, ...]
    traits: np.ndarray  # f64[K,1+G]


class Agreement(NamedTuple):
    """Shares of the pairs that both of two labelers decide (do not tie)."""

    in_group: float
    across: float


class Fold(NamedTuple):
    """Accuracy of the mean utility of all other groups, on their own labels and on this group's."""

    held_out_group: str
    in_group: float
    held_out: float


@dataclasses.dataclass(frozen=True)
class Panel:
    """Forty labelers. Made by `fit_panel`; plain numbers, so dataclasses.asdict goes to JSON."""

    seed: int
    temperature: float
    private: float  # size of a group's taste beside the shared 1
    slopes: tuple[float, ...]  # of each taste on the gold total
    scales: tuple[float, ...]  # of the total and of each taste; 0 where a trait never differs

    @functools.cached_property
    def labelers(self) -> tuple[Labeler, ...]:
        """Everyone, group by group."""
        return tuple(
            Labeler(index, GROUPS[index // LABELERS_PER_GROUP]) for index in range(len(GROUPS) * LABELERS_PER_GROUP)
        )

    @functools.cached_property
    def weights(self) -> np.ndarray:
        """Utility per standardised trait, over temperature, f64[labelers,1+G]."""
        return _tastes(self.seed, self.private) / self.temperature

    def members(self, group: str) -> np.ndarray:
        """Mask bool[labelers] of a group."""
        return np.array([labeler.group == group for labeler in self.labelers])

    def utilities(self, traits: np.ndarray) -> np.ndarray:
        """f64[labelers,N] of traits f64[N,1+G], in units of the noise; differences alone matter."""
        return self.weights @ _standardised(traits, self.slopes, self.scales).T

    def rank(self, candidates: Candidates, labeler: Labeler) -> tuple[int, ...]:
        """A ranking of a prompt's completions: 1 is best, equal ranks are ties, no rank is skipped.

        It is drawn from (panel seed, prompt id, labeler), so it depends neither on what was ranked
        before nor on the order of the completions; completions of one text and worth tie.
        """
        utilities = self.utilities(candidates.traits)[labeler.index]
        prompt = zlib.crc32(candidates.prompt_id.encode())
        rng = np.random.default_rng([self.seed, prompt, labeler.index])
        distinct = sorted(set(candidates.texts))
        border = rng.random()
        noise = dict(zip(distinct, rng.gumbel(size=len(distinct))))
        felt = utilities + np.array([noise[text] for text in candidates.texts])
        grades = np.floor(felt / GRADE + border)
        _, ranks = np.unique(-grades, return_inverse=True)
        return tuple((ranks + 1).tolist())

    def choices(self, comparisons: list[Candidates]) -> tuple[np.ndarray, np.ndarray]:
        """Chance that a labeler prefers one, and the other, of every pair: two f64[labelers,M].

        Pairs are those of different texts of one prompt; what is left of 1 is the chance of a tie.
        """
        return _choices(self.utilities(_pair_differences(comparisons)))

    def agreement(self, comparisons: list[Candidates]) -> Agreement:
        """How often two labelers, of one group and of two, prefer the same one of a pair."""
        return _agreement(*self.choices(comparisons))

    def ceiling(self, comparisons: list[Candidates]) -> float:
        """Accuracy of a reward model that knows each labeler: E[max(sigma, 1 - sigma)]."""
        win, lose = self.choices(comparisons)
        return float(np.maximum(win, lose).sum() / (win + lose).sum())

    def folds(self, comparisons: list[Candidates]) -> tuple[Fold, ...]:
        """Accuracy ceilings of the five-fold experiment, one fold for each group held out."""
        return _folds(self.utilities(_pair_differences(comparisons)))

    def planted_gap(self, comparisons: list[Candidates]) -> float:
        """Accuracy in group minus held out, averaged over folds: what experiments should find."""
        return _gap(self.folds(comparisons))


def traits(gold, text: str) -> np.ndarray:
    """What labelers look at, f64[1+G]: the gold total, then one trait for each of `GROUPS`.

    Args:
        gold: parts and total of the completion (`gold.Gold`).
        text: the completion.
    """
    words = re.findall(r"\w+", text.lower())
    return np.array(
        [
            gold.total,
            -np.log1p(len(words)),
            float(any(word in _WARM for word in words)),  # more would pay for nothing but kind words
            gold.constraint + text.rstrip().endswith((".", "!", "?")),
            min(len({word for word in words if len(word) > 4}), 12),
            gold.honest + gold.harmless + min(sum(word in _CAREFUL for word in words), 3) / 3,
        ],
        np.float64,
    )


def candidates(prompt_id: str, texts, golds) -> Candidates:
    """The completions of a prompt as labelers see them; `golds` holds one `Gold` for each text."""
    rows = [traits(gold, text) for text, gold in zip(texts, golds, strict=True)]
    return Candidates(prompt_id, tuple(texts), np.array(rows))


def fit_panel(seed: int, comparisons: list[Candidates], *, agreement: float = 0.726, gap: float = 0.028) -> Panel:
    """Labelers who agree and differ by a given amount on given completions.

    Bisection, so the same input gives the same panel; on at most 2,000 pairs, evenly spaced. The
    paper's held-out labelers (77.3 %) are another seed with `agreement=0.773`.

    Args:
        seed: of individual tastes and of every later ranking.
        comparisons: completions like those to be ranked.
        agreement: of two labelers of a group on pairs that neither ties.
        gap: accuracy in group minus held out (`Panel.planted_gap`). Private tastes stay below
            MAX_PRIVATE; if the completions are so alike that this gap needs more, it is smaller.

    Raises:
        InputError: the gold total separates no pair.
    """
    differences = _pair_differences(comparisons)
    differences = differences[:: max(1, math.ceil(len(differences) / MAX_PAIRS_TO_FIT))]
    slopes, scales = _standardisation(differences)
    differences = _standardised(differences, slopes, scales)

    def temperature(private):
        utilities = _tastes(seed, private) @ differences.T
        # Colder labelers agree more.
        return np.exp(_bisect(lambda log: _agreement(*_choices(utilities / np.exp(log))).in_group < agreement, -6, 6))

    def gap_too_large(private):
        utilities = _tastes(seed, private) @ differences.T / temperature(private)
        return _gap(_folds(utilities)) > gap

    private = _bisect(gap_too_large, 0, MAX_PRIVATE)
    return Panel(seed, float(temperature(private)), float(private), slopes, scales)


def _tastes(seed: int, private: float) -> np.ndarray:
    """Utility per standardised trait of everyone, f64[labelers,1+G]."""
    group = np.repeat(np.eye(len(GROUPS)), LABELERS_PER_GROUP, axis=0)
    individual = np.random.default_rng(seed).standard_normal(group.shape)
    individual *= INDIVIDUAL / np.linalg.norm(individual, axis=1, keepdims=True)
    return np.column_stack([np.ones(len(group)), private * (group + individual)])


def _standardisation(differences: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(slopes of tastes on the total, scales), from the traits' differences f64[M,1+G]."""
    total, tastes = differences[:, :1], differences[:, 1:]
    if not total.any():
        raise InputError(
            "labelers cannot be fitted: the gold total separates no two completions of a prompt; "
            "collect more prompts, or sample from models of different quality"
        )
    slopes = (total * tastes).sum(0) / (total**2).sum()
    spread = np.sqrt(np.mean(np.hstack([total, tastes - slopes * total]) ** 2, axis=0))
    return tuple(slopes.tolist()), tuple(np.where(spread > 1e-9, spread, 0).tolist())


def _standardised(traits: np.ndarray, slopes, scales) -> np.ndarray:
    """Traits with the total's share taken out of the tastes, over their scales."""
    tastes = traits[:, 1:] - np.asarray(slopes) * traits[:, :1]
    traits = np.hstack([traits[:, :1], tastes])
    return np.divide(traits, scales, out=np.zeros_like(traits), where=np.asarray(scales) > 0)


def _pair_differences(comparisons: list[Candidates]) -> np.ndarray:
    """Differences of traits f64[M,1+G] of all pairs of different texts, each pair once."""
    rows = [np.empty((0, 1 + len(GROUPS)))]
    for prompt in comparisons:
        first, second = np.triu_indices(len(prompt.texts), 1)
        texts = np.array(prompt.texts, object)
        distinct = (texts[first] != texts[second]).astype(bool)
        rows.append((prompt.traits[first] - prompt.traits[second])[distinct])
    return np.concatenate(rows)


def _choices(differences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Chances that the first and the second of two is preferred, for utility differences.

    A felt lead x > 0 crosses a border with probability min(1, x / GRADE), and x is logistic about
    the difference d: the mean is that of sigmoid(d - s) over 0 < s < GRADE, near sigmoid(d).
    """

    def preferred(d):
        return (np.logaddexp(0, d) - np.logaddexp(0, d - GRADE)) / GRADE

    return preferred(differences), preferred(-differences)


def _agreement(win: np.ndarray, lose: np.ndarray) -> Agreement:
    """Exact agreement from choice probabilities f64[labelers,M], labelers group by group."""
    win, lose = (x.reshape(len(GROUPS), LABELERS_PER_GROUP, -1) for x in (win, lose))

    def within(x):  # sum over unordered pairs of one group of the product of their x
        return ((x.sum(1) ** 2 - (x**2).sum(1)) / 2).sum()

    def between(x):  # and over pairs of two groups
        return ((x.sum((0, 1)) ** 2 - (x.sum(1) ** 2).sum(0)) / 2).sum()

    return Agreement(*(float((pairs(win) + pairs(lose)) / pairs(win + lose)) for pairs in (within, between)))


def _folds(utilities: np.ndarray) -> tuple[Fold, ...]:
    """Folds from utility differences f64[labelers,M], labelers group by group."""
    utilities = utilities.reshape(len(GROUPS), LABELERS_PER_GROUP, -1)
    win, lose = (x.sum(1) for x in _choices(utilities))  # [G,M]
    mean = utilities.mean(1)

    def accuracy(predicted, groups):
        right = np.where(predicted > 0, win, np.where(predicted < 0, lose, (win + lose) / 2))
        return float(right[groups].sum() / (win + lose)[groups].sum())

    folds = []
    for held_out, name in enumerate(GROUPS):
        others = np.arange(len(GROUPS)) != held_out
        predicted = mean[others].sum(0)
        folds.append(Fold(name, accuracy(predicted, others), accuracy(predicted, ~others)))
    return tuple(folds)


def _gap(folds: tuple[Fold, ...]) -> float:
    return float(np.mean([fold.in_group - fold.held_out for fold in folds]))


def _bisect(too_high, low: float, high: float, steps: int = 14) -> float:
    """The highest x in [low, high] that is not too high, to 1/16,384 of the range."""
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (low, middle) if too_high(middle) else (middle, high)
    return low
