"""Builders of fixed-length NumPy arrays from records.

A builder makes the arrays of all its records, with a leading axis N; a loader takes the rows of a batch from them.
Lengths are static. So each builder drops or cuts what is too long, and reports how much.

Shapes: N rows, K completions of a prompt, P tokens of a prompt, T tokens of a sequence.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from flax import struct

from rlhf_jax.data.encoding import encode, encode_once
from rlhf_jax.data.records import Demonstration, Document, Prompt, Ranking, without_repeats
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.model.attention import PREFIX
from rlhf_jax.runtime.errors import InputError

Ids = np.ndarray  # i32[length]
TooLong = Literal["drop", "cut_left"]


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
    ranks: np.ndarray  # i32[N, K], 1 = best, equal = tie; 0 where not valid
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
    ranks: np.ndarray  # i32[N, K], 1 = best, equal = tie; 0 where not valid
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
    """

    given: int
    dropped: int
    cut: int
    longest: int
    prompts_cut: int = 0
    repeats: int = 0

    def __str__(self) -> str:
        prompts = f", {self.prompts_cut} prompts without their beginning" if self.prompts_cut else ""
        repeats = f", {self.repeats} completions left out because they then repeat another one" if self.repeats else ""
        return (
            f"{self.given - self.dropped} of {self.given} kept{prompts}, {self.cut} cut{repeats}, "
            f"longest {self.longest} tokens"
        )

    @classmethod
    def total(cls, reports: "Sequence[LengthReport]") -> "LengthReport":
        """Returns the report of several builders' records together."""
        columns = zip(*map(dataclasses.astuple, reports))
        given, dropped, cut, longest, prompts_cut, repeats = map(tuple, columns)
        return cls(sum(given), sum(dropped), sum(cut), max(longest), sum(prompts_cut), sum(repeats))


def batch_demonstrations(
    demonstrations: Sequence[Demonstration],
    tokenizer: Tokenizer,
    length: int,
    prompt_length: int | None = None,
    too_long: TooLong = "drop",
) -> tuple[Batch, LengthReport]:
    """Returns rows of prompt + completion + EOS, right-padded to [N, length]; completion and EOS are the targets.

    Args:
      demonstrations: the records.
      tokenizer: the tokenizer.
      length: T, in tokens. A completion that does not fit is cut, and then has no EOS.
      prompt_length: largest length of a prompt, in tokens; by default length - 1.
      too_long: "drop" leaves out demonstrations with a longer prompt; "cut_left" removes the beginning of the prompt
        (see `batch_prompts`).

    Raises:
      InputError: no demonstration is left.
    """
    limit = _prompt_limit(length, prompt_length)
    prompts = encode(tokenizer, [d.prompt for d in demonstrations], "prompts", prompts=True)
    fitting, prompts_cut = _fit(prompts, limit, too_long, tokenizer)
    completions = encode(tokenizer, [d.completion for d in demonstrations], "completions")
    rows, starts, cut = [], [], 0
    for prompt, completion in zip(fitting, completions):
        if prompt is not None:
            cut += len(prompt) + len(completion) + 1 > length
            rows.append(np.concatenate([prompt, completion, [tokenizer.eos_id]])[:length])
            starts.append(max(1, len(prompt)))  # token 0 is no target, because nothing predicts it
    _check_any(rows, prompts, "prompt_length", limit)
    tokens, mask = _pad_right(rows, length, tokenizer.pad_id)
    column = np.arange(length, dtype=np.int32)
    batch = Batch(
        tokens=tokens,
        loss_mask=(mask & (column >= np.array(starts)[:, None])).astype(np.float32),
        segment_ids=mask.astype(np.int32),
        positions=np.where(mask, column, 0),
    )
    longest = max(len(p) + len(c) + 1 for p, c in zip(prompts, completions))
    return batch, LengthReport(len(prompts), len(prompts) - len(rows), cut, longest, prompts_cut)


