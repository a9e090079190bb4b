"""Where a document of a text ends and the next one begins."""

import math
import re
import time

import regex

from rlhf_jax.runtime.errors import InputError

MARKER = "<|endoftext|>"

_MARKER_LINE = re.compile(rf"(?m)^{re.escape(MARKER)}[ \t]*$")
_BLANK_LINES = re.compile(r"\n(?:[ \t]*\n)+")

# An expression takes about a second for 40 MB; one that backtracks would never end.
SECONDS, SECONDS_A_CHARACTER = 10.0, 1e-6

# Repeats of repeats become a program of so many steps, which fills the memory: ((a{1000}){1000}){1000}.
_MOST_REPEATS = 100_000


def split(text: str, document_end: str | None = None) -> list[str]:
    """The documents of a text, without blank ones and without the blank lines around each.

    Args:
        document_end: regular expression; None: lines `<|endoftext|>`, or blank lines where there are none.

    Raises:
        InputError: `document_end` is none, or it takes far longer than any that ends.
    """
    if document_end is not None:
        try:
            pattern = expression(document_end)
        except ValueError as error:
            raise InputError(f"data.files.document_end={document_end!r} is no regular expression ({error})") from None
        spans = _found(pattern, text)
    else:
        end = _MARKER_LINE if _MARKER_LINE.search(text) else _BLANK_LINES
        spans = [match.span() for match in end.finditer(text)]
    ends, begins = [begin for begin, _ in spans], [end for _, end in spans]
    parts = (text[begin:end] for begin, end in zip([0, *begins], [*ends, len(text)]))
    return [part.strip("\n") for part in parts if part.strip()]


def expression(text: str) -> regex.Pattern:
    """A `document_end`, compiled.

    Raises:
        ValueError: with the reason, where it is no regular expression, or one that would fill the memory.
    """
    counts = [int(count) for count in re.findall(r"\{(?:\d*,)?(\d{1,18})\}", text)]
    if math.prod(filter(None, counts)) > _MOST_REPEATS:
        raise ValueError(f"the numbers in its braces multiply to more than {_MOST_REPEATS:,}")
    try:
        return regex.compile(text)
    except (regex.error, RecursionError, OverflowError) as error:
        raise ValueError(str(error)) from None


def _found(pattern: regex.Pattern, text: str) -> list[tuple[int, int]]:
    limit = SECONDS + SECONDS_A_CHARACTER * len(text)
    end, spans = time.monotonic() + limit, []
    try:
        for match in pattern.finditer(text, timeout=limit):  # the limit is of one match
            spans.append(match.span())
            if time.monotonic() > end:
                raise TimeoutError
    except TimeoutError:
        raise InputError(
            f"data.files.document_end={pattern.pattern!r} was stopped after {limit:.0f} s: it tries the same "
            "text in ever new ways; write it without repeats inside repeats, such as (a+)+"
        ) from None
    return spans
