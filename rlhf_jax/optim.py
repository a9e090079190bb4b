"""Adam without a learning rate, and the schedules that multiply one.

The learning rate is an array argument of the train step and no part of the optimizer, so that
changing it never recompiles.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

SCHEDULES = ("constant", "cosine", "linear")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Adam. The betas are InstructGPT's (appendix C); it leaves the rest unsaid.

    m and v being the moving averages after step t = 1, 2, ..., `eps_placement` says where eps goes:

        "torch"   m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)        PyTorch, optax
        "tf1"     sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps)    TensorFlow 1, OpenAI's PPO

    "tf1" is "torch" with eps / sqrt(1 - b2^t), so it takes smaller first steps (Huang et al.,
    detail 21: with eps = 1e-5 the early policy moves six times less in approximate KL).

    Attributes:
        b1: decay of the average gradient.
        b2: decay of the average squared gradient.
        eps: added to the denominator.
        eps_placement: "torch" or "tf1".
        weight_decay: decoupled, of every parameter; the learning rate multiplies it too.
        max_grad_norm: gradients of a larger global norm are scaled down to it; None or 0: never.
    """

    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    eps_placement: str = "torch"
    weight_decay: float = 0.0
    max_grad_norm: float | None = None


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Clipping, Adam, weight decay; `apply_gradients` supplies the learning rate and the sign."""
    scale_by_adam = EPS_PLACEMENTS[config.eps_placement]
    parts = [scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)]
    if config.max_grad_norm:
        parts.insert(0, optax.clip_by_global_norm(config.max_grad_norm))
    if config.weight_decay:
        parts.append(optax.add_decayed_weights(config.weight_decay))
    return optax.chain(*parts)


def scale_by_adam_tf1(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam with eps as TensorFlow 1 places it; the state is that of `optax.scale_by_adam`."""

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
    """One optimizer step.

    Returns:
        The new parameters, the new optimizer state, the global norm f32[] of the gradients before
        they were clipped.
    """
    updates, opt_state = optimizer.update(gradients, opt_state, params)
    updates = jax.tree.map(lambda update: -learning_rate * update, updates)
    return optax.apply_updates(params, updates), opt_state, optax.tree.norm(gradients)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """`schedule` with its fields set: step -> fraction of the peak learning rate, f32[]. Hashable, as programs are kept by it."""

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
    """The fraction of the peak learning rate to use at a step, f32[].

    InstructGPT's SFT and reward model: "cosine" to 0.1, no warm-up. Its PPO: "constant" with a
    warm-up from 0.1 over the first 10 iterations. Stiennon et al.'s PPO: "linear" to 0.

    Args:
        kind: "constant", "cosine" or "linear": what follows the warm-up.
        step: number of steps already made; may be traced.
        total_steps: where the decay ends, and stays; "constant" has no use for it.
        warmup_steps: the step at which the warm-up, a straight line, reaches the peak.
        warmup_from: fraction of the peak where the warm-up begins.
        final: fraction of the peak where the decay ends.
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
