"""The labelers of the embedded world: five groups that mostly agree, and choose with noise.

The utility of a completion to a labeler is

    total + private * (taste of the group + 1/2 * individual taste)

in units in which two completions of one prompt differ by 1 (root mean square) in their standardised gold total. Tastes
are traits of a completion (`traits`), without the part that the gold total explains, and scaled to the same unit. Each
group likes one trait; an individual taste is a random direction among the traits.

A ranking adds Gumbel noise to utility / temperature and sorts. Without ties, the marginal of every pair is exactly
Bradley-Terry, sigmoid(utility difference / temperature), whatever else is ranked with it. Ties come from grading: noisy
utilities fall into grades of width `GRADE`, with borders drawn anew for each ranking, and completions of the same grade
tie.

`fit_panel` finds temperature and private such that, on given completions, two labelers of a group agree on 72.6 % of
the pairs (InstructGPT, section 3.4). A reward model that knows the mean utility of four groups is then 2.8 points more
accurate on these than on the fifth (section 4.1: 72.4 % against 69.6 %). All probabilities are known, so
agreement, ceilings and this gap are sums over pairs, not simulations.

Shapes: G groups, K completions of one prompt, N completions, M pairs of completions.
"""

import dataclasses
import functools
import math
import re
import zlib
from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from rlhf_jax.runtime.errors import InputError

GROUPS = ("brevity", "warmth", "exactness", "detail", "caution")
LABELERS_PER_GROUP = 8
INDIVIDUAL = 0.5  # length of an individual taste, relative to the group's
GRADE = 0.4  # width of a grade in units of the noise; completions of equal utility then tie with probability 10 %
MAX_PRIVATE = 1.5  # largest value of private that `fit_panel` tries
MAX_PAIRS_TO_FIT = 2000

_WARM = frozenset(
    "care dear enjoy friend fun glad great happy hello help hi kind nice please pleasure sorry "
    "sweet thank thanks welcome".split()
)
_CAREFUL = frozenset(
    "believe could likely may maybe might perhaps possibly probably seems sometimes think usually".split()
)


class Labeler(NamedTuple):
    """A person of a panel; `index` is the position in `Panel.labelers`."""

    index: int
    group: str

    @property
    def name(self) -> str:
        """The group and the number in the group, as in `warmth-3`."""
        return f"{self.group}-{self.index % LABELERS_PER_GROUP}"


@dataclasses.dataclass(frozen=True)
class Candidates:
    """Completions of one prompt with their traits; the function `candidates` makes one."""

    prompt_id: str
    texts: tuple[str, ...]
    traits: np.ndarray  # f64[K,1+G]


class Agreement(NamedTuple):
    """The shares of pairs on which two labelers agree, among the pairs that neither ties.

    Attributes:
        in_group: share for two labelers of the same group.
        across: share for two labelers of different groups.
    """

    in_group: float
    across: float


class Fold(NamedTuple):
    """The accuracies of a predictor that knows the mean utility of all groups but one.

    Attributes:
        held_out_group: name of the group that it does not know.
        in_group: accuracy on the labels of the groups that it knows.
        held_out: accuracy on the labels of the held-out group.
    """

    held_out_group: str
    in_group: float
    held_out: float


