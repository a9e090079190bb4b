"""Sources with weights: their shares, their own epochs, and batches that depend on (seed, step) alone."""

import collections
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_jax.config import data_config
from rlhf_jax.data.batches import LengthReport
from rlhf_jax.data.corpus import FileCorpus
from rlhf_jax.data.loader import Loader
from rlhf_jax.data.mixture import BLOCK, Mixture, Source, build
from rlhf_jax.data.template import Template
from rlhf_jax.runtime.errors import InputError

NAMES = ("a", "b", "c")


def mixture(weights, sizes) -> Mixture:
    rows = [np.arange(size) for size in sizes]
    sources = [Source(name, weight, own) for name, weight, own in zip(NAMES, weights, rows)]
    return build(sources, lambda own: (np.array(own), LengthReport(len(own), 0, 0, 1)))[2]


def loader(weights, sizes, batch_size, **options) -> Loader:
    return Loader(np.arange(sum(sizes)), batch_size, 0, name="x", mixture=mixture(weights, sizes), **options)


@given(
    st.lists(st.floats(0.05, 10), min_size=2, max_size=3),
    st.lists(st.integers(1, 70), min_size=3, max_size=3),
    st.integers(1, 64),
    st.integers(0, 50),
)
def test_every_batch_has_each_source_in_its_share(weights, sizes, batch_size, step):
    sizes = sizes[: len(weights)]
    found = loader(weights, sizes, batch_size).rows(step)
    edges = np.cumsum([0, *sizes])
    assert len(found) == batch_size
    for number, weight in enumerate(weights):
        count = np.sum((found >= edges[number]) & (found < edges[number + 1]))
        assert abs(count - batch_size * weight / sum(weights)) < 2.5


def test_a_block_of_draws_has_the_shares_exactly():
    mixed = mixture([0.7, 0.2, 0.1], [5, 5, 5])
    source, _ = mixed.draws(np.arange(3 * BLOCK) + 7 * BLOCK)
    assert np.bincount(source).tolist() == [2100, 600, 300] and mixed.quotas == (700, 200, 100)
    assert sum(mixture([1, 1, 1], [5, 5, 5]).quotas) == BLOCK


def test_every_source_has_whole_epochs_of_its_own():
    """A source of 7 examples with half of the draws: each 7 of its draws are all of them, in another order."""
    seen = np.concatenate([loader([1, 1], [7, 1000], 10).rows(step) for step in range(60)])
    small = seen[seen < 7][: 40 * 7].reshape(40, 7)
    assert np.all(np.sort(small) == np.arange(7)) and len(np.unique(small, axis=0)) > 30
    large = seen[seen >= 7]
    assert len(np.unique(large)) == len(large) == 300


def test_a_step_needs_no_other_step_and_batches_are_cut_from_one_stream():
    whole = loader([3, 1], [11, 13], 24)
    assert [whole.rows(5).tolist(), whole.rows(2).tolist()] == [
        loader([3, 1], [11, 13], 24).rows(step).tolist() for step in (5, 2)
    ]
    halves = loader([3, 1], [11, 13], 12)
    for step in (0, 41):
        assert whole.rows(step).tolist() == [*halves.rows(2 * step), *halves.rows(2 * step + 1)]
    places = np.array([1, 5, 20])
    assert whole.batch(7, places).tolist() == whole.batch(7)[places].tolist()


def test_epochs_are_counted_per_source():
    mixed = mixture([0.75, 0.25], [30, 200])
    assert mixed.epochs(4000) == {"a": 100.0, "b": 5.0}
    found = loader([0.75, 0.25], [30, 200], 40)
    seen = collections.Counter(np.concatenate([found.rows(step) for step in range(100)]).tolist())
    assert {seen[row] for row in range(30)} == {100} and {seen[row] for row in range(30, 230)} == {5}
    assert found.steps(2.0) == 12  # 460 draws


def test_without_weights_all_rows_are_one_source():
    sources = [Source("a", None, [1, 2]), Source("b", None, [3])]
    examples, report, mixed = build(sources, lambda rows: (np.array(rows), LengthReport(len(rows), 0, 0, 1)))
    assert examples.tolist() == [1, 2, 3] and report.given == 3 and mixed is None


def test_reports_of_sources_are_added():
    parts = [LengthReport(5, 1, 2, 30, 0, 2), LengthReport(7, 0, 1, 20, 3)]
    assert LengthReport.total(parts) == LengthReport(12, 1, 3, 30, 3, 2)


def corpus(folder, **files):
    for name, count in (("a", 300), ("b", 60)):
        rows = [{"text": f"{name} {n}", "prompt": f"{name} {n}", "completion": " x"} for n in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = data_config().files
    config.update(dir=str(folder), **files)
    return FileCorpus(config, Template(), "error")


@pytest.mark.parametrize("kind", ["documents", "demonstrations"])
def test_files_have_weights(tmp_path, kind):
    sources = corpus(tmp_path, **{kind: "a.jsonl*0.25, b.jsonl@50*0.75"}).mixed(kind, "train")
    assert [(source.name, source.weight) for source in sources] == [("a.jsonl", 0.25), ("b.jsonl", 0.75)]
    for source in sources:
        texts = [getattr(row, "text", None) or row.prompt for row in source.rows]
        assert texts and all(text.startswith(source.name[0]) for text in texts)
    assert len(sources[1].rows) < 50
    (one,) = corpus(tmp_path, **{kind: "a.jsonl, b.jsonl"}).mixed(kind, "train")
    assert one.weight is None and len(one.rows) > 200


def test_weights_that_make_no_sense_are_refused(tmp_path):
    def identity(rows):
        return (np.array(rows), LengthReport(len(rows), 0, 0, 1))

    with pytest.raises(
        InputError, match=r"'b.jsonl' has no weight, but others of its kind do; give it one, as in b.jsonl\*0.5"
    ):
        build(corpus(tmp_path, documents="a.jsonl*1,b.jsonl").mixed("documents", "train"), identity)
    with pytest.raises(
        InputError, match="'a.jsonl' has the weight 0.0001 of 1.0001 in all; raise it to 1/1000 of them"
    ):
        build(corpus(tmp_path, documents="a.jsonl*0.0001,b.jsonl*1").mixed("documents", "train"), identity)
    with pytest.raises(InputError, match="data.files.prompts='a.jsonl.0.5' must be .* without weight"):
        corpus(tmp_path, prompts="a.jsonl*0.5").prompts("train", "ppo")
    with pytest.raises(InputError, match="'b.jsonl' has a weight but no row in the test split"):
        corpus(tmp_path, documents="a.jsonl*0.5,b.jsonl@1*0.5", test_share=0.3).mixed("documents", "test")
