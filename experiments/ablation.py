"""Instruction tuning alone, RLHF alone, or both: what each of the two adds to the base model.

    python -m rlhf_jax.sweep --config=experiments/ablation.py --workdir=runs/ablation

Four corners of a square: the base model, SFT of it, PPO of it, and PPO of SFT (Ouyang et al. 2022, section 3.1). RLHF alone
has two forms. `rlhf_alone` has seen no demonstration anywhere: the base model writes the completions that are ranked, and
the reward model starts from it. `ppo_from_base` has the reward model of the whole pipeline, so that it differs from `ppo` in
its start alone. The gold labeler of the world judges all of them. The model is half as wide as
that of experiments/figures, and trained for half as long.
"""

from experiments.figures.world import get_config as world
from rlhf_jax.report import spec

STAGES = ("pretrain", "sft", "rlhf_alone", "ppo_from_base", "ppo")


def get_config(arg: str = ""):
    config = world()
    config.model.embed_dim = 64
    config.stages = ("pretrain", "sft", "collect", "reward_model", "collect_alone", "reward_alone", *STAGES[2:])
    config.reward_model.epochs = 0.4
    config.ppo.iterations = 10
    for name, section in (("collect_alone", "collect"), ("reward_alone", "reward_model")):
        config[name] = config[section].copy_and_resolve_references()
    for name in STAGES[2:4]:
        config[name] = config.ppo.copy_and_resolve_references()
        config[name].init = "pretrain"
    config.collect_alone.update(models=("pretrain@1.0", "pretrain@0.7", "pretrain@1.0", "pretrain@0.7"))
    config.reward_alone.update(init="pretrain", rankings="collect_alone")
    config.rlhf_alone.reward = "reward_alone"
    return config


def sweep(h):
    return h.sweep("seed", range(3))


def above(higher, lower):
    return spec.Greater(spec.Pick(higher), spec.Pick(lower), "gold/total")


FIGURES = (
    spec.Dots("gold/total", STAGES, name="gold", title="what the gold labeler says"),
    spec.Dots("gold/helpful", STAGES, name="helpful", title="how often the answer is right"),
)
TABLES = (
    spec.Table(
        STAGES,
        ("gold/total", "gold/helpful", "gold/harmless", "win_rate", "kl", "eos", "completion_length", "skills/mean"),
    ),
    spec.Table(("reward_model", "reward_alone"), ("valid/accuracy", "valid/log_loss"), name="reward_models"),
)
CLAIMS = (
    spec.Claim(
        "Ouyang et al. 2022, Fig. 1", "Instruction tuning alone is above the base model.", above("sft", "pretrain")
    ),
    spec.Claim(
        "Ouyang et al. 2022, section 3.1 (the order of the three steps)",
        "RLHF alone, without any demonstration, is above the base model.",
        above("rlhf_alone", "pretrain"),
    ),
    spec.Claim("Ouyang et al. 2022, Fig. 1", "Both are above instruction tuning alone.", above("ppo", "sft")),
    spec.Claim(
        "Ouyang et al. 2022, section 3.1 (the order of the three steps)",
        "Both are above RLHF alone, with a reward model of its own and with the one of both.",
        spec.All((above("ppo", "rlhf_alone"), above("ppo", "ppo_from_base"))),
    ),
    spec.Claim(
        "Ouyang et al. 2022, section 3.1 (the order of the three steps)",
        "Instruction tuning alone is above RLHF alone, with a reward model of its own and with the one of both.",
        spec.All((above("sft", "rlhf_alone"), above("sft", "ppo_from_base"))),
    ),
)
