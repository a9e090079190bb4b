"""What else could be done with the same demonstrations, rankings and prompts.

    python -m rlhf_jax.sweep --config=experiments/figures/comparators.py --workdir=runs/figures/comparators

Best of 16, DPO (Rafailov et al. 2023), and, in the place of PPO's advantages, REINFORCE leave-one-out (Ahmadian et al.
2024) and GRPO (Shao et al. 2024); in the place of people's rankings, a reward model's (AI feedback); in the place of
Bradley-Terry, regression on ranks; and PPO straight from the base model. Each policy at two KL coefficients (DPO: two
betas), so that gold can be compared at equal KL to SFT. No pretraining mix.
"""

from experiments.figures.world import get_config as world
from rlhf_jax.report import spec

POLICIES = ("ppo", "rloo", "grpo", "ppo_regression", "ppo_feedback", "ppo_base")
COEFS, BETAS = (0.04, 0.16), (0.05, 0.2)


def get_config(arg: str = ""):
    config = world()
    config.stages = (
        "pretrain", "sft", "collect", "reward_model", "regression", "feedback", "taught", *POLICIES, "dpo", "best_of_n",
    )  # fmt: skip
    copy = lambda stage: config[stage].copy_and_resolve_references()
    config.regression = copy("reward_model")
    config.regression.loss = "regression"
    config.feedback = copy("collect")
    config.feedback.update(labeler="reward_model", reward="reward_model", held_out_group="")
    config.taught = copy("reward_model")
    config.taught.rankings = "feedback"
    for stage in POLICIES[1:]:
        config[stage] = copy("ppo")
    for stage in ("rloo", "grpo"):
        config[stage].update(advantage=stage, samples_per_prompt=4)
    config.ppo_regression.reward = "regression"
    config.ppo_feedback.reward = "taught"
    config.ppo_base.init = "pretrain"
    config.dpo.update(rankings="collect", batch_size=16, learning_rate=1e-4, warmup_steps=10, epochs=1.0)
    config.best_of_n.update(samples=16)
    return config


def sweep(h):
    coefs = [{f"{stage}.kl_coef": coef for stage in POLICIES} | {"dpo.beta": beta} for coef, beta in zip(COEFS, BETAS)]
    return h.product([coefs, h.sweep("seed", range(3))])


AXIS = "ppo.kl_coef"


def path(stage, label=""):
    return spec.Path(stage, AXIS, label=label)


def pick(stage):
    return spec.Pick(stage, {AXIS: COEFS[0]})


FIGURES = (
    spec.Plane(
        "kl", "gold/total",
        (*(path(stage) for stage in ("ppo", "rloo", "grpo", "dpo")), spec.Path("best_of_n"), spec.Path("sft")),
        sqrt_x=True, name="plane", title="gold score at equal KL: estimators, DPO, best of n",
    ),
    spec.Plane(
        "kl", "gold/total", tuple(path(stage) for stage in ("ppo", "ppo_regression", "ppo_feedback", "ppo_base")),
        sqrt_x=True, name="plane_sources", title="gold score at equal KL: other rewards, another start",
    ),
)  # fmt: skip
TABLES = (
    spec.Table(("sft", *POLICIES, "dpo", "best_of_n"), ("gold/total", "kl", "win_rate", "score", "skills/mean", "valid_loss")),
)
CLAIMS = (
    spec.Claim(
        "Ahmadian et al. 2024",
        "REINFORCE leave-one-out is no worse than PPO at equal KL.",
        spec.Dominates(path("rloo"), path("ppo"), "kl", "gold/total", sqrt_x=True),
        figure="plane",
    ),
    spec.Claim(
        "Ivison et al. 2024",
        "PPO is better than DPO on the same rankings.",
        spec.Greater(pick("ppo"), pick("dpo"), "gold/total"),
        figure="plane",
    ),
    spec.Claim(
        "Ouyang et al. 2022, 3.5 (step 1 before step 3)",
        "PPO straight from the base model is worse than PPO from SFT.",
        spec.Greater(pick("ppo"), pick("ppo_base"), "gold/total"),
        figure="plane_sources",
    ),
    spec.Claim(
        "Lee et al. 2023",
        "Feedback of a reward model that learned from people does as well as theirs: within 0.05 of gold.",
        spec.Close(pick("ppo_feedback"), pick("ppo"), "gold/total", margin=0.05),
        figure="plane_sources",
    ),
)
