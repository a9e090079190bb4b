"""FLOPs and cache bytes of a program, by formula.

Model FLOPs are 6 N D (2 N forward and 4 N backward per token) plus attention's, in which each query is paired with the
keys visible to it. N counts the weights that multiply, D the tokens. Executed FLOPs add work that is done twice
(remat) or for nothing (scores that attention computes and then masks). Neither counts norms, softmax or
the optimizer.

Shapes: B rows, T tokens of a row, P prompt, C completion.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import numpy as np

from rlhf_jax.model import attention
from rlhf_jax.model.config import TransformerConfig
from rlhf_jax.model.params import param_shapes


@dataclasses.dataclass(frozen=True)
class Work:
    """The work of one run of a program, all chips together.

    Attributes:
      tokens: number of tokens read or sampled.
      flops: model FLOPs.
      executed: executed FLOPs.
    """

    tokens: int = 0
    flops: float = 0.0
    executed: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.tokens + other.tokens, self.flops + other.flops, self.executed + other.executed)

    def __mul__(self, share: float) -> "Work":
        return Work(round(self.tokens * share), self.flops * share, self.executed * share)


@dataclasses.dataclass(frozen=True)
class Decoding:
    """What a device must read to sample completions token by token.

    Attributes:
      weights: bytes of the parameters on a device, which every step reads.
      token: bytes of the keys and values of one token on a device.
      prompts: i64[B], lengths of the prompts.
      completions: i64[B], lengths of the completions. The first token of each comes from reading the prompt.
      places: tokens of the longest row, for which a cache has room.
      ways: number of devices over which the rows are split.
    """

    weights: float
    token: float
    prompts: np.ndarray
    completions: np.ndarray
    places: int
    ways: int

    def rows_in(self, room: float) -> int:
        """Returns how many rows of a device can be decoded at once in `room` bytes: at least 1, at most all."""
        return max(1, min(-(-len(self.prompts) // self.ways), int(room // (self.token * self.places))))

    def bytes_read(self, rows: int) -> float:
        """Returns the bytes that a device reads at least if it decodes `rows` rows at once, and refills at once.

        Each step reads the weights once, and of each row the keys and values of the tokens so far.
        """
        steps = self.completions - 1
        turns = max(int(steps.max()), math.ceil(steps.sum() / (self.ways * rows)))
        filled = float((steps * self.prompts + steps * (steps + 1) / 2).sum()) / self.ways
        return turns * self.weights + filled * self.token


@functools.cache
def parameters(config: TransformerConfig, head: str = "lm") -> int:
    """Returns the number of parameters of a model, without the padding of its vocabulary."""
    config = dataclasses.replace(config, vocab_multiple=1)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(param_shapes(config, head)))


@functools.cache
def _layer_weights(config: TransformerConfig) -> int:
    """Returns the number of weights, over all layers, that multiply every token: matrices without biases and norms."""
    layers = jax.tree_util.tree_leaves_with_path(param_shapes(config)["layers"])
    return sum(math.prod(leaf.shape) for path, leaf in layers if path[-1].key.startswith("w"))


def _linear(config: TransformerConfig, tokens: int, logits: int) -> tuple[float, float]:
    """Returns the (model, executed) FLOPs of the matrix products.

    Args:
      config: shape of the model.
      tokens: number of tokens that go through the layers.
      logits: number of tokens whose logits are computed.
    """
    trunk = 2.0 * _layer_weights(config) * tokens
    head = 2.0 * config.embed_dim * logits
    return trunk + head * config.vocab_size, trunk + head * config.padded_vocab


def _frozen(config: TransformerConfig, tokens: int, logits: int) -> tuple[float, float]:
    """Returns the (model, executed) FLOPs of the products with frozen weights: none without adapters; see `_linear`."""
    if config.lora is None:
        return 0.0, 0.0
    return _linear(dataclasses.replace(config, lora=None), tokens, logits)


def _attention(config: TransformerConfig, scores: float) -> float:
    """Returns the FLOPs of `scores` pairs of a query and a key, in all layers and heads."""
    return 4.0 * config.num_layers * config.num_heads * config.head_dim * scores


def _computed(config: TransformerConfig, length: int) -> int:
    """Returns the number of scores that a head computes of a row of T tokens, masked ones included."""
    return attention.computed_scores(config.attention, length, config.head_dim)


def forward(config: TransformerConfig, rows: int, length: int, logits: int = 0, scores: int | None = None) -> Work:
    """Returns the work of a forward pass over rows [B, T].

    Args:
      config: shape of the model.
      rows: B.
      length: T.
      logits: number of tokens with logits.
      scores: number of scores that a head computes of all rows; by default those of rows without padding.
    """
    flops, executed = _linear(config, rows * length, logits)
    visible = rows * length * (length + 1) / 2
    computed = rows * _computed(config, length) if scores is None else scores
    return Work(rows * length, flops + _attention(config, visible), executed + _attention(config, computed))


def training(
    config: TransformerConfig, rows: int, length: int, logits: int = 0, scores: int | None = None, again: bool = True
) -> Work:
    """Returns the work of a forward and a backward pass over rows [B, T].

    The arguments are those of `forward`, and `again` says whether the backward pass computes chunks of logits again, as
    that of `heads.by_chunks` does, and that of `heads.sum_by_chunks` does not.

    The backward pass costs twice the forward pass, plus the operations that remat makes it repeat. With adapters, no
    gradient of the frozen weights is computed, which saves a third of their products.
    """
    once = forward(config, rows, length, logits, scores)
    saved, saved_executed = _frozen(config, rows * length, logits)
    computed = _attention(config, rows * _computed(config, length) if scores is None else scores)
    repeated = {"none": 0.0, "dots": computed, "full": _linear(config, rows * length, 0)[1] + computed}[config.remat]
    if again and 0 < config.logits_chunk < logits / rows:
        repeated += _linear(config, 0, logits)[1]
    return Work(once.tokens, 3 * once.flops - saved, 3 * once.executed - saved_executed + repeated)


def in_rows(
    of: Callable[..., Work],
    config: TransformerConfig,
    prompts: np.ndarray,
    completions: np.ndarray,
    rows: int,
    room: tuple[int, int],
    logits: bool = True,
) -> Work:
    """Returns the work of episodes that are packed into rows.

    Model FLOPs are those of the episodes' own tokens, and executed FLOPs those of the rows. The scores that cuDNN computes
    are those of each episode by itself, and of each row's padding, which counts as the same in all rows. The other
    implementations compute those of the rows.

    Args:
      of: `forward` or `training`.
      config: shape of the model.
      prompts: i64[B], lengths of the prompts.
      completions: i64[B], lengths of the completions.
      rows: number of rows that are computed, empty ones included.
      room: the longest prompt, and the longest completion.
      logits: whether the logits of the completions are computed.
    """
    scores = None
    if attention.skips_segments(config.attention, config.head_dim):
        scores = sum(_computed(config, int(size)) for size in prompts + completions)
        scores += rows * _computed(config, max(0, rows * sum(room) - int((prompts + completions).sum())) // rows)
    own = (of(config, 1, int(p + c), int(c) * logits) for p, c in zip(prompts, completions, strict=True))
    executed = of(config, rows, sum(room), rows * room[1] * logits, scores).executed
    return dataclasses.replace(sum(own, Work()), executed=executed)


def sampling(config: TransformerConfig, prompts: np.ndarray, completions: np.ndarray) -> Work:
    """Returns the work of reading prompts and sampling completions of these lengths, i64[B] each.

    What is computed for padding, or for rows that have ended, is not executed by this count.
    """
    length, rows, steps = int(prompts.max()), len(prompts), completions - 1  # reading a prompt gives the first token
    tokens, read = int(steps.sum()), int(prompts.sum())
    visible = float((prompts * (prompts + 1) / 2).sum())
    computed = visible if read < rows * length else float(rows * _computed(config, length))
    cached = float((steps * prompts + steps * (steps + 1) / 2).sum())
    flops, executed = _linear(config, read + tokens, rows + tokens)
    return Work(
        read + tokens, flops + _attention(config, visible + cached), executed + _attention(config, computed + cached)
    )


def decoding(config: TransformerConfig, prompts, completions, places: int, mesh) -> Decoding:
    """Returns what a device reads to sample completions of these lengths; see `Decoding`."""
    ways, item = mesh.shape["data"] * mesh.shape["fsdp"], 4 if config.dtype == "float32" else 2
    weights = parameters(config) * item / mesh.shape["tensor"]
    token = cache_bytes(config, 1, 1, mesh)
    return Decoding(weights, token, prompts, completions, places, ways)


def cache_bytes(config: TransformerConfig, rows: int, length: int, mesh) -> int:
    """Returns the bytes of the keys and values of [B, T] on each device.

    Rows are split over the batch axes of the mesh, and heads over `tensor` if they divide.
    """
    tensor = mesh.shape["tensor"]
    heads = config.kv_heads // tensor if config.kv_heads % tensor == 0 else config.kv_heads
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    item = 4 if config.dtype == "float32" else 2
    return 2 * config.num_layers * -(-rows // ways) * length * heads * config.head_dim * item
