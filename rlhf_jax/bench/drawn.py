"""Completions that end at drawn lengths, as a policy's do: most are short, and a few run to the end.

Shapes: B rows, C tokens of a completion.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import generate
from rlhf_jax.bench import workload
from rlhf_jax.data.batches import Prompts
from rlhf_jax.model import TransformerConfig, decode

_MEAN = 130 / 1024  # of the completion length: the outputs of InstructGPT's policies have 130 tokens in the mean
_SIGMA = 1.0


def drawn_lengths(rows: int, completion_length: int) -> np.ndarray:
    """Returns lengths i32[B], 1 to C, always the same: log-normal with a mean of 130 / 1024 of C before the cap."""
    mu = np.log(_MEAN * completion_length) - _SIGMA**2 / 2
    drawn = np.random.default_rng(1).lognormal(mu, _SIGMA, rows)
    return np.clip(np.rint(drawn), 1, completion_length).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class _Limited(generate.Decoder):
    """A decoder whose rows end at their limits, i32[B], whatever their tokens are."""

    limits: Any = None

    def _choose(self, hidden, state):
        state = super()._choose(hidden, state)
        return dataclasses.replace(state, done=state.done | (state.step >= self.limits))


class DrawnSampler:
    """Samples as `generate.Sampler` does, up to a limit of each row: (params, prompts, key, limits) -> Rollout."""

    def __init__(self, config: TransformerConfig, completion_length: int):
        self._config, self._length = config, completion_length
        self._layout = generate.Layout(config, workload.one_device())
        self._program = jax.jit(self._sample)

    def __call__(self, params: dict, prompts: Prompts, key: jax.Array, limits: np.ndarray) -> generate.Rollout:
        """Samples completions of prompts from the host."""
        return self._program(self._layout(params), prompts.tokens, prompts.mask, key, limits)

    def _sample(self, params, tokens, mask, key, limits) -> generate.Rollout:
        noise, temperature = generate.row_noise(key, len(tokens)), jnp.float32(1.0)
        decoder = _Limited(
            self._config, params, tokens, mask, noise, temperature, None, self._length, workload.NEVER, 0, limits
        )

        def goes_on(state):
            return (state.step < self._length) & jnp.any(~state.done)

        layers = decode.decode_layers(self._config, params)
        state = jax.lax.while_loop(goes_on, functools.partial(decoder.next_token, layers), decoder.first_token())
        return decoder.rollout(state)