def pack_documents(
    documents: Sequence[Document], tokenizer: Tokenizer, length: int, folder: pathlib.Path | None = None
) -> tuple[Batch, LengthReport]:
    """Returns rows of documents, each followed by its end token, one after another without gaps.

    A document that crosses the end of a row continues in the next row as a new segment. So nothing is dropped, and
    `cut` of the report counts these documents. Only the last row is padded.

    Args:
      documents: the records.
      tokenizer: the tokenizer.
      length: T, in tokens.
      folder: folder that keeps the token ids of large data (see `encoding.encode_once`).

    Raises:
      InputError: there are no documents.
    """
    if not documents:
        raise InputError("there are no documents to pack")
    texts = encode_once(folder, tokenizer, [document.text for document in documents], "documents", starts=True)
    sizes = np.array([len(ids) + 1 for ids in texts])
    total = int(sizes.sum())
    rows = -(-total // length)
    tokens = np.full(rows * length, tokenizer.pad_id, np.int32)
    begins = np.cumsum(sizes) - sizes
    for begin, size, ids in zip(begins, sizes, texts):
        tokens[begin : begin + size - 1] = ids
        tokens[begin + size - 1] = tokenizer.document_end_id
    starts = np.zeros(rows * length, bool)
    starts[begins] = True
    starts = starts.reshape(rows, length)
    starts[:, 0] = True
    real = (np.arange(rows * length) < total).reshape(rows, length)

    column = np.arange(length, dtype=np.int32)
    segment_start = np.maximum.accumulate(np.where(starts, column, 0), axis=1)
    batch = Batch(
        tokens=tokens.reshape(rows, length),
        loss_mask=(real & ~starts).astype(np.float32),
        segment_ids=np.where(real, np.cumsum(starts, axis=1, dtype=np.int32), 0),
        positions=np.where(real, column - segment_start, 0),
    )
    cut = int(np.sum(begins // length != (begins + sizes - 1) // length))
    return batch, LengthReport(len(texts), 0, cut, int(sizes.max()))


def batch_rankings(
    rankings: Sequence[Ranking],
    tokenizer: Tokenizer,
    length: int,
    prompt_length: int | None = None,
    completions: int | None = None,
    too_long: TooLong = "drop",
) -> tuple[Comparisons, LengthReport]:
    """Returns each completion behind its prompt, with EOS if it is finished, right-padded to [N, K, length].

    A completion that does not fit is cut, and then has no EOS. A completion that then equals an earlier one of another
    rank is left out, and a ranking of which one completion is left is dropped.

    Args:
        rankings: the records.
        tokenizer: the tokenizer.
        length: T, in tokens. A completion that does not fit is cut, and then has no EOS.
        prompt_length: largest length of a prompt, in tokens; by default length - 1.
        completions: K; by default the number of completions of the largest ranking.
        too_long: "drop" leaves out rankings with a longer prompt; "cut_left" removes the beginning of the prompt.

    Raises:
        InputError: a ranking has more than K completions, or no ranking is left.
    """
    limit = _prompt_limit(length, prompt_length)
    largest = max((len(ranking.completions) for ranking in rankings), default=0)
    if completions is None:
        completions = largest
    elif largest > completions:
        raise InputError(
            f"a ranking has {largest} completions, so completions={completions} must be at least {largest}"
        )
    kept, report = _encode_rankings(rankings, tokenizer, length, limit, too_long)
    rows, ranks, targets = [], [], []
    for ranking, prompt, answers, _ in kept:
        absent = completions - len(answers)
        rows += [np.concatenate([prompt, answer]) for answer in answers] + [[]] * absent
        ranks.append([*ranking.ranks, *[0] * absent])
        targets.append([*(ranking.scores or ()), *[0.0] * absent])
    shape = (len(ranks), completions, length)
    tokens, mask = _pad_right(rows, length, tokenizer.pad_id)
    ranks = np.array(ranks, np.int32)
    targets = np.array(targets, np.float32) if all(ranking.scores for ranking in rankings) else None
    starts = np.array([len(one.prompt) for one in kept], np.int32)
    return Comparisons(tokens.reshape(shape), mask.reshape(shape), ranks, ranks > 0, targets, starts), report


def pack_rankings(
    rankings: Sequence[Ranking],
    tokenizer: Tokenizer,
    length: int,
    prompt_length: int,
    row_length: int = 0,
    too_long: TooLong = "drop",
) -> tuple[PackedComparisons, LengthReport]:
    """Returns the completions of `batch_rankings`, packed: all completions of a prompt in one row, one after another.

    In the report, `cut` counts the completions that were cut or left out, and `longest` is the length of the longest
    row before any was left out.

    Args:
        rankings: the records.
        tokenizer: the tokenizer.
        length: largest length of a prompt with one completion, in tokens. A longer completion is cut, and then has no
            EOS.
        prompt_length: largest length of a prompt, in tokens.
        row_length: T, in tokens; 0 takes the length of the longest row. A completion that does not fit into the rest of
            its row is left out. A ranking with fewer than two completions left is dropped.
        too_long: "drop" leaves out rankings with a longer prompt; "cut_left" removes the beginning of the prompt.

    Raises:
        InputError: no ranking is left.
    """
    limit = _prompt_limit(length, prompt_length)
    kept, report = _encode_rankings(rankings, tokenizer, length, limit, too_long)
    width = max((len(ranking.completions) for ranking in rankings), default=0)
    longest = max(len(one.prompt) + sum(map(len, one.answers)) for one in kept)
    room, left_out = row_length or longest, 0
    rows, columns = [], []
    for ranking, prompt, answers, were_cut in kept:
        row, segments, positions = prompt.tolist(), [PREFIX] * len(prompt), list(range(len(prompt)))
        ends, ranks, targets = [], [], []
        for answer, was_cut, rank, score in zip(
            answers, were_cut, ranking.ranks, ranking.scores or [0.0] * len(answers)
        ):
            if len(row) + len(answer) > room:
                left_out += not was_cut  # else it is counted already
                continue
            row += answer.tolist()
            positions += range(len(prompt), len(prompt) + len(answer))
            ends.append(len(row) - 1)
            ranks.append(rank)
            targets.append(score)
            segments += [len(ends)] * len(answer)
        if len(ends) >= 2:
            rows.append((row, segments, positions))
            absent = [0] * (width - len(ends))
            columns.append((ends + absent, ranks + absent, targets + absent))
    if not rows:
        raise InputError(
            f"in no ranking do the prompt and two completions fit into a row of {room} tokens; raise the field length"
        )
    tokens, segments, positions = (
        _pad_right(column, room, fill)[0] for column, fill in zip(zip(*rows), (tokenizer.pad_id, 0, 0))
    )
    ends, ranks, targets = (
        np.array(column, dtype) for column, dtype in zip(zip(*columns), (np.int32, np.int32, np.float32))
    )
    targets = targets if all(ranking.scores for ranking in rankings) else None
    packed = PackedComparisons(tokens, segments, positions, ends, ranks, ranks > 0, targets)
    report = dataclasses.replace(report, dropped=report.given - len(rows), cut=report.cut + left_out, longest=longest)
    return packed, report


def kept_rankings(
    rankings: Sequence[Ranking], tokenizer: Tokenizer, length: int, prompt_length: int, too_long: TooLong = "drop"
) -> tuple[list[Ranking], LengthReport]:
    """Returns the rankings that `batch_rankings` makes arrays of, without the completions that it leaves out.

    The list may be empty.
    """
    limit = _prompt_limit(length, prompt_length)
    kept, report = _encode_rankings(rankings, tokenizer, length, limit, too_long, empty=True)
    return [one.ranking for one in kept], report


def batch_prompts(
    prompts: Sequence[Prompt], tokenizer: Tokenizer, length: int, too_long: TooLong = "drop"
) -> tuple[Prompts, LengthReport]:
    """Returns prompts, left-padded to [N, length].

    With too_long="drop", longer prompts are left out; with "cut_left" they lose their beginning, but keep BOS.

    Raises:
        InputError: no prompt is left.
    """
    encoded = encode(tokenizer, [prompt.prompt for prompt in prompts], "prompts", prompts=True)
    fitting, prompts_cut = _fit(encoded, length, too_long, tokenizer)
    index = [i for i, ids in enumerate(fitting) if ids is not None]
    _check_any(index, encoded, "prompt_length", length)
    tokens, mask = _pad_right([fitting[i][::-1] for i in index], length, tokenizer.pad_id)
    report = LengthReport(len(encoded), len(encoded) - len(index), 0, max(map(len, encoded)), prompts_cut)
    return Prompts(tokens[:, ::-1].copy(), mask[:, ::-1].copy(), np.array(index, np.int32)), report


def _fit(prompts: Sequence[Ids], limit: int, too_long: TooLong, tokenizer: Tokenizer) -> tuple[list[Ids | None], int]:
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


class _Encoded(NamedTuple):
    """A ranking without what is left out of it, and the ids that are kept."""

    ranking: Ranking
    prompt: Ids
    answers: list[Ids]
    cut: list[bool]  # which of them lost their end


def _encode_rankings(
    rankings: Sequence[Ranking],
    tokenizer: Tokenizer,
    length: int,
    limit: int,
    too_long: TooLong,
    *,
    empty: bool = False,
) -> tuple[list[_Encoded], LengthReport]:
    """The rankings whose prompts fit and that still compare something, completions cut to what the prompt leaves of `length`.

    A completion has its ids as they were sampled, if they were. A finished one has EOS, whichever token ended it: that is
    where a reward model learned to give its score. The rule for completions that are equal once they are cut is that for
    texts which are equal as they are read (see `records`).

    Args:
        empty: whether there may be none.
    """
    prompts = encode(tokenizer, [ranking.prompt for ranking in rankings], "prompts", prompts=True)
    fitting, prompts_cut = _fit(prompts, limit, too_long, tokenizer)
    texts = [text for ranking in rankings if ranking.sampled is None for text in ranking.completions]
    encoded = iter(encode(tokenizer, texts, "completions"))
    if not empty:
        _check_any([prompt for prompt in fitting if prompt is not None], prompts, "prompt_length", limit)
    found, cut, repeats, longest = [], 0, 0, 0
    for ranking, whole, prompt in zip(rankings, prompts, fitting):
        finished = ranking.finished or (True,) * len(ranking.completions)
        own = (
            [next(encoded) for _ in finished]
            if ranking.sampled is None
            else [np.array(ids[:-1] if ended else ids, np.int32) for ids, ended in zip(ranking.sampled, finished)]
        )
        own = [np.append(ids, np.int32(tokenizer.eos_id)) if ended else ids for ids, ended in zip(own, finished)]
        longest = max(longest, len(whole) + max(map(len, own)))
        if prompt is None:
            continue
        answers = [ids[: length - len(prompt)] for ids in own]
        were_cut = [len(kept) < len(ids) for kept, ids in zip(answers, own)]
        places = without_repeats([ids.tobytes() for ids in answers], ranking.ranks)
        cut += sum(were_cut)
        repeats += len(own) - len(places)
        if len(places) > 1 or len(own) == 1:
            found.append(
                _Encoded(ranking.of(places), prompt, [answers[n] for n in places], [were_cut[n] for n in places])
            )
    if not found and not empty:
        raise InputError(
            f"in every ranking the completions are equal after they are cut to {length} tokens with their prompt; "
            "raise completion_length"
        )
    return found, LengthReport(len(prompts), len(prompts) - len(found), cut, longest, prompts_cut, repeats)


def _prompt_limit(length: int, prompt_length: int | None) -> int:
    """Returns the largest length of a prompt; raises InputError if it leaves no room for a completion."""
    limit = length - 1 if prompt_length is None else prompt_length
    if not 0 < limit < length:
        raise InputError(
            f"prompt_length={limit} must be from 1 to {length - 1}: a sequence has {length} tokens, and a completion "
            "needs at least one"
        )
    return limit


def _check_any(kept: Sequence, prompts: Sequence[Ids], name: str, limit: int) -> None:
    """Raises InputError if there are no records, or none that fits `limit`, the value of the field `name`."""
    if not prompts:
        raise InputError("there are no records to batch")
    if not kept:
        raise InputError(
            f"all {len(prompts)} prompts are longer than {name}={limit}: raise it to at least "
            f"{min(map(len, prompts))}, the tokens of the shortest prompt"
        )


def _pad_right(rows: Sequence[Ids], length: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns padded rows: tokens i32[N, length] and mask bool[N, length], True on real tokens."""
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(length) < lengths[:, None]
    tokens = np.full((len(rows), length), pad_id, np.int32)
    tokens[mask] = np.concatenate([np.asarray(row, np.int32) for row in rows])
    return tokens, mask
