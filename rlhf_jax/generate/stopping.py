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
from rlhf_jax.generate.truncation import Truncation
from rlhf_jax.model import TransformerConfig, decode
from rlhf_jax.runtime import hosts

PIECE = 16  # tokens between two looks at the text


class StoppingSampler:
    """As `generate.Sampler`, but rows also end where a function of their completions says so.

    The completions are those of `generate.Sampler` up to the token at which the host noticed an end.
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
        def decoder(params, tokens, mask, key, temperature, truncation):
            noise = generate.row_noise(key, len(tokens))
            return generate.Decoder(
                config, params, tokens, mask, noise, temperature, truncation, completion_length, eos_id, pad_id
            )

        def go_on(batch, state, ended):
            """Chooses tokens up to the next look at the text; `ended` bool[B] are rows that end before it."""
            of_batch = decoder(*batch)
            layers = decode.decode_layers(config, of_batch.params)
            last = jnp.minimum(state.step + PIECE, completion_length)

            def unfinished(state):
                return (state.step < last) & jnp.any(~state.done)

            return jax.lax.while_loop(
                unfinished, lambda state: of_batch.next_token(layers, state), state.replace(done=state.done | ended)
            )

        self._mesh, self._length = mesh, completion_length
        self._start = jax.jit(lambda batch: decoder(*batch).first_token())
        self._go_on = jax.jit(go_on, donate_argnums=1)
        self._rollout = jax.jit(
            lambda batch, state: decoder(*batch).rollout(state), out_shardings=sharding.over_batch(mesh)
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
        state = self._start(batch)
        while True:
            step, done, written, real = hosts.fetch((state.step, state.done, state.tokens, state.mask))
            done = done | ended(written, real)
            if step >= self._length or done.all():
                return self._rollout(batch, state)
            state = self._go_on(batch, state, sharding.put_batch(done, self._mesh))
