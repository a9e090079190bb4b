"""Log-likelihoods of continuations, computed on the mesh."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import model, sharding
from rlhf_jax.evaluate.harness import packing
from rlhf_jax.evaluate.harness.packing import Batch, Request
from rlhf_jax.language_model import LanguageModel
from rlhf_jax.model import TransformerConfig
from rlhf_jax.runtime import hosts

_LOGITS = 1 << 26  # the most logits, in float32, that exist at once on a device: 256 MiB


@functools.partial(jax.jit, static_argnums=0)
def predictions(config: TransformerConfig, params: dict, tokens, positions, segments, places, targets):
    """Returns log p(target) f32[B, N] in nats, and whether the target is the most likely token, bool[B, N].

    The arguments are those of `packing.Batch`.
    """
    hidden = model.hidden_states(config, params, tokens, positions, segments)
    hidden = jnp.take_along_axis(hidden, places[..., None], axis=1)

    def judge(hidden, targets):
        logits = model.lm_logits(config, params, hidden)
        return model.select_logprobs(logits, targets), jnp.argmax(logits, axis=-1) == targets

    return model.by_chunks(config, judge, hidden, targets)


class Likelihood:
    """Scores requests with a model, batch by batch.

    Args:
        language_model: the model.
        batch_tokens: about how many tokens a batch has on each device that shares the rows.
    """

    def __init__(self, language_model: LanguageModel, batch_tokens: int):
        self._model = language_model
        self._mesh = language_model.mesh
        self._ways = self._mesh.shape["data"] * self._mesh.shape["fsdp"]
        self._batch_tokens = batch_tokens * self._ways

    def __call__(self, requests: Sequence[Request]) -> Iterator[list[tuple[int, float, bool]]]:
        """Yields, batch by batch, the number of each request, its log-likelihood, and whether it is greedy.

        The log-likelihood is the sum over the tokens of the continuation, in nats. A continuation is greedy if each of
        its tokens is the most likely one.
        """
        for batch in packing.batches(packing.rows(requests), self._batch_tokens, self._ways):
            yield self._score(batch)

    def _score(self, batch: Batch) -> list[tuple[int, float, bool]]:
        arrays = sharding.put_batch(batch[:5], self._mesh)
        logprobs, best = hosts.fetch(predictions(self._config(batch), self._model.params, *arrays))
        wanted = batch.owners >= 0
        numbers, inverse = np.unique(batch.owners[wanted], return_inverse=True)
        totals = np.bincount(inverse, logprobs[wanted].astype(np.float64))
        misses = np.bincount(inverse, ~best[wanted])
        return [(int(n), float(total), not missed) for n, total, missed in zip(numbers, totals, misses)]

    def _config(self, batch: Batch) -> TransformerConfig:
        """Returns the model's shape with an attention that knows branches, and logits in parts that fit."""
        config = self._model.config
        kind = "xla" if batch.branched and config.attention == "splash" else config.attention
        rows = -(-len(batch.targets) // self._ways)
        places = max(1, _LOGITS // (rows * config.padded_vocab))
        chunk = places if places < batch.targets.shape[1] else 0
        return dataclasses.replace(config, attention=kind, logits_chunk=chunk, remat="none")
