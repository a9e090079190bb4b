"""The bag-of-words baseline: finds the words that decide, is the optimum it says, does as expected on real data."""

import dataclasses
import hashlib

import numpy as np
import pytest

from rlhf_jax import statistics
from rlhf_jax.data.record_files import read_rows
from rlhf_jax.data.records import Ranking
from rlhf_jax.evaluate import bag_of_words
from rlhf_jax.runtime.errors import InputError

FILLER = "the a of and to in it is was for on with as by at".split()


def ranking(prompt, completions, ranks):
    return Ranking(prompt, tuple(completions), tuple(ranks), None, None, None, None, {})


def comparisons(count, noise=0.0, seed=0):
    """Pairs where 'good' beats 'bad', except for a share `noise`; everything else is chance."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        better, worse = (" ".join([*rng.choice(FILLER, 6), word]) for word in ("good", "bad"))
        ranks = (2, 1) if rng.random() < noise else (1, 2)
        order = rng.permutation(2)
        yield ranking(f"prompt {i}", [(better, worse)[k] for k in order], [ranks[k] for k in order])


def test_the_deciding_words_are_found():
    bag = bag_of_words.fit(list(comparisons(200)))
    assert bag_of_words.accuracy(bag, list(comparisons(100, seed=1))).value == 1
    weights = {word: bag.weights[column] for word, column in bag.columns.items()}
    assert max(weights, key=weights.get) == "good" and min(weights, key=weights.get) == "bad"


def test_noise_gets_a_stronger_penalty_and_is_not_learnt():
    draws = np.random.default_rng(0).choice(FILLER, (300, 2, 8))
    noise = [ranking(f"prompt {i}", map(" ".join, pair), (1, 2)) for i, pair in enumerate(draws)]
    bag = bag_of_words.fit(noise)
    assert bag.penalty >= 3e-2
    assert bag.penalty > bag_of_words.fit(list(comparisons(200))).penalty


def test_weights_are_the_optimum_of_the_stated_objective():
    rows = list(comparisons(60, noise=0.2)) + [ranking("k", ["good it", "was it", "bad", "it"], (1, 2, 2, 3))]
    bag = bag_of_words.fit(rows)

    def objective(weights):
        """By loops: mean over rankings of the mean over pairs, and the penalty."""

        def score(text):
            return sum(weights[bag.columns[word]] for word in text.split() if word in bag.columns)

        losses = []
        for row in rows:
            margins = [
                score(a) - score(b)
                for a, i in zip(row.completions, row.ranks)
                for b, j in zip(row.completions, row.ranks)
                if i < j
            ]
            losses.append(np.mean([np.log1p(np.exp(-margin)) for margin in margins]))
        return np.mean(losses) + bag.penalty / 2 * np.sum(weights**2)

    at_optimum = objective(bag.weights)
    for column in range(len(bag.weights)):
        for step in (-0.01, 0.01):
            moved = bag.weights.copy()
            moved[column] += step
            assert objective(moved) > at_optimum


def test_scores_count_words_whatever_their_case_and_ignore_unknown_ones():
    bag = bag_of_words.BagOfWords({"good": 0, "!": 1}, np.array([2.0, 0.5]), 1.0)
    np.testing.assert_allclose(bag.scores(["Good, GOOD!", "unseen", ""]), [4.5, 0, 0])


def test_scores_of_rankings_are_those_of_their_completions_in_a_row_each():
    bag = bag_of_words.BagOfWords({"good": 0, "bad": 1}, np.array([2.0, -1.0]), 1.0)
    rows = [ranking("a", ["good", "bad"], (1, 2)), ranking("b", ["bad bad", "x", "good"], (3, 2, 1))]
    np.testing.assert_allclose(bag.scores_of(rows), [[2, -1, 0], [-2, 0, 2]])
    assert bag.scores_of([]).shape == (0, 0)


def test_accuracy_counts_ties_half_and_its_interval_is_over_prompts():
    bag = bag_of_words.BagOfWords({"good": 0}, np.array([1.0]), 1.0)
    rows = [ranking("a", ["good", "x"], (1, 2)), ranking("b", ["x", "y"], (1, 2)), ranking("c", ["good", "x"], (1, 1))]
    assert bag_of_words.accuracy(bag, rows).value == 0.75
    right, wrong = ranking("a", ["good", "x"], (1, 2)), ranking("b", ["good", "x"], (2, 1))
    repeated = bag_of_words.accuracy(bag, [right] * 50 + [wrong] * 50)
    independent = statistics.share(np.arange(100) < 50)
    assert repeated.high - repeated.low > 2 * (independent.high - independent.low)


@pytest.mark.parametrize(
    "rows",
    [[], [ranking("a", ["x", "y"], (1, 1)), ranking("b", ["x", "y"], (1, 1))], [ranking("a", ["x", "y"], (1, 2))] * 3],
    ids=["none", "all tied", "one prompt"],
)
def test_too_few_rankings_are_a_clear_error(rows):
    with pytest.raises(InputError, match="no ranking says|at least two prompts"):
        bag_of_words.fit(rows)


@pytest.mark.slow
def test_real_comparisons_on_unseen_questions(shared_data):
    rows, _ = read_rows(shared_data / "pref_truthfulqa_judge.jsonl.xz", "rankings", on_bad_row="skip")

    def part(row):
        return hashlib.blake2b(row.group.encode(), digest_size=1).digest()[0] % 4

    bag = bag_of_words.fit([row for row in rows if part(row)])
    accuracy = bag_of_words.accuracy(bag, [row for row in rows if not part(row)])
    assert accuracy.low > 0.70 and accuracy.value == pytest.approx(0.77, abs=0.03)


def test_what_several_labelers_say_of_the_same_completions_weighs_as_rankings_of_their_own():
    """A bag of the same rankings whose prompts all have names of their own has the same optimum."""
    rows = [row for row in comparisons(80, noise=0.3) for _ in range(3)]
    flipped = [dataclasses.replace(row, ranks=row.ranks[::-1]) if n % 4 == 0 else row for n, row in enumerate(rows)]
    apart = bag_of_words._pairs(bag_of_words._columns(flipped), flipped)
    together = apart.together()
    assert together.weights.sum() == apart.weights.sum() == 240 and len(together.weights) < len(apart.weights) == 240
    solution = np.random.default_rng(0).normal(size=together.counts.shape[1])
    losses = [bag_of_words._log_loss(pairs.margins(solution), pairs.weights) for pairs in (together, apart)]
    assert losses[0] == pytest.approx(losses[1])
    assert [flipped[place].unit for place in together.source] == [
        flipped[place].unit for place in sorted(together.source)
    ]
