"""Builders of arrays from demonstrations, documents and prompts.

Shapes: N rows, T tokens of a sequence.
"""

import pathlib
from collections.abc import Sequence

import numpy as np

from rlhf_jax.data import fitting
from rlhf_jax.data.batches import Batch, LengthReport, Prompts
from rlhf_jax.data.encoding import encode, encode_once
from rlhf_jax.data.fitting import LongCompletions, TooLong, check_any, fit, pad_right, prompt_limit
from rlhf_jax.data.records import Demonstration, Document, Prompt
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.runtime.errors import InputError


def batch_demonstrations(
    demonstrations: Sequence[Demonstration],
    tokenizer: Tokenizer,
    length: int,
    prompt_length: int | None = None,
    too_long: TooLong = "drop",
    prompt_targets: bool = False,
    long_completions: LongCompletions = "cut",
) -> tuple[Batch, LengthReport]:
    """Returns rows of prompt + completion + EOS, right-padded to [N, length]; completion and EOS are the targets.

    Args:
      demonstrations: the records.
      tokenizer: the tokenizer.
      length: T, in tokens.
      prompt_length: largest length of a prompt, in tokens; by default length - 1.
      too_long: "drop" leaves out demonstrations with a longer prompt; "cut_left" removes the beginning of the prompt
        (see `batch_prompts`).
      prompt_targets: whether the prompt's tokens are targets too, except for the first of the row.
      long_completions: "cut" cuts the end of a completion that does not fit, which then has no EOS; "drop" leaves out
        its demonstration.

    Raises:
      InputError: no demonstration is left.
    """
    limit = prompt_limit(length, prompt_length)
    prompts = encode(tokenizer, [d.prompt for d in demonstrations], "prompts", prompts=True)
    shortened, prompts_cut = fit(prompts, limit, too_long, tokenizer)
    completions = encode(tokenizer, [d.completion for d in demonstrations], "completions")
    rows, starts, sizes = [], [], []
    for prompt, completion in zip(shortened, completions):
        if prompt is not None:
            sizes.append(len(prompt) + len(completion) + 1)
            if sizes[-1] <= length or long_completions == "cut":
                rows.append(np.concatenate([prompt, completion, [tokenizer.eos_id]])[:length])
                starts.append(
                    1 if prompt_targets else max(1, len(prompt))
                )  # token 0 is no target, because nothing predicts it
    check_any(sizes, prompts, "prompt_length", limit)
    long = fitting.long_completions(sizes, limit, length, long_completions)
    if not rows:
        raise InputError(f"no completion fits behind its prompt with {long.said('completion_length')}; raise it")
    tokens, mask = pad_right(rows, length, tokenizer.pad_id)
    column = np.arange(length, dtype=np.int32)
    batch = Batch(
        tokens=tokens,
        loss_mask=(mask & (column >= np.array(starts)[:, None])).astype(np.float32),
        segment_ids=mask.astype(np.int32),
        positions=np.where(mask, column, 0),
    )
    longest = max(len(p) + len(c) + 1 for p, c in zip(prompts, completions))
    cut = long.count if long and long_completions == "cut" else 0
    long_prompts = fitting.long_prompts(prompts, limit, too_long)
    dropped = len(prompts) - len(rows)
    return batch, LengthReport(len(prompts), dropped, cut, longest, prompts_cut, 0, long_prompts, long)


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


def batch_prompts(
    prompts: Sequence[Prompt], tokenizer: Tokenizer, length: int, too_long: TooLong = "drop"
) -> tuple[Prompts, LengthReport]:
    """Returns prompts, left-padded to [N, length].

    With too_long="drop", longer prompts are left out; with "cut_left" they lose their beginning, but keep BOS.

    Raises:
        InputError: no prompt is left.
    """
    encoded = encode(tokenizer, [prompt.prompt for prompt in prompts], "prompts", prompts=True)
    shortened, prompts_cut = fit(encoded, length, too_long, tokenizer)
    index = [i for i, ids in enumerate(shortened) if ids is not None]
    check_any(index, encoded, "prompt_length", length)
    tokens, mask = pad_right([shortened[i][::-1] for i in index], length, tokenizer.pad_id)
    long = fitting.long_prompts(encoded, length, too_long)
    report = LengthReport(len(encoded), len(encoded) - len(index), 0, max(map(len, encoded)), prompts_cut, 0, long)
    return Prompts(tokens[:, ::-1].copy(), mask[:, ::-1].copy(), np.array(index, np.int32)), report
