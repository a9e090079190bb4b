"""A test whether PPO reaches the optimum: the programs of the package `ppo` on the bandit of world/bandit.py.

    python -m rlhf_jax.optimum --config=experiments/bandit.py

A small Transformer with random weights is both the reference and the initial policy. The reward is the bandit's table,
and the value model is untrained. The objective of a policy is an exact sum over all completions, not an estimate.

The trained policy is compared with the optimum in closed form, and with the best policy that the same model reaches
without sampling. It is also compared with the fixed point of PPO for the chosen fields, which is not the optimum for
every choice of the KL penalty (docs/kl.md). Rewards and kl_coef are array arguments, so all bandits run in the same
compiled programs.
"""

import dataclasses
import functools
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict, config_flags

from rlhf_jax import command_line, generate, model, optim, ppo, sharding
from rlhf_jax.data.batches import Prompts
from rlhf_jax.fields.checks import check_values
from rlhf_jax.fields.field import Field, Section
from rlhf_jax.fields.model import MODEL
from rlhf_jax.fields.ranges import POSITIVE, SEED, OneOf, Several, whole
from rlhf_jax.generate import Rollout
from rlhf_jax.model import TransformerConfig
from rlhf_jax.ppo import options as ppo_options
from rlhf_jax.ppo import programs as ppo_programs
from rlhf_jax.ppo.fields import FIELDS as FIELDS_OF_PPO
from rlhf_jax.runtime import keys
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.world import bandit
from rlhf_jax.world.bandit import Bandit, Outcome
from rlhf_jax.world.fixed_points import NoFixedPoint, log_fixed_point


class Comparison(NamedTuple):
    """A trained policy, and the policies that it is compared with.

    Attributes:
      kl_coef: coefficient of the KL penalty.
      seed: seed of the bandit, the reference and all noise.
      reference: outcome of the reference policy.
      optimum: outcome of the optimum in closed form.
      reachable: outcome of the best policy of the same model, see `best_of_model`.
      sought: outcome of the fixed point of PPO (world/fixed_points.py). None if the policy collapses to one completion,
        or if the choice of fields was not studied.
      policy: outcome of the trained policy.
      nats_from_sought: KL(policy || fixed point), in nats per completion; None without a fixed point.
      seconds: time of the training.
    """

    kl_coef: float
    seed: int
    reference: Outcome
    optimum: Outcome
    reachable: Outcome
    sought: Outcome | None
    policy: Outcome
    nats_from_sought: float | None
    seconds: float

    @property
    def objective_ratio(self) -> float:
        """The policy's objective divided by the optimum's."""
        return self.policy.objective / self.optimum.objective

    @property
    def gain_ratio(self) -> float:
        """The policy's gain in the objective over the reference, divided by the optimum's gain.

        The KL of the reference is 0, so that its objective is its expected reward.
        """
        return self.share_of_gain(self.policy)

    def share_of_gain(self, outcome: Outcome) -> float:
        """Returns the gain of an outcome over the reference, divided by the optimum's gain."""
        start = self.reference.objective
        return (outcome.objective - start) / (self.optimum.objective - start)

    @property
    def kl_ratio(self) -> float:
        """The policy's KL divided by the optimum's."""
        return self.policy.kl / self.optimum.kl


