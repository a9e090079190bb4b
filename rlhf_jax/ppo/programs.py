"""The compiled programs of PPO, and an iteration that runs them.

The PPO stage, the training of several trials at once, the bandit and the planner share them.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rlhf_jax import advantages as adv
from rlhf_jax import lora, model, optim, sharding, train
from rlhf_jax.model import TransformerConfig
from rlhf_jax.ppo import options
from rlhf_jax.ppo.completions import RewardFn
from rlhf_jax.ppo.mixture import mixture_of, next_scales
from rlhf_jax.ppo.score import make_score
from rlhf_jax.ppo.state import Coefficients, PPOConfig, PPOState
from rlhf_jax.ppo.update import make_update
from rlhf_jax.ppo.watch import look, watch
from rlhf_jax.runtime.errors import InputError


def coefficients(section: ConfigDict) -> Coefficients:
    """Returns the sweepable numbers of a section as f32[] arrays; kl_target is 0 where the section has none."""
    numbers = {name: getattr(section, name, None) for name in Coefficients.__dataclass_fields__}
    numbers["kl_target"] = section.kl_target or 0.0
    mixture, weights = mixture_of(section), numbers.pop("reward_weights")
    weights = jnp.float32(weights or [1.0] * len(mixture.names)) if mixture else None
    return Coefficients(**{name: jnp.float32(value) for name, value in numbers.items()}, reward_weights=weights)


def static_config(
    shape: TransformerConfig,
    value_shape: TransformerConfig | None,
    eos_id: int | tuple[int, ...],
    section: ConfigDict,
    name: str = "ppo",
    parts: Mapping[str, int] | None = None,
) -> PPOConfig:
    """Returns the checked static configuration of the PPO programs for a policy and a value model of these shapes.

    Args:
      shape: shape of the policy.
      value_shape: shape of the value model; ignored if the section has no separate value model.
      eos_id: token, or tokens, that end a completion.
      section: configuration of the PPO stage.
      name: name of the section, for error messages.
      parts: values of the fields that split a batch into parts, in the place of the section's; None in both is 1. Also
        `gather_once`, which is otherwise True unless the section has False.

    Raises:
      InputError: sizes do not divide each other, or choices exclude each other.
    """
    chosen = options.resolved(section)
    batch, minibatch, samples = (section[name] for name in ("batch_size", "minibatch_size", "samples_per_prompt"))
    split = {field: section[field] or 1 for field in ("microbatches", "ptx_microbatches")} | dict(parts or {})
    if batch % minibatch or minibatch % split["microbatches"]:
        raise InputError(
            f"{name}.batch_size={batch} must be a multiple of {name}.minibatch_size={minibatch}, which must be a multiple "
            f"of {name}.microbatches={split['microbatches']}"
        )
    if batch % samples:
        raise InputError(f"{name}.batch_size={batch} must be a multiple of {name}.samples_per_prompt={samples}")
    if adv.ESTIMATORS[section.advantage].compares and samples == 1:
        raise InputError(
            f"{name}.advantage='{section.advantage}' compares the completions of a prompt: set {name}.samples_per_prompt "
            "to 2 or more"
        )
    if chosen.kl_in == "loss" and chosen.kl_estimator == "k1":
        raise InputError(
            f"{name}.kl_in='loss' needs {name}.kl_estimator='k2' or 'k3': the gradient of 'k1' is 0 in expectation"
        )
    steps_per_iteration = section.ppo_epochs * (batch // minibatch)
    return PPOConfig(
        policy=shape,
        value=value_shape if has_value_model(section) else None,
        eos_id=eos_id,
        mixture=mixture_of(section),
        missing_eos=section.missing_eos,
        advantage=section.advantage,
        samples_per_prompt=samples,
        **chosen._asdict(),
        entropy_bonus=section.entropy_coef != 0.0,
        whiten_rewards=section.whiten_rewards,
        microbatches=split["microbatches"],
        gather_once=bool(split.get("gather_once", section.gather_once is not False)),
        ptx_microbatches=split["ptx_microbatches"],
        schedule=section.schedule,
        total_steps=section.iterations * steps_per_iteration,
        warmup_steps=section.warmup_iterations * steps_per_iteration,
        warmup_from=section.warmup_from,
        final_fraction=section.final_fraction,
        averaged=bool(section.ema_decay),
    )


def output_of(section) -> str:
    """Returns which weights a stage hands on, and validates, "ema" or "params".

    An average of nothing is the parameters; the best weights are the average at some iteration, where there is one.
    """
    return "ema" if section["ema_decay"] and section["output"] != "params" else "params"


def has_value_model(section: ConfigDict) -> bool:
    """Whether values come from a separate model, rather than from a head on the policy's trunk or not at all."""
    return adv.ESTIMATORS[section.advantage].reads_values and section.value == "separate"


