"""What the machine itself can do, measured: the rate of a matrix product, and the rate at which memory is copied."""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

_TRIES = 5
_SIDE = {"cpu": 2048}  # of the square matrices; 8192 elsewhere
_BYTES = {"cpu": 1 << 28}  # of the array that is copied; 4 GiB elsewhere


def matrix_rate(dtype: str) -> float:
    """Returns the FLOP/s of the product of two large square matrices of this dtype, the best of some tries."""
    side = _SIDE.get(jax.devices()[0].platform, 8192)
    x = jax.random.normal(jax.random.key(0), (side, side), dtype)
    return 2.0 * side**3 / _best(jax.jit(jnp.matmul), x, x)


def copy_rate() -> float:
    """Returns the bytes/s of a copy of a large array, what is read and what is written together."""
    size = _BYTES.get(jax.devices()[0].platform, 1 << 32)
    x = jnp.zeros(size // 4, jnp.float32)
    return 2.0 * size / _best(jax.jit(jnp.negative), x)  # XLA drops a plain copy


def _best(function: Callable, *arguments) -> float:
    """Returns the seconds of the fastest call after a first one, which compiles."""
    jax.block_until_ready(function(*arguments))
    seconds = []
    for _ in range(_TRIES):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - start)
    return min(seconds)
