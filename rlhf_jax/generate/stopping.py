"""Sampling that ends where the text does: the host looks at the completions after every few tokens.

A compiled loop knows only tokens. Where a text ends is often a matter of strings, such as a blank line that may be
written in several ways, alone or within a token.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import generate, sharding
from rlhf_jax.data.batches import Prompts
from rlhf_jax.generate.slots import narrowed, stages
from rlhf_jax.generate.truncation import Truncation
from rlhf_jax.model import TransformerConfig, decode
from rlhf_jax.runtime import hosts


class StoppingSampler:
    """As `generate.Sampler`, but rows also end where a function of their completions says so.

    The completions are those of `generate.Sampler` up to the token at which the host noticed an end. Each row has a slot, and
    those that go on move to fewer slots as there.
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
    ):
        self.layout = generate.Layout(config, mesh, rules)
        shape = self.layout.config
        sizes = generate.Sizes(completion_length, eos_id, pad_id, chunks=decode.most_chunks(shape))

        def decoder(params, tokens, mask, key, temperature, truncation):
            uniform = generate.noise(key, len(tokens), completion_length)
            return generate.Decoder.of(shape, params, tokens, mask, uniform, temperature, truncation, sizes)

        def start(batch):
            """Reads the prompts, a group after another."""
            of_batch = decoder(*batch)
            return jax.lax.while_loop(of_batch.waits, of_batch.read_group, of_batch.start())

        def go_on(batch, slots, ended):
            """Chooses a page of tokens; `ended` bool[B] are rows that end before it."""
            return decoder(*batch).decode_page(without(slots, ended))

        def fewer(slots, ended, width):
            """Returns `width` slots, among them all that are live."""
            return narrowed(without(slots, ended), width)

        def without(slots, ended):
            ends = ended[jnp.minimum(slots.row, len(ended) - 1)]
            return slots.replace(live=slots.live & ~ends)

        self._mesh, self._sizes = mesh, sizes
        self._start, self._go_on = jax.jit(start), jax.jit(go_on, donate_argnums=1)
        self._fewer = jax.jit(fewer, static_argnames="width")
        self._rollout = jax.jit(
            lambda batch, slots: decoder(*batch).rollout(slots), out_shardings=sharding.over_batch(mesh)
        )

    def __call__(
        self,
        params: dict,
        prompts: Prompts,
        key: jax.Array,
        temperature: float,
        ended: Callable[[np.ndarray, np.ndarray], np.ndarray],
        truncation: Truncation | None = None,
    ) -> generate.Rollout:
        """Samples completions of prompts from the host.

        Args:
          params: the parameters in the layout of sampling (`generate.Layout`).
          prompts: the prompts, padded on the left.
          key: one key for the batch.
          temperature: 0 takes the most likely tokens.
          ended: maps completions i32[B, C] and their mask bool[B, C] so far to bool[B], which rows have ended.
          truncation: which tokens may be drawn; None: all.
        """
        tokens, mask = sharding.put_batch((prompts.tokens, prompts.mask), self._mesh)
        batch = params, tokens, mask, key, jnp.float32(temperature), truncation
        slots = self._start(batch)
        while True:
            rollout = self._rollout(batch, slots)
            written, real, live, row = hosts.fetch(
                (rollout.completions, rollout.completion_mask, slots.live, slots.row)
            )
            done = ended(written, real)
            left = np.count_nonzero(live & ~done[row])
            if not left:
                return rollout
            done = sharding.put_batch(done, self._mesh)
            width = min(width for width in stages(len(tokens), self._sizes) if width >= left)
            if width < len(live):
                slots = self._fewer(slots, done, width=width)
            slots = self._go_on(batch, slots, done)
