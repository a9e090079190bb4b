"""Confidence intervals of 95 %: of a mean, a share, a ratio, a difference of pairs or of two shares, and of a mean over seeds.

Rows of one *unit* (the pairs of one prompt, the completions of one question) are not independent. So every function takes
the rows as they are and `units`, the name of each row's unit, and its interval narrows with the number of units, not with
the number of rows.
"""

import functools
import math
from collections.abc import Hashable
from typing import NamedTuple

import numpy as np
import scipy  # its parts are imported when they are first used


class Estimate(NamedTuple):
    """A number and its confidence interval, in the number's own unit; an infinite end says that the data give no bound."""

    value: float
    low: float
    high: float

    def __str__(self):
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def to_json(self) -> dict[str, float | None]:
        """The three numbers by name; None stands for an infinite end, which JSON does not have."""
        return {name: number if math.isfinite(number) else None for name, number in self._asdict().items()}


def mean(values, weights=None, units=None, confidence: float = 0.95) -> Estimate:
    """Weighted mean with Student's t interval over units.

    The standard error is that of a ratio of two sums over units, to first order (Cochran 1977, Sampling Techniques,
    section 6.4, and 9A for units of unequal size); without weights and units it is the classical one. Neither a single unit
    nor units that all have the same mean show how much units differ, so the ends of their interval are infinite.

    Args:
        values: f[N].
        weights: f[N], how many observations a row stands for; None: 1 each. Rows of weight 0 do not count.
        units: [N], hashable names; None: each row is a unit of its own.
        confidence: how often the interval is to hold the true mean.

    Raises:
        ValueError: no row has any weight.
    """
    totals, sizes = _by_unit([values], weights, units)
    value = totals[0].sum() / sizes.sum()
    if _all_equal(totals[0] / sizes):
        return _estimate(value, -math.inf, math.inf)
    half = _t(confidence, len(sizes)) * math.sqrt(_covariance([totals[0] - value * sizes], sizes)[0, 0])
    return _estimate(value, value - half, value + half)


def share(values, weights=None, units=None) -> Estimate:
    """Weighted mean of values in [0, 1] (a tie counts 1/2, a partial success its part) with a score interval over units.

    The interval is Wilson's for as many independent trials as would give a share the standard error that the units show
    (for surveys: Franco et al. 2019, J. Surv. Stat. Methodol. 7, 334-364). It stays inside [0, 1] and keeps its 95 % where
    almost all values are 1, or 0. There, few units differ from the rest, and they say little of how much units differ.
    So the number of trials is reduced by twice the squared relative standard error of the variance it comes from; the
    factor 2 was found by simulation (docs/measurements.md, "Intervals of shares"). The number is not reduced below the one
    that holds where all rows of a unit are alike: the number of units, if they have one size. Values that are all equal
    are worth as many trials. A rare failure that no row shows, among scores that differ otherwise, is not foreseen.

    Args:
        values, weights, units: as of `mean`.

    Raises:
        ValueError: no row has any weight, or a value lies outside [0, 1].
    """
    (wins,), sizes = _by_unit([values], weights, units)
    if not ((wins >= 0) & (wins <= sizes * (1 + 1e-9))).all():
        raise ValueError("a share is of values from 0 to 1")
    value = min(1.0, wins.sum() / sizes.sum())
    if len(sizes) == 1:
        return _estimate(value, 0.0, 1.0)
    return _score_interval(value, _trials(wins - value * sizes, sizes, value), _t(0.95, len(sizes)))


def win_rate(first, second, units=None) -> Estimate:
    """Share of rows in which `first` scores above `second`; a tie counts one half."""
    return share((np.sign(np.subtract(first, second, dtype=np.float64)) + 1) / 2, None, units)


def paired_difference(first, second, weights=None, units=None) -> Estimate:
    """Mean of first - second, where entry n of both is the score in [0, 1] of the same item.

    Where two policies answer almost all items alike, the few items that differ say little of those that could. The interval
    is therefore that of the items and two more, one won and one lost (Bonett and Price 2012, for shares).

    Raises:
        ValueError: a difference lies outside [-1, 1].
    """
    difference = np.subtract(first, second, dtype=np.float64)
    if not np.abs(difference).max(initial=0) <= 1:
        raise ValueError("a difference of scores is from -1 to 1")
    weights = np.ones(len(difference)) if weights is None else np.asarray(weights, np.float64)
    units = range(len(difference)) if units is None else units
    value = mean(difference, weights, units).value
    more = np.full(2, weights.sum() / len(set(units)))  # as much weight as a unit has on average
    _, low, high = mean([*difference, 1, -1], [*weights, *more], [*units, object(), object()])
    return _estimate(value, low, high)


def difference_of_shares(first, second, first_units, second_units) -> Estimate:
    """Share of `first`, f[N], less the share of `second`, f[M]; units that are in both are compared with themselves.

    The distance from the difference to each end combines those of the two shares' own intervals, and the correlation
    between what a unit adds to the one share and to the other (Newcombe 1998, Stat. Med. 17, 2635-2650; Zou and Donner 2008,
    Stat. Med. 27, 1693-1702). As in `paired_difference`, two more units without that correlation are taken into account,
    so that shares that agree in every unit do not have an interval of no width.
    """
    (a, a_low, a_high), (b, b_low, b_high) = share(first, units=first_units), share(second, units=second_units)
    units = [*first_units, *second_units]
    of_first = np.arange(len(units)) < len(first_units)
    values = np.array([*first, *second], np.float64)
    columns = [np.where(of_first, values - a, 0), np.where(of_first, 0, values - b)]
    deviations, sizes = _by_unit(columns, None, units)
    (first_square, product), (_, second_square) = deviations @ deviations.T
    scale = math.sqrt(first_square * second_square)
    correlation = product / scale * len(sizes) / (len(sizes) + 2) if scale else 0.0

    def reach(x, y):
        return math.sqrt(max(0.0, x * x + y * y - 2 * correlation * x * y))

    return _estimate(a - b, a - b - reach(a - a_low, b_high - b), a - b + reach(a_high - a, b - b_low))


