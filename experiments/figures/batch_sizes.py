"""Batch and minibatch sizes of PPO-ptx at one number of episodes.

    python -m rlhf_jax.sweep --config=experiments/figures/batch_sizes.py --workdir=runs/figures/batch_sizes

Ouyang et al. 2022, E.11: of batches of 64 to 1,024 episodes 512 was best, and of minibatches of 8 to 64 then 32 by a
little. Here 1,280 episodes in batches of 32 to 128, and minibatches of 8 to 32 of a batch of 64.

An earlier sweep, with 1,024 test prompts and five other seeds, left the first claim undecided; here are 4,096 prompts.
"""

from experiments.figures.world import DESIGN, NEW_SEEDS
from experiments.figures.world import get_precise_config as get_config
from rlhf_jax.report import spec

BATCH, MINIBATCH, ITERATIONS = "ppo_ptx.batch_size", "ppo_ptx.minibatch_size", "ppo_ptx.iterations"
EPISODES = 1280


def sweep(h):
    sizes = [(32, 16), (64, 16), (128, 16), (64, 8), (64, 32)]
    settings = [{BATCH: batch, MINIBATCH: part, ITERATIONS: EPISODES // batch} for batch, part in sizes]
    return h.product([settings, h.sweep("seed", NEW_SEEDS)])


BASELINE = {BATCH: 64, MINIBATCH: 16}
WORDS = {BATCH: "batch size", MINIBATCH: "minibatch size"}
FIGURES = (
    spec.Curve("gold/total", "ppo_ptx", BATCH, where={MINIBATCH: 16}, name="batch"),
    spec.Curve("gold/total", "ppo_ptx", MINIBATCH, where={BATCH: 64}, name="minibatch"),
)
TABLES = (spec.Table(("ppo_ptx",), ("gold/total", "score", "kl", "skills/mean", "valid_loss", "seconds")),)
CLAIMS = (
    spec.Claim(
        "Ouyang et al. 2022, E.11",
        "A batch in the middle is best.",
        spec.Peak("gold/total", "ppo_ptx", BATCH, where={MINIBATCH: 16}),
        figure="batch",
        matters=0.02,
        because="a tenth of what PPO gains over SFT in gold",
    ),
    spec.Claim(
        "Ouyang et al. 2022, E.11",
        "The minibatch matters little: half of the default gives a gold score within 0.05.",
        spec.Close(
            spec.Pick("ppo_ptx", {BATCH: 64, MINIBATCH: 8}),
            spec.Pick("ppo_ptx", {BATCH: 64, MINIBATCH: 16}),
            "gold/total",
            margin=0.05,
        ),
        figure="minibatch",
    ),
)
