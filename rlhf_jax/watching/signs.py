"""Signs of a sick run: functions that look for one in the rows so far, and return what they have seen.

A sign compares means over windows, and never a single row. It is not seen where its metrics are missing from the newest
row. docs/watching.md says the same for users.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping

from rlhf_jax.watching.windows import Mean, Reading, Rows, at_end, at_start, error_of_difference, last, metric

WINDOW = 5  # rows at the end of the run so far
START = 3  # rows at its beginning
GOLD_WINDOW, VALIDATION_WINDOW = 8, 4  # of rewards, which need more rows, and of validations, of which there are few
LOSS_WINDOW = 20  # steps of supervised training over which its loss is averaged
MEANT = (
    5.0  # standard errors that a difference has to exceed; windows are short, so that the errors are rough themselves
)
MEANT_OF_PROMPTS = 3.0  # standard errors over prompts that the fall of a reward has to exceed as well
NEGATIVE = 3.0  # standard errors by which a mean has to be below its bound
KL_RISE = 1.1  # the factor by which the KL has to rise for a falling reward to count
LONGEST_SCORE_BEST = 0.2  # correlation of length and score within a batch, where it is measured


@dataclasses.dataclass(frozen=True)
class Seen:
    """What was seen.

    Attributes:
      value: what was compared with the bound.
      numbers: what a sentence about it says, by name.
      metric: the metric that showed it, if there was a choice.
    """

    value: float
    numbers: Mapping[str, float | str]
    metric: str = ""


Look = Callable[[float, Rows], Seen | None]  # (the bound, the rows so far) -> what was seen; None while all is well


def above(read: Reading) -> Look:
    """Looks for a number whose mean over the last rows is above the bound."""

    def look(bound: float, rows: Rows) -> Seen | None:
        now = _now(rows, read)
        return Seen(now.value, {"now": now.value}) if now and now.value > bound else None

    return look


def risen(read: Reading, by: float) -> Look:
    """Looks for a number that is above the bound, and has risen by at least `by` since the first rows."""

    def look(bound: float, rows: Rows) -> Seen | None:
        now = _now(rows, read)
        then = _then(rows, read, now)
        if now is None or then is None or not now.value > bound:
            return None
        if now.value < then.value + by or not _is_more(now, then):
            return None
        return Seen(now.value, {"now": now.value, "then": then.value})

    return look


def below(read: Reading, from_row: int) -> Look:
    """Looks for a number that is below the bound by more than its scatter; the first `from_row` rows do not count."""

    def look(bound: float, rows: Rows) -> Seen | None:
        now = _now(rows, read) if len(rows) >= from_row + WINDOW else None
        seen = now is not None and now.value < bound - NEGATIVE * now.error
        return Seen(now.value, {"now": now.value}) if now and seen else None

    return look


def fallen(read: Reading) -> Look:
    """Looks for a number that has fallen below the bound times what it was in the first rows."""

    def look(bound: float, rows: Rows) -> Seen | None:
        now = _now(rows, read)
        then = _then(rows, read, now)
        if now is None or then is None or not 0 <= now.value < bound * then.value or not _is_more(then, now):
            return None
        return Seen(now.value / then.value, {"now": now.value, "then": then.value})

    return look


def longer_with_reward(length: Reading, score: Reading, correlation: Reading) -> Look:
    """Looks for a length that has grown by the bound's factor while the score rose and long completions scored best."""

    def look(bound: float, rows: Rows) -> Seen | None:
        now = _now(rows, length)
        then = now and at_start(rows, length, START)
        if now is None or then is None or not now.value > bound * then.value or not _is_more(now, then):
            return None
        score_now, score_then = _now(rows, score), at_start(rows, score, START)
        if score_now is None or score_then is None or not _is_more(score_now, score_then):
            return None
        together = _now(rows, correlation)
        if together is not None and together.value < LONGEST_SCORE_BEST:
            return None
        scores = {"score": score_now.value, "score_then": score_then.value}
        return Seen(now.value / then.value, {"now": now.value, "then": then.value} | scores)

    return look