def ratio(numerators, denominators, weights=None, units=None) -> Estimate:
    """Mean of numerators over mean of denominators, f[N] each and paired, with Fieller's interval (1954) over units.

    The ends are infinite where the rows give the ratio no bound: where the mean of the denominators may well be 0, or where
    the ratio is the same in every unit, so that the units do not show how much it varies.
    """
    totals, sizes = _by_unit([numerators, denominators], weights, units)
    top, bottom = means = totals.sum(1) / sizes.sum()
    left = bottom * totals[0] - top * totals[1]  # of the units' sums, beside the ratio
    if not bottom or np.abs(left).max() <= 1e-12 * np.abs(bottom * totals[0]).max():
        return _estimate(top / bottom if bottom else math.nan, -math.inf, math.inf)
    covariance = _covariance(totals - means[:, None] * sizes, sizes)
    squared = _t(0.95, len(sizes)) ** 2
    # All r for which top - r bottom is within t standard errors of 0: a r^2 - 2 b r + c <= 0.
    a, b, c = (
        bottom**2 - squared * covariance[1, 1],
        top * bottom - squared * covariance[0, 1],
        top**2 - squared * covariance[0, 0],
    )
    if a <= 0:
        return _estimate(top / bottom, -math.inf, math.inf)
    root = math.sqrt(max(0.0, b * b - a * c))
    return _estimate(top / bottom, (b - root) / a, (b + root) / a)


def mean_over_seeds(values, confidence: float = 0.95) -> Estimate:
    """Mean of a few runs with Student's t interval; its ends are infinite for one run, and for runs that do not differ."""
    return mean(values, confidence=confidence)


def _by_unit(columns, weights, units) -> tuple[np.ndarray, np.ndarray]:
    """Weighted sums f64[len(columns), U] of columns f[N] over the rows of each unit, and the units' weights f64[U]."""
    columns = np.asarray(columns, np.float64)
    weights = np.ones(columns.shape[1]) if weights is None else np.asarray(weights, np.float64)
    places: dict[Hashable, int] = {}
    unit = (
        np.arange(len(weights))
        if units is None
        else np.array([places.setdefault(name, len(places)) for name in units], np.int64)
    )
    if columns.shape[1:] != weights.shape or weights.shape != unit.shape:
        raise ValueError(f"{columns.shape[1]} values, {len(weights)} weights and {len(unit)} units do not go together")
    sizes = np.bincount(unit, weights)
    totals = np.stack([np.bincount(unit, np.where(weights > 0, weights * column, 0)) for column in columns])
    if not (sizes > 0).any():
        raise ValueError("an interval needs at least one value")
    return totals[:, sizes > 0], sizes[sizes > 0]


def _all_equal(values: np.ndarray) -> bool:
    """Whether values f64[U] are equal but for rounding."""
    return bool(np.ptp(values) <= 1e-12 * np.abs(values).max())


def _covariance(residuals, sizes) -> np.ndarray:
    """Covariance f64[C, C] of weighted means, from the deviations f64[C, U] of the units' sums."""
    residuals, count = np.asarray(residuals), len(sizes)
    return residuals @ residuals.T / sizes.sum() ** 2 * (count / max(1, count - 1))


@functools.lru_cache
def _t(confidence: float, units: int) -> float:
    return float(scipy.stats.t.ppf((1 + confidence) / 2, max(1, units - 1)))


def _trials(residuals: np.ndarray, sizes: np.ndarray, value: float) -> float:
    """How many independent trials say as much of a share as units whose sums deviate by residuals f64[U]; see `share`."""
    alike = sizes.sum() ** 2 / (sizes**2).sum()  # where all rows of a unit are alike (Kish 1965)
    variance = float(_covariance([residuals], sizes)[0, 0])
    if variance <= 1e-12 * value * (1 - value):  # nothing but rounding
        return alike
    shown = value * (1 - value) / variance
    squares = residuals**2
    doubt = (squares**2).sum() / squares.sum() ** 2 - 1 / len(sizes)  # the variance's own relative variance
    return max(shown * (1 - 2 * doubt), min(shown, alike))


def _score_interval(value: float, trials: float, quantile: float) -> Estimate:
    """All shares p with |value - p| <= quantile sqrt(p (1 - p) / trials) (Wilson 1927)."""
    centre = (value + quantile**2 / (2 * trials)) / (1 + quantile**2 / trials)
    spread = math.sqrt(value * (1 - value) / trials + quantile**2 / (4 * trials**2))
    half_width = quantile * spread / (1 + quantile**2 / trials)
    return _estimate(value, max(0.0, centre - half_width), min(1.0, centre + half_width))


def _estimate(*numbers) -> Estimate:
    return Estimate(*map(float, numbers))
