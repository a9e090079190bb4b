"""A baseline for reward models: a Bradley-Terry model on bags of words.

It scores a completion with the sum of the weights of its words, and sees neither their order nor the prompt. Where it does
well, the preferences ask little more of a reward model than to know words.
"""

import collections
import dataclasses
import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy  # its parts are imported when they are first used

from rlhf_jax import statistics
from rlhf_jax.data.records import Ranking
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.statistics import Estimate

PENALTIES = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5)
_VALIDATION_EVERY = 5  # one prompt in so many is held out to choose the penalty
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclasses.dataclass(frozen=True)
class BagOfWords:
    """A fitted model: the column of each word, the weights f64[words], and the L2 penalty that was chosen."""

    columns: dict[str, int]
    weights: np.ndarray
    penalty: float

    def scores(self, completions: Sequence[str]) -> np.ndarray:
        """The scores f64[N] of completions, the higher the better."""
        return _counts(self.columns, completions) @ self.weights

    def scores_of(self, rankings: Sequence[Ranking]) -> np.ndarray:
        """The scores f64[N, K] of the completions of rankings, as a reward model gives them; 0 where there is none."""
        flat = iter(self.scores([text for ranking in rankings for text in ranking.completions]))
        scores = np.zeros([len(rankings), max((len(ranking.completions) for ranking in rankings), default=0)])
        for row, ranking in zip(scores, rankings):
            row[: len(ranking.completions)] = [next(flat) for _ in ranking.completions]
        return scores


def fit(rankings: Sequence[Ranking]) -> BagOfWords:
    """Fits the weights with the penalty of PENALTIES that has the best log-loss on prompts held out.

    As in the reward model's loss, ties are dropped, and the pairs of a ranking together have weight 1.

    Raises:
        InputError: all completions are tied, or fewer than two prompts have a preference.
    """
    places = {prompt: place for place, prompt in enumerate(dict.fromkeys(r.unit for r in rankings))}
    validates = np.array([places[r.unit] % _VALIDATION_EVERY == 1 for r in rankings], bool)
    columns = _columns([ranking for ranking, held_out in zip(rankings, validates) if not held_out])
    pairs = _pairs(columns, rankings).together()
    if not len(pairs.source):
        raise InputError("no ranking says that one completion is better than another")
    train, valid = pairs.of(~validates[pairs.source]), pairs.of(validates[pairs.source])
    if not len(valid.source) or not len(train.source):
        raise InputError("the rankings need at least two prompts with a preference")
    best, chosen, solution = np.inf, PENALTIES[0], np.zeros(len(columns))
    for penalty in PENALTIES:  # from strong to weak until it overfits; each fit starts at the last solution
        solution = _minimize(train, penalty, solution)
        loss = _log_loss(valid.margins(solution), valid.weights)
        if loss >= best:
            break
        best, chosen = loss, penalty
    columns = _columns(rankings)
    return BagOfWords(columns, _minimize(_pairs(columns, rankings).together(), chosen, np.zeros(len(columns))), chosen)


def accuracy(bag: BagOfWords, rankings: Sequence[Ranking]) -> Estimate:
    """The share of untied pairs that the scores put in the right order; equal scores count one half.

    Pairs of one prompt are not independent, so the interval is over prompts (`Ranking.unit`).
    """
    pairs = _pairs(bag.columns, rankings)
    right = (np.sign(pairs.margins(bag.weights)) + 1) / 2
    return statistics.share(right, units=[rankings[i].unit for i in pairs.source])


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _columns(rankings: Sequence[Ranking]) -> dict[str, int]:
    """A column for each word that stands in at least two completions, in the order of their first appearance."""
    ranked = dict.fromkeys((ranking.unit, ranking.completions) for ranking in rankings)
    counts = collections.Counter(word for _, texts in ranked for text in texts for word in set(_words(text)))
    return {word: column for column, word in enumerate(word for word, count in counts.items() if count > 1)}


