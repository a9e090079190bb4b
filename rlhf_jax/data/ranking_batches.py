"""Builders of arrays from rankings: each completion in a row of its own, or all completions of a prompt in one row.

Shapes: N rows, K completions of a prompt, T tokens of a sequence.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rlhf_jax.data import fitting
from rlhf_jax.data.batches import Comparisons, LengthReport, PackedComparisons
from rlhf_jax.data.encoding import encode
from rlhf_jax.data.fitting import Ids, LongCompletions, TooLong, check_any, fit, pad_right, prompt_limit
from rlhf_jax.data.loader import take
from rlhf_jax.data.records import Ranking, without_repeats
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.model.attention import PREFIX
from rlhf_jax.runtime.errors import InputError


def batch_rankings(
    rankings: Sequence[Ranking],
    tokenizer: Tokenizer,
    length: int,
    prompt_length: int | None = None,
    completions: int | None = None,
    too_long: TooLong = "drop",
    long_completions: LongCompletions = "cut",
) -> tuple[Comparisons, LengthReport]:
    """Returns each completion behind its prompt, with EOS if it is finished, right-padded to [N, K, length].

    A completion that does not fit is cut, and then has no EOS, or left out. A completion that then equals an earlier one
    of another rank is left out, and a ranking of which one completion is left is dropped.

    Args:
        rankings: the records.
        tokenizer: the tokenizer.
        length: T, in tokens.
        prompt_length: largest length of a prompt, in tokens; by default length - 1.
        completions: K; by default the number of completions of the largest ranking.
        too_long: "drop" leaves out rankings with a longer prompt; "cut_left" removes the beginning of the prompt.
        long_completions: "cut" cuts the end of a completion that does not fit; "drop" leaves the completion out.

    Raises:
        InputError: a ranking has more than K completions, or no ranking is left.
    """
    limit = prompt_limit(length, prompt_length)
    largest = max((len(ranking.completions) for ranking in rankings), default=0)
    if completions is None:
        completions = largest
    elif largest > completions:
        raise InputError(
            f"a ranking has {largest} completions, so completions={completions} must be at least {largest}"
        )
    kept, report = _encode_rankings(rankings, tokenizer, length, limit, too_long, long_completions)
    rows, ranks, targets = [], [], []
    for ranking, prompt, answers, _ in kept:
        absent = completions - len(answers)
        rows += [np.concatenate([prompt, answer]) for answer in answers] + [[]] * absent
        ranks.append([*ranking.ranks, *[0] * absent])
        targets.append([*(ranking.scores or ()), *[0.0] * absent])
    shape = (len(ranks), completions, length)
    tokens, mask = pad_right(rows, length, tokenizer.pad_id)
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
    long_completions: LongCompletions = "cut",
) -> tuple[PackedComparisons, LengthReport]:
    """Returns the completions of `batch_rankings`, packed: all completions of a prompt in one row, one after another.

    In the report, `cut` counts the completions that were cut or left out, and `longest` is the length of the longest
    row before any was left out.

    Args:
        rankings: the records.
        tokenizer: the tokenizer.
        length: largest length of a prompt with one completion, in tokens.
        prompt_length: largest length of a prompt, in tokens.
        row_length: T, in tokens; 0 takes the length of the longest row. A completion that does not fit into the rest of
            its row is left out. A ranking with fewer than two completions left is dropped.
        too_long: "drop" leaves out rankings with a longer prompt; "cut_left" removes the beginning of the prompt.
        long_completions: "cut" cuts the end of a completion that does not fit; "drop" leaves the completion out.

    Raises:
        InputError: no ranking is left.
    """
    limit = prompt_limit(length, prompt_length)
    kept, report = _encode_rankings(rankings, tokenizer, length, limit, too_long, long_completions)
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
        pad_right(column, room, fill)[0] for column, fill in zip(zip(*rows), (tokenizer.pad_id, 0, 0))
    )
    ends, ranks, targets = (
        np.array(column, dtype) for column, dtype in zip(zip(*columns), (np.int32, np.int32, np.float32))
    )
    targets = targets if all(ranking.scores for ranking in rankings) else None
    packed = PackedComparisons(tokens, segments, positions, ends, ranks, ranks > 0, targets)
    report = dataclasses.replace(report, dropped=report.given - len(rows), cut=report.cut + left_out, longest=longest)
    return packed, report


def joined(examples: Comparisons | PackedComparisons) -> Comparisons | PackedComparisons:
    """Returns rankings of the same completions by several labelers as one row, so that each completion is computed once.

    Its ranks are i32[N, L, K]. A row with fewer than L labelers is filled up with rankings in which all completions tie,
    which say nothing. Where no two rankings are of the same completions, they are returned as they are, i32[N, K].
    """
    ends = examples.ends if isinstance(examples, PackedComparisons) else examples.mask
    found: dict[bytes, list[int]] = {}
    for place, (row, end) in enumerate(zip(examples.tokens, ends)):
        found.setdefault(row.tobytes() + end.tobytes(), []).append(place)
    if len(found) == len(ends):
        return examples
    ranks = np.ones((len(found), max(map(len, found.values())), examples.ranks.shape[-1]), np.int32)
    for own, places in zip(ranks, found.values()):
        own[: len(places)] = examples.ranks[places]
    return take(examples, np.array([first for first, *_ in found.values()])).replace(ranks=ranks)


def kept_rankings(
    rankings: Sequence[Ranking],
    tokenizer: Tokenizer,
    length: int,
    prompt_length: int,
    too_long: TooLong = "drop",
    long_completions: LongCompletions = "cut",
) -> tuple[list[Ranking], LengthReport]:
    """Returns the rankings that `batch_rankings` makes arrays of, without the completions that it leaves out.

    The list may be empty.
    """
    limit = prompt_limit(length, prompt_length)
    kept, report = _encode_rankings(rankings, tokenizer, length, limit, too_long, long_completions, empty=True)
    return [one.ranking for one in kept], report


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
    long_completions: LongCompletions,
    *,
    empty: bool = False,
) -> tuple[list[_Encoded], LengthReport]:
    """The rankings whose prompts fit and that still compare something, completions as long as the prompt leaves of `length`.

    A completion has its ids as they were sampled, if they were. A finished one has EOS, whichever token ended it: that is
    where a reward model learned to give its score. The rule for completions that are equal once they are cut is that for
    texts which are equal as they are read (see `records`).

    Args:
        empty: whether there may be none.
    """
    prompts = encode(tokenizer, [ranking.prompt for ranking in rankings], "prompts", prompts=True)
    shortened, prompts_cut = fit(prompts, limit, too_long, tokenizer)
    texts = [text for ranking in rankings if ranking.sampled is None for text in ranking.completions]
    encoded = iter(encode(tokenizer, texts, "completions"))
    if not empty:
        check_any([prompt for prompt in shortened if prompt is not None], prompts, "prompt_length", limit)
    found, cut, repeats, longest, sizes = [], 0, 0, 0, []
    for ranking, whole, prompt in zip(rankings, prompts, shortened):
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
        sizes += [len(prompt) + len(ids) for ids in own]
        answers = [ids[: length - len(prompt)] for ids in own]
        were_cut = [len(kept) < len(ids) for kept, ids in zip(answers, own)]
        places = [place for place in range(len(own)) if not were_cut[place] or long_completions == "cut"]
        cut += sum(were_cut[place] for place in places)
        different = without_repeats([answers[n].tobytes() for n in places], [ranking.ranks[n] for n in places])
        repeats += len(places) - len(different)
        places = [places[n] for n in different]
        if len(places) > 1 or len(places) == len(own) == 1:
            found.append(
                _Encoded(ranking.of(places), prompt, [answers[n] for n in places], [were_cut[n] for n in places])
            )
    if not found and not empty:
        raise InputError(
            f"in every ranking the completions are equal after they are cut to {length} tokens with their prompt; "
            "raise completion_length"
            if long_completions == "cut"
            else f"in no ranking do two completions fit into {length} tokens with their prompt; raise completion_length"
        )
    long_prompts = fitting.long_prompts(prompts, limit, too_long)
    long = fitting.long_completions(sizes, limit, length, long_completions)
    dropped = len(prompts) - len(found)
    return found, LengthReport(len(prompts), dropped, cut, longest, prompts_cut, repeats, long_prompts, long)
