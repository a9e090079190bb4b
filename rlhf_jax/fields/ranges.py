"""The ranges of values that fields allow: numbers, names, texts of some form, tuples.

A range has three members: `says`, the allowed values in words (as in "must be a whole number from 1"); `type`, the type
of a field that may also be None; and `holds`, whether it allows a value.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

# Limits of numbers, because programs count and compute in 32 bits.
LARGEST = 2**31 - 1  # the largest whole number
_FLOAT32 = 1.2e-38, 3.4e38  # the smallest and the largest float32 magnitude with full precision, other than 0


class Range(Protocol):
    """What every range has."""

    @property
    def type(self) -> type: ...

    @property
    def says(self) -> str: ...

    def holds(self, value: Any) -> bool: ...


@dataclasses.dataclass(frozen=True)
class Number:
    """A finite number.

    Attributes:
      low, high: inclusive lower and upper bound.
      above, below: exclusive lower and upper bound.
      also: a value outside the bounds that is allowed because it has a meaning of its own.
      type: int for a whole number.
    """

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    also: int | None = None
    type: type = float

    @property
    def says(self) -> str:
        noun = "a whole number" if self.type is int else "a number"
        high = None if self.type is int and self.high == LARGEST else self.high
        limits = {"from": self.low, "above": self.above, "at most": high, "below": self.below}
        bounds = " and ".join(f"{word} {bound:.12g}" for word, bound in limits.items() if bound is not None)
        if self.low is not None:
            bounds = bounds.replace(" and at most", " to")
        other = f", or {self.also}" if self.also is not None else ""
        return f"{noun} {bounds}{other}" if bounds else "a finite number"

    def holds(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if self.type is int else (int, float)):
            return False
        if self.also is not None and value == self.also:
            return True
        return (
            self.fits(value)
            and (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def fits(self, value: Any) -> bool:
        """Whether 32 bits can hold a number; False for one that is not finite."""
        if self.type is int:
            return abs(value) <= max(LARGEST, self.high or 0)
        return value == 0 or _FLOAT32[0] <= abs(value) <= _FLOAT32[1]


def whole(low: int, high: int = LARGEST, also: int | None = None) -> Number:
    """Returns the range of whole numbers from `low` to `high`, and `also`."""
    return Number(low, high, also=also, type=int)


@dataclasses.dataclass(frozen=True)
class Flag:
    """True or False."""

    type = bool
    says = "True or False"

    def holds(self, value: Any) -> bool:
        return isinstance(value, bool)


@dataclasses.dataclass(frozen=True)
class OneOf:
    """One of several names."""

    names: tuple[str, ...]
    type = str

    def __init__(self, *names: str):
        object.__setattr__(self, "names", names)

    @property
    def says(self) -> str:
        *others, last = map(repr, self.names)
        return f"{', '.join(others)} or {last}" if others else last

    def holds(self, value: Any) -> bool:
        return isinstance(value, str) and value in self.names


@dataclasses.dataclass(frozen=True)
class Text:
    """A text.

    Attributes:
      says: the allowed form in words.
      read: parser that raises ValueError for a text of another form; None allows every text.
      empty: whether the text may be empty; an empty text is not parsed.
    """

    says: str = "a text"
    read: Callable[[str], Any] | None = None
    empty: bool = True
    type = str

    def holds(self, value: Any) -> bool:
        if not isinstance(value, str):
            return False
        if not value:
            return self.empty
        if self.read:
            try:
                self.read(value)
            except ValueError:
                return False
        return True


@dataclasses.dataclass(frozen=True)
class Several:
    """A tuple, or a list, which is what JSON gives for one.

    Attributes:
      each: range of its parts.
      says: the allowed values in words.
      least: smallest number of parts.
      lengths: allowed numbers of parts; () allows any number.
      distinct: whether no part may occur twice.
    """

    each: Range
    says: str
    least: int = 0
    lengths: tuple[int, ...] = ()
    distinct: bool = False
    type = tuple

    def holds(self, value: Any) -> bool:
        return (
            isinstance(value, (tuple, list))
            and len(value) >= self.least
            and (not self.lengths or len(value) in self.lengths)
            and all(map(self.each.holds, value))
            and not (self.distinct and len(set(value)) < len(value))
        )


COUNT, COUNT_OR_NONE = whole(1), whole(0)
SEED = whole(0, 2**32 - 1)
POSITIVE, NOT_NEGATIVE, FINITE = Number(above=0), Number(low=0), Number()
SHARE, SHARE_BELOW_ONE = Number(low=0, high=1), Number(low=0, below=1)
FLAG, TEXT, SOME_TEXT = Flag(), Text(), Text("a text, not empty", empty=False)
