"""Packs several demonstrations into one row, each in its own segment, so that batches have less padding.

The packed batch of a step holds the same demonstrations as the unpacked batch, in fewer rows. So a batch size of 32
means 32 demonstrations either way, and an ablation may turn packing on and off. The loss and its gradients are the
same, except for the noise of dropout, which depends on a token's row and its place in the row.
"""

import bisect
import dataclasses

import numpy as np

from rlhf_jax.data.batches import Batch
from rlhf_jax.data.loader import Loader, take


@dataclasses.dataclass(frozen=True)
class PackingReport:
    """Rows of a batch, and the share of its tokens that are padding, as a mean over the steps of a stage."""

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
    """Packs items into rows of `length` by best-fit decreasing; returns the items of each row.

    The longest items come first; each goes into the fullest row that has room for it. Items of equal length keep their
    order, so that the same lengths always give the same rows.

    Args:
        lengths: i64[N], the length of each item in tokens, at most `length`.
        length: the length of a row.
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
    """Returns examples packed into rows, one segment each, one after another.

    Args:
        examples: the examples, one segment per row.
        rows: the examples of each packed row.
        pad_id: the token id of padding.
        count: number of rows of the result, of which the last may be padding; by default len(rows).
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
    """Returns all examples in as few rows as best_fit finds, for evaluation."""
    return pack(examples, best_fit(lengths(examples), examples.tokens.shape[1]), pad_id)


def segments(examples: Batch) -> int:
    """Returns the largest number of segments of a row."""
    return int(examples.segment_ids.max())


def lengths(examples: Batch) -> np.ndarray:
    """Returns the number of tokens of each example, i64[N]."""
    return (examples.segment_ids > 0).sum(axis=1)


class PackedLoader:
    """Packed batches of a Loader of demonstrations.

    All batches have `batch_size` rows, enough for the fullest batch among the steps, so that one program runs them all.

    Args:
        loader: loader of the examples, one per row.
        examples: the loader's examples.
        pad_id: the token id of padding.
        steps: number of steps; a later step may need more rows.
        multiple: number that batch_size + others is a multiple of, for the mesh and microbatches.
        others: number of rows that are added to each batch from elsewhere.

    Attributes:
        batch_size: number of rows of a packed batch.
        segments: largest number of demonstrations in a row.
        report: PackingReport over the steps.
    """

    def __init__(self, loader: Loader, examples: Batch, pad_id: int, steps: int, multiple: int = 1, others: int = 0):
        self._loader, self._pad_id = loader, pad_id
        self._lengths, self._length = lengths(examples), examples.tokens.shape[1]
        batches = [loader.rows(step) for step in range(steps)]
        layouts = [self._layout(rows) for rows in batches]
        needed = max(map(len, layouts))
        self.segments = max(len(row) for layout in layouts for row in layout)
        self.batch_size = -(-(needed + others) // multiple) * multiple - others
        # The mean number of rows if there were no padding.
        full = np.mean([self._lengths[rows].sum() for rows in batches]) / self._length
        padding = (float(1 - full / rows) for rows in (loader.batch_size, self.batch_size))
        self.report = PackingReport(loader.batch_size, self.batch_size, *padding)

    def batch(self, step: int, places: np.ndarray | None = None) -> Batch:
        """Returns the batch of a step, or only the rows of it in `places` (see Loader)."""
        packed = pack(self._loader.batch(step), self._layout(self.rows(step)), self._pad_id, self.batch_size)
        return packed if places is None else take(packed, places)

    def rows(self, step: int) -> np.ndarray:
        """Returns the numbers of the demonstrations in the batch of a step, i64[the loader's batch_size]."""
        return self._loader.rows(step)

    def _layout(self, rows: np.ndarray) -> list[list[int]]:
        """Returns the examples of each packed row, for the examples of a batch."""
        return best_fit(self._lengths[rows], self._length)
