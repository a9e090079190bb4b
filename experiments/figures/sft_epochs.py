"""Sixteen epochs of SFT: the loss overfits after about one, the reward goes on rising.

    python -m rlhf_jax.sweep --config=experiments/figures/sft_epochs.py --workdir=runs/figures/sft_epochs

Ouyang et al. 2022, 3.5 and C.1: SFT models overfit on validation loss after 1 epoch, and yet more epochs help both
the reward model's score and people's ratings; the paper trains for 16 and selects by the score. Here a reward model
of the same run scores samples on validation prompts after every epoch.
"""

from experiments.figures.world import DESIGN
from experiments.figures.world import get_config as world
from rlhf_jax.report import spec


def get_config():
    config = world()
    config.stages = ("pretrain", "sft", "collect", "reward_model", "sft_long")
    config.data.world.update(demonstrations=1000, rm_prompts=2000)  # sixteen epochs of 6,000 take too long
    config.sft_long = config.sft.copy_and_resolve_references()
    config.sft_long.update(epochs=16.0, learning_rate=4e-4, select="reward", reward="reward_model")
    return config


def sweep(h):
    return h.sweep("seed", DESIGN.seeds)


def of_history(name):
    return spec.Pick("sft_long", y=f"history:{name}")


FIGURES = (
    spec.History("valid/loss", "sft_long", name="loss", title="validation loss"),
    spec.History("valid/score", "sft_long", name="score", title="score of samples on validation prompts"),
)
TABLES = (spec.Table(("sft", "sft_long"), ("gold/total", "score", "kl", "win_rate", "skills/mean", "valid_loss")),)
CLAIMS = (
    spec.Claim(
        "Ouyang et al. 2022, 3.5",
        "The validation loss overfits: after its lowest epoch it rises by more than 0.02 nats.",
        spec.Turns("valid/loss", "sft_long", "rises", by=0.02),
        figure="loss",
    ),
    spec.Claim(
        "Ouyang et al. 2022, 3.5",
        "The reward score is higher after 16 epochs than after the first.",
        spec.Greater(of_history("valid/score@last"), of_history("valid/score@first"), "history:valid/score@last"),
        figure="score",
        matters=0.02,
        because="a tenth of what the score differs by between SFT and the base model, and less",
    ),
    spec.Claim(
        "Ouyang et al. 2022, C.1",
        "So is what people would say of it: the gold score of the selected model is above that of 2 epochs.",
        spec.Greater(spec.Pick("sft_long"), spec.Pick("sft"), "gold/total"),
        figure="score",
        matters=0.02,
        because="a tenth of what PPO gains over SFT in gold",
    ),
)