def reward_falls(bound: float, rows: Rows) -> Seen | None:
    """Looks for a reward that fell, by more than a share `bound` of its rise, while the KL rose.

    The last rows are compared with those up to the middle of the run: a slow fall shows, too, once it has lasted as long
    as the rise before it. The scatter of validations is less than their standard error over prompts, because they have
    the same prompts and similar completions; so both have to be exceeded.
    """
    for name in _judged(rows[-1]):
        kind = "valid" if name.startswith("valid/") else "objective"
        count = VALIDATION_WINDOW if kind == "valid" else GOLD_WINDOW
        reward, kl, error = metric(name), metric(f"{kind}/kl"), metric(_error_of(name))(rows[-1])
        if error is None:
            continue
        middle = len(rows) // 2
        now, then = at_end(rows, reward, count), at_end(rows, reward, count, middle)
        kl_now, kl_then = at_end(rows, kl, count), at_end(rows, kl, count, middle)
        start = at_start(rows, reward, 1 if kind == "valid" else START)
        if now is None or then is None or kl_now is None or kl_then is None or start is None:
            continue
        of_prompts = error * (2 / count) ** 0.5
        noise = max(MEANT * error_of_difference(now, then), MEANT_OF_PROMPTS * of_prompts)
        fall, rise = then.value - now.value, then.value - start.value
        if fall > noise and fall > bound * rise and kl_now.value > KL_RISE * kl_then.value:
            kls = {"kl": kl_now.value, "kl_then": kl_then.value}
            return Seen(fall, {"now": now.value, "then": then.value, "metric": name, **kls}, name)
    return None


def _judged(row: dict) -> list[str]:
    """Returns the metrics of a row that should not fall.

    They are gold, the judges of a validation, and the score on validation prompts. A reward of a mixture is trained
    against, so that it is no judge.
    """
    prefix = "valid/scores/"
    judges = [
        name for name in row if name.startswith(prefix) and f"objective/scores/{name.removeprefix(prefix)}" not in row
    ]
    return [name for name in ("valid/gold", "objective/gold", *judges, "valid/score") if name in row]


def _error_of(name: str) -> str:
    """Returns the metric that is the standard error of a reward over prompts."""
    return name.replace("valid/scores/", "valid/scores_sem/") if name.startswith("valid/scores/") else f"{name}_sem"


def overfits(held_out: Reading, loss: Reading) -> Look:
    """Looks for a held-out loss that rose by the bound's factor over three validations while the training loss fell."""

    def look(bound: float, rows: Rows) -> Seen | None:
        if held_out(rows[-1]) is None:
            return None
        validations = last(rows, held_out, 4)[::-1]
        if not validations or not all(x < y for (_, x), (_, y) in itertools.pairwise(validations)):
            return None
        (place, lowest), (_, now) = validations[0], validations[-1]
        loss_now, loss_then = at_end(rows, loss, LOSS_WINDOW), at_end(rows, loss, LOSS_WINDOW, place + 1)
        if loss_now is None or loss_then is None or not 0 < bound * lowest < now or loss_now.value >= loss_then.value:
            return None
        losses = {"loss": loss_now.value, "loss_then": loss_then.value}
        return Seen(now / lowest, {"now": now, "then": lowest} | losses)

    return look


def _now(rows: Rows, read: Reading) -> Mean | None:
    """Returns the mean of the last rows; None if the newest lacks the metric, or the run is still at its beginning."""
    if len(rows) < START + WINDOW or read(rows[-1]) is None:
        return None
    return at_end(rows, read, WINDOW)


def _then(rows: Rows, read: Reading, now: Mean | None) -> Mean | None:
    """Returns the mean of the first rows, with the scatter of the last: a policy may collapse between the first."""
    then = at_start(rows, read, START) if now else None
    return dataclasses.replace(then, variance=now.variance) if now and then else None


def _is_more(now: Mean, then: Mean) -> bool:
    """Whether the first mean is above the second by more than scatter explains."""
    return now.value - then.value > MEANT * error_of_difference(now, then)
