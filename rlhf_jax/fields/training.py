"""Fields that several kinds of stages share: the optimizer's, and those of supervised training."""

from rlhf_jax.fields.field import Field, Section
from rlhf_jax.fields.model import MODEL
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
            "Where the weights start: a stage, or a folder of released weights relative to `data.files.dir`. "
            "Empty means random weights.",
        ),
        "microbatches": Field(
            1,
            COUNT,
            "The number of parts in which a batch is computed, to save memory. The results do not depend on it.",
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

LEARNING_RATE = "The learning rate at its peak. 0 learns nothing."

OWN_MODEL = Section(
    "The fields of `model` in which this stage's model differs from the policy's. Set them in an experiment file. "
    "Empty means that it is the policy's model.",
    MODEL.parts,
    partial=True,
)


def trained(about: str, **changes) -> Section:
    """Returns the section of a stage trained by supervision: the common fields with `changes`, and an optimizer."""
    return TRAINED.but(about, **changes, optimizer=OPTIMIZER)
