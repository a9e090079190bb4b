"""A field of the configuration, and sections of fields."""

import dataclasses
import math
from typing import Any

from ml_collections import ConfigDict, config_dict

from rlhf_jax.fields.ranges import Number, OneOf, Range


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of the configuration.

    Attributes:
      default: the default value; None if the field also allows None.
      allowed: the range of its values.
      meaning: one or two sentences for a reader who knows the field of research: what the field does, its unit, what
        0, None or an empty text means, and the source of the default. "App. C", "C.4" and "section 3.5" without
        another paper's name refer to Ouyang et al. 2022.
      by_size: (parameters of a model, value) of published runs, by growing size. The field then also allows None, which
        a start replaces by the value for the size of the run's model; see settled.py.
      of_data: whether the field also allows None, which a start replaces by a value that is measured on the data.
      before: of a field that came later than others, the value under which stages are what they were before it: with it, the
        field is no part of their identity, and sweeps find the stages of before (sweep/store.py). None: there is no such value.
    """

    default: Any
    allowed: Range
    meaning: str
    by_size: tuple[tuple[float, float], ...] = ()
    of_data: bool = False
    before: Any = None

    @property
    def open(self) -> bool:
        """Whether the field allows None."""
        return self.default is None or bool(self.by_size) or self.of_data

    @property
    def says(self) -> str:
        """The allowed values in words."""
        return self.allowed.says + (", or None" if self.open else "")

    def holds(self, value: Any) -> bool:
        """Whether the field allows a value."""
        return (value is None and self.open) or self.allowed.holds(value)

    def refusal(self, value: Any) -> str:
        """Returns the end of an error message about a value that the field does not allow; it follows the value."""
        said = f"must be {self.says}"
        if isinstance(self.allowed, Number) and isinstance(value, (int, float)) and -math.inf < value < math.inf:
            said += "" if self.allowed.fits(value) else ", and fit into 32 bits"
        return said

    def build(self) -> Any:
        """Returns the default; for None, a placeholder that fixes the type of a later value."""
        return config_dict.placeholder(self.allowed.type) if self.default is None else self.default


@dataclasses.dataclass(frozen=True)
class Section:
    """Fields and sections by name, in the order in which they are shown.

    Attributes:
      about: description of the section, a sentence or two.
      parts: the fields and sections.
      partial: whether the section holds only those fields that differ from another section's; by default it is empty.
    """

    about: str
    parts: "dict[str, Field | Section]"
    partial: bool = False

    def but(self, about: str = "", **changes) -> "Section":
        """Returns a copy with changes.

        Args:
          about: the new description; "" keeps the old one.
          changes: a Field or Section is added under its name; any other value becomes the default of the field of that
            name.
        """
        parts = dict(self.parts)
        for name, change in changes.items():
            new = isinstance(change, (Field, Section))
            parts[name] = change if new else dataclasses.replace(parts[name], default=change)
        return Section(about or self.about, parts)

    def build(self) -> ConfigDict:
        """Returns a new ConfigDict with all defaults."""
        return ConfigDict({} if self.partial else {name: part.build() for name, part in self.parts.items()})

    def fields(self, prefix: str = "") -> "dict[str, Field]":
        """Returns all fields of the section and of its sections, by dotted name."""
        found: dict[str, Field] = {}
        for name, part in self.parts.items():
            found |= part.fields(f"{prefix}{name}.") if isinstance(part, Section) else {prefix + name: part}
        return found

    def told(self, section: ConfigDict) -> dict:
        """Returns the values of a section's fields without those that are as they were `before` their field was there."""
        found = section.to_dict()
        for name, part in self.parts.items():
            if isinstance(part, Section) and isinstance(section.get(name), ConfigDict):
                found[name] = part.told(section[name])
            elif isinstance(part, Field) and part.before is not None and found.get(name) == part.before:
                del found[name]
        return found


def kind(name: str) -> Field:
    """Returns the field of a stage's section that names its kind of stage."""
    return Field(name, OneOf(name), "The kind of the stage. A section of any name that has this kind is a stage.")
