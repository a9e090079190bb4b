"""Intervals: of a mean (bootstrap), of a share (Wilson), of a difference, over seeds (Student t).

Every interval function returns an `Estimate` and takes one value per *independent unit*: a prompt,
a seed. Pairs of one prompt are not independent: give their mean per prompt, and `weights`.
"""

import functools
import math
import statistics
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

_RESAMPLED_AT_ONCE = 2**16  # units


class Estimate(NamedTuple):
    """A number and its confidence interval, in the number's own unit."""

    value: float
    low: float
    high: float

    def __str__(self):
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap(values, weights=None, *, seed=0, confidence=0.95, resamples=2000) -> Estimate:
    """Weighted mean with a percentile bootstrap interval over units.

    Args:
        values: f[N], one per independent unit; the mean of each unit.
        weights: f[N], how much a unit counts (its number of pairs, say); None is 1 each. The result
            is sum(weights * values) / sum(weights), and units are resampled with their weights.
        seed: of the resampling; the same seed gives the same interval.
        confidence: coverage aimed at.
        resamples: number of bootstrap samples.

    Raises:
        ValueError: no unit has any weight.
    """
    values = np.asarray(values, np.float64)
    weights = np.ones_like(values) if weights is None else np.asarray(weights, np.float64)
    values, weights = values[weights > 0], weights[weights > 0]
    if not len(values):
        raise ValueError("an interval needs at least one value")
    totals = values * weights
    means = np.concatenate(
        [totals[chosen].sum(1) / weights[chosen].sum(1) for chosen in _resampled(len(values), seed, resamples)]
    )
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(float(totals.sum() / weights.sum()), float(low), float(high))


def _resampled(units: int, seed: int, resamples: int) -> Iterator[np.ndarray]:
    """Which units each bootstrap sample has, i64[samples, units] in parts that fit into a cache."""
    rng, rows = np.random.default_rng(seed), max(1, _RESAMPLED_AT_ONCE // units)
    for begin in range(0, resamples, rows):
        yield rng.integers(units, size=(min(rows, resamples - begin), units))


def paired_difference(first, second, *, seed=0, confidence=0.95, resamples=2000) -> Estimate:
    """Mean of first - second, f[N] each, where entry n of both belongs to the same unit."""
    difference = np.subtract(first, second, dtype=np.float64)
    return bootstrap(difference, seed=seed, confidence=confidence, resamples=resamples)


def win_rate(first, second, *, seed=0, confidence=0.95, resamples=2000) -> Estimate:
    """Share of units where `first` scores above `second`, a tie counting one half."""
    wins = (np.sign(np.subtract(first, second, dtype=np.float64)) + 1) / 2
    return bootstrap(wins, seed=seed, confidence=confidence, resamples=resamples)


def wilson(successes: float, trials: float, confidence: float = 0.95) -> Estimate:
    """Share of successes with Wilson's score interval, for independent trials.

    Unlike value +- z * standard error it stays inside [0, 1] and is right near its ends.
    `successes` may be fractional (a tie counts one half).
    """
    if not 0 <= successes <= trials or not trials:
        raise ValueError(f"{successes} successes of {trials} trials is not a share")
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / trials
    centre = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    spread = math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    half_width = z * spread / (1 + z**2 / trials)
    return Estimate(share, max(0.0, centre - half_width), min(1.0, centre + half_width))


def mean_over_seeds(values, confidence: float = 0.95) -> Estimate:
    """Mean of a few runs with Student's t interval; the interval of one run is infinite."""
    values = np.asarray(values, np.float64)
    if not len(values):
        raise ValueError("a mean over seeds needs at least one run")
    mean = float(values.mean())
    if len(values) == 1:
        return Estimate(mean, -math.inf, math.inf)
    error = float(values.std(ddof=1)) / math.sqrt(len(values))
    half_width = student_t_quantile((1 + confidence) / 2, len(values) - 1) * error
    return Estimate(mean, mean - half_width, mean + half_width)


@functools.lru_cache
def student_t_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t with `freedom` (a whole number) degrees of freedom, above 1/2."""
    if not 0.5 <= probability < 1 or freedom < 1:
        raise ValueError(f"no quantile at {probability} with {freedom} degrees of freedom here")
    low, high = 0.0, 1.0
    while _student_t_cdf(high, freedom) < probability:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        if _student_t_cdf(middle, freedom) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _student_t_cdf(t: float, freedom: int) -> float:
    """P(T <= t), t >= 0, by the finite series for whole degrees of freedom.

    Abramowitz and Stegun, 26.7.3 and 26.7.4.
    """
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    if freedom % 2:
        term, total = cosine, 0.0
        for k in range(3, freedom + 1, 2):
            total += term
            term *= cosine**2 * (k - 1) / k
        central = 2 / math.pi * (angle + sine * total)
    else:
        term, total = 1.0, 0.0
        for k in range(2, freedom + 1, 2):
            total += term
            term *= cosine**2 * (k - 1) / k
        central = sine * total
    return (1 + central) / 2
