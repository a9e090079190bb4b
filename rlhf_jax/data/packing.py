"""Several demonstrations in one row, each blind to the others: the same batches with less padding.

A packed batch of step s holds the very demonstrations that the batch of step s holds without packing,
in fewer rows. So a batch of 32 is 32 demonstrations either way, the loss and its gradient are those
without packing (but for dropout's noise, which is of a row and a place in it), and an ablation may turn packing on and off.
"""

import bisect
import dataclasses

import numpy as np

from rlhf_jax.data.batches import Batch
from rlhf_jax.data.loader import Loader, take


@dataclasses.dataclass(frozen=True)
class PackingReport:
    """Rows of a batch, and the share of all its tokens that are padding, over the steps of a stage."""

    rows_before: int
    rows_after: int
    padding_before: float
    padding_after: float

    def __str__(self) -> str:
        return (
            f"in {self.rows_after} rows a batch instead of {self.rows_before}, "
            f"padding {100 * self.padding_after:.1f} % instead of {100 * self.padding_before:.1f} %"
        )


def best_fit(lengths: np.ndarray, length: int) -> list[list[int]]:
    """Which items share a row of `length`: the longest first, each into the fullest row that takes it.

    Items of one length keep their order, so that the same lengths always give the same rows.
    """
    rows: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (room left, row), ascending
    for item in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        size = int(lengths[item])
        place = bisect.bisect_left(rooms, (size, -1))
        if place == len(rooms):
            rows.append([])
            room, row = length, len(rows) - 1
        else:
            room, row = rooms.pop(place)
        rows[row].append(item)
        bisect.insort(rooms, (room - size, row))
    return rows


def pack(examples: Batch, rows: list[list[int]], pad_id: int, count: int | None = None) -> Batch:
    """Examples of one segment each, those of a list behind one another in one row.

    Args:
        rows: the examples of each row.
        count: rows of the result; by default as many as there are lists, else the last are padding.
    """
    shape = len(rows) if count is None else count, examples.tokens.shape[1]
    packed = Batch(
        tokens=np.full(shape, pad_id, np.int32),
        loss_mask=np.zeros(shape, np.float32),
        segment_ids=np.zeros(shape, np.int32),
        positions=np.zeros(shape, np.int32),
    )
    sizes = lengths(examples)
    for row, items in enumerate(rows):
        start = 0
        for segment, item in enumerate(items, start=1):
            place, own = np.s_[row, start : start + sizes[item]], np.s_[item, : sizes[item]]
            packed.tokens[place] = examples.tokens[own]
            packed.loss_mask[place] = examples.loss_mask[own]
            packed.positions[place] = examples.positions[own]
            packed.segment_ids[place] = segment
            start += sizes[item]
    return packed


def pack_all(examples: Batch, pad_id: int) -> Batch:
    """All examples in as few rows as best_fit finds, for evaluation."""
    return pack(examples, best_fit(lengths(examples), examples.tokens.shape[1]), pad_id)


def lengths(examples: Batch) -> np.ndarray:
    """Tokens of each example, i64[N]."""
    return (examples.segment_ids > 0).sum(axis=1)


class PackedLoader:
    """The batches of a Loader of demonstrations, packed; `batch_size` is their number of rows.

    It is that of the fullest batch among the steps, so that one program runs them all.

    Args:
        loader: of the examples, one a row.
        examples: the loader's.
        steps: how many there are; a later step may need more rows.
        multiple: the number of rows divides by it, for the mesh and microbatches.
        others: rows of each batch that come from elsewhere and count in `multiple`.
    """

    def __init__(self, loader: Loader, examples: Batch, pad_id: int, steps: int, multiple: int = 1, others: int = 0):
        self._loader, self._pad_id = loader, pad_id
        self._lengths, self._length = lengths(examples), examples.tokens.shape[1]
        batches = [loader.rows(step) for step in range(steps)]
        needed = max(len(self._layout(rows)) for rows in batches)
        self.batch_size = -(-(needed + others) // multiple) * multiple - others
        full = np.mean([self._lengths[rows].sum() for rows in batches]) / self._length  # rows without padding
        padding = (float(1 - full / rows) for rows in (loader.batch_size, self.batch_size))
        self.report = PackingReport(loader.batch_size, self.batch_size, *padding)

    def batch(self, step: int, places: np.ndarray | None = None) -> Batch:
        """The batch of a step, or only these rows of it (see Loader)."""
        packed = pack(self._loader.batch(step), self._layout(self.rows(step)), self._pad_id, self.batch_size)
        return packed if places is None else take(packed, places)

    def rows(self, step: int) -> np.ndarray:
        """Which demonstrations are in the batch of a step."""
        return self._loader.rows(step)

    def _layout(self, rows: np.ndarray) -> list[list[int]]:
        return best_fit(self._lengths[rows], self._length)
