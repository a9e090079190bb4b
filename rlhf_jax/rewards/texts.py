"""Ready-made reward functions that read the text alone: its length, a regular expression, a final answer."""

import decimal
import re
from collections.abc import Sequence
from typing import Any

import regex

Rows = Sequence[dict[str, Any]]

_SECONDS = 5.0  # for one text; an expression can take longer than the age of the universe
_UNITS = ("words", "characters")


def length(
    texts: Sequence[str], prompts: Sequence[str], rows: Rows, *, limit: int = 0, unit: str = "words"
) -> list[float]:
    """Returns minus the number of words or characters of each text beyond a limit: a penalty, 0 at best.

    Args:
      texts, prompts, rows: as for every reward function.
      limit: the length that costs nothing.
      unit: "words" or "characters".
    """
    sizes = [len(text.split()) if unit == "words" else len(text) for text in texts]
    return [-float(max(0, size - limit)) for size in sizes]


def _check_length(limit: int = 0, unit: str = "words") -> None:
    if unit not in _UNITS:
        raise ValueError(f"unit={unit!r} must be 'words' or 'characters'")
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:
        raise ValueError(f"limit={limit!r} must be a whole number from 0")


def expression(
    texts: Sequence[str], prompts: Sequence[str], rows: Rows, *, pattern: str, whole: bool = False
) -> list[float]:
    """Returns 1 for each text in which a regular expression is found, and 0 for the others.

    Args:
      texts, prompts, rows: as for every reward function.
      pattern: the expression, in the syntax of the library `regex`.
      whole: whether the whole text must match; blanks around it do not count.

    Raises:
      TimeoutError: the search takes more than five seconds for one text.
    """
    compiled = regex.compile(pattern)
    find = compiled.fullmatch if whole else compiled.search
    return [float(find(text.strip() if whole else text, timeout=_SECONDS) is not None) for text in texts]


def _check_expression(pattern: str, whole: bool = False) -> None:
    if not isinstance(pattern, str) or not isinstance(whole, bool):
        raise ValueError("pattern must be a text, and whole True or False")
    try:
        regex.compile(pattern)
    except (regex.error, RecursionError, OverflowError) as error:
        raise ValueError(f"pattern={pattern!r} is no regular expression: {error}") from None


_NUMBER = re.compile(r"-?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")


def answer(
    texts: Sequence[str],
    prompts: Sequence[str],
    rows: Rows,
    *,
    field: str = "answer",
    mark: str = "####",
    last_number: bool = False,
) -> list[float]:
    """Returns 1 for each text that ends in the answer of its row, and 0 for the others.

    An answer is what follows the last `mark`, on its line, as in GSM8K (Cobbe et al. 2021, arXiv 2110.14168). A row's
    answer without the mark is the answer itself. Numbers are compared by value: "$1,000" is "1000.00". Other answers
    are compared without regard to case and to blanks around them.

    Args:
      texts, prompts, rows: as for every reward function.
      field: the field of the rows that has the answer, a text or a number.
      mark: what stands before the answer.
      last_number: whether the last number of a text is its answer if it has no mark.

    Raises:
      ValueError: a row has no such field, or it is empty.
    """
    return [
        float(_same(_said(text, mark, last_number), _known(row, field, mark)))
        for text, row in zip(texts, rows, strict=True)
    ]


def _check_answer(field: str = "answer", mark: str = "####", last_number: bool = False) -> None:
    if not isinstance(field, str) or not isinstance(mark, str) or not field or not mark:
        raise ValueError("field and mark must be texts, not empty")


def _known(row: dict[str, Any], field: str, mark: str) -> str:
    value = row.get(field)
    if isinstance(value, bool) or not isinstance(value, (str, int, float)) or not str(value).strip():
        raise ValueError(f"the row has no answer: its field '{field}' is {value!r}, and must be a text or a number")
    found = _after(str(value), mark)
    return str(value).strip() if found is None else found


def _said(text: str, mark: str, last_number: bool) -> str | None:
    found = _after(text, mark)
    if found is None and last_number and (numbers := _NUMBER.findall(text)):
        return numbers[-1]
    return found


def _after(text: str, mark: str) -> str | None:
    """Returns what follows the last mark on its line; None without a mark."""
    _, found, rest = text.rpartition(mark)
    return rest.strip().partition("\n")[0].strip() if found else None


def _same(said: str | None, known: str) -> bool:
    if said is None:
        return False
    numbers = _value(said), _value(known)
    return numbers[0] == numbers[1] if None not in numbers else said.casefold() == known.casefold()


def _value(text: str) -> decimal.Decimal | None:
    """Returns the number that a text is, or None; a stop after it, a dollar sign and commas do not count."""
    text = text.removesuffix(".").strip()
    if not _NUMBER.fullmatch(text):
        return None
    return decimal.Decimal(text.replace("$", "").replace(",", ""))


length.check = _check_length  # type: ignore[attr-defined]
expression.check = _check_expression  # type: ignore[attr-defined]
answer.check = _check_answer  # type: ignore[attr-defined]