def _counts(columns: dict[str, int], texts: Sequence[str]) -> "scipy.sparse.csr_matrix":
    rows, places = [], []
    for row, text in enumerate(texts):
        known = [columns[word] for word in _words(text) if word in columns]
        rows += [row] * len(known)
        places += known
    return scipy.sparse.csr_matrix((np.ones(len(rows)), (rows, places)), (len(texts), len(columns)))


class _Pairs(NamedTuple):
    """The pairs of completions that are not tied, by the places of their texts.

    Attributes:
        counts: how often each word stands in each text [texts, words], sparse.
        better, worse: i64[N], the texts of each pair.
        weights: f64[N]; those of a ranking's pairs sum to 1.
        source: i64[N], the place of each pair's ranking.
    """

    counts: "scipy.sparse.csr_matrix"
    better: np.ndarray
    worse: np.ndarray
    weights: np.ndarray
    source: np.ndarray

    def margins(self, solution: np.ndarray) -> np.ndarray:
        """Returns the score of the better text less that of the worse one, f64[N]."""
        scores = self.counts @ solution
        return scores[self.better] - scores[self.worse]

    def gradient(self, slopes: np.ndarray) -> np.ndarray:
        """Returns the gradient f64[words] of a function of the margins, of which `slopes` f64[N] is the gradient."""
        texts = self.counts.shape[0]
        return self.counts.T @ (np.bincount(self.better, slopes, texts) - np.bincount(self.worse, slopes, texts))

    def of(self, chosen: np.ndarray) -> "_Pairs":
        """Returns the pairs that a mask or their places select."""
        return self._replace(
            better=self.better[chosen],
            worse=self.worse[chosen],
            weights=self.weights[chosen],
            source=self.source[chosen],
        )

    def together(self) -> "_Pairs":
        """Returns each pair once, with the sum of the weights, and the first source, of those who say the same."""
        keys = self.better * self.counts.shape[0] + self.worse
        _, first, number = np.unique(keys, return_index=True, return_inverse=True)
        return self.of(first)._replace(weights=np.bincount(number, self.weights))


def _pairs(columns: dict[str, int], rankings: Sequence[Ranking]) -> _Pairs:
    """The pairs of rankings; several rankings of the same completions share their texts."""
    better, worse, weights, source = [], [], [], []
    texts: list[str] = []
    offsets: dict[tuple, int] = {}
    for place, ranking in enumerate(rankings):
        ranks = ranking.ranks
        offset = offsets.setdefault((ranking.unit, ranking.completions), len(texts))
        if offset == len(texts):
            texts += ranking.completions
        kept = [(i, j) for i, j in itertools.permutations(range(len(ranks)), 2) if ranks[i] < ranks[j]]
        better += [offset + i for i, _ in kept]
        worse += [offset + j for _, j in kept]
        weights += [1 / len(kept) for _ in kept]
        source += [place] * len(kept)
    places = (np.array(column, np.int64) for column in (better, worse))
    return _Pairs(_counts(columns, texts), *places, np.array(weights), np.array(source, np.int64))


def _log_loss(margins: np.ndarray, weights: np.ndarray) -> float:
    """The weighted mean of -log sigmoid(margin), in nats."""
    return float(weights @ np.logaddexp(0, -margins) / weights.sum())


def _minimize(pairs: _Pairs, penalty: float, start: np.ndarray) -> np.ndarray:
    """The word weights that minimise log-loss + penalty / 2 * |weights|^2; the search begins at `start`."""

    def objective(solution):
        margins = pairs.margins(solution)
        slopes = -pairs.weights / pairs.weights.sum() / (1 + np.exp(np.minimum(margins, 500)))
        loss = _log_loss(margins, pairs.weights) + penalty / 2 * solution @ solution
        return loss, pairs.gradient(slopes) + penalty * solution

    return scipy.optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
