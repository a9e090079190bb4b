"""Does a stated probability mean what it says? Reliability, log-loss and accuracy by bins.

A reward model states a probability for every pair it has scored: sigmoid(difference of scores).
Which of the two is called first is arbitrary, so pairs are read from the side the model favours:
`from_margins` turns margins into its confidence (at least 1/2) and whether it was right.
"""

from typing import NamedTuple

import numpy as np

from rlhf_jax.evaluate.statistics import Estimate, share


class ReliabilityBin(NamedTuple):
    """Predictions with low <= probability < high (the last bin includes its end)."""

    low: float
    high: float
    count: int
    probability: float  # mean stated
    frequency: float  # mean outcome
    interval: tuple[float, float]  # of the frequency


class AccuracyBin(NamedTuple):
    """Pairs with low <= value < high (the last bin includes its end)."""

    low: float
    high: float
    count: int
    accuracy: Estimate


def from_margins(margins) -> tuple[np.ndarray, np.ndarray]:
    """Confidence and correctness of pairs scored with margins = score of better - score of worse.

    Returns:
        (probabilities f64[N] in [1/2, 1], outcomes f64[N]: 1 right, 0 wrong, 1/2 at margin 0).
    """
    margins = np.asarray(margins, np.float64)
    confidence = 1 / (1 + np.exp(-np.abs(margins)))
    # Rounding alone makes no certainty: one wrong pair would make the log-loss infinite.
    return np.minimum(confidence, np.nextafter(1, 0)), (np.sign(margins) + 1) / 2


def log_loss(probabilities, outcomes) -> float:
    """Mean of -log of the probability of what happened, in nats; outcomes may be fractions."""
    probabilities, outcomes = _checked(probabilities, outcomes)
    with np.errstate(divide="ignore", invalid="ignore"):  # what never happens costs 0, not 0 * inf
        happened = np.where(outcomes > 0, outcomes * np.log(probabilities), 0)
        did_not = np.where(outcomes < 1, (1 - outcomes) * np.log1p(-probabilities), 0)
    return float(-(happened + did_not).mean())


def reliability(probabilities, outcomes, bins: int = 10, units=None) -> list[ReliabilityBin]:
    """The reliability table: equal-width bins of [0, 1], those that are empty left out; `units` as in statistics."""
    probabilities, outcomes = _checked(probabilities, outcomes)
    rows = []
    for low, high, inside in _binned(probabilities, np.linspace(0, 1, bins + 1)):
        frequency = share(outcomes[inside], units=_of(units, inside))
        stated = float(probabilities[inside].mean())
        rows.append(ReliabilityBin(low, high, int(inside.sum()), stated, frequency.value, (frequency.low, frequency.high)))
    return rows


def expected_calibration_error(probabilities, outcomes, bins: int = 10) -> float:
    """ECE: mean over predictions of |stated - observed| of their bin; 0 is calibrated.

    A finite sample of a calibrated model has a positive ECE, 0.4 sqrt(bins / N) at most on average.
    """
    table = reliability(probabilities, outcomes, bins)
    total = sum(row.count for row in table)
    return sum(row.count * abs(row.probability - row.frequency) for row in table) / total


def accuracy_by(values, outcomes, edges, units=None) -> list[AccuracyBin]:
    """Accuracy in bins of another quantity: a pair's margin, or its difference in length.

    Args:
        values: f[N], the quantity.
        outcomes: f[N], 1 right, 0 wrong, 1/2 undecided (`from_margins`).
        edges: ascending bin edges; values outside are left out, and so are empty bins.
        units: [N], which pairs are not independent, as in statistics; None: all are.
    """
    values, outcomes = np.asarray(values, np.float64), np.asarray(outcomes, np.float64)
    return [
        AccuracyBin(low, high, int(inside.sum()), share(outcomes[inside], units=_of(units, inside)))
        for low, high, inside in _binned(values, edges)
    ]


def _of(units, inside):
    return None if units is None else np.asarray(units)[inside]


def _binned(values: np.ndarray, edges):
    """Yields (low, high, bool[N] who is inside) of every bin that is not empty."""
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
            f"need as many outcomes as probabilities, at least one: got {outcomes.shape} and "
            f"{probabilities.shape}")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError("a probability lies outside [0, 1]")
    return probabilities, outcomes
