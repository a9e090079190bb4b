"""Over-optimisation: gold reward against how far a policy has gone for a proxy (Gao, Schulman and Hilton 2022).

With d = sqrt(KL(pi || pi_init)), the KL in nats, the reward gained over the initial policy is

    for best of n   d (alpha - beta d)
    for RL          d (alpha - beta ln d)

Both are linear in alpha and beta, so least squares has a closed form. alpha says how fast the reward rises at first, beta how
soon the proxy misleads. In units of the standard deviation of gold under the initial policy, a proxy whose correlation with
gold is rho gives at most sqrt(2) rho d to first order, which is what tilting the policy by the proxy gives; best of n gives
1.28 to 1.35 rho d where scores are normal.

That a law fits says little: even gold that has nothing to do with the proxy often reaches an R^2 of 0.9, because its best-of-n
curve drifts smoothly. `saved_over_prompts` and `saved_over_runs` therefore ask whether a law predicts data that it was not
fitted to better than a simpler law does.
"""

from typing import NamedTuple

import numpy as np
import scipy  # its parts are imported when they are first used

# What the coefficients of each law multiply, as functions of the distance d = sqrt(KL) > 0.
LAWS = {
    "constant": lambda d: [],  # nothing is gained
    "linear": lambda d: [d],
    "kl": lambda d: [d**2],
    "log_n": lambda d: [log_n(d**2)],
    "best_of_n": lambda d: [d, -(d**2)],
    "rl": lambda d: [d, -d * np.log(np.where(d > 0, d, 1))],
}
_BENDING = ("best_of_n", "rl")  # their second coefficient is beta, which is not below 0


class Fit(NamedTuple):
    """A law of best of n: gain = d (alpha - beta d)."""

    alpha: float
    beta: float
    r_squared: (
        float  # share of the gain's variance over the fitted points that the law explains: a description, not a test
    )

    def gain(self, kl) -> np.ndarray:
        """The gain that the law states at KLs f[M], in nats."""
        d = np.sqrt(np.asarray(kl, np.float64))
        return d * (self.alpha - self.beta * d)

    @property
    def peak(self) -> tuple[float, float] | None:
        """(KL, gain) beyond which more optimisation hurts; None where there is no such point, or nothing to gain."""
        if self.alpha <= 0 or self.beta <= 0:
            return None
        kl = (self.alpha / (2 * self.beta)) ** 2
        return kl, float(self.gain(kl))

    def numbers(self) -> dict[str, float]:
        """alpha, beta, r_squared, peak_kl and peak_gain; the last two are infinite where there is no peak."""
        peak_kl, peak_gain = self.peak or (np.inf, np.inf)
        return {
            "alpha": self.alpha,
            "beta": self.beta,
            "r_squared": self.r_squared,
            "peak_kl": peak_kl,
            "peak_gain": peak_gain,
        }


def fit(kl, gain) -> Fit:
    """The law of best of n that fits one curve by least squares.

    Args:
        kl: f[M], nats. Points at 0 or below are left out, because the law says 0 there whatever its coefficients.
        gain: f[M], reward over that of the initial policy.

    Raises:
        ValueError: there are fewer than two distinct KLs above 0.
    """
    kl, gain = np.asarray(kl, np.float64), np.asarray(gain, np.float64)
    kl, gain = kl[kl > 0], gain[kl > 0]
    if (distinct := len(np.unique(kl))) < 2:
        raise ValueError(f"a law of two coefficients needs two distinct KLs above 0, not {distinct}")
    alpha, beta = np.linalg.lstsq(_columns("best_of_n", kl), gain)[0]
    law = Fit(float(alpha), float(beta), np.nan)
    variance = np.sum((gain - gain.mean()) ** 2)
    return law._replace(r_squared=float(1 - np.sum((gain - law.gain(kl)) ** 2) / variance) if variance else np.nan)


