"""What a run has chosen for the fields of its config that leave open how programs compute; fitted.py chooses it.

Such fields are None or 'auto'. A run keeps its choice in program.json, by dotted field.
"""

import dataclasses
import pathlib
from collections.abc import Mapping

from ml_collections import ConfigDict

from rlhf_jax.fields import registry
from rlhf_jax.model import TransformerConfig
from rlhf_jax.runtime.files import read_if_there, write_json

FILE = "program.json"
_OPEN = None, "auto"
_OF_MODEL = "scan_layers", "remat"
_UNROLLED = 12  # layers of the deepest model that is unrolled on a CPU: deeper ones take too long to compile


def open_fields(config: ConfigDict) -> list[str]:
    """Returns the dotted names of the fields that leave to the memory how the programs of a config compute.

    They are `model.scan_layers` and `model.remat`, `slots`, the fields of each stage that split a batch into parts,
    `gather_once` of PPO, and `remat` of the models that stages have of their own.
    """
    names = ["model.scan_layers", "model.remat", "slots"]
    for stage in config.stages:
        kind, section = registry.of(config, stage), config[stage]
        fields = [*kind.parts(section)] if kind.programs else []
        fields += ["gather_once"] if "gather_once" in section else []
        fields += ["model.remat"] if section.get("model") else []
        names += [f"{stage}.{field}" for field in fields]
    return [name for name in names if _get(config, name) in _OPEN]


def _get(config: Mapping, name: str):
    """Returns the value of a dotted name; None if there is none."""
    for part in name.split("."):
        config = config.get(part) if config else None
    return config


def as_stored(config: ConfigDict, stored: dict | None) -> ConfigDict:
    """Returns a config that computes as the work directory's does, where that has a value and this leaves it open.

    Work directories of older versions have one, and so does a run whose value was given once.

    Args:
      config: the config.
      stored: the config that the work directory has already; None for a new one.
    """
    before = {name: _get(stored or {}, name) for name in open_fields(config)}
    values = {name: value for name, value in before.items() if value not in _OPEN}
    if values:
        config = config.copy_and_resolve_references()
        with config.unlocked():
            config.update_from_flattened_dict(values)
    return config


def kept(path: pathlib.Path, config: ConfigDict) -> dict:
    """Returns what a work directory has kept for the fields that a config leaves open."""
    found = read_if_there(path / FILE) or {}
    # Work directories of older versions have the names of the model's fields alone.
    found = {f"model.{name}" if name in _OF_MODEL else name: value for name, value in found.items()}
    return {name: found[name] for name in found if name in open_fields(config)}


def keep(path: pathlib.Path, values: Mapping) -> None:
    """Keeps values in a work directory, beside those that it has."""
    write_json(path / FILE, (read_if_there(path / FILE) or {}) | dict(values))


def closed(fields: Mapping) -> dict:
    """Returns the fields of a model without those that leave open how it is computed."""
    return {name: fields[name] for name in fields if name not in _OF_MODEL or fields[name] not in _OPEN}


def in_model(shape: TransformerConfig, values: Mapping, stage: str | None = None) -> TransformerConfig:
    """Returns the shape of the policy, or of a stage's own model, computed as the values of dotted fields say."""
    names = {field: f"{stage}.model.{field}" if stage else f"model.{field}" for field in _OF_MODEL}
    return dataclasses.replace(shape, **{field: values[name] for field, name in names.items() if name in values})


def parts(config: ConfigDict, stage: str, values: Mapping) -> dict[str, int]:
    """Returns in how many parts a stage computes its batches, for each of its fields that say so.

    It is the config's number, or the chosen one; as long as nothing is chosen, it is 1.
    """
    section = config[stage]
    fields = registry.of(config, stage).parts(section)
    return {field: section[field] or values.get(f"{stage}.{field}", 1) for field in fields}


def loops(platform: str, layers: int) -> bool:
    """Returns whether the program of a model loops over its layers where `model.scan_layers` leaves it open."""
    return platform != "cpu" or layers > _UNROLLED
