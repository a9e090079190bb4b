"""Sampling that ends where the text does: the host looks at the completions after every few tokens.

A compiled loop knows only tokens. Where a text ends is often a matter of strings, such as a blank line that may be
written in several ways, alone or within a token.

Shapes: B batch, C completion, D devices over which the rows are split, S slots of a device.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import generate, sharding
from rlhf_jax.data.batches import Prompts
from rlhf_jax.generate.slots import Decoder, Slots, narrowed, stages
from rlhf_jax.generate.truncation import Truncation
from rlhf_jax.model import TransformerConfig, decode
from rlhf_jax.runtime import hosts


class StoppingSampler:
    """As `generate.Sampler`, but rows also end where a function of their completions says so.

    The completions are those of `generate.Sampler` up to the token at which the host noticed an end. Slots take the next
    prompts, and become fewer, as there.
    """

    def __init__(
        self,
        config: TransformerConfig,
        mesh: jax.sharding.Mesh,
        rules: Mapping = sharding.DEFAULT_RULES,
        *,
        completion_length: int,
        eos_id: int | tuple[int, ...],
        pad_id: int,
        slots: int = 0,
    ):
        self.layout = generate.Layout(config, mesh, rules)
        chunks = decode.most_chunks(self.layout.config)
        self._mesh, self._sizes = mesh, generate.Sizes(completion_length, eos_id, pad_id, slots, chunks=chunks)
        rows, placed = sharding.over_batch(mesh), self._placed()
        self._noise = jax.jit(generate.noise, static_argnums=(1, 2), out_shardings=rows)
        self._start = self._on_each_device(Decoder.start, out_shardings=placed)
        self._go_on = self._on_each_device(_go_on, out_shardings=(placed, rows), donate_argnums=1)
        self._fewer = self._on_each_device(_fewer, out_shardings=placed, static_argnames="width")
        self._rollout = self._on_each_device(Decoder.rollout, out_shardings=rows)

    def _placed(self) -> Slots:
        """Returns how slots [D, ...] are placed, which no program changes: otherwise the next one would be compiled twice."""
        config = self.layout.config
        rows: Any = sharding.over_batch(self._mesh)  # in the place of an array
        heads = None if config.kv_heads % self._mesh.shape["tensor"] else "tensor"
        before = [None] * (2 if config.scan_layers else 1)  # [D, L, S, G, n, Dh], or without the layers
        stored: Any = jax.sharding.NamedSharding(
            self._mesh, jax.sharding.PartitionSpec(*sharding.BATCH, *before, heads)
        )
        placed: Any = dict.fromkeys((field.name for field in dataclasses.fields(Slots)), rows)
        return Slots(**placed | {"cache": decode.Cache(stored, stored, rows, rows)})

    def _on_each_device(self, function: Callable, **options) -> Callable:
        """Returns the jitted `function` of a decoder and of arrays, which each device computes for its own rows and slots.

        Its arguments are those of `Decoder.of` as one tuple, and arrays [D, ...], of which a device has its own part.
        """
        ways = sharding.ways(self._mesh)
        axes = sharding.BATCH[0] if ways > 1 else ()
        whole, rows = jax.sharding.PartitionSpec(), sharding.BATCH

        def program(batch, *state, **static):
            own = self._sizes.of_device(len(batch[1]), ways, axes)

            def local(batch, *state):
                decoder = Decoder.of(self.layout.config, *batch, own)
                found = function(decoder, *jax.tree.map(lambda x: x[0], state), **static)
                return jax.tree.map(lambda x: x[None], found)

            if ways == 1:
                return local(batch, *state)
            specs = (whole, rows, rows, rows, whole, whole), *[rows] * len(state)
            spread = jax.shard_map(local, in_specs=specs, out_specs=rows, axis_names=set(axes), check_vma=False)
            return spread(batch, *state)

        return jax.jit(program, **options)

    def __call__(
        self,
        params: dict,
        prompts: Prompts,
        key: jax.Array,
        temperature: float,
        ended: Callable[[np.ndarray, np.ndarray], np.ndarray],
        truncation: Truncation | None = None,
    ) -> generate.Rollout:
        """Samples completions of prompts from the host, and returns them to the host.

        Args:
          params: the parameters in the layout of sampling (`generate.Layout`).
          prompts: the prompts, padded on the left. A row without a token gets no completion and takes no time.
          key: one key for the batch.
          temperature: 0 takes the most likely tokens.
          ended: maps the completions i32[n, C] that go on, and their mask bool[n, C] so far, to bool[n], which of them
            have ended.
          truncation: which tokens may be drawn; None: all.
        """
        tokens, mask = sharding.put_batch((prompts.tokens, prompts.mask), self._mesh)
        uniform = self._noise(key, len(tokens), self._sizes.completion)
        batch = params, tokens, mask, uniform, jnp.float32(temperature), truncation
        slots = self._start(batch)
        widths = stages(slots.live.shape[1], self._sizes)
        done = np.zeros(slots.live.shape, bool)
        while True:
            slots, look = self._go_on(batch, slots, sharding.put_batch(done, self._mesh))
            look = hosts.fetch(look)
            done = ~look.live
            done[look.live] = ended(look.completions[look.live], look.mask[look.live])
            if look.waits.any():
                continue
            left = np.count_nonzero(~done, axis=1).max()
            if not left:
                rollout = hosts.fetch(self._rollout(batch, slots))
                return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rollout)
            width = min(width for width in widths if width >= left)
            if width < done.shape[1]:
                slots = self._fewer(batch, slots, sharding.put_batch(done, self._mesh), width=width)
                done = np.zeros(slots.live.shape, bool)


class _Look(NamedTuple):
    """What the host looks at between two pages."""

    completions: jax.Array  # i32[S, C], that of each slot
    mask: jax.Array  # bool[S, C], True on its tokens so far
    live: jax.Array  # bool[S], True where it goes on, as far as a compiled loop knows
    waits: jax.Array  # bool[], whether a prompt was not read, on any device


def _go_on(decoder: Decoder, slots: Slots, ended: jax.Array) -> tuple[Slots, _Look]:
    """Ends the slots of bool[S], reads prompts into free slots, and decodes a page."""
    slots = _without(slots, ended)
    if len(slots.live) == decoder.slots:  # there are fewer only when no prompt waits
        slots = jax.lax.while_loop(
            lambda slots: decoder.waits(slots) & ~decoder.goes_on(slots), decoder.read_group, slots
        )
    slots = decoder.decode_page(slots)
    mask = jnp.arange(decoder.sizes.completion) < slots.lengths[slots.row, None]
    return slots, _Look(slots.tokens[slots.row], mask, slots.live, decoder.waits(slots))


def _fewer(decoder: Decoder, slots: Slots, ended: jax.Array, *, width: int) -> Slots:
    """Ends the slots of bool[S], and returns `width` slots, among them all that are live; no prompt may wait."""
    return narrowed(_without(slots, ended), width)


def _without(slots: Slots, ended: jax.Array) -> Slots:
    return dataclasses.replace(slots, live=slots.live & ~ended)
