"""Stateless loader: the batch of a step is a function of (seed, name, step)."""

import functools
import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from rlhf_jax.data.batches import Prompts
from rlhf_jax.data.mixture import Mixture
from rlhf_jax.runtime.errors import InputError

Examples = Any  # a pytree of NumPy arrays with a common leading axis N, such as data.batches.Batch


class Loader:
    """Goes through examples epoch by epoch, in a new random order each epoch.

    Every example comes exactly once per epoch; a batch may straddle epochs.

    Args:
      examples: arrays with leading axis N.
      batch_size: number of rows of a batch, copies included.
      seed: seed of the orders.
      name: name of the loader. Loaders with different names use unrelated orders even if they share the seed.
      shuffle: whether to shuffle; else every epoch keeps the order of the examples.
      mixture: shares of several sources; each source then has its own epochs, and its share of the draws.
      copies: how often a batch holds each of its examples; the copies are neighbours.

    Raises:
      InputError: there are no examples, or the batch size is not a positive multiple of `copies`.
    """

    def __init__(
        self,
        examples: Examples,
        batch_size: int,
        seed: int,
        *,
        name: str,
        shuffle: bool = True,
        mixture: Mixture | None = None,
        copies: int = 1,
    ):
        sizes = {len(leaf) for leaf in jax.tree.leaves(examples)}
        if len(sizes) != 1:
            raise ValueError(f"the arrays of {name} differ in their leading axis: {sizes}")
        self.num_examples: int = sizes.pop()
        if self.num_examples == 0 or batch_size < 1:
            raise InputError(
                f"{name}: {self.num_examples} examples and batches of {batch_size}; both numbers must be at least 1"
            )
        self._examples = examples
        if batch_size % copies:
            raise InputError(
                f"{name}: a batch of {batch_size} must be a multiple of {copies}, the copies of each example"
            )
        self.batch_size, self._copies = batch_size, copies
        self._key = f"{seed}/{name}" if shuffle else None
        self.mixture = mixture
        # Two orders per source are kept: a batch may straddle two epochs, and the next batch starts in the second.
        sources = 1 if mixture is None else len(mixture.names)
        self._order = functools.lru_cache(maxsize=2 * sources)(self._order_of_epoch)

    def batch(self, step: int, places: np.ndarray | None = None) -> Examples:
        """Returns the examples of a step, with leading axis [batch_size], or [n] with `places`.

        Args:
          step: the step, counted from 0.
          places: i64[n], the places of the batch to gather, for one process's part; by default all.
        """
        rows = self.rows(step)
        return take(self._examples, rows if places is None else rows[places])

    def rows(self, step: int) -> np.ndarray:
        """Returns the numbers of the examples in the batch of a step, i64[batch_size]."""
        different = self.batch_size // self._copies
        places = step * different + np.arange(different, dtype=np.int64)
        return np.repeat(self._examples_of(places), self._copies)

    def _examples_of(self, places: np.ndarray) -> np.ndarray:
        """Returns the numbers of the examples at some draws, which are counted from 0 over all steps; both i64[n]."""
        if self.mixture is None:
            return self._at(places, self.num_examples, "")
        rows, start = np.empty_like(places), 0
        source, draws = self.mixture.draws(places)
        for number, (name, size) in enumerate(zip(self.mixture.names, self.mixture.sizes)):
            own = source == number
            rows[own] = start + self._at(draws[own], size, f"/{number}/{name}")
            start += size
        return rows

    def steps(self, epochs: float) -> int:
        """Returns the number of steps that show every example `epochs` times; the last may run into the next epoch.

        With a mixture, an epoch is as many draws as there are examples; see `Mixture.epochs`.
        """
        return max(1, math.ceil(epochs * self.num_examples * self._copies / self.batch_size))

    def _at(self, places: np.ndarray, size: int, source: str) -> np.ndarray:
        """Returns the numbers of the examples at some draws from one source of `size` examples, i64[n]."""
        epochs, offsets = np.divmod(places, size)
        rows = np.empty_like(places)
        for epoch in np.unique(epochs):
            own = epochs == epoch
            rows[own] = self._order(int(epoch), size, source)[offsets[own]]
        return rows

    def _order_of_epoch(self, epoch: int, size: int, source: str) -> np.ndarray:
        """Returns the order of a source's examples in an epoch, i64[size]."""
        if self._key is None:
            return np.arange(size)
        # NumPy keeps the raw bits the same across its versions, but not the result of permutation().
        digest = hashlib.blake2b(f"{self._key}{source}/{epoch}".encode(), digest_size=16).digest()
        bits = np.random.Philox(key=int.from_bytes(digest, "little"))
        return np.argsort(bits.random_raw(size), kind="stable")


def in_order(examples: Examples, batch_size: int) -> Iterator[Examples]:
    """Yields all examples once, in order, for evaluation; the last batch is filled up with rows of zeros.

    Rows of zeros have empty masks, so they add nothing to sums over masks.
    """
    total = len(jax.tree.leaves(examples)[0])
    for begin in range(0, total, batch_size):
        batch = take(examples, slice(begin, begin + batch_size))
        yield jax.tree.map(lambda leaf: _fill_up(leaf, batch_size), batch)


def by_length(
    prompts: Prompts, rows: Sequence[int], batch_size: int, multiple: int = 64
) -> Iterator[tuple[np.ndarray, Prompts]]:
    """Yields rows of left-padded prompts, sorted by length, in batches without the padding that all rows share.

    Yields:
        The row numbers, i64[up to batch_size], and their prompts, filled up with rows of zeros as by `in_order`. The
        prompts' length is a multiple of `multiple`, or that of `prompts` if this is smaller: a sampler's program is
        compiled for each length.
    """
    rows = np.asarray(rows)
    lengths = prompts.mask.sum(axis=1)[rows]
    rows = rows[np.argsort(lengths, kind="stable")]
    for number, batch in enumerate(in_order(take(prompts, rows), batch_size)):
        chosen = rows[number * batch_size :][:batch_size]
        longest = int(batch.mask.sum(axis=1).max())
        kept = -max(1, -(-longest // multiple) * multiple)
        yield chosen, batch.replace(tokens=batch.tokens[:, kept:], mask=batch.mask[:, kept:])


def take(examples: Examples, rows: np.ndarray | slice) -> Examples:
    """Returns the rows of examples that an index array or a slice selects."""
    return jax.tree.map(lambda leaf: leaf[rows], examples)


def _fill_up(leaf: np.ndarray, size: int) -> np.ndarray:
    """Returns an array with zeros added along its first axis, up to `size` rows."""
    missing = size - len(leaf)
    return np.pad(leaf, [(0, missing)] + [(0, 0)] * (leaf.ndim - 1)) if missing else leaf
