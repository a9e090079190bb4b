"""A completion's score is that of its own row, however completions are laid out."""

import dataclasses
import functools
import types

import jax
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict

from rlhf_jax import losses
from rlhf_jax.data import ranking_batches
from rlhf_jax.data.batches import LengthReport
from rlhf_jax.data.ranking_batches import batch_rankings, pack_rankings
from rlhf_jax.data.records import Ranking
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.evaluate import scorer
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.stages import rankings as rankings_lib
from rlhf_jax.stages import reward_model

BYTES = Tokenizer.train([], 258)
GPT = dict(vocab_size=BYTES.vocab_size)
CONFIGS = {
    "learned positions": dataclasses.replace(tiny.CONFIG, **GPT),
    "rope, blocked": tiny.llama(attention="blocked", max_length=96, **GPT),
}


def rankings_of(seed: int, rows: int = 4) -> list[Ranking]:
    """Random texts, ranks with ties, some of them not finished."""
    rng = np.random.default_rng(seed)

    def word():
        return "".join(rng.choice(list("abc "), rng.integers(1, 8)))

    rankings = []
    for _ in range(rows):
        size = int(rng.integers(2, 6))
        ranks, ended = rng.integers(1, 4, size).tolist(), (rng.random(size) < 0.7).tolist()
        completions = tuple(word() for _ in range(size))
        rankings.append(Ranking(word(), completions, tuple(ranks), None, None, None, tuple(ended), {}))
    return rankings


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_packed_completions_have_the_scores_and_the_gradient_of_rows_of_their_own(config, seed):
    cut = Ranking("ab", ("abc" * 5 + "x", "c", "abc" * 5 + "y", "cc"), (1, 2, 3, 4), None, None, None, None, {})
    rankings = [*rankings_of(seed), cut]
    rows, _ = batch_rankings(rankings, BYTES, 17, 8)
    packed, _ = pack_rankings(rankings, BYTES, 17, 8)
    assert (
        packed.tokens.size < rows.tokens.size and rows.valid[-1].sum() == 3
    )  # of two that are equal once they are cut, one
    params = tiny.params_of(config, seed, "scalar")

    def loss(params, batch):
        loss = reward_model.reward_loss(config, "kwise", params, batch, None)
        return loss.total / loss.weight, scorer.completion_scores(config, params, batch)

    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (expected, scores), expected_gradient = gradient(params, rows)
    (actual, packed_scores), actual_gradient = gradient(params, packed)
    np.testing.assert_allclose(packed_scores[packed.valid], scores[rows.valid], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
    jax.tree.map(close, actual_gradient, expected_gradient)


def test_regression_learns_the_labelers_scores_where_they_gave_any_and_ranks_elsewhere():
    """Against the sum written out; standardised over the training set."""
    rankings = [
        dataclasses.replace(r, scores=tuple(float(10 * n + k) for k in range(len(r.ranks))))
        for n, r in enumerate(rankings_of(0))
    ]
    config, params = CONFIGS["learned positions"], tiny.params_of(CONFIGS["learned positions"], 0, "scalar")
    scored, facts = reward_model._standardized(batch_rankings(rankings, BYTES, 17, 8)[0])
    given = np.concatenate([r.scores for r in rankings])
    assert facts == pytest.approx({"score_mean": given.mean(), "score_deviation": given.std()})
    unscored, nothing = reward_model._standardized(scored.replace(targets=None))
    assert nothing == {}
    scores = np.asarray(scorer.completion_scores(config, params, scored), np.float64)
    for batch, targets in (
        (scored, (given - given.mean()) / given.std()),
        (unscored, np.asarray(losses.rank_targets(scored.ranks, scored.valid))[scored.valid]),
    ):
        loss = reward_model.reward_loss(config, "regression", params, batch, None)
        assert float(loss.total) == pytest.approx(np.sum((scores[scored.valid] - targets) ** 2), rel=1e-4)


def test_pooled_pairs_are_all_that_are_not_tied():
    """Each with what belongs to its two completions, in their order; a tie is no pair."""
    row = Ranking(
        "p",
        ("a", "b", "c", "d"),
        (2, 1, 2, 3),
        "ann",
        "plain",
        ("m", "n", "o", "q"),
        (True, False, True, False),
        {"id": 7},
        (5.0, 9.0, 5.0, 1.0),
    )
    found = reward_model.split_into_pairs([row, dataclasses.replace(row, models=None, finished=None, scores=None)])
    assert [pair.completions for pair in found] == 2 * [("a", "b"), ("a", "d"), ("b", "c"), ("b", "d"), ("c", "d")]
    first = dict(completions=("a", "b"), ranks=(2, 1), models=("m", "n"), finished=(True, False), scores=(5.0, 9.0))
    assert found[0] == dataclasses.replace(row, **first)
    assert found[5] == dataclasses.replace(found[0], models=None, finished=None, scores=None)
    assert all(pair.ranks[0] != pair.ranks[1] for pair in found)


# Cut to the three tokens that the prompt leaves, the third completion repeats the first, and the last the one before it.
CUT = [
    Ranking("p", ("abcX", "d", "abcY", "e"), (1, 2, 3, 4), None, None, None, None, {}),
    Ranking("q", ("abcX", "abcY"), (1, 2), None, None, None, None, {}),
]


def cut_run(**section) -> types.SimpleNamespace:
    section = {"packed": False, "length": 0, "completion_length": 0, "loss": "kwise", "beta": 1.0} | section
    section |= {"label_smoothing": 0.0}
    lengths = {"prompt_length": 1, "completion_length": 3, "too_long": "drop", "long_completions": "cut"}
    config = ConfigDict({**lengths, "reward_model": section})
    return types.SimpleNamespace(config=config, tokenizer=BYTES, whole_length=4)


@pytest.mark.parametrize("packed", [False, True])
def test_pooled_pairs_hold_no_completion_that_repeats_another_once_it_is_cut(packed):
    """It would be the worse one of a pair here, and the better one of another: "d" against "abc" and "abc" against "d"."""
    examples, report = reward_model._examples(cut_run(loss="pooled", packed=packed), "reward_model", CUT)
    assert report == LengthReport(7, 4, 2, 6, repeats=2)  # three of the 6 + 1 pairs
    assert examples.ranks.tolist() == [[1, 2], [1, 4], [2, 4]]
    texts = [BYTES.decode([token for token in row.ravel().tolist() if token < 256]) for row in examples.tokens]
    assert texts == (["pabcd", "pabce", "pde"] if packed else ["pabcpd", "pabcpe", "pdpe"])


def test_a_pair_of_equal_rows_is_neither_right_nor_wrong():
    seen = []

    def score(arrays):
        seen.append(arrays)
        return -np.arange(arrays.ranks.size, dtype=float).reshape(arrays.ranks.shape)  # as they are ranked

    run, scorer = cut_run(), types.SimpleNamespace(score_arrays=score)
    found = reward_model._evaluate_rankings(None, *reward_model._scored(run, "reward_model", scorer, CUT))
    assert (found["rankings"], found["pairs"], found["accuracy"]["value"]) == (1, 3, 1.0)
    assert seen[0].ranks.tolist() == [[1, 2, 4]]
    assert reward_model._scored(run, "reward_model", scorer, CUT[1:]) is None


@pytest.mark.parametrize("packed", [False, True])
def test_rankings_can_have_longer_completions_than_the_run(packed):
    run, same = cut_run(packed=packed, completion_length=3), cut_run(packed=packed)
    run.config.completion_length = 1  # that of what policies write
    found, report = reward_model._examples(run, "reward_model", CUT)
    wanted, same_report = reward_model._examples(same, "reward_model", CUT)
    assert report == same_report and np.array_equal(found.tokens, wanted.tokens)
    assert reward_model._examples(cut_run(packed=packed, completion_length=9), "reward_model", CUT)[1].cut == 0


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("loss", ["kwise", "pooled", "regression"])
def test_where_no_pair_is_left_the_length_to_raise_is_named(packed, loss):
    run = cut_run(loss=loss, packed=packed)
    run.seed_of = run.shape = lambda *_: tiny.CONFIG
    tie = dataclasses.replace(CUT[1], completions=("r", "s"), ranks=(1, 1))
    for rows in (CUT[1:], [*CUT[1:], tie], [dataclasses.replace(CUT[0], prompt="longer"), tie]):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rankings_lib, "load", lambda *_: rows)
            patch.setattr(reward_model.inputs, "report_data", lambda *_: None)
            with pytest.raises(InputError, match="raise completion_length"):
                reward_model.training_of(run, "reward_model")


