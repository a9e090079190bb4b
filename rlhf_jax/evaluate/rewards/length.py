"""The length probe: how much of a reward model's accuracy is a taste for longer completions.

Two answers, because each has a weakness. Pairs of about equal length are free of length, but may be few. A logistic
regression uses every pair, but takes the effects of both quantities to be linear in the log-odds.
"""

from typing import NamedTuple

import numpy as np

from rlhf_jax import statistics
from rlhf_jax.statistics import Estimate

MATCHED = 0.1  # completions are of about equal length if they differ by at most this part of the longer one


class LengthProbe(NamedTuple):
    """What length explains; an estimate is None where no pair is of its kind."""

    longer_is_better: Estimate | None  # share of pairs of unequal length whose longer completion people prefer
    longer_scores_higher: Estimate | None  # the same for what the reward model prefers
    accuracy_longer_better: Estimate | None
    accuracy_shorter_better: Estimate | None
    accuracy_matched: Estimate | None  # on pairs of about equal length
    matched_pairs: int
    margin_weight: float  # log-odds for one root mean square of the score margin, with the length held fixed
    length_weight: float  # log-odds for one root mean square of the length difference, with the margin held fixed


def probe(margins, better_lengths, worse_lengths, units=None) -> LengthProbe:
    """Measures how scores and preferences go with length.

    Args:
      margins: f[N], the score of each pair's better completion less that of the worse one.
      better_lengths, worse_lengths: i[N], the tokens of both completions.
      units: [N], the name of each pair's unit as in statistics; None: pairs are independent.
    """
    margins = np.asarray(margins, np.float64)
    better, worse = np.asarray(better_lengths, np.float64), np.asarray(worse_lengths, np.float64)
    longer = better - worse
    right = (np.sign(margins) + 1) / 2
    matched = np.abs(longer) <= MATCHED * np.maximum(better, worse)

    def share(values, inside):
        if not inside.any():
            return None
        return statistics.share(values[inside], units=None if units is None else np.asarray(units)[inside])

    weights = _regression(np.stack([margins, longer], axis=1))
    return LengthProbe(
        share((longer > 0).astype(float), longer != 0),
        share(np.where(longer > 0, right, 1 - right), longer != 0),
        share(right, longer > 0),
        share(right, longer < 0),
        share(right, matched),
        int(matched.sum()),
        float(weights[0]),
        float(weights[1]),
    )


def _regression(features: np.ndarray, steps: int = 50) -> np.ndarray:
    """Fits P(better completion is preferred) = sigmoid(features @ weights), by Newton's method, and returns the weights.

    There is no intercept, because which completion of a pair comes first is arbitrary. The features are divided by their
    root mean squares. A prior of standard deviation 10 on each weight keeps the weights of perfect scores finite.
    """
    scale = np.sqrt((features**2).mean(axis=0))
    x = features / np.where(scale > 0, scale, 1)
    weights = np.zeros(x.shape[1])
    for _ in range(steps):
        doubt = 1 / (1 + np.exp(np.clip(x @ weights, -500, 500)))
        gradient = x.T @ doubt - weights / 100
        hessian = (x * (doubt * (1 - doubt))[:, None]).T @ x + np.eye(len(weights)) / 100
        step = np.linalg.solve(hessian, gradient)
        weights = weights + step * min(1, 2 / max(np.abs(step).max(), 1e-12))
    return weights
