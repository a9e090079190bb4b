"""Puts the requests for log-likelihoods into rows, such that a text that several requests share is computed once.

A multiple-choice question asks for the log-likelihoods of several continuations of one context, and the questions of a
task often begin with the same few-shot examples. A row holds one shared beginning, and after it a branch for each
request. A token attends to the beginning and to its own branch, and its position is that in its own text. So a request
gets the number that a row of its own would give it.

Shapes: B rows, T tokens of a row, N predictions of a row.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from rlhf_jax.model.attention import PREFIX

_SHORTEST = 16  # tokens of the shortest rows
_SHARING = 512  # tokens of the longest row that several contexts may share


class Request(NamedTuple):
    """A context and its continuation, as token ids; neither is empty."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


class Row(NamedTuple):
    """A row, and the predictions that are wanted of it: the token `targets[n]` after place `places[n]`."""

    tokens: list[int]
    positions: list[int]
    segments: list[int]  # PREFIX for the shared beginning, and a number for each branch
    places: list[int]
    targets: list[int]
    owners: list[int]  # the number of the request that each prediction belongs to

    @property
    def branched(self) -> bool:
        """Whether several branches follow a shared beginning."""
        return PREFIX in self.segments


class Batch(NamedTuple):
    """Rows of about the same length, as arrays; rows and predictions that fill it up have the owner -1."""

    tokens: np.ndarray  # i32[B, T]
    positions: np.ndarray  # i32[B, T]
    segments: np.ndarray  # i32[B, T], 0 for padding
    places: np.ndarray  # i32[B, N]
    targets: np.ndarray  # i32[B, N]
    owners: np.ndarray  # i32[B, N]
    branched: bool


def rows(requests: Sequence[Request]) -> list[Row]:
    """Returns rows that hold every request once, in no particular order."""
    branches: dict[tuple[int, ...], list[int]] = {}
    for number, request in enumerate(requests):
        branches.setdefault(request.context, []).append(number)
    found: list[Row] = []
    bundle = _Bundle(requests)
    for context in sorted(branches):
        for numbers in _parts(requests, context, branches[context]):
            if not bundle.takes(context, numbers):
                found.append(bundle.row())
                bundle = _Bundle(requests)
                bundle.takes(context, numbers)
    return [*found, bundle.row()] if requests else []


def _parts(requests: Sequence[Request], context: tuple[int, ...], numbers: list[int]) -> Iterator[list[int]]:
    """Yields the requests of a context in parts for rows: of _SHARING tokens, or of twice the context if it is long.

    Thousands of sentences may follow one context, such as the token of a start.
    """
    most = max(_SHARING, 2 * len(context))
    part, length = [], len(context)
    for number in numbers:
        own = len(requests[number].continuation) - 1
        if part and length + own > most:
            yield part
            part, length = [], len(context)
        part.append(number)
        length += own
    yield part


class _Bundle:
    """Requests that go into one row, with the beginning that they share."""

    def __init__(self, requests: Sequence[Request]):
        self._requests = requests
        self._shared: tuple[int, ...] = ()
        self._numbers: list[int] = []

    def takes(self, context: tuple[int, ...], numbers: list[int]) -> bool:
        """Adds the requests `numbers` of a context, unless a row of their own costs fewer tokens."""
        if self._numbers:
            shared = self._shared[: _common(self._shared, context)]
            together = self._length(shared, [*self._numbers, *numbers])
            apart = self._length(self._shared, self._numbers) + self._length(context, numbers)
            if together > min(_SHARING, apart) or not shared:
                return False
            self._shared = shared
        else:
            self._shared = context
        self._numbers += numbers
        return True

    def _length(self, shared: tuple[int, ...], numbers: list[int]) -> int:
        """The tokens of a row with these requests."""
        own = (len(self._requests[n].context) + len(self._requests[n].continuation) - 1 for n in numbers)
        return len(shared) + sum(own) - len(shared) * len(numbers)

    def row(self) -> Row:
        """Returns the row."""
        beginning = len(self._shared)
        one = len(self._numbers) == 1
        row = Row(list(self._shared), list(range(beginning)), [1 if one else PREFIX] * beginning, [], [], [])
        for branch, number in enumerate(self._numbers, start=1):
            context, continuation = self._requests[number]
            own = context[beginning:] + continuation[:-1]
            start = len(row.tokens)
            # The first token of a branch that is all continuation is predicted by the last token of the beginning.
            last = [beginning - 1, *range(start, start + len(own))][-len(continuation) :]
            row.tokens.extend(own)
            row.positions.extend(range(beginning, beginning + len(own)))
            row.segments.extend([branch] * len(own))
            row.places.extend(last)
            row.targets.extend(continuation)
            row.owners.extend([number] * len(continuation))
        return row


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Returns the number of equal tokens at the start of two texts."""
    return next((n for n, (x, y) in enumerate(zip(first, second)) if x != y), min(len(first), len(second)))


def batches(found: Sequence[Row], batch_tokens: int, ways: int) -> Iterator[Batch]:
    """Yields the rows in batches, the longest first, so that a lack of memory shows at once.

    Args:
        found: the rows.
        batch_tokens: about how many tokens a batch has; a single row may have more.
        ways: number of devices that share the rows; the rows of a batch are a multiple of it.
    """
    order = sorted(found, key=lambda row: len(row.tokens), reverse=True)
    while order:
        length = bucket(len(order[0].tokens))
        size = max(batch_tokens // length // ways, 1) * ways
        size = min(size, -(-len(order) // ways) * ways)
        yield _batch(order[:size], size, length)
        order = order[size:]


def bucket(length: int) -> int:
    """Returns the length to which rows are padded: one of four in each power of two, so that few programs are made."""
    step = max(_SHORTEST, 1 << max(length - 1, 1).bit_length()) // 8
    return max(_SHORTEST, -(-length // step) * step)


def _batch(found: Sequence[Row], size: int, length: int) -> Batch:
    """Pads rows on the right, to `size` rows of `length` tokens."""
    wanted = bucket(max(len(row.places) for row in found))
    tokens, positions, segments = (np.zeros((size, length), np.int32) for _ in range(3))
    places, targets = (np.zeros((size, wanted), np.int32) for _ in range(2))
    owners = np.full((size, wanted), -1, np.int32)
    for number, row in enumerate(found):
        end, last = len(row.tokens), len(row.places)
        tokens[number, :end], positions[number, :end], segments[number, :end] = row[:3]
        places[number, :last], targets[number, :last], owners[number, :last] = row[3:]
    return Batch(tokens, positions, segments, places, targets, owners, any(row.branched for row in found))
