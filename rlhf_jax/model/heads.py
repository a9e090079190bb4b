"""What is read from hidden states: the logits and log-probabilities of a language model, the scalars of a reward model.

Shapes: B batch, T time, D embed, V vocabulary.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from rlhf_jax import sharding
from rlhf_jax.model.config import TransformerConfig

_MASKED_LOGIT = -1e9


def lm_table(config: TransformerConfig) -> str:
    """Returns the name of the parameters that give the logits."""
    return "embedding" if config.tie_embeddings else "lm_head"


def lm_logits(config: TransformerConfig, params: dict, hidden: jax.Array, divisor=1.0) -> jax.Array:
    """Returns float32 logits [..., V padded] of hidden states [..., D], divided by a temperature.

    Ids without a token are masked: the padding of the vocabulary, and the released model's own unused ids
    (`absent_ids`). No id without text can be sampled, and log-probabilities, KL and entropy are over real tokens alone.

    The division is applied to the hidden states. In some programs and not in others, XLA would contract a product after
    the logits with the operation that follows, and PPO's first ratio would not be exactly 1.
    """
    hidden = hidden * jnp.asarray(1.0 / divisor, hidden.dtype)
    table = sharding.whole_rows(params[lm_table(config)].astype(config.dtype))
    flat = hidden.reshape(-1, config.embed_dim)
    logits = jax.lax.dot_general(flat, table, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    logits = logits.reshape(*hidden.shape[:-1], config.padded_vocab)
    padding = ((config.vocab_size, config.padded_vocab),) if config.padded_vocab > config.vocab_size else ()
    for first, end in (*config.absent_ids, *padding):
        ids = jnp.arange(config.padded_vocab)
        logits = jnp.where((ids < first) | (ids >= end), logits, _MASKED_LOGIT)
    return logits


def scalar_head(config: TransformerConfig, params: dict, hidden: jax.Array) -> jax.Array:
    """Returns the float32 scalars [...] of a reward or value model for hidden states [..., D]."""
    kernel = params["scalar_kernel"].astype(jnp.float32)
    return hidden.astype(jnp.float32) @ kernel + params["scalar_bias"].astype(jnp.float32)


@jax.custom_vjp
def select_logprobs(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the log-softmax [...] at the targets i32[...] of float32 logits [..., V], in nats.

    Its custom derivative keeps the forward pass the same computation, to the bit, whether or not a gradient is taken.
    PPO's ratio is therefore exactly 1 before the first step. It also avoids saving a [..., V] softmax.
    """
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def _select_logprobs_forward(logits, targets):
    logprobs = select_logprobs(logits, targets)
    return logprobs, (logits, targets, logprobs)


def _select_logprobs_backward(saved, gradient):
    """Recomputes the softmax from the logits, and returns its gradient."""
    logits, targets, logprobs = saved
    chosen = jnp.arange(logits.shape[-1]) == targets[..., None]
    log_normalizer = jnp.sum(jnp.where(chosen, logits, 0.0), axis=-1) - logprobs
    return gradient[..., None] * (chosen - jnp.exp(logits - log_normalizer[..., None])), None


select_logprobs.defvjp(_select_logprobs_forward, _select_logprobs_backward)


def target_logprobs(config: TransformerConfig, params: dict, hidden, targets, divisor=1.0) -> jax.Array:
    """Returns log p(target), f32[B, T], in nats.

    Args:
      config: shape of the model.
      params: parameters of a language model.
      hidden: [B, T, D], the hidden states that predict the targets.
      targets: i32[B, T].
      divisor: divisor of the logits, a temperature.
    """

    def chunk(hidden, targets):
        return select_logprobs(lm_logits(config, params, hidden, divisor), targets)

    return by_chunks(config, chunk, hidden, targets)


def by_chunks(config: TransformerConfig, function, *arrays):
    """Returns function(*arrays), computed in chunks of `logits_chunk` places of each row.

    The backward pass recomputes each chunk, so that only the logits of one chunk exist at once, and never those of a
    whole batch.

    Args:
      config: shape of the model.
      function: maps arrays [B, t, ...] to a tree of arrays [B, t, ...], place by place.
      arrays: [B, T, ...].
    """
    batch, length = arrays[0].shape[:2]
    chunks = _chunks(config, arrays)
    if chunks is None:
        return function(*arrays)

    def join(x):
        return x.swapaxes(0, 1).reshape(batch, -1, *x.shape[3:])[:, :length]

    step = jax.checkpoint(lambda chunk: function(*map(sharding.constrain_batch, chunk)))
    return jax.tree.map(join, jax.lax.map(step, chunks))


def sum_by_chunks(config: TransformerConfig, function, params: dict, hidden, *others) -> jax.Array:
    """Returns the sum of a function over all places, f32[], computed in chunks of `logits_chunk` places of each row.

    The gradient of each chunk is computed with its sum, while its logits are there. So no logits are computed twice, as
    by_chunks must, whose callers know the gradient of a place only when they have seen all places. The idea is that of
    Liger Kernel's fused linear cross-entropy (Hsu et al. 2024).

    Args:
      config: shape of the model.
      function: maps (params, hidden [B, t, D], others [B, t] each) to the sum over these places. Places where all
        arrays are 0 add nothing.
      params: the parameters that the function reads.
      hidden: [B, T, D].
      others: [B, T] each, without a gradient.
    """
    chunks = _chunks(config, (hidden, *others))
    return function(params, hidden, *others) if chunks is None else _sum(function, params, chunks[0], chunks[1:])


def _chunks(config: TransformerConfig, arrays: Sequence[jax.Array]) -> tuple[jax.Array, ...] | None:
    """Returns arrays [B, T, ...] in chunks [N, B, t, ...], the last padded with zeros; None if there is one chunk."""
    batch, length = arrays[0].shape[:2]
    size = config.logits_chunk
    if not size or length <= size:
        return None
    padding = -length % size

    def split(x):
        x = jnp.pad(x, ((0, 0), (0, padding)) + ((0, 0),) * (x.ndim - 2))
        return x.reshape(batch, -1, size, *x.shape[2:]).swapaxes(0, 1)

    return tuple(map(split, arrays))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sum(function, params, hidden, others):
    """Returns the sum of function(params, hidden, *others) over chunks [N, B, t, ...]."""

    def add(total, chunk):
        return total + function(params, *map(sharding.constrain_batch, chunk)), None

    return jax.lax.scan(add, jnp.float32(0), (hidden, *others))[0]


def _sum_forward(function, params, hidden, others):
    """Returns the sum, and its gradients by the parameters and by the hidden states."""

    def add(found, chunk):
        one, (by_params, by_hidden) = jax.value_and_grad(function, (0, 1))(
            params, *map(sharding.constrain_batch, chunk)
        )
        return jax.tree.map(jnp.add, found, (one, by_params)), by_hidden

    nothing = jnp.float32(0), jax.tree.map(jnp.zeros_like, params)
    (total, by_params), by_hidden = jax.lax.scan(add, nothing, (hidden, *others))
    return total, (by_params, by_hidden)


def _sum_backward(function, saved, gradient):
    """Multiplies the gradients of the sum by that of the loss."""
    return *jax.tree.map(lambda x: (gradient * x).astype(x.dtype), saved), None


_sum.defvjp(_sum_forward, _sum_backward)
