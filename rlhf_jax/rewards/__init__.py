"""Ready-made reward functions, for `reward="rlhf_jax.rewards:length(limit=40)"`; docs/rewards.md shows how to write more."""

from rlhf_jax.rewards.judges import command, server
from rlhf_jax.rewards.texts import answer, expression, length

__all__ = ["answer", "command", "expression", "length", "server"]
