"""What pretraining, SFT and the reward model share: the train step of a loss, over the batches of a loader."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rlhf_jax import loop, model, optim, sharding, train
from rlhf_jax.model import TransformerConfig
from rlhf_jax.run import Run
from rlhf_jax.runtime.errors import InputError


@dataclasses.dataclass(frozen=True)
class Training:
    """A stage that is ready to be trained.

    Attributes:
      start: makes the parameters that it starts from.
      loss_fn: hashable by value.
      loader: has batch(step, places), a tree of arrays, batch_size, and rows(step), which examples these are.
      total: steps.
      finish: (final TrainState) -> None; writes what the stage leaves behind.
      head: of the model, "lm" or "scalar".
      live, validate, validate_every: what is shown and how it is validated; see loop.Trial.
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
        rows = lambda step: self.loader.rows(step).tolist()
        return loop.Trial(self.run, self.stage, self.total, rows, self.live, self.validate, self.validate_every)


def fit(training: Training) -> None:
    """Trains a stage with the optimizer and schedule of config[stage], to its end."""
    run, stage, loader = training.run, training.stage, training.loader
    section = run.config[stage]
    make, program = build(run, stage, training.loss_fn, training.total, training.head)
    if section.warmup_steps > training.total:  # what is left out as too long was not known before
        print(
            f"{stage}: the warm-up of {section.warmup_steps} steps is longer than its {training.total} steps; the learning "
            "rate stays below its peak"
        )
    state = make(training.start())
    learning_rate = jnp.float32(section.learning_rate)

    def advance(state, step):
        batch = sharding.put_rows(functools.partial(loader.batch, step), loader.batch_size, run.mesh)
        return program(state, batch, learning_rate, run.key(stage, step))

    training.finish(loop.fit(training.trial, state, advance, checkpoint_every=section.checkpoint_every))


def check(run: Run, stage: str) -> None:
    """Raises InputError for rows that the model has no positions for, or that do not divide over the mesh; computes nothing."""
    section = run.config[stage]
    if section.kind == "pretrain":
        run.check_length(f"{stage}.length", section.length, run.shape(stage))
    else:
        run.check_length("prompt_length + completion_length", run.whole_length, run.shape(stage))
    if section.kind == "sft" and section.packed:
        return  # the number of rows is rounded up to one that divides
    sharding.check_parts(f"{stage}.microbatches", section.batch_size, section.get("microbatches", 1), run.mesh)


def check_warmup(run: Run, stage: str, examples: int, batch_size: int) -> None:
    """Raises InputError where the warm-up is longer than the stage, which learns from so many examples at most."""
    section = run.config[stage]
    steps = max(1, math.ceil(section.epochs * examples / batch_size))
    if run.corpus and section.warmup_steps > steps:
        raise InputError(
            f"{stage}.warmup_steps={section.warmup_steps} must be at most {steps}, the steps that {stage}.epochs="
            f"{section.epochs:g} of {examples} examples make: the learning rate would never reach its peak"
        )


def build(run: Run, stage: str, loss_fn: train.LossFn, total: int, head: str = "lm"):
    """(parameters -> TrainState, train step) of a stage, both jitted with explicit shardings; the step donates its state.

    Runs of one process that differ only in numbers (seed, learning rate) get the same two programs, compiled once.

    Args:
      loss_fn: hashable by value.
    """
    section = run.config[stage]
    check(run, stage)
    optimizer = optim.OptimizerConfig(**section.optimizer)
    rules, schedule = tuple(run.rules.items()), schedule_of(section, total)
    return _programs(run.shape(stage), head, loss_fn, optimizer, schedule, section.microbatches, run.mesh, rules)


def schedule_of(section: ConfigDict, total: int) -> optim.Schedule:
    """Of the learning rate of a stage of `total` steps."""
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
    optimizer = optim.make_optimizer(optimizer)
    make = functools.partial(train.init_state, optimizer=optimizer)
    state = jax.eval_shape(make, model.param_shapes(shape, head))
    shardings = train.state_shardings(state, optimizer, model.logical_axes(shape, head), mesh, dict(rules))
    step = jax.jit(
        train.make_train_step(loss_fn, optimizer, schedule, microbatches),
        in_shardings=(shardings, sharding.over_batch(mesh), None, None),
        out_shardings=(shardings, sharding.replicated(mesh)),
        donate_argnums=0,
    )
    return jax.jit(make, out_shardings=shardings), step
