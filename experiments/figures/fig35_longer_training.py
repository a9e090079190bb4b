"""Twice as many episodes: does PPO-ptx keep what it has?

    python -m rlhf_jax.sweep --config=experiments/figures/fig35_longer_training.py --workdir=runs/figures/fig35_longer_training

Ouyang et al. 2022, Fig. 35 (E.8): PPO-ptx for 512k episodes begins above GPT-3 on DROP and SQuADv2 and ends slightly
below; more than 256k episodes do not help.

An earlier sweep, with 300 items of a skill and eight other seeds, left the claim about skills undecided; here are 1,500.
"""

from experiments.figures.world import DESIGN, NEW_SEEDS
from experiments.figures.world import get_precise_config as get_config
from rlhf_jax.report import spec

AXIS = "ppo_ptx.iterations"
VALUES = (10, 20, 40)


def sweep(h):
    return h.product([h.sweep(AXIS, VALUES), h.sweep("seed", NEW_SEEDS)])


BASELINE = {AXIS: 20}
WORDS = {AXIS: "iterations of PPO"}
FIGURES = (
    spec.Curve("skills/mean", "ppo_ptx", AXIS, name="skills"),
    spec.Curve("gold/total", "ppo_ptx", AXIS, name="gold"),
    spec.History("objective/scores", "ppo_ptx", where={AXIS: 40}, name="learning"),
)
TABLES = (spec.Table(("sft", "ppo_ptx"), ("gold/total", "score", "kl", "skills/mean", "valid_loss")),)
CLAIMS = (
    spec.Claim(
        "Ouyang et al. 2022, Fig. 35, E.8",
        "Retained skills drift down with more training.",
        spec.Trend("skills/mean", "ppo_ptx", AXIS, "falls"),
        figure="skills",
        matters=0.005,
        because="a point over two doublings is what the paper's curves end below their start",
    ),
    spec.Claim(
        "Ouyang et al. 2022, Fig. 35, E.8",
        "Training for twice as long does not help: the gold score gains less than 0.05.",
        spec.Greater(spec.Pick("ppo_ptx", {AXIS: 20}), spec.Pick("ppo_ptx", {AXIS: 40}), "gold/total", by=-0.05),
        figure="gold",
    ),
)
