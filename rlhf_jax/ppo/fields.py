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
    TEXT,
    OneOf,
    Several,
    whole,
)
from rlhf_jax.fields.rewards import REWARDS
from rlhf_jax.fields.training import BY_MEMORY, OPTIMIZER, PPO_RATES, SCHEDULES, learning_rate
from rlhf_jax.ppo.validation_fields import FIELDS as VALIDATION

FIELDS = Section(
    "Step 3: PPO against a reward model, with a KL penalty.",
    {
        "kind": kind("ppo"),
        "init": Field(
            "sft",
            TEXT,
            "Where the policy starts, which is the KL reference as well: a stage, or a source of weights as for `sft.init`. "
            "Empty means random weights. "
            "The paper starts from a model of its own, the 'PPO init' (C.3).",
        ),
        "reward": Field(
            "reward_model",
            REWARDS,
            "What the score is: a reward model (a stage, or a folder of a released one relative to `data.files.dir`), a "
            "function of a Python module, or the weighted sum of several, separated by commas. docs/rewards.md has "
            "examples.",
        ),
        "reward_weights": Field(
            (),
            Several(FINITE, "a number for each reward, or ()"),
            "The weight of each reward, in the order of `reward`. () means 1 for each.",
        ),
        "reward_standardize": Field(
            False,
            FLAG,
            "Whether each reward is brought to mean 0 and variance 1, by its scores in the first iteration, which are "
            "those of the reference (Ziegler et al. 2019, section 2.1).",
        ),
        "advantage": Field(
            "gae",
            OneOf(*ESTIMATORS),
            "The estimator of advantages. "
            "'gae' uses a value model, as the paper does (section 3.5); the others need none, and give all tokens of a "
            "completion the same advantage.",
        ),
        "samples_per_prompt": Field(
            1,
            COUNT,
            "The number of completions of each prompt in a batch. 'rloo' and 'grpo' compare them, and need at least 2.",
        ),
        "value": Field(
            "separate",
            OneOf("separate", "shared"),
            "Where the value function is. "
            "'separate' is a model of its own (section 3.5); 'shared' is a head on the policy's trunk, with the "
            "policy's optimizer.",
        ),
        "value_init": Field(
            None,
            OneOf("reward", "policy", "random", "zero"),
            "What the value function starts as. "
            "'reward' is the reward model, the first one if there are several (section 3.5), and 'random' has random "
            "weights. "
            "'policy' is the policy with a random head, and 'zero' the policy with a head of zeros. "
            "If `value` is 'shared', only the head is taken from there. "
            "None means 'reward', and 'policy' where the score consists of functions alone.",
        ),
        "iterations": Field(
            500,
            COUNT,
            "The number of iterations, which are a rollout and its updates. C.4 has 256k episodes, 500 times 512.",
        ),
        "batch_size": Field(512, COUNT, "The number of episodes (completions) of an iteration (C.4)."),
        "minibatch_size": Field(64, COUNT, "The number of episodes of an optimizer step (C.4)."),
        "microbatches": Field(
            None,
            COUNT,
            "The smallest number of parts in which a minibatch is computed, to save memory. There are more if smaller "
            f"parts keep the devices busy, and parts without an episode are left out. None {BY_MEMORY} "
            "The results do not depend on it, but for rounding.",
        ),
        "gather_once": Field(
            None,
            FLAG,
            "Whether scoring gathers the weights of each model once, one model after the other, and not for each of its "
            "parts. It matters where a mesh splits weights over `fsdp`, and takes the memory of a copy of the largest "
            "model in `model.dtype`, split over `tensor` alone. None means that a run does so where the copy fits into "
            "its memory. The results do not depend on it.",
        ),
        "ppo_epochs": Field(1, COUNT, "The number of passes over the episodes of an iteration (C.4)."),
        "kl_coef": Field(
            0.02,
            NOT_NEGATIVE,
            "beta, the price of one nat of KL to the reference, in units of the score (C.4). 0 means no penalty.",
        ),
        # None in kl_in, kl_estimator or whiten_advantages means the choice of the paper that proposed `advantage`;
        # options.resolved fills it in from advantages.ESTIMATORS.
        "kl_in": Field(
            None,
            OneOf("reward", "loss"),
            "Where the KL penalty is: in the reward of each token (section 3.5), or as a token mean in the policy's "
            "loss. None means the place in the paper of `advantage`: the loss for 'grpo', and the reward for all others. "
            "docs/kl.md compares the two.",
        ),
        "kl_estimator": Field(
            None,
            OneOf("k1", "k2", "k3"),
            "The estimator of a token's KL in the penalty; docs/kl.md has the formulas. "
            "None means 'k1' in the reward and 'k3' in the loss. The metric objective/kl is always k1.",
        ),
        "kl_target": Field(
            None,
            POSITIVE,
            "The KL that `kl_coef` is steered to, in nats per completion (Ziegler et al. 2019). "
            "None keeps `kl_coef` as it is.",
        ),
        "kl_horizon": Field(
            10_000.0,
            POSITIVE,
            "The number of episodes in which a KL that is off by 20 % or more changes `kl_coef` by about 20 %. "
            "It has no effect without `kl_target`. The default is that of Ziegler et al.",
        ),
        "ptx_coef": Field(
            0.0,
            NOT_NEGATIVE,
            "gamma of PPO-ptx, the weight of the pretraining loss, which is a mean over tokens. "
            "0 means no pretraining gradient; C.4 has 27.8.",
        ),
        "ptx_ratio": Field(
            8,
            COUNT_OR_NONE,
            "The number of pretraining sequences for each episode (C.4). 0 means no pretraining gradient.",
        ),
        "ptx_length": Field(
            0,
            whole(2, also=0),
            "The length of a pretraining sequence, in tokens. "
            "0 means `prompt_length` + `completion_length`. The paper does not state it.",
        ),
        "ptx_microbatches": Field(
            None,
            COUNT,
            "The number of parts in which the pretraining sequences of a step are computed, to save memory. "
            f"None {BY_MEMORY} The results do not depend on it, but for rounding.",
        ),
        "cliprange": Field(
            0.2, POSITIVE, "How far the policy's importance ratio may move from 1 before the loss is clipped (C.4)."
        ),
        "cliprange_value": Field(
            0.2,
            POSITIVE,
            "How far a value may move from the one at sampling before its loss is clipped. "
            "A very large number never clips. The paper does not state it; Stiennon et al. and OpenAI's code have 0.2.",
        ),
        "vf_coef": Field(
            1.0,
            NOT_NEGATIVE,
            "The weight of the value loss. 0 learns no values. "
            "For a separate value model it matters only where its gradients are clipped. "
            "The paper does not state it.",
        ),
        "entropy_coef": Field(
            0.0,
            FINITE,
            "The weight of the entropy bonus, which is a mean over tokens in nats. "
            "0 means no bonus, and a negative number punishes entropy. The paper does not state it.",
        ),
        "learning_rate": learning_rate(
            8.05e-6,
            PPO_RATES,
            "The paper does not print its own; the default is the largest that did not diverge without ptx (Fig. 38).",
        ),
        "value_learning_rate": learning_rate(
            9e-6, PPO_RATES, "This is the value model's; C.4 has 9e-6, and 5e-6 at 175B."
        ),
        "schedule": Field(
            "constant",
            SCHEDULES,
            "How the learning rates change after the warm-up. "
            "'linear' and 'cosine' fall to `final_fraction`; C.4 is constant.",
        ),
        "final_fraction": Field(
            0.0, SHARE, "The share of the peak learning rates at which the schedule ends. 0 ends at nothing."
        ),
        "warmup_iterations": Field(
            10,
            COUNT_OR_NONE,
            "The number of iterations in which the learning rates rise to their peak (C.4). 0 means no warm-up.",
        ),
        "warmup_from": Field(
            0.1, SHARE, "The share of the peak learning rates at which the warm-up begins (C.4). 0 begins at nothing."
        ),
        "temperature": Field(
            1.0, POSITIVE, "The temperature of rollouts, and of every log-probability that PPO computes (C.4)."
        ),
        "gamma": Field(
            1.0,
            SHARE,
            "The discount of rewards per token. "
            "1 discounts nothing (C.4); 0 credits each token with its own reward alone.",
        ),
        "lam": Field(
            0.95,
            SHARE,
            "lambda of GAE. 0 looks one token ahead, and 1 to the end of the completion. "
            "The paper does not state it; the default is that of Stiennon et al.",
        ),
        "whiten_rewards": Field(
            False,
            FLAG,
            "Whether rewards are scaled to variance 1 over the batch; they keep their mean. "
            "The paper does not state it; Stiennon et al. and Huang et al. 2024 do not do it.",
        ),
        "whiten_advantages": Field(
            None,
            OneOf("batch", "minibatch", "none"),
            "What advantages are scaled over to mean 0 and variance 1. "
            "None means 'batch' for 'gae' and 'none' for the other estimators. "
            "The paper does not state it; OpenAI's code has 'minibatch' (Huang et al., detail 18).",
        ),
        "missing_eos": Field(
            "replace",
            OneOf("replace", "subtract", "none"),
            "What happens to the score of a completion that does not end. "
            "'replace' makes it `missing_eos_value`, 'subtract' takes that value off it, and 'none' leaves it. "
            "The paper does not state it; Ziegler et al. replace it.",
        ),
        "missing_eos_value": Field(
            -1.0,
            FINITE,
            "The number that `missing_eos` uses, in units of the score; it may be 0. "
            "With 'replace' a negative number, such as -1, is a bad score; with 'subtract' a positive number is a "
            "penalty. The paper does not state it.",
        ),
        "ema_decay": Field(
            0.992,
            SHARE_BELOW_ONE,
            "The decay of the moving average of the policy's weights, per optimizer step (C.4). "
            "0 averages nothing, and `output` is then 'params'. The paper does not state whether its 0.992 is per step or per iteration.",
        ),
        "output": Field(
            "ema",
            OneOf("ema", "params", "best"),
            "The weights that are evaluated, handed to later stages and exported: the moving average, the last ones, or "
            "those of the best validation (see `validate_every`), which are the moving average at that time, or the "
            "weights themselves if `ema_decay` is 0. The paper does not state it.",
        ),
        "optimizer": OPTIMIZER,
        "value_optimizer": OPTIMIZER,
        "log_gold": Field(
            False,
            FLAG,
            "Whether the world's gold labeler judges each rollout. "
            "The metrics are objective/gold and its standard error objective/gold_sem.",
        ),
        **VALIDATION,
        "checkpoint_every": Field(10, COUNT, "The number of iterations between two checkpoints."),
    },
)
