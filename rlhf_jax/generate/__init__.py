"""Sampling: prompts are read, and continued token by token until each completion has ended."""

from rlhf_jax.generate.draw import inverse_cdf, noise
from rlhf_jax.generate.layout import Layout, decode_shardings
from rlhf_jax.generate.rollout import Rollout, ended_by, is_end, sampled, texts
from rlhf_jax.generate.sampler import Sampler, sample
from rlhf_jax.generate.sizes import Sizes
from rlhf_jax.generate.slots import Decoder

__all__ = [
    "Decoder",
    "Layout",
    "Sizes",
    "Rollout",
    "Sampler",
    "decode_shardings",
    "ended_by",
    "inverse_cdf",
    "is_end",
    "noise",
    "sample",
    "sampled",
    "texts",
]
