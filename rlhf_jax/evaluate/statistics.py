"""Intervals that hold the truth 95 times in 100: of a mean, a share, a ratio, of differences of pairs, over seeds.

Rows of one *unit* (pairs of one prompt, completions of one question) are not independent: every function takes the rows
as they are and `units`, the name of each row's unit, and is as sure as the number of units allows, not that of rows.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
import scipy.stats


class Estimate(NamedTuple):
    """A number and its confidence interval, in the number's own unit; infinite ends: nothing is known of them."""

    value: float
    low: float
    high: float

    def __str__(self):
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def mean(values, weights=None, units=None, confidence: float = 0.95) -> Estimate:
    """Weighted mean with Student's t interval over units; that of a single unit is infinite.

    The standard error is that of a ratio of sums over units, to first order (Cochran 1977, Sampling Techniques,
    section 6.4, and 9A for units of unequal size); without weights and units the classical one.

    Args:
        values: f[N].
        weights: f[N], how many observations a row stands for, None: 1 each; rows of weight 0 do not count.
        units: [N], hashable; None: each row is a unit of its own.
        confidence: coverage aimed at.

    Raises:
        ValueError: no row has any weight.
    """
    totals, sizes = _by_unit([values], weights, units)
    value = totals[0].sum() / sizes.sum()
    half = _t(confidence, len(sizes)) * math.sqrt(_covariance([totals[0] - value * sizes], sizes)[0, 0])
    return _estimate(value, value - half, value + half) if len(sizes) > 1 else _estimate(value, -math.inf, math.inf)


def share(values, weights=None, units=None, confidence: float = 0.95) -> Estimate:
    """`mean` of values in [0, 1] (a tie counts 1/2, partial success its part) with Wilson's score interval over units.

    It stays inside [0, 1] and is right near its ends, where most rows agree. As trials it takes as many as would give
    a share the standard error that units show, but never more than the rows stand for; of units that do not differ,
    their number. (Wilson's interval in surveys: Franco et al. 2019, J. Surv. Stat. Methodol. 7, 334-364.)
    """
    (wins,), sizes = _by_unit([values], weights, units)
    if not ((wins >= 0) & (wins <= sizes * (1 + 1e-9))).all():
        raise ValueError("a share is of values from 0 to 1")
    value, rows = min(1.0, wins.sum() / sizes.sum()), sizes.sum()
    if len(sizes) == 1:
        return _estimate(value, 0.0, 1.0)
    variance = _covariance([wins - value * sizes], sizes)[0, 0]
    differing = len(sizes) if variance <= 1e-12 * value * (1 - value) else value * (1 - value) / variance
    return _score_interval(value, min(differing, rows), _t(confidence, len(sizes)))


def win_rate(first, second, units=None, confidence: float = 0.95) -> Estimate:
    """Share of rows where `first` scores above `second`, a tie counting one half."""
    return share((np.sign(np.subtract(first, second, dtype=np.float64)) + 1) / 2, None, units, confidence)


def paired_difference(first, second, weights=None, units=None, confidence: float = 0.95) -> Estimate:
    """`mean` of first - second, scores in [0, 1] where entry n of both is of the same item.

    Where two policies answer almost all items alike the few that differ say little of those that could: the interval is
    that of the items and of two more, one won and one lost (Bonett and Price 2012, for shares).
    """
    difference = np.subtract(first, second, dtype=np.float64)
    if not np.abs(difference).max(initial=0) <= 1:
        raise ValueError("a difference of scores is from -1 to 1")
    weights = np.ones(len(difference)) if weights is None else np.asarray(weights, np.float64)
    units = range(len(difference)) if units is None else units
    value = mean(difference, weights, units).value
    more = np.full(2, weights.sum() / len(set(units)))  # as much as a unit has on average
    _, low, high = mean([*difference, 1, -1], [*weights, *more], [*units, object(), object()], confidence)
    return _estimate(value, low, high)


