"""The KL coefficient beta, with the pretraining mix: too little and too much of it are both poor.

    python -m rlhf_jax.sweep --config=experiments/figures/fig36_kl_coef.py --workdir=runs/figures/fig36_kl_coef

Ouyang et al. 2022, Fig. 36 (E.7): people's ratings of 1.3B PPO-ptx are poor at beta = 0 and at beta = 2, and best
at 0.01 to 0.02. Here the gold labeler rates. The best beta scales with the reward and the task, its being inside
does not. Twice the other figures' iterations, so that a policy without a penalty goes past the best distance. Stiennon
et al. 2020, Table 9: the KL to SFT falls as beta grows.
"""

from experiments.figures.world import DESIGN
from experiments.figures.world import get_config as world
from rlhf_jax.report import spec

AXIS = "ppo_ptx.kl_coef"
VALUES = (0.0, 0.02, 0.08, 0.3, 2.0)
PPO = spec.Path("ppo_ptx", AXIS, label="PPO-ptx")


def get_config():
    config = world()
    config.ppo_ptx.iterations = 40
    return config


def sweep(h):
    return h.product([h.sweep(AXIS, VALUES), h.sweep("seed", DESIGN.seeds)])


BASELINE = {AXIS: 0.08}
WORDS = {AXIS: "beta"}
FIGURES = (
    spec.Curve("gold/total", "ppo_ptx", AXIS, scale="symlog", name="gold"),
    spec.Plane("kl", "gold/total", (PPO,), sqrt_x=True, name="frontier", title="gold score against distance"),
    spec.Plane("kl", "score", (PPO,), sqrt_x=True, name="proxy", title="what the policy is trained on"),
)
TABLES = (
    spec.Table(
        ("sft", "ppo_ptx"), ("gold/total", "score", "kl", "win_rate", "skills/mean", "valid_loss", "completion_length")
    ),
)
CLAIMS = (
    spec.Claim(
        "Ouyang et al. 2022, Fig. 36, E.7",
        "The rating is an inverted U of beta: without a penalty and with far too much of it PPO-ptx is worse than between.",
        spec.Peak("gold/total", "ppo_ptx", AXIS),
        figure="gold",
        matters=0.02,
        because="a tenth of what PPO gains over SFT in gold",
    ),
    spec.Claim(
        "Ouyang et al. 2022, Fig. 36, E.7",
        "A beta far too large costs gold: 2.0 is below 0.08.",
        spec.Greater(spec.Pick("ppo_ptx", {AXIS: 0.08}), spec.Pick("ppo_ptx", {AXIS: 2.0}), "gold/total"),
        figure="gold",
        matters=0.02,
        because="a tenth of what PPO gains over SFT in gold",
    ),
    spec.Claim(
        "Stiennon et al. 2020, Table 9",
        "The KL to the SFT policy falls as beta grows.",
        spec.Trend("kl", "ppo_ptx", AXIS, "falls"),
        figure="frontier",
        matters=0.1,
        because="from one coefficient to the next of Table 9 the KL falls by 2 to 10 nats",
    ),
)
