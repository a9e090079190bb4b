"""The lengths that a run takes from its data, where its config leaves them open."""

from collections.abc import Iterator

import numpy as np

from rlhf_jax.data import encoding
from rlhf_jax.data.corpus import FileCorpus
from rlhf_jax.data.fitting import holding
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.runtime.errors import InputError


def chosen(field: str, corpus: FileCorpus, tokenizer: Tokenizer) -> tuple[int, str]:
    """Returns a length for a field of the config, and a sentence that says how it was found.

    It is the length that 95 % of the texts of the training split have at most, rounded up to a multiple of 8. A prompt
    counts once. The token that ends a completion counts, too.

    Args:
      field: "prompt_length" or "completion_length".
      corpus: the files.
      tokenizer: the tokenizer of the run.

    Raises:
      InputError: the corpus has no such texts.
    """
    kind = field.partition("_")[0] + "s"
    if kind == "prompts":
        texts = [row.prompt for row in corpus.prompts("train", "ppo")] if corpus.has("prompts") else []
        found = encoding.lengths(tokenizer, texts, kind, prompts=True)
    else:
        found = 1 + encoding.lengths(tokenizer, list(_completions(corpus)), kind)
    if not len(found):
        raise InputError(f"{field}=None is measured on the data, which have no {kind}: give a number of tokens")
    length = holding(found)
    quantiles = ", ".join(f"{value:.0f}" for value in np.quantile(found, (0.5, 0.9, 0.95, 0.99, 1.0)))
    return length, (
        f"{field}={length}, because {(found <= length).mean():.1%} of {len(found):,} {kind} have at most so many tokens "
        f"(50, 90, 95, 99 and 100 % of them: {quantiles})"
    )


def _completions(corpus: FileCorpus) -> Iterator[str]:
    """Yields the completions of the training split, of demonstrations and of rankings."""
    if corpus.has("demonstrations"):
        yield from (row.completion for row in corpus.demonstrations("train"))
    if corpus.has("rankings"):
        yield from (text for row in corpus.rankings("train") for text in row.completions)
