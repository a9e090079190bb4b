"""The scores of completions by one model, kept as they come, and the numbers that the scores give."""

import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from rlhf_jax import statistics
from rlhf_jax.data.chat_template import shown
from rlhf_jax.data.records import Ranking
from rlhf_jax.evaluate import preferences
from rlhf_jax.evaluate.harness.answers import Answers
from rlhf_jax.evaluate.rewards import length, rewardbench
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.progress import Interrupt, Progress, Stopped
from rlhf_jax.statistics import Estimate, calibration

_TIES = re.compile(r"(ref|tied):(.+)")  # the ids of RewardBench 2's ties subset


class Judge(Protocol):
    """Whatever scores completions: a model of models.py, or a function of functions.py.

    Attributes:
        name: its name in tables.
        is_reward: whether it is no language model.
        scores: the names of the scores that it gives each completion.
        unit: what lengths are counted in.
        limit: what a row may be too long for.
        identity: text that another judge does not have.
    """

    name: Any
    is_reward: Any
    scores: Any
    unit: Any
    limit: Any
    identity: Any

    def encode(self, rankings: Sequence[Ranking]) -> Sequence[Sequence | None]:
        """Returns a question about each completion of each ranking; None for a ranking that the judge cannot read."""

    def key(self, row: Any) -> tuple:
        """Returns what tells one question from another."""

    def length(self, row: Any) -> int:
        """Returns the length of a completion."""

    def __call__(self, rows: Sequence) -> Iterator[list[tuple[int, float]]]:
        """Yields, batch by batch, the number of each question and its score."""


class Column(NamedTuple):
    """One score of one model, for the rankings that the model can read.

    Attributes:
        name: the model, and for a language model which score.
        places: the number of each ranking among all that were given.
        rankings: the rankings.
        scores: f[N, K]; NaN for a completion that is not there.
        lengths: i[N, K], in tokens of the model, or for a function in words.
    """

    name: str
    places: list[int]
    rankings: list[Ranking]
    scores: np.ndarray
    lengths: np.ndarray


def columns(judge: Judge, rankings: Sequence[Ranking], rows: str | None, interrupt: Interrupt) -> list[Column]:
    """Returns the scores of a model or function; those that the file `rows` has are not computed again.

    Raises:
        InputError: every ranking is longer than the model's context.
        Stopped: an interrupt was asked for; the scores that were computed are in `rows`.
    """
    encoded = judge.encode(rankings)
    places = [place for place, requests in enumerate(encoded) if requests is not None]
    if not places:
        raise InputError(f"{judge.name}: none of the {len(rankings)} rows fits into {judge.limit}; give shorter rows")
    asked = [(place, k) for place in places for k in range(len(encoded[place]))]
    requests = [encoded[place][k] for place, k in asked]
    answers = Answers(rows and pathlib.Path(rows), judge.identity)
    keys = [answers.key("score", judge.key(request)) for request in requests]
    first = {key: number for number, key in reversed(list(enumerate(keys)))}  # equal completions are scored once
    missing = sorted(number for key, number in first.items() if key not in answers)
    done = 0
    with Progress(f"scoring, {judge.name}", len(missing), unit="completions") as progress:
        for batch in judge([requests[number] for number in missing]):
            answers.add(
                (keys[number], _row(judge, rankings, *asked[number], value, judge.length(requests[number])))
                for number, value in ((missing[n], value) for n, value in batch)
            )
            done += len(batch)
            progress.update(done)
            if interrupt.requested and done < len(missing):
                raise Stopped("scoring", done, interrupt.asked())
    shape = len(places), max(len(encoded[place]) for place in places)
    lengths, row_of = np.zeros(shape, int), {place: n for n, place in enumerate(places)}
    scores = {name: np.full(shape, np.nan) for name in judge.scores}
    for (place, k), key, request in zip(asked, keys, requests):
        lengths[row_of[place], k] = judge.length(request)
        for name in judge.scores:
            scores[name][row_of[place], k] = answers[key][name]
    kept = [rankings[place] for place in places]
    return [
        Column(judge.name if judge.is_reward else f"{judge.name}, {name}", places, kept, values, lengths)
        for name, values in scores.items()
    ]


