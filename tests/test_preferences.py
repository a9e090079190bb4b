"""What a scorer is worth on rankings, against sums written out and intervals over prompts."""

import dataclasses
import json

import numpy as np
import pytest

from rlhf_jax import statistics
from rlhf_jax.data.records import Ranking
from rlhf_jax.evaluate import preferences


def ranking(prompt, ranks, group=None, scores=None):
    completions = tuple(f"{prompt} {n}" for n in range(len(ranks)))
    return Ranking(prompt, completions, tuple(ranks), None, group, None, None, {}, scores)


def evaluate(rankings, scores):
    width = max(map(len, scores))
    padded = np.array([[*row, *[9.0] * (width - len(row))] for row in scores])
    return preferences.evaluate(rankings, padded, np.ones_like(padded, int))


def test_every_untied_pair_counts_once_and_equal_scores_one_half():
    rankings = [ranking("a", [1, 2, 2], "plain"), ranking("b", [2, 1], "caution")]
    found = evaluate(rankings, [[1.0, 1.0, 0.0], [3.0, 0.0]])  # a tie that counts 1/2, one right; one wrong
    assert found["pairs"] == 3 and found["rankings"] == 2 and found["prompts"] == 2
    assert found["accuracy"]["value"] == pytest.approx(0.5)
    assert found["by_group"] == {"plain": 0.75, "caution": 0.0}
    margins = np.array([0.0, 1.0, -3.0])
    assert found["log_loss"] == pytest.approx(np.log1p(np.exp(-margins)).mean())
    assert [(row["low"], row["count"], row["accuracy"]["value"]) for row in found["by_margin"]] == [
        (0, 1, 0.5),
        (1, 1, 1.0),
        (2, 1, 0.0),
    ]


def test_intervals_are_over_prompts_whoever_ranked_and_in_every_bin():
    """Ten labelers who agree say no more than one; the same pairs of as many prompts do."""
    right = np.arange(12) % 3 > 0
    scores = [[0.2, 0.0] if good else [0.0, 0.2] for good in right]
    once = evaluate([ranking(f"p{n}", [1, 2]) for n in range(12)], scores)
    again = evaluate([ranking(f"p{n % 12}", [1, 2], scores=(2.0, 1.0)) for n in range(120)], scores * 10)
    others = evaluate([ranking(f"p{n}", [1, 2]) for n in range(120)], scores * 10)
    assert (once["prompts"], again["prompts"], again["rankings"], others["prompts"]) == (12, 12, 120, 120)
    assert once["accuracy"] == pytest.approx(again["accuracy"])
    expected = statistics.share(right)
    for found in (again["by_margin"], again["by_length_difference"]):
        assert len(found) == 1 and found[0]["accuracy"] == pytest.approx(expected._asdict())
    assert [tuple(row["interval"]) for row in again["reliability"]] == [pytest.approx(expected[1:])]

    def width(found):
        return found["accuracy"]["high"] - found["accuracy"]["low"]

    assert width(others) < 0.5 * width(again)


def test_bins_of_lengths_hold_every_pair_and_are_plain_json():
    rows = [ranking("a", [1, 2]), ranking("b", [1, 2]), ranking("c", [2, 1])]
    lengths = np.array([[5000, 10], [12, 10], [5000, 10]])
    found = preferences.evaluate(rows, np.array([[9.0, 0.0]] * 3), lengths)
    bins = [(row["low"], row["high"], row["count"], row["accuracy"]["value"]) for row in found["by_length_difference"]]
    assert bins == [(None, -8, 1, 0.0), (-2, 3, 1, 1.0), (9, None, 1, 1.0)]
    json.dumps(found, allow_nan=False)


def test_the_gap_between_two_groups_of_labelers_is_paired_by_prompt():
    """Both rank the completions of the same prompts; where they agree, the prompts cancel."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(60, 3))

    def ranked(taste):
        return [ranking(f"p{n}", list(np.argsort(np.argsort(-row)) + 1)) for n, row in enumerate(scores + taste)]

    shared = rng.normal(0, 1, (60, 3))
    ours, theirs = ranked(shared), ranked(shared + rng.normal(0, 0.1, (60, 3)))
    gap = preferences.accuracy_gap(ours, scores, theirs, scores)
    first, second = evaluate(ours, list(scores))["accuracy"], evaluate(theirs, list(scores))["accuracy"]
    assert gap.value == pytest.approx(first["value"] - second["value"]) and gap.low < gap.value < gap.high
    apart = preferences.accuracy_gap(
        ours, scores, [dataclasses.replace(row, prompt=f"other {row.prompt}") for row in theirs], scores
    )
    assert apart.value == gap.value and gap.high - gap.low < 0.5 * (apart.high - apart.low)
    swapped = preferences.accuracy_gap(theirs, scores, ours, scores)
    assert swapped == pytest.approx((-gap.value, -gap.high, -gap.low))


def test_rated_texts_of_no_prompt_are_independent_unless_they_stand_together():
    one, other = ranking("", [1, 2]), dataclasses.replace(ranking("", [1, 2]), completions=("x", "y"))
    assert one.unit != other.unit and one.unit == ranking("", [2, 1]).unit
    assert ranking("a", [1, 2], scores=(2.0, 1.0)).unit == ranking("a", [1, 2, 3]).unit


def test_rankings_that_are_all_tied_have_no_accuracy():
    assert evaluate([ranking("a", [1, 1, 1])], [[0.0, 1.0, 2.0]]) == {"prompts": 1, "rankings": 1, "pairs": 0}


def test_the_difference_of_two_judges_is_of_the_same_pairs_and_its_interval_is_that_of_a_bootstrap_over_prompts():
    """Whatever makes a prompt hard for both judges cancels, and its pairs, which stand or fall together, count once."""
    rng = np.random.default_rng(0)
    rankings = [ranking(f"p{n // 5}", [1, 2] if n % 3 else [2, 2]) for n in range(600)]
    hard = np.repeat(rng.normal(0, 1, 120), 5)
    better = np.repeat(rng.normal(0, 3, 120), 5)

    def scores(skill):
        margin = skill + hard + rng.normal(0, 1, 600)
        return np.stack([margin, np.zeros(600)], axis=1)

    first, second = scores(1 + better), scores(0)
    found = preferences.accuracy_difference(rankings, first, second)

    pairs = [n for n in range(600) if n % 3]
    gain = {f"p{n}": [] for n in range(120)}
    for n in pairs:
        gain[f"p{n // 5}"].append(float(first[n, 0] > 0) - float(second[n, 0] > 0))
    assert found.value == pytest.approx(sum(map(sum, gain.values())) / len(pairs))
    sums, sizes = np.array([[sum(one), len(one)] for one in gain.values()]).T
    draws = rng.integers(120, size=(4000, 120))
    low, high = np.quantile(sums[draws].sum(1) / sizes[draws].sum(1), [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.01) and found.high == pytest.approx(high, abs=0.01)
    assert found.high - found.low > 0.1
    same = preferences.accuracy_difference(rankings, first, first)
    assert same.value == 0 and same.low < 0 < same.high
