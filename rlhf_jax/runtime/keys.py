"""Random keys by name: nothing stateful, so that a resumed run needs only its step."""

import zlib

import jax


def named_key(seed: int, *path: str | int) -> jax.Array:
    """The key of one use of randomness, e.g. named_key(seed, "ppo", "sample", iteration)."""
    key = jax.random.key(seed)
    for part in path:
        key = jax.random.fold_in(key, zlib.crc32(part.encode()) if isinstance(part, str) else part)
    return key
