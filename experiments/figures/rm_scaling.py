"""A reward model's accuracy by the number of rankings it learns from, and by its size.

    python -m rlhf_jax.sweep --config=experiments/figures/rm_scaling.py --workdir=runs/figures/rm_scaling

Stiennon et al. 2020, Fig. 6: 1.1 points of accuracy for each doubling of the data (8,000 to 64,000 comparisons), 1.8
for each doubling of the model (160M to 13B). Signs and monotony are what can be checked here. Each size of reward
model starts from a base model of its own size; the policies that are compared are the same.
"""

from experiments.figures.world import DESIGN, own_base, own_widths
from experiments.figures.world import get_config as world
from rlhf_jax.report import spec

DATA, WIDTH = "reward_model.subset", "reward_model.model.embed_dim"
AMOUNTS = (":250", ":1000", ":3900")
WIDTHS = (32, 64, 128)


def get_config():
    config = world()
    config.stages = ("pretrain", "sft", "collect", "rm_base", "reward_model")
    own_base(config, "reward_model")
    config.reward_model.warmup_steps = 3  # the smallest amount, 250 prompts, makes 16 steps
    return config


def sweep(h):
    sizes = own_widths(h, "reward_model", WIDTHS)
    by_data = h.product([h.sweep(DATA, AMOUNTS), sizes[-1:]])
    by_size = h.product([h.sweep(DATA, AMOUNTS[-1:]), sizes[:-1]])
    return h.product([by_data + by_size, h.sweep("seed", DESIGN.seeds)])


BASELINE = {DATA: ":3900", WIDTH: 128}
WORDS = {DATA: "prompts", WIDTH: "width"}
FIGURES = (
    spec.Curve("valid/accuracy", "reward_model", DATA, where={WIDTH: 128}, scale="category", name="data"),
    spec.Curve("valid/accuracy", "reward_model", WIDTH, where={DATA: ":3900"}, scale="log", name="size"),
)
TABLES = (spec.Table(("reward_model",), ("valid/accuracy", "heldout/accuracy", "valid/log_loss", "valid/ece")),)
CLAIMS = (
    spec.Claim(
        "Stiennon et al. 2020, Fig. 6",
        "Accuracy rises with the data.",
        spec.Trend("valid/accuracy", "reward_model", DATA, "rises", where={WIDTH: 128}),
        figure="data",
        matters=0.005,
        because="a quarter of the 2.2 points that the paper has for a factor of four",
    ),
    spec.Claim(
        "Stiennon et al. 2020, Fig. 6",
        "Accuracy rises with the size of the reward model.",
        spec.Trend("valid/accuracy", "reward_model", WIDTH, "rises", where={DATA: ":3900"}),
        figure="size",
        matters=0.005,
        because="an eighth of the 3.6 points that the paper has for a factor of four in size",
    ),
)
