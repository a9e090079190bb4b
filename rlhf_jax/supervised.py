"""What pretraining, SFT and the reward model share: the train step of a loss, over the batches of a loader."""

import functools

import jax
import jax.numpy as jnp

from rlhf_jax import loop, model, optim, sharding, train
from rlhf_jax.run import Run, optimizer_of


def fit(run: Run, stage: str, params: dict, loss_fn: train.LossFn, loader, total: int, *, head: str = "lm", **loop_options):
    """Trains `params` for `total` steps with the optimizer and schedule of config[stage].

    Args:
      loader: has batch(step), a tree of arrays, and rows(step), which examples these are.
      head: of the model, "lm" or "scalar".
      loop_options: what is shown and how it is validated; see loop.fit.

    Returns:
      The final TrainState.
    """
    section = run.config[stage]
    optimizer = optimizer_of(section.optimizer)
    make = functools.partial(train.init_state, optimizer=optimizer)
    axes = model.logical_axes(run.shape(stage), head)
    shardings = train.state_shardings(jax.eval_shape(make, params), optimizer, axes, run.mesh, run.rules)
    state = jax.jit(make, out_shardings=shardings)(params)
    program = jit_train_step(run, stage, loss_fn, optimizer, shardings, total)
    learning_rate = jnp.float32(section.learning_rate)

    def advance(state, step):
        batch = sharding.put_batch(loader.batch(step), run.mesh)
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


def jit_train_step(run: Run, stage: str, loss_fn: train.LossFn, optimizer, shardings, total: int):
    """The train step of a stage as one program with explicit shardings and a donated state."""
    section = run.config[stage]
    schedule = functools.partial(
        optim.schedule,
        section.schedule,
        total_steps=total,
        warmup_steps=section.warmup_steps,
        warmup_from=section.warmup_from,
        final=section.final_fraction,
    )
    return jax.jit(
        train.make_train_step(loss_fn, optimizer, schedule, section.microbatches),
        in_shardings=(shardings, sharding.over_batch(run.mesh), None, None),
        out_shardings=(shardings, sharding.replicated(run.mesh)),
        donate_argnums=0,
    )