def compare(config: ConfigDict) -> Iterator[Comparison]:
    """Trains a policy for every seed and kl_coef; yields its comparison with the optimum.

    Args:
      config: `seeds` (each for a bandit, a reference and all noise), `num_prompts` and `rewards` (see
        bandit.make_bandit), `kl_coefs`, and the sections `model` and `ppo` as in any run.

    Raises:
      InputError: ppo.batch_size is not a multiple of num_prompts times ppo.samples_per_prompt.
    """
    section = config.ppo
    if section.batch_size % (config.num_prompts * section.samples_per_prompt):
        raise InputError(
            f"ppo.batch_size={section.batch_size} must be a multiple of num_prompts={config.num_prompts} times "
            f"ppo.samples_per_prompt={section.samples_per_prompt}"
        )
    shape = TransformerConfig(vocab_size=bandit.VOCAB_SIZE, **config.model)
    mesh = sharding.make_mesh()
    coefs = ppo_programs.coefficients(section)
    with jax.set_mesh(mesh):
        static = ppo_programs.static_config(shape, shape, bandit.EOS_ID, section)
        make, programs = _programs(static, ppo_programs.optimizers_of(section), mesh)
        completion_logprobs = jax.jit(functools.partial(ppo.completion_logprobs, shape))
        for seed in config.seeds:
            game = bandit.make_bandit(seed, config.num_prompts, config.rewards)
            copies = section.batch_size // len(game.prompts)
            tokens, mask = (np.repeat(x, copies, axis=0) for x in (game.prompts, game.prompt_mask))
            prompts = Prompts(tokens, mask, np.arange(len(tokens), dtype=np.int32))
            log_policy = functools.partial(_log_policy, game, completion_logprobs)
            reference = model.init_params(shape, keys.named_key(seed, "policy"))
            value = model.init_params(shape, keys.named_key(seed, "value"), "scalar")
            if not static.value:
                value = model.scalar_head_of(value) if static.shared_value else None
            for kl_coef in config.kl_coefs:
                started = time.perf_counter()
                state = make(reference, value, jnp.float32(kl_coef))
                for iteration in range(section.iterations):
                    key = keys.named_key(seed, "ppo", iteration)
                    frozen = reference, game.reward_by_token
                    state, _ = ppo_programs.iterate(
                        programs, state, frozen, prompts, lambda step: None, coefs, key, section, fixed_kl=True
                    )
                seconds = time.perf_counter() - started
                log_ref, found = (
                    log_policy(reference),
                    log_policy(getattr(state.policy, _WEIGHTS[ppo_programs.output_of(section)])),
                )
                worth = functools.partial(game.evaluate, log_ref=log_ref, kl_coef=kl_coef)
                sought = sought_by(static, section.lam, game, log_ref, kl_coef)
                yield Comparison(
                    kl_coef,
                    seed,
                    reference=worth(log_ref),
                    optimum=game.optimum(log_ref, kl_coef),
                    reachable=worth(log_policy(best_of_model(shape, game, reference, kl_coef))),
                    sought=None if sought is None else worth(sought),
                    policy=worth(found),
                    nats_from_sought=None if sought is None else game.evaluate(found, sought, kl_coef).kl,
                    seconds=seconds,
                )


_WEIGHTS = {"ema": "ema_params", "params": "params"}


def sought_by(
    config: ppo.PPOConfig, lam: float, game: Bandit, log_ref: np.ndarray, kl_coef: float
) -> np.ndarray | None:
    """Returns the log-probabilities f64[X, Y] of PPO's fixed point; None if there is none or it was not derived.

    Args:
      config: the config of PPO's programs.
      lam: lambda of GAE.
      game: the bandit.
      log_ref: log-probabilities f64[X, Y] of the reference.
      kl_coef: coefficient of the KL penalty.
    """
    if config.whiten_rewards or config.entropy_bonus:
        return None
    whitened = config.whiten_advantages != "none"
    try:
        return log_fixed_point(
            game,
            log_ref,
            kl_coef,
            config.kl_in,
            config.kl_estimator,
            config.advantage,
            whitened,
            config.samples_per_prompt,
            lam,
        )
    except NoFixedPoint:
        return None


def best_of_model(shape: TransformerConfig, game: Bandit, params: dict, kl_coef: float) -> dict:
    """Returns the parameters with the best objective that Adam finds with exact gradients, without sampling.

    The gradients are those of sums over all completions. Adam first minimizes the cross-entropy to the closed form,
    which has no local optimum in the logits. It then maximizes the objective itself, which matters if the model cannot
    represent the closed form. Ascent of the objective from the reference alone stalls, as policy gradients do: a common
    completion takes over before a better one is found.

    Args:
      shape: shape of the model.
      game: the bandit.
      params: parameters of the reference, from which the search starts.
      kl_coef: coefficient of the KL penalty.
    """
    tokens, prompt_mask, _ = game.enumerate()
    # Nothing follows EOS, so one row for each other first token covers all the distributions of a prompt.
    rows = np.flatnonzero((tokens[:, -1] == bandit.FIRST_LETTER) & (tokens[:, -2] != bandit.EOS_ID))
    mask = np.pad(prompt_mask[rows], ((0, 0), (0, 1)), constant_values=True)
    return _fit(shape, tokens[rows, :-1], mask, game.reward_table, params, kl_coef)


_FIT_STEPS, _ASCENT_STEPS = 1000, 300


