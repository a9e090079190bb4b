"""Training against a proxy: it goes on rising, and gold does not.

    python -m rlhf_jax.sweep --config=experiments/figures/overoptimization.py --workdir=runs/figures/overoptimization

Gao et al. 2022: with RL against a proxy reward model gold rises and then falls, later and from higher for a larger
proxy and for one of more data; a KL penalty raises what the proxy says at a given KL, but not gold. Bai et al. 2022,
section 4.3: the score grows linearly in the root of the KL; section 4.2: a second reward model that learned from the
other half of the rankings agrees at first, and less and less as the score rises. No pretraining mix; gold is what the
world's gold labeler says of every rollout. The proxies learn from rankings by the same labeler, who makes no mistakes,
as in Gao et al. Every value model starts as the policy, so that only the proxy differs.
"""

from experiments.figures.world import DESIGN, noiseless, own_base, own_widths
from experiments.figures.world import get_config as world
from rlhf_jax.report import spec

DATA, WIDTH, BETA = "reward_model.subset", "reward_model.model.embed_dim", "ppo.kl_coef"
AMOUNTS = (":60", ":200", ":650", ":2000")  # numbers of prompts; the test model learns from the other half
WIDTHS = (16, 32, 64, 128)
WEAK, MOST, LARGEST = ":200", ":2000", 128


def get_config():
    config = world()
    config.stages = ("pretrain", "sft", "collect", "gold_rankings", "rm_base", "reward_model", "test_model", "ppo")
    noiseless(config, "reward_model")
    config.reward_model.warmup_steps = 3  # the smallest amount, 60 prompts, makes 4 steps
    config.test_model = config.reward_model.copy_and_resolve_references()
    config.test_model.subset = "2000:"
    own_base(config, "reward_model", LARGEST)
    config.ppo.update(iterations=30, learning_rate=7e-4, value_init="policy")  # so that it goes far
    return config


def sweep(h):
    sizes = own_widths(h, "reward_model", WIDTHS)
    by_data = h.product([h.sweep(DATA, AMOUNTS), sizes[-1:], h.sweep(BETA, [0.0])])
    by_size = h.product([h.sweep(DATA, [MOST]), sizes[:-1], h.sweep(BETA, [0.0])])
    penalised = h.product([h.sweep(DATA, [WEAK, MOST]), sizes[-1:], h.sweep(BETA, [0.1])])
    return h.product([by_data + by_size + penalised, h.sweep("seed", DESIGN.seeds)])


def at(data, beta, y=None):
    return spec.Pick("ppo", {DATA: data, WIDTH: LARGEST, BETA: beta}, y=y)


def course(label, data=WEAK, width=LARGEST, beta=0.0):
    """The steps of the runs of one setting, which are compared at equal KL."""
    return spec.Path("ppo", where={DATA: data, WIDTH: width, BETA: beta}, label=label)


def higher(a, b, y):
    return spec.Dominates(a, b, "objective/kl", f"objective/{y}", sqrt_x=True, file="metrics.jsonl")


def curves(y, name, title, **where):
    return spec.History(f"objective/{y}", "ppo", x="objective/kl", sqrt_x=True, where=where, name=name, title=title)


