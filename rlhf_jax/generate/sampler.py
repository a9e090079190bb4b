"""The sampling program on a mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import sharding
from rlhf_jax.data.batches import Prompts
from rlhf_jax.generate.draw import noise
from rlhf_jax.generate.layout import Layout
from rlhf_jax.generate.rollout import Rollout
from rlhf_jax.generate.sizes import Sizes
from rlhf_jax.generate.slots import Decoder
from rlhf_jax.generate.truncation import Truncation
from rlhf_jax.model import TransformerConfig, decode


def sample(
    config: TransformerConfig,
    params: dict,
    prompts: jax.Array,
    prompt_mask: jax.Array,
    key: jax.Array,
    temperature: jax.Array,
    truncation: Truncation | None = None,
    limits: jax.Array | None = None,
    *,
    sizes: Sizes,
) -> Rollout:
    """Samples one completion per row. On a mesh, each device has its own rows and its own part of the slots.

    Args:
      config: shape of the model.
      params: parameters of a language model.
      prompts: i32[B, P], padded on the left.
      prompt_mask: bool[B, P], True on real tokens.
      key: one key for the batch; rows and steps get independent noise.
      temperature: f32[]; 0 takes the most likely token, with log-probabilities at temperature 1.
      truncation: which tokens may be drawn, and a penalty on tokens already in the row; None: all tokens, no penalty.
        The log-probabilities are the model's in either case.
      limits: i32[B], the largest number of tokens of each completion; None: C for all.
      sizes: the sizes. The tokens do not depend on the number of slots.
    """
    uniform = noise(key, len(prompts), sizes.completion)

    mesh = sharding.mesh_to_fill()
    ways = sharding.ways(mesh) if mesh else 1
    axes = sharding.BATCH[0] if ways > 1 else ()
    own = sizes.of_device(len(prompts), ways, axes)

    def local(params, prompts, mask, uniform, limits, temperature, truncation):
        return Decoder.of(config, params, prompts, mask, uniform, temperature, truncation, own, limits).sample()

    arguments = params, prompts, prompt_mask, uniform, limits, temperature, truncation
    if ways == 1:
        return local(*arguments)
    whole, rows = jax.sharding.PartitionSpec(), sharding.BATCH
    spread = jax.shard_map(
        local,
        in_specs=(whole, rows, rows, rows, rows, whole, whole),
        out_specs=rows,
        axis_names=set(axes),
        check_vma=False,
    )
    return spread(*arguments)


class Sampler:
    """`sample` jitted once for its sizes: (params, prompts, key, temperature[, truncation, limits]) -> Rollout on the mesh.

    It consists of two programs: `layout` puts the parameters into the layout of sampling, and `program` samples. `sizes`
    are those of the latter.
    """

    def __init__(
        self,
        config: TransformerConfig,
        mesh,
        rules=sharding.DEFAULT_RULES,
        *,
        completion_length: int,
        eos_id: int | tuple[int, ...],
        pad_id: int,
        slots: int = 0,
        copies: int = 1,
    ):
        self._mesh, self.layout = mesh, Layout(config, mesh, rules)
        chunks = decode.most_chunks(self.layout.config)
        self.sizes = Sizes(completion_length, eos_id, pad_id, slots, copies, chunks)
        self.program = self.of_depth(config.num_layers)

    def of_depth(self, layers: int):
        """Returns the jitted `program` of a model that differs in its number of layers alone."""
        config = dataclasses.replace(self.layout.config, num_layers=layers)

        def program(params, tokens, mask, key, temperature, truncation=None, limits=None):
            return sample(config, params, tokens, mask, key, temperature, truncation, limits, sizes=self.sizes)

        return jax.jit(program, out_shardings=sharding.over_batch(self._mesh))

    def __call__(
        self,
        params: dict,
        prompts: Prompts,
        key: jax.Array,
        temperature: float,
        truncation: Truncation | None = None,
        limits: np.ndarray | None = None,
    ) -> Rollout:
        """Samples completions of prompts from the host; the parameters may be in any layout. See `sample`."""
        tokens, mask, limits = sharding.put_batch((prompts.tokens, prompts.mask, limits), self._mesh)
        return self.program(self.layout(params), tokens, mask, key, jnp.float32(temperature), truncation, limits)
