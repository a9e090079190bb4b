"""The memory that a program takes beside its arguments, by formula: gradients, activations, logits, and the cache.

The numbers of arrays per layer were read off programs that XLA compiled for CPUs (docs/scaling.md has the comparison).
They are good for a forecast and a choice; what a program takes to the byte, only its compiler knows (`rlhf_jax.plan`).

Shapes: B rows, T tokens of a row, D embed, F mlp, H heads, G key-value heads, Dh head width.
"""

import jax

from rlhf_jax import sharding
from rlhf_jax.model.config import TransformerConfig

REMAT = ("none", "dots", "full")  # from the fastest to the one that takes the least memory
_UNROLLED = 0.72  # of the arrays of a scanned layer that an unrolled one keeps
_STREAM, _QKV, _MLP, _GATED_MLP = 10, 7 / 3, 4, 5  # arrays of a layer: as wide as D, the heads, F
_SCORES = 2  # arrays f32[B, H, T, T] that attention keeps, if it keeps any
_LIVE = 0.2  # of the arrays of a layer that exist at once where nothing is kept for a backward pass
_READ = 16_384  # tokens of prompts that a device reads at once
_PART, _CACHED_PART = 2048, 1024  # tokens of a part of a gradient that costs a CPU no time (see `free_parts`)
_CACHE = 32 * 2**20  # bytes of a CPU's last cache
COMPARED = 6  # arrays of logits that comparing two policies takes


