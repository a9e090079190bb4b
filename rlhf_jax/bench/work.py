"""What is timed: a Work; and what they are made of: models, tokens and coefficients of a config of experiments/bench.py."""

import dataclasses
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from rlhf_jax import ppo, sharding
from rlhf_jax.model import TransformerConfig

NEVER = -1  # no token has this id: as eos_id it lets every completion run to its full length


@dataclasses.dataclass(frozen=True)
class Work:
    """Something to time.

    Attributes:
        run: does it once, to the end; returns the seconds of its parts (one part: of all).
        tokens: how many it handles, for tokens/s.
        shape: what makes its size, for the reader.
    """

    run: Callable[[], dict[str, float]]
    tokens: int
    shape: dict[str, int]


def timed(name: str, function: Callable, *arguments) -> tuple:
    start = time.perf_counter()
    result = jax.block_until_ready(function(*arguments))
    return result, {name: time.perf_counter() - start}


def rounded(seconds: float) -> float:
    """To four digits, however short: a step may take a second or a few microseconds."""
    return float(f"{seconds:.4g}")


def model_of(config: ml_collections.ConfigDict) -> TransformerConfig:
    return TransformerConfig(**config.model)


def tokens_of(config: ml_collections.ConfigDict, shape) -> np.ndarray:
    return np.random.default_rng(0).integers(config.model.vocab_size, size=shape, dtype=np.int32)


def one_device() -> jax.sharding.Mesh:
    return sharding.make_mesh(devices=jax.devices()[:1])


def episode_shape(config: ml_collections.ConfigDict) -> dict[str, int]:
    return {name: config[name] for name in ("episodes", "prompt_length", "completion_length")}


def coefficients() -> ppo.Coefficients:
    numbers = dict(
        ptx_coef=0.0,
        learning_rate=1e-5,
        value_learning_rate=1e-5,
        temperature=1.0,
        cliprange=0.2,
        cliprange_value=0.2,
        vf_coef=1.0,
        entropy_coef=0.0,
        gamma=1.0,
        lam=0.95,
        missing_eos_value=0.0,
        ema_decay=0.0,
        kl_target=6.0,
        kl_horizon=1e4,
    )
    return ppo.Coefficients(**{name: jnp.float32(value) for name, value in numbers.items()})