class PPOPrograms:
    """The programs of a PPO stage, each jitted once with explicit output shardings; `update` donates the state."""

    def __init__(
        self, config: PPOConfig, reward_fn, optimizers, state_shardings, sampler, mesh, rules=sharding.DEFAULT_RULES
    ):
        whole, rows = sharding.replicated(mesh), sharding.over_batch(mesh)
        self.sample = sampler
        # Round to bfloat16 wherever the program says so. If `score` and `update` kept different extra digits of the
        # log-probabilities, the ratio of the first optimizer step would differ from 1.
        rounding = {"xla_allow_excess_precision": False}
        score = make_score(config, reward_fn, rules=rules if config.gather_once else None)
        self.score = jax.jit(score, out_shardings=(rows, whole), compiler_options=rounding)
        self.update = jax.jit(
            make_update(config, *optimizers),
            out_shardings=(state_shardings, whole),
            donate_argnums=0,
            compiler_options=rounding,
        )
        self.watch, self.look = (jax.jit(function, out_shardings=whole) for function in (watch, look))
        self.take = jax.jit(lambda tree, rows: jax.tree.map(lambda x: x[rows], tree), out_shardings=rows)
        self.randomness, self.summarize = jax.jit(randomness, static_argnums=(1, 2, 3)), jax.jit(summarize)


