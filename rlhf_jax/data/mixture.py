"""Sources with weights: which share of the draws each has, whatever its size."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from rlhf_jax.data.batches import LengthReport
from rlhf_jax.runtime.errors import InputError

BLOCK = 1000  # draws in which every source has its share exactly; a share is rounded to 1 / BLOCK


class Source(NamedTuple):
    """The rows of one entry of `data.files`, in one split."""

    name: str
    weight: float | None  # None: every row counts alike
    rows: list


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Examples of several sources, of which every BLOCK draws have the same shares, evenly spread.

    Attributes:
      names: of the sources.
      quotas: draws of a block that each source has; they add up to BLOCK.
      sizes: examples of each source; they lie one source after another.
    """

    names: tuple[str, ...]
    quotas: tuple[int, ...]
    sizes: tuple[int, ...]

    def draws(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For draws counted from 0, i64[n]: the source of each and its number among the source's, i64[n] both."""
        pattern, before = self._pattern()
        blocks, offsets = np.divmod(places, BLOCK)
        source = pattern[offsets]
        return source, blocks * np.array(self.quotas)[source] + before[offsets]

    def epochs(self, draws: int) -> dict[str, float]:
        """How often each source's examples are seen in so many draws."""
        sources = zip(self.names, self.quotas, self.sizes)
        return {name: draws * quota / BLOCK / size for name, quota, size in sources}

    def _pattern(self) -> tuple[np.ndarray, np.ndarray]:
        """Each draw of a block: its source, and how many draws of that source come before it."""
        source = np.repeat(np.arange(len(self.quotas)), self.quotas)
        number = np.concatenate([np.arange(quota) for quota in self.quotas])
        order = np.argsort((number + 0.5) / np.array(self.quotas)[source], kind="stable")
        return source[order], number[order]


def build(
    sources: Sequence[Source], builder: Callable[[list], tuple[Any, LengthReport]]
) -> tuple[Any, LengthReport, Mixture | None]:
    """The examples of all sources, what became of their records, and how they are mixed (None: by size).

    Raises:
      InputError: some sources have a weight and others none, or one has too little.
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
    """Shares in whole draws of a block, by the largest remainders."""
    for source in sources:
        if source.weight is None:
            raise InputError(
                f"'{source.name}' has no weight and others of its kind do; give it one, as {source.name}*0.5"
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
                f"'{source.name}' has the weight {source.weight:g} of {total:g}; the least share is 1 in {BLOCK}"
            )
    return tuple(quotas)
