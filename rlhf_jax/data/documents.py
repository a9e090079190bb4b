"""Divides a text into documents."""

import re
import time

import regex

from rlhf_jax.fields import forms
from rlhf_jax.runtime.errors import InputError

MARKER = "<|endoftext|>"

_MARKER_LINE = re.compile(rf"(?m)^{re.escape(MARKER)}[ \t]*$")
_BLANK_LINES = re.compile(r"\n(?:[ \t]*\n)+")

# Time limit of a search: an expression takes about a second for 40 MB, but one that backtracks might never end.
SECONDS, SECONDS_A_CHARACTER = 10.0, 1e-6


def split(text: str, document_end: str | None = None) -> list[str]:
    """Returns the documents of a text, without blank documents and without the blank lines around each.

    Args:
        text: the text.
        document_end: regular expression of what divides documents. By default it is lines `<|endoftext|>`, or blank
            lines if the text has no such line.

    Raises:
        InputError: `document_end` is no regular expression, or its search exceeds the time limit.
    """
    if document_end is not None:
        try:
            pattern = forms.expression(document_end)
        except ValueError as error:
            raise InputError(
                f"data.files.document_end={document_end!r} is not a regular expression ({error})"
            ) from None
        spans = _found(pattern, text)
    else:
        end = _MARKER_LINE if _MARKER_LINE.search(text) else _BLANK_LINES
        spans = [match.span() for match in end.finditer(text)]
    ends, begins = [begin for begin, _ in spans], [end for _, end in spans]
    parts = (text[begin:end] for begin, end in zip([0, *begins], [*ends, len(text)]))
    return [part.strip("\n") for part in parts if part.strip()]


def _found(pattern: regex.Pattern, text: str) -> list[tuple[int, int]]:
    """Returns the spans of all matches; raises InputError after the time limit."""
    limit = SECONDS + SECONDS_A_CHARACTER * len(text)
    end, spans = time.monotonic() + limit, []
    try:
        for match in pattern.finditer(text, timeout=limit):  # the timeout is for one match; the check below is for all
            spans.append(match.span())
            if time.monotonic() > end:
                raise TimeoutError
    except TimeoutError:
        raise InputError(
            f"data.files.document_end={pattern.pattern!r} was stopped after {limit:.0f} s: it tries the same "
            "text in ever new ways; write it without repeats inside repeats, such as (a+)+"
        ) from None
    return spans
