"""How often intervals of shares over prompts hold the truth, and how wide they are: `python tests/support/coverage_of_shares.py [REPEATS]`.

A simulated prompt has some pairs, of which its own probability is right; that probability varies over prompts with the
stated mean (the share) and intra-prompt correlation: variance / (mean (1 - mean)). docs/measurements.md has the result.
"""

import functools
import itertools
import math
import sys
from typing import NamedTuple

import numpy as np
import scipy.optimize
import scipy.stats

from rlhf_jax.statistics import share


class Cell(NamedTuple):
    """One simulated situation."""

    share: float
    prompts: int
    sizes: str  # pairs of a prompt: "one"; "equal": 15; "unequal": those of 4 to 9 completions, 6 to 36, equally often
    correlation: float  # of two pairs of one prompt
    family: str = "beta"  # of the prompts' probabilities, or "logit-normal"

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Right pairs and all pairs of each prompt, f64[prompts] each."""
        if self.sizes == "unequal":
            completions = rng.integers(4, 10, self.prompts)
            pairs = completions * (completions - 1) // 2
        else:
            pairs = np.full(self.prompts, {"one": 1, "equal": 15}[self.sizes])
        return rng.binomial(pairs, self._probabilities(rng)).astype(float), pairs.astype(float)

    def _probabilities(self, rng):
        if not self.correlation:
            return np.full(self.prompts, self.share)
        if self.family == "beta":
            odds = 1 / self.correlation - 1
            return rng.beta(self.share * odds, (1 - self.share) * odds, self.prompts)
        location, scale = logit_normal(self.share, self.correlation)
        return 1 / (1 + np.exp(-rng.normal(location, scale, self.prompts)))

    def oracle(self, right, pairs) -> tuple[float, float]:
        """Wilson's interval of one who knows the correlation."""
        trials = pairs.sum() ** 2 / (pairs * (1 + (pairs - 1) * self.correlation)).sum()
        return wilson(right.sum() / pairs.sum(), trials, 1.959964)


@functools.cache
def logit_normal(mean: float, correlation: float) -> tuple[float, float]:
    """Location and scale of the normal whose logistic has this mean and the variance correlation mean (1 - mean)."""
    points, weights = np.polynomial.hermite_e.hermegauss(120)

    def missed(unknown):
        p = 1 / (1 + np.exp(-(unknown[0] + math.exp(unknown[1]) * points)))
        first = weights @ p / weights.sum()
        return first - mean, weights @ (p - first) ** 2 / weights.sum() / (mean * (1 - mean)) - correlation

    start = (math.log(mean / (1 - mean)) * (1 + 2 * correlation), math.log(0.5 + 4 * correlation))
    found = scipy.optimize.root(missed, start)
    assert found.success, (mean, correlation)
    return float(found.x[0]), math.exp(found.x[1])


def wilson(value: float, trials: float, quantile: float) -> tuple[float, float]:
    """Roots p of (value - p)^2 = quantile^2 p (1 - p) / trials, by the quadratic formula."""
    factor = quantile**2 / trials
    middle, root = value + factor / 2, math.sqrt(factor * (value * (1 - value) + factor / 4))
    return (middle - root) / (1 + factor), (middle + root) / (1 + factor)


@functools.lru_cache
def students(prompts: int) -> float:
    return float(scipy.stats.t.ppf(0.975, prompts - 1))


def before(right, pairs) -> tuple[float, float]:
    """The interval as it was: Wilson's of the trials that the units' variance says, at most the pairs."""
    value, count = right.sum() / pairs.sum(), len(pairs)
    variance = ((right - value * pairs) ** 2).sum() / pairs.sum() ** 2 * count / (count - 1)
    trials = min(value * (1 - value) / variance, pairs.sum()) if variance else count
    return wilson(value, trials, students(count))


def now(right, pairs) -> tuple[float, float]:
    return share(right / pairs, pairs)[1:]


def measure(cell: Cell, intervals: dict, repeats: int, seed: int = 0) -> dict[str, tuple[float, float]]:
    """Share of repeats whose interval holds the truth, and the mean width, of each interval."""
    rng = np.random.default_rng(seed)
    drawn = [cell.draw(rng) for _ in range(repeats)]
    ends = {name: np.array([interval(*one) for one in drawn]).T for name, interval in intervals.items()}
    held = {name: (low <= cell.share) & (cell.share <= high) for name, (low, high) in ends.items()}
    return {name: (float(held[name].mean()), float((high - low).mean())) for name, (low, high) in ends.items()}


def main(repeats: int = 4000) -> None:
    print("| pairs of a prompt | correlation | before | now | in | width to the oracle's, mean | largest |")
    print("|---|---:|---:|---:|---|---:|---:|")
    correlated = itertools.product(("equal", "unequal"), ("beta", "logit-normal"), (0.1, 0.3, 0.6))
    independent = [(sizes, "beta", 0.0) for sizes in ("one", "equal", "unequal")]
    for sizes, family, correlation in [*independent, *correlated]:
        cells = [Cell(p, count, sizes, correlation, family) for p in (0.5, 0.9, 0.95, 0.97) for count in (40, 64, 150)]
        found = [measure(cell, {"before": before, "now": now, "oracle": cell.oracle}, repeats) for cell in cells]
        worst = min(range(len(cells)), key=lambda n: found[n]["now"][0])
        widths = [one["now"][1] / one["oracle"][1] for one in found]
        print(
            f"| {sizes} | {f'{correlation:g}, {family}' if correlation else 0} | {100 * min(one['before'][0] for one in found):.1f} % "
            f"| {100 * found[worst]['now'][0]:.1f} % | {cells[worst].share:g}, {cells[worst].prompts} prompts "
            f"| {np.mean(widths):.2f} | {max(widths):.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
