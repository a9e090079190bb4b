"""Does a reward model generalise to labelers who labelled nothing that it learned from?

    python -m rlhf_jax.sweep --config=experiments/figures/rm_labelers.py --workdir=runs/figures/rm_labelers

Ouyang et al. 2022, 4.1 and E.2: labelers in five groups, each held out in turn, three seeds each: 72.4 +- 0.4 % on
the groups that labelled for training, 69.6 +- 0.9 % on the one that did not. The world's forty labelers have tastes of
their group and of their own, and a gap of 2.8 points is planted: a perfect model of the training groups' mean
labeler would lose so much.
"""

from experiments.figures.world import DESIGN
from experiments.figures.world import get_config as world
from rlhf_jax.report import spec
from rlhf_jax.world.labelers import GROUPS

AXIS = "relabelled.held_out_group"


def get_config():
    config = world()
    config.stages = ("pretrain", "sft", "collect", "relabelled", "reward_model")
    config.relabelled = config.collect.copy_and_resolve_references()
    config.relabelled.rankings = "collect"  # the completions are the same, whoever is held out
    config.reward_model.update(rankings="relabelled", subset=":1200")
    return config


def sweep(h):
    return h.product([h.sweep(AXIS, GROUPS), h.sweep("seed", DESIGN.seeds)])


IN_GROUP = spec.Pick("reward_model", y="valid/accuracy", label="training labelers")
HELD_OUT = spec.Pick("reward_model", y="heldout/accuracy", label="held-out group")

WORDS = {AXIS: "group held out"}
FIGURES = (
    spec.Curve("valid/accuracy", "reward_model", AXIS, scale="category", name="in_group"),
    spec.Curve("heldout/accuracy", "reward_model", AXIS, scale="category", name="held_out"),
)
TABLES = (spec.Table(("reward_model",), ("valid/accuracy", "heldout/accuracy", "valid/ece", "heldout/ece")),)
CLAIMS = (
    spec.Claim(
        "Ouyang et al. 2022, 4.1",
        "On labelers of the training groups it is more accurate than on the group held out.",
        spec.Greater(IN_GROUP, HELD_OUT, "valid/accuracy"),
        figure="held_out",
        matters=0.005,
        because="the paper's own standard errors are 0.4 and 0.9 points",
    ),
    spec.Claim(
        "Ouyang et al. 2022, 4.1",
        "The gap is the planted one, 2.8 points, within 2.",
        spec.Close(IN_GROUP, HELD_OUT, "valid/accuracy", margin=0.02, difference=0.028),
        figure="held_out",
    ),
)
