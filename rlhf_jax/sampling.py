"""The samplers of a run's models."""

import functools

from rlhf_jax import generate
from rlhf_jax.model import TransformerConfig
from rlhf_jax.run import Run


def sampler(run: Run, completion_length: int, parts: int = 1, ends: tuple[int, ...] = ()) -> generate.Sampler:
    """Returns the sampler of a run's model, cached so that its programs are compiled once per process.

    Args:
      run: the run, with its model, mesh and tokenizer.
      completion_length: largest number of tokens of a completion.
      parts: number of parts in which a batch is sampled, one after another.
      ends: tokens that end a completion, in addition to the tokenizer's.
    """
    tokenizer, rules = run.tokenizer, tuple(run.rules.items())
    ends = tuple(dict.fromkeys((*tokenizer.end_ids, *ends)))
    return _sampler(run.model, run.mesh, rules, completion_length, ends, tokenizer.pad_id, parts)


@functools.lru_cache(maxsize=32)
def _sampler(shape: TransformerConfig, mesh, rules: tuple, completion_length: int, eos_id, pad_id: int, parts: int):
    return generate.Sampler(
        shape, mesh, dict(rules), completion_length=completion_length, eos_id=eos_id, pad_id=pad_id, parts=parts
    )
