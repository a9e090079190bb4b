"""The test of one number over seeds."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rlhf_jax.statistics import Estimate, mean_over_seeds
from rlhf_jax.statistics.sequential import seeds_to_find

ALPHA = 0.05  # the error of a claim, over both sides
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
      candidates: where each number is at a value that other seeds chose, the numbers at each value that they could choose. The
        choice may miss the best value, so what is against the claim must be so at every one.
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
    candidates: tuple[dict[int, float], ...] = ()

    @property
    def estimate(self) -> Estimate | None:
        """The mean and its 95 % interval, or None without a seed."""
        return self.interval(0.05)

    def interval(self, level: float) -> Estimate | None:
        """Returns the mean and its t interval of confidence 1 - share x level, or None without a seed.

        Its ends are infinite where the numbers are equal but for rounding, beside what the claim compares them with.
        """
        if not self.by_seed:
            return None
        numbers = np.array(list(self.by_seed.values()), float)
        if np.ptp(numbers) <= 1e-12 * max(
            map(abs, (self.threshold, self.zero, self.margin or 0.0, self.matters or 0.0))
        ):
            numbers[:] = numbers.mean()
        return mean_over_seeds(numbers, 1 - self.share * level)

    def verdict(self, level: float = 0.05, corrected: float | None = None) -> str:
        """Returns HOLDS, NOT, NEGLIGIBLE or UNDECIDED for one of the tests of a claim.

        Args:
          level: 1 - the confidence of the interval that HOLDS goes by.
          corrected: the same for the intervals of NOT and NEGLIGIBLE, which one of several tests suffices for; None: `level`.
        """
        if len(self.by_seed) < 2:
            return UNDECIDED
        _, low, high = self.interval(level)
        corrected = level if corrected is None else corrected
        _, wide_low, wide_high = self.interval(corrected)
        if self.candidates:
            wide_high = max(mean_over_seeds(list(each.values()), 1 - corrected).high for each in self.candidates)
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

    def seeds_to_hold(self, power: float) -> float:
        """Returns how many seeds, judged once, would find with this power that the claim holds, as `seeds_to_decide` says."""
        mean, spread = self._mean_and_spread()
        if self.margin is not None:
            return _seeds(self.margin - abs(mean), spread, (1 + power) / 2, ALPHA)
        return _seeds(mean - self.threshold, spread, power, self.share * ALPHA)

    def seeds_against(self, power: float, tests: int) -> float:
        """Returns the same for what is against a claim of so many tests: that it does not hold, or is negligible."""
        mean, spread = self._mean_and_spread()
        level = self.share * ALPHA / tests
        if self.margin is not None:
            return _seeds(abs(mean) - self.margin, spread, power, level)
        above = [self._replace(by_seed=each)._mean_and_spread() for each in self.candidates] or [(mean, spread)]
        each_power = 1 - (1 - power) / len(above)
        found = max(_seeds(self.threshold - value, own, each_power, level) for value, own in above)
        if self.matters is None:
            return found
        power = 1 - (1 - power) / (1 + len(above))
        sides = [(self.zero + self.matters - value, own) for value, own in above] + [
            (mean - self.zero + self.matters, spread)
        ]
        return min(found, max(_seeds(distance, own, power, level) for distance, own in sides))

    def _mean_and_spread(self) -> tuple[float, float]:
        """Returns the mean over seeds and the standard deviation of a seed; the latter is nan if the seeds do not show it."""
        known = self.by_seed and math.isfinite(self.estimate.low)
        numbers = list(self.by_seed.values())
        return (float(np.mean(numbers)), float(np.std(numbers, ddof=1))) if known else (math.nan, math.nan)

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
        said = f"{self.what}: {self.effect(level)}{self.asked() if self.by_seed else ''}"
        if self.candidates and self.by_seed and self.interval(level).high < self.threshold:
            said += f"; it does not hold only if each of the {len(self.candidates)} inner values is below it"
        return said


def seeds_to_decide(tests: Sequence[Contrast]) -> float:
    """Returns how many seeds, judged once, would decide a claim of these tests with POWER, if means and spreads stay as they are.

    All tests must hold for the claim to hold, and one suffices against it. Of m tests that must all hold, each is given the
    power 1 - (1 - POWER)/m, so that all of them hold together as often as POWER.

    Returns:
      The number; nan if the seeds of a test show no spread, inf for more than are counted.
    """
    if not tests or any(math.isnan(test._mean_and_spread()[1]) for test in tests):
        return math.nan
    holds = max(test.seeds_to_hold(1 - (1 - POWER) / len(tests)) for test in tests)
    return min(holds, *(test.seeds_against(POWER, len(tests)) for test in tests))


def _seeds(difference: float, spread: float, power: float, level: float) -> float:
    """Returns how many seeds find a difference above 0; inf for more than are counted, and for a difference below 0."""
    if math.isnan(spread):
        return math.inf
    found = seeds_to_find(difference, spread, power, level) if difference > 0 else None
    return math.inf if found is None else found
