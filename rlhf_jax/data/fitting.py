"""Rows of token ids, made to fit a length: what is dropped or cut, and the padding."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.runtime.errors import InputError

Ids = np.ndarray  # i32[length]
TooLong = Literal["drop", "cut_left"]
LongCompletions = Literal["cut", "drop"]

SHARE = 0.95  # the share of the texts that a suggested length holds
MULTIPLE = 8  # a suggested length is a multiple of this


def holding(lengths: np.ndarray, share: float = SHARE) -> int:
    """Returns the smallest multiple of MULTIPLE that at least a share of the lengths i64[N] do not exceed."""
    exact = int(np.quantile(lengths, share, method="inverted_cdf"))
    return max(1, -(-exact // MULTIPLE)) * MULTIPLE


def fit(prompts: Sequence[Ids], limit: int, too_long: TooLong, tokenizer: Tokenizer) -> tuple[list[Ids | None], int]:
    """Returns the prompts with at most `limit` tokens each, and how many of them were cut.

    A longer prompt becomes None with "drop"; with "cut_left" it loses its beginning, but keeps BOS.
    """

    def shorten(ids):
        head = int(ids[0] == tokenizer.bos_id)
        return np.concatenate([ids[:head], ids[len(ids) - (limit - head) :]])

    long = [len(ids) > limit for ids in prompts]
    if too_long == "drop":
        return [None if is_long else ids for ids, is_long in zip(prompts, long)], 0
    return [shorten(ids) if is_long else ids for ids, is_long in zip(prompts, long)], sum(long)


@dataclasses.dataclass(frozen=True)
class LongTexts:
    """Texts that a length of the config does not hold.

    Attributes:
      count: their number.
      fate: what became of them, such as "cut" or "left out".
      limit: the length, in tokens.
      enough: a length that holds `share` of all texts of this kind.
    """

    count: int
    fate: str
    limit: int
    enough: int
    share: float

    @classmethod
    def of(cls, lengths: Sequence[int], limit: int, fate: str) -> "LongTexts | None":
        """Returns what of lengths i64[N] exceeds a limit; None: nothing."""
        if not (count := sum(length > limit for length in lengths)):
            return None
        every = np.asarray(lengths)
        share = SHARE if holding(every) > limit else 1.0
        return cls(count, fate, limit, holding(every, share), share)

    @classmethod
    def total(cls, parts: "Sequence[LongTexts | None]") -> "LongTexts | None":
        """Returns the sum of several sources; `enough` then holds the share of each."""
        found = [part for part in parts if part]
        if not found:
            return None
        enough, share = max((one.enough, one.share) for one in found)
        return dataclasses.replace(found[0], count=sum(one.count for one in found), enough=enough, share=share)

    def said(self, field: str) -> str:
        """Returns the end of a sentence about these texts, which names the field and a value that would do."""
        return f"{field}={self.limit} ({self.enough} would hold {'all' if self.share == 1 else f'{self.share:.0%}'})"


def long_prompts(prompts: Sequence[Ids], limit: int, rule: TooLong) -> LongTexts | None:
    """Returns which of the prompts have more than `limit` tokens, by what becomes of them; None: none."""
    fate = "left out" if rule == "drop" else "prompts without their beginning"
    return LongTexts.of([len(ids) for ids in prompts], limit, fate)


def long_completions(sizes: Sequence[int], prompt_limit: int, length: int, rule: LongCompletions) -> LongTexts | None:
    """Returns which completions do not fit; `sizes` are the tokens of each together with its prompt, of `length`.

    Its lengths are those of completion_length, while the prompts may have `prompt_limit` tokens.
    """
    lengths = [size - prompt_limit for size in sizes]
    return LongTexts.of(lengths, length - prompt_limit, "cut" if rule == "cut" else "left out")


def prompt_limit(length: int, prompt_length: int | None) -> int:
    """Returns the largest length of a prompt; raises InputError if it leaves no room for a completion."""
    limit = length - 1 if prompt_length is None else prompt_length
    if not 0 < limit < length:
        raise InputError(
            f"prompt_length={limit} must be from 1 to {length - 1}: a sequence has {length} tokens, and a completion "
            "needs at least one"
        )
    return limit


def check_any(kept: Sequence, prompts: Sequence[Ids], name: str, limit: int) -> None:
    """Raises InputError if there are no records, or none that fits `limit`, the value of the field `name`."""
    if not prompts:
        raise InputError("there are no records to batch")
    if not kept:
        raise InputError(
            f"all {len(prompts)} prompts are longer than {name}={limit}: raise it to at least "
            f"{min(map(len, prompts))}, the tokens of the shortest prompt"
        )


def pad_right(rows: Sequence[Ids], length: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns padded rows: tokens i32[N, length] and mask bool[N, length], True on real tokens."""
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(length) < lengths[:, None]
    tokens = np.full((len(rows), length), pad_id, np.int32)
    tokens[mask] = np.concatenate([np.asarray(row, np.int32) for row in rows])
    return tokens, mask
