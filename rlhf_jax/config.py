"""The config of a run: every field, its default, what it can be, and what it means.

Experiments start from `default_config`, and add stages with `sft_config`, `ppo_config` and the like. The fields that
all stages share are in `fields/`, and those of a stage are in its file of `stages/`. `check` checks values by these
tables, and `--help` and docs/config.md are printed from them:

    python -m rlhf_jax.config > docs/config.md     the page
    python -m rlhf_jax.config kl_                  the fields with this word in their names

If InstructGPT does not state a value, the meaning says so. Coefficients are array arguments of the programs, so that
changing them compiles nothing. Lengths, sizes and flags shape the programs.
"""

import sys

from ml_collections import ConfigDict

from rlhf_jax.fields import page
from rlhf_jax.fields.checks import check
from rlhf_jax.fields.defaults import defaults_like
from rlhf_jax.fields.field import Section
from rlhf_jax.fields.registry import KINDS
from rlhf_jax.fields.run import COMMON
from rlhf_jax.fields.training import OPTIMIZER
from rlhf_jax.stages import best_of_n, collect, dpo, ppo, pretrain, prompted, reward_model, sft

__all__ = ["check", "default_config", "defaults_like"]


def table() -> Section:
    """Returns the fields of the default config: one stage of each kind, and a second PPO, with the pretraining mix."""
    sections = {kind: stage.fields for kind, stage in KINDS.items()}
    mixed = ppo.FIELDS.but("Step 3 with a pretraining gradient, PPO-ptx: the fields of `ppo`.", ptx_coef=27.8)  # C.4
    place = list(sections).index("ppo") + 1
    items = list(sections.items())
    return Section(COMMON.about, COMMON.parts | dict([*items[:place], ("ppo_ptx", mixed), *items[place:]]))


def default_config() -> ConfigDict:
    return table().build()


pretrain_config, sft_config, collect_config = pretrain.FIELDS.build, sft.FIELDS.build, collect.FIELDS.build
reward_model_config, dpo_config, ppo_config = reward_model.FIELDS.build, dpo.FIELDS.build, ppo.FIELDS.build
best_of_n_config, prompted_config = best_of_n.FIELDS.build, prompted.FIELDS.build
optimizer_config, data_config = OPTIMIZER.build, COMMON.parts["data"].build


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(page.text(table(), sys.argv[1]))
    else:
        print(page.markdown(table()), end="")
