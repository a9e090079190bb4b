"""Cached decoding: one forward pass over the prompts, then token by token against the cached keys and values.

A cache is written in pages and read in chunks. The keys and values of new tokens are first collected in a page of their
own, in which all rows are at the same place, so that a step writes it in place. A full page is then stored behind the
row's other tokens, wherever they end. The chunks are separate arrays, so that a step reads only as many of them as are
filled: a part of an array would be copied before it is read.

Shapes: B batch, P prompt, L layers, G key-value heads, Dh head width, D embed, Q places of a chunk, R places of a page.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct

from rlhf_jax.model.config import TransformerConfig
from rlhf_jax.model.transformer import Block, Norm, positions_from_mask, rotary

_CHUNK = 48  # least number of places of a chunk: each adds to the program a loop that reads one chunk more
_CHUNKS = 8  # largest number of chunks
_FEWEST = 2  # least number of them where layers are unrolled
_UNROLLED = 192  # largest number of chunks in all unrolled layers together
_JOINED = 2  # largest number of chunks of a cache whose rows have become fewer

# With unrolled layers each layer has its own array. With scanned layers the arrays are stacked, so that the program does
# not grow with the number of layers.
Stored = tuple[jax.Array, ...] | jax.Array  # L x [B, G, n, Dh], or [L, B, G, n, Dh]


@struct.dataclass
class Page:
    """Keys and values of the newest tokens, at the same places in all rows."""

    keys: Stored  # n = R
    values: Stored


@struct.dataclass
class Cache:
    """Keys and values of the tokens before the page; the places of a row from `first` to `end` are filled."""

    keys: tuple[Stored, ...]  # by chunk, n = Q
    values: tuple[Stored, ...]
    first: jax.Array  # i32[B]
    end: jax.Array  # i32[B], a multiple of R


def places(prompt: int, completion: int, page: int) -> int:
    """Returns the number of places that a row of a cache needs for a prompt and a completion of these lengths."""
    return math.ceil(prompt / page) * page + math.ceil((completion - 1) / page) * page


def most_chunks(config: TransformerConfig) -> int:
    """Returns the largest number of chunks of a cache.

    A program of unrolled layers has each layer once for every number of chunks that it can read. So a deep model has
    fewer chunks, and its program takes as long to compile as that of a shallow one.
    """
    return _CHUNKS if config.scan_layers else min(max(_UNROLLED // config.num_layers, _FEWEST), _CHUNKS)


def chunks(length: int, page: int, most: int = _CHUNKS) -> tuple[int, ...]:
    """Returns the first places of at most `most` chunks of a cache of `length` places, and `length` after them."""
    number = min(max(length // _CHUNK, 1), most)
    size = math.ceil(length / (number * page)) * page
    return (*range(0, length, size), length)


def joined(bounds: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the bounds of the chunks of a narrowed cache, whose neighbours are joined (see `narrowed`)."""
    return (*bounds[: -1 : _neighbours(len(bounds) - 1)], bounds[-1])


def _neighbours(chunks: int) -> int:
    """Returns the number of chunks that are joined into one."""
    return math.ceil(chunks / _JOINED)


def _stored(config: TransformerConfig, shape: tuple[int, ...]) -> Stored:
    if config.scan_layers:
        return jnp.zeros((config.num_layers, *shape), config.dtype)
    return tuple(jnp.zeros(shape, config.dtype) for _ in range(config.num_layers))


def empty_page(config: TransformerConfig, rows: int, page: int) -> Page:
    """Returns a page without tokens."""
    shape = rows, config.kv_heads, page, config.head_dim
    return Page(_stored(config, shape), _stored(config, shape))


def empty_cache(config: TransformerConfig, rows: int, bounds: tuple[int, ...]) -> Cache:
    """Returns a cache without tokens, whose chunks have these bounds (see `chunks`)."""

    def stored():
        sizes = (end - start for start, end in zip(bounds, bounds[1:]))
        return tuple(_stored(config, (rows, config.kv_heads, size, config.head_dim)) for size in sizes)

    return Cache(stored(), stored(), jnp.zeros(rows, jnp.int32), jnp.zeros(rows, jnp.int32))


