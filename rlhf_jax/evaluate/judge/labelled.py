"""Labelled answers to questions, and their division by question: into those to train on, to choose by and to test on."""

import collections
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from rlhf_jax.data import duplicates, rows, splits
from rlhf_jax.data.rows import Row
from rlhf_jax.evaluate.completions import question_of
from rlhf_jax.evaluate.judge.form import KINDS, NO, YES
from rlhf_jax.runtime.errors import InputError

PARTS = ("train", "choose", "test")
_CHOOSE, _TEST = 0.1, 0.2  # shares of the questions
_SAME_BEGINNING = 32  # characters: questions that share a longer beginning stay together (see data/duplicates.py)
_LABELS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class Answer(NamedTuple):
    """An answer to a question, and whether it is true (or informative)."""

    question: str
    answer: str
    label: bool


class Report(NamedTuple):
    """What became of a file: its rows, the different answers, and those left out because they have both labels."""

    rows: int
    answers: int
    questions: int
    contradictory: int


def read(path: str | os.PathLike) -> tuple[list[Answer], Report]:
    """Reads labelled answers, each of them once.

    A row has {question, answer, label}; or {prompt, chosen, rejected}, two answers of which the chosen one is true; or
    {prompt, completion} as TruthfulQA's authors fine-tune on them, "Q: ...\\nA: ...\\nTrue:" and " yes" or " no".

    Raises:
        InputError: a row has none of these forms; the sentence names file and line.
    """
    labels: dict[tuple[str, str], set[bool]] = {}
    count = 0
    for place, row in rows.read(path):
        try:
            if isinstance(row, InputError):
                raise row
            count += 1
            for question, answer, label in _answers(row):
                labels.setdefault((question, answer), set()).add(label)
        except InputError as error:
            raise InputError(f"{place}: {error}") from None
    found = [Answer(*key, *label) for key, label in labels.items() if len(label) == 1]
    if not found:
        raise InputError(f"{path}: no labelled answer")
    return found, Report(count, len(found), len({one.question for one in found}), len(labels) - len(found))


def divide(answers: Sequence[Answer], per_question: int = 0) -> dict[str, list[Answer]]:
    """Divides answers into PARTS by a hash of their question; questions with a long common beginning stay together.

    Args:
        answers: the answers.
        per_question: largest number of answers of a question, drawn by a hash; 0: all.

    Raises:
        InputError: a part is empty, or the part to train on has one label alone.
    """
    questions = sorted({one.question for one in answers})
    homes = duplicates.clusters(questions, _SAME_BEGINNING)
    part_of = {question: _part(questions[home]) for question, home in zip(questions, homes)}
    parts: dict[str, list[Answer]] = {name: [] for name in PARTS}
    for one in _drawn(answers, per_question) if per_question else answers:
        parts[part_of[one.question]].append(one)
    for name, own in parts.items():
        if not own:
            raise InputError(
                f"none of the {len(questions)} questions falls into the part to {name}; give answers to more questions"
            )
    if len({one.label for one in parts["train"]}) == 1:
        raise InputError("all answers to train on have one label; a judge needs answers of both")
    return parts


def _answers(row: Row) -> Iterator[Answer]:
    """Yields the labelled answers of a row."""
    if "chosen" in row or "rejected" in row:
        question = question_of(_text(row, "prompt"))
        yield Answer(question, _text(row, "chosen").strip(), True)
        yield Answer(question, _text(row, "rejected").strip(), False)
    elif "label" in row:
        label = _LABELS.get(str(row["label"]).strip().lower())
        if label is None:
            raise InputError(f"field 'label' is {row['label']!r}, and must be true or false, yes or no, 1 or 0")
        yield Answer(_text(row, "question").strip(), _text(row, "answer").strip(), label)
    elif "completion" in row:
        yield _fine_tuned(_text(row, "prompt"), _text(row, "completion"))
    else:
        raise InputError(
            f"fields {', '.join(row) or 'none'}; a labelled answer has question, answer and label, or prompt, chosen and "
            "rejected, or prompt and completion"
        )


def _fine_tuned(prompt: str, completion: str) -> Answer:
    """Returns the answer of a row of TruthfulQA's fine-tuning files."""
    for kind in KINDS.values():
        before, end, after = prompt.strip().partition(f"\n{kind.ending}")
        question, middle, answer = before.partition("\nA:")
        if (
            end
            and middle
            and not after
            and question.startswith("Q:")
            and completion.strip() in (YES.strip(), NO.strip())
        ):
            return Answer(question.removeprefix("Q:").strip(), answer.strip(), completion.strip() == YES.strip())
    raise InputError("a prompt with a completion is 'Q: ...\\nA: ...\\nTrue:' (or 'Helpful:') with ' yes' or ' no'")


def _text(row: Row, name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip() and name in ("prompt", "question"):
        raise InputError(f"field {name!r} is {'missing' if value is None else repr(value)[:40]}, and must be a text")
    return value


def _part(question: str) -> str:
    place = splits.place(f"judge/{duplicates.normalised(question)}")
    return "test" if place < _TEST else "choose" if place < _TEST + _CHOOSE else "train"


def _drawn(answers: Iterable[Answer], count: int) -> Iterator[Answer]:
    """Yields `count` answers of each question, or all where there are fewer."""
    own = collections.defaultdict(list)
    for one in answers:
        own[one.question].append(one)
    for found in own.values():
        yield from sorted(found, key=lambda one: splits.place(f"{one.question}\n{one.answer}"))[:count]