def randomness(key: jax.Array, rows: int, minibatch: int, epochs: int) -> tuple[jax.Array, list[jax.Array]]:
    """Returns the randomness of an iteration: the key for sampling, and the rows i32[minibatch] of each optimizer step.

    Every epoch visits all rows, in its own random order.
    """
    orders = [jax.random.permutation(jax.random.fold_in(key, 1 + epoch), rows) for epoch in range(epochs)]
    return jax.random.fold_in(key, 0), [part for order in orders for part in jnp.split(order, rows // minibatch)]


def summarize(steps: list[dict]) -> dict:
    """Returns the metrics of an iteration's optimizer steps: the mean of each metric over the steps.

    Two metrics are not means: ratio_max is the maximum over the steps, first_approxkl is approxkl of the first step.
    """
    columns = jax.tree.map(lambda *values: jnp.stack(values), *steps)
    return {name: jnp.mean(values) for name, values in columns.items()} | {
        "ppo/policy/ratio_max": jnp.max(columns["ppo/policy/ratio_max"]),
        "ppo/policy/first_approxkl": columns["ppo/policy/approxkl"][0],
    }


def _unmarked(part: str, result) -> None:
    """The default of `mark`: nobody measures how long the parts of an iteration take."""


def iterate(
    programs: PPOPrograms,
    state,
    frozen,
    batch,
    ptx_batch,
    coefs,
    key,
    section,
    fixed_kl: bool,
    judge=None,
    mark=_unmarked,
    base: dict | None = None,
    given=None,
    keep=None,
):
    """Runs one iteration: a rollout, its experience, and ppo_epochs x batch_size / minibatch_size optimizer steps.

    With a leading axis of trials on all arguments and programs, it runs the iteration of several trials at once.

    Args:
      state: PPOState, donated.
      frozen: (reference parameters, reward-model parameters); the latter are a tuple if there is a mixture.
      batch: Prompts.
      ptx_batch: function from the optimizer step within the iteration to a Batch on the mesh, or to None without ptx.
      coefs: Coefficients.
      key: random key of the iteration.
      section: configuration of the PPO stage.
      fixed_kl: whether the KL coefficient stays as it is; otherwise it is steered to coefs.kl_target.
      judge: function from the Rollout to metrics that are computed outside the programs, or None.
      mark: called with the name of each part and a result of it, as soon as the devices have its programs; see
        runtime.clock.
      base: the frozen parameters that policy, value, reference and reward model share, if they are adapters; or None.
      given: function from the Rollout to the scores of a mixture that the host gives, f32[B, H] on the mesh, or None.
        It is called before anything changes, so that an error that it raises leaves the state as it is.
      keep: called with the completions of the highest and of the lowest score (see watch.watch), or None.

    Returns:
      (state, metrics): the metrics of the experience, those of `watch.watch`, those of `summarize` for the updates, and
      those of `judge`.
    """
    sample_key, minibatches = programs.randomness(key, section.batch_size, section.minibatch_size, section.ppo_epochs)
    rollout = programs.sample(lora.joined(base, state.language_model), batch, sample_key, coefs.temperature)
    mark("sample", rollout.completion_mask)
    experience, metrics = programs.score(
        state.policy.params,
        state.value_params,
        *frozen,
        rollout,
        state.kl_coef,
        coefs,
        minibatches[: section.batch_size // section.minibatch_size],
        base,
        given and given(rollout),
        state.scales,
    )
    watched, extremes = programs.watch(experience)
    metrics |= watched
    if keep:
        keep(extremes)
    mark("score", metrics)
    scales = next_scales(state.scales, metrics)
    steps: list[dict] = []
    for rows in minibatches:
        part = programs.take(experience, rows)
        state, step_metrics = programs.update(state, part, ptx_batch(len(steps)), coefs, base)
        steps.append(step_metrics)
    metrics |= (updates := programs.summarize(steps))
    mark("update", updates)
    kl_coef = adv.update_kl_coef(
        state.kl_coef,
        metrics["objective/kl"],
        section.batch_size,
        None if fixed_kl else coefs.kl_target,
        coefs.kl_horizon,
    )
    if judge:  # last, so that the host judges while the devices compute the updates
        metrics |= judge(rollout)
    return state.replace(kl_coef=kl_coef, scales=scales), metrics


def optimizers_of(section: ConfigDict) -> tuple[optim.OptimizerConfig, optim.OptimizerConfig]:
    """Returns the optimizer configurations of the policy and of the value model."""
    return optim.OptimizerConfig(**section.optimizer), optim.OptimizerConfig(**section.value_optimizer)


def frozen_params(shape: TransformerConfig, *params: dict) -> tuple[dict, ...]:
    """Casts parameters to the model's compute dtype: frozen models need no float32 master weights."""
    if shape.dtype == "float32":
        return params
    return jax.tree.map(lambda x: x.astype(shape.dtype), params)


def ptx_rows(section: ConfigDict) -> int:
    """Returns the pretraining sequences of an optimizer step: ptx_ratio per episode, spread over the epochs."""
    return section.ptx_ratio * section.minibatch_size // section.ppo_epochs


def make_state(config: PPOConfig, optimizers: tuple, policy: dict, value: dict | None, kl_coef: jax.Array) -> PPOState:
    """Returns a fresh PPOState; it holds copies of the parameters, because states are donated.

    Args:
      config: the static configuration.
      optimizers: optax transformations of the policy and of the value model; a head on the policy's trunk is the
        policy's.
      policy: parameters of the policy that are trained.
      value: those of a separate value model, of only a scalar head for the policy's trunk, or None.
      kl_coef: f32[], the initial KL coefficient.
    """
    policy, value = jax.tree.map(jnp.copy, (policy, value))
    if value and model.is_scalar_head(value):
        policy, value = policy | value, None
    value_state = train.init_state(value, optimizers[1]) if value else None
    scales = config.mixture.scales() if config.mixture else None
    return PPOState(train.init_state(policy, optimizers[0], ema=config.averaged), value_state, kl_coef, scales)


def state_maker(config: PPOConfig, mesh, rules, optimizers):
    """Returns (a jitted function that makes a PPOState on the mesh, the shardings of the state).

    The function is `make_state` with its first arguments set: (policy parameters, value parameters, kl_coef) -> PPOState.
    """
    shape, value_shape = config.policy, config.value
    (_, policy), (_, axes) = lora.split(model.param_shapes(shape)), lora.split(model.logical_axes(shape))
    value_axes, value = None, None
    if config.shared_value:
        axes |= model.scalar_head_of(model.logical_axes(shape, "scalar"))
        value = model.scalar_head_of(model.param_shapes(shape, "scalar"))
    elif value_shape:
        _, value_axes = lora.split(model.logical_axes(value_shape, "scalar"))
        _, value = lora.split(model.param_shapes(value_shape, "scalar"))
    make = functools.partial(make_state, config, optimizers)
    shapes = jax.eval_shape(make, policy, value, jax.ShapeDtypeStruct((), jnp.float32))
    shard = functools.partial(train.state_shardings, mesh=mesh, rules=rules)
    whole: Any = sharding.replicated(mesh)  # the shardings of a state stand in the places of its arrays
    shardings = PPOState(
        shard(shapes.policy, optimizers[0], axes),
        shapes.value and shard(shapes.value, optimizers[1], value_axes),
        whole,
        jax.tree.map(lambda _: whole, shapes.scales),
    )
    return jax.jit(make, out_shardings=shardings), shardings


@functools.lru_cache(maxsize=16)
def compiled(config: PPOConfig, reward_fn: RewardFn | None, optimizers: tuple, sampler, mesh, rules: tuple):
    """Returns (the state-making function of `state_maker`, PPOPrograms).

    The result is cached by its arguments, so that stages which differ only in Coefficients compile once per process.
    """
    optimizers = tuple(map(optim.make_optimizer, optimizers))
    make, shardings = state_maker(config, mesh, dict(rules), optimizers)
    return make, PPOPrograms(config, reward_fn, optimizers, shardings, sampler, mesh, dict(rules))