@dataclasses.dataclass(frozen=True)
class Panel:
    """A panel of forty labelers; `fit_panel` makes one.

    All fields are plain numbers, so the result of dataclasses.asdict can be written as JSON.
    """

    seed: int
    temperature: float
    private: float  # weight of a group's taste; the gold total has weight 1
    slopes: tuple[float, ...]  # regression slope of each taste on the gold total
    scales: tuple[float, ...]  # units of the total and of each taste; 0 if a trait never differs

    @functools.cached_property
    def labelers(self) -> tuple[Labeler, ...]:
        """All labelers, group by group."""
        return tuple(
            Labeler(index, GROUPS[index // LABELERS_PER_GROUP]) for index in range(len(GROUPS) * LABELERS_PER_GROUP)
        )

    @functools.cached_property
    def weights(self) -> np.ndarray:
        """The utility per standardised trait, divided by the temperature, f64[labelers,1+G]."""
        return _tastes(self.seed, self.private) / self.temperature

    def members(self, group: str) -> np.ndarray:
        """Returns the mask bool[labelers] of a group's labelers."""
        return np.array([labeler.group == group for labeler in self.labelers])

    def utilities(self, traits: np.ndarray) -> np.ndarray:
        """Returns the utilities f64[labelers,N] of traits f64[N,1+G], in units of the noise, up to a constant."""
        return self.weights @ _standardised(traits, self.slopes, self.scales).T

    def mean_utilities(self, traits: np.ndarray, groups: Collection[str]) -> np.ndarray:
        """Returns the mean utilities f64[N] to the labelers of some groups, as `utilities`."""
        return self.utilities(traits)[[labeler.group in groups for labeler in self.labelers]].mean(0)

    def rank(self, candidates: Candidates, labeler: Labeler) -> tuple[int, ...]:
        """Returns the ranks of a prompt's completions: 1 is best, equal ranks are ties, and no rank is skipped.

        The noise is drawn from (panel seed, prompt id, labeler), so the ranks depend neither on earlier rankings nor on
        the order of the completions. Completions with the same text and traits tie.
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
        """Returns the probabilities that a labeler prefers the first, and the second, of a pair: two f64[labelers,M].

        The M pairs are those of different texts of one prompt. The two probabilities and that of a tie sum to 1.
        """
        return _choices(self.utilities(_pair_differences(comparisons)))

    def agreement(self, comparisons: list[Candidates]) -> Agreement:
        """Returns how often two labelers prefer the same completion of a pair, within a group and across groups."""
        return _agreement(*self.choices(comparisons))

    def ceiling(self, comparisons: list[Candidates]) -> float:
        """Returns the accuracy of a reward model that knows each labeler's utility: E[max(sigma, 1 - sigma)]."""
        win, lose = self.choices(comparisons)
        return float(np.maximum(win, lose).sum() / (win + lose).sum())

    def folds(self, comparisons: list[Candidates]) -> tuple[Fold, ...]:
        """Returns the accuracy ceilings of the five-fold experiment: one fold for each held-out group."""
        return _folds(self.utilities(_pair_differences(comparisons)))

    def planted_gap(self, comparisons: list[Candidates]) -> float:
        """Returns the accuracy in group minus held out, averaged over folds: the gap that experiments should find."""
        return _gap(self.folds(comparisons))


def traits(gold, text: str) -> np.ndarray:
    """Returns the traits of a completion that labelers look at, f64[1+G].

    The first is the gold total; each further trait is the one that a group of `GROUPS` likes.

    Args:
        gold: gold judgement of the completion (`gold.Gold`).
        text: the completion.
    """
    words = re.findall(r"\w+", text.lower())
    return np.array(
        [
            gold.total,
            -np.log1p(len(words)),
            # One warm word suffices: a count would reward texts of nothing but kind words.
            float(any(word in _WARM for word in words)),
            gold.constraint + text.rstrip().endswith((".", "!", "?")),
            min(len({word for word in words if len(word) > 4}), 12),
            gold.honest + gold.harmless + min(sum(word in _CAREFUL for word in words), 3) / 3,
        ],
        np.float64,
    )


def candidates(prompt_id: str, texts, golds) -> Candidates:
    """Returns the completions of a prompt with their traits; `golds` holds a `gold.Gold` for each text."""
    rows = [traits(gold, text) for text, gold in zip(texts, golds, strict=True)]
    return Candidates(prompt_id, tuple(texts), np.array(rows))


def fit_panel(seed: int, comparisons: list[Candidates], *, agreement: float = 0.726, gap: float = 0.028) -> Panel:
    """Returns a panel of labelers with a given agreement and gap on given completions.

    The fit is a bisection on at most 2,000 pairs, evenly spaced, so the same input gives the same panel. For the
    paper's held-out labelers, who agree on 77.3 %, use another seed with `agreement=0.773`.

    Args:
        seed: seed of individual tastes and of every later ranking.
        comparisons: completions like those to be ranked.
        agreement: agreement of two labelers of a group, on pairs that neither ties.
        gap: accuracy in group minus held out (`Panel.planted_gap`). `private` stays below MAX_PRIVATE; if the
            completions are so alike that this gap needs more, the gap is smaller.

    Raises:
        InputError: the gold total does not differ in any pair.
    """
    differences = _pair_differences(comparisons)
    differences = differences[:: max(1, math.ceil(len(differences) / MAX_PAIRS_TO_FIT))]
    slopes, scales = _standardisation(differences)
    differences = _standardised(differences, slopes, scales)

    def temperature(private):
        utilities = _tastes(seed, private) @ differences.T
        # Labelers of a lower temperature agree more, so the agreement is monotonic.
        return np.exp(_bisect(lambda log: _agreement(*_choices(utilities / np.exp(log))).in_group < agreement, -6, 6))

    def gap_too_large(private):
        utilities = _tastes(seed, private) @ differences.T / temperature(private)
        return _gap(_folds(utilities)) > gap

    private = _bisect(gap_too_large, 0, MAX_PRIVATE)
    return Panel(seed, float(temperature(private)), float(private), slopes, scales)


def _tastes(seed: int, private: float) -> np.ndarray:
    """Returns the utility per standardised trait of each labeler, f64[labelers,1+G]."""
    group = np.repeat(np.eye(len(GROUPS)), LABELERS_PER_GROUP, axis=0)
    individual = np.random.default_rng(seed).standard_normal(group.shape)
    individual *= INDIVIDUAL / np.linalg.norm(individual, axis=1, keepdims=True)
    return np.column_stack([np.ones(len(group)), private * (group + individual)])


def _standardisation(differences: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns (regression slopes of the tastes on the total, scales), from the traits' differences f64[M,1+G].

    Raises:
        InputError: the gold total does not differ in any pair.
    """
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
    """Returns traits f64[N,1+G] without the part of the tastes that the total explains, divided by their scales."""
    tastes = traits[:, 1:] - np.asarray(slopes) * traits[:, :1]
    traits = np.hstack([traits[:, :1], tastes])
    return np.divide(traits, scales, out=np.zeros_like(traits), where=np.asarray(scales) > 0)


def _pair_differences(comparisons: list[Candidates]) -> np.ndarray:
    """Returns the differences of traits f64[M,1+G] of all pairs of different texts of a prompt, each pair once."""
    rows = [np.empty((0, 1 + len(GROUPS)))]
    for prompt in comparisons:
        first, second = np.triu_indices(len(prompt.texts), 1)
        texts = np.array(prompt.texts, object)
        distinct = (texts[first] != texts[second]).astype(bool)
        rows.append((prompt.traits[first] - prompt.traits[second])[distinct])
    return np.concatenate(rows)


def _choices(differences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the probabilities that the first, and the second, of a pair is preferred, for utility differences.

    The noisy lead x of one completion is logistic around the utility difference d. A lead x > 0 crosses a border
    between grades with probability min(1, x / GRADE). The probability is then the mean of sigmoid(d - s) over
    0 < s < GRADE, which is near sigmoid(d).
    """

    def preferred(d):
        return (np.logaddexp(0, d) - np.logaddexp(0, d - GRADE)) / GRADE

    return preferred(differences), preferred(-differences)


def _agreement(win: np.ndarray, lose: np.ndarray) -> Agreement:
    """Returns the exact agreement from probabilities of choices f64[labelers,M], labelers group by group."""
    win, lose = (x.reshape(len(GROUPS), LABELERS_PER_GROUP, -1) for x in (win, lose))

    def within(x):  # sum of products of x over the unordered pairs of labelers of the same group
        return ((x.sum(1) ** 2 - (x**2).sum(1)) / 2).sum()

    def between(x):  # the same sum over the pairs of labelers of different groups
        return ((x.sum((0, 1)) ** 2 - (x.sum(1) ** 2).sum(0)) / 2).sum()

    return Agreement(*(float((pairs(win) + pairs(lose)) / pairs(win + lose)) for pairs in (within, between)))


def _folds(utilities: np.ndarray) -> tuple[Fold, ...]:
    """Returns the folds from utility differences f64[labelers,M], labelers group by group."""
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
    """Returns the accuracy in group minus held out, averaged over folds."""
    return float(np.mean([fold.in_group - fold.held_out for fold in folds]))


def _bisect(too_high, low: float, high: float, steps: int = 14) -> float:
    """Returns the highest x in [low, high] that is not too high, within 1/16,384 of the range."""
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (low, middle) if too_high(middle) else (middle, high)
    return low
