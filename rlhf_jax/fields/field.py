"""A row of the table of fields, and the sections that rows come in."""

import dataclasses
import math
from typing import Any

from ml_collections import ConfigDict, config_dict

from rlhf_jax.fields.ranges import Number, OneOf, Range


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of a config.

    Attributes:
      default: None where it may be left out; it then takes what `allowed` says, or None.
      allowed: what it can be.
      meaning: for a reader who knows the field of research: its unit, what 0 or an empty text means, and where the
        default is from. "App. C", "C.4" and "section 3.5" without another paper's name are those of Ouyang et al. 2022.
    """

    default: Any
    allowed: Range
    meaning: str

    @property
    def says(self) -> str:
        return self.allowed.says + (", or None" if self.default is None else "")

    def holds(self, value: Any) -> bool:
        return (value is None and self.default is None) or self.allowed.holds(value)

    def refusal(self, value: Any) -> str:
        """What is wrong with a value that the field cannot have, to stand after it."""
        number = (
            isinstance(self.allowed, Number)
            and isinstance(value, (int, float))
            and abs(value) != math.inf
            and value == value
        )
        return f"must be {self.says}" + (", and fit into 32 bits" if number and not self.allowed.fits(value) else "")

    def build(self) -> Any:
        return config_dict.placeholder(self.allowed.type) if self.default is None else self.default


@dataclasses.dataclass(frozen=True)
class Section:
    """Fields and sections by their names, in the order in which they are shown.

    Attributes:
      about: what they are of, a sentence or two.
      partial: it holds those of its fields that differ from another section's, none by default.
    """

    about: str
    parts: "dict[str, Field | Section]"
    partial: bool = False

    def but(self, about: str = "", **changes) -> "Section":
        """With other defaults for the fields that are given as values, and the Fields and Sections that are given added."""
        parts = dict(self.parts)
        for name, change in changes.items():
            new = isinstance(change, (Field, Section))
            parts[name] = change if new else dataclasses.replace(parts[name], default=change)
        return Section(about or self.about, parts)

    def build(self) -> ConfigDict:
        """With all defaults, made anew."""
        return ConfigDict({} if self.partial else {name: part.build() for name, part in self.parts.items()})

    def fields(self, prefix: str = "") -> "dict[str, Field]":
        """All fields below, by dotted name."""
        found = {}
        for name, part in self.parts.items():
            found |= part.fields(f"{prefix}{name}.") if isinstance(part, Section) else {prefix + name: part}
        return found


def kind(name: str) -> Field:
    """The field of a stage that says which kind of stage it is."""
    return Field(name, OneOf(name), "of stage; a section of another name with the same fields is a further stage")
