"""What wins back the skills that PPO costs: the pretraining coefficient gamma, or the KL coefficient beta instead.

    python -m rlhf_jax.sweep --config=experiments/figures/fig33_ptx_coef.py --workdir=runs/figures/fig33_ptx_coef

Ouyang et al. 2022, Fig. 33 (E.6): with gamma the validation reward falls and SQuADv2 and DROP recover, from about 20
on wholly. Fig. 34: without gamma, no beta up to 2.0, a hundred times the default, wins them back, and a large one
costs the reward. Here the skills are the world's few-shot tasks and the held-out loss of pretraining text, and gamma
multiplies token means: 1 is much. The KL is to the SFT policy (in Fig. 34 to the pretrained one).

An earlier sweep, with 300 items of a skill and five other seeds, left the claim about few-shot skills undecided; here are 1,500.
"""

from experiments.figures.world import DESIGN, NEW_SEEDS
from experiments.figures.world import get_precise_config as get_config
from rlhf_jax.report import spec

GAMMA, BETA = "ppo_ptx.ptx_coef", "ppo_ptx.kl_coef"
GAMMAS, BETAS = (0.0, 0.2, 2.0, 8.0), (0.3, 1.0, 4.0)


def sweep(h):
    gammas = h.product([h.sweep(GAMMA, GAMMAS), h.sweep(BETA, [0.08])])
    betas = h.product([h.sweep(GAMMA, [0.0]), h.sweep(BETA, BETAS)])
    return h.product([h.chain([gammas, betas]), h.sweep("seed", NEW_SEEDS)])


MIXED = spec.Path("ppo_ptx", GAMMA, {BETA: 0.08}, label="gamma from 0 to 8")
PENALISED = spec.Path("ppo_ptx", BETA, {GAMMA: 0.0}, label="beta from 0.08 to 4, gamma 0")
SFT = spec.Pick("sft", {GAMMA: 0.0, BETA: 0.08}, label="SFT")
PLAIN = spec.Pick("ppo_ptx", {GAMMA: 0.0, BETA: 0.08}, label="PPO")

BASELINE = {GAMMA: 0.0, BETA: 0.08}
WORDS = {GAMMA: "gamma", BETA: "beta"}
FIGURES = (
    spec.Curve("score", "ppo_ptx", GAMMA, where={BETA: 0.08}, scale="symlog", name="reward_over_gamma"),
    spec.Curve("valid_loss", "ppo_ptx", GAMMA, where={BETA: 0.08}, scale="symlog", name="loss_over_gamma"),
    spec.Curve("skills/mean", "ppo_ptx", GAMMA, where={BETA: 0.08}, scale="symlog", name="skills_over_gamma"),
    spec.Plane("valid_loss", "score", (MIXED, PENALISED), name="plane_loss", title="left and up is better"),
    spec.Plane("skills/mean", "score", (MIXED, PENALISED), name="plane_skills", title="right and up is better"),
)
TABLES = (spec.Table(("sft", "ppo_ptx"), ("score", "gold/total", "skills/mean", "valid_loss", "kl", "win_rate")),)
CLAIMS = (
    spec.Claim(
        "Ouyang et al. 2022, Fig. 33, E.6",
        "The validation reward falls as gamma grows.",
        spec.Trend("score", "ppo_ptx", GAMMA, "falls", where={BETA: 0.08}),
        figure="reward_over_gamma",
        matters=0.02,
        because="a tenth of what PPO gains in score, over the steps from one gamma to the next",
    ),
    spec.Claim(
        "Ouyang et al. 2022, Fig. 33, E.6",
        "PPO without the mix loses skills, and they recover as gamma grows (held-out loss of pretraining text).",
        spec.All(
            (
                spec.Greater(PLAIN, SFT, "valid_loss"),
                spec.Trend("valid_loss", "ppo_ptx", GAMMA, "falls", where={BETA: 0.08}),
            )
        ),
        figure="loss_over_gamma",
        matters=(0.01, 0.005),
        because="a tenth of what PPO costs in held-out loss, and half of that for a step of gamma",
    ),
    spec.Claim(
        "Ouyang et al. 2022, Fig. 33, E.6",
        "The same of the few-shot skills.",
        spec.All(
            (
                spec.Greater(SFT, PLAIN, "skills/mean"),
                spec.Trend("skills/mean", "ppo_ptx", GAMMA, "rises", where={BETA: 0.08}),
            )
        ),
        figure="skills_over_gamma",
        matters=(0.01, 0.005),
        because="the paper's PPO loses 2 to 4 points of F1 (Table 14, few-shot DROP and QuAC); half a point for a step of gamma",
    ),
    spec.Claim(
        "Ouyang et al. 2022, Fig. 34, E.6",
        "A large beta instead of gamma costs the reward.",
        spec.Trend("score", "ppo_ptx", BETA, "falls", where={GAMMA: 0.0}),
        figure="plane_loss",
        matters=0.02,
        because="a tenth of what PPO gains in score, over the steps from one beta to the next",
    ),
    spec.Claim(
        "Ouyang et al. 2022, Fig. 34, E.6",
        "No beta recovers what gamma recovers: with the largest, the held-out loss is still above that of gamma 2.",
        spec.Greater(
            spec.Pick("ppo_ptx", {GAMMA: 0.0, BETA: 4.0}), spec.Pick("ppo_ptx", {GAMMA: 2.0, BETA: 0.08}), "valid_loss"
        ),
        figure="plane_loss",
        matters=0.01,
        because="a tenth of what PPO costs in held-out loss",
    ),
)
