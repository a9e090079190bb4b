"""Checks of a config against the table of fields: a wrong value is refused before anything is computed."""

import dataclasses
import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from rlhf_jax.fields.field import Field, Section
from rlhf_jax.fields.registry import KINDS
from rlhf_jax.fields.run import COMMON
from rlhf_jax.runtime.errors import InputError

_SHOWN = 5  # number of errors in one message
_SECTION = (ConfigDict, Mapping)


def check(config: ConfigDict | Mapping, exact: bool = True) -> None:
    """Checks every field of a run's config; computes nothing and reads no file.

    Args:
      config: the config.
      exact: whether an unknown or a missing field is an error. It is not in a finished run, which another version of
        the code may have written.

    Raises:
      InputError: a sentence with the first few wrong fields: each field, its value, and its allowed values.
    """
    if "stages" not in config:
        raise InputError(
            "this is no config of a run, as it has no `stages`: start from rlhf_jax.config.default_config()"
        )
    found = [*_of_section("", config, COMMON, exact), *_of_sections(config, exact)]
    _raise(found or list(_of_names(config)) or list(_together(config)))


def check_kind(name: str, section: ConfigDict, kind: str) -> None:
    """Checks a single section as a stage of a kind.

    Raises:
      InputError: as `check` does.
    """
    _raise(list(_of_section(f"{name}.", section, KINDS[kind].fields, exact=True)))


def check_values(prefix: str, values: Mapping, table: Section, exact: bool = True) -> None:
    """Checks some or all fields of a single section.

    Args:
      prefix: text before every name in messages, with its dot.
      values: the values to check, by name.
      table: the fields of the section.
      exact: whether an unknown field is an error.

    Raises:
      InputError: as `check` does.
    """
    _raise(list(_of_section(prefix, values, dataclasses.replace(table, partial=True), exact)))


def nearest(name: str, known: Iterable[str], before: str = "") -> str:
    """Returns the suggestion of a known name for the end of an error message; "" if no known name is similar.

    Args:
      name: the unknown name.
      known: the known names.
      before: text before the suggested name.
    """
    close = difflib.get_close_matches(name, list(known), 1, 0.7)
    return f"; did you mean {before}{close[0]}?" if close else ""


def field_of(config: ConfigDict, name: str) -> Field | None:
    """Returns the field of a dotted name, or None if the table does not have it."""
    found = _part_of(config, name)
    return found if isinstance(found, Field) else None


def partial_section_of(config: ConfigDict, name: str) -> Section | None:
    """Returns the section of a dotted name if it is partial (see Section), else None."""
    found = _part_of(config, name)
    return found if isinstance(found, Section) and found.partial else None


def _part_of(config: ConfigDict, name: str) -> Field | Section | None:
    """Returns the field or section of a dotted name, or None if the table does not have it."""
    first, *rest = name.split(".")
    found = COMMON.parts.get(first) or _fields_of(config.get(first))
    for part in rest:
        found = found.parts.get(part) if isinstance(found, Section) else None
    return found


def _fields_of(section: Any) -> Section | None:
    """Returns the table of a stage's section; None for any other value."""
    kind = section.get("kind") if isinstance(section, _SECTION) else None
    return KINDS[kind].fields if kind in KINDS else None


def _raise(found: list[str]) -> None:
    """Raises InputError with the first few of the sentences found, if there are any."""
    if found:
        raise InputError("; ".join(found[:_SHOWN]) + f"; and {len(found) - _SHOWN} more" * (len(found) > _SHOWN))


def _of_section(prefix: str, config: Any, table: Section, exact: bool) -> Iterator[str]:
    """Yields what is wrong with a section, by the table of its fields."""
    if not isinstance(config, _SECTION):
        yield f"{prefix.rstrip('.') or 'the config'}={config!r} must be a section with the fields {', '.join(table.parts)}"
        return
    for name, part in table.parts.items():
        if name not in config:
            if exact and not table.partial:
                yield f"{prefix}{name} is missing"
        elif isinstance(part, Section):
            yield from _of_section(f"{prefix}{name}.", config[name], part, exact)
        elif not (part.holds(config[name]) or (table.partial and config[name] is None)):
            yield f"{prefix}{name}={config[name]!r} {part.refusal(config[name])}"
    for name, value in config.items() if exact else ():
        own = prefix == "" and isinstance(value, _SECTION)  # a stage, or an experiment's own section, at the top level
        if name not in table.parts and not own:
            yield f"{prefix}{name} is no field" + nearest(name, table.parts, prefix)


def _of_sections(config: ConfigDict, exact: bool) -> Iterator[str]:
    """Yields what is wrong with the stages, by their kinds."""
    for name, section in config.items():
        is_section = isinstance(section, _SECTION)
        if name in COMMON.parts or is_section and "kind" not in section:
            continue  # a section without a kind is an experiment's own, and not checked
        if table := _fields_of(section) or (not is_section and name in KINDS and KINDS[name].fields):
            yield from _of_section(f"{name}.", section, table, exact)
        elif is_section:
            yield f"{name}.kind={section['kind']!r} must be one of {', '.join(KINDS)}"


def _of_names(config: ConfigDict) -> Iterator[str]:
    """Yields what is wrong with the names of the stages to run."""
    for name in config["stages"]:
        if not _fields_of(config.get(name)):
            stages = [other for other, value in config.items() if isinstance(value, _SECTION) and "kind" in value]
            yield (
                f"config.stages names '{name}', but config.{name}.kind is none of {', '.join(KINDS)}{nearest(name, stages)}"
            )


def _together(config: ConfigDict) -> Iterator[str]:
    """Yields what is wrong with combinations of values that are allowed one by one, as far as no file is needed."""
    valid, test = (config["data"]["files"][name] for name in ("valid_share", "test_share"))
    if valid + test >= 1:
        yield f"data.files.valid_share={valid} and test_share={test} must be below 1 together: the rest is for training"
    for name in config["stages"]:
        section = config[name]
        for warmup, total in (("warmup_steps", "steps"), ("warmup_iterations", "iterations")):
            if warmup in section and total in section and section[warmup] > section[total]:
                yield (
                    f"{name}.{warmup}={section[warmup]} must be at most {name}.{total}={section[total]}: the learning "
                    "rate would never reach its peak"
                )
        yield from KINDS[section["kind"]].inconsistent(name, section)