def _row(judge: Judge, rankings: Sequence[Ranking], place: int, k: int, value: float, count: int) -> dict:
    """Returns what the file of scores has of a completion."""
    if not np.isfinite(value):
        raise InputError(f"{judge.name} gives a score that is not finite; try --dtype=float32")
    values = (value,) if judge.is_reward else (value, value / count)
    texts = {"prompt": shown(rankings[place].prompt), "completion": shown(rankings[place].completions[k])}
    return {"model": judge.name, **texts, judge.unit: count} | dict(zip(judge.scores, values))


def figures(column: Column) -> dict:
    """Returns all numbers of a column, as JSON has them."""
    found = preferences.evaluate(column.rankings, column.scores, column.lengths)
    margins, units = _margins(column)
    better, worse = _lengths(column)
    probe = length.probe(margins, better, worse, units)._asdict()
    groups = found["by_group"]
    found |= {
        "mean_over_groups": float(np.mean(list(groups.values()))) if len(groups) > 1 else None,
        "length_probe": {
            name: value.to_json() if isinstance(value, Estimate) else value for name, value in probe.items()
        },
        "best_of_4": None,
        "ties": None,
    }
    four = [n for n, ranking in enumerate(column.rankings) if _is_best_of_four(ranking)]
    if four:
        won = [rewardbench.best_of(column.scores[n, :4], column.rankings[n].ranks.index(1)) for n in four]
        found["best_of_4"] = statistics.share(won, units=[column.rankings[n].unit for n in four]).to_json()
    parts: dict[str, dict] = {"ref": {}, "tied": {}}
    for ranking, scores in zip(column.rankings, column.scores):
        if (named := _ties(ranking)) and set(ranking.ranks) == {1, 2}:
            right = np.array(ranking.ranks) == 1
            values = scores[: len(right)]
            parts[named[1]][named[2]] = values[right], values[~right]
    if parts["ref"].keys() & parts["tied"].keys():
        found["ties"] = rewardbench.ties(parts["ref"], parts["tied"])._asdict()
    return found


def paired(first: Column, second: Column) -> Estimate | None:
    """Returns how much more accurate `first` is, over the pairs that both columns have; None if there is none."""
    common = set(first.places) & set(second.places)
    right, units = [], []
    for column in (first, second):
        inside = [n for n, place in enumerate(column.places) if place in common]
        kept = column._replace(rankings=[column.rankings[n] for n in inside], scores=column.scores[inside])
        if not preferences.pairs_of(kept.rankings):
            return None
        margins, units = _margins(kept)
        right.append(calibration.from_margins(margins)[1])
    return statistics.paired_difference(*right, units=units.tolist())


def _margins(column: Column) -> tuple[np.ndarray, np.ndarray]:
    """Returns the margin of each pair, and the number of its prompt."""
    pairs = preferences.pairs_of(column.rankings)
    units = preferences.numbered([column.rankings[n].unit for n, _, _ in pairs])
    return preferences.differences(column.scores, pairs), units


def _lengths(column: Column) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens of the better and of the worse completion of each pair."""
    ranking, better, worse = np.array(preferences.pairs_of(column.rankings)).T
    return column.lengths[ranking, better], column.lengths[ranking, worse]


def _ties(ranking: Ranking) -> re.Match | None:
    name = ranking.row.get("id")
    return _TIES.fullmatch(name) if isinstance(name, str) else None


def _is_best_of_four(ranking: Ranking) -> bool:
    """Whether there are four completions, one of which is the best."""
    return len(ranking.ranks) == 4 and ranking.ranks.count(1) == 1 and not _ties(ranking)
