"""Many texts -> token ids, part by part: what the library keeps of each token beside its id is large."""

import contextlib
import functools
import hashlib
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.runtime import hosts
from rlhf_jax.runtime.errors import InputError, reason
from rlhf_jax.runtime.files import replacing
from rlhf_jax.runtime.progress import Progress

PART = 4_000_000  # characters tokenized at once


def encode(
    tokenizer: Tokenizer, texts: Sequence[str], what: str, *, starts: bool = False, prompts: bool = False
) -> list[np.ndarray]:
    """The ids of each text, i32[length].

    Args:
      what: the texts are, for the progress that is shown where there is more than one part.
      starts: whether the texts start a sequence and get BOS, where the tokenizer has one; else they
        go on after another text.
      prompts: they are prompts, and start as `Tokenizer.encode_prompts` has it.
    """
    return list(_encode(tokenizer, texts, what, starts, prompts))


def encode_once(
    folder: pathlib.Path | None, tokenizer: Tokenizer, texts: Sequence[str], what: str, *, starts: bool = False
) -> list[np.ndarray]:
    """`encode`, which keeps the ids of large data in `folder`: the next time they are mapped from disk.

    For all processes of a job; the first one writes. The folder is of one tokenizer.
    """
    if folder is None or sum(map(len, texts)) <= PART:
        return encode(tokenizer, texts, what, starts=starts)
    digest = hashlib.blake2b(f"{tokenizer.vocab_size} {starts}".encode(), digest_size=12)
    for text in texts:
        digest.update(text.encode() + b"\0")
    path = folder / f"{what}-{digest.hexdigest()}.npy"
    hosts.on_first(_keep, path, lambda: encode(tokenizer, texts, what, starts=starts))
    try:
        stream = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is damaged ({reason(error)}): delete it, and the same command makes it anew"
        ) from error
    sizes = stream[1 : stream[0] + 1].astype(np.int64)
    return np.split(stream[len(sizes) + 1 :], np.cumsum(sizes)[:-1])


def _keep(path: pathlib.Path, make: Callable[[], list[np.ndarray]]) -> None:
    """Writes how many texts, their lengths and all ids, one after another, unless they are there."""
    if path.exists():
        return
    encoded = make()
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as file:
        np.save(file, np.concatenate([[len(encoded)], [len(ids) for ids in encoded], *encoded], dtype=np.int32))


def lengths(
    tokenizer: Tokenizer, texts: Sequence[str], what: str, *, starts: bool = False, prompts: bool = False
) -> np.ndarray:
    """How many ids `encode` gives for each text, i64[N]; the ids are not kept."""
    return np.array([len(ids) for ids in _encode(tokenizer, texts, what, starts, prompts)], np.int64)


def _encode(
    tokenizer: Tokenizer, texts: Sequence[str], what: str, starts: bool, prompts: bool = False
) -> Iterator[np.ndarray]:
    head = [] if tokenizer.bos_id is None or not starts else [tokenizer.bos_id]
    others = functools.partial(tokenizer.encode_batch, continues=not starts)
    encode_part = tokenizer.encode_prompts if prompts else others
    total, done = sum(map(len, texts)), 0
    shown = Progress(f"tokenizing {what}", total // 10**6, unit="M characters") if total > PART else None
    with shown or contextlib.nullcontext():
        for part in _parts(texts):
            for ids in encode_part(part):
                yield np.array(head + ids, np.int32)
            done += sum(map(len, part))
            if shown:
                shown.update(done // 10**6)


def _parts(texts: Sequence[str]) -> Iterator[list[str]]:
    part, size = [], 0
    for text in texts:
        part.append(text)
        size += len(text)
        if size >= PART:
            yield part
            part, size = [], 0
    if part:
        yield part
