"""Adam without a learning rate, and the schedules that multiply the learning rate.

The learning rate is an array argument of the train step rather than part of the optimizer, so that changing it never
recompiles.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

SCHEDULES = ("constant", "cosine", "linear")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Settings of Adam. The betas are InstructGPT's (appendix C); the paper does not state the other values.

    With m and v the moving averages after step t = 1, 2, ..., `eps_placement` says where eps is added:

        "torch"   m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)        PyTorch, optax
        "tf1"     sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps)    TensorFlow 1, OpenAI's PPO

    "tf1" equals "torch" with eps / sqrt(1 - b2^t), so its first steps are smaller. With eps = 1e-5 the early policy
    moves six times less in approximate KL (Huang et al., detail 21).

    Attributes:
        b1: decay of the moving average of the gradient.
        b2: decay of the moving average of the squared gradient.
        eps: number added to the denominator.
        eps_placement: "torch" or "tf1".
        weight_decay: decoupled weight decay of every parameter; it is multiplied by the learning rate.
        max_grad_norm: largest global norm of the gradients, to which larger ones are scaled down; None or 0: no
          clipping.
    """

    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    eps_placement: str = "torch"
    weight_decay: float = 0.0
    max_grad_norm: float | None = None


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Returns clipping, Adam and weight decay in a chain; `apply_gradients` supplies the learning rate and the sign."""
    scale_by_adam = EPS_PLACEMENTS[config.eps_placement]
    parts = [scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)]
    if config.max_grad_norm:
        parts.insert(0, optax.clip_by_global_norm(config.max_grad_norm))
    if config.weight_decay:
        parts.append(optax.add_decayed_weights(config.weight_decay))
    return optax.chain(*parts)


def scale_by_adam_tf1(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Returns Adam with eps placed as in TensorFlow 1; its state has the type of `optax.scale_by_adam`'s."""

    def update(gradients, state, params=None):
        del params
        mu = optax.tree.update_moment(gradients, state.mu, b1, 1)
        nu = optax.tree.update_moment(gradients, state.nu, b2, 2)
        count = optax.safe_increment(state.count)
        correction = jnp.sqrt(1 - b2**count) / (1 - b1**count)
        updates = jax.tree.map(lambda m, v: correction * m / (jnp.sqrt(v) + eps), mu, nu)
        return updates, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

    return optax.GradientTransformation(optax.scale_by_adam().init, update)


EPS_PLACEMENTS = {"torch": optax.scale_by_adam, "tf1": scale_by_adam_tf1}


def apply_gradients(
    optimizer: optax.GradientTransformation,
    gradients: optax.Updates,
    opt_state: optax.OptState,
    params: optax.Params,
    learning_rate: jax.Array | float,
) -> tuple[optax.Params, optax.OptState, jax.Array]:
    """Makes one optimizer step.

    Returns:
        The new parameters, the new optimizer state, and the global norm f32[] of the gradients before clipping.
    """
    updates, opt_state = optimizer.update(gradients, opt_state, params)
    updates = jax.tree.map(lambda update: -learning_rate * update, updates)
    return optax.apply_updates(params, updates), opt_state, optax.tree.norm(gradients)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """`schedule` with its settings: step -> fraction of the peak learning rate, f32[].

    It is hashable, because compiled programs are cached by it.
    """

    kind: str
    total_steps: int
    warmup_steps: int = 0
    warmup_from: float = 0.0
    final: float = 0.1

    def __call__(self, step: jax.Array | int) -> jax.Array:
        return schedule(
            self.kind,
            step,
            self.total_steps,
            warmup_steps=self.warmup_steps,
            warmup_from=self.warmup_from,
            final=self.final,
        )


def schedule(
    kind: str,
    step: jax.Array | int,
    total_steps: int,
    *,
    warmup_steps: int = 0,
    warmup_from: float = 0.0,
    final: float = 0.1,
) -> jax.Array:
    """Returns the fraction of the peak learning rate to use at a step, f32[].

    InstructGPT's SFT and reward model use "cosine" to 0.1, without warm-up. Its PPO uses "constant" with a warm-up from
    0.1 over the first 10 iterations. Stiennon et al.'s PPO uses "linear" to 0.

    Args:
        kind: "constant", "cosine" or "linear": the schedule after the warm-up.
        step: number of steps already made; may be traced.
        total_steps: step at which the decay ends; the fraction stays constant after it. Not used by "constant".
        warmup_steps: step at which the linear warm-up reaches the peak.
        warmup_from: fraction of the peak at which the warm-up begins.
        final: fraction of the peak at which the decay ends.

    Raises:
        ValueError: the kind is unknown.
    """
    step = jnp.asarray(step, jnp.float32)
    done = jnp.clip((step - warmup_steps) / max(total_steps - warmup_steps, 1), 0, 1)
    if kind == "constant":
        after_warmup = jnp.ones_like(done)
    elif kind == "cosine":
        after_warmup = final + (1 - final) * (1 + jnp.cos(jnp.pi * done)) / 2
    elif kind == "linear":
        after_warmup = 1 - (1 - final) * done
    else:
        raise ValueError(f"there is no schedule {kind!r}")
    warmup = warmup_from + (1 - warmup_from) * step / max(warmup_steps, 1)
    return jnp.where(step < warmup_steps, warmup, after_warmup)
