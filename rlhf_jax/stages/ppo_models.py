"""The models of a PPO stage: the shape of the value model, what it starts as, and whether adapters share their base."""

import jax
import jax.numpy as jnp

from rlhf_jax import model, weights
from rlhf_jax.advantages import ESTIMATORS
from rlhf_jax.model import TransformerConfig
from rlhf_jax.ppo import options, programs
from rlhf_jax.run import Run
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.stages import ppo_rewards


def check_adapters(run: Run, stage: str) -> None:
    """Raises InputError where adapters do not share the base of the policy's, or have none."""
    section = run.config[stage]
    adapted = [name for name in ppo_rewards.models_of(section) if run.path and run.shape(name).lora is not None]
    for name in adapted:
        bases = [weights.base_name(run, model_name) for model_name in (section.init, name)]
        if run.model.lora is None or bases[0] != bases[1]:
            policy = f"adapters of '{bases[0]}'" if run.model.lora else "whole"
            raise InputError(
                f"{stage}.reward='{name}' is adapters of '{bases[1]}', and the policy is {policy}: start both from the "
                "same weights, or give a whole reward model, such as one that `rlhf_jax.hf export --merge` has written"
            )
    if adapted and programs.has_value_model(section) and section.value_init == "random":
        raise InputError(
            f"{stage}.value_init='random' has no weights that the adapters of model.lora could belong to; choose 'reward', "
            "'policy' or 'zero'"
        )


def value_shape_of(run: Run, stage: str) -> TransformerConfig | None:
    """Returns the shape of the separate value model, or None if there is none.

    It is the shape of the model that the value model starts from: the reward model, or the policy. A random value model
    has the shape of the reward model, if there is one.
    """
    section = run.config[stage]
    if not programs.has_value_model(section):
        return None
    models = ppo_rewards.models_of(section)
    return run.model if options.value_init(section) in ("policy", "zero") or not models else run.shape(models[0])


def gathers(run: Run, stage: str) -> bool:
    """Whether `score` gathers the weights of each model once: as the config says, as the run has chosen, or else yes."""
    given = run.config[stage].gather_once
    return run.chosen.get(f"{stage}.gather_once", True) if given is None else given


def value_params(run: Run, stage: str, reward: dict | tuple[dict, ...], policy: dict) -> dict | None:
    """Returns the initial parameters of a separate value model, or of a head for the policy's trunk, or None."""
    section = run.config[stage]
    if not ESTIMATORS[section.advantage].reads_values:
        return None
    separate = section.value == "separate"
    value_init = options.value_init(section)
    if value_init == "reward":
        reward = ppo_rewards.first(reward)
        return reward if separate else model.scalar_head_of(reward)
    if separate and value_init == "random":
        return weights.init_params(run, f"{stage}/value", value_shape_of(run, stage), head="scalar")
    value = weights.with_scalar_head(run, run.model, policy, run.key(stage, "value"))
    if value_init == "zero":
        value |= jax.tree.map(jnp.zeros_like, model.scalar_head_of(value))
    return value if separate else model.scalar_head_of(value)
