"""DPO: a policy from the comparisons themselves, without a reward model and without sampling.

Rafailov et al. 2023. It learns from the rankings that the reward model learns from (section `rankings`
and `subset`), and a prompt weighs the same whatever its K, as there. It starts from its reference.

Shapes: B prompts, K completions of a prompt, T tokens of prompt and completion.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rlhf_jax import checkpoint, losses, model, sharding, train
from rlhf_jax.data.batches import LengthReport
from rlhf_jax.data.loader import Loader, in_order
from rlhf_jax.data.records import Ranking
from rlhf_jax.model import TransformerConfig
from rlhf_jax.run import Run
from rlhf_jax.runtime import hosts
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.stages import rankings, supervised


@struct.dataclass
class Preferences:
    """Ranked completions, and what the reference model says of them.

    The swept numbers ride with the rows: another value is other data, and compiles nothing.
    """

    tokens: jax.Array  # i32[B, K, T], prompt and completion
    mask: jax.Array  # bool[B, K, T], True on real tokens
    starts: jax.Array  # i32[B], the place of the completions' first token
    ranks: jax.Array  # i32[B, K], 1 = best, equal = tie; 0 where not valid
    valid: jax.Array  # bool[B, K], False where a prompt has fewer than K completions
    ref_logprobs: jax.Array  # f32[B, K], of whole completions
    beta: jax.Array  # f32[B]
    label_smoothing: jax.Array  # f32[B]


@struct.dataclass
class PackedPreferences:
    """Preferences whose completions share one row behind one copy of their prompt, as in PackedComparisons."""

    tokens: jax.Array  # i32[B, T], right-padded
    segment_ids: jax.Array  # i32[B, T], PREFIX on the prompt, then 1 to K; 0 = padding
    positions: jax.Array  # i32[B, T], those of a completion go on from the prompt's end
    ranks: jax.Array  # what follows is as in Preferences
    valid: jax.Array
    ref_logprobs: jax.Array
    beta: jax.Array
    label_smoothing: jax.Array


def completion_logprobs(config: TransformerConfig, params: dict, batch: Preferences | PackedPreferences) -> jax.Array:
    """log pi f32[B, K] of whole completions, in nats, at temperature 1."""
    if isinstance(batch, PackedPreferences):
        return _packed_logprobs(config, params, batch)
    tokens, mask = (x.reshape(-1, x.shape[-1]) for x in (batch.tokens, batch.mask))
    hidden = model.masked_hidden_states(config, params, tokens, mask)
    logprobs = model.target_logprobs(config, params, hidden[:, :-1], tokens[:, 1:])
    places = jnp.arange(1, tokens.shape[1])
    completion = batch.mask[..., 1:] & (places >= batch.starts[:, None, None])
    return jnp.sum(jnp.where(completion, logprobs.reshape(completion.shape), 0.0), axis=-1)


def _packed_logprobs(config, params, batch):
    hidden = model.hidden_states(config, params, batch.tokens, batch.positions, batch.segment_ids)
    segments, places = batch.segment_ids, jnp.arange(batch.tokens.shape[1])
    first = segments != jnp.pad(segments, ((0, 0), (1, 0)))[:, :-1]
    # The prompt's end predicts the first token of every completion: the row begins with it, so it stands at its position.
    predictor = jnp.maximum(jnp.where(first, batch.positions, places) - 1, 0)
    hidden = jnp.take_along_axis(hidden, predictor[..., None], axis=1)
    logprobs = model.target_logprobs(config, params, hidden, batch.tokens)
    own = segments[..., None] == jnp.arange(1, batch.ranks.shape[1] + 1)  # [B, T, K]
    return jnp.sum(jnp.where(own, logprobs[..., None], 0.0), axis=1)


@dataclasses.dataclass(frozen=True)
class PreferenceLoss:
    """losses.direct_preference of a policy of this shape, as supervised.fit takes a loss."""

    config: TransformerConfig

    def __call__(self, params: dict, batch: Preferences | PackedPreferences, keys: jax.Array | None) -> losses.Loss:
        del keys  # no dropout
        log_ratios = completion_logprobs(self.config, params, batch) - batch.ref_logprobs
        return losses.direct_preference(log_ratios, batch.ranks, batch.valid, batch.beta, batch.label_smoothing)


logprobs = jax.jit(completion_logprobs, static_argnums=0)  # of the reference
_loss = jax.jit(lambda loss_fn, params, batch: loss_fn(params, batch, None), static_argnums=0)


def loss_of(run: Run, stage: str) -> PreferenceLoss:
    """The loss that config[stage] minimises."""
    return PreferenceLoss(rankings.training_shape(run, stage))


def check(run: Run, stage: str) -> None:
    """Raises InputError for fields that mean nothing, or sizes that do not divide over the mesh; computes nothing."""
    rankings.check(run, stage)
    supervised.check(run, stage)
    rankings.check_data(run, stage)
    supervised.check_warmup(run, stage, rankings.most(run, stage), run.config[stage].batch_size)


def run_stage(run: Run, stage: str) -> None:
    """Trains config[stage] from its init, which is the reference too, and writes the policy's parameters."""
    supervised.fit(training_of(run, stage))


def training_of(run: Run, stage: str) -> supervised.Training:
    """What run_stage trains, and how it ends."""
    check(run, stage)
    section = run.config[stage]
    rows = rankings.load(run, stage, "train")
    rankings.check_preference(stage, rows)
    start = run.start_params(stage)
    examples, report = prepare(run, stage, rows)
    rankings.check_kept(run, stage, examples.ranks.tolist())
    run.report_data(stage, "rankings", report)
    examples = with_reference(run, stage, start, examples)
    held_out = rankings.load(run, stage, "valid")
    held_out = held_out and with_reference(run, stage, start, prepare(run, stage, held_out)[0])
    loader = Loader(examples, section.batch_size, run.seed_of(stage), name=stage)

    return supervised.Training(
        run,
        stage,
        functools.partial(run.start_params, stage),
        loss_of(run, stage),
        loader,
        loader.steps(section.epochs),
        finish=lambda state: checkpoint.save_params(run.folder(stage) / "params", state.params),
        live={"loss": "loss", "accuracy": "accuracy", "held-out": "valid/accuracy"},
        validate=functools.partial(_validate, run, stage, held_out) if held_out else None,
        validate_every=loader.steps(section.validate_epochs),
    )


def prepare(run: Run, stage: str, rows: list[Ranking]) -> tuple[Preferences | PackedPreferences, LengthReport]:
    """Rankings as arrays, with ref_logprobs of 0; those that the length rules drop are left out."""
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


def with_reference(run: Run, stage: str, params: dict, examples):
    """The examples with the reference's log-probabilities: computed once, batched and sharded as training is."""
    shape = rankings.training_shape(run, stage)
    parts = [
        hosts.fetch(logprobs(shape, params, sharding.put_batch(batch, run.mesh)))
        for batch in in_order(examples, run.config[stage].batch_size)
    ]
    return examples.replace(ref_logprobs=np.concatenate(parts)[: len(examples.ranks)])


def _validate(run: Run, stage: str, examples, state: train.TrainState, done: int) -> dict:
    """Loss and statistics on rankings of other prompts, as "valid/...": f32[] each."""
    del done
    loss_fn = loss_of(run, stage)
    batches = in_order(examples, run.config[stage].batch_size)
    parts = [_loss(loss_fn, state.params, sharding.put_batch(batch, run.mesh)) for batch in batches]
    found = train.loss_metrics(functools.reduce(losses.combine, parts))
    return {f"valid/{name}": value for name, value in found.items()}
