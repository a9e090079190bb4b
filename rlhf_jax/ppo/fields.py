"""The configuration fields of a PPO stage."""

from rlhf_jax.advantages import ESTIMATORS
from rlhf_jax.fields.field import Field, Section, kind
from rlhf_jax.fields.ranges import (
    COUNT,
    COUNT_OR_NONE,
    FINITE,
    FLAG,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    SHARE_BELOW_ONE,
    SOME_TEXT,
    TEXT,
    OneOf,
    whole,
)
from rlhf_jax.fields.training import LEARNING_RATE, OPTIMIZER, SCHEDULES

FIELDS = Section(
    "Step 3: PPO against a reward model, with a KL penalty.",
    {
        "kind": kind("ppo"),
        "init": Field("sft", TEXT, "the policy and the KL reference (C.3's 'PPO init')"),
        "reward": Field(
            "reward_model", SOME_TEXT, "a stage, or a folder of a released reward model (relative to data.files.dir)"
        ),
        "advantage": Field(
            "gae", OneOf(*ESTIMATORS), "all but the first do without a value model; see advantages.of_completions"
        ),
        "samples_per_prompt": Field(1, COUNT, "completions of a prompt in a batch; 'rloo' and 'grpo' compare them"),
        "value": Field(
            "separate",
            OneOf("separate", "shared"),
            "section 3.5: a model of its own; or a head on the policy's trunk, with one optimizer",
        ),
        "value_init": Field(
            "reward",
            OneOf("reward", "policy", "random", "zero"),
            "section 3.5: the reward model; or the policy's trunk with a fresh head, or with a head of 0, or random",
        ),
        "iterations": Field(500, COUNT, "rollouts, each with its updates; C.4: 256k episodes, 500 of 512"),
        "batch_size": Field(512, COUNT, "episodes of an iteration; C.4"),
        "minibatch_size": Field(64, COUNT, "episodes of an optimizer step; C.4"),
        "microbatches": Field(1, COUNT, "parts of a minibatch, to save memory; no result depends on it"),
        "sample_parts": Field(
            1, COUNT, "in which an iteration's prompts are sampled, to save memory; no result depends on it"
        ),
        "ppo_epochs": Field(1, COUNT, "how often the episodes of an iteration are learned from; C.4"),
        "kl_coef": Field(0.02, NOT_NEGATIVE, "beta, the price of a nat of KL to the reference, 0: no penalty; C.4"),
        # None in kl_in, kl_estimator or whiten_advantages means the choice of the paper that proposed `advantage`;
        # options.resolved fills it in from advantages.ESTIMATORS.
        "kl_in": Field(
            None,
            OneOf("reward", "loss"),
            "where the penalty is: in the reward, or its token mean beside the policy loss; None: "
            "as the paper of `advantage` has it, which is the reward (3.5) but for 'grpo'; see docs/kl.md",
        ),
        "kl_estimator": Field(
            None,
            OneOf("k1", "k2", "k3"),
            "of a token's penalty, see advantages.KLEstimates; None: 'k1' in the reward, 'k3' in "
            "the loss; objective/kl is k1 whatever it is",
        ),
        "kl_target": Field(
            None, POSITIVE, "nats; None: kl_coef stays; a number: it is steered there (Ziegler et al. 2019)"
        ),
        "kl_horizon": Field(10_000.0, POSITIVE, "episodes, how slowly kl_target steers; Ziegler et al."),
        "ptx_coef": Field(
            0.0, NOT_NEGATIVE, "gamma of PPO-ptx, of the token mean, see token_loss.py, 0: none; C.4: 27.8"
        ),
        "ptx_ratio": Field(8, COUNT_OR_NONE, "pretraining sequences per episode, 0: none; C.4"),
        "ptx_length": Field(
            0, whole(2, also=0), "tokens of such a sequence, 0: prompt_length + completion_length; unstated"
        ),
        "ptx_microbatches": Field(
            1, COUNT, "parts of a step's pretraining sequences, to save memory; no result depends on it"
        ),
        "cliprange": Field(0.2, POSITIVE, "of the policy's ratio; C.4"),
        "cliprange_value": Field(
            0.2, POSITIVE, "of the value's change, a large number: never; unstated; Stiennon et al., OpenAI's code"
        ),
        "vf_coef": Field(
            1.0,
            NOT_NEGATIVE,
            "of the value loss, 0: no value is learned; unstated; a value model has its own optimizer: it "
            "matters with clipping, or a shared trunk",
        ),
        "entropy_coef": Field(
            0.0, FINITE, "of the token mean of the entropy, in nats, 0: none, negative: entropy costs; unstated"
        ),
        "learning_rate": Field(
            8.05e-6,
            NOT_NEGATIVE,
            f"{LEARNING_RATE}; not printed; the largest that did not diverge without ptx (Fig. 38)",
        ),
        "value_learning_rate": Field(9e-6, NOT_NEGATIVE, f"{LEARNING_RATE}; C.4; 5e-6 at 175B"),
        "schedule": Field(
            "constant", SCHEDULES, "of the learning rates after the warm-up, down to final_fraction; C.4"
        ),
        "final_fraction": Field(0.0, SHARE, "share of the peak where the schedule ends, 0: at nothing"),
        "warmup_iterations": Field(10, COUNT_OR_NONE, "in which the learning rates rise to their peak, 0: none; C.4"),
        "warmup_from": Field(0.1, SHARE, "share of the peak where the warm-up begins, from 0; C.4"),
        "temperature": Field(1.0, POSITIVE, "of rollouts, and of every log-probability; C.4"),
        "gamma": Field(1.0, SHARE, "discount, 0: each token answers for its own reward alone; C.4: 1, none"),
        "lam": Field(0.95, SHARE, "lambda of GAE, 0: one step; unstated; Stiennon et al."),
        "whiten_rewards": Field(False, FLAG, "unstated; off in Stiennon et al. and Huang et al."),
        "whiten_advantages": Field(
            None,
            OneOf("batch", "minibatch", "none"),
            "over what; None: 'batch' for 'gae', else 'none', as the papers; unstated; "
            "'minibatch' is OpenAI's code (Huang et al., detail 18)",
        ),
        "missing_eos": Field(
            "replace",
            OneOf("replace", "subtract", "none"),
            "what missing_eos_value does to the score of a completion without an end; unstated; Ziegler et al.: a fixed score instead",
        ),
        "missing_eos_value": Field(
            -1.0, FINITE, "the score that replaces, or is taken off, any number, also 0 and -1; unstated"
        ),
        "ema_decay": Field(
            0.992,
            SHARE_BELOW_ONE,
            "of the moving average of the weights, per optimizer step, 0: the weights themselves; C.4 "
            "(unstated whether per step or iteration); see train.averaged",
        ),
        "output": Field(
            "ema",
            OneOf("ema", "params"),
            "which weights are evaluated, handed on and exported: the average, or the last; unstated",
        ),
        "optimizer": OPTIMIZER,
        "value_optimizer": OPTIMIZER,
        "log_gold": Field(
            False, FLAG, "True: the world's labeler judges each rollout: objective/gold, objective/gold_sem"
        ),
        "checkpoint_every": Field(10, COUNT, "iterations"),
    },
)
