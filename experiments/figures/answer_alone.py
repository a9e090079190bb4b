"""Whether a decoder must read the prompt before the answer that it learns.

    python -m rlhf_jax.sweep --config=experiments/figures/answer_alone.py --workdir=runs/figures/answer_alone

Introductions to instruction tuning say that a decoder needs prompt and answer in one input, with the answer as the label.
SFT has rows of that form. The other arms learn the same answers in as many steps without the prompt before them. Their
validations, by which the weights are chosen, and the evaluation read the prompt all the same. The first token of an answer
without a prompt is not learned, because nothing stands before it.
"""

from experiments.figures.world import DESIGN
from experiments.figures.world import get_config as world
from rlhf_jax.report import spec

READS = "sft.loss_on"
TOGETHER, ALONE = "completion", "unprompted"


def get_config():
    config = world()
    config.stages = ("pretrain", "sft")
    return config


def sweep(h):
    return h.product([h.sweep(READS, [TOGETHER, ALONE]), h.sweep("seed", DESIGN.seeds)])


def at(reads, label):
    return spec.Pick("sft", {READS: reads}, label=label)


PROMPTED, UNPROMPTED = at(TOGETHER, "prompt and answer"), at(ALONE, "the answer alone")
SOURCE = "introductions to instruction tuning: prompt and answer in one input"
BASELINE = {READS: TOGETHER}
WORDS = {READS: "learned"}
FIGURES = (
    spec.Dots("gold/helpful", ("pretrain", "sft"), by=READS, name="helpful", title="how far the task is done"),
    spec.History("valid/loss", "sft", name="loss", title="loss of validation answers behind their prompts"),
)
TABLES = (
    spec.Table(
        ("pretrain", "sft"),
        ("gold/total", "gold/helpful", "gold/concise", "completion_length", "eos", "history:valid/loss@last"),
    ),
)
CLAIMS = (
    spec.Claim(
        SOURCE,
        "Trained on prompt and answer in one row, SFT does more of the task than trained on the answer alone.",
        spec.Greater(PROMPTED, UNPROMPTED, "gold/helpful"),
        figure="helpful",
        matters=0.02,
        because="less than a tenth of what SFT gains over the base model in how far the task is done",
    ),
)
