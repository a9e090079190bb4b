"""Over-optimisation: gold reward against the distance a policy went for a proxy (Gao, Schulman and Hilton 2022).

With d = sqrt(KL(pi || pi_init)), in nats, and the reward R gained over the initial policy,

    best of n   R = d (alpha - beta d)
    RL          R = d (alpha - beta ln d)

Both are linear in alpha and beta, so a fit is least squares in closed form. alpha says how fast the
reward rises at first, beta how soon the proxy misleads. In units of the standard deviation of gold under
the initial policy, a proxy of correlation rho can give at most sqrt(2) rho d to first order, which is what
tilting by the proxy gives; best of n gives 1.28 to 1.35 rho d where scores are normal.

That a law fits says little: an R^2 of 0.9 is what even gold that has nothing to do with the proxy often reaches (its
best of n drifts, smoothly). `saved_over_prompts` and `saved_over_runs` ask whether it predicts what it was not fitted to
better than a simpler law does.
"""

from typing import NamedTuple

import numpy as np
import scipy.special

from rlhf_jax.evaluate import statistics
from rlhf_jax.evaluate.statistics import Estimate

_FALLOFF = {"best_of_n": lambda d: d, "rl": np.log}  # what beta multiplies
FORMS = tuple(_FALLOFF)
# What the coefficients of each law multiply, of the distance d = sqrt(KL) > 0.
LAWS = {
    "constant": lambda d: [],  # nothing is gained
    "linear": lambda d: [d],
    "kl": lambda d: [d**2],
    "log_n": lambda d: [log_n(d**2)],
    "best_of_n": lambda d: [d, -(d**2)],
    "rl": lambda d: [d, -d * np.log(np.where(d > 0, d, 1))],
}


class Fit(NamedTuple):
    """A law of one form: gain = d (alpha - beta falloff(d))."""

    form: str  # of FORMS
    alpha: float
    beta: float
    r_squared: float  # share of the reward's variance over the points that were fitted: it describes, and tests nothing
    start: float = 0.0  # the initial policy's reward, where it was fitted too

    def gain(self, kl) -> np.ndarray:
        """What the law says is gained at KLs f[M], in nats, above 0."""
        d = np.sqrt(np.asarray(kl, np.float64))
        return d * (self.alpha - self.beta * _FALLOFF[self.form](d))

    @property
    def peak(self) -> tuple[float, float] | None:
        """(KL, gain) where more optimisation starts to hurt: d = alpha / 2 beta, or exp(alpha / beta - 1) for RL.

        None: it never does, or there is nothing to gain.
        """
        if self.beta <= 0 or (self.form == "best_of_n" and self.alpha <= 0):
            return None
        d = self.alpha / (2 * self.beta) if self.form == "best_of_n" else np.exp(self.alpha / self.beta - 1)
        return float(d**2), float(self.gain(d**2))

    def numbers(self) -> dict[str, float]:
        """alpha, beta, r_squared, peak_kl and peak_gain; infinite where there is no peak."""
        peak_kl, peak_gain = self.peak or (np.inf, np.inf)
        return {"alpha": self.alpha, "beta": self.beta, "r_squared": self.r_squared, "peak_kl": peak_kl, "peak_gain": peak_gain}


def fit(kl, gain, form: str, *, start: bool = False) -> Fit:
    """Least squares of one curve.

    Args:
        kl: f[M], nats; points at 0 or below, where every law says 0, are left out.
        gain: f[M], reward over that of the initial policy.
        form: one of FORMS.
        start: `gain` is the reward itself, and the initial policy's is a third coefficient: for curves of
            training, whose first iteration is as noisy as any other.

    Raises:
        ValueError: fewer distinct KLs above 0 than coefficients.
    """
    kl, gain = np.asarray(kl, np.float64), np.asarray(gain, np.float64)
    kl, gain = kl[kl > 0], gain[kl > 0]
    if (distinct := len(np.unique(kl))) < 2 + start:
        raise ValueError(f"a law of {2 + start} coefficients needs as many distinct KLs above 0, not {distinct}")
    d = np.sqrt(kl)
    columns = np.stack([d, -d * _FALLOFF[form](d), np.ones_like(d)][: 2 + start], axis=1)
    (alpha, beta, *rest), *_ = np.linalg.lstsq(columns, gain)
    law = Fit(form, float(alpha), float(beta), np.nan, float(rest[0]) if start else 0.0)
    return law._replace(r_squared=r_squared(gain, law.start + law.gain(kl)))


def r_squared(found, said) -> float:
    """1 - squared error of `said` over the variance of `found`, f[M] each; below 0 where the mean says more."""
    found = np.asarray(found, np.float64)
    variance = np.sum((found - found.mean()) ** 2)
    return float(1 - np.sum((found - said) ** 2) / variance) if variance else float("nan")


def over_seeds(fits: list[Fit]) -> dict[str, Estimate | None]:
    """Each number of `Fit.numbers` with its interval over seeds, one fit each; None where one of them has no peak."""
    columns = {name: [law.numbers()[name] for law in fits] for name in fits[0].numbers()}
    return {name: statistics.mean_over_seeds(v) if np.isfinite(v).all() else None for name, v in columns.items()}


