"""DPO: a policy from comparisons, without a reward model and without sampling.

Source: Rafailov et al. 2023. The stage learns from the same rankings as the reward model (section `rankings` and
`subset`), and like there every prompt has the same weight whatever its K. It starts from its reference.

Shapes: B prompts, K completions of a prompt, T tokens of prompt and completion.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rlhf_jax import abstract, inputs, loop, losses, model, sharding, train, weights
from rlhf_jax.data.batches import LengthReport
from rlhf_jax.data.loader import Loader, in_order
from rlhf_jax.data.records import Ranking
from rlhf_jax.evaluate import policy
from rlhf_jax.fields.field import Field, kind
from rlhf_jax.fields.ranges import COUNT, POSITIVE, Number, OneOf
from rlhf_jax.fields.registry import Stage, register
from rlhf_jax.fields.training import DPO_RATES, learning_rate, trained
from rlhf_jax.model import TransformerConfig, memory, work
from rlhf_jax.run import Run
from rlhf_jax.runtime import hosts
from rlhf_jax.runtime.progress import shown
from rlhf_jax.stages import rankings, supervised
from rlhf_jax.stages.rankings import PREFERENCES

FIELDS = trained(
    "Direct preference optimisation, to compare with PPO. "
    "The settings are those of Rafailov et al. 2023 (appendix B), except that their optimizer is RMSprop.",
    kind=kind("dpo"),
    init="sft",  # the reference as well
    **PREFERENCES,
    beta=Field(
        0.1, POSITIVE, "The KL coefficient whose optimum is sought. Rafailov et al. have 0.1, and 0.5 for TL;DR."
    ),
    label_smoothing=Field(
        0.0, Number(low=0, below=0.5), "The assumed share of wrong labels. 0 means that all are right."
    ),
    loss=Field(
        "pairs",
        OneOf("pairs", "best"),
        "What is learned. 'pairs' learns which of two completions is better. "
        "'best' makes the best completion of each prompt likelier, as SFT does, and learns nothing from the others: it is "
        "there to compare, and `beta` only scales the rewards that it logs.",
        before="pairs",
    ),
    epochs=Field(1.0, POSITIVE, "The number of passes over the rankings."),
    batch_size=Field(64, COUNT, "The number of prompts of a step, each with all its completions."),
    learning_rate=learning_rate(1e-6, DPO_RATES, "Rafailov et al. have 1e-6."),
    schedule="constant",
    warmup_steps=150,
    validate_epochs=Field(1.0, POSITIVE, "The number of epochs between two validations."),
)


@struct.dataclass
class Preferences:
    """Ranked completions, with the reference model's log-probabilities.

    The numbers that a sweep changes are stored with the rows, as data, so that a change recompiles nothing.
    """

    tokens: jax.Array  # i32[B, K, T], prompt and completion
    mask: jax.Array  # bool[B, K, T], True on real tokens
    starts: jax.Array  # i32[B], place of the first token of a prompt's completions
    ranks: jax.Array  # i32[B, K], 1 = best, equal = tie; 0 where not valid
    valid: jax.Array  # bool[B, K], False where a prompt has fewer than K completions
    ref_logprobs: jax.Array  # f32[B, K], of whole completions, in nats
    beta: jax.Array  # f32[B]
    label_smoothing: jax.Array  # f32[B]


@struct.dataclass
class PackedPreferences:
    """Preferences whose completions share a row behind one copy of their prompt, as in PackedComparisons."""

    tokens: jax.Array  # i32[B, T], right-padded
    segment_ids: jax.Array  # i32[B, T], PREFIX on the prompt, then 1 to K; 0 = padding
    positions: jax.Array  # i32[B, T]; each completion's positions continue from the prompt's end
    ranks: jax.Array  # this and the following fields are as in Preferences
    valid: jax.Array
    ref_logprobs: jax.Array
    beta: jax.Array
    label_smoothing: jax.Array


def completion_logprobs(config: TransformerConfig, params: dict, batch: Preferences | PackedPreferences) -> jax.Array:
    """Returns log pi of whole completions, f32[B, K], in nats, at temperature 1."""
    if isinstance(batch, PackedPreferences):
        return _packed_logprobs(config, params, batch)
    tokens, mask = (x.reshape(-1, x.shape[-1]) for x in (batch.tokens, batch.mask))
    hidden = model.masked_hidden_states(config.of_rows(1), params, tokens, mask)
    logprobs = model.target_logprobs(config, params, hidden[:, :-1], tokens[:, 1:])
    places = jnp.arange(1, tokens.shape[1])
    completion = batch.mask[..., 1:] & (places >= batch.starts[:, None, None])
    return jnp.sum(jnp.where(completion, logprobs.reshape(completion.shape), 0.0), axis=-1)


def _packed_logprobs(config, params, batch):
    """Returns `completion_logprobs` of packed rows."""
    hidden = model.hidden_states(config, params, batch.tokens, batch.positions, batch.segment_ids)
    segments, places = batch.segment_ids, jnp.arange(batch.tokens.shape[1])
    first = segments != jnp.pad(segments, ((0, 0), (1, 0)))[:, :-1]
    # The last prompt token predicts the first token of every completion. A row starts with its prompt, so the place of
    # that token is its position.
    predictor = jnp.maximum(jnp.where(first, batch.positions, places) - 1, 0)
    hidden = jnp.take_along_axis(hidden, predictor[..., None], axis=1)
    logprobs = model.target_logprobs(config, params, hidden, batch.tokens)
    own = segments[..., None] == jnp.arange(1, batch.ranks.shape[1] + 1)  # [B, T, K]
    return jnp.sum(jnp.where(own, logprobs[..., None], 0.0), axis=1)


@dataclasses.dataclass(frozen=True)
class PreferenceLoss:
    """losses.direct_preference of a policy of this shape, as a train.LossFn; or losses.best_likelihood, with its metrics."""

    config: TransformerConfig
    kind: str = "pairs"  # what `loss` of a section can be

    def __call__(self, params: dict, batch: Preferences | PackedPreferences, keys: jax.Array | None) -> losses.Loss:
        del keys  # there is no dropout
        logprobs = completion_logprobs(self.config, params, batch)
        log_ratios = logprobs - batch.ref_logprobs
        pairs = losses.direct_preference(log_ratios, batch.ranks, batch.valid, batch.beta, batch.label_smoothing)
        if self.kind == "pairs":
            return pairs
        return losses.best_likelihood(logprobs, batch.ranks, batch.valid)._replace(sums=pairs.sums)


logprobs = jax.jit(completion_logprobs, static_argnums=0)  # for the reference's log-probabilities
_loss = jax.jit(lambda loss_fn, params, batch: loss_fn(params, batch, None), static_argnums=0)


def loss_of(run: Run, stage: str) -> PreferenceLoss:
    """Returns the loss that config[stage] minimises."""
    return PreferenceLoss(rankings.training_shape(run, stage), run.config[stage].loss)


def run_stage(run: Run, stage: str) -> None:
    """Trains config[stage] from its init, which is the reference too, and writes the policy's parameters."""
    supervised.fit(training_of(run, stage))


