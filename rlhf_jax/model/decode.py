"""Cached decoding: one forward pass over the prompts, then token by token against the cached keys and values.

Shapes: B batch, P prompt, S cache length, L layers, G key-value heads, Dh head width, D embed.
"""

import math

import jax
import jax.numpy as jnp
from flax import struct

from rlhf_jax.model import Block, Norm, Transformer, TransformerConfig, positions_from_mask, rotary


@struct.dataclass
class Cache:
    """Keys and values of the tokens read so far.

    With unrolled layers each layer has its own array, so that a step updates it in place. With scanned layers they
    share a stacked array [L, B, G, S, Dh], so that the program does not grow with the number of layers.
    """

    keys: tuple[jax.Array, ...] | jax.Array  # L x [B, G, S, Dh]
    values: tuple[jax.Array, ...] | jax.Array  # L x [B, G, S, Dh]
    valid: jax.Array  # bool[B, S], True at slots that hold a real token


def prefill(config: TransformerConfig, params: dict, tokens, mask, cache_length: int) -> tuple[jax.Array, Cache]:
    """Runs the prompts through the model; returns the last hidden states [B, D] and a cache of length S.

    Args:
      config: shape of the model.
      params: parameters of the model.
      tokens: i32[B, P], padded on the left, so that the last column is a real token in every row.
      mask: bool[B, P], True on real tokens.
      cache_length: S.
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
    """Returns the layers' parameters in the form that `decode_step` takes.

    Unrolled layers are sliced here once, rather than at every step.
    """
    if config.scan_layers:
        return params["layers"]
    return [jax.tree.map(lambda p: p[layer], params["layers"]) for layer in range(config.num_layers)]


def decode_step(
    config: TransformerConfig, params: dict, layers: dict | list[dict], tokens, positions, cache: Cache, index
) -> tuple[jax.Array, Cache]:
    """Reads one token per row; returns the hidden states [B, D] and the cache with that token in slot `index`.

    Args:
      config: shape of the model.
      params: parameters of the model.
      layers: the layers' parameters, from `decode_layers`.
      tokens, positions: i32[B].
      cache: keys and values of the tokens before.
      index: cache slot of the token.
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
