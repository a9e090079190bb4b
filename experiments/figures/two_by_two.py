"""Instruction tuning alone, RLHF alone, or both: what each of the two adds to the base model, and to the other.

    python -m rlhf_jax.sweep --config=experiments/figures/two_by_two.py --workdir=runs/figures/two_by_two

Four corners of a square: the base model, SFT of it, PPO of it, and PPO of SFT (Ouyang et al. 2022, section 3.1). RLHF alone
has two forms. `rlhf_alone` has learned from no demonstration anywhere: the base model writes the completions that are ranked,
and the reward model starts from it. (Demonstrations say which score is 0, as for every reward model.) `ppo_from_base` has the
reward model of the whole pipeline, so that it differs from `ppo` in its start alone. The gold labeler of the world judges all of them. If the gains of the two simply added up, RLHF would gain as
much on top of SFT as it gains on top of the base model.
"""

from experiments.figures.world import DESIGN
from experiments.figures.world import get_config as world
from rlhf_jax.report import spec

STAGES = ("pretrain", "sft", "rlhf_alone", "ppo_from_base", "ppo")
ALONE = STAGES[2:4]
LABELS = {"rlhf_alone": "RLHF alone", "ppo_from_base": "PPO from base", "ppo": "both", "sft": "SFT alone"}


def get_config():
    config = world()
    config.stages = ("pretrain", "sft", "collect", "reward_model", "collect_alone", "reward_alone", *STAGES[2:])
    for name, section in (("collect_alone", "collect"), ("reward_alone", "reward_model")):
        config[name] = config[section].copy_and_resolve_references()
    for name in ALONE:
        config[name] = config.ppo.copy_and_resolve_references()
        config[name].init = "pretrain"
    config.collect_alone.update(models=("pretrain@1.0", "pretrain@0.7", "pretrain@1.0"), demonstrations=False)
    config.reward_alone.update(init="pretrain", rankings="collect_alone")
    config.rlhf_alone.reward = "reward_alone"
    return config


def sweep(h):
    return h.sweep("seed", DESIGN.seeds)


def at(stage):
    return spec.Pick(stage, label=LABELS.get(stage, ""))


def above(higher, lower, quantity="gold/total"):
    return spec.Greater(at(higher), at(lower), quantity)


def gains_more(quantity):
    """RLHF on top of SFT, compared with either form of RLHF alone."""
    on_sft = spec.Difference(at("ppo"), at("sft"))
    return spec.All(
        tuple(spec.Greater(on_sft, spec.Difference(at(alone), at("pretrain")), quantity) for alone in ALONE)
    )


OF_GOLD = dict(figure="gold", matters=0.02, because="a tenth of what PPO gains over SFT in gold")
OF_SHARE = dict(matters=0.02, because="a tenth of what PPO gains over SFT in its largest part, harmlessness")
FIGURES = (
    spec.Dots("gold/total", STAGES, name="gold", title="what the gold labeler says"),
    spec.Dots("gold/helpful", STAGES, name="helpful", title="how far the task is done"),
    spec.Dots("gold/harmless", STAGES, name="harmless", title="how rarely a word is rude"),
    spec.Dots("completion_length", STAGES, name="length", title="how long the answer is"),
)
TABLES = (
    spec.Table(
        STAGES,
        (
            "gold/total",
            "gold/helpful",
            "gold/harmless",
            "gold/concise",
            "win_rate",
            "kl",
            "eos",
            "completion_length",
            "skills/mean",
        ),
    ),
    spec.Table(("reward_model", "reward_alone"), ("valid/accuracy", "valid/log_loss"), name="reward_models"),
)
ORDER = "Ouyang et al. 2022, section 3.1 (the order of the three steps)"
SAID = "introductions to RLHF: what each of the two lacks alone"
CLAIMS = (
    spec.Claim(
        "Ouyang et al. 2022, Fig. 1",
        "Instruction tuning alone is above the base model.",
        above("sft", "pretrain"),
        **OF_GOLD,
    ),
    spec.Claim(
        ORDER,
        "RLHF alone, without any demonstration, is above the base model.",
        above("rlhf_alone", "pretrain"),
        **OF_GOLD,
    ),
    spec.Claim(
        "Ouyang et al. 2022, Fig. 1", "Both are above instruction tuning alone.", above("ppo", "sft"), **OF_GOLD
    ),
    spec.Claim(
        ORDER,
        "Both are above RLHF alone, with a reward model of its own and with the one of both.",
        spec.All(tuple(above("ppo", alone) for alone in ALONE)),
        **OF_GOLD,
    ),
    spec.Claim(
        ORDER,
        "Instruction tuning alone is above RLHF alone, with a reward model of its own and with the one of both.",
        spec.All(tuple(above("sft", alone) for alone in ALONE)),
        **OF_GOLD,
    ),
    spec.Claim(
        SAID,
        "Instruction tuning alone is rude: its answers are less harmless than those of both.",
        above("ppo", "sft", "gold/harmless"),
        figure="harmless",
        **OF_SHARE,
    ),
    spec.Claim(
        SAID,
        "Instruction tuning alone is long: its answers have more tokens than those of both.",
        above("sft", "ppo", "completion_length"),
        figure="length",
        matters=1.0,
        because="a token is the shortest of words",
    ),
    spec.Claim(
        SAID,
        "RLHF alone does not grasp the task: its answers are less helpful than those of instruction tuning alone.",
        spec.All(tuple(above("sft", alone, "gold/helpful") for alone in ALONE)),
        figure="helpful",
        **OF_SHARE,
    ),
    spec.Claim(
        SAID,
        "RLHF gains more on top of instruction tuning than alone, by gold score.",
        gains_more("gold/total"),
        **OF_GOLD,
        note="Of what RLHF adds to the gold score, harmlessness is 0.09 in either case, and concision 0.12 on the base model and "
        "0.04 on SFT, which has learned most of it already.",
    ),
    spec.Claim(
        SAID,
        "RLHF gains more on top of instruction tuning than alone, by how far the task is done.",
        gains_more("gold/helpful"),
        figure="helpful",
        **OF_SHARE,
    ),
)
