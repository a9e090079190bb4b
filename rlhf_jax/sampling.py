"""The samplers of a run's models."""

import dataclasses
import functools

from rlhf_jax import generate
from rlhf_jax.model import TransformerConfig
from rlhf_jax.run import Run

_ON_CPU = (512, 128), (128, 32)  # rows of a batch from which on a CPU samples so many completions at once


def sampler(
    run: Run, completion_length: int, rows: int, *, copies: int = 1, ends: tuple[int, ...] = ()
) -> generate.Sampler:
    """Returns the sampler of a run's model, cached so that its programs are compiled once per process.

    Args:
      run: the run, with its model, mesh and tokenizer.
      completion_length: largest number of tokens of a completion.
      rows: number of rows of a batch.
      copies: number of neighbouring rows that have the same prompt.
      ends: tokens that end a completion, in addition to the tokenizer's.
    """
    tokenizer, rules = run.tokenizer, tuple(run.rules.items())
    ends = tuple(dict.fromkeys((*tokenizer.end_ids, *ends)))
    slots = slots_of(run, rows)
    shape = dataclasses.replace(
        run.model, remat="none"
    )  # nothing is computed again: runs that differ in it share programs
    return _sampler(shape, run.mesh, rules, completion_length, ends, tokenizer.pad_id, slots, copies)


def slots_of(run: Run, rows: int) -> int:
    """Returns the number of completions that are sampled at once of a batch of `rows`: `config.slots`, or a choice.

    The choice is at most what was chosen for the run by its memory. On a CPU the time grows with the number of slots, those
    that wait for the longest completion included; a few slots are refilled often enough to be busy
    (docs/measurements.md). Elsewhere all rows are sampled at once.
    """
    slots = run.config.get("slots")  # work directories of older versions have none
    if slots is None:
        points = _ON_CPU if run.mesh.devices.flat[0].platform == "cpu" else ()
        return min(next((slots for least, slots in points if rows >= least), rows), run.chosen.get("slots") or rows)
    return min(slots, rows) or rows


@functools.lru_cache(maxsize=32)
def _sampler(
    shape: TransformerConfig, mesh, rules: tuple, completion_length: int, eos_id, pad_id: int, slots: int, copies: int
):
    return generate.Sampler(
        shape,
        mesh,
        dict(rules),
        completion_length=completion_length,
        eos_id=eos_id,
        pad_id=pad_id,
        slots=slots,
        copies=copies,
    )
