"""TrainState and the pure train step around a loss.

A loss is a function (params, batch, keys) -> losses.Loss: a total and the weight that divides it. Every row of the
batch has its own random key. Microbatches and devices add their totals and weights, so the division is by the global
weight, and a row keeps its key wherever it is computed. No result depends on how the batch is split.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from rlhf_jax import lora, losses, optim, sharding

LossFn = Callable[[Any, Any, jax.Array], losses.Loss]


@struct.dataclass
class TrainState:
    """What the training of one model carries from step to step."""

    step: jax.Array  # i32[], number of optimizer steps made
    params: dict
    opt_state: optax.OptState
    ema_params: dict | None  # moving average of params over the steps made (see `averaged`), or None


def init_state(params: dict, optimizer: optax.GradientTransformation, *, ema: bool = False) -> TrainState:
    """Returns a fresh state.

    With `ema`, the average starts as a copy of the parameters: a copy because states are donated. The first step
    replaces it entirely (see `averaged`).
    """
    average = jax.tree.map(jnp.copy, params) if ema else None
    return TrainState(jnp.int32(0), params, optimizer.init(params), average)


def state_shardings(
    state_shapes: TrainState, optimizer, logical_axes, mesh, rules=sharding.DEFAULT_RULES
) -> TrainState:
    """Returns the shardings of a state.

    Parameters are placed by their logical axes; the optimizer state and the average are placed like the parameters.
    """
    params = sharding.param_shardings(logical_axes, state_shapes.params, mesh, rules)
    whole: Any = sharding.replicated(mesh)  # the shardings stand in the places of the arrays
    return TrainState(
        step=whole,
        params=params,
        opt_state=sharding.optimizer_shardings(optimizer, state_shapes.opt_state, params, mesh),
        ema_params=None if state_shapes.ema_params is None else params,
    )


def gradients(loss_fn: LossFn, params: dict, batch, key: jax.Array, microbatches: int = 1) -> tuple[dict, losses.Loss]:
    """Returns the gradient of total / weight over the whole batch, computed in `microbatches` parts.

    Args:
      loss_fn: the loss.
      params: the parameters to differentiate with respect to.
      batch: a pytree whose leaves have the batch as first axis; `microbatches` must divide its size.
      key: random key of the batch; row i is given fold_in(key, i), in whichever part it is computed.

    Returns:
      The gradient, and the loss with its totals over the whole batch.
    """

    def total(params, part, keys):
        loss = loss_fn(params, part, keys)
        return loss.total, loss

    def one(part, keys):
        (_, loss), grads = jax.value_and_grad(total, has_aux=True)(params, part, keys)
        return grads, loss

    keys = row_keys(key, jax.tree.leaves(batch)[0].shape[0])
    if microbatches == 1:
        grads, loss = one(batch, keys)
    else:
        # Row i goes to part i % microbatches, so that each device keeps its own rows.
        parts = jax.tree.map(lambda x: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1), (batch, keys))

        def add(grads, part):
            more, loss = one(*part)
            return jax.tree.map(jnp.add, grads, more), loss

        zeros = jax.tree.map(jnp.zeros_like, params)
        grads, stacked = jax.lax.scan(add, zeros, parts)
        loss = functools.reduce(losses.combine, (jax.tree.map(lambda x: x[i], stacked) for i in range(microbatches)))
    return jax.tree.map(lambda g: g / jnp.maximum(loss.weight, 1e-8), grads), loss


def row_keys(key: jax.Array, rows: int) -> jax.Array:
    """Returns a random key for every row of a batch: keys [rows]."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(rows))


def apply_gradients(
    state: TrainState,
    grads: dict,
    optimizer: optax.GradientTransformation,
    learning_rate: jax.Array,
    ema_decay: jax.Array | float = 0.0,
) -> tuple[TrainState, jax.Array]:
    """Makes one optimizer step, and one step of the moving average if the state has one.

    Returns:
      The new state, and the global norm f32[] of the gradients before clipping.
    """
    params, opt_state, norm = optim.apply_gradients(optimizer, grads, state.opt_state, state.params, learning_rate)
    average = state.ema_params
    if average is not None:
        average = averaged(average, params, ema_decay, state.step + 1)
    return TrainState(state.step + 1, params, opt_state, average), norm


def averaged(average: dict, params: dict, decay: jax.Array | float, step: jax.Array) -> dict:
    """Returns the moving average of the parameters after steps 1 to `step`.

    With decay d the average is sum_s d^(t-s) p_s / sum_s d^(t-s) over the steps s = 1 to t. It is an average started at
    zero and divided by 1 - d^t, as Adam corrects its moments (Kingma and Ba 2015, section 3). The initial parameters
    have no weight, and the newest parameters have the weight (1 - d) / (1 - d^t). d = 0 gives the last parameters, and
    d = 1 the plain mean.

    Args:
      average: the average after the previous step.
      params: the parameters after this step.
      decay: d, in [0, 1].
      step: t, the number of steps made, this one included.
    """
    step = jnp.asarray(step, jnp.float32)
    plain = (step == 1) | (decay == 1.0)
    weight = jnp.where(plain, 1.0 / step, (1.0 - decay) / (1.0 - jnp.where(plain, 0.0, decay) ** step))
    return jax.tree.map(lambda a, p: (1.0 - weight) * a + weight * p, average, params)


def make_train_step(
    loss_fn: LossFn, optimizer: optax.GradientTransformation, schedule: Callable, microbatches: int = 1
) -> Callable:
    """Returns the pure step (state, batch, learning_rate, key, base) -> (state, metrics); the caller jits it.

    `base` are the frozen parameters beside those of the state, where these are adapters (see lora.py); None elsewhere.

    Args:
      loss_fn: the loss.
      optimizer: see optim.make_optimizer.
      schedule: step i32[] -> multiplier of the learning rate f32[].
      microbatches: number of parts in which the gradient is computed.
    """

    def train_step(state: TrainState, batch, learning_rate, key, base: dict | None = None):
        def whole_loss(trained, part, keys):
            return loss_fn(lora.joined(base, trained), part, keys)

        grads, loss = gradients(whole_loss, state.params, batch, key, microbatches)
        learning_rate = learning_rate * schedule(state.step)
        state, norm = apply_gradients(state, grads, optimizer, learning_rate)
        return state, {**loss_metrics(loss), "grad_norm": norm, "learning_rate": learning_rate}

    return train_step


def loss_metrics(loss: losses.Loss) -> dict[str, jax.Array]:
    """Returns the metrics of a loss after division, f32[] each: "loss", its statistics and its maxima."""
    means = {name: total / jnp.maximum(count, 1e-8) for name, (total, count) in loss.sums.items()}
    return {"loss": loss.total / jnp.maximum(loss.weight, 1e-8), **means, **loss.maxima}
