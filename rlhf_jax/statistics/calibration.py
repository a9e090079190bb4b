"""Calibration: do events happen as often as the probabilities stated for them say?

A reward model states a probability for every pair of completions that it scores: sigmoid of the difference of the scores.
Which completion of a pair comes first is arbitrary, so a pair is read from the side that the model favours: `from_margins`
gives the model's confidence in that side, which is at least 1/2, and whether that side was right.
"""

from typing import NamedTuple

import numpy as np

from rlhf_jax.statistics import Estimate, share


class ReliabilityBin(NamedTuple):
    """The predictions with low <= probability < high; the last bin includes its upper edge."""

    low: float
    high: float
    count: int
    probability: float  # the mean of the stated probabilities
    frequency: float  # the mean outcome
    interval: tuple[float, float]  # confidence interval of the frequency


class AccuracyBin(NamedTuple):
    """The pairs with low <= value < high; the last bin includes its upper edge."""

    low: float
    high: float
    count: int
    accuracy: Estimate


def from_margins(margins) -> tuple[np.ndarray, np.ndarray]:
    """The model's confidence in each pair, and whether it was right.

    Args:
        margins: f[N], the score of the better completion less that of the worse one.

    Returns:
        Probabilities f64[N], at least 1/2 and below 1, and outcomes f64[N]: 1 right, 0 wrong, 1/2 for a margin of 0.
    """
    margins = np.asarray(margins, np.float64)
    confidence = 1 / (1 + np.exp(-np.abs(margins)))
    # A probability that only rounding made 1 is kept below 1: otherwise one wrong pair would make the log-loss infinite.
    return np.minimum(confidence, np.nextafter(1, 0)), (np.sign(margins) + 1) / 2


def log_loss(probabilities, outcomes) -> float:
    """The mean of -log of the probability of what happened, in nats; an outcome may be a fraction between 0 and 1."""
    probabilities, outcomes = _checked(probabilities, outcomes)
    with np.errstate(divide="ignore", invalid="ignore"):  # 0 * inf counts as 0: what never happens costs nothing
        happened = np.where(outcomes > 0, outcomes * np.log(probabilities), 0)
        did_not = np.where(outcomes < 1, (1 - outcomes) * np.log1p(-probabilities), 0)
    return float(-(happened + did_not).mean())


def reliability(probabilities, outcomes, bins: int = 10, units=None) -> list[ReliabilityBin]:
    """The reliability table: bins of [0, 1] of equal width, without the empty ones.

    Args:
        probabilities: f[N], each in [0, 1].
        outcomes: f[N], 1 where it happened, 0 where it did not, 1/2 where that is undecided.
        bins: the number of bins.
        units: [N], the name of each prediction's unit as in statistics.py; None: predictions are independent.
    """
    probabilities, outcomes = _checked(probabilities, outcomes)
    rows = []
    for low, high, inside in _binned(probabilities, np.linspace(0, 1, bins + 1)):
        frequency = share(outcomes[inside], units=_of(units, inside))
        stated = float(probabilities[inside].mean())
        rows.append(
            ReliabilityBin(low, high, int(inside.sum()), stated, frequency.value, (frequency.low, frequency.high))
        )
    return rows


def expected_calibration_error(probabilities, outcomes, bins: int = 10) -> float:
    """ECE: the mean over predictions of |mean stated probability - mean outcome| of their bin; 0 is calibrated.

    The ECE of a finite sample is positive even for a calibrated model, on average at most 0.4 sqrt(bins / N).
    """
    table = reliability(probabilities, outcomes, bins)
    total = sum(row.count for row in table)
    return sum(row.count * abs(row.probability - row.frequency) for row in table) / total


def accuracy_by(values, outcomes, edges, units=None) -> list[AccuracyBin]:
    """Accuracy in bins of another quantity of pairs, such as the margin or the difference in length.

    Args:
        values: f[N], the quantity.
        outcomes: f[N], 1 right, 0 wrong, 1/2 undecided (see `from_margins`).
        edges: the edges of the bins, ascending. Values beyond them are left out, and so are empty bins.
        units: [N], the name of each pair's unit as in statistics.py; None: pairs are independent.
    """
    values, outcomes = np.asarray(values, np.float64), np.asarray(outcomes, np.float64)
    return [
        AccuracyBin(low, high, int(inside.sum()), share(outcomes[inside], units=_of(units, inside)))
        for low, high, inside in _binned(values, edges)
    ]


def _of(units, inside):
    return None if units is None else np.asarray(units)[inside]


def _binned(values: np.ndarray, edges):
    """Yields (low, high, bool[N] which values are inside) for every bin that is not empty."""
    for i, (low, high) in enumerate(zip(edges[:-1], edges[1:])):
        last = i == len(edges) - 2
        inside = (values >= low) & ((values <= high) if last else (values < high))
        if inside.any():
            yield float(low), float(high), inside


def _checked(probabilities, outcomes) -> tuple[np.ndarray, np.ndarray]:
    probabilities = np.asarray(probabilities, np.float64)
    outcomes = np.asarray(outcomes, np.float64)
    if probabilities.shape != outcomes.shape or not probabilities.size:
        raise ValueError(
            f"need as many outcomes as probabilities, at least one: got {outcomes.shape} and {probabilities.shape}"
        )
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError("a probability lies outside [0, 1]")
    return probabilities, outcomes
