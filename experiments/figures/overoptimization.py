"""Training against a proxy: it goes on rising, and gold does not.

    python -m rlhf_jax.sweep --config=experiments/figures/overoptimization.py --workdir=runs/figures/overoptimization

Gao et al. 2022: with RL against a proxy reward model gold rises and then falls, later and from higher for a proxy of
more data; a KL penalty moves the proxy's frontier but not gold's, and acts like stopping early. Bai et al. 2022,
section 4.3: the score grows linearly in the root of the KL; section 4.2: a second reward model that learned from the
other half of the rankings agrees at first, and less and less as the score rises. No pretraining mix; gold is what the
world's labeler says of every rollout.
"""

from experiments.figures.world import get_config as world
from rlhf_jax.report import spec

DATA, BETA = "reward_model.subset", "ppo.kl_coef"
WEAK, STRONG = ":150", ":1250"  # prompts; the test model learns from the other half


def get_config(arg: str = ""):
    config = world()
    config.stages = ("pretrain", "sft", "collect", "reward_model", "test_model", "ppo")
    config.reward_model.subset = STRONG
    config.test_model = config.reward_model.copy_and_resolve_references()
    config.test_model.subset = "1250:"
    config.ppo.update(iterations=40, log_gold=True)
    return config


def sweep(h):
    return h.product([h.sweep(DATA, [WEAK, STRONG]), h.sweep(BETA, [0.0, 0.1]), h.sweep("seed", range(3))])


def at(data, beta, y=None):
    return spec.Pick("ppo", {DATA: data, BETA: beta}, y=y)


BASELINE = {DATA: STRONG, BETA: 0.1}
FIGURES = (
    spec.History("objective/gold", "ppo", x="objective/kl", sqrt_x=True, name="gold", title="gold score of rollouts"),
    spec.History("objective/scores", "ppo", x="objective/kl", sqrt_x=True, name="proxy", title="proxy score of rollouts"),
)
TABLES = (
    spec.Table(
        ("sft", "ppo"),
        ("gold/total", "score/reward_model", "score/test_model", "kl", "history:objective/gold@max",
         "history:objective/gold@mean_last_10%"),
    ),
)  # fmt: skip
CLAIMS = (
    spec.Claim(
        "Gao et al. 2022, Fig. 1",
        "Without a penalty gold turns down: it ends below its best by more than 0.05, while the proxy does not.",
        spec.All(
            (
                spec.Greater(
                    at(WEAK, 0.0, "history:objective/gold@max"), at(WEAK, 0.0, "history:objective/gold@mean_last_10%"),
                    "history:objective/gold@max", by=0.05,
                ),
                spec.Greater(
                    at(WEAK, 0.0, "history:objective/scores@mean_last_10%"),
                    at(WEAK, 0.0, "history:objective/scores@first"), "history:objective/scores@first",
                ),
            )
        ),
        figure="gold",
    ),
    spec.Claim(
        "Gao et al. 2022, Fig. 1 and 4",
        "A proxy of more data ends with more gold.",
        spec.Greater(at(STRONG, 0.0), at(WEAK, 0.0), "history:objective/gold@mean_last_10%"),
        figure="gold",
    ),
    spec.Claim(
        "Gao et al. 2022, section 3.1",
        "Gold gains d (alpha - beta ln d) of the distance d = sqrt(KL): R^2 of at least 0.8, of means of 4 iterations.",
        spec.Linear("objective/gold", "objective/kl_exact", "ppo", r2=0.8, sqrt_x=True, form="rl", start=True, window=4,
                    where={BETA: 0.0}),
        figure="gold",
    ),
    spec.Claim(
        "Bai et al. 2022, 4.3",
        "The proxy's score is linear in the root of the KL: R^2 of at least 0.9.",
        spec.Linear("objective/scores", "objective/kl", "ppo", r2=0.9, sqrt_x=True, where={DATA: STRONG, BETA: 0.1}),
        figure="proxy",
    ),
    spec.Claim(
        "Bai et al. 2022, 4.2",
        "After PPO the reward model it was trained on says more of it than one that learned from other prompts.",
        spec.Greater(at(WEAK, 0.0, "score/reward_model"), at(WEAK, 0.0, "score/test_model"), "score/reward_model"),
        figure="proxy",
    ),
)  # fmt: skip