def training_of(run: Run, stage: str) -> supervised.SupervisedTraining:
    """Returns what run_stage trains, with its validation and its end."""
    rankings.check(run, stage)
    section = run.config[stage]
    rows = rankings.load(run, stage, "train")
    rankings.check_preference(stage, rows)
    start = weights.start_params(run, stage)
    examples, report = prepare(run, stage, rows)
    rankings.check_kept(run, stage, examples.ranks.tolist())
    inputs.report_data(run, stage, "rankings", report)
    examples = with_reference(run, stage, start, examples)
    held_out = rankings.load(run, stage, "valid")
    held_out = held_out and with_reference(
        run, stage, start, prepare(run, stage, held_out)[0], "reference on held-out rankings"
    )
    loader = Loader(examples, section.batch_size, run.seed_of(stage), name=stage)

    return supervised.SupervisedTraining(
        run,
        stage,
        functools.partial(weights.start_params, run, stage),
        loss_of(run, stage),
        loader,
        loader.steps(section.epochs),
        finish=lambda state: weights.save_params(run, stage, state.params),
        live={"loss": "loss", "accuracy": "accuracy", "held-out": "valid/accuracy"},
        validate=functools.partial(_validate, run, stage, held_out) if held_out else None,
        validate_every=loader.steps(section.validate_epochs),
    )


