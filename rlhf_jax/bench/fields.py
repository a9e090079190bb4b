"""The fields of a benchmark's config, with the values that they allow; experiments/bench.py sets their values."""

import dataclasses

from rlhf_jax.fields.field import Field, Section
from rlhf_jax.fields.model import MODEL
from rlhf_jax.fields.ranges import COUNT, SOME_TEXT, OneOf, Several

WORKS = (
    "sft_step",
    "reward_step",
    "reward_step_packed",
    "sample",
    "sample_drawn",
    "sample_drawn_slots",
    "ppo_iteration",
    "ppo_ptx_iteration",
    "ppo_trials",
    "sweep_arms",
    "saving",
    "loading",
)

FIELDS = Section(
    "The benchmark.",
    {
        "size": Field("tiny", SOME_TEXT, "The name of the sizes that the fields below set."),
        "model": dataclasses.replace(MODEL, partial=True),
        "works": Field(
            WORKS,
            Several(OneOf(*WORKS), f"one or several of {', '.join(WORKS)}, each once", least=1, distinct=True),
            "The kinds of work that are timed.",
        ),
        "repeats": Field(
            7, COUNT, "The number of times that each kind of work is timed, after a first time that compiles."
        ),
        "batch_size": Field(
            16,
            COUNT,
            "The number of sequences of an SFT step, and of pairs of a reward model's step. Each fills the context.",
        ),
        "episodes": Field(32, COUNT, "The number of completions of a PPO iteration."),
        "prompt_length": Field(32, COUNT, "The length of a prompt, in tokens."),
        "completion_length": Field(
            64,
            COUNT,
            "The length of a completion, in tokens. No completion ends early, except where lengths are drawn.",
        ),
        "minibatches": Field(4, COUNT, "The number of minibatches of a PPO iteration."),
        "slots": Field(8, COUNT, "The number of completions that sample_drawn_slots samples at once."),
        "ptx_ratio": Field(8, COUNT, "The number of pretraining rows for each episode, in ppo_ptx_iteration."),
        "trials": Field(32, COUNT, "The number of arms of a sweep that ppo_trials and sweep_arms run at once."),
        "arms_alone": Field(3, COUNT, "The number of arms with which sweep_arms times the sequential runner."),
        "iterations": Field(20, COUNT, "The number of PPO iterations of an arm."),
        "test_prompts": Field(256, COUNT, "The number of test prompts on which an arm is evaluated."),
        "loader_rows": Field(4096, COUNT, "The number of examples that batches are loaded from."),
        "checkpoint_every": Field(100, COUNT, "The number of steps between two checkpoints, for saving."),
    },
)
