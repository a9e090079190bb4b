"""The layout of a language model's parameters in which it samples."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from rlhf_jax import model, sharding
from rlhf_jax.model import TransformerConfig, decode


class Layout:
    """Puts the parameters of a language model into the layout of sampling.

    They are cast to the compute dtype and split over `tensor` alone. In their training layout, split over fsdp, they
    would be gathered for every token. On a GPU each layer gets arrays of its own (see `decode.unrolls`). Arrays that
    have the layout already are not copied.

    Attributes:
        config: shape of the model in this layout.
        program: the jitted function that does it; it takes None in the place of an array that has the layout.
    """

    def __init__(self, config: TransformerConfig, mesh: jax.sharding.Mesh, rules: Mapping = sharding.DEFAULT_RULES):
        self._unrolled = decode.unrolls(mesh.devices.flat[0].platform)
        self.config = dataclasses.replace(config, scan_layers=False) if self._unrolled else config
        self._dtype = jnp.dtype(config.dtype)
        self._shardings = decode_shardings(config, mesh, rules)
        out = dict(self._shardings)
        if self._unrolled:
            one = jax.tree.map(_of_one_layer, out["layers"])
            out["layers"] = (one,) * config.num_layers
        self.program = jax.jit(self._laid_out, out_shardings=out)

    def _laid_out(self, params: dict) -> dict:
        params = jax.tree.map(lambda x: x.astype(self._dtype), params)
        return params | ({"layers": decode.decode_layers(self.config, params)} if self._unrolled else {})

    def __call__(self, params: dict) -> dict:
        """Returns the parameters in the layout."""
        return params if self.holds(params) else self.filled(params, self.program(self.lacking(params)))

    def holds(self, params: dict) -> bool:
        """Whether all parameters have the layout."""
        return isinstance(params["layers"], tuple) or not jax.tree.leaves(self.lacking(params))

    def lacking(self, params: dict) -> dict:
        """Returns the parameters with None in the place of each array that has the layout."""

        def lacks(x, place):
            has = getattr(x, "sharding", None) and x.dtype == self._dtype and x.sharding.is_equivalent_to(place, x.ndim)
            return None if has else x

        found = jax.tree.map(lacks, params, self._shardings)
        return found | ({"layers": params["layers"]} if self._unrolled else {})

    @staticmethod
    def filled(params: dict, moved: dict) -> dict:
        """Returns the parameters with the arrays of `moved` in place of theirs, where it has any."""
        if isinstance(moved["layers"], tuple):
            params = params | {"layers": moved["layers"]}
        return jax.tree.map(lambda x, new: x if new is None else new, params, moved)


def decode_shardings(config: TransformerConfig, mesh, rules=sharding.DEFAULT_RULES) -> dict:
    """Returns the shardings of a language model's parameters for decoding: split over the mesh axis `tensor` alone."""
    tensor_only = {axis: "tensor" if "tensor" in (target or ()) else None for axis, target in rules.items()}
    return sharding.param_shardings(model.logical_axes(config), model.param_shapes(config), mesh, tensor_only)


def _of_one_layer(stacked: jax.sharding.NamedSharding) -> jax.sharding.NamedSharding:
    """Returns the sharding of one layer's array of a stacked one."""
    return jax.sharding.NamedSharding(stacked.mesh, jax.sharding.PartitionSpec(*stacked.spec[1:]))
