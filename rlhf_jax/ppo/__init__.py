"""PPO: scoring rollouts, updating the policy and the value model, and the compiled programs that a stage runs."""

from rlhf_jax.ppo.update import (
    Coefficients,
    Experience,
    PPOConfig,
    PPOState,
    RewardFn,
    SequenceScore,
    completion_logprobs,
    completion_states,
    completion_values,
    has_eos,
    make_score,
    make_update,
    policy_loss,
    sequence_scores,
    value_loss,
)

__all__ = [
    "Coefficients",
    "Experience",
    "PPOConfig",
    "PPOState",
    "RewardFn",
    "SequenceScore",
    "completion_logprobs",
    "completion_states",
    "completion_values",
    "has_eos",
    "make_score",
    "make_update",
    "policy_loss",
    "sequence_scores",
    "value_loss",
]
