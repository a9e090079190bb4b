"""What the programs of PPO take and give: the static configuration, the coefficients, the state, scored rollouts."""

import dataclasses

import jax
from flax import struct

from rlhf_jax import advantages as adv
from rlhf_jax import model
from rlhf_jax.generate import Rollout
from rlhf_jax.model import TransformerConfig
from rlhf_jax.model.attention import SEGMENTS
from rlhf_jax.ppo.mixture import Mixture
from rlhf_jax.train import TrainState


@dataclasses.dataclass(frozen=True)
class PPOConfig:
    """The static configuration: everything that shapes the programs. Numbers that do not are in Coefficients."""

    policy: TransformerConfig
    value: TransformerConfig | None  # None: there is no separate value model
    eos_id: int | tuple[int, ...]  # the token that ends a completion, or all such tokens
    mixture: Mixture | None = None  # what the score consists of; None: it is that of a single reward model
    missing_eos: str = "replace"  # rule for the scores; or "subtract", "none" (advantages.apply_missing_eos)
    advantage: str = "gae"  # a name of advantages.ESTIMATORS
    samples_per_prompt: int = 1  # completions of a prompt, in neighbouring rows of a batch
    kl_in: str = "reward"  # where the KL penalty is; or "loss"
    kl_estimator: str = "k1"  # estimator of a token's penalty; or "k2", "k3"
    entropy_bonus: bool = False  # whether Coefficients.entropy_coef is used
    whiten_rewards: bool = False
    whiten_advantages: str = "batch"  # what they are whitened over; or "minibatch", "none"
    microbatches: int = 1  # smallest number of parts of a minibatch; see packing.rows_of_part
    gather_once: bool = True  # whether `score` gathers the weights of each model once, and not for each part
    ptx_microbatches: int = 1  # parts of the pretraining batch of a minibatch
    ptx_segments: int = SEGMENTS  # the most documents of a row of it; 0: any number
    schedule: str = "constant"  # schedule of both learning rates, by optimizer step; see optim.schedule
    total_steps: int = 1  # optimizer step at which a decay ends
    warmup_steps: int = 0
    warmup_from: float = 0.1  # fraction of the peak at which the warm-up starts
    final_fraction: float = 0.0  # fraction of the peak at which a decay ends
    averaged: bool = True  # whether the state has a moving average of the policy

    @property
    def estimator(self) -> adv.Estimator:
        """The advantage estimator that `advantage` names."""
        return adv.ESTIMATORS[self.advantage]

    @property
    def shared_value(self) -> bool:
        """Whether the value is a scalar head on the policy's trunk, stored among the policy's parameters."""
        return self.estimator.reads_values and self.value is None


@struct.dataclass
class Coefficients:
    """The numbers that an ablation sweeps, f32[] each: arguments of the programs, so a change never recompiles.

    `reward_weights`, f32[N], are the weights of a mixture of rewards; None without one.
    """

    ptx_coef: jax.Array  # weight of the pretraining gradient (the paper's gamma)
    learning_rate: jax.Array
    value_learning_rate: jax.Array
    temperature: jax.Array
    cliprange: jax.Array
    cliprange_value: jax.Array
    vf_coef: jax.Array  # weight of the value loss; it multiplies the gradient of a separate value model
    entropy_coef: jax.Array  # weight of the entropy bonus; the entropy is in nats per token
    gamma: jax.Array  # discount
    lam: jax.Array  # lambda of GAE
    missing_eos_value: jax.Array  # see advantages.apply_missing_eos
    ema_decay: jax.Array  # per optimizer step; see train.averaged
    kl_target: jax.Array  # nats per completion; target of the adaptive KL controller, 0 if there is none
    kl_horizon: jax.Array  # episodes; see advantages.update_kl_coef
    reward_weights: jax.Array | None = None


@struct.dataclass
class PPOState:
    """Everything that an iteration changes; of models with adapters, the parameters are the adapters and heads alone."""

    policy: TrainState  # with a shared trunk, its parameters include the scalar head
    value: TrainState | None  # None: there is no separate value model
    kl_coef: jax.Array  # f32[], the state of the KL controller (the paper's beta)
    scales: dict[str, jax.Array] | None = None  # of standardised rewards (see mixture.py); None: there are none

    @property
    def language_model(self) -> dict:
        """The parameters to sample from: the policy's, without a scalar head."""
        return model.without_scalar_head(self.policy.params)

    @property
    def value_params(self) -> dict | None:
        """The parameters of the separate value model, or None."""
        return None if self.value is None else self.value.params


@struct.dataclass
class Experience:
    """A rollout with the models' outputs for it; the first axis of every field is the batch."""

    rollout: Rollout  # in a part of a minibatch, packed rows (packing.PackedRollout), and the other fields are [R, C]
    logprobs: jax.Array  # f32[B, C] under the sampling policy, recomputed by teacher forcing
    ref_logprobs: jax.Array  # f32[B, C] under the reference
    values: jax.Array | None  # f32[B, C], value before each token is chosen; None if the estimator reads no values
    rewards: jax.Array  # f32[B, C], the score on the last token, less the KL penalty if it is in the reward
    advantages: jax.Array  # f32[B, C]
    returns: jax.Array | None  # f32[B, C], targets of the values; None if there are none
    scores: jax.Array  # f32[B], reward-model scores after the missing-EOS rule
    raw_scores: jax.Array  # f32[B], the same before that rule
    scores_of: dict[str, jax.Array]  # f32[B] for each reward of a mixture, by name; {} without a mixture
