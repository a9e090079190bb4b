"""How well scores put completions in the order that labelers ranked them in, over every pair that is not tied.

Pairs of one prompt are not independent, even if they stand in different rankings, so every interval here is over prompts
(`Ranking.unit`).
"""

import itertools
from collections.abc import Sequence

import numpy as np

from rlhf_jax import statistics
from rlhf_jax.data.records import Ranking
from rlhf_jax.statistics import Estimate, calibration

# Edges of bins.
MARGINS = (0, 0.5, 1, 2, 4, np.inf)  # of how far the two scores of a pair are apart
LENGTHS = (-np.inf, -8, -2, 3, 9, np.inf)  # of how many tokens longer the better completion is


def evaluate(rankings: Sequence[Ranking], scores: np.ndarray, lengths: np.ndarray) -> dict:
    """Measures accuracy, log-loss and calibration, and accuracy by group of labelers, by margin and by difference in length.

    Args:
      rankings: N rankings of at most K completions each.
      scores: f[N, K], the higher the better.
      lengths: i[N, K], the tokens of each completion.

    Returns:
      What evaluation.json holds of these rankings; nothing but the counts where every pair is tied.
    """
    pairs = pairs_of(rankings)
    counts = {"prompts": len({ranking.unit for ranking in rankings}), "rankings": len(rankings), "pairs": len(pairs)}
    if not pairs:
        return counts
    margins, longer = differences(scores, pairs), differences(lengths, pairs)
    units = numbered([rankings[n].unit for n, _, _ in pairs])
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


def accuracy_gap(
    first: Sequence[Ranking], first_scores: np.ndarray, second: Sequence[Ranking], second_scores: np.ndarray
) -> Estimate:
    """Accuracy on the rankings `first` less accuracy on `second`, with an interval over prompts.

    Prompts that are in both are compared with themselves.

    Args:
      first, second: rankings, of which at least one pair each is not tied.
      first_scores, second_scores: f[N, K], the scores of their completions, the higher the better.
    """
    found = []
    for rankings, scores in ((first, first_scores), (second, second_scores)):
        pairs = pairs_of(rankings)
        _, right = calibration.from_margins(differences(scores, pairs))
        found.append((right, [rankings[n].unit for n, _, _ in pairs]))
    (right, units), (other_right, other_units) = found
    return statistics.difference_of_shares(right, other_right, units, other_units)


def accuracy_difference(rankings: Sequence[Ranking], first: np.ndarray, second: np.ndarray) -> Estimate:
    """Accuracy of the scores `first` less accuracy of the scores `second` on the same pairs, with an interval over prompts.

    Args:
      rankings: N rankings, of which at least one pair is not tied.
      first, second: f[N, K], the scores of their completions by two judges, the higher the better.
    """
    pairs = pairs_of(rankings)
    right = [calibration.from_margins(differences(scores, pairs))[1] for scores in (first, second)]
    return statistics.paired_difference(*right, units=[rankings[n].unit for n, _, _ in pairs])


def pairs_of(rankings: Sequence[Ranking]) -> list[tuple[int, int, int]]:
    """Every pair of completions that is not tied: the number of its ranking, the better completion, the worse one."""
    return [
        (n, better, worse)
        for n, ranking in enumerate(rankings)
        for better, worse in itertools.permutations(range(len(ranking.ranks)), 2)
        if ranking.ranks[better] < ranking.ranks[worse]
    ]


def differences(values, pairs) -> np.ndarray:
    """f64[pairs]: the value of the better completion less that of the worse one, of values[N, K]."""
    ranking, better, worse = np.array(pairs).T
    values = np.asarray(values, np.float64)
    return values[ranking, better] - values[ranking, worse]


def numbered(names) -> np.ndarray:
    """i[N]: a number for each name, the same for equal names."""
    places = {}
    return np.array([places.setdefault(name, len(places)) for name in names])


def _plain(bins) -> list[dict]:
    """Bins as JSON has them, None for an edge at infinity."""

    def edge(number):
        return number if np.isfinite(number) else None

    return [
        row._asdict() | {"low": edge(row.low), "high": edge(row.high), "accuracy": row.accuracy._asdict()}
        for row in bins
    ]
