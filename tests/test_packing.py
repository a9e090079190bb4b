"""Packing changes where demonstrations lie, and nothing else: not which, not their loss, not its gradient."""

import functools

import jax
import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from rlhf_jax import sharding, token_loss, train
from rlhf_jax.data.batches import Batch
from rlhf_jax.data.loader import Loader, take
from rlhf_jax.data.packing import PackedLoader, best_fit, lengths, pack, pack_all
from rlhf_jax.stages.sft import MixedLoader


def demonstrations(rows, length, seed=0) -> Batch:
    """Right-padded rows of random lengths, of which the second part is the completion."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, length * 2 // 3, rows)
    sizes[0] = length
    column = np.arange(length)
    mask = column < sizes[:, None]
    starts = 1 + rng.integers(0, sizes - 1)
    return Batch(
        tokens=np.where(mask, rng.integers(2, tiny.VOCAB, (rows, length)), tiny.PAD).astype(np.int32),
        loss_mask=(mask & (column >= starts[:, None])).astype(np.float32),
        segment_ids=mask.astype(np.int32),
        positions=np.where(mask, column, 0).astype(np.int32),
    )


def segments(batch: Batch) -> list:
    """(tokens, loss mask, positions) of each segment, in no order that matters."""
    found = []
    for row in range(len(batch.tokens)):
        for number in range(1, batch.segment_ids[row].max(initial=0) + 1):
            own = batch.segment_ids[row] == number
            found.append(tuple(x[row][own].tolist() for x in (batch.tokens, batch.loss_mask, batch.positions)))
    return sorted(found)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=40), st.integers(20, 30))
def test_best_fit_puts_every_item_in_one_row_and_no_two_rows_could_be_one(sizes, length):
    rows = best_fit(np.array(sizes), length)
    assert sorted(item for row in rows for item in row) == list(range(len(sizes)))
    sums = sorted(sum(sizes[item] for item in row) for row in rows)
    assert sums[-1] <= length and (len(sums) == 1 or sums[0] + sums[1] > length)


def test_best_fit_takes_the_fullest_row_that_has_room():
    assert best_fit(np.array([7, 6, 3, 4, 3]), 10) == [[0, 2], [1, 3], [4]]
    assert best_fit(np.array([5, 5, 5, 5]), 10) == [[0, 1], [2, 3]]


def test_packed_rows_hold_the_same_demonstrations_behind_one_another():
    examples = demonstrations(30, 24)
    packed = pack_all(examples, tiny.PAD)
    assert segments(packed) == segments(examples)
    assert len(packed.tokens) < 16
    for row in range(len(packed.tokens)):
        real = packed.segment_ids[row] > 0
        assert np.all(np.diff(real.astype(int)) <= 0) and np.all(packed.tokens[row][~real] == tiny.PAD)
        assert np.all(np.diff(packed.segment_ids[row][real]) >= 0)
        assert not packed.loss_mask[row][packed.positions[row] == 0].any()


@pytest.mark.parametrize(
    ("config", "parts"),
    [(tiny.SCANNED, 4), pytest.param(tiny.llama(scan_layers=True), 1, marks=pytest.mark.slow)],
    ids=["gpt2", "llama"],
)
def test_loss_and_gradient_are_those_without_packing(config, parts):
    examples = demonstrations(24, 40)
    packed = pack(examples, best_fit(lengths(examples), 40), tiny.PAD, count=16)  # the last rows are padding
    params = tiny.params_of(config, 1)

    @functools.partial(jax.jit, static_argnums=1)
    def gradients(batch, parts):
        grads, loss = train.gradients(
            functools.partial(token_loss.token_loss, config), params, batch, jax.random.key(0), parts
        )
        return grads, loss.total, loss.weight

    grads, total, weight = gradients(examples, 1)
    packed_grads, packed_total, packed_weight = gradients(packed, parts)
    assert packed_weight == weight == examples.loss_mask.sum()
    np.testing.assert_allclose(packed_total, total, rtol=2e-6)
    for one, other in zip(jax.tree.leaves(packed_grads), jax.tree.leaves(grads)):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=2e-6)


def loaders(steps=9, batch_size=8, **options):
    examples = demonstrations(45, 24)
    loader = Loader(examples, batch_size, seed=1, name="sft")
    return loader, PackedLoader(loader, examples, tiny.PAD, steps, **options)


def test_a_packed_batch_holds_the_very_demonstrations_of_its_step():
    loader, packed = loaders()
    assert packed.batch_size < 8
    for step in (3, 0, 8):
        batch = packed.batch(step)
        assert segments(batch) == segments(loader.batch(step)) and len(batch.tokens) == packed.batch_size
        np.testing.assert_array_equal(packed.rows(step), loader.rows(step))
    assert {len(best_fit(lengths(loader.batch(step)), 24)) for step in range(9)} > {
        packed.batch_size
    }  # no more than needed


def test_the_number_of_rows_divides_with_those_from_elsewhere():
    for multiple, others in [(1, 0), (4, 0), (4, 2), (8, 3)]:
        _, packed = loaders(multiple=multiple, others=others)
        assert (packed.batch_size + others) % multiple == 0 and packed.batch_size >= loaders()[1].batch_size


def test_the_report_is_of_the_batches():
    loader, packed = loaders()
    for batches, padding in (
        ([loader.batch(step) for step in range(9)], packed.report.padding_before),
        ([packed.batch(step) for step in range(9)], packed.report.padding_after),
    ):
        assert padding == pytest.approx(np.mean([np.mean(batch.segment_ids == 0) for batch in batches]))
    assert packed.report.padding_after < packed.report.padding_before
    assert str(packed.report).startswith(f"in {packed.batch_size} rows a batch instead of 8, padding ")


@pytest.mark.parametrize("name", tiny.MESHES)
def test_processes_gather_their_rows_of_a_packed_and_mixed_batch(name):
    mesh = tiny.mesh_of(name)
    documents = Loader(tiny.documents_of(20, 24), 2, seed=1, name="sft/mix")
    mixed = MixedLoader(loaders(multiple=8, others=2)[1], documents)
    assert mixed.batch_size == 8
    found = sharding.put_rows(functools.partial(mixed.batch, 4), mixed.batch_size, mesh)
    jax.tree.map(np.testing.assert_array_equal, found, mixed.batch(4))
    parts = [mixed.batch(4, np.arange(8)[half]) for half in (slice(0, 4), slice(4, 8))]
    jax.tree.map(lambda x, a, b: np.testing.assert_array_equal(x, np.concatenate([a, b])), mixed.batch(4), *parts)
    assert segments(take(mixed.batch(4), slice(0, 6))) == segments(loaders()[0].batch(4))


@pytest.mark.slow
def test_the_stage_trains_the_same_model_packed_or_not(tmp_path):
    """The toy pipeline up to SFT, without dropout: the same losses, with the pretraining mix, and a report of both."""
    import toy

    from rlhf_jax import pipeline
    from rlhf_jax.metrics import read_metrics
    from rlhf_jax.runtime.files import read_json

    losses = {}
    for packed in (False, True):
        config = toy.get_config("sft")
        config.prompt_length, config.completion_length, config.model.max_length = 96, 64, 160
        config.sft.update(packed=packed, dropout_rate=0.0, batch_size=24)  # 18 demonstrations, on 8 devices
        pipeline.run_stages(config, tmp_path / str(packed))
        losses[packed] = [row["loss"] for row in read_metrics(tmp_path / str(packed) / "sft" / "metrics.jsonl")]
    np.testing.assert_allclose(losses[True], losses[False], rtol=1e-4)
    found = read_json(tmp_path / "True" / "data_report.json")["packing"]["sft"]["demonstrations"]
    assert found["rows_after"] < found["rows_before"] == 18 and found["padding_after"] < found["padding_before"]
