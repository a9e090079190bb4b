"""The fields of a benchmark's config, with the values that they allow; experiments/bench.py sets their values."""

import dataclasses

from rlhf_jax.fields.field import Field, Section
from rlhf_jax.fields.model import MODEL
from rlhf_jax.fields.ranges import COUNT, SOME_TEXT, OneOf, Several

WORKS = ("sft_step", "reward_step", "sample", "ppo_iteration", "ppo_trials", "sweep_arms", "saving", "loading")

FIELDS = Section(
    "The benchmark.",
    {
        "size": Field("tiny", SOME_TEXT, "what the sizes below are called"),
        "model": dataclasses.replace(MODEL, partial=True),
        "works": Field(
            WORKS,
            Several(OneOf(*WORKS), f"one or several of {', '.join(WORKS)}, each once", least=1, distinct=True),
            "what is timed",
        ),
        "repeats": Field(7, COUNT, "of each work, after one that compiles"),
        "batch_size": Field(
            16, COUNT, "sequences of an SFT step, pairs of a reward model step; each a whole context long"
        ),
        "episodes": Field(32, COUNT, "of an iteration"),
        "prompt_length": Field(32, COUNT, "tokens"),
        "completion_length": Field(64, COUNT, "tokens; no completion ends early"),
        "minibatches": Field(4, COUNT, "of an iteration"),
        "trials": Field(32, COUNT, "of a sweep, for ppo_trials and sweep_arms"),
        "arms_alone": Field(3, COUNT, "that the sequential runner is measured with"),
        "iterations": Field(20, COUNT, "of an arm's PPO"),
        "test_prompts": Field(256, COUNT, "of an arm's evaluation"),
        "loader_rows": Field(4096, COUNT, "examples that batches are loaded from"),
        "checkpoint_every": Field(100, COUNT, "steps"),
    },
)
