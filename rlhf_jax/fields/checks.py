"""Values of a config against the table: what a field cannot be is said before anything is computed."""

import dataclasses
import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from rlhf_jax.fields.field import Field, Section
from rlhf_jax.fields.run import RUN
from rlhf_jax.fields.stages import KINDS
from rlhf_jax.runtime.errors import InputError

_SHOWN = 5
_SECTION = (ConfigDict, Mapping)


def check(config: ConfigDict | Mapping, exact: bool = True) -> None:
    """Checks every field of a run's config; computes nothing and reads no file.

    Args:
      exact: a field that the table does not know, or one that is missing, is an error too. A finished run's may be of
        another version.

    Raises:
      InputError: one sentence, with the first few fields that are wrong: the field, its value, and what it can be.
    """
    if "stages" not in config:
        raise InputError(
            "this is no config of a run, as it has no `stages`: start from rlhf_jax.config.default_config()"
        )
    found = list(_of_section("", config, RUN, exact))
    if not found:
        found = list(_of_stages(config, exact)) or list(_together(config))
    _raise(found)


def check_kind(name: str, section: ConfigDict, kind: str) -> None:
    """Checks a section that stands alone, as a stage of a kind.

    Raises:
      InputError: as `check` does.
    """
    _raise(list(_of_section(f"{name}.", section, KINDS[kind], exact=True)))


def check_values(prefix: str, values: Mapping, table: Section, exact: bool = True) -> None:
    """Checks some or all fields of a section that stand alone.

    Args:
      prefix: before every name, with its dot.
      exact: a field that the table does not know is an error too.

    Raises:
      InputError: as `check` does.
    """
    _raise(list(_of_section(prefix, values, dataclasses.replace(table, partial=True), exact)))


def nearest(name: str, known: Iterable[str], before: str = "") -> str:
    """What may have been meant by an unknown name, for the end of a sentence; empty where nothing is near.

    Args:
      before: what stands before a name.
    """
    close = difflib.get_close_matches(name, list(known), 1, 0.7)
    return f"; did you mean {before}{close[0]}?" if close else ""


def field_of(config: ConfigDict, name: str) -> Field | None:
    """What the table says of a dotted name; None where it does not know it."""
    found = _part_of(config, name)
    return found if isinstance(found, Field) else None


def partial_section_of(config: ConfigDict, name: str) -> Section | None:
    """The section of a dotted name if it holds only the fields that differ from another section's, else None."""
    found = _part_of(config, name)
    return found if isinstance(found, Section) and found.partial else None


def _part_of(config: ConfigDict, name: str) -> Field | Section | None:
    first, *rest = name.split(".")
    found = RUN.parts.get(first) or KINDS.get(
        config[first].get("kind") if isinstance(config.get(first), _SECTION) else None
    )
    for part in rest:
        found = found.parts.get(part) if isinstance(found, Section) else None
    return found


def _raise(found: list[str]) -> None:
    if found:
        raise InputError("; ".join(found[:_SHOWN]) + f"; and {len(found) - _SHOWN} more" * (len(found) > _SHOWN))


def _of_section(prefix: str, config: Any, table: Section, exact: bool) -> Iterator[str]:
    """What is wrong with a section, by the fields that the table has."""
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
        own = prefix == "" and isinstance(value, _SECTION)  # a stage, or a section that an experiment alone reads
        if name not in table.parts and not own:
            yield f"{prefix}{name} is no field" + nearest(name, table.parts, prefix)


def _of_stages(config: ConfigDict, exact: bool) -> Iterator[str]:
    """The same of the stages that the table does not name, by their kind; and whether there is each that is to run."""
    for name, section in config.items():
        if name not in RUN.parts and isinstance(section, _SECTION) and section.get("kind") in KINDS:
            yield from _of_section(f"{name}.", section, KINDS[section["kind"]], exact)
    for name in config["stages"]:
        section = config.get(name)
        if not isinstance(section, _SECTION) or section.get("kind") not in KINDS:
            stages = [other for other, value in config.items() if isinstance(value, _SECTION) and "kind" in value]
            hint = nearest(name, stages)
            yield f"config.stages names '{name}', but config.{name}.kind is none of {', '.join(KINDS)}{hint}"


def _together(config: ConfigDict) -> Iterator[str]:
    """What single values do not say, and no file is needed to know."""
    valid, test = (config["data"]["files"][name] for name in ("valid_share", "test_share"))
    if valid + test >= 1:
        yield f"data.files.valid_share={valid} and test_share={test} must be below 1 together: the rest is for training"
    for name in config["stages"]:
        section = config[name]
        for warmup, total in (("warmup_steps", "steps"), ("warmup_iterations", "iterations")):
            if warmup in section and total in section and section[warmup] > section[total]:
                yield (
                    f"{name}.{warmup}={section[warmup]} must be at most {name}.{total}={section[total]}: the learning rate "
                    "would never reach its peak"
                )
        if section["kind"] == "ppo" and section["kl_target"] is not None:
            # An iteration multiplies the coefficient by at least 1 - 0.2 x batch_size / kl_horizon (Ziegler et al. 2019).
            if section["kl_horizon"] <= 0.2 * section["batch_size"]:
                yield (
                    f"{name}.kl_horizon={section['kl_horizon']} must be above a fifth of {name}.batch_size="
                    f"{section['batch_size']}: with {name}.kl_target the KL coefficient would become 0 or negative"
                )
            if section["kl_coef"] == 0:
                yield (
                    f"{name}.kl_target={section['kl_target']} multiplies {name}.kl_coef, and {name}.kl_coef=0 stays 0: give "
                    f"{name}.kl_coef above 0, or {name}.kl_target=None"
                )
        if section["kind"] == "ppo" and section["ptx_coef"] and section["ptx_ratio"]:
            sequences = section["ptx_ratio"] * section["minibatch_size"]
            if sequences % section["ppo_epochs"]:
                yield (
                    f"{name}.ptx_ratio x {name}.minibatch_size = {sequences} pretraining sequences do not divide over "
                    f"{name}.ppo_epochs={section['ppo_epochs']}: every epoch has its part of them"
                )
