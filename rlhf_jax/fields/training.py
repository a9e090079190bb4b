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
    "Adam; see optim.OptimizerConfig.",
    {
        "b1": Field(0.9, SHARE_BELOW_ONE, "decay of the average gradient, 0: none is averaged; App. C"),
        "b2": Field(0.95, SHARE_BELOW_ONE, "decay of the average squared gradient, 0: none is averaged; App. C"),
        "eps": Field(1e-8, POSITIVE, "added to the denominator; unstated, GPT-3's"),
        "eps_placement": Field(
            "torch",
            OneOf("torch", "tf1"),
            "where eps goes; unstated; 'tf1' is OpenAI's released code (Huang et al., detail 21)",
        ),
        "weight_decay": Field(0.0, NOT_NEGATIVE, "decoupled, times the learning rate, 0: none; unstated"),
        "max_grad_norm": Field(
            1.0, NOT_NEGATIVE, "gradients of a larger global norm are scaled down to it, 0: never; unstated, GPT-3's"
        ),
    },
)

TRAINED = Section(
    "What every stage that is trained by supervision has.",
    {
        "seed": Field(
            None,
            SEED,
            "None: the run's; a number: this stage is the same whatever the run's seed, as one pretrained model "
            "under all seeds",
        ),
        "init": Field(
            "",
            TEXT,
            "what it starts from: a stage, or a folder of released weights (relative to data.files.dir); empty: random",
        ),
        "microbatches": Field(1, COUNT, "parts of a batch, to save memory; no result depends on it"),
        "schedule": Field("cosine", SCHEDULES, "of the learning rate after the warm-up; C.1 to C.3"),
        "warmup_steps": Field(
            0, COUNT_OR_NONE, "steps in which the learning rate rises to its peak, at most those of the stage, 0: none"
        ),
        "warmup_from": Field(0.1, SHARE, "share of the peak where the warm-up begins, from 0"),
        "final_fraction": Field(
            0.1, SHARE, "share of the peak where the schedule ends, 0: at nothing; C.1 to C.3: 10 %"
        ),
        "checkpoint_every": Field(100, COUNT, "steps"),
    },
)

LEARNING_RATE = "at its peak, 0: nothing is learned"

OWN_MODEL = Section(
    "Fields of config.model that differ in the model of this stage, set in an experiment file; empty: it is the policy's model.",
    MODEL.parts,
    partial=True,
)


def trained(about: str, **changes) -> Section:
    """Returns the section of a stage trained by supervision: the common fields with `changes`, and an optimizer."""
    return TRAINED.but(about, **changes, optimizer=OPTIMIZER)
