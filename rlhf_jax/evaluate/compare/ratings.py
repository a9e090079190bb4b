"""Ratings of many policies by the model of Bradley and Terry (1952): P(i beats j) = sigmoid(rating_i - rating_j).

A tie is half a win for both. Only differences of ratings mean anything, so the mean rating is fixed: 0, or 1000 on Elo's
scale, where 400 points more are odds of 10 to 1. Letters of shapes: M policies, P prompts, R samples of prompts.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy  # its parts are imported when they are first used

from rlhf_jax.evaluate.compare import bootstrap
from rlhf_jax.evaluate.compare.judgments import Comparison, Contest
from rlhf_jax.statistics import Estimate

ELO = 400 / math.log(10)  # points of Elo's scale in one of Bradley and Terry's
MEAN_ELO = 1000.0
_STEPS, _LONGEST_STEP = 200, 2.0  # of Newton's method


class Rating(NamedTuple):
    """The rating of a policy in nats, with a bootstrap interval over prompts; or None and the reason."""

    value: Estimate | None
    why: str = ""

    @property
    def elo(self) -> Estimate | None:
        """The rating on Elo's scale, where the mean of all is 1000."""
        return self.value and Estimate(*(MEAN_ELO + ELO * number for number in self.value))


def rate(
    found: Mapping[Contest, Sequence[Comparison]], names: Sequence[str], rounds: int = bootstrap.ROUNDS
) -> dict[str, Rating]:
    """Returns the rating of each policy.

    Maximum likelihood has a finite answer exactly where, however the policies are divided in two groups, each group has won
    something against the other (Ford 1957). Where it has none, the largest set of policies for which it has one is rated,
    and each of the others says why it is not.
    """
    wins, prompts = _by_prompt(found, names)
    total = np.asarray(wins.sum(0)).reshape(len(names), len(names))
    rated = _comparable(total)
    if len(rated) < 2:
        return {name: Rating(None, _why(total, names, place, rated)) for place, name in enumerate(names)}
    inside = (rated[:, None] * len(names) + rated).ravel()
    (values,) = fit(total[np.ix_(rated, rated)][None])
    parts = [
        fit((drawn @ wins[:, inside]).reshape(-1, len(rated), len(rated)))
        for drawn in bootstrap.counts(prompts, rounds)
    ]
    samples = np.concatenate(parts)
    ratings = {
        names[place]: Rating(bootstrap.interval(values[row], samples[:, row])) for row, place in enumerate(rated)
    }
    return {
        name: ratings.get(name) or Rating(None, _why(total, names, place, rated)) for place, name in enumerate(names)
    }


def fit(wins: np.ndarray) -> np.ndarray:
    """Returns ratings f64[R, M] of wins f64[R, M, M], where entry i, j is how often i has beaten j; NaN where there are none.

    Newton's method on the log-likelihood; the constant 1/M in the matrix fixes the mean rating, which nothing else does.
    """
    games, size = wins + wins.transpose(0, 2, 1), wins.shape[1]
    found = np.zeros(wins.shape[:2])
    finite = np.array([_connected(matrix) for matrix in wins])
    for _ in range(_STEPS if finite.any() else 0):
        chance = scipy.special.expit(found[:, :, None] - found[:, None])
        slope = (wins - games * chance).sum(2)
        weight = games * chance * (1 - chance)
        bend = np.eye(size) * weight.sum(2)[:, None] - weight + weight.sum((1, 2))[:, None, None] / size**2
        bend = np.where(finite[:, None, None], bend, np.eye(size))
        step = np.where(finite[:, None], np.linalg.solve(bend, slope[..., None])[..., 0], 0)
        found += np.clip(step, -_LONGEST_STEP, _LONGEST_STEP)
        if np.abs(step).max() < 1e-10:
            break
    return np.where(finite[:, None], found - found.mean(1, keepdims=True), np.nan)


def _by_prompt(
    found: Mapping[Contest, Sequence[Comparison]], names: Sequence[str]
) -> "tuple[scipy.sparse.csr_matrix, int]":
    """Returns the wins of each two policies on each prompt, [P, M * M], and the number of prompts."""
    place = {name: number for number, name in enumerate(names)}
    prompts: dict = {}
    rows, columns, values = [], [], []
    for (first, second), compared in found.items():
        i, j = place[first], place[second]
        for row in compared:
            rows += [prompts.setdefault(row.prompt, len(prompts))] * 2
            columns += [i * len(names) + j, j * len(names) + i]
            values += [row.score, 1 - row.score]
    return scipy.sparse.csr_matrix((values, (rows, columns)), (len(prompts), len(names) ** 2)), len(prompts)


def _connected(wins: np.ndarray) -> bool:
    return scipy.sparse.csgraph.connected_components(wins > 0, connection="strong")[0] == 1


def _comparable(wins: np.ndarray) -> np.ndarray:
    """Returns the places of the largest set of policies of which each has won something against any part of the others."""
    _, group = scipy.sparse.csgraph.connected_components(wins > 0, connection="strong")
    return np.flatnonzero(group == np.bincount(group).argmax())


def _why(wins: np.ndarray, names: Sequence[str], place: int, rated: np.ndarray) -> str:
    """Returns why a policy has no finite rating."""
    if not wins[place].any():
        return "it has lost every comparison, so that no rating is low enough"
    if not wins[:, place].any():
        return "it has won every comparison, so that no rating is high enough"
    others = ", ".join(names[other] for other in rated if other != place) if len(rated) > 1 else "the others"
    return f"no chain of wins leads from it to {others} and back"
