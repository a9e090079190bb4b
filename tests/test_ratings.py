"""Rated completions: put together the same way every time, with the ranks and scores that they came with."""

import collections
import itertools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from rlhf_jax.data import ratings
from rlhf_jax.data.ranking_batches import batch_rankings, pack_rankings
from rlhf_jax.data.records import Ranking, ranks_of
from rlhf_jax.data.row_formats import parse_row
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.evaluate import bag_of_words
from rlhf_jax.runtime.errors import InputError


def rated(score, text="good", prompt=""):
    return parse_row({"completion": text, "score": score} | ({"prompt": prompt} if prompt else {}), "rankings")


@hypothesis.given(st.lists(st.integers(-2, 2), min_size=1, max_size=6))
def test_ranks_of_scores_order_completions_as_the_scores_do(scores):
    ranks = ranks_of(scores)
    assert min(ranks) == 1
    for (a, rank_a), (b, rank_b) in itertools.product(zip(scores, ranks), repeat=2):
        assert (a > b) == (rank_a < rank_b) and (a == b) == (rank_a == rank_b)


def test_every_rated_completion_stands_in_one_ranking_with_its_own_score_and_prompt():
    rows = [rated(n % 10, f"text {n}", prompt) for prompt in ("", "p", "q") for n in range(21)]
    made = ratings.compare(rows, size=4)
    assert made == ratings.compare(rows, size=4)
    sizes = collections.Counter((ranking.prompt, len(ranking.completions)) for ranking in made)
    assert sizes == {(prompt, 4): 5 for prompt in ("", "p", "q")}  # one of 21 is left over
    for ranking in made:
        assert ranking.scores == tuple(int(text.split()[1]) % 10 for text in ranking.completions)
        assert ranking.ranks == ranks_of(ranking.scores)
    assert len({(ranking.prompt, text) for ranking in made for text in ranking.completions}) == 60
    assert made[0].completions != tuple(row.completions[0] for row in rows[:4])  # mixed


def test_pairs_are_of_a_high_and_a_low_score_each_used_once():
    rows = [rated(score, f"text {n} {score}") for n in range(6) for score in range(1, 11)]
    made = ratings.compare(rows, size=8, pairs="2<9")
    assert len(made) == 12 and len({text for ranking in made for text in ranking.completions}) == 24
    assert all(ranking.scores[0] >= 9 and ranking.scores[1] <= 2 and ranking.ranks == (1, 2) for ranking in made)


def test_other_rankings_stay_as_they_are():
    ranking = parse_row({"prompt": "p", "completions": ["a", "b", "c"], "scores": [0.5, 2, 0.5]}, "rankings")
    assert ranking.ranks == (2, 1, 2) and ranking.scores == (0.5, 2.0, 0.5)
    assert ratings.compare([ranking], 8) == [ranking]


@pytest.mark.parametrize(
    "row, message",
    [
        ({"completion": "x"}, "field 'score' is missing"),
        ({"completion": "x", "score": "high"}, "field 'score' is \"high\"; it must be a number"),
        ({"completion": "x", "score": float("nan")}, "field 'score' is NaN; it must be a number"),
        ({"completion": " ", "score": 1}, "field 'completion' is empty"),
        ({"prompt": "p", "completions": ["a", "b"], "scores": [1, True]}, r"field 'scores\[1\]' is true; it must be"),
        ({"prompt": "p", "completions": ["a", "b"], "scores": [1]}, "field 'scores' has 1 entries for 2 completions"),
        ({"prompt": "p", "completions": ["a", "b"], "scores": [1, 2], "ranks": [1, 2]}, "belong to different formats"),
    ],
)
def test_bad_scores_are_named(row, message):
    with pytest.raises(InputError, match=message):
        parse_row(row, "rankings")


def test_scores_that_leave_no_ranking_are_an_error():
    with pytest.raises(InputError, match="none has two of them, one scored at most 2 and one at least 9"):
        ratings.compare([rated(1), rated(5)], 2, "2<9")


def test_scores_stand_at_their_completions_in_both_layouts():
    rows = [
        Ranking("p", ("a", "b", "c"), (2, 1, 3), None, None, None, None, {}, (2.0, 3.0, 1.0)),
        Ranking("p", ("a", "b"), (1, 2), None, None, None, None, {}, (7.0, 5.0)),
    ]
    tokenizer = Tokenizer.train(["p a b c"], 300)
    for arrays, _ in (batch_rankings(rows, tokenizer, 16), pack_rankings(rows, tokenizer, 16, 8)):
        np.testing.assert_array_equal(arrays.targets, [[2, 3, 1], [7, 5, 0]])
        np.testing.assert_array_equal(arrays.valid, [[1, 1, 1], [1, 1, 0]])
    unscored = [rows[0], Ranking("p", ("a", "b"), (1, 2), None, None, None, None, {})]
    assert batch_rankings(unscored, tokenizer, 16)[0].targets is None


def test_the_baselines_interval_is_over_rated_rankings_not_their_one_empty_prompt():
    rows = [rated(9 if n % 2 else 1, f"{'good' if (n % 2) != (n % 7 == 0) else 'bad'} {n}") for n in range(200)]
    made = ratings.compare(rows, size=2, pairs="2<9")
    found = bag_of_words.accuracy(bag_of_words.fit(made), made)
    assert found.low < found.value < found.high < 1
