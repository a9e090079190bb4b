"""Parsers of configuration texts that have a form of their own. Each raises ValueError for a text of another form."""

import datetime
import math
import re
from typing import NamedTuple

import regex


def date(text: str) -> datetime.datetime:
    """Parses a day such as "2024-07-26", with or without a time."""
    return datetime.datetime.fromisoformat(text)


# Nested repeats multiply: ((a{1000}){1000}){1000} compiles to a program of 10^9 steps, which fills the memory.
_MOST_REPEATS = 100_000


def expression(text: str) -> regex.Pattern:
    """Compiles a regular expression.

    An expression that matches the empty text is an error, because it would be found in every text.
    """
    counts = [int(count) for count in re.findall(r"\{(?:\d*,)?(\d{1,18})\}", text)]
    if math.prod(filter(None, counts)) > _MOST_REPEATS:
        raise ValueError(f"the numbers in its braces multiply to more than {_MOST_REPEATS:,}")
    try:
        pattern = regex.compile(text)
    except (regex.error, RecursionError, OverflowError) as error:
        raise ValueError(str(error)) from None
    if pattern.fullmatch(""):
        raise ValueError("it matches the empty text")
    return pattern


def model_at(text: str) -> tuple[str, float]:
    """Parses a stage and its sampling temperature, such as "sft@0.7"; the temperature is 1 if none is given."""
    stage, at, temperature = text.partition("@")
    number = float(temperature) if at else 1.0
    if not stage or not 0 <= number < math.inf:
        raise ValueError(text)
    return stage, number


def part(text: str, total: int = 1) -> tuple[int, int]:
    """Parses a part of `total` items into its first place and the place after its last.

    The forms are ":1000", ":50%", "50%:", "100:200", and ":" for all items.
    """
    number = r"(\d+%?|\d*\.\d+%)?"
    found = re.fullmatch(f"{number}:{number}", text)
    if not found:
        raise ValueError(text)
    ends = [end or default for end, default in zip(found.groups(), ("0%", "100%"))]
    shares = [float(end[:-1]) for end in ends if end.endswith("%")]
    alike = len({end.endswith("%") for end in found.groups() if end}) == 1 and all(found.groups())
    begin, end = (float(end.rstrip("%")) for end in ends)
    nothing = alike and begin >= end or end == 0 or ends[0].endswith("%") and begin == 100  # whatever the total
    if max(shares, default=0) > 100 or nothing:
        raise ValueError(text)
    first, last = (round(float(end[:-1]) / 100 * total) if end.endswith("%") else int(end) for end in ends)
    return first, last


def score_limits(text: str) -> tuple[float, float]:
    """Parses two scores, the lower one first, such as "2<9"."""
    number = r"(-?\d+(?:\.\d+)?)"
    found = re.fullmatch(rf"{number}<{number}", text)
    low, high = map(float, found.groups()) if found else (0, 0)
    if not low < high < math.inf:
        raise ValueError(text)
    return low, high


def share_or_names(text: str) -> float | set[str]:
    """Parses a share above 0 and below 1, such as "20%", or a set of names separated by commas."""
    if text.endswith("%"):
        share = float(text[:-1]) / 100
        if not 0 < share < 1:
            raise ValueError(text)
        return share
    names = {name.strip() for name in text.split(",") if name.strip()}
    if not names:
        raise ValueError(text)
    return names


def mesh_axes(text: str) -> tuple[str, ...]:
    """Parses axes of the mesh, separated by commas, each at most once."""
    axes = tuple(text.split(","))
    if set(axes) - {"data", "fsdp", "tensor"} or len(set(axes)) < len(axes):
        raise ValueError(text)
    return axes


class Entry(NamedTuple):
    """A parsed entry of `data.files`."""

    name: str
    count: int | None  # type: ignore[assignment]  # number of rows to take; None: all
    splits: list[str]  # splits of a folder to read; empty: all
    fields: dict[str, str]  # name of a column in the file -> our name for it
    weight: float | None = None  # relative to the entries of its kind; None: every row has the same weight


_ENTRY = re.compile(
    r"(?P<name>[^@:*]+)(?:@(?P<count>\d+))?(?:\*(?P<weight>\d*\.?\d+))?"
    r"(?::(?P<splits>[^=:;]+))?(?::(?P<fields>.*=.*))?"
)


def entry(text: str) -> Entry:
    """Parses an entry of `data.files`: name[@rows][*weight][:split+split][:theirs=ours;theirs=ours]."""
    found = _ENTRY.fullmatch(text)
    if not found:
        raise ValueError(text)
    count = int(found["count"]) if found["count"] else None
    weight = float(found["weight"]) if found["weight"] else None
    pairs = [pair.split("=") for pair in (found["fields"] or "").split(";") if pair]
    splits = found["splits"].split("+") if found["splits"] else []
    if count == 0 or weight == 0 or not all(splits) or any(len(pair) != 2 or not all(pair) for pair in pairs):
        raise ValueError(text)
    return Entry(found["name"], count, splits, dict(pairs), weight)


def entries(text: str) -> list[Entry]:
    """Parses entries of `data.files`, separated by commas."""
    return [entry(one.strip()) for one in text.split(",") if one.strip()]


def entries_without_weight(text: str) -> list[Entry]:
    """Parses entries as `entries` does, for kinds of rows whose entries cannot have a weight."""
    found = entries(text)
    if any(one.weight is not None for one in found):
        raise ValueError(text)
    return found
