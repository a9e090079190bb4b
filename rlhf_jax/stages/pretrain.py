"""Pretraining: a base model from raw text, by next-token prediction on packed documents.

It is meant for small worlds; real work starts from released weights.
"""

import functools

import jax

from rlhf_jax import abstract, inputs, sharding, weights
from rlhf_jax.data import packing
from rlhf_jax.data.batches import Batch
from rlhf_jax.data.loader import Loader, in_order
from rlhf_jax.evaluate import policy
from rlhf_jax.fields.field import Field, kind
from rlhf_jax.fields.ranges import COUNT, COUNT_OR_NONE, whole
from rlhf_jax.fields.registry import Stage, register
from rlhf_jax.fields.training import OWN_MODEL, PRETRAIN_RATES, learning_rate, trained
from rlhf_jax.model import TransformerConfig
from rlhf_jax.model.attention import SEGMENTS
from rlhf_jax.run import Run
from rlhf_jax.runtime.progress import shown
from rlhf_jax.stages import supervised
from rlhf_jax.token_loss import TokenLoss, token_loss

FIELDS = trained(
    "A base model from raw text, for small worlds. Real work starts from released weights.",
    kind=kind("pretrain"),
    model=OWN_MODEL,
    length=Field(2048, whole(2), "The length of a row of packed documents, in tokens."),
    batch_size=Field(256, COUNT, "The number of rows of a step."),
    steps=Field(10_000, COUNT, "The number of optimizer steps."),
    learning_rate=learning_rate(2e-4, PRETRAIN_RATES, "GPT-3 has 2e-4 at 1.3B."),
    warmup_steps=100,
    validate_every=Field(
        200, COUNT_OR_NONE, "The number of steps between two validations. 0 validates only at the end."
    ),
)


def loss_of(run: Run, stage: str, segments: int = SEGMENTS) -> TokenLoss:
    """Returns the loss that config[stage] minimises, of rows with at most `segments` examples."""
    return TokenLoss(run.trained_shape(stage).of_rows(segments), run.config[stage].get("dropout_rate", 0.0))


@functools.partial(jax.jit, static_argnums=0)
def _total_and_weight(config: TransformerConfig, params: dict, batch: Batch):
    """Returns the summed loss and the number of target tokens of a batch, f32[] each."""
    loss = token_loss(config, params, batch)
    return loss.total, loss.weight


def mean_loss(run: Run, stage: str, params: dict, examples: Batch, batch_size: int) -> float:
    """Returns the mean loss of many rows under a stage's model, in nats per token, without dropout."""
    batches = shown(f"{stage}, validation", in_order(examples, batch_size), -(-len(examples.tokens) // batch_size))
    sums = [
        jax.device_get(_total_and_weight(run.trained_shape(stage), params, sharding.put_batch(batch, run.mesh)))
        for batch in batches
    ]
    total, weight = (sum(float(x) for x in column) for column in zip(*sums))
    return total / weight


def check(run: Run, stage: str) -> None:
    """Raises InputError if data that the stage needs are missing, or sizes do not fit; computes nothing."""
    supervised.check(run, stage)
    run.check_length(f"{stage}.length", run.config[stage].length, run.shape(stage))
    for split in ("train", "valid"):
        inputs.need(run, stage, "documents", split)


def run_stage(run: Run, stage: str) -> None:
    """Trains config[stage] and writes its parameters."""
    supervised.fit(training_of(run, stage))


def training_of(run: Run, stage: str) -> supervised.SupervisedTraining:
    """Returns what run_stage trains, with its validation and its end."""
    section = run.config[stage]
    examples, report, mixture = inputs.packed_documents(run, "train", section.length)
    inputs.report_data(run, stage, "documents", report)
    inputs.report_epochs(run, stage, "documents", mixture, section.steps * section.batch_size)
    held_out = inputs.held_out_documents(run, section.length)
    loader = Loader(examples, section.batch_size, run.seed_of(stage), name=stage, mixture=mixture)

    return supervised.SupervisedTraining(
        run,
        stage,
        functools.partial(weights.start_params, run, stage),
        loss_of(run, stage, packing.segments(examples)),
        loader,
        section.steps,
        finish=lambda state: weights.save_params(run, stage, state.params),
        live={"loss": "loss", "held-out": "valid/loss"},
        validate=lambda state, _: {"valid/loss": mean_loss(run, stage, state.params, held_out, section.batch_size)},
        validate_every=section.validate_every,
    )


def programs_of(run: Run, stage: str, data: abstract.Data) -> list[abstract.Program]:
    """Returns the train step, for abstract inputs."""
    section = run.config[stage]
    batch = abstract.batch(run, section.batch_size, section.length)
    return [supervised.train_program(run, stage, loss_of(run, stage), batch, section.steps)]


register(
    Stage(
        "pretrain",
        FIELDS,
        check,
        run_stage,
        gives="policy",
        label="base",
        evaluate=policy.evaluate_policy,
        judged=True,
        base=True,
        rows_read=lambda run, stage: run.config[stage].steps * run.config[stage].batch_size,
        training=training_of,
        programs=programs_of,
        loss_unit="nats per token",
    )
)
