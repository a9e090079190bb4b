"""Requests packed into rows: every request keeps its own text, and no shared beginning is computed twice for nothing."""

import hypothesis
import hypothesis.strategies as st
import numpy as np

from rlhf_jax.evaluate.harness import packing
from rlhf_jax.evaluate.harness.packing import Request
from rlhf_jax.model.attention import PREFIX

texts = st.lists(st.integers(1, 3), min_size=1, max_size=9).map(tuple)
requests = st.lists(st.builds(Request, texts, texts), max_size=12)


def seen_from(row: packing.Row, place: int) -> list[int]:
    """The tokens that a place of a row attends to, itself included, with the positions they claim."""
    mine = row.segments[place]
    found = [
        (position, token)
        for n, (token, position, segment) in enumerate(zip(row.tokens, row.positions, row.segments))
        if n <= place and segment in (mine, PREFIX)
    ]
    assert [position for position, _ in found] == list(range(len(found)))
    return [token for _, token in found]


@hypothesis.given(requests)
def test_every_token_of_a_continuation_is_predicted_once_from_the_text_before_it(asked):
    predicted = {(n, k): 0 for n, request in enumerate(asked) for k in range(len(request.continuation))}
    for row in packing.rows(asked):
        counts = {}
        for place, target, owner in zip(row.places, row.targets, row.owners, strict=True):
            k = counts[owner] = counts.get(owner, -1) + 1
            context, continuation = asked[owner]
            assert target == continuation[k]
            assert seen_from(row, place) == [*context, *continuation[:k]]
            predicted[owner, k] += 1
    assert set(predicted.values()) <= {1}


@hypothesis.given(requests)
def test_rows_have_no_more_tokens_than_requests_apart(asked):
    apart = sum(len(request.context) + len(request.continuation) - 1 for request in asked)
    assert sum(len(row.tokens) for row in packing.rows(asked)) <= apart


def test_a_context_is_computed_once_and_so_is_a_beginning_of_several_contexts():
    root = tuple(range(100, 300))
    questions = [root + (n, n + 1, n + 2) for n in range(4)]
    asked = [Request(question, (answer, answer + 1)) for question in questions for answer in (7, 8)]
    [row] = packing.rows(asked)
    assert row.tokens.count(150) == 1 and len(row.tokens) == 200 + 8 * 4
    [row] = packing.rows([Request(root, (answer,)) for answer in (1, 2, 3)])
    assert len(row.tokens) == 200 and row.places == [199] * 3  # one forward pass answers all of them
    assert len(packing.rows([Request((1, 2), (3,)), Request((4, 5), (6,))])) == 2


def test_thousands_of_sentences_after_one_token_are_many_rows():
    asked = [Request((1,), tuple(range(n % 7 + 2, n % 7 + 32))) for n in range(3000)]
    rows = packing.rows(asked)
    assert max(len(row.tokens) for row in rows) <= 512 and len(rows) < 3000 / 16
    assert sorted({owner for row in rows for owner in row.owners}) == list(range(3000))
    # The answers to a question on a long text stay beside it.
    text = tuple(range(2000))
    [row] = packing.rows([Request(text, (n,) * 100) for n in range(4)])
    assert len(row.tokens) == 2000 + 4 * 99


@hypothesis.given(requests, st.integers(1, 200), st.sampled_from([1, 2, 4]))
def test_batches_hold_every_row_and_divide_over_devices(asked, tokens, ways):
    rows = packing.rows(asked)
    batches = list(packing.batches(rows, tokens, ways))
    owners = np.concatenate([batch.owners.ravel() for batch in batches]) if batches else np.array([])
    assert sorted(owners[owners >= 0]) == sorted(owner for row in rows for owner in row.owners)
    lengths = [batch.tokens.shape[1] for batch in batches]
    assert lengths == sorted(lengths, reverse=True)
    for batch in batches:
        size, length = batch.tokens.shape
        assert size % ways == 0 and (size * length <= max(tokens, length * ways))
        assert batch.branched == bool((batch.segments == PREFIX).any())


@hypothesis.given(st.integers(1, 5000))
def test_a_bucket_is_no_shorter_and_at_most_a_quarter_longer(length):
    bucket = packing.bucket(length)
    assert length <= bucket <= max(16, 1.25 * length) and packing.bucket(bucket) == bucket
