"""The loss of next-token prediction, for pretraining, for SFT and for the pretraining gradient of PPO-ptx."""

import dataclasses

import jax
import jax.numpy as jnp

from rlhf_jax import losses, model
from rlhf_jax.data.batches import Batch
from rlhf_jax.model import TransformerConfig


def token_loss(
    config: TransformerConfig, params: dict, batch: Batch, keys: jax.Array | None = None, dropout_rate: float = 0.0
) -> losses.Loss:
    """Returns the negative log-likelihood of the target tokens, in nats; its weight is the number of target tokens.

    Args:
      config: shape of the model.
      params: parameters of the model.
      batch: tokens [B, T] with their positions, segments and loss mask.
      keys: [B], the dropout key of each row; None without dropout.
      dropout_rate: share of the residual branches' outputs that is dropped.
    """
    hidden = model.hidden_states(
        config, params, batch.tokens, batch.positions, batch.segment_ids, dropout_rate=dropout_rate, keys=keys
    )
    total = of_hidden(config, params, hidden[:, :-1], batch.tokens[:, 1:], batch.loss_mask[:, 1:])
    return losses.Loss(total, jnp.sum(batch.loss_mask[:, 1:], dtype=jnp.float32), {}, {})


def of_hidden(config: TransformerConfig, params: dict, hidden, targets, loss_mask) -> jax.Array:
    """Returns the summed loss f32[] of the hidden states [B, T, D] that predict targets i32[B, T], where the mask is 1."""

    def total(table, hidden, targets, loss_mask):
        logprobs = model.select_logprobs(model.lm_logits(config, table, hidden), targets)
        return losses.token_cross_entropy(logprobs, loss_mask)[0]

    table = {name: params[name] for name in [model.lm_table(config)]}
    return model.sum_by_chunks(config, total, table, hidden, targets, loss_mask)


@dataclasses.dataclass(frozen=True)
class TokenLoss:
    """`token_loss` of a model as a train.LossFn, hashable so that compiled programs can be cached by it."""

    config: TransformerConfig
    dropout_rate: float = 0.0

    def __call__(self, params: dict, batch: Batch, keys: jax.Array) -> losses.Loss:
        return token_loss(self.config, params, batch, keys, self.dropout_rate)
