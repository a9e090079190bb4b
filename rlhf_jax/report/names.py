"""What the fields, values and settings of a sweep are called in reports."""

import re

from rlhf_jax.report.form import is_number


def shown(value) -> str:
    """Returns the value of a field as text for a name or a table."""
    if is_number(value):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return "+".join(map(shown, value))
    return re.sub(r"^:(\d+)$", r"first \1", str(value))  # a slice, as `subset` has it


def setting_name(fields: dict, names: dict[str, str]) -> str:
    """Returns the name of a setting with these fields."""
    return ", ".join(f"{names[name]}={shown(value)}" for name, value in fields.items()) or "the config"


def short_names(arms) -> dict[str, str]:
    """Returns the short name of each field: its last part, or as many as distinguish it from the other fields."""
    names = list(dict.fromkeys(name for arm in arms for name in arm["overrides"]))
    short = {}
    for name in names:
        parts = name.split(".")
        tails = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        short[name] = next(
            tail for tail in tails if not any(other != name and f".{other}".endswith(f".{tail}") for other in names)
        )
    return short