def prepare(run: Run, stage: str, rows: list[Ranking]) -> tuple[Preferences | PackedPreferences, LengthReport]:
    """Returns rankings as arrays, and the report of their lengths.

    The log-probabilities of the reference are still 0. Rankings that the rules for length drop are left out.
    """
    section = run.config[stage]
    arrays, report = rankings.training_rows(run, stage, rows)
    each = functools.partial(np.full, len(arrays.ranks), dtype=np.float32)
    of_rankings = (
        arrays.ranks,
        arrays.valid,
        np.zeros(arrays.ranks.shape, np.float32),
        each(fill_value=section.beta),
        each(fill_value=section.label_smoothing),
    )
    if section.packed:
        return PackedPreferences(arrays.tokens, arrays.segment_ids, arrays.positions, *of_rankings), report
    return rankings.shorten(run, stage, Preferences(arrays.tokens, arrays.mask, arrays.starts, *of_rankings)), report


def with_reference(run: Run, stage: str, params: dict, examples, what: str = "reference"):
    """Returns the examples with the reference's log-probabilities.

    They are computed once, before training, with the batches and the sharding of training.

    Raises:
      progress.Stopped: the run was asked to stop before they were all computed.
    """
    shape, size = rankings.training_shape(run, stage), run.config[stage].batch_size
    batches = loop.each(run, f"{stage}, {what}", in_order(examples, size), -(-len(examples.ranks) // size))
    parts = [hosts.fetch(logprobs(shape, params, sharding.put_batch(batch, run.mesh))) for batch in batches]
    return examples.replace(ref_logprobs=np.concatenate(parts)[: len(examples.ranks)])


def _validate(run: Run, stage: str, examples, state: train.TrainState, done: int) -> dict:
    """Returns the loss and its statistics on rankings of held-out prompts, f32[] each, under names "valid/..."."""
    del done
    loss_fn = loss_of(run, stage)
    size = run.config[stage].batch_size
    batches = shown(f"{stage}, validation", in_order(examples, size), -(-len(examples.ranks) // size))
    parts = [
        jax.block_until_ready(_loss(loss_fn, state.params, sharding.put_batch(batch, run.mesh))) for batch in batches
    ]
    found = train.loss_metrics(functools.reduce(losses.combine, parts))
    return {f"valid/{name}": value for name, value in found.items()}


def programs_of(run: Run, stage: str, data: abstract.Data) -> list[abstract.Program]:
    """Returns the forward pass of the reference and the train step, for abstract inputs."""
    section = run.config[stage]
    rows, (count, length) = rankings.abstract_rows(run, stage, data.completions)
    ranked = abstract.rows_of(run, (section.batch_size, data.completions), jnp.int32)
    number = abstract.rows_of(run, (section.batch_size,), jnp.float32)
    of_rankings = {
        "ranks": ranked,
        "valid": abstract.rows_of(run, ranked.shape, jnp.bool_),
        "ref_logprobs": abstract.rows_of(run, ranked.shape, jnp.float32),
        "beta": number,
        "label_smoothing": number,
    }
    if section.packed:
        batch = PackedPreferences(**rows, **of_rankings)
    else:
        batch = Preferences(**rows, starts=abstract.rows_of(run, (section.batch_size,), jnp.int32), **of_rankings)
    loss_fn = loss_of(run, stage)
    shape, params = loss_fn.config, abstract.params(run, loss_fn.config, "lm")
    reference = abstract.Program(
        stage,
        "reference",
        lambda: logprobs.lower(shape, params, batch),
        {"parameters": params, "batch": batch},
        {},
        work.forward(shape, count, length, count * length),
        math.ceil(data.rankings / section.batch_size),
        temporaries=lambda change: memory.forward(shape, run.mesh, count, length, length),
    )
    steps = rankings.steps_of(run, stage, data.rankings)
    return [reference, supervised.train_program(run, stage, loss_fn, batch, steps)]


register(
    Stage(
        "dpo",
        FIELDS,
        rankings.check,
        run_stage,
        gives="policy",
        label="DPO",
        evaluate=policy.evaluate_policy,
        judged=True,
        rows_read=lambda run, stage: run.config[stage].epochs * rankings.most(run, stage),
        training=training_of,
        programs=programs_of,
    )
)
