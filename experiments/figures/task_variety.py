"""Instruction tuning on more and more kinds of tasks, and how well it carries over to kinds that were never trained on.

    python -m rlhf_jax.sweep --config=experiments/figures/task_variety.py --workdir=runs/figures/task_variety

Mishra et al. 2021, Wei et al. 2021 (FLAN) and Sanh et al. 2021 (T0): the more tasks a model is tuned on, the better it does
on unseen ones. Here SFT learns 900 demonstrations of 3, 9 or all 27 kinds of the embedded world's tasks, in equal parts and as
many steps, so that their variety alone grows. Each seed draws its kinds; the 3 are among the 9. The test prompts are of the 5
kinds that no stage but pretraining sees, in equal parts. Pretraining text has such requests too, mostly with bad replies, so
that their words are known. Validations, by which the weights are chosen, have all 27 kinds.
"""

from experiments.figures.world import DESIGN
from experiments.figures.world import get_config as world
from rlhf_jax.report import spec

KINDS, NUMBERS = "sft.kinds", (3, 9, 27)


def get_config():
    config = world()
    config.stages = ("pretrain", "sft")
    config.data.world.update(demonstrations=900, test_kinds="unseen")
    config.sft.epochs = 4.0
    return config


def sweep(h):
    return h.product([h.sweep(KINDS, NUMBERS), h.sweep("seed", DESIGN.seeds)])


SOURCE = "Mishra et al. 2021; Wei et al. 2021, Fig. 6; Sanh et al. 2021, Fig. 6"
GAIN = "less than a tenth of what SFT gains over the base model on known tasks"
MOST = spec.Pick("sft", {KINDS: max(NUMBERS)}, label=f"SFT on {max(NUMBERS)} kinds")
BASE = spec.Pick("pretrain", {KINDS: max(NUMBERS)}, label="the base model")
BASELINE = {KINDS: min(NUMBERS)}
WORDS = {KINDS: "kinds of tasks", "history:valid/loss@last": "loss on validation demonstrations (nats/token)"}
FIGURES = (
    spec.Curve("gold/helpful", "sft", KINDS, scale="log", name="helpful", title="how far unseen tasks are done"),
    spec.Curve(
        "gold/total", "sft", KINDS, scale="log", name="gold", title="what the gold labeler says of unseen tasks"
    ),
)
TABLES = (
    spec.Table(
        ("pretrain", "sft"),
        ("gold/total", "gold/helpful", "gold/constraint", "completion_length", "eos", "history:valid/loss@last"),
    ),
)
CLAIMS = (
    spec.Claim(
        SOURCE,
        "The more kinds of tasks are trained on, the more of an unseen task is done.",
        spec.Trend("gold/helpful", "sft", KINDS, "rises"),
        figure="helpful",
        matters=0.01,
        because=f"over both steps {GAIN}",
    ),
    spec.Claim(
        SOURCE,
        f"Tuned on {max(NUMBERS)} kinds of tasks, the model does more of an unseen task than the base model.",
        spec.Greater(MOST, BASE, "gold/helpful"),
        figure="helpful",
        matters=0.02,
        because=GAIN,
    ),
)
