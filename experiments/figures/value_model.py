"""What the value model starts from, and whether it has a trunk of its own.

    python -m rlhf_jax.sweep --config=experiments/figures/value_model.py --workdir=runs/figures/value_model

Ouyang et al. 2022, 3.5: the value model starts as the reward model. Stiennon et al. 2020, Fig. 11: a value model of
its own is clearly better than a head on the policy's trunk, because value updates no longer spoil the policy.
"""

from experiments.figures.world import DESIGN, get_config
from rlhf_jax.report import spec

INIT, VALUE = "ppo_ptx.value_init", "ppo_ptx.value"


def sweep(h):
    settings = [{VALUE: "separate", INIT: init} for init in ("reward", "policy", "random")]
    settings += [{VALUE: "shared", INIT: "reward"}]
    return h.product([settings, h.sweep("seed", DESIGN.seeds)])


def at(value, init):
    return spec.Pick("ppo_ptx", {VALUE: value, INIT: init})


BASELINE = {VALUE: "separate", INIT: "reward"}
WORDS = {INIT: "start of the value model", VALUE: "trunk of the value model"}
FIGURES = (
    spec.History("ppo/val/explained_variance", "ppo_ptx", name="explained_variance"),
    spec.History("objective/scores", "ppo_ptx", name="scores"),
)
TABLES = (
    spec.Table(
        ("ppo_ptx",), ("gold/total", "score", "kl", "skills/mean", "history:ppo/val/explained_variance@mean_last_10%")
    ),
)
CLAIMS = (
    spec.Claim(
        "Stiennon et al. 2020, Fig. 11",
        "A value model of its own reaches a higher reward than a head on the policy's trunk.",
        spec.Greater(at("separate", "reward"), at("shared", "reward"), "score"),
        figure="scores",
        matters=0.02,
        because="a thirtieth of what PPO gains in score",
    ),
    spec.Claim(
        "Ouyang et al. 2022, 3.5",
        "Started as the reward model it explains more of the returns at first than started at random.",
        spec.Greater(at("separate", "reward"), at("separate", "random"), "history:ppo/val/explained_variance@first"),
        figure="explained_variance",
        matters=0.05,
        because="a twentieth of the variance of the returns",
    ),
)
