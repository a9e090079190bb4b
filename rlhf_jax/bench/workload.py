"""A unit of the benchmark, and what all units are made of: models, tokens and coefficients from the config."""

import dataclasses
import resource
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from rlhf_jax import chosen, ppo, sharding
from rlhf_jax.model import TransformerConfig, attention

NEVER = -1  # no token has this id: as eos_id it lets every completion run to its full length


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a part of a work asks of the machine at least, by formula.

    Attributes:
        flops: model FLOPs (see model/work.py).
        bytes: bytes that must be read, where the memory is what limits the part; 0 elsewhere.
    """

    flops: float
    bytes: float = 0.0


@dataclasses.dataclass(frozen=True)
class Workload:
    """Something to time.

    Attributes:
        run: does the work once, until its results are ready; returns the seconds of each part by name.
        tokens: number of tokens that a run handles, for tokens/s.
        shape: the numbers that set the size of a run, for the reader.
        costs: what the parts cost; parts that are not limited by the device have none.
        planned: bytes that it takes by the planner's formulas; 0 where there are none.
        found: what the runs computed, by name, to compare with what others compute.
    """

    run: Callable[[], dict[str, float]]
    tokens: int
    shape: dict[str, int]
    costs: dict[str, Cost] = dataclasses.field(default_factory=dict)
    planned: float = 0.0
    found: dict[str, list] = dataclasses.field(default_factory=dict)


def timed(name: str, function: Callable, *arguments) -> tuple:
    """Calls a function and waits for its arrays; returns its result and {name: seconds}."""
    start = time.perf_counter()
    result = jax.block_until_ready(function(*arguments))
    return result, {name: time.perf_counter() - start}


def rounded(seconds: float) -> float:
    """Returns a number rounded to four significant digits: a step may take a second or a few microseconds."""
    return float(f"{seconds:.4g}")


def model_of(config: ml_collections.ConfigDict) -> TransformerConfig:
    """Returns the shape of the benchmark's models; fields that the config leaves out are those that suit the device."""
    platform, given = jax.devices()[0].platform, dict(config.model)
    dtype = given.get("dtype", "float32" if platform == "cpu" else "bfloat16")
    found = dict(
        dtype=dtype,
        attention="blocked" if platform == "cpu" else attention.choose("auto", platform, dtype),
        scan_layers=chosen.loops(platform, given["num_layers"]),
    )
    return TransformerConfig(**found | given)


def peak_bytes() -> int:
    """Returns the peak of the device's memory in bytes, or of this process's memory if the device does not count it."""
    stats = jax.devices()[0].memory_stats()
    return stats["peak_bytes_in_use"] if stats else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def tokens_of(config: ml_collections.ConfigDict, shape) -> np.ndarray:
    """Returns random token ids, i32 of the given shape, always the same."""
    return np.random.default_rng(0).integers(config.model.vocab_size, size=shape, dtype=np.int32)


def one_device() -> jax.sharding.Mesh:
    """Returns a mesh of the first device."""
    return sharding.make_mesh(devices=jax.devices()[:1])


def episode_shape(config: ml_collections.ConfigDict) -> dict[str, int]:
    """Returns the number of episodes and their lengths in tokens, for `Workload.shape`."""
    return {name: config[name] for name in ("episodes", "prompt_length", "completion_length")}


def coefficients(ptx_coef: float = 0.0) -> ppo.Coefficients:
    """Returns coefficients of PPO; their values do not change the time of a run."""
    numbers = dict(
        ptx_coef=ptx_coef,
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
