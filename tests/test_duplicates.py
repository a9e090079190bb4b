"""Near duplicates: planted ones are found, whatever the order; sorting finds what comparing all pairs finds."""

import itertools
import os
import random
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_jax.data import duplicates


def groups(prompts, *arguments):
    """The clusters as sets of prompts."""
    numbers = duplicates.clusters(prompts, *arguments)
    found = {}
    for prompt, number in zip(prompts, numbers):
        found.setdefault(int(number), set()).add(prompt)
    return sorted(found.values(), key=sorted)


def by_all_pairs(prompts, characters, share):
    """The definition, in quadratic time (for sets too small to have a template)."""
    sets = [{prompt} for prompt in set(prompts)]
    for a, b in itertools.combinations(set(prompts), 2):
        x, y = duplicates.normalised(a), duplicates.normalised(b)
        common = len(os.path.commonprefix([x, y]))
        if x == y or common >= max(characters, share * min(len(x), len(y))):
            first, second = (next(s for s in sets if p in s) for p in (a, b))
            if first is not second:
                sets.remove(second)
                first |= second
    return sorted(sets, key=sorted)


@given(
    st.lists(st.text("ab", min_size=0, max_size=9), min_size=1, max_size=18),
    st.integers(1, 6),
    st.sampled_from([0.25, 0.5, 0.8, 1.0]),
)
def test_sorting_finds_what_comparing_all_pairs_finds(prompts, characters, share):
    assert groups(prompts, characters, share) == by_all_pairs(prompts, characters, share)


def test_planted_ones_are_found():
    long = "You are given a recipe. List what is needed, and how much of it, in the order of use: "
    prompts = [
        f"{long}flour and eggs",
        f"{long}flour and milk",
        f"{long}flour and eggs".upper().replace(" ", "\n "),  # case and white space do not count
        "Write a poem about a dog",
        "Write a poem about a cat",  # short prompts have too little in common to tell
        "user: how do I tie a knot\nassistant: which one?\nuser:" + 40 * " a bowline",
        "user: how do I tie a knot\nassistant: which one?",  # an earlier turn
    ]
    assert groups(prompts, 40) == sorted([set(prompts[:3]), {prompts[3]}, {prompts[4]}, set(prompts[5:])], key=sorted)


def test_a_system_prompt_is_no_evidence():
    system = "You are a helpful assistant. Answer briefly, say when you do not know, and never be rude. " * 3
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghij", k=6)) for _ in range(400)]
    prompts = [system + " ".join(rng.choices(words, k=30)) for _ in range(300)]
    twins = [prompts[5] + " please", prompts[7] + " thanks"]
    assert [found for found in groups(prompts + twins, 40) if len(found) > 1] == sorted(
        [{prompts[5], twins[0]}, {prompts[7], twins[1]}], key=sorted
    )


def test_the_order_of_the_prompts_does_not_matter():
    rng = random.Random(1)
    prompts = ["".join(rng.choices("ab", k=rng.randint(0, 12))) for _ in range(200)]
    shuffled = rng.sample(prompts, len(prompts))
    assert groups(prompts, 4) == groups(shuffled, 4)
    first = {prompts[n] for n in duplicates.clusters(prompts, 4)}
    assert first == {shuffled[n] for n in duplicates.clusters(shuffled, 4)}


def test_nothing_and_one_and_empty_ones():
    assert duplicates.clusters([], 5).tolist() == []
    assert duplicates.clusters(["a"], 5).tolist() == [0]
    assert duplicates.clusters(["", " ", "a"], 5).tolist() == [0, 0, 2]


@pytest.mark.slow
def test_a_million_prompts_with_one_beginning_take_seconds():
    """Quadratic work would take days."""
    prompts = [f"{'the same beginning ' * 5}{n:07}" for n in range(300_000)] + [f"{n}" for n in range(700_000)]
    start = time.perf_counter()
    assert len(np.unique(duplicates.clusters(prompts, 50))) == 1_000_000
    assert time.perf_counter() - start < 90
