"""The preference ladder: base, prompted base, SFT, PPO and PPO-ptx at three sizes of policy.

    python -m rlhf_jax.sweep --config=experiments/figures/ladder.py --workdir=runs/figures/ladder \\
        --stages=runs/figures/stages

Ouyang et al. 2022, Fig. 1 and 3. There people compare with the SFT model of the largest size; here the world's gold
labeler, who is the same for all, says what a policy is worth, and win rates are against the SFT policy of the same
size. As in the paper the reward model has one size whatever the policy's (C.2): that of the largest one here, from one
base model; it learns from rankings of what policies of this size write. The prompted base is shown up to two
demonstrations, those that the reward model likes best (section 3.5); prefix, prompt and completion are within the 96
places that the base models were trained on. One base model of a size stands under its three seeds: its row has no
spread over seeds.
"""

from experiments.figures.world import DESIGN, own_base, widths
from experiments.figures.world import get_config as world
from rlhf_jax.report import spec

SIZE, SIZES = "model.embed_dim", (32, 64, 128)
LADDER = ("pretrain", "prompted", "sft", "ppo", "ppo_ptx")


def get_config():
    config = world()
    config.stages = ("pretrain", "sft", "collect", "rm_base", "reward_model", "prompted", "ppo", "ppo_ptx")
    own_base(config, "reward_model")
    config.prompted.length = config.pretrain.length - config.completion_length
    return config


def sweep(h):
    return h.product([widths(h, SIZES, "model"), h.sweep("seed", DESIGN.seeds)])


def at(size, stage):
    return spec.Pick(stage, {SIZE: size})


def above(lower, *higher):
    """At every size."""
    return spec.All(
        tuple(spec.Greater(at(size, one), at(size, lower), "gold/total") for one in higher for size in SIZES)
    )


BASELINE = {SIZE: 128}
WORDS = {
    SIZE: "width",
    "evaluation:shots_shown": "demonstrations shown",
    "evaluation:prefix_score": "reward score of the prefix",
}
FIGURES = (
    spec.Dots("gold/total", LADDER, by=SIZE, name="gold", title="what the gold labeler says, by width of the policy"),
    spec.Dots("win_rate", LADDER, by=SIZE, level=0.5, name="win_rate", title="wins against SFT of the same size"),
)
TABLES = (
    spec.Table(LADDER, ("gold/total", "win_rate", "score", "kl", "completion_length", "skills/mean"), name="ladder"),
    spec.Table(("prompted",), ("evaluation:shots_shown", "evaluation:prefix_score", "eos"), name="prefixes"),
    spec.Table(("reward_model",), ("valid/accuracy", "valid/log_loss"), name="reward_models"),
)
CLAIMS = (
    spec.Claim(
        "Ouyang et al. 2022, Fig. 1",
        "A few-shot prefix makes the base model better, at every size.",
        above("pretrain", "prompted"),
        figure="gold",
        matters=0.02,
        because="a tenth of what PPO gains over SFT in gold",
    ),
    spec.Claim(
        "Ouyang et al. 2022, Fig. 1",
        "SFT is above the prompted base model, at every size.",
        above("prompted", "sft"),
        figure="gold",
        matters=0.02,
        because="a tenth of what PPO gains over SFT in gold",
    ),
    spec.Claim(
        "Ouyang et al. 2022, Fig. 1",
        "PPO and PPO-ptx are above SFT, at every size.",
        above("sft", "ppo", "ppo_ptx"),
        figure="gold",
        matters=0.02,
        because="a tenth of what PPO gains over SFT in gold",
    ),
    spec.Claim(
        "Ouyang et al. 2022, section 4.1",
        "The pretraining mix changes the preference little: PPO-ptx is within 0.05 of PPO, at every size.",
        spec.All(tuple(spec.Close(at(size, "ppo_ptx"), at(size, "ppo"), "gold/total", margin=0.05) for size in SIZES)),
        figure="gold",
    ),
    spec.Claim(
        "Ouyang et al. 2022, section 4.1",
        "The smallest PPO-ptx is above the largest base model.",
        spec.Greater(at(32, "ppo_ptx"), at(128, "pretrain"), "gold/total"),
        figure="gold",
        matters=0.02,
        because="a tenth of what PPO gains over SFT in gold",
    ),
    spec.Claim(
        "Ouyang et al. 2022, Fig. 1",
        "The smallest PPO-ptx is above the largest base model with a prefix.",
        spec.Greater(at(32, "ppo_ptx"), at(128, "prompted"), "gold/total"),
        figure="gold",
        matters=0.02,
        because="a tenth of what PPO gains over SFT in gold",
    ),
)
