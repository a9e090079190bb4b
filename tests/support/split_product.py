"""Compiles a product with weights that are split over 16 TPU chips, and prints how its parts travel."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from rlhf_jax import sharding
from rlhf_jax.plan import topology

place = topology.parse("v5e:4x4")
topology.prepare([place])
mesh = sharding.make_mesh(1, 16, 1, devices=place.devices())


def array(shape, *axes):
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec(*axes)))


rows, weights = array((512, 2048, 2048), "fsdp"), array((2048, 8192), "fsdp")
text = jax.jit(jnp.matmul).lower(rows, weights).compile().as_text()
print(*(name for name in ("all-gather", "collective-permute") if f" {name}" in text))
