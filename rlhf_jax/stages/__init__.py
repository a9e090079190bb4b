"""The kinds of stages. Importing one registers it (see registry.py); a new kind is one file here, and its name below."""

from rlhf_jax.stages import pretrain  # isort: skip
from rlhf_jax.stages import sft  # isort: skip
from rlhf_jax.stages import collect  # isort: skip
from rlhf_jax.stages import reward_model  # isort: skip
from rlhf_jax.stages import ppo  # isort: skip
from rlhf_jax.stages import dpo  # isort: skip
from rlhf_jax.stages import best_of_n  # isort: skip
from rlhf_jax.stages import prompted  # isort: skip

__all__ = ["best_of_n", "collect", "dpo", "ppo", "pretrain", "prompted", "reward_model", "sft"]