def over_prompts(kl, gains, form: str, *, resamples: int = 1000, seed: int = 0) -> dict[str, Estimate]:
    """Each number of `Fit.numbers` of the mean curve, with a 95 % bootstrap interval over prompts.

    Args:
        kl: f[M]. gains: f[P, M], each prompt's own.
    """
    gains = np.asarray(gains, np.float64)
    rng = np.random.default_rng(seed)
    drawn = [fit(kl, gains[rng.integers(len(gains), size=len(gains))].mean(0), form).numbers() for _ in range(resamples)]
    found = fit(kl, gains.mean(0), form).numbers()
    quantile = lambda name, share: float(np.quantile([row[name] for row in drawn], share, method="nearest"))
    return {name: Estimate(value, quantile(name, 0.025), quantile(name, 0.975)) for name, value in found.items()}


class Extrapolation(NamedTuple):
    """What a law that was fitted to the near points says of the far ones."""

    law: Fit
    points: int  # beyond
    r_squared: float  # over them
    largest_error: float  # over them, in units of reward


def extrapolate(kl, gain, form: str, until: float) -> Extrapolation:
    """Fits the points of KL <= `until` and checks those beyond: the paper fits to 6 nats and confirms at 10.

    Raises:
        ValueError: too few points on one of the two sides.
    """
    kl, gain = np.asarray(kl, np.float64), np.asarray(gain, np.float64)
    beyond = kl > until
    if not beyond.any():
        raise ValueError(f"no point has a KL above {until}")
    law = fit(kl[~beyond], gain[~beyond], form)
    said = law.gain(kl[beyond])
    error = float(np.abs(gain[beyond] - said).max())
    return Extrapolation(law, int(beyond.sum()), r_squared(gain[beyond], said), error)


def log_n(kl) -> np.ndarray:
    """ln n of the best of n at a KL in nats: of kl = ln n - (n - 1)/n, u = 1/n is -W(-exp(-1 - kl)), Lambert's W."""
    kl = np.asarray(kl, np.float64)
    u = -scipy.special.lambertw(-np.exp(-1 - np.where(kl > 0, kl, 1.0))).real
    return np.where(kl > 0, -np.log(u), 0.0)


def saved_over_prompts(kl, gains, law: str, against: str, folds: int = 4) -> float:
    """Squared error that `law` saves over `against` where neither was fitted: unbiased for the difference of their errors.

    Fitted to every other point of all but a part of the prompts, judged at the points between, the farthest among them,
    of that part, in turn. Where `against` is true and a case of `law`, `law` has one more coefficient to get wrong, and
    saves less than nothing. A beta below 0 is no over-optimisation: `best_of_n` and `rl` then have 0 in its place.

    Args:
        kl: f[M], of M values of n. gains: f[P, M], of each prompt, over n = 1. folds: parts.
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
    """The same of each run of training: coefficients of the *other* runs' even points, judged at the odd ones of this run.

    The start is each run's own: what its even points are above the law.

    Args:
        runs: (KL f[M], reward f[M]) each, of one setting, two or more; a KL below 0 (an estimate) counts as 0.
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
    """The law and its coefficients by least squares over all runs, each with a start of its own if there is one."""
    own = (lambda x: x - x.mean(0)) if start else (lambda x: x)
    columns = np.concatenate([own(_columns(law, kl)) for kl, _ in runs])
    found = np.linalg.lstsq(columns, np.concatenate([own(reward) for _, reward in runs]))[0]
    return _fitted("linear", runs, start) if law in FORMS and found[1] < 0 else (law, found)


def _said(law: str, coefficients, kl) -> np.ndarray:
    return _columns(law, kl) @ coefficients


def _columns(law: str, kl) -> np.ndarray:
    """f[M, coefficients]."""
    return np.stack([0 * kl, *LAWS[law](np.sqrt(kl))], axis=1)[:, 1:]


class Line(NamedTuple):
    """reward = intercept + slope sqrt(KL)."""

    slope: float
    intercept: float
    r_squared: float


def line(kl, reward) -> Line:
    """Least squares of reward in sqrt(KL): what Bai et al. 2022, section 4.3, find during RLHF.

    Raises:
        ValueError: fewer than two distinct KLs.
    """
    d = np.sqrt(np.maximum(np.asarray(kl, np.float64), 0))
    if len(np.unique(d)) < 2:
        raise ValueError("a line needs two distinct KLs")
    slope, intercept = np.polyfit(d, np.asarray(reward, np.float64), 1)
    return Line(float(slope), float(intercept), r_squared(reward, intercept + slope * d))


def gains(curve: list[dict], name: str = "gold") -> tuple[np.ndarray, np.ndarray]:
    """(KL f64[M], gain f64[M]) of the rows of a curve, whose first is the initial policy; see best_of_n.curve."""
    values = np.array([row[name]["value"] for row in curve])
    return np.array([row["kl"] for row in curve]), values - values[0]


def of_training(rows: list[dict], name: str = "objective/gold", window: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """(KL f64[M], reward f64[M]) of the metrics.jsonl of a PPO stage, each the mean of `window` iterations.

    For `fit(..., "rl", start=True)`. The KL is the exact one of each token's distribution, whose noise is least.
    A rest of fewer iterations is left out.
    """
    whole = len(rows) // window * window
    table = np.array([(row["objective/kl_exact"], row[name]) for row in rows[:whole]], np.float64)
    kl, reward = table.reshape(-1, window, 2).mean(1).T
    return kl, reward
