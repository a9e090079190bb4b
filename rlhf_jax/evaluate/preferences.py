"""How well scores put completions in the order of their ranks: over every pair that is not tied.

Pairs of one prompt are not independent, in whichever rankings: every interval here is over prompts (`Ranking.unit`).
"""

import itertools
from collections.abc import Sequence

import numpy as np

from rlhf_jax.data.records import Ranking
from rlhf_jax.evaluate import calibration, statistics

MARGINS = (0, 0.5, 1, 2, 4, np.inf)  # edges of bins: differences of scores
LENGTHS = (-1000, -8, -2, 3, 9, 1000)  # and tokens that the better one is longer


def evaluate(rankings: Sequence[Ranking], scores: np.ndarray, lengths: np.ndarray) -> dict:
    """Accuracy, log-loss, calibration, and accuracy by group of labelers, by margin and by difference in length.

    Args:
      rankings: N of at most K completions.
      scores: f[N, K], higher is better.
      lengths: i[N, K], tokens.

    Returns:
      Plain values; without a pair that is not tied, the counts alone.
    """
    pairs = _pairs(rankings)
    counts = {"prompts": len({ranking.unit for ranking in rankings}), "rankings": len(rankings), "pairs": len(pairs)}
    if not pairs:
        return counts
    margins, longer = _differences(scores, pairs), _differences(lengths, pairs)
    units = _numbered([rankings[n].unit for n, _, _ in pairs])
    groups = np.array([rankings[n].group or "" for n, _, _ in pairs])
    probabilities, right = calibration.from_margins(margins)
    return counts | {
        "accuracy": statistics.share(right, units=units)._asdict(),
        "log_loss": calibration.log_loss(probabilities, right),
        "ece": float(calibration.expected_calibration_error(probabilities, right)),
        "reliability": [row._asdict() for row in calibration.reliability(probabilities, right, units=units)],
        "by_group": {str(name): float(right[groups == name].mean()) for name in np.unique(groups)},
        "by_margin": _plain(calibration.accuracy_by(np.abs(margins), right, MARGINS, units)),
        "by_length_difference": _plain(calibration.accuracy_by(longer, right, LENGTHS, units)),
    }


def accuracy_gap(first: Sequence[Ranking], first_scores: np.ndarray, second: Sequence[Ranking], second_scores: np.ndarray):
    """Accuracy on the rankings `first` less accuracy on `second`, an Estimate; prompts that both have are compared paired.

    Args:
      first, second: rankings, each with a pair that is not tied.
      first_scores, second_scores: f[N, K] of their completions, higher is better.
    """
    found = []
    for rankings, scores in ((first, first_scores), (second, second_scores)):
        pairs = _pairs(rankings)
        _, right = calibration.from_margins(_differences(scores, pairs))
        found.append((right, [rankings[n].unit for n, _, _ in pairs]))
    (right, units), (other_right, other_units) = found
    return statistics.difference_of_shares(right, other_right, units, other_units)


def _pairs(rankings: Sequence[Ranking]) -> list[tuple[int, int, int]]:
    """(n, better, worse) of every pair of completions of ranking n that is not tied."""
    return [
        (n, better, worse)
        for n, ranking in enumerate(rankings)
        for better, worse in itertools.permutations(range(len(ranking.ranks)), 2)
        if ranking.ranks[better] < ranking.ranks[worse]
    ]


def _differences(values, pairs) -> np.ndarray:
    """f64[pairs]: what values[N, K] has for the better completion less what it has for the worse one."""
    ranking, better, worse = np.array(pairs).T
    values = np.asarray(values, np.float64)
    return values[ranking, better] - values[ranking, worse]


def _numbered(names) -> np.ndarray:
    places = {}
    return np.array([places.setdefault(name, len(places)) for name in names])


def _plain(rows) -> list[dict]:
    return [row._asdict() | {"accuracy": row.accuracy._asdict()} for row in rows]
