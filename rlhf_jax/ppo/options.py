"""What PPO's choices of advantages and of a KL penalty mean: the papers' defaults, and what kl_coef is then.

docs/kl.md has where each choice ends, world/fixed_points.py the same in closed form on the bandit.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from rlhf_jax.ppo import PPOConfig


class Choices(NamedTuple):
    """Fields of config.ppo that depend on one another."""

    kl_in: str
    kl_estimator: str
    whiten_advantages: str


PAPERS = {  # of each estimator of advantages; what is None in a config is as its paper has it
    "gae": Choices(
        "reward", "k1", "batch"
    ),  # InstructGPT, section 3.5; whitening is unstated there, and OpenAI's code has it
    "rloo": Choices("reward", "k1", "none"),  # Ahmadian et al. 2024 (arXiv 2402.14740), sections 2.1 and 2.2
    "grpo": Choices("loss", "k3", "none"),  # Shao et al. 2024 (arXiv 2402.03300), section 4.1.1
    "reinforce": Choices("reward", "k1", "none"),  # as RLOO's paper has it
}
_OF_PLACE = {"reward": "k1", "loss": "k3"}  # the estimator that papers take, where only the place is given


def resolved(section: ConfigDict) -> Choices:
    """What a section says, and where it is silent its estimator's paper; an unknown choice is left to the caller."""
    paper = PAPERS.get(section.advantage, PAPERS["gae"])
    kl_in = paper.kl_in if section.kl_in is None else section.kl_in
    of_place = paper.kl_estimator if kl_in == paper.kl_in else _OF_PLACE.get(kl_in, paper.kl_estimator)
    return Choices(
        kl_in,
        of_place if section.kl_estimator is None else section.kl_estimator,
        paper.whiten_advantages if section.whiten_advantages is None else section.whiten_advantages,
    )


def filled(config: ConfigDict) -> ConfigDict:
    """The same config, its sections of PPO resolved: the run's config.json then says what was used."""
    with config.unlocked():
        for name, section in config.items():
            if isinstance(section, ConfigDict) and section.get("kind") == "ppo":
                section.update(resolved(section)._asdict())
    return config


def described(config: PPOConfig, penalized: bool = True, gamma: float = 1.0) -> list[str]:
    """What a stage says at its start: the choices in a sentence, and in another where kl_coef is not what it seems.

    Args:
      penalized: there is a penalty: kl_coef is not 0.
      gamma: the discount.
    """
    whitened = {"none": "not whitened"}.get(config.whiten_advantages, f"whitened over the {config.whiten_advantages}")
    penalty = f"KL in the {config.kl_in} by {config.kl_estimator}" if penalized else "no penalty on the KL"
    said = f"advantages by {config.advantage}, {whitened}; {penalty}"
    return [said, *filter(None, [penalized and caution(config, gamma)])]


def caution(config: PPOConfig, gamma: float = 1.0) -> str:
    """In what kl_coef is not the coefficient of the optimum pi_ref exp(score / kl_coef), in one sentence; or ""."""
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
