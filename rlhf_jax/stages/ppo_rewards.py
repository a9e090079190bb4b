"""The rewards of a PPO stage: reward models, which read rollouts on the devices, and functions, which run on the host."""

import dataclasses

import numpy as np
from ml_collections import ConfigDict

from rlhf_jax import abstract, generate, lora, weights
from rlhf_jax.data.records import Prompt
from rlhf_jax.fields import rewards as rewards_lib
from rlhf_jax.ppo import options
from rlhf_jax.ppo.completions import RewardFn, SequenceScore
from rlhf_jax.ppo.mixture import ModelScores, mixture_of, of_each_model
from rlhf_jax.rewards.functions import RewardFunction
from rlhf_jax.run import Run
from rlhf_jax.runtime import hosts
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import read_if_there, write_json

_NOTED = "rewards.json"  # in the stage's folder: the checksums of each module, the newest last


def models_of(section: ConfigDict) -> list[str]:
    """Returns the reward models of a PPO section: stages and folders."""
    return rewards_lib.models(section.reward)


def reward_fn_of(run: Run, section: ConfigDict) -> RewardFn | None:
    """Returns the function by which the programs read the reward models; None without any."""
    parts = tuple(SequenceScore(run.shape(name), run.tokenizer.end_ids) for name in models_of(section))
    return (ModelScores(parts) if mixture_of(section) else parts[0]) if parts else None


def load(run: Run, section: ConfigDict) -> dict | tuple[dict, ...]:
    """Returns the parameters that `reward_fn_of` takes: of a single reward model, or a tuple of those of each."""
    params = tuple(weights.load_params(run, name, "scalar") for name in models_of(section))
    return params if mixture_of(section) else params[0]


def abstract_params(run: Run, section: ConfigDict):
    """Returns what `load` returns as abstract arrays, in the dtypes of frozen models."""
    params = tuple(abstract.frozen(run, run.shape(name), "scalar") for name in models_of(section))
    return params if mixture_of(section) else params[0]


def trained(params: dict | tuple[dict, ...]):
    """Returns the adapters with their heads alone of reward models that are adapters; whole ones as they are."""
    return of_each_model(lambda own: lora.split(own)[1], params)


def first(params: dict | tuple[dict, ...]) -> dict:
    """Returns the parameters of the first reward model, among those of `load`."""
    return params[0] if isinstance(params, tuple) else params


def check_value_init(run: Run, stage: str) -> None:
    """Raises InputError if a value function cannot start as a reward model: there is none, or it has another width."""
    section = run.config[stage]
    if options.value_init(section) != "reward":
        return
    if not models_of(section):
        raise InputError(
            f"{stage}.value_init='reward' needs a reward model, and {stage}.reward='{section.reward}' names functions "
            "alone; leave it at None, which means 'policy' there, or choose 'random' or 'zero'"
        )
    widths = run.shape(models_of(section)[0]).embed_dim, run.model.embed_dim
    if section.value == "shared" and widths[0] != widths[1]:
        raise InputError(
            f"{stage}.value='shared' with value_init='reward' needs a reward model of the policy's width {widths[1]}, "
            f"and it is {widths[0]}; choose value_init='random' or 'zero'"
        )


@dataclasses.dataclass(frozen=True)
class HostRewards:
    """The functions among the rewards of a PPO stage."""

    run: Run
    functions: tuple[RewardFunction, ...]
    records: list[Prompt]

    def __call__(self, index: np.ndarray, rollout) -> np.ndarray:
        """Returns the scores f32[B, H] of a rollout; all processes of the job must call this.

        Args:
          index: i32[B], the place of each row's prompt among the records.
          rollout: the completions.

        Raises:
          InputError: a function fails.
        """
        texts, _ = generate.texts(rollout, self.run.tokenizer)
        prompts = [self.records[place] for place in index]
        return np.stack([function(prompts, texts) for function in self.functions], axis=1)


def host_rewards(run: Run, stage: str, split: str = "train") -> HostRewards | None:
    """Returns the functions of a PPO stage for the prompts of a split; their files are noted. None if it has none.

    Raises:
      InputError: there is no such function.
    """
    found = tuple(
        RewardFunction(reward, f"{stage}.reward")
        for reward in rewards_lib.several(run.config[stage].reward)
        if reward.function
    )
    if not found:
        return None
    hosts.on_first(_note, run.workdir.stage(stage), stage, found)
    return HostRewards(run, found, run.corpus.prompts(split, "ppo"))


def _note(folder, stage: str, functions: tuple[RewardFunction, ...]) -> None:
    """Keeps the checksum of each function's file, and says so if it is another one than before."""
    noted = read_if_there(folder / _NOTED) or {}
    for function in functions:
        known = noted.setdefault(function.module, [])
        if known and known[-1] != function.checksum:
            print(
                f"{stage}: {function.file} was changed after this stage began; iterations from here on have the scores "
                f"of the new file ({folder / _NOTED} has both checksums)"
            )
        if known[-1:] != [function.checksum]:
            known.append(function.checksum)
    write_json(folder / _NOTED, noted)
