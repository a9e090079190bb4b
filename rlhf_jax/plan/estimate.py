"""What a program has to do, by formula, and how fast a chip could do it at best.

Model FLOPs are 6 N D (2 N forward, 4 N backward, per token) and attention's, each query with the keys it may
see; N counts the weights that multiply. Executed FLOPs add what is computed twice (remat) or for nothing
(attention that computes all scores and masks half of them). Neither counts norms, softmax or the optimizer.

Shapes: B rows, T tokens of a row, P prompt, C completion.
"""

import dataclasses
import functools
import math

import jax

from rlhf_jax import model
from rlhf_jax.model import TransformerConfig
from rlhf_jax.plan.hlo import Facts
from rlhf_jax.plan.topology import Chip

PETAFLOP_S_DAY = 1e15 * 86_400
PAPER = {"sft": 4.9, "ppo": 60.0}  # petaflop/s-days at 175B: InstructGPT, section 5.1
_MASKED_HALF_SKIPPED = ("blocked", "splash", "cudnn")


@dataclasses.dataclass(frozen=True)
class Work:
    """What one run of a program does on all chips together.

    Attributes:
      tokens: read, or sampled.
      flops: of the model.
      executed: of the program.
    """

    tokens: int = 0
    flops: float = 0.0
    executed: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.tokens + other.tokens, self.flops + other.flops, self.executed + other.executed)


@functools.cache
def parameters(config: TransformerConfig, head: str = "lm") -> int:
    """All parameters of a model, without the padding of its vocabulary."""
    config = dataclasses.replace(config, vocab_multiple=1)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model.param_shapes(config, head)))


@functools.cache
def _layer_weights(config: TransformerConfig) -> int:
    """Weights of all layers that multiply every token: the matrices, no bias and no norm."""
    layers = jax.tree_util.tree_leaves_with_path(model.param_shapes(config)["layers"])
    return sum(math.prod(leaf.shape) for path, leaf in layers if path[-1].key.startswith("w"))


def _linear(config: TransformerConfig, tokens: int, logits: int) -> tuple[float, float]:
    """(model, executed) FLOPs of the matrices for so many tokens, and of the logits of some of them."""
    trunk = 2.0 * _layer_weights(config) * tokens
    head = 2.0 * config.embed_dim * logits
    return trunk + head * config.vocab_size, trunk + head * config.padded_vocab


def _attention(config: TransformerConfig, scores: float) -> float:
    """FLOPs of so many pairs of a query and a key, in all layers and heads."""
    return 4.0 * config.num_layers * config.num_heads * config.head_dim * scores


def forward(config: TransformerConfig, rows: int, length: int, logits: int = 0) -> Work:
    """Whole rows [B, T]; `logits` is the number of tokens for which they are computed."""
    flops, executed = _linear(config, rows * length, logits)
    visible = rows * length * (length + 1) / 2
    computed = visible if config.attention in _MASKED_HALF_SKIPPED else rows * length**2
    return Work(rows * length, flops + _attention(config, visible), executed + _attention(config, computed))


def training(config: TransformerConfig, rows: int, length: int, logits: int = 0) -> Work:
    """Forward and backward; the backward pass costs twice, and what remat makes it repeat."""
    once = forward(config, rows, length, logits)
    computed = _attention(config, rows * length**2 / (2 if config.attention in _MASKED_HALF_SKIPPED else 1))
    repeated = {"none": 0.0, "dots": computed, "full": _linear(config, rows * length, 0)[1] + computed}[config.remat]
    if 0 < config.logits_chunk < logits / rows:  # each chunk of logits is computed again
        repeated += _linear(config, 0, logits)[1]
    return Work(once.tokens, 3 * once.flops, 3 * once.executed + repeated)


def sampling(config: TransformerConfig, rows: int, prompt: int, completion: int) -> Work:
    """Prefill of [B, P] and C tokens a row, if every completion runs to its full length."""
    read = forward(config, rows, prompt, logits=rows)
    steps = completion - 1  # prefill gives the first token
    flops, executed = _linear(config, rows * steps, rows * steps)
    visible = rows * sum(prompt + step for step in range(1, completion))
    cached = rows * steps * (prompt + completion)
    return read + Work(rows * steps, flops + _attention(config, visible), executed + _attention(config, cached))


def cache_bytes(config: TransformerConfig, rows: int, length: int, mesh) -> int:
    """Of the keys and values of [B, T] on each device: rows split over the batch axes, heads over tensor."""
    tensor = mesh.shape["tensor"]
    heads = config.kv_heads // tensor if config.kv_heads % tensor == 0 else config.kv_heads
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    item = 4 if config.dtype == "float32" else 2
    return 2 * config.num_layers * -(-rows // ways) * length * heads * config.head_dim * item


def bounds(chip: Chip, chips: int, work: Work, facts: Facts) -> dict[str, float]:
    """Seconds that a program takes at least: each thing alone, at the chip's full rate; {} where no rate is known."""
    if chip.flops is None:
        return {}
    links = sum(collective.links for collective in facts.collectives) / chip.link_bandwidth
    network = sum(collective.network for collective in facts.collectives)
    found = {
        "compute": work.executed / chips / chip.flops,
        "memory": facts.moved / chip.memory_bandwidth,
        "links": links,
    }
    return found | ({"network": network / chip.network_bandwidth} if network else {})
