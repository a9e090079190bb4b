"""How well a judge judges answers whose labels are known, beside what needs no language model."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rlhf_jax import statistics
from rlhf_jax.data.records import Ranking
from rlhf_jax.evaluate import bag_of_words
from rlhf_jax.evaluate.judge.form import THRESHOLD
from rlhf_jax.evaluate.judge.labelled import Answer
from rlhf_jax.statistics import Estimate, calibration

_ONE_MORE_WORD = " _every_answer_has_this_word_"  # its weight is the intercept of the bag of words


class Quality(NamedTuple):
    """Shares of answers that are judged right, with intervals over questions, and the calibration.

    Attributes:
        accuracy: of all answers.
        of_yes, of_no: of the answers whose label is yes, and of those whose label is no; None where there are none.
        majority: what the label that is more common in training would get.
        bag_of_words: what a logistic regression on the words of an answer gets.
        better_than_words: the judge's accuracy less that of the bag of words, paired.
        log_loss: of the probabilities, in nats.
        calibration_error: the expected calibration error, and `reliability` the table that it comes from.
    """

    accuracy: Estimate
    of_yes: Estimate | None
    of_no: Estimate | None
    majority: Estimate
    bag_of_words: Estimate
    better_than_words: Estimate
    log_loss: float
    calibration_error: float
    reliability: list[calibration.ReliabilityBin]

    def to_json(self) -> dict:
        found = {
            name: value.to_json() if isinstance(value, Estimate) else value for name, value in self._asdict().items()
        }
        return found | {"reliability": [row._asdict() for row in self.reliability]}

    def __str__(self) -> str:
        rows = {
            "accuracy": self.accuracy,
            "  of answers labelled yes": self.of_yes,
            "  of answers labelled no": self.of_no,
            "majority label": self.majority,
            "bag of words": self.bag_of_words,
            "judge less bag of words": self.better_than_words,
            "log-loss, nats": f"{self.log_loss:.3f}",
            "calibration error (ECE)": f"{self.calibration_error:.3f}",
        }
        return "\n".join(f"  {name:<27} {value}" for name, value in rows.items() if value is not None)


def quality(probabilities: Sequence[float], answers: Sequence[Answer], learned_from: Sequence[Answer]) -> Quality:
    """Returns the quality of a judge's probabilities of yes.

    Args:
        probabilities: f[N], for the answers.
        answers: answers to questions that the judge has not seen.
        learned_from: the answers that it was trained on and chosen by; the baselines learn from the same.
    """
    stated = np.asarray(probabilities, np.float64)
    labels, units = np.array([one.label for one in answers]), np.array([one.question for one in answers])
    right = (stated > THRESHOLD) == labels
    words = words_say_yes(learned_from, answers) == labels
    common = 2 * sum(one.label for one in learned_from) > len(learned_from)

    def share(values, chosen=slice(None)):
        values = np.asarray(values, np.float64)[chosen]
        return statistics.share(values, units=units[chosen].tolist()) if len(values) else None

    return Quality(
        accuracy=share(right),
        of_yes=share(right, labels),
        of_no=share(right, ~labels),
        majority=share(labels == common),
        bag_of_words=share(words),
        better_than_words=statistics.paired_difference(right, words, units=units.tolist()),
        log_loss=calibration.log_loss(np.clip(stated, 1e-7, 1 - 1e-7), labels),
        calibration_error=calibration.expected_calibration_error(stated, labels),
        reliability=calibration.reliability(stated, labels, units=units.tolist()),
    )


def words_say_yes(train: Sequence[Answer], answers: Sequence[Answer]) -> np.ndarray:
    """Returns what a logistic regression on the words of the answers in `train` says of other answers, bool[N].

    The probability that one bag of words is better than an empty one is a logistic regression on its words.
    """

    def ranking(one: Answer) -> Ranking:
        texts = (one.answer + _ONE_MORE_WORD, "")
        return Ranking(one.question, texts, (1, 2) if one.label else (2, 1), None, None, None, None, {})

    bag = bag_of_words.fit([ranking(one) for one in train])
    return bag.scores([one.answer + _ONE_MORE_WORD for one in answers]) > 0
