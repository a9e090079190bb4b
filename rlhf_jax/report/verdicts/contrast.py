"""The test of one number over seeds."""

import math
from typing import NamedTuple

import numpy as np

from rlhf_jax.statistics import Estimate, mean_over_seeds

HOLDS, NOT, UNDECIDED = "holds", "does not hold", "undecided"


class Contrast(NamedTuple):
    """One number for each seed, and what the mean over seeds must be for the claim.

    Attributes:
      what: name of the number.
      by_seed: seed -> number.
      threshold: what the mean must be above, if `margin` is None.
      margin: how near to 0 the mean must be, if it is a number.
    """

    what: str
    by_seed: dict[int, float]
    threshold: float = 0.0
    margin: float | None = None

    @property
    def estimate(self) -> Estimate | None:
        """The mean and its 95 % interval, or None without a seed."""
        return mean_over_seeds(list(self.by_seed.values())) if self.by_seed else None

    def verdict(self, tests: int = 1) -> str:
        """Returns HOLDS, NOT or UNDECIDED for one of the tests of a claim.

        HOLDS goes by the 95 % interval. NOT goes by an interval of 1 - 5 %/tests, where `tests` is their number.
        """
        if len(self.by_seed) < 2:
            return UNDECIDED
        _, low, high = self.estimate
        if (
            self.margin is None
            and low > self.threshold
            or self.margin is not None
            and -self.margin < low
            and high < self.margin
        ):
            return HOLDS
        _, low, high = mean_over_seeds(list(self.by_seed.values()), 1 - 0.05 / tests)
        if self.margin is None:
            return NOT if high < self.threshold else UNDECIDED
        return NOT if low > self.margin or high < -self.margin else UNDECIDED

    @property
    def t(self) -> float:
        """(mean - threshold) / standard error; nan if the seeds show no error: fewer than two, or equal ones."""
        if not self.by_seed or math.isinf(self.estimate.low):
            return math.nan
        values = np.array(list(self.by_seed.values())) - self.threshold
        return float(values.mean() / (values.std(ddof=1) / math.sqrt(len(values))))

    def sentence(self) -> str:
        """Returns the mean, its interval, and what the claim asks of it, in words."""
        if not self.by_seed:
            return f"{self.what}: no seed has all the numbers that it needs"
        value, low, high = self.estimate
        asked = f", must be within ±{self.margin:g}" if self.margin is not None else ""
        asked = f", must be above {self.threshold:g}" if self.threshold else asked
        if len(self.by_seed) < 2:
            return f"{self.what}: {value:.3g}{asked}, from one seed, and an interval needs two"
        if math.isinf(low):
            same = f"the same in all {len(self.by_seed)} seeds, and an interval needs a difference"
            return f"{self.what}: {value:.3g}{asked}, {same}"
        t = f"t = {self.t:.1f}, " if self.margin is None else ""
        return (
            f"{self.what}: {value:.3g} [{low:.3g}, {high:.3g}]{asked} ({t}df = {len(self.by_seed) - 1}, "
            f"{len(self.by_seed)} seeds)"
        )