def ratio(numerators, denominators, weights=None, units=None, confidence: float = 0.95) -> Estimate:
    """Mean of numerators over mean of denominators, f[N] each, paired, with Fieller's interval (1954) over units.

    Infinite where the mean of the denominators is not told apart from 0: then the rows do not say what the ratio is.
    """
    totals, sizes = _by_unit([numerators, denominators], weights, units)
    top, bottom = means = totals.sum(1) / sizes.sum()
    if len(sizes) == 1 or not bottom:
        return _estimate(top / bottom if bottom else math.nan, -math.inf, math.inf)
    covariance = _covariance(totals - means[:, None] * sizes, sizes)
    squared = _t(confidence, len(sizes)) ** 2
    # All r where top - r bottom is within t standard errors of 0: a r^2 - 2 b r + c <= 0.
    a, b, c = bottom**2 - squared * covariance[1, 1], top * bottom - squared * covariance[0, 1], top**2 - squared * covariance[0, 0]
    if a <= 0:
        return _estimate(top / bottom, -math.inf, math.inf)
    root = math.sqrt(max(0.0, b * b - a * c))
    return _estimate(top / bottom, (b - root) / a, (b + root) / a)


def wilson(successes: float, trials: float, confidence: float = 0.95) -> Estimate:
    """Share of successes with Wilson's score interval, for independent trials; successes may be fractional."""
    if not 0 <= successes <= trials or not trials:
        raise ValueError(f"{successes} successes of {trials} trials is not a share")
    return _score_interval(successes / trials, trials, scipy.stats.norm.ppf((1 + confidence) / 2))


def mean_over_seeds(values, confidence: float = 0.95) -> Estimate:
    """Mean of a few runs with Student's t interval; the interval of one run is infinite."""
    return mean(values, confidence=confidence)


def _by_unit(columns, weights, units) -> tuple[np.ndarray, np.ndarray]:
    """Weighted sums f64[len(columns), U] of columns f[N] over the rows of each unit, and the units' weights f64[U]."""
    columns = np.asarray(columns, np.float64)
    weights = np.ones(columns.shape[1]) if weights is None else np.asarray(weights, np.float64)
    places = {}
    unit = np.arange(len(weights)) if units is None else np.array([places.setdefault(name, len(places)) for name in units], int)
    if columns.shape[1:] != weights.shape or weights.shape != unit.shape:
        raise ValueError(f"{columns.shape[1]} values, {len(weights)} weights and {len(unit)} units do not go together")
    sizes = np.bincount(unit, weights)
    totals = np.stack([np.bincount(unit, np.where(weights > 0, weights * column, 0)) for column in columns])
    if not (sizes > 0).any():
        raise ValueError("an interval needs at least one value")
    return totals[:, sizes > 0], sizes[sizes > 0]


def _covariance(residuals, sizes) -> np.ndarray:
    """Covariance f64[C, C] of weighted means, from what units deviate by f64[C, U]."""
    residuals, count = np.asarray(residuals), len(sizes)
    return residuals @ residuals.T / sizes.sum() ** 2 * (count / max(1, count - 1))


@functools.lru_cache
def _t(confidence: float, units: int) -> float:
    return float(scipy.stats.t.ppf((1 + confidence) / 2, max(1, units - 1)))


def _score_interval(value: float, trials: float, quantile: float) -> Estimate:
    """All shares p with |value - p| <= quantile sqrt(p (1 - p) / trials) (Wilson 1927)."""
    centre = (value + quantile**2 / (2 * trials)) / (1 + quantile**2 / trials)
    spread = math.sqrt(value * (1 - value) / trials + quantile**2 / (4 * trials**2))
    half_width = quantile * spread / (1 + quantile**2 / trials)
    return _estimate(value, max(0.0, centre - half_width), min(1.0, centre + half_width))


def _estimate(*numbers) -> Estimate:
    return Estimate(*map(float, numbers))