def log_n(kl) -> np.ndarray:
    """ln n of the best of n whose KL is `kl` nats.

    The solution of kl = ln n - (n - 1)/n is 1/n = -W(-exp(-1 - kl)), where W is Lambert's function.
    """
    kl = np.asarray(kl, np.float64)
    u = -scipy.special.lambertw(-np.exp(-1 - np.where(kl > 0, kl, 1.0))).real
    return np.where(kl > 0, -np.log(u), 0.0)


def saved_over_prompts(kl, gains, law: str, against: str, folds: int = 4) -> float:
    """Mean squared error that `law` saves over `against` on data that neither was fitted to.

    The prompts are divided into `folds` parts. For each part, both laws are fitted to every other point of the other parts'
    mean curve and judged on this part's mean curve at the points between, the farthest point among them. So the result is an
    unbiased estimate of the difference of the two laws' errors. Where `against` is true and a special case of `law`, `law`
    has one more coefficient to get wrong, and the result is negative on average. A beta below 0 is no over-optimisation:
    `best_of_n` and `rl` then have 0 in its place.

    Args:
        kl: f[M], of M values of n.
        gains: f[P, M], the gain over n = 1 of each prompt.
        law, against: names of LAWS.
        folds: the number of parts.
    """
    kl, gains = np.asarray(kl, np.float64), np.asarray(gains, np.float64)
    there = (len(kl) - 1 - np.arange(len(kl))) % 2 == 0
    found = []
    for part in range(folds):
        own = np.arange(len(gains)) % folds == part
        fitted, judged = [(kl[~there], gains[~own].mean(0)[~there])], gains[own].mean(0)[there]
        errors = [np.mean((judged - _said(*_fitted(name, fitted), kl[there])) ** 2) for name in (against, law)]
        found.append(errors[0] - errors[1])
    return float(np.mean(found))


def saved_over_runs(runs: list, law: str, against: str) -> list[float]:
    """The same for runs of training: for each run, the mean squared error that `law` saves over `against`.

    The coefficients are fitted to the even points of the *other* runs, and judged at the odd points of this run. The reward
    at the start is each run's own: the mean of what its even points are above the law.

    Args:
        runs: (KL f[M], reward f[M]) of each of two or more runs of one setting; a KL below 0 (an estimate) counts as 0.
        law, against: names of LAWS.
    """
    runs = [(np.maximum(kl, 0.0), np.asarray(reward, np.float64)) for kl, reward in runs]
    even = [(kl[::2], reward[::2]) for kl, reward in runs]
    found = []
    for number, (kl, reward) in enumerate(runs):
        errors = []
        for name in (against, law):
            said = _said(*_fitted(name, even[:number] + even[number + 1 :], start=True), kl)
            left = reward - said - (reward - said)[::2].mean()
            errors.append(np.mean(left[1::2] ** 2))
        found.append(float(errors[0] - errors[1]))
    return found


def _fitted(law: str, runs: list, start: bool = False) -> tuple[str, np.ndarray]:
    """The law that is fitted to all runs by least squares, and its coefficients.

    With `start`, each run has a reward of its own at the start. A law whose beta is below 0 gives way to `linear`.
    """
    own = (lambda x: x - x.mean(0)) if start else (lambda x: x)
    columns = np.concatenate([own(_columns(law, kl)) for kl, _ in runs])
    found = np.linalg.lstsq(columns, np.concatenate([own(reward) for _, reward in runs]))[0]
    return _fitted("linear", runs, start) if law in _BENDING and found[1] < 0 else (law, found)


def _said(law: str, coefficients, kl) -> np.ndarray:
    return _columns(law, kl) @ coefficients


def _columns(law: str, kl) -> np.ndarray:
    """f64[M, coefficients]: what the coefficients of a law multiply at KLs f[M]."""
    return np.stack([0 * kl, *LAWS[law](np.sqrt(kl))], axis=1)[:, 1:]


def gains(curve: list[dict], name: str = "gold") -> tuple[np.ndarray, np.ndarray]:
    """(KL f64[M], gain f64[M]) of a curve by best_of_n.curve: what `name` gains over the first row, the initial policy."""
    values = np.array([row[name]["value"] for row in curve])
    return np.array([row["kl"] for row in curve]), values - values[0]
