"""A base model from raw text: next-token prediction on packed documents.

For small worlds; real work starts from released weights.
"""

import dataclasses
import functools

import jax

from rlhf_jax import checkpoint, losses, model, sharding
from rlhf_jax.data.batches import Batch
from rlhf_jax.data.loader import Loader, in_order
from rlhf_jax.model import TransformerConfig
from rlhf_jax.run import Run
from rlhf_jax.stages import supervised


def token_loss(
    config: TransformerConfig, params: dict, batch: Batch, keys: jax.Array | None, dropout_rate: float = 0.0
) -> losses.Loss:
    """Negative log-likelihood of the target tokens; its weight is their number, over the global batch.

    Args:
      keys: [B], of dropout, a key for each row; None without it.
    """
    hidden = model.hidden_states(
        config, params, batch.tokens, batch.positions, batch.segment_ids, dropout_rate=dropout_rate, keys=keys
    )
    logprobs = model.target_logprobs(config, params, hidden[:, :-1], batch.tokens[:, 1:])
    total, weight = losses.token_cross_entropy(logprobs, batch.loss_mask[:, 1:])
    return losses.Loss(total, weight, {}, {})


@dataclasses.dataclass(frozen=True)
class TokenLoss:
    """`token_loss` of a model."""

    config: TransformerConfig
    dropout_rate: float = 0.0

    def __call__(self, params: dict, batch: Batch, keys: jax.Array) -> losses.Loss:
        return token_loss(self.config, params, batch, keys, self.dropout_rate)


def loss_of(run: Run, stage: str) -> TokenLoss:
    """The loss that config[stage] minimises."""
    return TokenLoss(run.shape(stage), run.config[stage].get("dropout_rate", 0.0))


@functools.partial(jax.jit, static_argnums=0)
def _total_and_weight(config: TransformerConfig, params: dict, batch: Batch):
    loss = token_loss(config, params, batch, None)
    return loss.total, loss.weight


def mean_loss(run: Run, stage: str, params: dict, examples: Batch, batch_size: int) -> float:
    """Mean loss of many rows in nats per token under a stage's model, without dropout."""
    batches = (sharding.put_batch(batch, run.mesh) for batch in in_order(examples, batch_size))
    sums = [_total_and_weight(run.shape(stage), params, batch) for batch in batches]
    total, weight = (sum(float(x) for x in column) for column in zip(*sums))
    return total / weight


def check(run: Run, stage: str) -> None:
    """Raises InputError for what the stage needs and there is not, or sizes that do not fit; computes nothing."""
    supervised.check(run, stage)
    for split in ("train", "valid"):
        run.need(stage, "documents", split)


def run_stage(run: Run, stage: str) -> None:
    """Trains config[stage] and writes its parameters."""
    supervised.fit(training_of(run, stage))


def training_of(run: Run, stage: str) -> supervised.Training:
    """What run_stage trains, and how it ends."""
    section = run.config[stage]
    examples, report, mixture = run.packed_documents("train", section.length)
    run.report_data(stage, "documents", report)
    run.report_epochs(stage, "documents", mixture, section.steps * section.batch_size)
    held_out = run.held_out_documents(section.length)
    loader = Loader(examples, section.batch_size, run.seed_of(stage), name=stage, mixture=mixture)

    return supervised.Training(
        run,
        stage,
        functools.partial(run.start_params, stage),
        loss_of(run, stage),
        loader,
        section.steps,
        finish=lambda state: checkpoint.save_params(run.folder(stage) / "params", state.params),
        live={"loss": "loss", "held-out": "valid/loss"},
        validate=lambda state, _: {"valid/loss": mean_loss(run, stage, state.params, held_out, section.batch_size)},
        validate_every=section.validate_every,
    )