def unrolls(platform: str) -> bool:
    """Whether the layers' parameters are separate arrays while a platform ("cpu", "gpu" or "tpu") samples.

    On a GPU, XLA copies each layer of stacked parameters at every step before it multiplies by them.
    """
    return platform == "gpu"


def decode_layers(config: TransformerConfig, params: dict) -> dict | tuple[dict, ...]:
    """Returns the layers' parameters in the form that `prefill` and `decode_step` take: stacked, or one dict a layer.

    Unrolled layers are sliced here once, rather than at every step.
    """
    layers = params["layers"]
    if config.scan_layers or isinstance(layers, tuple):
        return layers
    return tuple(jax.tree.map(lambda p: p[layer], layers) for layer in range(config.num_layers))


def _embedded(config: TransformerConfig, params: dict, tokens, positions) -> jax.Array:
    """Returns the inputs [B, T, D] of the first layer for tokens and positions i32[B, T]."""
    x = params["embedding"].astype(config.dtype)[tokens]
    if config.embedding_scale:
        x = x * jnp.asarray(math.sqrt(config.embed_dim), x.dtype)
    if config.positions == "learned":
        x = x + params["positions"].astype(config.dtype)[positions + config.position_offset]
    return x


def prefill(config: TransformerConfig, params: dict, layers, tokens, mask) -> tuple[jax.Array, tuple[Stored, Stored]]:
    """Runs prompts through the model; returns the hidden states of their last tokens [B, D], and (keys, values).

    Args:
      config: shape of the model.
      params: parameters of the model.
      layers: the layers' parameters, from `decode_layers`.
      tokens: i32[B, P]; the real tokens of a row stand together, anywhere in it.
      mask: bool[B, P], True on real tokens.
    """
    positions, segment_ids = positions_from_mask(mask), mask.astype(jnp.int32)
    x, turns = _embedded(config, params, tokens, positions), rotary(config, positions)

    def one(x, layer):
        x, memory = Block(config).apply({"params": layer}, x, turns, segment_ids, 0.0, True)
        return x, tuple(x.swapaxes(-3, -2) for x in memory)

    if isinstance(layers, tuple):
        found = []
        for layer in layers:
            x, memory = one(x, layer)
            found.append(memory)
        memory = tuple(zip(*found))
    else:
        x, memory = jax.lax.scan(one, x, layers)
    last = tokens.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
    x = jnp.take_along_axis(x, last[:, None, None], axis=1)
    return Norm(config).apply({"params": params["final_norm"]}, x)[:, 0], memory


def admit(cache: Cache, rows, memory: tuple[Stored, Stored], first, end) -> Cache:
    """Returns the cache with prompts in some of its rows.

    Args:
      cache: the cache.
      rows: i32[N], the rows; a number that is not a row puts its prompt nowhere.
      memory: (keys, values) of the prompts, of N rows and P places.
      first, end: i32[N], the places that are filled by each prompt.
    """

    def put(x, new):
        width = new.shape[-2]
        place = (rows, slice(None), slice(width))
        return x.at[(slice(None),) * (x.ndim - 4) + place].set(new.astype(x.dtype), mode="drop")

    def write(stored: tuple[Stored, ...], new: Stored) -> tuple[Stored, ...]:
        written, start, width = [], 0, _places(new)
        for chunk in stored:
            stop = start + _places(chunk)
            part = jax.tree.map(lambda x: x[..., start:stop, :], new)  # noqa: B023  used at once
            written.append(jax.tree.map(put, chunk, part) if start < width else chunk)
            start = stop
        return tuple(written)

    keys, values = map(write, (cache.keys, cache.values), memory)
    return Cache(keys, values, cache.first.at[rows].set(first, mode="drop"), cache.end.at[rows].set(end, mode="drop"))


def narrowed(cache: Cache, rows) -> Cache:
    """Returns the cache of some of its rows, i32[N].

    Neighbouring chunks are joined, so that the program has fewer loops that read them.
    """
    size = _neighbours(len(cache.keys))

    def join(*parts):
        return jnp.concatenate([jnp.take(x, rows, axis=-4) for x in parts], axis=-2)

    def write(stored: tuple[Stored, ...]) -> tuple[Stored, ...]:
        return tuple(jax.tree.map(join, *stored[start : start + size]) for start in range(0, len(stored), size))

    return Cache(write(cache.keys), write(cache.values), cache.first[rows], cache.end[rows])


