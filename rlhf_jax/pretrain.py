"""A base model from raw text: next-token prediction on packed documents.

For small worlds; real work starts from released weights.
"""

import functools

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rlhf_jax import checkpoint, loop, losses, model, optim, sharding, train
from rlhf_jax.data.batches import Batch, pack_documents
from rlhf_jax.data.loader import Loader, in_order
from rlhf_jax.model import TransformerConfig
from rlhf_jax.run import Run, optimizer_of


def token_loss(
    config: TransformerConfig, params: dict, batch: Batch, key: jax.Array, dropout_rate: float = 0.0
) -> losses.Loss:
    """Negative log-likelihood of the target tokens; its weight is their number, over the global batch."""
    hidden = model.hidden_states(
        config, params, batch.tokens, batch.positions, batch.segment_ids, dropout_rate=dropout_rate, key=key
    )
    logprobs = model.target_logprobs(config, params, hidden[:, :-1], batch.tokens[:, 1:])
    total, weight = losses.token_cross_entropy(logprobs, batch.loss_mask[:, 1:])
    return losses.Loss(total, weight, {}, {})


def schedule_of(section: ConfigDict, total: int):
    """The multiplier of the learning rate by step, from a stage's section."""
    return functools.partial(
        optim.schedule,
        section.schedule,
        total_steps=total,
        warmup_steps=section.warmup_steps,
        warmup_from=section.warmup_from,
        final=section.final_fraction,
    )


def init_train_state(run: Run, section: ConfigDict, params: dict, head: str = "lm", *, ema: bool = False):
    """(optimizer, TrainState on the mesh, its shardings)."""
    optimizer = optimizer_of(section.optimizer)
    make = functools.partial(train.init_state, optimizer=optimizer, ema=ema)
    shapes = jax.eval_shape(make, params)
    shardings = train.state_shardings(shapes, optimizer, model.logical_axes(run.model, head), run.mesh, run.rules)
    return optimizer, jax.jit(make, out_shardings=shardings)(params), shardings


def jit_train_step(run: Run, section: ConfigDict, loss_fn, optimizer, shardings, total: int):
    """The train step of a stage as one program with explicit shardings and a donated state."""
    step = train.make_train_step(loss_fn, optimizer, schedule_of(section, total), section.microbatches)
    return jax.jit(
        step,
        in_shardings=(shardings, sharding.over_batch(run.mesh), None, None),
        out_shardings=(shardings, sharding.replicated(run.mesh)),
        donate_argnums=0,
    )


def make_mean_loss(run: Run):
    """(params, Batch of many rows, batch size) -> mean loss in nats per token, without dropout."""

    @jax.jit
    def program(params, batch):
        loss = token_loss(run.model, params, batch, jax.random.key(0))
        return loss.total, loss.weight

    def mean_loss(params, examples: Batch, batch_size: int) -> float:
        sums = [program(params, sharding.put_batch(batch, run.mesh)) for batch in in_order(examples, batch_size)]
        total, weight = (sum(float(x) for x in column) for column in zip(*sums))
        return total / weight

    return mean_loss


def run_stage(run: Run, stage: str) -> None:
    """Trains config[stage] and writes its parameters."""
    section = run.config[stage]
    examples, report = pack_documents(run.corpus.documents("train"), run.tokenizer, section.length)
    run.report_data(stage, "documents", report)
    held_out, _ = pack_documents(run.corpus.documents("valid"), run.tokenizer, section.length)
    loader = Loader(examples, section.batch_size, run.seed, name=stage)

    optimizer, state, shardings = init_train_state(run, section, run.start_params(stage))
    loss_fn = functools.partial(token_loss, run.model)
    step_program = jit_train_step(run, section, loss_fn, optimizer, shardings, section.steps)
    mean_loss = make_mean_loss(run)
    learning_rate = jnp.float32(section.learning_rate)

    def advance(state, step):
        batch = sharding.put_batch(loader.batch(step), run.mesh)
        return step_program(state, batch, learning_rate, run.key(stage, step))

    state = loop.fit(
        run,
        stage,
        state,
        advance,
        section.steps,
        checkpoint_every=section.checkpoint_every,
        rows=lambda step: loader.rows(step).tolist(),
        live={"loss": "loss", "held-out": "valid/loss"},
        validate=lambda state, _: {"valid/loss": mean_loss(state.params, held_out, section.batch_size)},
        validate_every=section.validate_every,
    )
    checkpoint.save_params(run.folder(stage) / "params", state.params)
