"""Does PPO reach the optimum? The programs of ppo.py on the bandit of world/bandit.py.

    python -m rlhf_jax.optimum --config=experiments/bandit.py

A small Transformer of random weights is reference and start, the reward is the bandit's table, the
value model knows nothing at first. What a policy is worth is a sum over all completions and no
estimate. kl_coef is an array argument: all of them run in the same compiled programs.
"""

import functools
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict, config_flags

from rlhf_jax import command_line, generate, keys, model, optim, ppo, ppo_stage, sharding
from rlhf_jax.data.batches import Prompts
from rlhf_jax.generate import Rollout
from rlhf_jax.model import TransformerConfig
from rlhf_jax.world import bandit
from rlhf_jax.world.bandit import Bandit, Outcome


class Comparison(NamedTuple):
    """A trained policy beside the optimum of its kl_coef."""

    kl_coef: float
    seed: int
    reference: Outcome
    optimum: Outcome
    policy: Outcome
    seconds: float

    @property
    def objective_ratio(self) -> float:
        """The policy's objective over the optimum's."""
        return self.policy.objective / self.optimum.objective

    @property
    def gain_ratio(self) -> float:
        """The same of what is gained over the reference, which has no KL and its own expected reward."""
        start = self.reference.objective
        return (self.policy.objective - start) / (self.optimum.objective - start)

    @property
    def kl_ratio(self) -> float:
        """The policy's KL over the optimum's."""
        return self.policy.kl / self.optimum.kl


def compare(config: ConfigDict, game: Bandit) -> Iterator[Comparison]:
    """Trains a policy for every seed and kl_coef and weighs it.

    Args:
      config: `seeds`, `kl_coefs`, and sections `model` and `ppo` as of any run.
    """
    section = config.ppo
    shape = TransformerConfig(vocab_size=bandit.VOCAB_SIZE, **config.model)
    mesh = sharding.make_mesh()
    copies = section.batch_size // len(game.prompts)
    tokens, mask = (np.repeat(x, copies, axis=0) for x in (game.prompts, game.prompt_mask))
    prompts = Prompts(tokens, mask, np.arange(len(tokens), dtype=np.int32))
    coefs = ppo_stage.coefficients(section)
    log_policy = functools.partial(_log_policy, game, jax.jit(functools.partial(ppo.completion_logprobs, shape)))
    with jax.set_mesh(mesh):
        optimizers = tuple(map(optim.make_optimizer, ppo_stage.optimizers_of(section)))
        programs_config = ppo_stage.programs_config(shape, shape, bandit.EOS_ID, section)
        make, shardings = ppo_stage.state_maker(programs_config, mesh, sharding.DEFAULT_RULES, optimizers)
        programs = _programs(programs_config, mesh, game, optimizers, shardings)
        for seed in config.seeds:
            reference = model.init_params(shape, keys.named_key(seed, "policy"))
            value = model.init_params(shape, keys.named_key(seed, "value"), "scalar")
            if not programs_config.value:
                value = model.scalar_head_of(value) if programs_config.shared_value else None
            for kl_coef in config.kl_coefs:
                started = time.perf_counter()
                state = make(reference, value, jnp.float32(kl_coef))
                for iteration in range(section.iterations):
                    key = keys.named_key(seed, "ppo", iteration)
                    state, _ = ppo_stage.iterate(
                        programs, state, (reference, {}), prompts, lambda step: None, coefs, key, section, fixed_kl=True
                    )
                log_ref, found = log_policy(reference), log_policy(getattr(state.policy, _WEIGHTS[section.output]))
                yield Comparison(
                    kl_coef,
                    seed,
                    reference=game.evaluate(log_ref, log_ref, kl_coef),
                    optimum=game.optimum(log_ref, kl_coef),
                    policy=game.evaluate(found, log_ref, kl_coef),
                    seconds=time.perf_counter() - started,
                )


_WEIGHTS = {"ema": "ema_params", "params": "params"}


def _programs(config: ppo.PPOConfig, mesh, game: Bandit, optimizers, shardings) -> ppo_stage.Programs:
    sampler = generate.Sampler(
        config.policy,
        mesh,
        completion_length=bandit.COMPLETION_LENGTH,
        eos_id=bandit.EOS_ID,
        pad_id=bandit.PAD_ID,
    )
    return ppo_stage.Programs(config, lambda _, rollout: game.score(rollout.tokens), optimizers, shardings, sampler, mesh)


def _log_policy(game: Bandit, completion_logprobs, params: dict) -> np.ndarray:
    """Log-probability of every completion f64[X, Y]."""

    def logprobs(tokens, prompt_mask, completion_mask):
        nothing = np.zeros(completion_mask.shape, np.float32)
        return completion_logprobs(params, Rollout(tokens, prompt_mask, completion_mask, nothing), 1.0)

    return game.log_policy(logprobs)


def main(config: ConfigDict) -> None:
    """Prints a line for each comparison."""
    print("kl_coef seed | optimum: objective  reward      KL | PPO: objective  reward      KL | gain ratio  KL ratio | seconds")
    for row in compare(config, bandit.make_bandit(config.bandit_seed)):
        print(
            f"{row.kl_coef:7} {row.seed:4} | {row.optimum.objective:18.4f} {row.optimum.reward:7.4f} {row.optimum.kl:7.4f} | "
            f"{row.policy.objective:14.4f} {row.policy.reward:7.4f} {row.policy.kl:7.4f} | "
            f"{row.gain_ratio:10.4f} {row.kl_ratio:9.4f} | {row.seconds:7.1f}",
            flush=True,
        )


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
    command_line.run("rlhf_jax.optimum", lambda _: main(_CONFIG.value), fields=False)