def rows_at_once(rows: int, parts: int, mesh: jax.sharding.Mesh) -> int:
    """Returns the rows of a batch that a device computes at once."""
    return -(-rows // (parts * sharding.ways(mesh)))


def prompts_at_once(rows: int, length: int) -> int:
    """Returns the number of prompts of `length` tokens that a device with so many rows to sample reads at once."""
    return max(1, min(rows, _READ // length))


def free_parts(platform: str, rows: int, tokens: int, weights: int) -> int:
    """Returns the number of parts of a gradient that take the least memory and do not take more time than one part.

    On a CPU, small parts have their activations nearer to its caches, and every part adds its gradient to the sum. The
    sum costs more where it does not fit into the cache. The limits were measured (docs/measurements.md). Elsewhere it is
    1, because larger products are faster there.

    Args:
      platform: "cpu", "gpu" or "tpu".
      rows: rows of the batch on a device; the parts divide them.
      tokens: tokens of a row.
      weights: bytes of the trained parameters on a device.
    """
    if platform != "cpu":
        return 1
    least = _CACHED_PART if 2 * weights <= _CACHE else _PART
    return max(n for n in range(1, rows + 1) if n == 1 or (rows % n == 0 and rows // n * tokens >= least))


def _layer(config: TransformerConfig, rows: int, length: int, mesh) -> float:
    """Returns the bytes of all arrays that one layer makes of rows [B, T], on each device."""
    heads = (config.num_heads + 2 * config.kv_heads) * config.head_dim
    inner = _QKV * heads + (_GATED_MLP if config.gated else _MLP) * config.hidden_dim
    scores = 4 * _SCORES * rows * config.num_heads * length**2 if config.attention == "xla" else 0
    arrays = rows * length * item(config) * _width(config, mesh, _STREAM * config.embed_dim, inner)
    return arrays + scores / mesh.shape["tensor"]


def _saved(config: TransformerConfig, rows: int, length: int, mesh) -> float:
    """Returns the bytes that all layers keep for the backward pass, on each device."""
    if config.remat == "none" or (not config.scan_layers and mesh.devices.flat[0].platform == "cpu"):
        # On CPUs, XLA merges what an unrolled layer computes again with what it computed before.
        return config.num_layers * _layer(config, rows, length, mesh) * (1.0 if config.scan_layers else _UNROLLED)
    stream, inner = config.embed_dim, 0
    if config.remat == "dots":  # nothing reads the output of the MLP again
        stream += config.embed_dim
        inner = (config.num_heads + 2 * config.kv_heads) * config.head_dim
        inner += (2 if config.gated else 1) * config.hidden_dim
    kept = config.num_layers * rows * length * item(config) * _width(config, mesh, stream, inner)
    return kept + _layer(config, rows, length, mesh)


def _width(config: TransformerConfig, mesh, stream: float, inner: float) -> float:
    """Returns the numbers of a token on each device.

    Args:
      config: shape of the model.
      mesh: the mesh.
      stream: numbers of arrays between layers and branches. They are whole on every device of the tensor axis, unless
        `sequence_axis` splits their tokens.
      inner: numbers of the heads and the MLP, which the tensor axis splits.
    """
    return stream / (mesh.shape[config.sequence_axis] if config.sequence_axis else 1) + inner / mesh.shape["tensor"]


def _logits(config: TransformerConfig, rows: int, places: int, mesh) -> float:
    """Returns the bytes of the float32 logits that exist at once, of `places` places of each row."""
    chunk = min(places, config.logits_chunk) if config.logits_chunk else places
    return 4 * rows * chunk * config.padded_vocab / mesh.shape["tensor"]


def item(config: TransformerConfig) -> int:
    """Returns the bytes of a number in the compute type."""
    return 4 if config.dtype == "float32" else 2


def training(config: TransformerConfig, mesh, rows: int, length: int, places: int, parts: int, weights: int) -> dict:
    """Returns the bytes of a gradient of rows [B, T] on each device, by name.

    Args:
      config: shape of the model.
      mesh: the mesh.
      rows: B of the whole batch.
      length: T.
      places: places of a row whose logits are computed; 0 for a scalar head.
      parts: number of parts in which the gradient is computed; the sum of several takes a second gradient.
      weights: bytes of the trained parameters on each device.
    """
    own = rows_at_once(rows, parts, mesh)
    return {
        "gradients": weights * (1 if parts == 1 else 2),
        "activations": _saved(config, own, length, mesh),
        "logits": _logits(config, own, places, mesh),
    }


def forward(
    config: TransformerConfig, mesh, rows: int, length: int, places: int, parts: int = 1, arrays: int = 2
) -> dict:
    """Returns the bytes of a forward pass that reads log-probabilities.

    The layers are done when the logits are made, so that memory holds the larger of the two.

    Args:
      config: see `training`, which also has the arguments up to `parts`.
      mesh: the mesh.
      rows: B of the whole batch.
      length: T.
      places: places of a row whose logits are computed.
      parts: number of parts that follow one another.
      arrays: number of arrays of logits: 2 for one policy, and COMPARED for two that are compared.
    """
    own = rows_at_once(rows, parts, mesh)
    found = {
        "activations": _LIVE * _layer(config, own, length, mesh),
        "logits": arrays * _logits(config, own, places, mesh),
    }
    largest = max(found, key=lambda name: found[name])
    return {largest: found[largest]}


def sampling(config: TransformerConfig, mesh, slots: int, prompt: int, length: int, cache: int) -> dict:
    """Returns the bytes of sampling completions of prompts of P tokens.

    Args:
      config: shape of the model.
      mesh: the mesh.
      slots: number of completions that are sampled at once, on all devices.
      prompt: P. Not all prompts are read at once.
      length: largest number of tokens of a prompt and its completion.
      cache: bytes of the keys and values of `slots` rows of that length, on each device.
    """
    own = rows_at_once(slots, 1, mesh)
    read = prompts_at_once(own, prompt)
    return {
        "cache": cache * (1 + read * prompt / (own * length)),  # prompts are read beside it, and then stored
        "activations": _LIVE * _layer(config, read, prompt, mesh),
        "logits": 4 * 3 * own * config.padded_vocab / mesh.shape["tensor"],
    }


def together(whole: list[dict], in_parts: list[dict], platform: str) -> dict:
    """Returns the bytes of several gradients of one program.

    Args:
      whole: those computed in one part. XLA makes the forward passes of all before the backward pass of one, so that
        memory holds the activations of all.
      in_parts: those computed in several parts, in loops that follow one another. Each keeps the sum of its gradients,
        and only the loop at work has another gradient beside it.
      platform: "cpu", "gpu" or "tpu". On TPUs XLA starts a loop when the activations of `whole` are gone.
    """

    def activations(one):
        return one["activations"] + one["logits"]

    loops = sorted(in_parts, key=lambda one: activations(one) + one["gradients"] / 2)[-1:]
    gradients = sum(one["gradients"] for one in whole) + sum(one["gradients"] / 2 for one in in_parts)
    held = whole + loops
    if platform == "tpu":
        held = max(whole, loops, key=lambda several: sum(map(activations, several)))
    return {"gradients": gradients + sum(one["gradients"] / 2 for one in loops)} | {
        name: sum(one[name] for one in held) for name in ("activations", "logits")
    }
