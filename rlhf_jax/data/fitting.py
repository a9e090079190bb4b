"""Rows of token ids, made to fit a length: what is dropped or cut, and the padding."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.runtime.errors import InputError

Ids = np.ndarray  # i32[length]
TooLong = Literal["drop", "cut_left"]


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