def _places(stored: Stored) -> int:
    return jax.tree.leaves(stored)[0].shape[-2]


def turn_page(cache: Cache, page: Page, keep) -> Cache:
    """Returns the cache with a full page behind the tokens of the rows where keep, bool[B], is True."""
    rows, size = jnp.arange(len(keep)), _places(page.keys)

    def write(stored: tuple[Stored, ...], new: Stored) -> tuple[Stored, ...]:
        written, start = [], 0
        for chunk in stored:
            pages = _places(chunk) // size
            number = (cache.end - start) // size
            # A number that is not a page of the chunk writes nothing.
            number = jnp.where(keep & (number >= 0) & (number < pages), number, pages)

            def put(x, one):
                split = x.reshape(*x.shape[:-2], pages, size, x.shape[-1])  # noqa: B023  used at once
                place = (rows, slice(None), number)  # noqa: B023
                if x.ndim == 5:  # a slice before the indices brings their axis to the front
                    place, one = (slice(None), *place), one.swapaxes(0, 1)
                return split.at[place].set(one, mode="drop", unique_indices=True).reshape(x.shape)

            written.append(jax.tree.map(put, chunk, new))
            start += _places(chunk)
        return tuple(written)

    keys, values = map(write, (cache.keys, cache.values), (page.keys, page.values))
    return dataclasses.replace(cache, keys=keys, values=values, end=cache.end + jnp.where(keep, size, 0))


def decode_step(
    config: TransformerConfig,
    params: dict,
    layers: dict | tuple[dict, ...],
    tokens,
    positions,
    cache: Cache,
    page: Page,
    place,
    read: int,
) -> tuple[jax.Array, Page]:
    """Reads one token per row; returns the hidden states [B, D], and the page with that token at `place`.

    Args:
      config: shape of the model.
      params: parameters of the model.
      layers: the layers' parameters, from `decode_layers`.
      tokens, positions: i32[B].
      cache: keys and values of the tokens before the page.
      page: those of the tokens in the page.
      place: place of the token in the page.
      read: number of chunks that are read: at least those that hold a token.
    """
    tokens, positions = tokens[:, None], positions[:, None]
    x, turns = _embedded(config, params, tokens, positions), rotary(config, positions)
    valid = _valid(cache, page, place, read)

    def decode(x, layer, memory):
        """Returns x after a layer, and the page's keys and values of it with this token."""
        *chunks, newest = memory

        def remember(*new):
            nonlocal newest
            newest = tuple(
                jax.lax.dynamic_update_slice_in_dim(x, one.astype(x.dtype), place, axis=2)
                for x, one in zip(newest, new)
            )
            return tuple(zip(*chunks, newest))

        return Block(config).apply({"params": layer}, x, turns, remember, valid, method=Block.decode), newest

    memory = (*zip(cache.keys[:read], cache.values[:read]), (page.keys, page.values))
    if isinstance(layers, tuple):
        pages = []
        for number, layer in enumerate(layers):
            x, newest = decode(x, layer, [tuple(one[number] for one in pair) for pair in memory])
            pages.append(newest)
        keys, values = zip(*pages)
    else:

        def one(x, inputs):
            x, newest = decode(x, *inputs)
            return x, [jax.lax.dynamic_slice_in_dim(one, place, 1, axis=2) for one in newest]

        x, new = jax.lax.scan(one, x, (layers, memory))
        keys, values = (
            jax.lax.dynamic_update_slice_in_dim(x, one, place, axis=3) for x, one in zip((page.keys, page.values), new)
        )
    x = Norm(config).apply({"params": params["final_norm"]}, x)
    return x[:, 0], Page(keys, values)


def _valid(cache: Cache, page: Page, place, read: int) -> Sequence[jax.Array]:
    """Returns which places of each chunk that is read, and of the page, a token attends to: bool[B, n] each."""
    found, start = [], 0
    for chunk in cache.keys[:read]:
        numbers = start + jnp.arange(_places(chunk))
        found.append((numbers >= cache.first[:, None]) & (numbers < cache.end[:, None]))
        start += len(numbers)
    newest = jnp.arange(_places(page.keys)) <= place
    return *found, jnp.broadcast_to(newest, (len(cache.end), len(newest)))
