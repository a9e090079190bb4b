"""Forms of the JSON files that reports read.

A file of another form ends the report with one sentence, which names the place in the file.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from rlhf_jax.runtime.errors import InputError

Form = Any  # a Value, an Object, a Maybe, or [form] for a list whose items all have that form


@dataclasses.dataclass(frozen=True)
class Value:
    """The form of the values for which `fits` is true; `says` describes them."""

    says: str
    fits: Callable[[Any], bool]


ANYTHING = Value("anything", lambda value: True)


@dataclasses.dataclass(frozen=True)
class Object:
    """The form of an object.

    Attributes:
      needed: names that the object has, with the forms of their values.
      optional: names that the object may have, with the forms of their values.
      others: the form of the value of any other name.
    """

    needed: Mapping[str, Form] = dataclasses.field(default_factory=dict)
    optional: Mapping[str, Form] = dataclasses.field(default_factory=dict)
    others: Form = ANYTHING

    def of(self, name: str) -> Form:
        """Returns the form of the value of a name."""
        return self.needed.get(name) or self.optional.get(name) or self.others


@dataclasses.dataclass(frozen=True)
class Maybe:
    """The form of a value that is null or has the form `form`."""

    form: Form


def each(form: Form) -> Object:
    """Returns the form of an object in which every value has the form `form`."""
    return Object(others=form)


def one_of(*choices: str) -> Value:
    """Returns the form of a text that is one of `choices`."""
    return Value(" or ".join(f"'{choice}'" for choice in choices), lambda value: value in choices)


def is_number(value) -> bool:
    """Whether a value is a number; true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_file_name(value) -> bool:
    """Whether a value is the name of a file or a folder, and no path to one elsewhere."""
    try:
        return (
            isinstance(value, str)
            and value not in ("", ".", "..")
            and not {"/", "\0"} & {*value}
            and len(os.fsencode(value)) < 256
        )
    except UnicodeEncodeError:
        return False


NUMBER = Value("a number", is_number)
WHOLE = Value("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool))
SHARE = Value("a number from 0 to 1", lambda value: is_number(value) and 0 <= value <= 1)
PAIR = Value("two numbers", lambda value: isinstance(value, list) and len(value) == 2 and all(map(is_number, value)))
TEXT = Value("a string", lambda value: isinstance(value, str))
FILE_NAME = Value("the name of a folder", is_file_name)


def check(where, value, form: Form):
    """Returns a value that was read from a file, if it has a form.

    Args:
      where: name of the file, or of its line.
      value: the value.
      form: the form that it must have.

    Raises:
      InputError: the value has another form.
    """
    if wrong := _wrong(value, form, ""):
        raise InputError(f"{where} is damaged: {wrong}; put it back as it was written")
    return value


def check_lines(path, rows: list[dict], form: Form) -> list[dict]:
    """Returns the rows of a file of JSON lines, if each has a form; raises InputError with the line otherwise."""
    for number, row in enumerate(rows, start=1):
        check(f"{path}, line {number},", row, form)
    return rows


def _wrong(value, form: Form, at: str) -> str | None:
    """Returns what is wrong in a value that stands at the path `at`, or None if nothing is."""
    if isinstance(form, Maybe):
        return None if value is None else _wrong(value, form.form, at)
    if isinstance(form, list):
        if not isinstance(value, list):
            return _is_no(value, at, "a list")
        inside = ((f"{at}[{number}]", inner, form[0]) for number, inner in enumerate(value))
    elif isinstance(form, Object):
        if not isinstance(value, dict):
            return _is_no(value, at, "an object")
        path = f"{at}." if at else ""
        if missing := [name for name in form.needed if name not in value]:
            return f"it has no '{path}{missing[0]}'"
        inside = ((f"{path}{name}", inner, form.of(name)) for name, inner in value.items())
    else:
        return None if form.fits(value) else _is_no(value, at, form.says)
    return next(filter(None, (_wrong(inner, part, place) for place, inner, part in inside)), None)


def _is_no(value, at: str, wanted: str) -> str:
    """Returns the words that the value at the path `at` is not what was wanted there."""
    what = f"its '{at}'" if at else "it"
    return f"{what} is {json.dumps(value, ensure_ascii=False)[:40]} and not {wanted}"
