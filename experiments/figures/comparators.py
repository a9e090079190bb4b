"""What else could be done with the same comparisons: gold reward at equal KL of PPO and of seven others.

    python -m rlhf_jax.sweep --config=experiments/figures/comparators.py --workdir=runs/figures/comparators

One world, one set of rankings, one budget of episodes: PPO; RLOO and GRPO in its program (4 completions of a prompt);
PPO by a reward model that regresses scores, by one that learned from the first one's labels of the same completions (AI
feedback: no other people's), and straight from the base model; DPO; best of n.
Each goes to two distances: by its KL coefficient, DPO by beta, best of n by n.
"""

from experiments.figures.world import DESIGN
from experiments.figures.world import get_config as world
from rlhf_jax.report import spec

POLICIES = ("ppo", "rloo", "grpo", "by_regression", "by_feedback", "from_base")  # the stages that run PPO's program
KL_COEFS, BETAS, SAMPLES = (0.04, 0.2), (0.1, 0.5), (16, 4)
AXIS = "ppo.kl_coef"  # its value names the distance of all stages in an arm


def get_config():
    config = world()

    def copy(section):
        return section.copy_and_resolve_references()

    config.stages = (
        "pretrain",
        "sft",
        "collect",
        "reward_model",
        "regression",
        "feedback",
        "taught",
        *POLICIES,
        "dpo",
        "best_of_n",
    )
    for name in POLICIES[1:]:
        config[name] = copy(config.ppo)
    for name in ("rloo", "grpo"):
        config[name].update(advantage=name, samples_per_prompt=4)
    config.regression = copy(config.reward_model)
    config.regression.loss = "regression"
    config.by_regression.reward = "regression"
    config.feedback = copy(config.collect)
    config.feedback.update(rankings="collect", labeler="reward_model", reward="reward_model", held_out_group="")
    config.taught = copy(config.reward_model)
    config.taught.rankings = "feedback"
    config.by_feedback.reward = "taught"
    config.from_base.init = "pretrain"
    config.dpo.update(epochs=1.0, batch_size=16, packed=True, length=160, learning_rate=2e-4, warmup_steps=20)
    return config


def sweep(h):
    coefs = [h.sweep(f"{name}.kl_coef", KL_COEFS) for name in POLICIES]
    distances = h.zipit([*coefs, h.sweep("dpo.beta", BETAS), h.sweep("best_of_n.samples", SAMPLES)])
    return h.product([distances, h.sweep("seed", DESIGN.seeds)])


LABELS = {
    "ppo": "PPO",
    "rloo": "RLOO",
    "grpo": "GRPO",
    "by_regression": "PPO, regressed scores",
    "by_feedback": "PPO, AI feedback",
    "from_base": "PPO from the base model",
    "dpo": "DPO",
    "best_of_n": "best of n",
}


def path(stage):
    return spec.Path(stage, AXIS, label=LABELS[stage])


BASELINE = {AXIS: 0.04}
WORDS = {AXIS: "KL coefficient of PPO"}
FIGURES = (
    spec.Plane(
        "kl", "gold/total", tuple(map(path, LABELS)), sqrt_x=True, name="frontier", title="gold score against distance"
    ),
    spec.Dots("gold/total", ("sft", *LABELS), where=BASELINE, name="gold"),
)
TABLES = (spec.Table(("sft", *LABELS), ("gold/total", "score", "kl", "win_rate", "completion_length", "seconds")),)
CLAIMS = (
    spec.Claim(
        "Rafailov et al. 2023, Fig. 2",
        "DPO has at least the gold reward of PPO at equal KL.",
        spec.Dominates(path("dpo"), path("ppo"), "kl", "gold/total", sqrt_x=True),
        figure="frontier",
        matters=0.02,
        because="a tenth of what PPO gains over SFT in gold",
    ),
    spec.Claim(
        "Gao et al. 2022, section 3.2",
        "Best of n reaches a gold reward at a smaller KL than RL.",
        spec.Dominates(path("best_of_n"), path("ppo"), "kl", "gold/total", sqrt_x=True),
        figure="frontier",
        matters=0.02,
        because="a tenth of what PPO gains over SFT in gold",
    ),
    spec.Claim(
        "Ouyang et al. 2022, section 3.1 (the order of the three steps)",
        "PPO from SFT ends above PPO straight from the base model.",
        spec.Greater(spec.Pick("ppo", BASELINE), spec.Pick("from_base", BASELINE), "gold/total"),
        figure="gold",
        matters=0.02,
        because="a tenth of what PPO gains over SFT in gold",
    ),
)
