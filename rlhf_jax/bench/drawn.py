"""Drawn lengths of completions, as a policy's are: most are short, and a few run to the end."""

import numpy as np

_MEAN = 130 / 1024  # of the completion length: the outputs of InstructGPT's policies have 130 tokens in the mean
_SIGMA = 1.0


def drawn_lengths(rows: int, completion_length: int) -> np.ndarray:
    """Returns lengths i32[B], 1 to C, always the same: log-normal with a mean of 130 / 1024 of C before the cap."""
    mu = np.log(_MEAN * completion_length) - _SIGMA**2 / 2
    drawn = np.random.default_rng(1).lognormal(mu, _SIGMA, rows)
    return np.clip(np.rint(drawn), 1, completion_length).astype(np.int32)
