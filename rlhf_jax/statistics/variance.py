"""The parts of a variance: seeds, prompts, and what differs from prompt to prompt in each seed."""

from typing import NamedTuple

import numpy as np


class Parts(NamedTuple):
    """Components of the variance of a number that each seed has for the same prompts.

    Attributes:
      seeds: variance between seeds, as prompts without end would show it.
      prompts: variance between prompts, as seeds without end would show it.
      rest: variance of what is left in a prompt of a seed: the sampled completion, and the prompt's answer to the seed.
    """

    seeds: float
    prompts: float
    rest: float


def parts(values) -> Parts | None:
    """Returns the components of variance of f[S, P], a number of S seeds for the same P prompts.

    It is the analysis of variance of two crossed random factors (Searle, Casella and McCulloch 1992, Variance Components,
    section 4.3); an estimate below 0 becomes 0. The variance of a seed's mean over prompts is seeds + rest / P, and the mean
    over prompts has the further variance prompts / P, which all seeds share.

    Returns:
      The components; None for fewer than two seeds or two prompts.
    """
    values = np.asarray(values, float)
    if values.ndim != 2 or min(values.shape) < 2:
        return None
    seeds, prompts = values.shape
    by_seed, by_prompt, mean = values.mean(1), values.mean(0), values.mean()
    rest = ((values - by_seed[:, None] - by_prompt + mean) ** 2).sum() / ((seeds - 1) * (prompts - 1))
    of_seeds, of_prompts = by_seed.var(ddof=1) - rest / prompts, by_prompt.var(ddof=1) - rest / seeds
    return Parts(max(0.0, float(of_seeds)), max(0.0, float(of_prompts)), float(rest))
