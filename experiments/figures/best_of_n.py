"""Over-optimisation by best of n: gold against distance, for proxies of four sizes and from four amounts of data.

    python -m rlhf_jax.sweep --config=experiments/figures/best_of_n.py --workdir=runs/figures/best_of_n

Gao et al. 2022, Fig. 1a, 3 and 4: gold is what a proxy does not know, and gains d (alpha - beta d), d = sqrt(KL); a
larger proxy and more data raise alpha and lower beta. Gold here is the world's own. All proxies choose among the same
64 samples of each test prompt; each size starts from a base model of its own size.
"""

from experiments.figures.world import DESIGN, noiseless, own_base, own_widths
from experiments.figures.world import get_config as world
from rlhf_jax.report import spec

DATA, WIDTH = "proxy.subset", "proxy.model.embed_dim"
AMOUNTS = (":60", ":250", ":1000", ":3900")
WIDTHS = (16, 32, 64, 128)


def get_config():
    config = world()
    config.stages = (
        "pretrain",
        "sft",
        "collect",
        "reward_model",
        "gold_rankings",
        "pool",
        "rm_base",
        "proxy",
        "best_of_n",
    )
    config.best_of_n.prompts = 256
    config.pool = config.best_of_n.copy_and_resolve_references()
    config.proxy = config.reward_model.copy_and_resolve_references()
    noiseless(config, "proxy")
    own_base(config, "proxy")
    config.proxy.warmup_steps = 3  # the smallest amount, 60 prompts, makes 4 steps
    config.best_of_n.update(reward="proxy", pool="pool")
    return config


def sweep(h):
    sizes = own_widths(h, "proxy", WIDTHS)
    by_data = h.product([h.sweep(DATA, AMOUNTS), sizes[-1:]])
    by_size = h.product([h.sweep(DATA, AMOUNTS[-1:]), sizes[:-1]])
    return h.product([by_data + by_size, h.sweep("seed", DESIGN.seeds)])


def curves(y, name, title, **where):
    return spec.History(y, "best_of_n", x="kl", sqrt_x=True, where=where, file="curve.jsonl", name=name, title=title)


LARGEST, MOST = {WIDTH: 128}, {DATA: ":3900"}
ALPHA, BETA = "evaluation:law/gold/alpha", "evaluation:law/gold/beta"
BASELINE = LARGEST | MOST
WORDS = {DATA: "prompts of the proxy", WIDTH: "width of the proxy", ALPHA: "alpha of gold", BETA: "beta of gold"}
FIGURES = (
    curves("gold", "gold_by_size", "gold of the best of n, by size of the proxy", **MOST),
    curves("gold", "gold_by_data", "gold of the best of n, by rankings that the proxy learned from", **LARGEST),
    curves("score", "score_by_data", "what the proxy itself says", **LARGEST),
    spec.Curve("valid/accuracy", "proxy", WIDTH, where=MOST, scale="log", name="accuracy_by_size"),
    spec.Curve("valid/accuracy", "proxy", DATA, where=LARGEST, scale="category", name="accuracy_by_data"),
    spec.Curve(ALPHA, "best_of_n", WIDTH, where=MOST, scale="log", name="alpha_by_size"),
    spec.Curve(BETA, "best_of_n", WIDTH, where=MOST, scale="log", name="beta_by_size"),
    spec.Curve(ALPHA, "best_of_n", DATA, where=LARGEST, scale="category", name="alpha_by_data"),
    spec.Curve(BETA, "best_of_n", DATA, where=LARGEST, scale="category", name="beta_by_data"),
)
TABLES = (
    spec.Table(("best_of_n",), ("gold/total", "win_rate", ALPHA, BETA)),
    spec.Table(("proxy",), ("valid/accuracy", "valid/log_loss"), name="proxies"),
)
CLAIMS = (
    spec.Claim(
        "Gao et al. 2022, section 3.1",
        "Gold gains d (alpha - beta d) of the distance d = sqrt(KL): it predicts other prompts and n better than alpha d, "
        "alpha ln n and no gain do.",
        spec.Law(
            "gold", "best_of_n", "best_of_n", against=("constant", "linear", "log_n"), over="prompts", where=BASELINE
        ),
        figure="gold_by_size",
        matters=1e-4,
        because="the square of 0.01 of gold",
    ),
    spec.Claim(
        "Gao et al. 2022, Fig. 3",
        "alpha rises with the size of the proxy.",
        spec.Trend(ALPHA, "best_of_n", WIDTH, "rises", where=MOST),
        figure="alpha_by_size",
        matters=0.005,
        because="in the paper alpha rises by 3 % a doubling, and a width counts as two",
    ),
    spec.Claim(
        "Gao et al. 2022, Fig. 3",
        "beta falls with the size of the proxy.",
        spec.Trend(BETA, "best_of_n", WIDTH, "falls", where=MOST),
        figure="beta_by_size",
        matters=0.005,
        because="in the paper beta falls by 2.5 % a doubling, and a width counts as two",
    ),
    spec.Claim(
        "Gao et al. 2022, section 3.3",
        "With more data the best by the proxy has more gold.",
        spec.Trend("gold/total", "best_of_n", DATA, "rises", where=LARGEST),
        figure="gold_by_data",
        matters=0.01,
        because="a twentieth of what PPO gains over SFT in gold, for each factor of four",
    ),
)
