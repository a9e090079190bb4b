"""Whether a policy learns what to avoid: from the best completion of each prompt alone, or from pairs.

    python -m rlhf_jax.sweep --config=experiments/figures/no_avoid.py --workdir=runs/figures/no_avoid

Introductions to RLHF say that fine-tuning on good answers gives no signal to avoid bad ones: wrong alternatives, which
resemble the right ones, become likelier, too. Hong et al. 2024 (ORPO, Fig. 3) saw so when they tuned OPT-350M on preferred
answers. Here the base model and the SFT model are each tuned on the rankings of 500 prompts, in as many steps: by the
likelihood of the best completion of each prompt, or on all pairs (DPO). The claims are about the worse completions of
validation pairs, whose prompts none of them has trained on. Their implicit reward is beta times the rise of their
log-probability in nats, and 0 at the start.
"""

from experiments.figures.world import DESIGN
from experiments.figures.world import get_config as world
from rlhf_jax.report import spec

LOSS, INIT = "dpo.loss", "dpo.init"
WORSE, BETTER, START = (
    f"history:{name}" for name in ("valid/rejected_reward@last", "valid/chosen_reward@last", "rejected_reward@first")
)
LEARNED = {"best": "the likelihood of the best", "pairs": "pairs"}
STARTS = {"pretrain": "the base model", "sft": "SFT"}


def get_config():
    config = world()
    config.stages = ("pretrain", "sft", "collect", "dpo")
    config.dpo.update(subset=":500", epochs=1.0, batch_size=32, packed=True, length=144)
    config.dpo.update(learning_rate=2e-4, warmup_steps=10, validate_epochs=0.25)
    return config


def sweep(h):
    return h.product([h.sweep(INIT, tuple(STARTS)), h.sweep(LOSS, tuple(LEARNED)), h.sweep("seed", DESIGN.seeds)])


def at(loss, init, quantity=None):
    label = f"{STARTS[init]} tuned on {LEARNED[loss]}"
    return spec.Pick("dpo", {LOSS: loss, INIT: init}, y=quantity, label=label)


SOURCE = "introductions to RLHF: SFT gives no signal to avoid"
BASELINE = {LOSS: "best", INIT: "pretrain"}
WORDS = {
    LOSS: "learned",
    INIT: "start",
    WORSE: "implicit reward of the worse completion",
    BETTER: "implicit reward of the better completion",
    START: "implicit reward of the worse completion before the first step",
    "history:valid/accuracy@last": "share of validation pairs in their order",
}
NAT = dict(matters=0.1, because="a nat of log-probability, at a beta of 0.1")
FIGURES = (
    spec.History("valid/rejected_reward", "dpo", name="worse", title="the worse completions of validation pairs"),
    spec.Curve(WORSE, "dpo", INIT, by=LOSS, scale="category", name="worse_last"),
    spec.Curve(BETTER, "dpo", INIT, by=LOSS, scale="category", name="better_last"),
)
TABLES = (spec.Table(("dpo",), (BETTER, WORSE, "history:valid/accuracy@last", "gold/total", "gold/helpful", "kl")),)
CLAIMS = tuple(
    claim
    for init, start in STARTS.items()
    for claim in (
        spec.Claim(
            SOURCE,
            f"Tuned on the best completions alone, {start} also makes the worse ones likelier.",
            spec.Greater(at("best", init), 0.0, WORSE),
            figure="worse_last",
            **NAT,
        ),
        spec.Claim(
            SOURCE,
            f"Tuned on pairs, {start} makes the worse ones less likely.",
            spec.Greater(at("pairs", init, START), at("pairs", init, WORSE), WORSE),
            figure="worse_last",
            **NAT,
        ),
    )
)
