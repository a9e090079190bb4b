"""Fields that several kinds of stages share: the optimizer's, and those of supervised training."""

import dataclasses

from rlhf_jax.fields.field import Field, Section
from rlhf_jax.fields.model import LORA, MODEL
from rlhf_jax.fields.ranges import (
    COUNT,
    COUNT_OR_NONE,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    SHARE,
    SHARE_BELOW_ONE,
    TEXT,
    OneOf,
)

BY_MEMORY = "means as few as memory allows, which a run chooses at its first start (docs/scaling.md)."
SCHEDULES = OneOf("constant", "linear", "cosine")

OPTIMIZER = Section(
    "The Adam optimizer; optim.OptimizerConfig has the formulas.",
    {
        "b1": Field(
            0.9, SHARE_BELOW_ONE, "The decay of the moving average of the gradient (App. C). 0 averages nothing."
        ),
        "b2": Field(
            0.95,
            SHARE_BELOW_ONE,
            "The decay of the moving average of the squared gradient (App. C). 0 averages nothing.",
        ),
        "eps": Field(
            1e-8,
            POSITIVE,
            "The number that is added to Adam's denominator. The paper does not state it; GPT-3 has 1e-8.",
        ),
        "eps_placement": Field(
            "torch",
            OneOf("torch", "tf1"),
            "Where `eps` is added: after the bias correction as in PyTorch, or before it as in TensorFlow 1. "
            "The paper does not state it; OpenAI's released code has 'tf1' (Huang et al., detail 21).",
        ),
        "weight_decay": Field(
            0.0,
            NOT_NEGATIVE,
            "The decoupled weight decay, which is multiplied by the learning rate. "
            "0 means none. The paper does not state it.",
        ),
        "max_grad_norm": Field(
            1.0,
            NOT_NEGATIVE,
            "The largest global norm of the gradients. Larger gradients are scaled down to it; 0 never scales. "
            "The paper does not state it; GPT-3 has 1.",
        ),
    },
)

TRAINED = Section(
    "What every stage that is trained by supervision has.",
    {
        "seed": Field(
            None,
            SEED,
            "The seed of this stage. None means the run's seed. "
            "With a number, the stage is the same whatever the run's seed, so that several seeds share it.",
        ),
        "init": Field(
            "",
            TEXT,
            "Where the weights start: a stage, or a source of weights: a folder of released weights, a finished stage of "
            "another run (WORKDIR/STAGE), or a kept checkpoint (WORKDIR/STAGE/checkpoints/STEP). "
            "A source is a path relative to `data.files.dir`, else to the current directory. "
            "Empty means random weights.",
        ),
        "microbatches": Field(
            None,
            COUNT,
            "The number of parts in which a batch is computed, to save memory. "
            f"None {BY_MEMORY} The results do not depend on it, but for rounding.",
        ),
        "schedule": Field(
            "cosine", SCHEDULES, "How the learning rate changes after the warm-up. The paper's is cosine (C.1 to C.3)."
        ),
        "warmup_steps": Field(
            0,
            COUNT_OR_NONE,
            "The number of steps in which the learning rate rises to its peak, at most the stage's steps. "
            "0 means no warm-up.",
        ),
        "warmup_from": Field(
            0.1, SHARE, "The share of the peak learning rate at which the warm-up begins. 0 begins at nothing."
        ),
        "final_fraction": Field(
            0.1,
            SHARE,
            "The share of the peak learning rate at which the schedule ends. 0 ends at nothing; C.1 to C.3 have 10 %.",
        ),
        "checkpoint_every": Field(100, COUNT, "The number of steps between two checkpoints."),
    },
)


def learning_rate(default: float, by_size: tuple[tuple[float, float], ...], source: str) -> Field:
    """Returns the field of a learning rate, with the rates of published runs and the source of default and rates."""
    meaning = "The learning rate at its peak. 0 learns nothing. None takes it from the model's size (docs/recipes.md)."
    return Field(default, NOT_NEGATIVE, f"{meaning} {source}", by_size)


# Peaks of published runs, by the parameters of the model.
PRETRAIN_RATES = (  # Brown et al. 2020, Table 2.1
    (125e6, 6e-4),
    (350e6, 3e-4),
    (760e6, 2.5e-4),
    (1.3e9, 2e-4),
    (2.7e9, 1.6e-4),
    (6.7e9, 1.2e-4),
    (13e9, 1e-4),
    (175e9, 0.6e-4),
)
SFT_RATES = (  # Stiennon et al. 2020, appendix B.1; the last is InstructGPT's, C.1
    (1.3e9, 6.35e-5),
    (3e9, 5.66e-5),
    (6.7e9, 2.83e-5),
    (13e9, 2.83e-5),
    (175e9, 5.03e-6),
)
REWARD_RATES = (  # Ziegler et al. 2019, the released code and the paper; Stiennon et al. 2020, appendix B.1
    (124e6, 5e-5),
    (774e6, 1.77e-5),
    (1.3e9, 1.5e-5),
    (6.7e9, 5e-6),
)
PPO_RATES = (  # as REWARD_RATES
    (124e6, 1e-5),
    (774e6, 1.41e-5),
    (1.3e9, 1.5e-5),
    (6.7e9, 7e-6),
)
DPO_RATES = ((2.8e9, 1e-6),)  # Rafailov et al. 2023, appendix B, for every model

OWN_MODEL = Section(
    "The fields of `model` in which this stage's model differs from the policy's. Set them in an experiment file. "
    "Empty means that it is the policy's model.",
    MODEL.parts | {"lora": dataclasses.replace(LORA, partial=True)},
    partial=True,
)


def trained(about: str, **changes) -> Section:
    """Returns the section of a stage trained by supervision: the common fields with `changes`, and an optimizer."""
    return TRAINED.but(about, **changes, optimizer=OPTIMIZER)
