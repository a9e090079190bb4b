"""Scores of reward models as RewardBench 2 defines them: the best of several completions, and the ties subset.

In the ties subset a question stands twice. Its row "ref" has one correct answer, and its row "tied" has several that are
equally correct. A good reward model puts every correct answer above every wrong one, and the correct ones close together.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

Scores = tuple[Sequence[float], Sequence[float]]  # of the correct answers of a row, and of its wrong answers


class Ties(NamedTuple):
    """The parts of the ties subset's score, and the score; the weights make at most 1.01."""

    reference_accuracy: float  # share of "ref" rows whose correct answers are all above the wrong ones
    tied_accuracy: float  # the same of "tied" rows
    preferred: float  # share of questions whose gap from correct to wrong exceeds the spread of the correct answers
    preferred_hard: float  # the same with the smaller gap of the question's two rows
    margin: float  # mean of tanh(smaller gap / spread - 1)
    score: float


def best_of(scores: Sequence[float], chosen: int = 0) -> float:
    """Returns 1 where the chosen completion has the highest score, its part where several share it, and 0 otherwise."""
    values = np.asarray(scores, np.float64)
    highest = values == values.max()
    return float(highest[chosen] / highest.sum())


def ties(references: Mapping[Hashable, Scores], tied: Mapping[Hashable, Scores]) -> Ties:
    """Scores the ties subset.

    Args:
      references: the scores of each question's row with one correct answer, by the question's name.
      tied: the scores of each question's row with several correct answers, by the same names.

    Raises:
      ValueError: no question has both rows.
    """
    both = [name for name in references if name in tied]
    if not both:
        raise ValueError("no question has both a row 'ref' and a row 'tied'")
    gaps = {name: _gap(row) for name, row in tied.items()}
    reference_gaps = {name: _gap(row) for name, row in references.items()}
    spread = np.array([max(tied[name][0]) - min(tied[name][0]) for name in both])
    gap = np.array([gaps[name] for name in both])
    smaller = np.minimum(gap, [reference_gaps[name] for name in both])
    with np.errstate(
        divide="ignore", invalid="ignore"
    ):  # a spread of 0 makes the ratio infinite, and 0 / 0 counts as 0
        margin = float(np.nan_to_num(np.tanh(smaller / spread - 1), nan=0.0).mean())
    parts = (
        float(np.mean([value > 0 for value in reference_gaps.values()])),
        float(np.mean([value > 0 for value in gaps.values()])),
        float((gap > spread).mean()),
        float((smaller > spread).mean()),
        margin,
    )
    return Ties(*parts, float(np.dot((0.3, 0.3, 0.2, 0.2, 0.01), parts)))


def _gap(row: Scores) -> float:
    """Returns how far the lowest score of a correct answer is above the highest score of a wrong one."""
    correct, wrong = row
    return float(min(correct) - max(wrong))
