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
    margins, longer, source = [], [], []
    for n, ranking in enumerate(rankings):
        for better, worse in itertools.permutations(range(len(ranking.ranks)), 2):
            if ranking.ranks[better] < ranking.ranks[worse]:
                margins.append(float(scores[n, better]) - float(scores[n, worse]))
                longer.append(int(lengths[n, better]) - int(lengths[n, worse]))
                source.append(ranking)
    counts = {"prompts": len({ranking.unit for ranking in rankings}), "rankings": len(rankings), "pairs": len(margins)}
    if not margins:
        return counts
    units = _numbered([ranking.unit for ranking in source])
    groups = np.array([ranking.group or "" for ranking in source])
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


def _numbered(names) -> np.ndarray:
    places = {}
    return np.array([places.setdefault(name, len(places)) for name in names])


def _plain(rows) -> list[dict]:
    return [row._asdict() | {"accuracy": row.accuracy._asdict()} for row in rows]