BY_DATA, BY_SIZE = {WIDTH: LARGEST, BETA: 0.0}, {DATA: MOST, BETA: 0.0}
PENALTY, FREE = course("beta 0.1", beta=0.1), course("beta 0")
BASELINE = BY_DATA | BY_SIZE
WORDS = {DATA: "prompts of the proxy", WIDTH: "width of the proxy", BETA: "beta"}
FIGURES = (
    curves("gold", "gold_by_data", "gold of rollouts, by rankings that the proxy learned from", **BY_DATA),
    curves("scores", "proxy_by_data", "what the proxy itself says", **BY_DATA),
    curves("gold", "gold_by_size", "gold of rollouts, by size of the proxy", **BY_SIZE),
    curves("gold", "gold_by_beta", "gold of rollouts, with and without a KL penalty", **{DATA: WEAK, WIDTH: LARGEST}),
    curves("scores", "proxy_by_beta", "what the proxy itself says", **{DATA: WEAK, WIDTH: LARGEST}),
)
TABLES = (
    spec.Table(
        ("ppo",),
        (
            "gold/total",
            "score/reward_model",
            "score/test_model",
            "kl",
            "history:objective/gold@first",
            "history:objective/gold@mean_last_10%",
        ),
    ),
    spec.Table(("reward_model",), ("valid/accuracy", "valid/log_loss"), name="proxies"),
)
PROXY = spec.Pick("ppo", {BETA: 0.0}, y="history:objective/scores@mean_last_10%")
CLAIMS = (
    spec.Claim(
        "Gao et al. 2022, Fig. 1",
        "Without a penalty gold turns down, by more than 0.05 from its highest place, while the proxy rises (mean of all "
        "proxies).",
        spec.All(
            (
                spec.Turns("objective/gold", "ppo", "falls", by=0.05, where={BETA: 0.0}),
                spec.Greater(PROXY, spec.Pick("ppo", {BETA: 0.0}), "history:objective/scores@first"),
            )
        ),
        figure="gold_by_data",
        matters=0.05,
        because="a tenth of what the proxy's score rises by",
    ),
    spec.Claim(
        "Gao et al. 2022, section 3.3",
        "At equal KL a proxy of more data gives more gold: 2,000 prompts against 60.",
        higher(course("2,000 prompts", MOST), course("60 prompts", AMOUNTS[0]), "gold"),
        figure="gold_by_data",
        matters=0.02,
        because="a tenth of what PPO gains over SFT in gold",
    ),
    spec.Claim(
        "Gao et al. 2022, Fig. 1",
        "At equal KL a larger proxy gives more gold: a width of 128 against 16.",
        higher(course("width 128", MOST), course("width 16", MOST, 16), "gold"),
        figure="gold_by_size",
        matters=0.02,
        because="a tenth of what PPO gains over SFT in gold",
    ),
    spec.Claim(
        "Gao et al. 2022, section 3.6",
        "A KL penalty does not move gold at a given KL (by less than 0.05).",
        spec.Coincides(PENALTY, FREE, "objective/kl", "objective/gold", margin=0.05, sqrt_x=True, file="metrics.jsonl"),
        figure="gold_by_beta",
    ),
    spec.Claim(
        "Gao et al. 2022, section 3.6",
        "A KL penalty raises what the proxy says at a given KL.",
        higher(PENALTY, FREE, "scores"),
        figure="proxy_by_beta",
        matters=0.05,
        because="a tenth of what the proxy's score rises by",
    ),
    spec.Claim(
        "Gao et al. 2022, section 3.1",
        "Gold gains d (alpha - beta ln d) of the distance d = sqrt(KL): it predicts other seeds and iterations better than "
        "alpha d and than no gain do.",
        spec.Law("objective/gold", "ppo", "rl", against=("constant", "linear"), where={BETA: 0.0}),
        figure="gold_by_data",
        matters=1e-4,
        because="the square of 0.01 of gold",
    ),
    spec.Claim(
        "Bai et al. 2022, 4.3",
        "The proxy's score is linear in the root of the KL: that predicts other seeds and iterations better than a line in the "
        "KL does.",
        spec.Law(
            "objective/scores",
            "ppo",
            "linear",
            against=("constant", "kl"),
            x="objective/kl",
            where={DATA: MOST, BETA: 0.1},
        ),
        figure="proxy_by_data",
        matters=4e-4,
        because="the square of 0.02 of the score",
    ),
    spec.Claim(
        "Bai et al. 2022, 4.2",
        "After PPO the reward model it was trained on says more of it than one that learned from other prompts.",
        spec.Greater(at(WEAK, 0.0, "score/reward_model"), at(WEAK, 0.0, "score/test_model"), "score/reward_model"),
        figure="proxy_by_data",
        matters=0.05,
        because="a tenth of what the proxy's score rises by",
    ),
)
