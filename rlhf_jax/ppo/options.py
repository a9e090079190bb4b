"""What PPO's choices of advantage estimator and KL penalty mean: the papers' defaults and the effect of kl_coef.

docs/kl.md derives where PPO ends for each choice; world/fixed_points.py computes these fixed points on the bandit.
"""

from ml_collections import ConfigDict

from rlhf_jax.advantages import ESTIMATORS, Choices
from rlhf_jax.fields import rewards
from rlhf_jax.ppo.state import PPOConfig

# The default KL estimator by the place of the penalty, for a section that changes its paper's place alone.
_OF_PLACE = {"reward": "k1", "loss": "k3"}


def resolved(section: ConfigDict) -> Choices:
    """Returns the choices of a PPO section; a choice left at None is that of the paper of `section.advantage`.

    An unknown advantage or kl_in raises nothing here: the caller checks the section.
    """
    paper = ESTIMATORS.get(section.advantage, ESTIMATORS["gae"]).paper
    kl_in = paper.kl_in if section.kl_in is None else section.kl_in
    of_place = paper.kl_estimator if kl_in == paper.kl_in else _OF_PLACE.get(kl_in, paper.kl_estimator)
    return Choices(
        kl_in,
        of_place if section.kl_estimator is None else section.kl_estimator,
        paper.whiten_advantages if section.whiten_advantages is None else section.whiten_advantages,
    )


def fill(section: ConfigDict) -> None:
    """Writes the resolved choices into a PPO section, so that none of them is None."""
    section.update(resolved(section)._asdict() | {"value_init": value_init(section)})
    if section.samples_temperature is None:
        section.samples_temperature = section.temperature


def value_init(section: ConfigDict) -> str:
    """Returns what the value function of a PPO section starts as: by default the reward model, if there is one."""
    if section.value_init is not None:
        return section.value_init
    return "reward" if rewards.models(section.reward) else "policy"


def described(config: PPOConfig, penalized: bool = True, gamma: float = 1.0) -> list[str]:
    """Returns what a stage prints at its start: its choices, and a caution if kl_coef has another effect than usual.

    Args:
      penalized: whether there is a KL penalty, that is whether kl_coef is not 0.
      gamma: the discount.

    Returns:
      One sentence with the choices, and a second one from `caution` if there is a penalty and a reason for caution.
    """
    whitened = {"none": "not whitened"}.get(config.whiten_advantages, f"whitened over the {config.whiten_advantages}")
    penalty = f"KL in the {config.kl_in} by {config.kl_estimator}" if penalized else "no penalty on the KL"
    said = f"advantages by {config.advantage}, {whitened}; {penalty}"
    reason = caution(config, gamma) if penalized else ""
    return [said, reason] if reason else [said]


def caution(config: PPOConfig, gamma: float = 1.0) -> str:
    """Returns why PPO does not end at pi_ref exp(score / kl_coef), the optimum for kl_coef, in one sentence.

    Returns "" if it does end there.
    """
    reasons, kl = [], config.kl_estimator
    if config.kl_in == "loss" and kl == "k3":
        reasons.append(
            "k3 in the loss has the gradient of KL(reference || policy) at each token, not of KL(policy || reference)"
        )
    if config.kl_in == "loss" and kl == "k2":
        reasons.append("k2 in the loss leaves out what a token does to the KL of those after it")
    whitened = config.whiten_advantages != "none" or config.advantage == "grpo"
    if config.kl_in == "loss" and (whitened or config.whiten_rewards):
        divided = "advantages" if whitened else "rewards"
        reasons.append(
            f"{divided} are divided by their standard deviation and the KL is not, so that kl_coef is multiplied by it"
        )
    if config.kl_in == "reward" and kl != "k1":
        reasons.append(
            f"{kl} in the reward also punishes a token for being rarer than in the reference, and the KL ends larger"
        )
    if config.kl_in == "reward" and config.advantage == "grpo":
        reasons.append(
            "the KL is part of what GRPO divides by its standard deviation, so that where a prompt's scores are alike the "
            "noise of the KL is all there is (its paper has kl_in='loss')"
        )
    if config.whiten_rewards:
        reasons.append("whitened rewards keep their mean at every token, which is a reward for length")
    if gamma != 1.0 and config.advantage == "gae":  # the others add up the rewards of a completion
        reasons.append(f"gamma={gamma:g} counts the score, and the KL of later tokens, for less at early tokens")
    return f"the optimum for this kl_coef is not where it ends: {'; '.join(reasons)} (docs/kl.md)" if reasons else ""
