"""Learning rates of PPO, with and without the pretraining mix: where does it diverge?

    python -m rlhf_jax.sweep --config=experiments/figures/fig38_learning_rate.py --workdir=runs/figures/fig38_learning_rate

Ouyang et al. 2022, Fig. 38 (E.9): of learning rates from 2.55e-6 to 2.55e-5 every one above 8.05e-6 diverged without
the pretraining mix; with it the policy is less sensitive. The rates here are those of a model a thousand times
smaller: a grid from a quarter of the default to sixteen times it.
"""

from experiments.figures.world import DESIGN, get_config
from rlhf_jax.report import spec

RATE, GAMMA = "ppo_ptx.learning_rate", "ppo_ptx.ptx_coef"
RATES = (7.5e-5, 3e-4, 1.2e-3, 4.8e-3)  # the default is the second


def sweep(h):
    return h.product([h.sweep(RATE, RATES), h.sweep(GAMMA, [0.0, 0.5]), h.sweep("seed", DESIGN.seeds)])


def at(rate, gamma, stage="ppo_ptx"):
    return spec.Pick(stage, {RATE: rate, GAMMA: gamma})


BASELINE = {RATE: 3e-4, GAMMA: 0.5}
WORDS = {RATE: "learning rate", GAMMA: "gamma"}
FIGURES = (
    spec.Curve("gold/total", "ppo_ptx", RATE, by=GAMMA, scale="log", name="gold"),
    spec.Curve("kl", "ppo_ptx", RATE, by=GAMMA, scale="log", name="kl"),
    spec.Curve("valid_loss", "ppo_ptx", RATE, by=GAMMA, scale="log", name="loss"),
)
TABLES = (spec.Table(("ppo_ptx",), ("gold/total", "score", "kl", "skills/mean", "valid_loss", "failed")),)
CLAIMS = (
    spec.Claim(
        "Ouyang et al. 2022, Fig. 38, E.9",
        "Without the mix a rate sixteen times the default ruins the policy: its gold score is below SFT's.",
        spec.Greater(at(4.8e-3, 0.0, "sft"), at(4.8e-3, 0.0), "gold/total"),
        figure="gold",
        matters=0.02,
        because="a tenth of what PPO gains over SFT in gold",
    ),
    spec.Claim(
        "Ouyang et al. 2022, Fig. 38, E.9",
        "The mix makes it less sensitive: from the default rate to sixteen times it, PPO-ptx loses less gold than PPO.",
        spec.Greater(at(4.8e-3, 0.5), at(4.8e-3, 0.0), "gold/total"),
        figure="gold",
        matters=0.02,
        because="a tenth of what PPO gains over SFT in gold",
    ),
    spec.Claim(
        "Ouyang et al. 2022, Fig. 38, E.9",
        "The same of the skills, at four times the default already.",
        spec.Greater(at(1.2e-3, 0.5), at(1.2e-3, 0.0), "skills/mean"),
        figure="loss",
        matters=0.01,
        because="the paper's PPO loses 2 to 4 points of F1 (Table 14)",
    ),
)
