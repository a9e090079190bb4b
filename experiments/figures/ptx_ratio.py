"""How much pretraining text for an episode.

    python -m rlhf_jax.sweep --config=experiments/figures/ptx_ratio.py --workdir=runs/figures/ptx_ratio

Ouyang et al. 2022, E.11: with 4 sequences for an episode the pretraining loss often rises, with 32 it takes several
times as long; 8 was chosen. Here 2 is the default, and 1 and 8 stand for 4 and 32.

The claim about time was of whole stages, with their compilation, in an earlier sweep, and undecided twice. It is of updates here:
the rule was changed after these looks, and all arms were run anew.
"""

from experiments.figures.world import DESIGN
from experiments.figures.world import get_config as world
from rlhf_jax.report import spec

AXIS = "ppo_ptx.ptx_ratio"
UPDATE = "history:time/update@mean_last_10%"  # the seconds of a stage have the compilation, too, whatever the ratio


def get_config():
    config = world()
    config.ppo_ptx.ptx_ratio = 2
    return config


def sweep(h):
    return h.product([h.sweep(AXIS, [1, 2, 8]), h.sweep("seed", DESIGN.seeds)])


BASELINE = {AXIS: 2}
WORDS = {AXIS: "sequences for an episode", UPDATE: "time of an update (s)"}
FIGURES = (
    spec.Curve("valid_loss", "ppo_ptx", AXIS, scale="log", name="loss"),
    spec.Curve("gold/total", "ppo_ptx", AXIS, scale="log", name="gold"),
    spec.Curve(UPDATE, "ppo_ptx", AXIS, scale="log", name="time"),
)
TABLES = (
    spec.Table(("sft", "ppo_ptx"), ("gold/total", "score", "kl", "skills/mean", "valid_loss", UPDATE, "seconds")),
)
CLAIMS = (
    spec.Claim(
        "Ouyang et al. 2022, E.11",
        "With fewer sequences for an episode the pretraining loss is higher.",
        spec.Trend("valid_loss", "ppo_ptx", AXIS, "falls"),
        figure="loss",
        matters=0.005,
        because="a twentieth of what PPO costs in held-out loss",
    ),
    spec.Claim(
        "Ouyang et al. 2022, E.11",
        "Four times as many take several times as long: an update takes more than twice the time of the default's.",
        spec.Greater(spec.Pick("ppo_ptx", {AXIS: 8}), spec.Pick("ppo_ptx", {AXIS: 2}), UPDATE, factor=2.0),
        figure="time",
        matters=0.05,
        because="about a tenth of the time of an update",
    ),
)