@functools.partial(jax.jit, static_argnums=0)
def _fit(shape: TransformerConfig, tokens, mask, rewards, params: dict, kl_coef):
    """Returns the fitted parameters, see `best_of_model`.

    Args:
      shape: shape of the model.
      tokens: i32[N, P + 1], every prompt with every first token but EOS, prompt by prompt.
      mask: bool[N, P + 1].
      rewards: f32[X, Y].
      params: parameters of the reference.
      kl_coef: coefficient of the KL penalty.
    """

    def log_policy(params):
        states = model.masked_hidden_states(shape, params, tokens, mask)[:, -2:]
        logprobs = jax.nn.log_softmax(model.lm_logits(shape, params, states))
        logprobs = logprobs.reshape(len(rewards), -1, *logprobs.shape[1:])  # [X, first, 2, V]
        letters = jnp.delete(logprobs[:, 0, 0], bandit.EOS_ID, axis=1, assume_unique_indices=True)
        pairs = letters[..., None] + logprobs[:, :, 1]
        return jnp.concatenate([logprobs[:, 0, 0, bandit.EOS_ID, None], pairs.reshape(len(rewards), -1)], axis=1)

    log_ref = log_policy(params)
    log_optimum = jax.nn.log_softmax(log_ref + rewards / kl_coef)

    def cross_entropy(params):
        return -jnp.mean(jnp.sum(jnp.exp(log_optimum) * log_policy(params), axis=1))

    def minus_objective(params):
        found = log_policy(params)
        return -jnp.mean(jnp.sum(jnp.exp(found) * (rewards - kl_coef * (found - log_ref)), axis=1))

    def descend(loss, params, steps, rate):
        optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))

        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), length=steps)[0][0]

    return descend(minus_objective, descend(cross_entropy, params, _FIT_STEPS, 3e-3), _ASCENT_STEPS, 1e-3)


@functools.lru_cache(maxsize=4)
def _programs(config: ppo.PPOConfig, optimizers: tuple, mesh):
    """Returns ((policy, value parameters, kl_coef) -> PPOState, PPOPrograms), which serve all bandits.

    A bandit's reward table takes the place of the reward model's parameters, so it is an argument of the programs.
    """
    optimizers = tuple(map(optim.make_optimizer, optimizers))
    make, shardings = ppo_programs.state_maker(config, mesh, sharding.DEFAULT_RULES, optimizers)
    sampler = generate.Sampler(
        config.policy, mesh, completion_length=bandit.COMPLETION_LENGTH, eos_id=bandit.EOS_ID, pad_id=bandit.PAD_ID
    )

    def score(table, rollout):
        return bandit.look_up(table, rollout.tokens)

    return make, ppo_programs.PPOPrograms(config, score, optimizers, shardings, sampler, mesh)


def _log_policy(game: Bandit, completion_logprobs, params: dict) -> np.ndarray:
    """Returns the log-probability of every completion, f64[X, Y]."""

    def logprobs(tokens, prompt_mask, completion_mask):
        nothing = np.zeros(completion_mask.shape, np.float32)
        return completion_logprobs(params, Rollout(tokens, prompt_mask, completion_mask, nothing), 1.0)

    return game.log_policy(logprobs)


FIELDS = Section(
    "PPO on bandits.",
    {
        "rewards": Field(
            "normal",
            OneOf(*bandit.REWARDS),
            "The distribution of the bandit's rewards; bandit.make_bandit describes each.",
        ),
        "num_prompts": Field(
            4, whole(1, bandit.VOCAB_SIZE - bandit.FIRST_LETTER), "The number of prompts of a bandit."
        ),
        "seeds": Field(
            (0,),
            Several(SEED, "one or several whole numbers from 0", least=1),
            "The seeds, each of which makes a bandit, a reference and all noise.",
        ),
        "kl_coefs": Field(
            (0.1,),
            Several(POSITIVE, "one or several numbers above 0", least=1),
            "The values of beta, the price of one nat of KL, each of which is tried.",
        ),
        "model": dataclasses.replace(MODEL, partial=True),
        "ppo": FIELDS_OF_PPO,
    },
)


def main(config: ConfigDict) -> None:
    """Prints a line for each comparison; gains are divided by the gain of the optimum in closed form.

    Raises:
      InputError: a field has a value that it does not allow.
    """
    check_values("", config, FIELDS)
    programs = ppo_programs.static_config(
        TransformerConfig(vocab_size=bandit.VOCAB_SIZE, **config.model), None, bandit.EOS_ID, config.ppo
    )
    print("\n".join(ppo_options.described(programs, gamma=config.ppo.gamma)))
    print(
        "kl_coef seed | optimum: objective     KL | model: gain | sought: gain     KL | PPO: gain     KL | nats to sought | seconds"
    )
    for row in compare(config):
        sought, nats = (f"{'-':>12} {'-':>6}", "-")
        if row.sought:
            sought, nats = f"{row.share_of_gain(row.sought):12.4f} {row.sought.kl:6.3f}", f"{row.nats_from_sought:.4f}"
        print(
            f"{row.kl_coef:7} {row.seed:4} | {row.optimum.objective:18.4f} {row.optimum.kl:6.3f} | "
            f"{row.share_of_gain(row.reachable):11.4f} | {sought} | {row.gain_ratio:9.4f} {row.policy.kl:6.3f} | "
            f"{nats:>14} | {row.seconds:7.1f}",
            flush=True,
        )


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
    command_line.run("rlhf_jax.optimum", lambda _: main(_CONFIG.value), fields=False)
