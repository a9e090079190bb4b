"""The test of one number over seeds."""

import math
from typing import NamedTuple

import numpy as np

from rlhf_jax.statistics import Estimate, mean_over_seeds
from rlhf_jax.statistics.sequential import seeds_to_find

HOLDS, NOT, NEGLIGIBLE, UNDECIDED = "holds", "does not hold", "negligible", "undecided"
POWER = 0.8  # how often the seeds that are named would decide


class Contrast(NamedTuple):
    """One number for each seed, and what the mean over seeds must be for the claim.

    Attributes:
      what: name of the number.
      by_seed: seed -> number.
      threshold: what the mean must be above, if `margin` is None.
      margin: how near to 0 the mean must be, if it is a number.
      zero: the number that says that there is no difference.
      matters: the smallest difference from `zero` that matters; None: each difference does, or `threshold` or `margin` says it.
      scale: factor from the number to what is printed, such as 100 for points.
      unit: what is printed after it, such as "points"; "" for none.
      share: share of the level that the intervals use; below 1 if the numbers are not quite independent.
    """

    what: str
    by_seed: dict[int, float]
    threshold: float = 0.0
    margin: float | None = None
    zero: float = 0.0
    matters: float | None = None
    scale: float = 1.0
    unit: str = ""
    share: float = 1.0

    @property
    def estimate(self) -> Estimate | None:
        """The mean and its 95 % interval, or None without a seed."""
        return self.interval(0.05)

    def interval(self, level: float) -> Estimate | None:
        """Returns the mean and its t interval of confidence 1 - share x level, or None without a seed."""
        return mean_over_seeds(list(self.by_seed.values()), 1 - self.share * level) if self.by_seed else None

    def verdict(self, level: float = 0.05, corrected: float | None = None) -> str:
        """Returns HOLDS, NOT, NEGLIGIBLE or UNDECIDED for one of the tests of a claim.

        Args:
          level: 1 - the confidence of the interval that HOLDS goes by.
          corrected: the same for the intervals of NOT and NEGLIGIBLE, which one of several tests suffices for; None: `level`.
        """
        if len(self.by_seed) < 2:
            return UNDECIDED
        _, low, high = self.interval(level)
        _, wide_low, wide_high = self.interval(level if corrected is None else corrected)
        if self.margin is not None:
            if -self.margin < low and high < self.margin:
                return HOLDS
            return NOT if wide_low > self.margin or wide_high < -self.margin else UNDECIDED
        if self.matters is not None and self.zero - self.matters < wide_low and wide_high < self.zero + self.matters:
            return NEGLIGIBLE
        if low > self.threshold:
            return HOLDS
        return NOT if wide_high < self.threshold else UNDECIDED

    @property
    def t(self) -> float:
        """(mean - threshold) / standard error; nan if the seeds show no error: fewer than two, or equal ones."""
        if not self.by_seed or math.isinf(self.estimate.low):
            return math.nan
        values = np.array(list(self.by_seed.values())) - self.threshold
        return float(values.mean() / (values.std(ddof=1) / math.sqrt(len(values))))

    def seeds_to_decide(self) -> float:
        """Returns how many seeds, judged once by a 95 % interval, would decide with POWER, if mean and spread stay as they are.

        Returns:
          The number; nan if the seeds show no spread, inf for more than are counted.
        """
        values = np.array(list(self.by_seed.values()))
        if len(values) < 2 or not (spread := values.std(ddof=1)) > 0:
            return math.nan
        mean, one_side, both_sides = float(values.mean()), POWER, (1 + POWER) / 2
        if self.margin is not None:
            inside = self.margin - abs(mean)
            found = [seeds_to_find(inside, spread, both_sides if inside > 0 else one_side)]
        else:
            found = [seeds_to_find(mean - self.threshold, spread, one_side)]
            if self.matters is not None and (inside := self.matters - abs(mean - self.zero)) > 0:
                found.append(seeds_to_find(inside, spread, both_sides))
        return min(math.inf if seeds is None else seeds for seeds in found)

    def show(self, value: float) -> str:
        """Returns a value of the number as it is printed, without its unit."""
        return f"{self.scale * value:.3g}"

    def effect(self, level: float = 0.05) -> str:
        """Returns the mean, its interval of confidence 1 - level and the number of seeds, in words."""
        if not self.by_seed:
            return "no seed has all the numbers that it needs"
        value, low, high = self.interval(level)
        shown = f"{self.show(value)}{f' {self.unit}' if self.unit else ''}"
        if len(self.by_seed) < 2:
            return f"{shown}, from one seed, and an interval needs two"
        if math.isinf(low):
            return f"{shown}, the same in all {len(self.by_seed)} seeds, and an interval needs a difference"
        return f"{shown} ({self.show(low)} to {self.show(high)}), {len(self.by_seed)} seeds"

    def asked(self) -> str:
        """Returns what the claim asks of the mean, as the end of a sentence; "" if that is to be above 0."""
        unit = f" {self.unit}" if self.unit else ""
        if self.margin is not None:
            return f"; must be within ±{self.show(self.margin)}{unit}"
        above = f"; must be above {self.show(self.threshold)}{unit}" if self.threshold else ""
        return above + (f"; ±{self.show(self.matters)}{unit} would be negligible" if self.matters is not None else "")

    def sentence(self, level: float = 0.05) -> str:
        """Returns the mean, its interval of confidence 1 - level, and what the claim asks of it, in words."""
        return f"{self.what}: {self.effect(level)}{self.asked() if self.by_seed else ''}"
