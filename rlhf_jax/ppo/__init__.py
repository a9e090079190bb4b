"""PPO-ptx (step 3) as three programs, sample -> score -> update; they are compiled in programs.py.

sample  policy, prompts            -> Rollout      (generate.sample)
score   policy, ref, reward, value -> Experience   (score.py)
update  one optimizer step of policy and value on a minibatch (update.py)
"""

from rlhf_jax.ppo.completions import (
    RewardFn,
    SequenceScore,
    completion_logprobs,
    completion_states,
    completion_values,
    has_eos,
    sequence_scores,
)
from rlhf_jax.ppo.score import make_score
from rlhf_jax.ppo.state import Coefficients, Experience, PPOConfig, PPOState
from rlhf_jax.ppo.update import make_update, policy_loss, value_loss

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
