"""Datasets of questions with answers that people or a model compared: webgpt_comparisons, SHP, UltraFeedback.

A question is an instruction, which the run's template renders.
"""

from collections.abc import Iterator
from typing import Any

from rlhf_jax.data.public.dataset import Dataset, LeftOut, Row, field, filled, number, text
from rlhf_jax.runtime.errors import InputError

ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")

_COLUMNS = {"instruction": "text", "completions": "texts", "group": "text"}
_RANKED, _SCORED = {**_COLUMNS, "ranks": "ints"}, {**_COLUMNS, "scores": "numbers"}


def _webgpt(row: Any, file: str) -> Iterator[Row]:
    """Converts a row of OpenAI's file, a list of two answers, or of the hub's copies, an object with fields _0, _1."""
    if isinstance(row, dict):
        row = [
            {
                "question": field(row, "question"),
                "answer": field(row, f"answer_{side}"),
                "score": field(row, f"score_{side}"),
            }
            for side in (0, 1)
        ]
    if not isinstance(row, list) or len(row) != 2 or not all(isinstance(answer, dict) for answer in row):
        raise InputError('a row must be a list of two answers, [{"question": ..., "answer": ..., "score": ...}, ...]')
    question, scores = filled(row[0], "question.full_text"), [number(answer, "score") for answer in row]
    if text(row[1], "question.full_text") != question:
        raise InputError("the two answers belong to different questions; a row must have two answers to one question")
    yield {
        "instruction": question,
        "completions": [filled(answer, "answer") for answer in row],
        "scores": scores,
        "group": text(row[0], "question.id"),
    }


def _shp(row: Row, file: str) -> Iterator[Row]:
    """Converts a row of SHP: a Reddit post with two comments, of which `labels` says which is preferred."""
    if (label := field(row, "labels")) not in (0, 1) or isinstance(label, bool):
        raise InputError(f"field 'labels' is {label!r}; it must be 0 (B is preferred) or 1 (A is)")
    yield {
        "instruction": filled(row, "history"),
        "ranks": [1, 2] if label else [2, 1],
        "completions": [filled(row, "human_ref_A"), filled(row, "human_ref_B")],
        "group": text(row, "post_id"),
        "domain": text(row, "domain"),
        "score_ratio": number(row, "score_ratio"),
    }


def _ultrafeedback(row: Row, file: str) -> Iterator[Row]:
    """Converts a row; the score of an answer is the mean of its ratings in the four aspects, as far as it has them."""
    answers = field(row, "completions", list)
    if len(answers) < 2:
        raise LeftOut("fewer than two completions")
    rated = [{aspect: _rating(answer, aspect) for aspect in ASPECTS} for answer in answers]
    means = []
    for ratings in rated:
        given = [rating for rating in ratings.values() if rating]
        if not given:
            raise LeftOut("a completion without any rating")
        means.append(sum(given) / len(given))
    yield {
        "instruction": filled(row, "instruction"),
        "completions": [filled(answer, "response") for answer in answers],
        "scores": means,
        "models": [text(answer, "model") for answer in answers],
        "source": text(row, "source"),
        **{aspect: [ratings[aspect] for ratings in rated] for aspect in ASPECTS},
    }


def _rating(answer: Any, aspect: str) -> int:
    """Returns the rating of an answer in an aspect, 1 to 5; 0 if none was given."""
    if not isinstance(answer, dict):
        raise InputError("field 'completions' must be a list of objects")
    annotation = field(answer, f"annotations.{aspect}")
    if isinstance(annotation, list):  # the form that the authors' scripts write
        annotation = annotation[0] if annotation else None
    if annotation is None:
        return 0
    rating = field(annotation, "Rating") if isinstance(annotation, dict) else annotation
    if rating in ("N/A", None):
        return 0
    if str(rating) not in ("1", "2", "3", "4", "5"):
        raise InputError(f"field 'annotations.{aspect}.Rating' is {rating!r}; it must be 1 to 5 or N/A")
    return int(rating)


DATASETS = (
    Dataset(
        name="webgpt",
        kind="rankings",
        about="OpenAI: webgpt_comparisons, two long answers to a question",
        homepage="https://openaipublic.blob.core.windows.net/webgpt-answer-viewer/index.html",
        files={"train": ("comparisons|*/train-*|data/train-*",)},
        convert=_webgpt,
        expect=object,
        columns=_SCORED,
    ),
    Dataset(
        name="shp",
        kind="rankings",
        about="Stanford: SHP, two of Reddit's answers to a question",
        homepage="https://huggingface.co/datasets/stanfordnlp/SHP",
        files={
            split: (f"*/{published}|{published}",)
            for split, published in (("train", "train"), ("valid", "validation"), ("test", "test"))
        },
        convert=_shp,
        columns={**_RANKED, "domain": "text", "score_ratio": "number"},
    ),
    Dataset(
        name="ultrafeedback",
        kind="rankings",
        about="OpenBMB: four answers, rated by GPT-4 in four aspects",
        homepage="https://huggingface.co/datasets/openbmb/UltraFeedback",
        files={"train": ("*|data/train-*",)},
        convert=_ultrafeedback,
        columns={**_SCORED, "models": "texts", "source": "text", **dict.fromkeys(ASPECTS, "ints")},
    ),
)
