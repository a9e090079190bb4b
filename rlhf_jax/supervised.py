"""What pretraining, SFT and the reward model share: the train step of a loss, over the batches of a loader."""

import functools

import jax
import jax.numpy as jnp

from rlhf_jax import loop, model, optim, sharding, train
from rlhf_jax.model import TransformerConfig
from rlhf_jax.run import Run


def fit(run: Run, stage: str, params: dict, loss_fn: train.LossFn, loader, total: int, *, head: str = "lm", **loop_options):
    """Trains `params` for `total` steps with the optimizer and schedule of config[stage].

    Args:
      loader: has batch(step, places), a tree of arrays, batch_size, and rows(step), which examples these are.
      head: of the model, "lm" or "scalar".
      loop_options: what is shown and how it is validated; see loop.fit.

    Returns:
      The final TrainState.
    """
    section = run.config[stage]
    make, program = build(run, stage, loss_fn, total, head)
    state = make(params)
    learning_rate = jnp.float32(section.learning_rate)

    def advance(state, step):
        batch = sharding.put_rows(functools.partial(loader.batch, step), loader.batch_size, run.mesh)
        return program(state, batch, learning_rate, run.key(stage, step))

    return loop.fit(
        run,
        stage,
        state,
        advance,
        total,
        checkpoint_every=section.checkpoint_every,
        rows=lambda step: loader.rows(step).tolist(),
        **loop_options,
    )


def check(run: Run, stage: str) -> None:
    """Raises InputError for a batch that does not divide over the mesh; computes nothing."""
    section = run.config[stage]
    if section.kind == "sft" and section.packed:
        return  # the number of rows is rounded up to one that divides
    sharding.check_parts(f"{stage}.microbatches", section.batch_size, section.get("microbatches", 1), run.mesh)


def build(run: Run, stage: str, loss_fn: train.LossFn, total: int, head: str = "lm"):
    """(parameters -> TrainState, train step) of a stage, both jitted with explicit shardings; the step donates its state.

    Runs of one process that differ only in numbers (seed, learning rate) get the same two programs, compiled once.

    Args:
      loss_fn: hashable by value.
    """
    section = run.config[stage]
    check(run, stage)
    schedule = optim.Schedule(
        section.schedule, total, section.warmup_steps, section.warmup_from, section.final_fraction
    )
    optimizer = optim.OptimizerConfig(**section.optimizer)
    rules = tuple(run.rules.items())
    return _programs(run.shape(stage), head, loss_fn, optimizer, schedule, section.microbatches, run.mesh, rules)


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
