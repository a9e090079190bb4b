"""The settings of a config on a topology: chosen by memory for its mesh, or searched over meshes.

`fit` chooses what the config leaves open, as a run does: how many rows are computed and sampled at once, and what a
backward pass computes again. For a search, formulas drop the meshes that cannot hold the config and order the rest by a
rough time. The first few are then fitted and compiled, and ranked by the bounds of the compiled programs.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping

from rlhf_jax import fitted, sharding
from rlhf_jax import run as run_lib
from rlhf_jax.abstract import Data, Program
from rlhf_jax.fields import registry
from rlhf_jax.model import TransformerConfig, work
from rlhf_jax.plan import planner
from rlhf_jax.plan.topology import Topology
from rlhf_jax.runtime.errors import InputError

_SHARE = 0.9  # of a chip's memory, because formulas are rough
_GROWS = 1.1  # a formula that said too little says at least so many times more at the next attempt
_ATTEMPTS = 5  # choices of settings for a plan
_SAVED = {"full": 2, "dots": 20, "none": 68}  # bytes saved for the backward pass, per token, layer and unit of width


def fit(
    config,
    topology: Topology,
    data: Data,
    stages: list[str],
    corrections: Mapping[tuple[str, str], float],
    share: float = _SHARE,
) -> dict[str, int | str]:
    """Returns the settings with which the stages are fastest on the config's mesh; see `fitted.fit`.

    Args:
      config: the config.
      topology: the topology.
      data: the amounts of data.
      stages: names of the stages.
      corrections: (stage, program) -> factor of its formula: what the compiler said that it takes beside its arguments,
        over what the formula says.
      share: share of a chip's memory that may be used.

    Returns:
      {dotted name of a field of the config: value}, for the fields that the config leaves open.
    """
    chip, mesh = topology.chip, sharding.make_mesh(**config.mesh, devices=topology.devices())
    run = run_lib.without_data(config, data, mesh)

    def programs_of(run):
        found = {}
        for stage in stages:
            with contextlib.suppress(InputError):  # the plan itself says why a stage is refused
                programs = planner.programs_of(run, stage, data)
                found[stage] = [_scaled(program, corrections.get((stage, program.name), 1.0)) for program in programs]
        return found

    found = fitted.fit(run, programs_of, share * chip.memory, _sent(topology, mesh.shape))
    return {name: value for name, value in found.items() if value is not None}


def _sent(topology: Topology, mesh: Mapping) -> float:
    """Returns the FLOPs that a chip executes in the time of a byte that it receives of gathered weights; 0.0 if unknown.

    The chips that hold the shards of a weight may be in several nodes or slices. A node then receives the shards that it lacks
    over the network cards of all its chips that hold shards of that weight. The slower of links and network counts.
    """
    chip = topology.chip
    if not chip.flops or not chip.link_bandwidth:
        return 0.0
    groups = topology.chips // topology.islands // mesh["tensor"]
    own = max(1, min(mesh["fsdp"], groups))  # chips of a node that hold shards of the same weight
    bandwidth, nodes = chip.link_bandwidth, mesh["fsdp"] // own
    if nodes > 1 and chip.network_bandwidth:
        bandwidth = min(bandwidth, chip.network_bandwidth * own / (1 - 1 / nodes))
    return chip.flops / bandwidth


def _scaled(program: Program, factor: float) -> Program:
    """Returns a program whose formula says `factor` times as many bytes."""

    def temporaries(change):
        return {name: factor * size for name, size in program.temporaries(change).items()}

    return dataclasses.replace(program, temporaries=temporaries)


def fastest(fit: Callable[[Mapping], dict], plan: Callable[[dict], dict], first: bool = False) -> dict:
    """Returns the fastest plan of those whose settings are chosen one after another; if none fits, the last.

    The settings are chosen by formulas. The compiler then says what each program takes, which corrects its formula, and they
    are chosen anew: until a plan fits, and on from there as long as the next plan is faster.

    Args:
      fit: corrections -> the settings; see `fit`.
      plan: settings -> their plan.
      first: whether to return the first plan that fits.
    """
    best: dict = {}
    found, tried, corrections = {}, [], {}
    while len(tried) < _ATTEMPTS and (settings := fit(corrections)) not in tried:
        tried.append(settings)
        found = plan(settings)
        hours = found["total"]["hours"]
        if best and not (found["fits"] and hours < best["total"]["hours"]):
            break
        if found["fits"]:
            best = found
            if first or hours is None:
                break
        corrections = corrected(found, corrections)
    return best or found


def corrected(found: dict, corrections: Mapping[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    """Returns the corrections of the next `fit`, by what the compiler said of the programs of a plan.

    Args:
      found: the plan.
      corrections: those with which its settings were chosen.
    """
    said = dict(corrections)
    for row in found["programs"]:
        if not row.get("forecast"):  # a stage was refused, or no formula says what the program takes
            continue
        name = row["stage"], row["program"]
        before = said.get(name, 1.0)
        ratio = (row["temporaries"] + row["cache"]) / row["forecast"] if row["total"] else 0.0
        said[name] = min(ratio, before) if row["fits"] else max(ratio, _GROWS * before)
    return said


def applied(config, settings: Mapping):
    """Returns a copy of the config with the settings that `fit` chose."""
    config = config.copy_and_resolve_references()
    with config.unlocked():  # the model of a stage has only the fields in which it differs
        config.update_from_flattened_dict(settings)
    return config


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A mesh.

    Attributes:
      data: size of the mesh axis "data".
      fsdp: size of the mesh axis "fsdp".
      tensor: size of the mesh axis "tensor".
      memory: rough number of bytes per device, without logits and buffers.
      seconds: rough time of one batch of the stage with the largest batch.
    """

    data: int
    fsdp: int
    tensor: int
    memory: float
    seconds: float

    def apply(self, config):
        """Returns a copy of the config with the mesh."""
        config = config.copy_and_resolve_references()
        config.mesh.update(data=self.data, fsdp=self.fsdp, tensor=self.tensor)
        return config


def candidates(config, shape: TransformerConfig, topology: Topology, stages: list[str]) -> list[Candidate]:
    """Returns the meshes that could hold the config, by rough time: the fastest first.

    Args:
      config: the config.
      shape: shape of the policy.
      topology: the topology.
      stages: names of the stages that must fit.

    Raises:
      InputError: no mesh fits.
    """
    found: dict[tuple, Candidate] = {}
    for candidate in _all(config, shape, topology, stages):
        mesh = candidate.data, candidate.fsdp, candidate.tensor
        fits = candidate.memory <= topology.chip.memory
        if fits and (mesh not in found or candidate.seconds < found[mesh].seconds):
            found[mesh] = candidate
    if not found:
        raise InputError(
            f"no mesh of {topology.name} holds this config: batches do not divide over it, or a chip needs more than "
            f"{topology.chip.memory / 2**30:.2f} GiB; give more chips or other batch sizes"
        )
    return sorted(found.values(), key=lambda c: (c.seconds, c.memory))


def _all(config, shape, topology, stages) -> Iterator[Candidate]:
    """Yields the meshes that divide the heads and the batches of all stages, whether or not they fit.

    A mesh comes once for each number of rows at once and each remat, with the memory and the time that they take.
    """
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
