"""Which rankings a stage learns from, and which part of them."""

import types

import pytest
from ml_collections import ConfigDict

from rlhf_jax.data.records import Ranking
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.stages import rankings

ROWS = {
    name: [Ranking(f"{name} {i // 2}", ("a", "b"), (1, 2), None, None, None, None, {}) for i in range(80)]
    for name in ("train", "valid", "heldout")
}


def load(name, subset, seed=0):
    run = types.SimpleNamespace(
        config=ConfigDict({"reward_model": {"subset": subset}}),
        giving=lambda what: [],
        seed_of=lambda stage: seed,
        corpus=types.SimpleNamespace(rankings=ROWS.get),
    )
    return rankings.load(run, "reward_model", name)


@pytest.mark.parametrize("name", ["valid", "heldout"])
def test_a_subset_is_of_training_alone(name):
    assert load(name, ":10") == ROWS[name]
    assert load("train", "") == ROWS["train"]
    assert len(load("train", ":10")) == 20  # all rankings of ten prompts


def test_seeds_draw_other_parts_and_one_seed_the_same():
    parts = {seed: {row.prompt for row in load("train", ":10", seed)} for seed in range(8)}
    assert all(parts[seed] == {row.prompt for row in load("train", ":10", seed)} for seed in parts)
    assert len(set(map(frozenset, parts.values()))) == 8
    assert all(parts[seed] <= {row.prompt for row in load("train", ":20", seed)} for seed in parts)


def test_a_part_that_is_not_there_is_refused():
    with pytest.raises(InputError, match="reward_model.subset=':41' must take at least one and at most all of the 40"):
        load("train", ":41")
