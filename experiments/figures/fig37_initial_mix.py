"""What PPO-ptx starts from: pretraining text mixed into the demonstrations (0, 10, 50 %), for one or two epochs.

    python -m rlhf_jax.sweep --config=experiments/figures/fig37_initial_mix.py --workdir=runs/figures/fig37_initial_mix

Ouyang et al. 2022, Fig. 37 (E.10) and C.3: the policy that PPO starts from, which is the KL reference too, is not the
SFT baseline but trained for 2 epochs with 10 % of pretraining text; other mixes matter little. The reward model is
the same for all, of the SFT baseline's line.
"""

from experiments.figures.world import DESIGN
from experiments.figures.world import get_config as world
from rlhf_jax.report import spec

MIX, EPOCHS = "ppo_init.pretrain_mix", "ppo_init.epochs"


def get_config():
    config = world()
    config.stages = ("pretrain", "sft", "collect", "reward_model", "ppo_init", "ppo_ptx")
    config.ppo_init = config.sft.copy_and_resolve_references()
    config.ppo_ptx.init = "ppo_init"
    return config


def sweep(h):
    return h.product([h.sweep(MIX, [0.0, 0.125, 0.5]), h.sweep(EPOCHS, [1.0, 2.0]), h.sweep("seed", DESIGN.seeds)])


def at(mix, epochs=(1.0, 2.0)):
    return spec.Pick("ppo_ptx", {MIX: mix, EPOCHS: epochs})


BASELINE = {MIX: 0.125, EPOCHS: 2.0}
WORDS = {MIX: "share of pretraining text", EPOCHS: "epochs"}
FIGURES = (
    spec.Curve("gold/total", "ppo_ptx", MIX, by=EPOCHS, name="gold"),
    spec.Curve("skills/mean", "ppo_ptx", MIX, by=EPOCHS, name="skills"),
)
TABLES = (spec.Table(("ppo_init", "ppo_ptx"), ("gold/total", "score", "kl", "skills/mean", "valid_loss")),)
CLAIMS = (
    spec.Claim(
        "Ouyang et al. 2022, Fig. 37, E.10",
        "PPO-ptx is insensitive to the mix: half of pretraining text or none give a gold score within 0.05 of 10 %.",
        spec.All(
            (
                spec.Close(at(0.0), at(0.125), "gold/total", margin=0.05),
                spec.Close(at(0.5), at(0.125), "gold/total", margin=0.05),
            )
        ),
        figure="gold",
    ),
)
