"""Programs of many trials: those of one run, batched over a leading axis of trials that is split over the devices."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import generate, optim, ppo, sampling, sharding, train
from rlhf_jax.model import TransformerConfig
from rlhf_jax.ppo import programs as ppo_programs
from rlhf_jax.ppo.watch import watch
from rlhf_jax.runtime import hosts
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.stages import ppo as ppo_stage
from rlhf_jax.stages import ppo_rewards, supervised

AXIS = "trials"  # name of the vmap axis
Training = supervised.SupervisedTraining | ppo_stage.PPOTraining


def spread(function: Callable, mesh: jax.sharding.Mesh, donate: int | tuple = (), **options) -> Callable:
    """Returns a function of one trial as a jitted program of many.

    All arguments and results have a leading axis of trials. Each device computes its own trials, without communication.

    Args:
      function: the function of one trial.
      mesh: the devices.
      donate: positions of the arguments whose buffers are donated.
      options: further options of jax.jit.
    """
    trials = sharding.over_trials(mesh).spec
    batched = jax.vmap(function, axis_name=AXIS)
    local = jax.shard_map(batched, mesh=mesh, in_specs=trials, out_specs=trials, check_vma=False)
    return jax.jit(local, donate_argnums=donate, **options)


def draw_of(shape: TransformerConfig, completion_length: int, eos_id, pad_id: int, slots: int = 0) -> Callable:
    """Returns a function (params, tokens, mask, key, temperature) -> Rollout of one trial, for `spread`.

    See generate.sample.
    """
    # All trials go on until the last one has ended: a step made by only some of them would copy the caches of all.
    sizes = generate.Sizes(completion_length, eos_id, pad_id, slots, axes=(AXIS,))

    def draw(params, tokens, mask, key, temperature):
        params = jax.tree.map(lambda x: x.astype(shape.dtype), params)
        return generate.sample(shape, params, tokens, mask, key, temperature, sizes=sizes)

    return draw


@functools.lru_cache
def gather_of(mesh: jax.sharding.Mesh) -> Callable:
    """Returns a program that replicates stacked metrics, so that every process can read them."""
    return jax.jit(lambda metrics: metrics, out_shardings=sharding.replicated(mesh))


@functools.lru_cache
def pick_of(mesh: jax.sharding.Mesh) -> Callable:
    """Returns a program (stacked state, place) -> the state of one trial, replicated on every device."""

    def pick(tree, place):
        return jax.tree.map(lambda x: x[place], tree)

    return jax.jit(pick, out_shardings=sharding.replicated(mesh))


def _stack_of(function: Callable, trainings: Sequence[Training], mesh):
    """Returns function(training) of all trainings, stacked and split over the mesh.

    The function is called only once for a training that fills several places.
    """
    made = {}
    for training in trainings:
        if id(training) not in made:
            made[id(training)] = hosts.fetch(function(training))
    return sharding.put_trials([made[id(training)] for training in trainings], mesh)


def _keys(trainings: Sequence[Training], name: str, mesh):
    """Returns the key data of each run's random key of a name, stacked."""
    return _stack_of(lambda training: jax.random.key_data(training.run.key(name)), trainings, mesh)


def supervised_of(trainings: Sequence[supervised.SupervisedTraining], mesh):
    """Returns the stacked initial state and the step function of supervised trainings: pretraining, SFT, reward models.

    Returns:
      (state, advance), where advance(state, step, active) -> (state, metrics). active, bool[trials], is False for
      trials whose state does not change.
    """
    first = trainings[0]
    section = first.run.config[first.stage]
    optimizer = optim.OptimizerConfig(**section.optimizer)
    make, program = _supervised_programs(first.loss_fn, optimizer, first.run.parts(first.stage)["microbatches"], mesh)
    state = make(_stack_of(lambda training: training.start(), trainings, mesh))
    keys, rates = _keys(trainings, first.stage, mesh), [_rates(training) for training in trainings]

    def advance(state, step, active):
        def own_step(training):
            return min(step, training.total - 1)  # a finished trial repeats its last step, and the result is not used

        steps = [own_step(training) for training in trainings]
        batch = _stack_of(lambda training: training.loader.batch(own_step(training)), trainings, mesh)
        rate = np.array([rates[step] for rates, step in zip(rates, steps)])
        return program(state, batch, rate, keys, np.array(steps, np.int32), active)

    return state, advance


def _rates(training: supervised.SupervisedTraining) -> np.ndarray:
    """Returns the learning rate of every step, f32[total]."""
    section = training.run.config[training.stage]
    schedule = supervised.schedule_of(section, training.total)
    return np.float32(section.learning_rate) * np.asarray(jax.vmap(schedule)(np.arange(training.total)))


@functools.lru_cache(maxsize=32)
def _supervised_programs(loss_fn: train.LossFn, optimizer: optim.OptimizerConfig, microbatches: int, mesh):
    """Returns two programs: params -> state, and (state, batch, rate, key, step, active) -> (state, metrics)."""
    optimizer = optim.make_optimizer(optimizer)
    # The caller passes scheduled learning rates, because the length of the schedule may differ between trials.
    train_step = train.make_train_step(loss_fn, optimizer, lambda step: 1.0, microbatches)

    def step(state, batch, learning_rate, key, number, active):
        key = jax.random.fold_in(jax.random.wrap_key_data(key), number)
        new, metrics = train_step(state, batch, learning_rate, key)
        return jax.tree.map(lambda new, old: jnp.where(active, new, old), new, state), metrics

    return spread(functools.partial(train.init_state, optimizer=optimizer), mesh), spread(step, mesh, donate=0)


