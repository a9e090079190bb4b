"""Default values for the sections that a config has."""

from typing import Any

from ml_collections import ConfigDict

from rlhf_jax.fields import registry
from rlhf_jax.fields.checks import check
from rlhf_jax.fields.run import COMMON
from rlhf_jax.runtime.errors import InputError


def defaults_like(config: ConfigDict) -> ConfigDict:
    """Returns the default of every field of a config, with the same stages under the same names."""
    defaults = COMMON.build()
    for name, section in config.items():
        if name not in defaults and (stage := registry.find(section)):
            defaults[name] = stage.fields.build()
    return defaults


def filled(config: ConfigDict) -> ConfigDict:
    """Replaces the stages' fields that are None by the values they stand for, in place; returns the config.

    The run's config.json then records the values that were used.
    """
    with config.unlocked():
        for section in config.values():
            if stage := registry.find(section):
                stage.fill(section)
    return config


def restored(config: Any, source: str) -> ConfigDict:
    """Returns the config of a run from the content of its config.json; a field missing there gets its default.

    Args:
      config: the content.
      source: path of the file, for error messages.

    Raises:
      InputError: the content is not a config, or a field has a value that it does not allow.
    """
    if not isinstance(config, dict) or "stages" not in config:
        raise InputError(f"{source} is damaged: it does not hold the config of a run")
    config = ConfigDict(config)
    _complete(config, defaults_like(config))
    try:
        check(config, exact=False)
    except InputError as error:
        raise InputError(f"{source} is damaged: {error}") from None
    return config


def _complete(config: ConfigDict, defaults: ConfigDict) -> None:
    """Adds the defaults of missing fields to a config, in place."""
    for name, value in defaults.items():
        if name not in config:
            config[name] = value
        elif isinstance(value, ConfigDict) and isinstance(config[name], ConfigDict):
            _complete(config[name], value)
