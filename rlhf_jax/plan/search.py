"""A search for the mesh, microbatches and remat of a config on a topology: formulas choose, the compiler decides.

Formulas drop the candidates that cannot fit and order the rest by a rough time. The first few are then compiled, and
ranked by the bounds of the compiled programs.
"""

import dataclasses
import itertools
from collections.abc import Iterator

from rlhf_jax.fields import registry
from rlhf_jax.model import TransformerConfig, work
from rlhf_jax.plan.topology import Topology
from rlhf_jax.runtime.errors import InputError

_SAVED = {"full": 2, "dots": 20, "none": 68}  # bytes saved for the backward pass, per token, layer and unit of width
_SAMPLED_ROWS = 8  # completions that a device samples at once


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A mesh with microbatches and remat.

    Attributes:
      data: size of the mesh axis "data".
      fsdp: size of the mesh axis "fsdp".
      tensor: size of the mesh axis "tensor".
      rows: rows of a batch that the devices of one tensor group process at once, at most.
      remat: value of model.remat.
      memory: rough number of bytes per device, without logits and buffers.
      seconds: rough time of one batch of the stage with the largest batch.
    """

    data: int
    fsdp: int
    tensor: int
    rows: int
    remat: str
    memory: float
    seconds: float

    def settings(self, config, stages: list[str]) -> dict[str, int | str]:
        """Returns the values of the config's fields that the candidate sets, by dotted name."""
        at_once = self.data * self.fsdp * self.rows
        found = {"mesh.data": self.data, "mesh.fsdp": self.fsdp, "mesh.tensor": self.tensor, "model.remat": self.remat}
        for stage in stages:
            section = config[stage]
            for field, rows in registry.of(config, stage).parts(section).items():
                # Sampling takes more rows at once: it reads all weights for every token, and beside the weights the
                # keys and values of a few rows are small.
                whole = self.data * self.fsdp * _SAMPLED_ROWS if field == "sample_parts" else at_once
                found[f"{stage}.{field}"] = _parts(rows, whole)
        return found

    def apply(self, config, stages: list[str]):
        """Returns a copy of the config with the candidate's settings."""
        config = config.copy_and_resolve_references()
        config.update_from_flattened_dict(self.settings(config, stages))
        return config


def candidates(config, shape: TransformerConfig, topology: Topology, stages: list[str]) -> list[Candidate]:
    """Returns the candidates that could fit, by rough time: the fastest first.

    Args:
      config: the config.
      shape: shape of the policy.
      topology: the topology.
      stages: names of the stages that must fit.

    Raises:
      InputError: no candidate fits.
    """
    found = [c for c in _all(config, shape, topology, stages) if c.memory <= topology.chip.memory]
    if not found:
        raise InputError(
            f"no mesh of {topology.name} holds this config: batches do not divide over it, or a chip needs more than "
            f"{topology.chip.memory / 2**30:.2f} GiB; give more chips or other batch sizes"
        )
    return sorted(found, key=lambda c: (c.seconds, c.memory))


def _all(config, shape, topology, stages) -> Iterator[Candidate]:
    """Yields the candidates that divide the heads and the batches of all stages, whether or not they fit."""
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
        weights = work.parameters(shape)
        each = max(registry.of(config, stage).weight_bytes(config[stage]) for stage in stages)
        if shape.lora:  # the base is frozen, and in two bytes
            weights -= (base := work.parameters(dataclasses.replace(shape, lora=None)))
            state = (weights * each + 2 * base) / chips
        else:
            state = weights * each / chips
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
    """Returns a rough time of one batch: the larger of its compute and its communication; 0.0 without known rates.

    Communication is the weights gathered for every part of the batch, and the activations summed over the tensor axis
    in every layer.
    """
    chip = topology.chip
    if chip.flops is None:
        return 0.0
    parts = _parts(batch, ways * rows)
    passes = 3 if shape.remat == "full" else 2
    compute = work.training(shape, batch, length, batch * length).executed / topology.chips / chip.flops
    gathered = parts * work.parameters(shape) / tensor * (2 * passes + 4) * (ways > 1)
    summed = 2 * passes * 2 * shape.num_layers * batch / ways * length * shape.embed_dim * 2 * (tensor - 1) / tensor
    return max(compute, (gathered + summed) / chip.link_bandwidth)


def _batch_of(section) -> int:
    """Returns the number of rows of an optimizer step of a stage."""
    return section[registry.KINDS[section.kind].batch_field]


def _parts(batch: int, at_once: int) -> int:
    """Returns the smallest number of equal parts of a batch of which none is larger than `at_once`."""
    return next(parts for parts in range(max(1, -(-batch // at_once)), batch + 1) if batch % parts == 0)
