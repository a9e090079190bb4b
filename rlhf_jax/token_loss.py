"""The loss of next-token prediction, for pretraining, for SFT and for the pretraining gradient of PPO-ptx."""

import dataclasses

import jax

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
    logprobs = model.target_logprobs(config, params, hidden[:, :-1], batch.tokens[:, 1:])
    total, weight = losses.token_cross_entropy(logprobs, batch.loss_mask[:, 1:])
    return losses.Loss(total, weight, {}, {})


@dataclasses.dataclass(frozen=True)
class TokenLoss:
    """`token_loss` of a model as a train.LossFn, hashable so that compiled programs can be cached by it."""

    config: TransformerConfig
    dropout_rate: float = 0.0

    def __call__(self, params: dict, batch: Batch, keys: jax.Array) -> losses.Loss:
        return token_loss(self.config, params, batch, keys, self.dropout_rate)
