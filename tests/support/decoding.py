"""Cached decoding of given tokens, for comparison with one forward pass over all of them."""

import jax
import jax.numpy as jnp

from rlhf_jax import model
from rlhf_jax.model import decode

PAGE = 3  # so that a few tokens fill several pages


def cached_logits(config, params, prompts, mask, completions):
    """The logits f32[B, C + 1, V] after prompts i32[B, P], and after each of the tokens i32[B, C] behind them.

    The prompts are padded on the left.
    """
    rows, length = completions.shape
    layers, width = decode.decode_layers(config, params), prompts.shape[1]
    hidden, memory = decode.prefill(config, params, layers, jnp.asarray(prompts), jnp.asarray(mask))
    behind = -width % PAGE  # so that a page ends where the prompts end
    memory = jax.tree.map(lambda x: jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(behind, 0), (0, 0)]), memory)
    bounds = decode.chunks(decode.places(width, length + 1, PAGE), PAGE)
    end = jnp.full(rows, width + behind)
    cache = decode.empty_cache(config, rows, bounds)
    cache = decode.admit(cache, jnp.arange(rows), memory, end - mask.sum(1), end)
    found, page = [hidden], decode.empty_page(config, rows, PAGE)
    for number in range(length):
        place = number % PAGE
        filled = int(end[0]) + number - place
        read = next(read for read, bound in enumerate(bounds) if bound >= filled)
        positions = jnp.asarray(mask.sum(1)) + number
        token = jnp.asarray(completions[:, number])
        hidden, page = decode.decode_step(config, params, layers, token, positions, cache, page, place, read)
        found.append(hidden)
        if place == PAGE - 1:
            cache, page = decode.turn_page(cache, page, jnp.ones(rows, bool)), decode.empty_page(config, rows, PAGE)
    return jnp.stack([model.lm_logits(config, params, x) for x in found], axis=1)
