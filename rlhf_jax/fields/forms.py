"""The texts of a config that have a form of their own, read: each function raises ValueError for another form."""

import datetime
import math
import re
from typing import NamedTuple


def date(text: str) -> datetime.datetime:
    """A day as "2024-07-26", with a time or without."""
    return datetime.datetime.fromisoformat(text)


def expression(text: str):
    """A regular expression that has to find something: one that matches nothing at all would stand everywhere."""
    from rlhf_jax.data import documents  # here, because commands that read no text do without it

    pattern = documents.expression(text)
    if pattern.fullmatch(""):
        raise ValueError("it matches the empty text")
    return pattern


def model_at(text: str) -> tuple[str, float]:
    """A stage and the temperature it is sampled at, 1 where none is given: "sft@0.7"."""
    stage, at, temperature = text.partition("@")
    number = float(temperature) if at else 1.0
    if not stage or not 0 <= number < math.inf:
        raise ValueError(text)
    return stage, number


def part(text: str, total: int = 1) -> tuple[int, int]:
    """Where a part of `total` begins and ends: ":1000", ":50%", "50%:", "100:200", or ":" for all of it."""
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
    """Two scores, the lower first: "2<9"."""
    number = r"(-?\d+(?:\.\d+)?)"
    found = re.fullmatch(rf"{number}<{number}", text)
    low, high = map(float, found.groups()) if found else (0, 0)
    if not low < high < math.inf:
        raise ValueError(text)
    return low, high


def share_or_names(text: str) -> float | set[str]:
    """A share, as "20%", above 0 and below 1; or names, separated by commas."""
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
    """Axes of the mesh, separated by commas, each once."""
    axes = tuple(text.split(","))
    if set(axes) - {"data", "fsdp", "tensor"} or len(set(axes)) < len(axes):
        raise ValueError(text)
    return axes


class Entry(NamedTuple):
    """What a name in `data.files` asks for."""

    name: str
    count: int | None  # rows to take, None: all
    splits: list[str]  # of a folder, none: all
    fields: dict[str, str]  # theirs -> ours
    weight: float | None = None  # among the entries of its kind; None: every row counts alike


_ENTRY = re.compile(
    r"(?P<name>[^@:*]+)(?:@(?P<count>\d+))?(?:\*(?P<weight>\d*\.?\d+))?"
    r"(?::(?P<splits>[^=:;]+))?(?::(?P<fields>.*=.*))?"
)


def entry(text: str) -> Entry:
    """A name in `data.files`: name[@rows][*weight][:split][:theirs=ours;theirs=ours]."""
    found = _ENTRY.fullmatch(text)
    if not found:
        raise ValueError(text)
    count, weight = found["count"] and int(found["count"]), found["weight"] and float(found["weight"])
    pairs = [pair.split("=") for pair in (found["fields"] or "").split(";") if pair]
    splits = found["splits"].split("+") if found["splits"] else []
    if count == 0 or weight == 0 or not all(splits) or any(len(pair) != 2 or not all(pair) for pair in pairs):
        raise ValueError(text)
    return Entry(found["name"], count, splits, dict(pairs), weight)


def entries(text: str) -> list[Entry]:
    """Names in `data.files`, separated by commas."""
    return [entry(one.strip()) for one in text.split(",") if one.strip()]


def entries_without_weight(text: str) -> list[Entry]:
    """The same where no weight has a meaning."""
    found = entries(text)
    if any(one.weight is not None for one in found):
        raise ValueError(text)
    return found
