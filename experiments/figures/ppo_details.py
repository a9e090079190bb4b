"""Details of PPO that papers leave unsaid, one changed at a time.

    python -m rlhf_jax.sweep --config=experiments/figures/ppo_details.py --workdir=runs/figures/ppo_details

The estimator of the KL in the reward (k1, k2, k3: Schulman 2020), whitening of advantages (global batch, minibatch as
in OpenAI's code, none) and of rewards, Adam's epsilon (1e-5 where TensorFlow 1 puts it, or PyTorch: Huang et al.,
detail 21), and the adaptive KL coefficient (Ziegler et al. 2019), whose horizon is a twentieth of the episodes, so that
it can move; the target is well below where the fixed coefficient ends.
"""

from experiments.figures.world import get_config
from rlhf_jax.report import spec

P = "ppo_ptx."
DEFAULT = {
    P + "kl_estimator": "k1", P + "whiten_advantages": "batch", P + "whiten_rewards": False, P + "optimizer.eps": 1e-8,
    P + "optimizer.eps_placement": "torch", P + "kl_target": None,
}  # fmt: skip
TARGET = 1.2  # nats


def sweep(h):
    others = [
        {P + "kl_estimator": "k2"},
        {P + "kl_estimator": "k3"},
        {P + "whiten_advantages": "minibatch"},
        {P + "whiten_advantages": "none"},
        {P + "whiten_rewards": True},
        {P + "optimizer.eps": 1e-5},
        {P + "optimizer.eps": 1e-5, P + "optimizer.eps_placement": "tf1"},
        {P + "kl_target": TARGET, P + "kl_horizon": 64.0},
    ]
    return h.product([[DEFAULT, *(DEFAULT | other for other in others)], h.sweep("seed", range(3))])


def at(**fields):
    return spec.Pick("ppo_ptx", DEFAULT | {P + name.replace("__", "."): value for name, value in fields.items()})


BASELINE = DEFAULT
FIGURES = (spec.History("objective/kl", "ppo_ptx", name="kl"),)
TABLES = (
    spec.Table(
        ("ppo_ptx",),
        ("gold/total", "score", "kl", "skills/mean", "completion_length", "history:ppo/policy/approxkl@first"),
    ),
)
CLAIMS = (
    spec.Claim(
        "Huang et al. 2023, detail 21",
        "With epsilon 1e-5 where TensorFlow 1 puts it, the first updates move the policy less than with PyTorch's.",
        spec.Greater(
            at(optimizer__eps=1e-5), at(optimizer__eps=1e-5, optimizer__eps_placement="tf1"),
            "history:ppo/policy/approxkl@first",
        ),
        figure="kl",
    ),
    spec.Claim(
        "Ziegler et al. 2019",
        "The adaptive coefficient brings the KL to its target: within 0.75 nats at the end, where the fixed one is above.",
        spec.All((
            spec.Close(at(kl_target=TARGET), TARGET, "history:objective/kl@mean_last_10%", margin=0.75),
            spec.Greater(at(), TARGET, "history:objective/kl@mean_last_10%", by=0.75),
        )),
        figure="kl",
    ),
)  # fmt: skip
