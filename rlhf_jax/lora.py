"""Low-rank adapters: their settings, their place among the parameters of a model, and the matrices that they stand for.

A frozen matrix W with an adapter computes x W + (alpha / r) (x A) B, where A [inputs, r] starts random and B
[r, outputs] starts at 0 (Hu et al. 2021, section 4.1). The parameters lie beside those of their matrix: `wq_a` and
`wq_b` beside `wq`. What is trained of a model with adapters is the adapters and the scalar head, if it has one; the
rest is its base, which several models can share.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax

# The matrices of a layer that can have an adapter, with the number of leading axes that are their inputs.
MATRICES = {"wq": 1, "wk": 1, "wv": 1, "wo": 2, "w_gate": 1, "w_up": 1, "w_down": 1}
SCALAR_HEAD = ("scalar_kernel", "scalar_bias")


@dataclasses.dataclass(frozen=True)
class Lora:
    """The settings of a model's adapters.

    Attributes:
      rank: r.
      alpha: the numerator of the adapters' scale.
      matrices: names of the matrices with an adapter, from MATRICES; () means all that the model has. A TransformerConfig
        spells them out.
      dropout: share of an adapter's inputs that is dropped in supervised fine-tuning.
    """

    rank: int
    alpha: float
    matrices: tuple[str, ...] = ()
    dropout: float = 0.0

    @property
    def scale(self) -> float:
        """The number that multiplies (x A) B."""
        return self.alpha / self.rank


def of_section(section: Mapping[str, Any] | None, own: Mapping[str, Any] | None = None) -> Lora | None:
    """Returns the settings that a section `lora` of a config has; None without a rank, which means no adapters.

    Args:
      section: the section; None means no adapters.
      own: the values of a stage's own section, which replace others; None replaces the rank alone.
    """
    changes = {name: value for name, value in (own or {}).items() if value is not None or name == "rank"}
    values = {**(section or {}), **changes}
    if values.get("rank") is None:
        return None
    return Lora(values["rank"], values["alpha"], tuple(values["matrices"]), values["dropout"])


def sizes(name: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """Returns the numbers of inputs and outputs of a matrix of this shape, which may have several axes of each."""
    contract = MATRICES[name]
    return math.prod(shape[:contract]), math.prod(shape[contract:])


def split(params: dict) -> tuple[dict, dict]:
    """Returns (the base, what is trained): the adapters with the scalar head if there are adapters, else everything."""
    adapters = {name: leaf for name, leaf in params.get("layers", {}).items() if name.endswith(("_a", "_b"))}
    if not adapters:
        return {}, params
    head = {name: params[name] for name in SCALAR_HEAD if name in params}
    layers = {name: leaf for name, leaf in params["layers"].items() if name not in adapters}
    rest = {name: leaf for name, leaf in params.items() if name not in head}
    return rest | {"layers": layers}, head | {"layers": adapters}


def trained(params: dict) -> dict:
    """Returns the second part of `split`."""
    return split(params)[1]


def joined(base: dict | None, trained: dict) -> dict:
    """Returns the parameters of a model from its two parts, the inverse of `split`; no array is copied.

    A model that is whole needs no base, and is returned as it is; the base is then empty, or that of others.
    """
    if not base or "embedding" in trained:
        return trained
    return base | trained | {"layers": base["layers"] | trained["layers"]}


def merged(lora: Lora, params: dict) -> dict:
    """Returns the parameters of the same model without adapters, W + (alpha / r) A B in place of each W.

    Args:
      lora: the settings of the adapters.
      params: parameters with adapters; their arrays may be of NumPy or on devices. The sums have the dtype of A and B.
    """
    base, _ = split(params)
    layers = dict(base["layers"])
    for name, a, b in pairs(params):
        rank = b.shape[1]  # both begin with the axis of layers
        product = a.reshape(a.shape[0], -1, rank) @ b.reshape(b.shape[0], rank, -1)
        layers[name] = layers[name].astype(a.dtype) + (lora.scale * product).reshape(layers[name].shape)
    head = {name: params[name] for name in SCALAR_HEAD if name in params}
    return base | head | {"layers": layers}


def pairs(params: dict) -> Iterator[tuple[str, jax.Array, jax.Array]]:
    """Yields (matrix, A, B) for each matrix with an adapter; A and B have a leading axis of layers."""
    layers = params["layers"]
    for name in MATRICES:
        if f"{name}_a" in layers:
            yield name, layers[f"{name}_a"], layers[f"{name}_b"]
