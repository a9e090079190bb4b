"""Fields of specs: of the right kind, or one sentence."""

from rlhf_jax.runtime.errors import InputError


def one_of(item, name, choices):
    value = getattr(item, name)
    if value not in choices:
        raise InputError(f"{type(item).__name__}: {name}='{value}' is none of {listed(choices)}")


def tuple_of(item, name, kinds):
    value = getattr(item, name)
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    if not isinstance(value, (tuple, list)) or not all(isinstance(part, kinds) for part in value):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise InputError(f"{type(item).__name__}: {name} must be a tuple of {names}, not {value!r}")
    object.__setattr__(item, name, tuple(value))


def of_kind(item, name, kinds):
    value = getattr(item, name)
    if not isinstance(value, kinds):
        names = " or ".join(kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
        raise InputError(f"{type(item).__name__}: {name} must be {names}, not {value!r}")


def listed(values) -> str:
    """Values of a sentence."""
    return ", ".join(str(value) for value in values) or "none"
