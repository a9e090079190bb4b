"""Completions in files: rows of our own commands and of others, and the sample logs of lm-eval.

A row has its completion in one of COMPLETION_FIELDS. A row of lm-eval's `--log_samples` has a `doc`, the fields of the
item, and `resps` and `filtered_resps`, what the model wrote and what the task made of it.
"""

import dataclasses
import os
import re
from typing import Any

from rlhf_jax.data import rows
from rlhf_jax.data.rows import Row, type_name
from rlhf_jax.runtime.errors import InputError

COMPLETION_FIELDS = ("completion", "answer", "continuation", "text")
PROMPT_FIELDS = ("question", "prompt", "instruction")

_LAST_QUESTION = re.compile(r".*(?:^|\n)Q: (.*?)\s*\nA:\s*", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Completion:
    """A text that a model wrote.

    Attributes:
        text: the text.
        prompt: what it answers, as its row has it; "" where the row has none.
        fields: the fields of the item: those of the row, or of its `doc` in a log of lm-eval.
        row: the row of the file.
        place: file and line.
    """

    text: str
    prompt: str
    fields: Row
    row: Row
    place: str

    @property
    def question(self) -> str:
        """The question that the prompt ends in."""
        return question_of(self.prompt)


def question_of(prompt: str) -> str:
    """Returns the last question of a prompt in the form "Q: ...\\nA:", with or without examples before; else the prompt."""
    found = _LAST_QUESTION.fullmatch(prompt)
    return (found[1] if found else prompt).strip()


def read(path: str | os.PathLike) -> list[Completion]:
    """Reads the completions of a file of rows; .xz and .gz too.

    Raises:
        InputError: a row has no completion, or one that is no text; the sentence names file and line.
    """
    found = []
    for place, row in rows.read(path):
        try:
            if isinstance(row, InputError):
                raise row
            found.append(_completion(row, place))
        except InputError as error:
            raise InputError(f"{place}: {error}") from None
    if not found:
        raise InputError(f"{path}: no row")
    return found


def _completion(row: Row, place: str) -> Completion:
    fields = row["doc"] if isinstance(row.get("doc"), dict) and "resps" in row else row
    text = _written(row) if fields is not row else _text_of(row, COMPLETION_FIELDS)
    if text is None:
        raise InputError(
            f"no field {', '.join(COMPLETION_FIELDS[:-1])} or {COMPLETION_FIELDS[-1]}: nothing was written"
        )
    return Completion(text, _text_of(fields, PROMPT_FIELDS) or "", fields, row, place)


def _written(row: Row) -> str:
    """Returns what a model wrote by a row of lm-eval's log: as the task's filter left it, or as it came."""
    for name in ("filtered_resps", "resps"):
        value = row.get(name)
        while isinstance(value, list) and value:
            value = value[0]
        if isinstance(value, str):
            return value
    raise InputError("field 'resps' holds no text: the task asks for probabilities, and the model wrote nothing")


def _text_of(fields: Row, names: tuple[str, ...]) -> str | None:
    """Returns the first of some fields that is there; RealToxicityPrompts has objects with a text."""
    for name in names:
        value: Any = fields.get(name)
        value = value.get("text") if isinstance(value, dict) else value
        if isinstance(value, str):
            return value
        if value is not None:
            raise InputError(f"field {name!r} is {type_name(value)}, and must be a string")
    return None
