"""The figures of Huang et al. 2024 as claims: TL;DR summarisation at three sizes of Pythia, over four seeds.

    python -m rlhf_jax.sweep --config=experiments/tldr_sizes.py --data=DIR --workdir=runs/tldr_sizes

Everything but the size and the seed is that of experiments/tldr.py, with DPO beside PPO. The sweep is 12 arms of an H100
node or a slice each (docs/tldr.md has what they take), so that nobody has run it here. The paper's win rates are GPT-3.5's
judgments against the reference summaries. A win rate here is against SFT, by the run's reward model; the judge of
`python -m rlhf_jax.evaluate.compare` can be any other.
"""

from experiments.tldr import SIZES
from experiments.tldr import get_config as tldr
from rlhf_jax.report import spec

SHAPE = "model.shape"
OURS = ("1b", "2.8b", "6.9b")
# Accuracy on the validation comparisons of posts, section 6.1: means over four seeds, with their deviations.
ACCURACY = {"1b": (0.628, 0.002), "2.8b": (0.669, 0.003), "6.9b": (0.689, 0.004)}
IMPLICIT = "history:valid/accuracy@last"  # DPO's, of its implicit rewards


def get_config():
    config = tldr(OURS[0])
    config.stages = ("sft", "reward_model", "ppo", "dpo")
    return config


def sweep(h):
    shapes, folders, rows = zip(*(SIZES[size] for size in OURS))
    sizes = h.zipit(
        [
            h.sweep(SHAPE, shapes),
            h.sweep("model.vocab_size", rows),
            h.sweep("tokenizer.path", folders),
            h.sweep("sft.init", folders),
        ]
    )
    return h.product([sizes, h.sweep("seed", range(4))])


def at(size, stage, y=None):
    return spec.Pick(stage, {SHAPE: SIZES[size][0]}, y=y, label=f"{stage} at {size}")


BASELINE = {SHAPE: SIZES["1b"][0]}
FIGURES = (
    spec.Curve("valid/accuracy", "reward_model", SHAPE, scale="category", name="accuracy"),
    spec.Curve("win_rate", "ppo", SHAPE, scale="category", name="win_rate"),
    spec.Curve("kl", "ppo", SHAPE, scale="category", name="kl"),
    spec.History("objective/kl", "ppo", name="kl_in_training"),
)
TABLES = (
    spec.Table(("reward_model",), ("valid/accuracy", "valid/log_loss", "valid/ece"), name="reward_models"),
    spec.Table(("dpo",), (IMPLICIT,), name="implicit_rewards"),
    spec.Table(("sft", "ppo", "dpo"), ("score", "win_rate", "kl", "completion_length"), name="policies"),
)
CLAIMS = (
    spec.Claim(
        "Huang et al. 2024, section 6.1",
        "The reward model's accuracy on validation comparisons rises with its size.",
        spec.Trend("valid/accuracy", "reward_model", SHAPE, "rises"),
        figure="accuracy",
    ),
    *(
        spec.Claim(
            "Huang et al. 2024, section 6.1",
            f"At {size} the accuracy is {100 * mean:.1f} %, within two points.",
            spec.Close(at(size, "reward_model"), mean, "valid/accuracy", margin=0.02),
            figure="accuracy",
            note=f"The deviation of the paper's four seeds is {100 * deviation:.1f} points. Its validation set is valid1 and "
            "valid2 together; ours is valid1.",
        )
        for size, (mean, deviation) in ACCURACY.items()
    ),
    spec.Claim(
        "Huang et al. 2024, detail 19",
        "At every size, DPO's implicit reward orders fewer validation comparisons rightly than the reward model.",
        spec.All(
            tuple(
                spec.Greater(at(size, "reward_model"), at(size, "dpo", y=IMPLICIT), "valid/accuracy") for size in OURS
            )
        ),
        figure="accuracy",
    ),
    spec.Claim(
        "Huang et al. 2024, section 7.1",
        "At 2.8B and 6.9B, PPO's summaries win more often than not against those of SFT.",
        spec.All(tuple(spec.Greater(at(size, "ppo"), 0.5, "win_rate") for size in OURS[1:])),
        figure="win_rate",
        note="By GPT-3.5, against the references, the paper's plot has SFT at about 0.41 and 0.44 and PPO at 0.71 to 0.75 and "
        "0.75 to 0.78. Here the judge is the reward model that PPO is trained by.",
    ),
    spec.Claim(
        "Huang et al. 2024, section 7.1",
        "At 1B some seeds over-optimise: the KL to SFT is higher than at 2.8B.",
        spec.Greater(at("1b", "ppo"), at("2.8b", "ppo"), "kl"),
        figure="kl",
        note="In the paper two of four seeds do, with a KL of about 50 and 85 nats and win rates near 0.2; the other two are "
        "at 0.54 and 0.62. So the seeds of 1B differ by far more than those of the other sizes.",
    ),
)