@pytest.mark.parametrize("build", [batch_rankings, pack_rankings])
def test_rankings_of_the_same_completions_share_a_row_and_keep_all_their_pairs(build):
    """Two labelers on the first prompt, one on the others: their pairs are those of the labelers' own rows."""
    rankings = rankings_of(3)
    again = dataclasses.replace(rankings[0], ranks=tuple(reversed(rankings[0].ranks)))
    other = dataclasses.replace(rankings[1], completions=tuple(f"{text}x" for text in rankings[1].completions))
    rows, _ = build([*rankings, again, other], BYTES, 18, 8)
    joined = ranking_batches.joined(rows)
    assert len(joined.tokens) == len(rankings) + 1 and joined.ranks.shape[:2] == (len(rankings) + 1, 2)
    assert joined.ranks[0].tolist() == [rows.ranks[0].tolist(), rows.ranks[len(rankings)].tolist()]
    assert (joined.ranks[1:, 1] == 1).all()
    config = CONFIGS["learned positions"]
    params = tiny.params_of(config, 0, "scalar")
    one, many = (
        losses.bradley_terry_pooled(scorer.completion_scores(config, params, x), x.ranks, x.valid)
        for x in (joined, rows)
    )
    np.testing.assert_allclose((one.total, one.weight), (many.total, many.weight), rtol=1e-5)
    assert ranking_batches.joined(build(rankings, BYTES, 18, 8)[0]).ranks.ndim == 2
