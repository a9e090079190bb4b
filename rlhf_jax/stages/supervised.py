"""Supervised training, as pretraining, SFT, DPO and the reward model share it.

A stage gives a loss and a loader; this module builds the train step and runs it over the loader's batches.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rlhf_jax import abstract, loop, lora, model, optim, sharding, train
from rlhf_jax.model import TransformerConfig, choice, memory, work
from rlhf_jax.run import Run
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.token_loss import TokenLoss


@dataclasses.dataclass(frozen=True)
class SupervisedTraining:
    """A stage that is ready to be trained.

    Attributes:
      run: the run.
      stage: name of the stage.
      start: makes the parameters to start from.
      loss_fn: the loss, hashable by value.
      loader: object with batch(step, places), a tree of arrays; batch_size; and rows(step), the examples of a batch.
      total: number of optimizer steps.
      finish: (final TrainState) -> None; writes the stage's results. The parameters are whole, as in `validate`.
      head: head of the model, "lm" or "scalar".
      live, validate, validate_every: what is shown, and how the stage is validated; see loop.Trial.
    """

    run: Run
    stage: str
    start: Callable[[], dict]
    loss_fn: train.LossFn
    loader: Any
    total: int
    finish: Callable[[train.TrainState], None]
    head: str = "lm"
    live: dict[str, str] = dataclasses.field(default_factory=dict)
    validate: Callable | None = None
    validate_every: int = 0

    @property
    def trial(self) -> loop.Trial:
        """The stage as loop.fit takes it."""

        def rows(step):
            return self.loader.rows(step).tolist()

        return loop.Trial(self.run, self.stage, self.total, rows, self.live, self.validate, self.validate_every)


def fit(training: SupervisedTraining) -> None:
    """Trains a stage to its end, with the optimizer and schedule of config[stage]."""
    run, stage, loader = training.run, training.stage, training.loader
    section = run.config[stage]
    make, program = build(run, stage, training.loss_fn, training.total, training.head)
    if section.warmup_steps > training.total:  # `check_warmup` did not know yet which examples are too long
        print(
            f"{stage}: the warm-up of {section.warmup_steps} steps is longer than its {training.total} steps; the learning "
            "rate stays below its peak"
        )
    base, trained = lora.split(training.start())
    state = make(trained)
    learning_rate = jnp.float32(section.learning_rate)

    def advance(state, step):
        batch = sharding.put_rows(functools.partial(loader.batch, step), loader.batch_size, run.mesh)
        return program(state, batch, learning_rate, run.key(stage, step), base)

    def whole(state):
        return state.replace(params=lora.joined(base, state.params))

    trial, validate = training.trial, training.validate
    if validate:
        trial = dataclasses.replace(trial, validate=lambda state, done: validate(whole(state), done))
    training.finish(whole(loop.fit(trial, state, advance, checkpoint_every=section.checkpoint_every)))


def check(run: Run, stage: str) -> None:
    """Raises InputError if the batches do not divide over the mesh; computes nothing."""
    sharding.check_parts(
        f"{stage}.microbatches", run.config[stage].batch_size, run.parts(stage)["microbatches"], run.mesh
    )


def check_whole_length(run: Run, stage: str) -> None:
    """Raises InputError if the model has too few positions for a prompt and its completion."""
    run.check_length("prompt_length + completion_length", run.whole_length, run.shape(stage))


def check_warmup(run: Run, stage: str, examples: int, batch_size: int) -> None:
    """Raises InputError if the warm-up is longer than the stage, which learns from at most `examples` examples."""
    section = run.config[stage]
    steps = max(1, math.ceil(section.epochs * examples / batch_size))
    if run.corpus and section.warmup_steps > steps:
        raise InputError(
            f"{stage}.warmup_steps={section.warmup_steps} must be at most {steps}, the steps that {stage}.epochs="
            f"{section.epochs:g} of {examples} examples make: the learning rate would never reach its peak"
        )


def build(run: Run, stage: str, loss_fn: train.LossFn, total: int, head: str = "lm"):
    """Returns (function from parameters to a TrainState, train step) of a stage, jitted with explicit shardings.

    The parameters are those that are trained: of a model with adapters, they are the second part of `lora.split`.

    The train step donates its state. Runs of one process that differ only in numbers (seed, learning rate) share the
    two programs, compiled once.

    Args:
      run: the run.
      stage: name of the stage.
      loss_fn: the loss, hashable by value.
      total: number of optimizer steps.
      head: head of the model, "lm" or "scalar".
    """
    section = run.config[stage]
    optimizer = optim.OptimizerConfig(**section.optimizer)
    rules, schedule = tuple(run.rules.items()), schedule_of(section, total)
    parts = run.parts(stage)["microbatches"]
    return _programs(run.trained_shape(stage), head, loss_fn, optimizer, schedule, parts, run.mesh, rules)


def schedule_of(section: ConfigDict, total: int) -> optim.Schedule:
    """Returns the learning-rate schedule of a stage of `total` steps."""
    return optim.Schedule(section.schedule, total, section.warmup_steps, section.warmup_from, section.final_fraction)


@functools.lru_cache(maxsize=32)
def _programs(
    shape: TransformerConfig,
    head: str,
    loss_fn: train.LossFn,
    optimizer: optim.OptimizerConfig,
    schedule: optim.Schedule,
    microbatches: int,
    mesh: jax.sharding.Mesh,
    rules: tuple,
):
    """Builds the programs of `build`, cached by everything that shapes them."""
    optimizer = optim.make_optimizer(optimizer)
    make = functools.partial(train.init_state, optimizer=optimizer)
    _, trained = lora.split(model.param_shapes(shape, head))
    _, axes = lora.split(model.logical_axes(shape, head))
    state = jax.eval_shape(make, trained)
    shardings = train.state_shardings(state, optimizer, axes, mesh, dict(rules))
    step = jax.jit(
        train.make_train_step(loss_fn, optimizer, schedule, microbatches),
        in_shardings=(shardings, sharding.over_batch(mesh), None, None, None),
        out_shardings=(shardings, sharding.replicated(mesh)),
        donate_argnums=0,
    )
    return jax.jit(make, out_shardings=shardings), step


def train_program(run: Run, stage: str, loss_fn: train.LossFn, batch, steps: int, head: str = "lm") -> abstract.Program:
    """Returns the train step of a stage as an abstract.Program, for an abstract batch and `steps` steps."""
    shape = run.trained_shape(stage)
    sharding.check_batch(batch, run.mesh)
    make, step = build(run, stage, loss_fn, steps, head)
    base, trained = lora.split(abstract.params(run, shape, head))
    state = make.eval_shape(trained)
    length, rows = batch.tokens.shape[-1], math.prod(batch.tokens.shape[:-1])
    places, parts = length if head == "lm" else 0, run.parts(stage)["microbatches"]
    weights = abstract.bytes_per_device(state.params)
    return abstract.Program(
        stage,
        "train step",
        lambda: step.lower(state, batch, abstract.scalar(), abstract.key(), base),
        abstract.groups(state) | ({"base": base} if base else {}) | {"batch": batch},
        {},
        work.training(shape, rows, length, rows * places, again=not isinstance(loss_fn, TokenLoss)),
        steps,
        temporaries=lambda change: memory.training(
            shape, run.mesh, rows, length, places, change.get("microbatches", parts), weights
        ),
        options={"microbatches": choice.parts(run.config[stage].batch_size, sharding.ways(run.mesh))},
        rows={"rows": (memory.rows_at_once(rows, parts, run.mesh), memory.rows_at_once(rows, 1, run.mesh))},
    )
