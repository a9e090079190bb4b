"""Which mesh, microbatches and remat a config could use on a topology: formulas choose, the compiler decides.

Formulas drop what cannot fit and order the rest by a rough time; the first few are compiled, and ranked by
the bounds of what was compiled.
"""

import dataclasses
import itertools
from collections.abc import Iterator

from rlhf_jax.model import TransformerConfig
from rlhf_jax.plan import estimate
from rlhf_jax.plan.topology import Topology
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.stages import ppo as ppo_stage

_BYTES_OF_A_WEIGHT = {
    "pretrain": 12,
    "sft": 12,
    "reward_model": 12,
    "dpo": 12,
    "ppo": 16,
}  # float32: it, Adam's two, the average
_SAVED = {
    "full": 2,
    "dots": 20,
    "none": 68,
}  # bytes of a token, layer and unit of width that backward finds saved
_SAMPLED_ROWS = 8  # of a device at once: keys and values are small beside the weights, which are read for every token


@dataclasses.dataclass(frozen=True)
class Candidate:
    """
    Attributes:
      rows: of a batch that a device (with those it shares tensors with) takes at once, where a stage has so many.
      memory: bytes per device, roughly, without logits and buffers.
      seconds: of one batch of the largest stage, roughly.
    """

    data: int
    fsdp: int
    tensor: int
    rows: int
    remat: str
    memory: float
    seconds: float

    def settings(self, config, stages: list[str]) -> dict[str, int | str]:
        """The fields of the config that it sets."""
        at_once = self.data * self.fsdp * self.rows
        found = {
            "mesh.data": self.data,
            "mesh.fsdp": self.fsdp,
            "mesh.tensor": self.tensor,
            "model.remat": self.remat,
        }
        for stage in stages:
            section = config[stage]
            found[f"{stage}.microbatches"] = _parts(_batch_of(section), at_once)
            if section.kind == "ppo" and section.ptx_coef:
                found[f"{stage}.ptx_microbatches"] = _parts(ppo_stage.ptx_rows(section), at_once)
            if section.kind == "ppo":
                ways = self.data * self.fsdp
                found[f"{stage}.sample_parts"] = _parts(section.batch_size, ways * _SAMPLED_ROWS)
        return found

    def apply(self, config, stages: list[str]):
        """A copy of the config that uses it."""
        config = config.copy_and_resolve_references()
        config.update_from_flattened_dict(self.settings(config, stages))
        return config


def candidates(config, shape: TransformerConfig, topology: Topology, stages: list[str]) -> list[Candidate]:
    """What could fit, the most promising first.

    Raises:
      InputError: nothing could.
    """
    found = [c for c in _all(config, shape, topology, stages) if c.memory <= topology.chip.memory]
    if not found:
        raise InputError(
            f"no mesh of {topology.name} holds this config: its batches do not divide, or states and activations alone "
            f"need more than {topology.chip.memory / 2**30:.2f} GiB a chip"
        )
    return sorted(found, key=lambda c: (c.seconds, c.memory))


def _all(config, shape, topology, stages) -> Iterator[Candidate]:
    chips, slices = topology.chips, topology.slices
    sections = [config[stage] for stage in stages]
    smallest = min(_batch_of(section) for section in sections)
    tensors = [
        2**n
        for n in range(8)
        if chips // slices % 2**n == 0 and shape.num_heads % 2**n == 0 and shape.kv_heads % 2**n == 0
    ]
    for tensor, rows, remat in itertools.product(tensors, (1, 2, 4, 8, 16), ("none", "dots", "full")):
        ways = chips // tensor
        if any(_batch_of(section) % ways for section in sections) or rows > max(1, smallest // ways):
            continue
        weights = estimate.parameters(shape)
        state = weights * max(_BYTES_OF_A_WEIGHT[section.kind] for section in sections) / chips
        length = config.prompt_length + config.completion_length
        gradient = 4 * weights / chips
        saved = _SAVED[remat] * rows * length * shape.embed_dim * shape.num_layers / tensor
        if remat == "none" and shape.attention == "xla":
            saved += 8 * rows * length**2 * shape.num_heads / tensor * shape.num_layers
        yield Candidate(
            slices,
            ways // slices,
            tensor,
            rows,
            remat,
            state + gradient + saved,
            _seconds(
                dataclasses.replace(shape, remat=remat),
                topology,
                ways,
                tensor,
                rows,
                length,
                max(map(_batch_of, sections)),
            ),
        )


def _seconds(shape, topology, ways, tensor, rows, length, batch) -> float:
    """A batch: computing it, gathering the weights for every part of it, summing over tensor in every layer."""
    chip = topology.chip
    if chip.flops is None:
        return 0.0
    parts = _parts(batch, ways * rows)
    passes = 3 if shape.remat == "full" else 2
    compute = estimate.training(shape, batch, length, batch * length).executed / topology.chips / chip.flops
    gathered = parts * estimate.parameters(shape) / tensor * (2 * passes + 4) * (ways > 1)
    summed = 2 * passes * 2 * shape.num_layers * batch / ways * length * shape.embed_dim * 2 * (tensor - 1) / tensor
    return max(compute, (gathered + summed) / chip.link_bandwidth)


def _batch_of(section) -> int:
    return section.minibatch_size if section.kind == "ppo" else section.batch_size


def _parts(batch: int, at_once: int) -> int:
    """The fewest equal parts of a batch that are not larger than `at_once`."""
    return next(parts for parts in range(max(1, -(-batch // at_once)), batch + 1) if batch % parts == 0)
