"""How a reward model is trained: all pairs of a prompt together or shuffled, one epoch or more, the learning rate.

    python -m rlhf_jax.sweep --config=experiments/figures/rm_pairs.py --workdir=runs/figures/rm_pairs

Ouyang et al. 2022, 3.5: pairs shuffled into one pool overfit within one pass, because a completion comes up to K - 1
times; as one element of the batch, with one forward a completion, validation accuracy and log-loss are better. C.2:
more epochs overfit soon, a learning rate 50 % higher or lower makes little difference. The rankings are few here, so
that there is something to overfit to, and by one labeler each. A prompt has about 12 untied pairs: four prompts a step or
48 pairs a step are one pass in about 80 steps, over the same pairs, and each way of training has the learning rate that
suits it, as the first seed chooses; the others judge.

An earlier sweep, with 300 validation prompts and five other seeds, left two claims undecided; here are 1,200.
"""

from experiments.figures.world import DESIGN, NEW_SEEDS
from experiments.figures.world import get_precise_config as world
from rlhf_jax.report import spec

LOSS, BATCH, EPOCHS, RATE = (f"reward_model.{name}" for name in ("loss", "batch_size", "epochs", "learning_rate"))
TOGETHER, SHUFFLED = {LOSS: "kwise", BATCH: 4}, {LOSS: "pooled", BATCH: 48}
RATES = (0.5e-3, 1e-3, 1.5e-3, 3e-3)
DEFAULT = TOGETHER | {EPOCHS: 1.0, RATE: 1e-3}


def get_config():
    config = world()
    config.stages = ("pretrain", "sft", "collect", "one_labeler", "reward_model")
    config.one_labeler = config.collect.copy_and_resolve_references()
    config.one_labeler.update(rankings="collect", labelers=1)
    # length 0 leaves no ranking out
    config.reward_model.update(rankings="one_labeler", subset=":320", length=0, warmup_steps=5)
    return config


def sweep(h):
    settings = [DEFAULT | way | {RATE: rate} for way in (TOGETHER, SHUFFLED) for rate in RATES]
    settings += [DEFAULT | {EPOCHS: epochs} for epochs in (2.0, 4.0)]
    return h.product([settings, h.sweep("seed", NEW_SEEDS)])


def at(**fields):
    return spec.Pick("reward_model", DEFAULT | {f"reward_model.{name}": value for name, value in fields.items()})


def tuned(way, label):
    """At its own rate."""
    return spec.Pick("reward_model", way | {EPOCHS: 1.0}, label=label, tuned=RATE, best="lowest")


BASELINE = DEFAULT
WORDS = {LOSS: "pairs", BATCH: "batch size", EPOCHS: "epochs", RATE: "learning rate"}
FIGURES = (
    spec.Curve("valid/log_loss", "reward_model", EPOCHS, where=TOGETHER | {RATE: 1e-3}, name="epochs"),
    spec.Curve("valid/log_loss", "reward_model", RATE, by=LOSS, where={EPOCHS: 1.0}, name="pairs"),
    spec.Curve("valid/accuracy", "reward_model", RATE, where=TOGETHER | {EPOCHS: 1.0}, name="rate"),
)
TABLES = (
    spec.Table(
        ("reward_model",), ("valid/accuracy", "valid/log_loss", "valid/ece", "history:loss@mean_last_10%", "seconds")
    ),
)
CLAIMS = (
    spec.Claim(
        "Ouyang et al. 2022, 3.5",
        "All pairs of a prompt as one element give a lower validation log-loss than pairs shuffled into one pool, each at its "
        "own learning rate.",
        spec.Greater(tuned(SHUFFLED, "shuffled pairs"), tuned(TOGETHER, "pairs together"), "valid/log_loss"),
        figure="pairs",
        matters=0.005,
        because="what a point of accuracy is worth in log loss, halved",
    ),
    spec.Claim(
        "Ouyang et al. 2022, C.2",
        "More epochs overfit: the validation log-loss rises with them.",
        spec.Trend("valid/log_loss", "reward_model", EPOCHS, "rises", where=TOGETHER | {RATE: 1e-3}),
        figure="epochs",
        matters=0.005,
        because="what a point of accuracy is worth in log loss, halved",
    ),
    spec.Claim(
        "Ouyang et al. 2022, C.2",
        "Half more or less of the learning rate makes little difference: the accuracy stays within 1.5 points.",
        spec.All(
            (
                spec.Close(at(learning_rate=0.5e-3), at(), "valid/accuracy", margin=0.015),
                spec.Close(at(learning_rate=1.5e-3), at(), "valid/accuracy", margin=0.015),
            )
        ),
        figure="rate",
    ),
)
