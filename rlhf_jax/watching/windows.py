"""Windows of the rows of metrics.jsonl: numbers read from rows, their means, and how sure a difference of means is.

Every search ends after LOOK_BACK rows, so that the work of a step does not grow with the steps.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

LOOK_BACK = 10_000  # rows that are searched for a metric which few of them have

Rows = Sequence[dict]
Reading = Callable[[dict], float | None]


@dataclasses.dataclass(frozen=True)
class Mean:
    """The mean of a window.

    Attributes:
      value: the mean.
      variance: that of a single number, from the differences of neighbours: a trend within the window hardly counts.
      count: how many numbers there are.
    """

    value: float
    variance: float
    count: int

    @property
    def error(self) -> float:
        """The standard error of the mean."""
        return math.sqrt(self.variance / self.count)


def metric(name: str) -> Reading:
    """Returns the function that reads a metric from a row; it returns None where there is no finite number."""

    def read(row: dict) -> float | None:
        value = row.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e100:
            return None
        return float(value)

    return read


def quotient(above: str, below: str) -> Reading:
    """Returns the function that reads one metric divided by another; None where that cannot be."""
    read_above, read_below = metric(above), metric(below)

    def read(row: dict) -> float | None:
        x, y = read_above(row), read_below(row)
        return None if x is None or y is None or y <= 1e-12 else x / y

    return read


def found(rows: Rows, read: Reading, places: Iterator[int], count: int) -> list[tuple[int, float]]:
    """Returns the first `count` numbers that are read at these places, each with its place; [] if there are fewer."""
    numbers = []
    for place in places:
        if (value := read(rows[place])) is not None:
            numbers.append((place, value))
            if len(numbers) == count:
                return numbers
    return []


def last(rows: Rows, read: Reading, count: int, end: int | None = None) -> list[tuple[int, float]]:
    """Returns the last `count` numbers before the place `end`, the newest first; [] if there are fewer."""
    end = len(rows) if end is None else end
    return found(rows, read, iter(range(end - 1, max(end - 1 - LOOK_BACK, -1), -1)), count)


def at_end(rows: Rows, read: Reading, count: int, end: int | None = None) -> Mean | None:
    """Returns the mean of the last `count` numbers before `end`; None if there are fewer."""
    return _mean([value for _, value in last(rows, read, count, end)])


def at_start(rows: Rows, read: Reading, count: int) -> Mean | None:
    """Returns the mean of the first `count` numbers; None if there are fewer."""
    return _mean([value for _, value in found(rows, read, iter(range(min(len(rows), LOOK_BACK))), count)])


def _mean(values: list[float]) -> Mean | None:
    if not values:
        return None
    squares = sum((x - y) * (x - y) for x, y in itertools.pairwise(values))
    return Mean(sum(values) / len(values), squares / 2 / max(len(values) - 1, 1), len(values))


def error_of_difference(one: Mean, other: Mean) -> float:
    """Returns the standard error of the difference of two means, from the scatter within both windows together."""
    freedom = max(one.count + other.count - 2, 1)
    variance = ((one.count - 1) * one.variance + (other.count - 1) * other.variance) / freedom
    return math.sqrt(variance * (1 / one.count + 1 / other.count))