def ppo_of(trainings: Sequence[ppo_stage.PPOTraining], mesh):
    """Returns the stacked initial state and the iteration function of PPO.

    Returns:
      (state, advance), where advance(state, iteration, active) -> (state, metrics).
    """
    first = trainings[0]
    run, section = first.run, first.run.config[first.stage]
    sizes = section.batch_size, section.minibatch_size, section.ppo_epochs
    programs = _ppo_programs(
        first.config,
        ppo_rewards.reward_fn_of(run, section),
        ppo_programs.optimizers_of(section),
        (run.config.completion_length, run.tokenizer.end_ids, run.tokenizer.pad_id, sampling.slots_of(run, sizes[0])),
        sizes,
        mesh,
    )

    def section_of(training):
        return training.run.config[training.stage]

    ref, reward, value = _stack_of(lambda training: training.start(), trainings, mesh)
    kl_coef = _stack_of(lambda training: np.float32(section_of(training).kl_coef), trainings, mesh)
    state = programs.make(ref, value, kl_coef)
    frozen = programs.freeze(ref, reward)
    del ref, reward, value
    coefs = _stack_of(lambda training: ppo_programs.coefficients(section_of(training)), trainings, mesh)
    keys = _keys(trainings, "ppo", mesh)
    with_ptx = next((training for training in trainings if training.ptx), None)
    ptx = [training if training.ptx else with_ptx for training in trainings]  # with ptx_coef = 0, any text will do

    def advance(state, iteration, active):
        del active  # all trials have the same number of iterations, and the state of a failed trial is not read
        first_step = iteration * first.steps_per_iteration
        return ppo_programs.iterate(
            programs,
            state,
            frozen,
            _stack_of(lambda training: training.prompts.batch(iteration), trainings, mesh),
            lambda step: with_ptx and _stack_of(lambda training: training.ptx.batch(first_step + step), ptx, mesh),
            coefs,
            programs.keys(keys, np.full(len(trainings), iteration, np.int32)),
            section,
            fixed_kl=section.kl_target is None,
            judge=_judge(trainings, iteration),
            mark=first.trial.clock.mark,
            given=_given(trainings, iteration, mesh),
        )

    return state, advance


def _judge(trainings: Sequence[ppo_stage.PPOTraining], iteration: int):
    """Returns ppo_stage.PPOTraining.judge for all trials, stacked rollouts -> stacked metrics; None if nothing judges."""
    judges = [training.judge(iteration) for training in trainings]
    if not judges[0]:
        return None

    def judge(rollout):
        rollout = hosts.fetch(rollout)
        found = [one(jax.tree.map(lambda x: x[place], rollout)) for place, one in enumerate(judges)]
        return jax.tree.map(lambda *values: np.stack(values), *found)

    return judge


def _given(trainings: Sequence[ppo_stage.PPOTraining], iteration: int, mesh):
    """Returns ppo_stage.PPOTraining.given for all trials, stacked rollouts -> f32[trials, B, H]; None without functions."""
    functions = {id(training): training.given(iteration) for training in trainings}
    if not trainings[0].functions:
        return None

    def given(rollout):
        rollout, found = hosts.fetch(rollout), {}
        for place, training in enumerate(trainings):
            if id(training) not in found:  # copies fill up the stack
                try:
                    found[id(training)] = functions[id(training)](jax.tree.map(lambda x: x[place], rollout))
                except InputError as error:  # it ends all trials of the program, whose states are saved
                    raise InputError(f"{training.run.path.name}: {error}") from error
        return sharding.put_trials([found[id(training)] for training in trainings], mesh)

    return given


class StackedPPOPrograms:
    """ppo_programs.PPOPrograms for several trials: all arguments and results have a leading axis of trials.

    Args:
      config: the static configuration of PPO.
      reward_fn: function of the reward model (see ppo.make_score).
      optimizers: optimizers of policy and value function.
      lengths: (completion length in tokens, eos_id, pad_id, slots), see generate.Sizes.
      sizes: (batch size, minibatch size, PPO epochs).
      mesh: the devices over which the trials are split.
    """

    def __init__(self, config: ppo.PPOConfig, reward_fn, optimizers, lengths: tuple, sizes: tuple, mesh):
        sample = spread(draw_of(config.policy, *lengths), mesh)
        randomness = spread(lambda key: ppo_programs.randomness(key, *sizes), mesh)
        rounding = {"xla_allow_excess_precision": False}  # as in ppo_programs.PPOPrograms
        self.make = spread(functools.partial(ppo_programs.make_state, config, optimizers), mesh)
        self.freeze = spread(functools.partial(ppo_programs.frozen_params, config.policy), mesh)
        self.keys = spread(lambda key, number: jax.random.fold_in(jax.random.wrap_key_data(key), number), mesh)
        self.randomness = lambda key, *_: randomness(key)
        self.sample = lambda params, batch, *noise: sample(params, batch.tokens, batch.mask, *noise)
        self.score = spread(ppo.make_score(config, reward_fn, AXIS), mesh, compiler_options=rounding)
        self.update = spread(ppo.make_update(config, *optimizers, AXIS), mesh, donate=0, compiler_options=rounding)
        self.watch = spread(watch, mesh)
        self.take = spread(lambda tree, rows: jax.tree.map(lambda x: x[rows], tree), mesh)
        self.summarize = spread(ppo_programs.summarize, mesh)


@functools.lru_cache(maxsize=16)
def _ppo_programs(config: ppo.PPOConfig, reward_fn, optimizers: tuple, lengths: tuple, sizes: tuple, mesh):
    """Returns StackedPPOPrograms, cached by its arguments, so that each is compiled once."""
    return StackedPPOPrograms(config, reward_fn, tuple(map(optim.make_optimizer, optimizers)), lengths, sizes, mesh)
