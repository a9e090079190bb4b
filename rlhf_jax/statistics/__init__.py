"""Statistics of evaluations: intervals, calibration of preferences, and a bag-of-words baseline."""

from rlhf_jax.statistics.estimates import (
    Estimate,
    difference_of_shares,
    mean,
    mean_over_seeds,
    paired_difference,
    ratio,
    share,
    win_rate,
)

__all__ = [
    "Estimate",
    "difference_of_shares",
    "mean",
    "mean_over_seeds",
    "paired_difference",
    "ratio",
    "share",
    "win_rate",
]
