"""Checks of the fields of specs; a wrong field is one sentence."""

import dataclasses
import types
import typing

from rlhf_jax.runtime.errors import InputError


def one_of(item, name, choices):
    """Raises InputError if the field `name` of a spec is none of `choices`."""
    value = getattr(item, name)
    if value not in choices:
        raise InputError(f"{type(item).__name__}: {name} must be one of {listed(choices)}, not {value!r}")


def tuple_of(item, name, kinds):
    """Makes the field `name` of a spec a tuple, and raises InputError if it holds anything but objects of `kinds`."""
    value = getattr(item, name)
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    if not isinstance(value, (tuple, list)) or not all(isinstance(part, kinds) for part in value):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise InputError(f"{type(item).__name__}: {name} must be a tuple of {names}, not {value!r}")
    object.__setattr__(item, name, tuple(value))


def of_kind(item, name, kinds):
    """Raises InputError if the field `name` of a spec is no object of one of `kinds`."""
    value = getattr(item, name)
    if not isinstance(value, kinds):
        names = " or ".join(kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
        raise InputError(f"{type(item).__name__}: {name} must be {names}, not {value!r}")


def of_types(item) -> None:
    """Raises InputError if a field of a dataclass has another type than the declared one."""
    hints = typing.get_type_hints(type(item))
    for name in (field.name for field in dataclasses.fields(item)):
        if not _fits(getattr(item, name), hints[name]):
            wanted = hints[name].__name__ if isinstance(hints[name], type) else hints[name]
            raise InputError(f"{type(item).__name__}: {name} must be {wanted}, not {getattr(item, name)!r}")


def _fits(value, hint) -> bool:
    """Whether a value has the type of a type hint; a whole number also passes as a float."""
    parts = typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if typing.get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(part, parts[0]) for part in value)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return hint is typing.Any or isinstance(value, hint)


def listed(values) -> str:
    """Returns values as words of a sentence: separated by commas, or "none"."""
    return ", ".join(str(value) for value in values) or "none"
