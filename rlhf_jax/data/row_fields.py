"""The fields of a row, read and checked; an InputError names the field and says what would be right."""

import json
import re
from typing import Any

from rlhf_jax.data.rows import Row, check_characters, type_name
from rlhf_jax.runtime.errors import InputError

MOST_SCORE = 1e9  # float32 keeps seven digits, and squares of larger ones do not fit into sums

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,2})?", re.ASCII)


def one_of(row: Row, *names: str) -> str:
    """Returns the one field of `names` that the row has; null counts as absent."""
    present = [name for name in names if row.get(name) is not None] or [name for name in names if name in row]
    if len(present) == 1:
        return present[0]
    if present:
        raise InputError(f"fields {' and '.join(map(repr, present))} belong to different formats; keep one")
    raise InputError(f"needs one of the fields {', '.join(names)}; {what_it_has(row)}")


def field_of(row: Row, name: str) -> Any:
    """Returns the value of a field; raises InputError if it is missing."""
    if name not in row:
        raise InputError(f"field {name!r} is missing; {what_it_has(row)}")
    return row[name]


def text_of(row: Row, name: str) -> str:
    """Returns the text of a field; raises InputError if it is missing, blank or no string."""
    return not_blank(field_of(row, name), name)


def not_blank(value: Any, name: str) -> str:
    """Returns the text of a field; raises InputError if it is blank or no string."""
    if not string_of(value, name).strip():
        raise InputError(f"field {name!r} is empty; give its text or leave the row out")
    return value


def string_of(value: Any, name: str) -> str:
    """Returns the text of a field; raises InputError if it is no string, or holds half a character."""
    if type(value) is not str:  # Binary is no text
        raise InputError(f"field {name!r} is {type_name(value)}; it must be a string")
    check_characters(value, name)
    return value


def score_of(value: Any, name: str) -> float:
    """Returns the number of a field, also if it is written as a text; raises InputError if it is none."""
    if type(value) is str and len(value) < 50 and _NUMBER.fullmatch(value.strip()):  # CSV knows no numbers
        value = float(value)
    if type(value) not in (int, float) or not abs(value) <= MOST_SCORE:
        raise InputError(
            f"field {name!r} is {shown(value)}; it must be a number from -{MOST_SCORE:.0f} to {MOST_SCORE:.0f}"
        )
    return float(value)


def whole(value: Any) -> int | None:
    """Returns the whole number that a value is, also as 1.0; None if it is none."""
    whole = type(value) is int or type(value) is float and value.is_integer()
    return int(value) if whole else None


def list_of(row: Row, name: str, length: int | None = None) -> list:
    """Returns the list of a field; raises InputError if it is missing, no list, or not of the given length."""
    value = field_of(row, name)
    if not isinstance(value, list):
        raise InputError(f"field {name!r} is {type_name(value)}; it must be a list")
    if length is not None and len(value) != length:
        raise InputError(f"field {name!r} has {len(value)} entries for {length} completions; it needs one for each")
    return value


def optional_list(row: Row, name: str, length: int, entry: type, entries: str) -> tuple | None:
    """Returns the list of a field as a tuple; None if the row lacks it. `entries` names the type of its entries."""
    if row.get(name) is None:
        return None
    value = list_of(row, name, length)
    if any(type(item) is not entry for item in value):
        raise InputError(f"field {name!r} is {shown(value)}; it must be a list of {entries}")
    return tuple(value)


def label_of(row: Row, name: str) -> str | None:
    """Returns the name of a field, a text or a whole number, as text; None if the row lacks it."""
    value = row.get(name)
    if (number := whole(value)) is not None:
        return str(number)
    if value is not None and type(value) is not str:
        what = shown(value) if type(value) is float else type_name(value)
        raise InputError(f"field {name!r} is {what}; it must be a string or a whole number")
    return None if value is None else not_blank(value, name)


def what_it_has(row: Row) -> str:
    """Returns the end of an error message: the names of the fields that the row has."""
    if not row:
        return "the row has no fields"
    names = ", ".join(map(repr, row))
    return f"the row has {_shortened(names)}; in a config, FILE:THEIRS=OURS renames a field"


def shown(value: Any) -> str:
    """Returns a value as it stands in an error message, shortened."""
    return _shortened(json.dumps(value, default=str))


def _shortened(text: str) -> str:
    return text if len(text) <= 100 else text[:97] + "..."
