"""TrainState, the pure train step around a loss, and the loop that drives any stage.

A loss is a function (params, batch, key) -> losses.Loss: a total and the weight it is divided by. Microbatches and
devices add totals and weights, so the division is by the global weight and no result depends on the split.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from rlhf_jax import losses, optim, sharding

LossFn = Callable[[Any, Any, jax.Array], losses.Loss]


@struct.dataclass
class TrainState:
    """What training one model carries from step to step."""

    step: jax.Array  # i32[], optimizer steps made
    params: dict
    opt_state: optax.OptState
    ema_params: dict | None  # moving average of params, or None


def init_state(params: dict, optimizer: optax.GradientTransformation, *, ema: bool = False) -> TrainState:
    """A fresh state; the average starts at the parameters (a copy: states are donated)."""
    average = jax.tree.map(jnp.copy, params) if ema else None
    return TrainState(jnp.int32(0), params, optimizer.init(params), average)


def state_shardings(state_shapes: TrainState, optimizer, logical_axes, mesh, rules=sharding.DEFAULT_RULES) -> TrainState:
    """Parameters by their logical axes; optimizer state and average like the parameters."""
    params = sharding.param_shardings(logical_axes, state_shapes.params, mesh, rules)
    return TrainState(
        step=sharding.replicated(mesh),
        params=params,
        opt_state=sharding.optimizer_shardings(optimizer, state_shapes.opt_state, params, mesh),
        ema_params=None if state_shapes.ema_params is None else params,
    )


def gradients(
    loss_fn: LossFn, params: dict, batch, key: jax.Array, microbatches: int = 1
) -> tuple[dict, losses.Loss]:
    """Gradient of total / weight over the whole batch, computed in `microbatches` parts.

    Args:
      batch: a pytree whose leaves have the batch as first axis; it must divide by `microbatches`.

    Returns:
      The gradient, and the loss with its totals over the whole batch.
    """

    def total(params, part, key):
        loss = loss_fn(params, part, key)
        return loss.total, loss

    def one(part, index):
        (_, loss), grads = jax.value_and_grad(total, has_aux=True)(params, part, jax.random.fold_in(key, index))
        return grads, loss

    if microbatches == 1:
        grads, loss = one(batch, 0)
    else:
        # Row i goes to part i % microbatches: each device keeps its own rows.
        parts = jax.tree.map(lambda x: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1), batch)

        def add(grads, indexed):
            more, loss = one(*indexed)
            return jax.tree.map(jnp.add, grads, more), loss

        zeros = jax.tree.map(jnp.zeros_like, params)
        grads, stacked = jax.lax.scan(add, zeros, (parts, jnp.arange(microbatches)))
        loss = functools.reduce(losses.combine, (jax.tree.map(lambda x: x[i], stacked) for i in range(microbatches)))
    return jax.tree.map(lambda g: g / jnp.maximum(loss.weight, 1e-8), grads), loss


def apply_gradients(
    state: TrainState,
    grads: dict,
    optimizer: optax.GradientTransformation,
    learning_rate: jax.Array,
    ema_decay: jax.Array | float = 0.0,
) -> tuple[TrainState, jax.Array]:
    """One optimizer step (and one step of the average); returns the state and the gradient norm before clipping."""
    params, opt_state, norm = optim.apply_gradients(optimizer, grads, state.opt_state, state.params, learning_rate)
    average = state.ema_params
    if average is not None:
        average = jax.tree.map(lambda a, p: ema_decay * a + (1.0 - ema_decay) * p, average, params)
    return TrainState(state.step + 1, params, opt_state, average), norm


def make_train_step(
    loss_fn: LossFn, optimizer: optax.GradientTransformation, schedule: Callable, microbatches: int = 1
) -> Callable:
    """The pure step (state, batch, learning_rate, key) -> (state, metrics); the caller jits it.

    Args:
      schedule: step i32[] -> multiplier of the learning rate f32[].
    """

    def train_step(state: TrainState, batch, learning_rate, key):
        grads, loss = gradients(loss_fn, state.params, batch, key, microbatches)
        learning_rate = learning_rate * schedule(state.step)
        state, norm = apply_gradients(state, grads, optimizer, learning_rate)
        return state, {**loss_metrics(loss), "grad_norm": norm, "learning_rate": learning_rate}

    return train_step


def loss_metrics(loss: losses.Loss) -> dict[str, jax.Array]:
    """The divided form of a loss: {"loss", its statistics, its maxima}, each f32[]."""
    means = {name: total / jnp.maximum(count, 1e-8) for name, (total, count) in loss.sums.items()}
    return {"loss": loss.total / jnp.maximum(loss.weight, 1e-8), **means, **loss.maxima}
