"""Win rates of two policies: as they are, at equal length, and by the position in which a completion was shown."""

import collections
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy  # its parts are imported when they are first used

from rlhf_jax import statistics
from rlhf_jax.evaluate.compare import bootstrap
from rlhf_jax.evaluate.compare.judgments import Comparison, Judgment
from rlhf_jax.statistics import Estimate

_STRENGTH = 100.0  # of the penalty: AlpacaEval's default, C = 100
_STEPS, _LONGEST_STEP = 100, 2.0  # of Newton's method


class LengthControlled(NamedTuple):
    """A win rate at equal length.

    Attributes:
        rate: the win rate that the regression gives at a length difference of 0; its interval is a bootstrap over prompts.
        coefficient: of the length difference, with its interval; positive where the judge prefers longer completions.
    """

    rate: Estimate
    coefficient: Estimate


class Position(NamedTuple):
    """What the position of a completion does to a judge.

    Attributes:
        first: share of judgments that the completion shown first wins, both orders of each two policies weighing the same.
            It is 1/2 for a judge who does not look at positions, whichever policy is better.
        agreement: share of the pairs judged in both orders of which both judgments say the same; None: there are none.
        pairs: number of pairs that were judged in both orders.
    """

    first: Estimate
    agreement: Estimate | None
    pairs: int

    @property
    def favours(self) -> str | None:
        """The position that the judge favours, "first" or "second"; None where the interval includes 1/2."""
        return "first" if self.first.low > 0.5 else "second" if self.first.high < 0.5 else None


def win_rate(found: Sequence[Comparison]) -> Estimate:
    """Returns the share of comparisons that the first policy wins, a tie as half a win, with an interval over prompts."""
    return statistics.share([row.score for row in found], units=[row.prompt for row in found])


def ties(found: Sequence[Comparison]) -> float:
    """Returns the share of comparisons that nobody wins."""
    return float(np.mean([row.score == 0.5 for row in found]))


def length_difference(found: Sequence[Comparison]) -> Estimate | None:
    """Returns the mean of the characters of the first policy's completions less the second's; None: lengths are not known."""
    if any(row.longer is None for row in found):
        return None
    return statistics.mean([row.longer for row in found], units=[row.prompt for row in found])


def length_controlled(found: Sequence[Comparison], rounds: int = bootstrap.ROUNDS) -> LengthControlled | None:
    """Returns the win rate at equal length: AlpacaEval 2's, without the terms that need its own data.

    Dubois et al. 2024 (arXiv:2404.04475) fit P(m wins) = sigmoid(theta + phi tanh(d / std(d)) + psi gamma_x) and take the
    mean at d = 0. Here d is the difference in characters, as there; gamma_x, the difficulty of an instruction, is estimated
    from all models of their leaderboard, and is left out (their `length_controlled_minimal`). They choose an L1 penalty by
    cross-validation; here theta and phi have the L2 penalty (theta^2 + phi^2) / (2 C) with C = 100, their C where nothing is
    cross-validated. It only keeps the fit finite where one policy, or the longer completion, always wins.
    """
    if any(row.longer is None for row in found):
        return None
    longer = np.array([row.longer for row in found], np.float64)
    scale = np.std(longer, ddof=1) if len(found) > 1 else 0.0
    features = np.stack([np.ones(len(found)), np.tanh(longer / (scale or 1.0))], axis=1)
    scores = np.array([row.score for row in found])
    names = {prompt: place for place, prompt in enumerate(dict.fromkeys(row.prompt for row in found))}
    unit = np.array([names[row.prompt] for row in found])
    (value,) = fit_logistic(features, scores, np.ones((1, len(found))))
    parts = [fit_logistic(features, scores, drawn[:, unit]) for drawn in bootstrap.counts(len(names), rounds)]
    samples = np.concatenate(parts)
    return LengthControlled(
        bootstrap.interval(scipy.special.expit(value[0]), scipy.special.expit(samples[:, 0])),
        bootstrap.interval(value[1], samples[:, 1]),
    )


def fit_logistic(features: np.ndarray, outcomes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the coefficients f64[R, F] of R penalised logistic regressions that differ in the weights of the rows.

    Each has the largest sum of weight * (y log p + (1 - y) log(1 - p)) - |coefficients|^2 / (2 * 100).

    Args:
        features: f64[N, F].
        outcomes: y f64[N], from 0 to 1.
        weights: f64[R, N].
    """
    found = np.zeros((len(weights), features.shape[1]))
    for _ in range(_STEPS):
        chance = scipy.special.expit(found @ features.T)
        slope = (weights * (outcomes - chance)) @ features - found / _STRENGTH
        bend = np.einsum("rn,nf,ng->rfg", weights * chance * (1 - chance), features, features, optimize=True)
        step = np.linalg.solve(bend + np.eye(features.shape[1]) / _STRENGTH, slope[..., None])[..., 0]
        found += np.clip(step, -_LONGEST_STEP, _LONGEST_STEP)
        if np.abs(step).max() < 1e-10:
            break
    return found


def positions(judgments: Sequence[Judgment]) -> dict[str, Position]:
    """Returns what positions do to each judge, by the judge's name.

    Only judgments count whose order is known, of two policies that were shown in both orders, be it on other prompts.
    """
    by_judge: dict[str, list[Judgment]] = {}
    for judgment in judgments:
        if judgment.ordered:
            by_judge.setdefault(judgment.judge, []).append(judgment)
    found = {judge: _position(rows) for judge, rows in by_judge.items()}
    return {judge: position for judge, position in found.items() if position}


def _position(judgments: list[Judgment]) -> Position | None:
    shown = collections.Counter((row.first, row.second) for row in judgments)
    rows = [row for row in judgments if shown[row.second, row.first]]
    if not rows:
        return None
    weights = [(1 + shown[row.second, row.first] / shown[row.first, row.second]) / 2 for row in rows]
    first = statistics.share([row.score for row in rows], weights, [row.prompt for row in rows])
    orders: dict[tuple, dict[str, float]] = {}
    for row in rows:
        orders.setdefault(row.pair, {})[row.first] = row.score
    both = {pair: [*scores.values()] for pair, scores in orders.items() if len(scores) == 2}
    same = [float((one - 0.5) * (0.5 - other) > 0 or one == other == 0.5) for one, other in both.values()]
    agreement = statistics.share(same, units=[pair[0] for pair in both]) if both else None
    return Position(first, agreement, len(both))
