"""Cached decoding: the prompts in one forward, then token by token against their keys and values.

Shapes: B batch, P prompt, S cache length, L layers, G key-value heads, Dh head width, D embed.
"""

import math

import jax
import jax.numpy as jnp
from flax import struct

from rlhf_jax.model import Block, Norm, Transformer, TransformerConfig, positions_from_mask, rotary


@struct.dataclass
class Cache:
    """Keys and values already computed.

    Unrolled layers have an array each, so that a step updates it in place; scanned ones share a
    stacked array [L, B, G, S, Dh], so that the program does not grow with the layers.
    """

    keys: tuple[jax.Array, ...] | jax.Array  # L x [B, G, S, Dh]
    values: tuple[jax.Array, ...] | jax.Array  # L x [B, G, S, Dh]
    valid: jax.Array  # bool[B, S]


def prefill(config: TransformerConfig, params: dict, tokens, mask, cache_length: int) -> tuple[jax.Array, Cache]:
    """Run the prompts i32[B, P], bool[B, P]; returns the last hidden state [B, D] and a cache of length S.

    The prompts are padded on the left, so the last column is real in every row.
    """
    model = Transformer(config, head="lm")
    hidden, (keys, values) = model.apply(
        {"params": params}, tokens, positions_from_mask(mask), mask.astype(jnp.int32), with_cache=True
    )
    room = cache_length - tokens.shape[1]

    def extend(x):  # [..., P, G, Dh] -> [..., G, S, Dh]
        x = x.swapaxes(-3, -2)
        return jnp.pad(x, ((0, 0),) * (x.ndim - 2) + ((0, room), (0, 0)))

    stored = extend if config.scan_layers else lambda stacked: tuple(map(extend, stacked))
    valid = jnp.pad(mask, ((0, 0), (0, room)))
    return hidden[:, -1], Cache(stored(keys), stored(values), valid)


def decode_layers(config: TransformerConfig, params: dict) -> dict | list[dict]:
    """The layers' parameters as decode_step wants them; unrolled ones are sliced here and not at every step."""
    if config.scan_layers:
        return params["layers"]
    return [jax.tree.map(lambda p: p[layer], params["layers"]) for layer in range(config.num_layers)]


def decode_step(
    config: TransformerConfig, params: dict, layers: dict | list[dict], tokens, positions, cache: Cache, index
) -> tuple[jax.Array, Cache]:
    """One token a row, tokens and positions i32[B], into cache slot `index` -> hidden [B, D], cache.

    Args:
      layers: from decode_layers.
    """
    x = params["embedding"].astype(config.dtype)[tokens][:, None]
    if config.embedding_scale:
        x = x * jnp.asarray(math.sqrt(config.embed_dim), x.dtype)
    if config.positions == "learned":
        x = x + params["positions"].astype(config.dtype)[positions + config.position_offset][:, None]
    valid = cache.valid.at[:, index].set(True)
    turns = rotary(config, positions[:, None])

    def decode(layer, x, remember):
        return Block(config).apply({"params": layer}, x, turns, remember, valid, method=Block.decode)

    def write(memory, new, place):
        return jax.lax.dynamic_update_slice(memory, new.astype(memory.dtype), place)

    if config.scan_layers:

        def one(carry, numbered):
            x, keys, values = carry
            number, layer = numbered

            def remember(k, v):
                nonlocal keys, values
                place = (number, 0, 0, index, 0)
                keys, values = write(keys, k[None], place), write(values, v[None], place)
                return keys[number], values[number]

            x = decode(layer, x, remember)
            return (x, keys, values), None

        numbers = jnp.arange(config.num_layers)
        (x, keys, values), _ = jax.lax.scan(one, (x, cache.keys, cache.values), (numbers, layers))
    else:
        keys, values = list(cache.keys), list(cache.values)
        for number, layer in enumerate(layers):

            def remember(k, v, number=number):
                place = (0, 0, index, 0)
                keys[number], values[number] = write(keys[number], k, place), write(values[number], v, place)
                return keys[number], values[number]

            x = decode(layer, x, remember)
        keys, values = tuple(keys), tuple(values)
    x = Norm(config).apply({"params": params["final_norm"]}, x)
    return x[:, 0], Cache(keys, values, valid)
