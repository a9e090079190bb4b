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


def parts(values, strata=None) -> Parts | None:
    """Returns the components of variance of f[S, P], a number of S seeds for the same P prompts.

    It is the analysis of variance of two crossed random factors (Searle, Casella and McCulloch 1992, Variance Components,
    section 4.3); an estimate below 0 becomes 0. The variance of a seed's mean over prompts is seeds + rest / P, and the mean
    over prompts has the further variance prompts / P, which all seeds share. Other prompts would be of the same strata, so what
    strata differ by is in neither of the two.

    Args:
      values: f[S, P].
      strata: [P], the stratum of each prompt, such as its task; None: all are of one.

    Returns:
      The components; None for fewer than two seeds, or a stratum of fewer than two prompts.
    """
    values = np.asarray(values, float)
    if values.ndim != 2 or min(values.shape) < 2:
        return None
    seeds, prompts = values.shape
    of_prompts = rest = 0.0  # the means of the strata's own, each with the weight of its prompts
    strata = np.zeros(prompts) if strata is None else np.asarray(strata)
    for stratum in np.unique(strata):
        among = values[:, strata == stratum]
        size = among.shape[1]
        if size < 2:
            return None
        own = among - among.mean(1, keepdims=True) - among.mean(0) + among.mean()
        left = (own**2).sum() / ((seeds - 1) * (size - 1))
        rest += left * size / prompts
        of_prompts += (among.mean(0).var(ddof=1) - left / seeds) * size / prompts
    of_seeds = values.mean(1).var(ddof=1) - rest / prompts
    return Parts(max(0.0, float(of_seeds)), max(0.0, float(of_prompts)), float(rest))
