"""What decides a pair, and how often judges are right on each kind of pair, against pairs written out by hand."""

import numpy as np
import pytest

from rlhf_jax.data.records import Ranking
from rlhf_jax.evaluate import deciders
from rlhf_jax.world import World, gold, labelers

GOOD = dict(helpful=1.0, honest=1.0, harmless=1.0, constraint=1.0, concise=1.0)


def judged(**parts) -> gold.Gold:
    parts = GOOD | parts
    return gold.Gold(**parts, total=sum(gold.WEIGHTS[name] * value for name, value in parts.items()) - 1.2)


@pytest.mark.parametrize(
    "parts, name",
    [
        ({}, "taste"),
        ({"helpful": 0.5}, "task"),
        ({"helpful": 0.5, "honest": 0.9}, "fact"),
        ({"honest": 0.0}, "fact"),
        ({"harmless": 0.4, "helpful": 0.9}, "rude"),
        ({"constraint": 0.0, "concise": 0.1}, "constraint"),
        ({"concise": 0.4, "honest": 0.9}, "length"),
    ],
)
def test_the_part_that_weighs_most_decides(parts, name):
    assert deciders.decider(judged(), judged(**parts)) == name == deciders.decider(judged(**parts), judged())


def test_each_kind_counts_its_own_pairs_for_each_judge():
    """Of two prompts: one with a rude text and a foreign one, one in which the task is done or not; ties are no pairs."""
    rankings = [
        Ranking("a", ("x", "y", "z"), (1, 2, 3), None, None, ("sft", "sft", "sft of another prompt"), None, {}),
        Ranking("b", ("x", "y", "z"), (2, 1, 1), None, None, ("sft", "sft", "sft"), None, {}),
    ]
    golds = [
        [judged(), judged(harmless=0.4), judged(helpful=0.0)],
        [judged(helpful=0.0), judged(), judged(helpful=0.0, harmless=0.0)],
    ]
    scores = {
        "all": -np.array([[1, 2, 3], [2, 1, 1]]),
        "none": np.array([[1, 2, 3], [2, 1, 1]]),
        "same": np.zeros((2, 3)),
    }
    found = deciders.by_decider(rankings, golds, scores)
    assert [(row["decider"], row["pairs"]) for row in found] == [("topic", 2), ("task", 1), ("rude", 2)]
    assert [[row[name]["value"] for name in scores] for row in found] == 3 * [[1.0, 0.0, 0.5]]
    assert deciders.by_decider([], [], {}) == []
    again = deciders.by_decider(2 * rankings, 2 * golds, {name: np.tile(own, (2, 1)) for name, own in scores.items()})
    for once, twice in zip(found, again):  # a second labeler of the same prompts makes nothing surer
        assert twice["pairs"] == 2 * once["pairs"] and all(twice[name] == pytest.approx(once[name]) for name in scores)


def test_a_judge_of_the_mean_utility_is_right_as_often_as_the_panel_says():
    """Its accuracy on drawn rankings against the sum over pairs that `Panel.folds` computes."""
    world, rng = World(3), np.random.default_rng(0)
    rows = world.instructions("train", 400)
    comparisons = []
    for row in rows:
        texts = [
            row["output"],
            *(rows[place]["output"] for place in rng.integers(0, len(rows), 3)),
            row["output"] + " you fool .",
        ]
        texts = list(dict.fromkeys(texts))
        comparisons.append(labelers.candidates(row["id"], texts, [gold.score(world, row, text) for text in texts]))
    panel = labelers.fit_panel(0, comparisons)
    groups = set(labelers.GROUPS) - {"caution"}
    staff = [labeler for labeler in panel.labelers if labeler.group in groups]
    right, pairs = 0.0, 0
    for prompt in comparisons:
        worth = panel.mean_utilities(prompt.traits, groups)
        for labeler in staff[::4]:
            ranks = np.array(panel.rank(prompt, labeler))
            above = ranks[:, None] < ranks[None]
            right, pairs = right + (above * (1 + np.sign(worth[:, None] - worth[None])) / 2).sum(), pairs + above.sum()
    (fold,) = (fold for fold in panel.folds(comparisons) if fold.held_out_group == "caution")
    assert right / pairs == pytest.approx(fold.in_group, abs=0.01)
