"""Random keys by name: without state, so that a resumed run needs only its step to draw the same numbers."""

import zlib

import jax


def named_key(seed: int, *path: str | int) -> jax.Array:
    """Returns the random key for one use, e.g. named_key(seed, "ppo", "sample", iteration).

    Each part of the path, a name or a number, is folded into the key of the seed.
    """
    key = jax.random.key(seed)
    for part in path:
        key = jax.random.fold_in(key, zlib.crc32(part.encode()) if isinstance(part, str) else part)
    return key
