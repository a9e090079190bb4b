"""A reward model that learns comparisons against one that regresses scores, from the same labels.

    python -m rlhf_jax.sweep --config=experiments/figures/rm_regression.py --workdir=runs/figures/rm_regression

Introductions to RLHF let the reward model regress people's scores of single answers; Ouyang et al. 2022, 3.5, let it learn which
of two answers people prefer. Here both have the rankings of four labelers for a thousand prompts. A score is what these rankings
say: the mean result of a completion against the others of its prompt, from -1 to 1. Each way has one pass, in as many steps, at
its own learning rate: the first seed chooses it, and the other seeds judge.

A difference of two regressed scores is no log-odds, as that of two compared ones is. Accuracy does not depend on the unit of
scores, and log-loss does: it is what PPO would take for the strength of a preference.

An earlier sweep, with 300 validation prompts, left accuracy undecided after its last look, at twelve other seeds; here are 1,200.
"""

from experiments.figures.world import DESIGN, NEW_SEEDS
from experiments.figures.world import get_precise_config as world
from rlhf_jax.report import spec

LOSS, RATE = "reward_model.loss", "reward_model.learning_rate"
RATES = (3.5e-4, 7e-4, 1.4e-3, 2.8e-3)
COMPARED, REGRESSED = {LOSS: "kwise"}, {LOSS: "regression"}


def get_config():
    config = world()
    config.stages = ("pretrain", "sft", "collect", "reward_model")
    config.reward_model.update(subset=":1000", batch_size=8, warmup_steps=10)
    return config


def sweep(h):
    settings = [way | {RATE: rate} for way in (COMPARED, REGRESSED) for rate in RATES]
    return h.product([settings, h.sweep("seed", NEW_SEEDS)])


def tuned(way, label, quantity, best):
    """At its own rate."""
    return spec.Pick("reward_model", way, y=quantity, label=label, tuned=RATE, best=best)


def better(quantity, best):
    """Comparisons over regression, with the rate that suits the quantity."""
    compared = tuned(COMPARED, "comparisons", quantity, best)
    regressed = tuned(REGRESSED, "regression", quantity, best)
    pair = (compared, regressed) if best == "highest" else (regressed, compared)
    return spec.Greater(*pair, quantity)


SOURCE = "introductions to RLHF: the reward model regresses scores"
BASELINE = {LOSS: "kwise", RATE: 7e-4}
WORDS = {LOSS: "loss", RATE: "learning rate"}
FIGURES = (
    spec.Curve("valid/accuracy", "reward_model", RATE, by=LOSS, name="accuracy"),
    spec.Curve("valid/log_loss", "reward_model", RATE, by=LOSS, name="log_loss"),
)
TABLES = (
    spec.Table(
        ("reward_model",), ("valid/accuracy", "heldout/accuracy", "valid/log_loss", "valid/ece", "seconds"), name="ways"
    ),
)
CLAIMS = (
    spec.Claim(
        SOURCE,
        "From the same labels, comparisons make a reward model that is right on more validation pairs than regression of scores.",
        better("valid/accuracy", "highest"),
        figure="accuracy",
        matters=0.005,
        because="the paper's own standard errors are 0.4 and 0.9 points",
    ),
    spec.Claim(
        SOURCE,
        "Its differences say better how likely a preference is: the validation log-loss is lower.",
        better("valid/log_loss", "lowest"),
        figure="log_loss",
        matters=0.005,
        because="what a point of accuracy is worth in log loss, halved",
    ),
)
