"""Fixed-length NumPy arrays of records, as a loader takes batches from them, and the report of what did not fit.

Lengths are static. So each builder of arrays (`text_batches`, `ranking_batches`) drops or cuts what is too long, and
reports how much. The arrays of all its records have a leading axis N.

Shapes: N rows, K completions of a prompt, P tokens of a prompt, T tokens of a sequence.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from flax import struct

from rlhf_jax.data.fitting import LongTexts


@struct.dataclass
class Batch:
    """Sequences for next-token prediction.

    loss_mask[n, t] = 1 says that token t is a target, predicted from the tokens before it in its segment. The first
    token of a segment is never a target. A token attends only to its own segment.
    """

    tokens: np.ndarray  # i32[N, T]
    loss_mask: np.ndarray  # f32[N, T]
    segment_ids: np.ndarray  # i32[N, T], from 1; 0 = padding
    positions: np.ndarray  # i32[N, T], from 0 in each segment


@struct.dataclass
class Comparisons:
    """Ranked completions, each behind a copy of its prompt."""

    tokens: np.ndarray  # i32[N, K, T], right-padded
    mask: np.ndarray  # bool[N, K, T], True on real tokens
    ranks: np.ndarray  # i32[N, K], 1 = best, equal = tie; 0 where not valid; or i32[N, L, K], see `joined`
    valid: np.ndarray  # bool[N, K], False where a prompt has fewer than K completions
    targets: np.ndarray | None = None  # f32[N, K], the labelers' scores, 0 where not valid; None if they gave none
    starts: np.ndarray | None = None  # i32[N], the place of the completions' first token


@struct.dataclass
class PackedComparisons:
    """Ranked completions that share one row, behind a single copy of their prompt.

    A completion attends only to the prompt and itself, and its positions continue from the prompt's end. So its score
    is the same as in a row of its own.
    """

    tokens: np.ndarray  # i32[N, T], right-padded
    segment_ids: np.ndarray  # i32[N, T], PREFIX on the prompt, then 1 to K; 0 = padding
    positions: np.ndarray  # i32[N, T]
    ends: np.ndarray  # i32[N, K], place of each completion's last token in its row; 0 where not valid
    ranks: np.ndarray  # i32[N, K], 1 = best, equal = tie; 0 where not valid; or i32[N, L, K], see `joined`
    valid: np.ndarray  # bool[N, K], False where a prompt has fewer than K completions
    targets: np.ndarray | None = None  # f32[N, K], as in Comparisons


@struct.dataclass
class Prompts:
    """Prompts to sample from."""

    tokens: np.ndarray  # i32[N, P], left-padded
    mask: np.ndarray  # bool[N, P], True on real tokens
    index: np.ndarray  # i32[N], place of the prompt in the records that the builder was given


@dataclasses.dataclass(frozen=True)
class LengthReport:
    """How many records a builder dropped or cut because they were too long.

    Attributes:
      given: number of records.
      dropped: number of records left out, because their prompt is too long or their completions do not fit.
      cut: number of completions whose end does not fit, or of documents that continue in the next row.
      longest: length of the longest record before any cut, in tokens.
      prompts_cut: number of prompts that lost their beginning, by the rule "cut_left".
      repeats: number of completions left out, because what is kept of them equals an earlier one of another rank.
      long_prompts: the prompts that are longer than prompt_length, which were dropped or lost their beginning.
      long_completions: the completions that do not fit behind their prompt, which were cut or left out.
    """

    given: int
    dropped: int
    cut: int
    longest: int
    prompts_cut: int = 0
    repeats: int = 0
    long_prompts: LongTexts | None = dataclasses.field(default=None, compare=False)
    long_completions: LongTexts | None = dataclasses.field(default=None, compare=False)

    def __str__(self) -> str:
        parts = [f"{self.given - self.dropped} of {self.given} kept"]
        if long := self.long_prompts:
            parts.append(f"{long.count} {long.fate}: the prompt is longer than {long.said('prompt_length')}")
        cut = self.cut
        if long := self.long_completions:
            cut -= long.count if long.fate == "cut" else 0
            length = long.said("completion_length")
            parts.append(f"{long.count} completions {long.fate}: they do not fit behind their prompt with {length}")
        if cut:
            parts.append(f"{cut} cut")
        if self.repeats:
            parts.append(f"{self.repeats} completions left out because they then repeat another one")
        return "; ".join([*parts, f"longest {self.longest} tokens"])

    @classmethod
    def total(cls, reports: "Sequence[LengthReport]") -> "LengthReport":
        """Returns the report of several builders' records together."""

        def sum_of(name):
            return sum(getattr(report, name) for report in reports)

        return cls(
            given=sum_of("given"),
            dropped=sum_of("dropped"),
            cut=sum_of("cut"),
            longest=max(report.longest for report in reports),
            prompts_cut=sum_of("prompts_cut"),
            repeats=sum_of("repeats"),
            long_prompts=LongTexts.total([report.long_prompts for report in reports]),
            long_completions=LongTexts.total([report.long_completions for report in reports]),
        )
