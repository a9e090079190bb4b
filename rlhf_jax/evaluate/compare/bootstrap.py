"""The bootstrap over prompts: how often each prompt stands in samples drawn with replacement, and intervals of what they give."""

import math
from collections.abc import Iterator

import numpy as np

from rlhf_jax.statistics import Estimate

ROUNDS = 1000
_AT_ONCE = 2**22  # numbers


def counts(units: int, rounds: int = ROUNDS, seed: int = 0) -> Iterator[np.ndarray]:
    """Yields how often each of `units` prompts stands in each of several samples of as many, f64[R, units]; `rounds` in all."""
    random = np.random.default_rng(seed)
    while rounds:
        part = min(rounds, max(1, _AT_ONCE // units))
        yield random.multinomial(units, np.full(units, 1 / units), size=part).astype(np.float64)
        rounds -= part


def interval(value: float, found: np.ndarray) -> Estimate:
    """Returns a value with the 95 % percentile interval of what the samples gave, f64[R].

    Where a sample gives no number, NaN, it may be anything: it stands below the interval and above it. So an end is
    infinite where more than 2.5 % of the samples give none.
    """
    known = np.isfinite(found)
    low, high = (np.sort(np.where(known, found, end)) for end in (-math.inf, math.inf))
    place = math.floor(0.025 * (len(found) - 1))
    return Estimate(float(value), float(low[place]), float(high[len(found) - 1 - place]))
