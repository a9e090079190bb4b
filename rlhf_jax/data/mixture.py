"""Mixtures of sources: a source's weight, not its size, sets its share of the draws."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from rlhf_jax.data.batches import LengthReport
from rlhf_jax.runtime.errors import InputError

BLOCK = 1000  # number of draws in which every source has exactly its share; shares are rounded to 1 / BLOCK


class Source(NamedTuple):
    """The rows of one entry of `data.files`, in one split."""

    name: str
    weight: float | None  # None: every row is drawn equally often
    rows: list


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Shares of several sources: each block of BLOCK draws has the same number from each source, evenly spread.

    Attributes:
      names: names of the sources.
      quotas: number of draws per block from each source; they add up to BLOCK.
      sizes: number of examples of each source. The examples lie one source after another.
    """

    names: tuple[str, ...]
    quotas: tuple[int, ...]
    sizes: tuple[int, ...]

    def draws(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns which source each draw takes, and how many earlier draws took the same source; both i64[n].

        Args:
          places: the draws, i64[n], counted from 0.
        """
        pattern, before = self._pattern()
        blocks, offsets = np.divmod(places, BLOCK)
        source = pattern[offsets]
        return source, blocks * np.array(self.quotas)[source] + before[offsets]

    def epochs(self, draws: int) -> dict[str, float]:
        """Returns how often each source's examples are seen in a number of draws, by source."""
        sources = zip(self.names, self.quotas, self.sizes)
        return {name: draws * quota / BLOCK / size for name, quota, size in sources}

    def _pattern(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the source of each draw of a block, and how many draws before took the same one; both i64[BLOCK]."""
        source = np.repeat(np.arange(len(self.quotas)), self.quotas)
        number = np.concatenate([np.arange(quota) for quota in self.quotas])
        order = np.argsort((number + 0.5) / np.array(self.quotas)[source], kind="stable")
        return source[order], number[order]


def build(
    sources: Sequence[Source], builder: Callable[[list], tuple[Any, LengthReport]]
) -> tuple[Any, LengthReport, Mixture | None]:
    """Returns the examples of all sources, the report on their lengths, and their mixture.

    Args:
      sources: the sources.
      builder: makes examples and a report from rows, such as text_batches.pack_documents.

    Returns:
      (examples, report, mixture); the mixture is None if no source has a weight, and rows are then drawn equally often.

    Raises:
      InputError: some sources have a weight and others none, or a share is below 1 / BLOCK.
    """
    weights = [source.weight for source in sources]
    if not any(weight is not None for weight in weights):
        examples, report = builder([row for source in sources for row in source.rows])
        return examples, report, None
    quotas = _quotas(sources)
    parts, reports = zip(*(builder(source.rows) for source in sources))
    sizes = tuple(len(jax.tree.leaves(part)[0]) for part in parts)
    examples = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    names = tuple(source.name for source in sources)
    return examples, LengthReport.total(reports), Mixture(names, quotas, sizes)


def _quotas(sources: Sequence[Source]) -> tuple[int, ...]:
    """Returns the number of draws per block from each source, by the largest-remainder method."""
    for source in sources:
        if source.weight is None:
            raise InputError(
                f"'{source.name}' has no weight, but others of its kind do; give it one, as in {source.name}*0.5"
            )
    total = sum(source.weight for source in sources)
    exact = [BLOCK * source.weight / total for source in sources]
    quotas = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda n: quotas[n] - exact[n])
    for n in by_remainder[: BLOCK - sum(quotas)]:
        quotas[n] += 1
    for source, quota in zip(sources, quotas):
        if quota < 1:
            raise InputError(
                f"'{source.name}' has the weight {source.weight:g} of {total:g} in all; raise it to 1/{BLOCK} of them "
                "or more"
            )
    return tuple(quotas)
