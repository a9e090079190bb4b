"""Every field of a run: its default, what it can be, what it means.

The table of fields is in run.py, stages.py and model.py; the configs that experiments start from (`default_config`,
`sft_config`, ...) are built of it, values are checked by it (`check`), and `--help` and docs/config.md are printed from
it. A field is added there and nowhere else: Field(default, what it can be, meaning with its source).

Where InstructGPT is silent (paper section unstated), the meaning gives the reason for the default. Coefficients are
array arguments of the programs; lengths, sizes and flags shape them.
"""

import sys
from typing import Any

from ml_collections import ConfigDict

from rlhf_jax.fields import page, stages
from rlhf_jax.fields.checks import check, check_kind
from rlhf_jax.fields.run import RUN
from rlhf_jax.runtime.errors import InputError

__all__ = ["check", "check_kind", "default_config", "defaults_like", "restored", "upgraded"]


def default_config() -> ConfigDict:
    return RUN.build()


pretrain_config, sft_config, collect_config = stages.PRETRAIN.build, stages.SFT.build, stages.COLLECT.build
reward_model_config, dpo_config, ppo_config = stages.REWARD_MODEL.build, stages.DPO.build, stages.PPO.build
best_of_n_config, prompted_config = stages.BEST_OF_N.build, stages.PROMPTED.build
optimizer_config, data_config = stages.OPTIMIZER.build, RUN.parts["data"].build


def defaults_like(config: ConfigDict) -> ConfigDict:
    """The defaults of a config that may have stages of other names than the default one."""
    defaults = default_config()
    for name, section in config.items():
        if name not in defaults and isinstance(section, ConfigDict) and section.get("kind") in stages.KINDS:
            defaults[name] = stages.KINDS[section.kind].build()
    return defaults


def upgraded(config: Any, source: str) -> dict:
    """What a config.json of an older version holds, with the values that today's fields would have.

    Args:
      source: the file, for the error.

    Raises:
      InputError: it does not hold a config.
    """
    if not isinstance(config, dict):
        raise InputError(f"{source} is damaged: it does not hold the config of a run")
    for section in config.values():
        if isinstance(section, dict) and isinstance(section.get("whiten_advantages"), bool):
            section["whiten_advantages"] = "batch" if section["whiten_advantages"] else "none"
    return config


def restored(config: Any, source: str) -> ConfigDict:
    """The config of a run from its config.json, of an older version too: what that did not have has its default.

    Args:
      config: what the file holds.
      source: the file, for the error.

    Raises:
      InputError: that is no config, or has a value that a field cannot have.
    """
    config = ConfigDict(upgraded(config, source))
    if "stages" not in config:
        raise InputError(f"{source} is damaged: it does not hold the config of a run")
    _complete(config, defaults_like(config))
    try:
        check(config, exact=False)
    except InputError as error:
        raise InputError(f"{source} is damaged: {error}") from None
    return config


def _complete(config: ConfigDict, defaults: ConfigDict) -> None:
    for name, value in defaults.items():
        if name not in config:
            config[name] = value
        elif isinstance(value, ConfigDict) and isinstance(config[name], ConfigDict):
            _complete(config[name], value)


if __name__ == "__main__":
    print(page.text(sys.argv[1]) if len(sys.argv) > 1 else page.markdown(), end="" if len(sys.argv) == 1 else "\n")
