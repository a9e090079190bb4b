"""The kinds of stages. A new kind is one file here and one import below, which registers it (see fields/registry.py).

The imports stand in the order of the pipeline, because the table of kinds and docs/config.md keep that order.
"""

from rlhf_jax.stages import pretrain  # isort: skip
from rlhf_jax.stages import sft  # isort: skip
from rlhf_jax.stages import collect  # isort: skip
from rlhf_jax.stages import reward_model  # isort: skip
from rlhf_jax.stages import ppo  # isort: skip
from rlhf_jax.stages import dpo  # isort: skip
from rlhf_jax.stages import best_of_n  # isort: skip
from rlhf_jax.stages import prompted  # isort: skip

__all__ = ["best_of_n", "collect", "dpo", "ppo", "pretrain", "prompted", "reward_model", "sft"]
