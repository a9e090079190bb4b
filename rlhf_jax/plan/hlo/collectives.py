"""The collectives of an HLO module: their kinds, their mesh axes, and the bytes that they send."""

import collections
import dataclasses
import math
import re

import numpy as np

from rlhf_jax.plan.hlo.module import Module
from rlhf_jax.plan.hlo.text import size_of

# n devices -> the bytes that each of them sends, as a multiple of the bytes of the whole tensor.
_SENT = {
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "collective-permute": lambda n: 1.0,
    "collective-broadcast": lambda n: 1.0,
}
# Collectives between TPU slices appear as a send with one of these transfer types.
_BETWEEN_SLICES = {
    "ALL_REDUCE": "all-reduce",
    "ALL_GATHER": "all-gather",
    "REDUCE_SCATTER": "reduce-scatter",
    "ALL_TO_ALL": "all-to-all",
    "ONE_TO_ONE": "collective-permute",
}


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind over the same mesh axes, in one run of the program or part, per device.

    Attributes:
      kind: HLO opcode, such as "all-gather".
      axes: names of the mesh axes, joined by "+".
      count: number of collectives that are run.
      bytes: bytes of the whole tensors that are gathered, reduced, or sent on.
      links: least number of bytes that a device sends over links within its slice or node.
      network: least number of bytes that a device sends to other slices or nodes.
    """

    kind: str
    axes: str
    count: int
    bytes: int
    links: int
    network: int


def collectives_of(module: Module, mesh_shape: dict[str, int], islands: np.ndarray, part: str = "") -> list[Collective]:
    """Returns the collectives of a part of a module by kind and axes, those with the most bytes first.

    Args:
      module: the module.
      mesh_shape: sizes of the mesh axes, by name.
      islands: index of the slice or node of each partition.
      part: name of the part.
    """
    # (kind, axes) -> count, bytes, bytes over links, bytes over the network
    sums: dict[tuple[str, str], list[float]] = collections.defaultdict(lambda: [0.0, 0.0, 0.0, 0.0])
    seen: dict[str, float] = {}
    for instruction, where, weight in module.everything(part):
        kind = re.sub(r"-start$", "", instruction.opcode)
        if kind == "ragged-all-to-all":
            kind = "all-to-all"
        if kind == "send" and "xla_megascale_runtime" in instruction.attributes:
            # Each TPU slice has its own program, so the groups of a collective between slices are not in the text. The
            # first device of each slice stands for the group.
            kind = _BETWEEN_SLICES[re.findall(r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes)[0]]
            firsts = np.unique(islands, return_index=True)[1].tolist()
            size = size_of(module.computations[where][instruction.operands[0]].type)
            size *= len(firsts) if kind == "all-gather" else 1
            entry = sums[kind, _axes(firsts, mesh_shape)]
            entry[0] += weight
            entry[1] += weight * size
            entry[3] += weight * size * _SENT[kind](len(firsts))
        if kind not in _SENT or instruction.opcode == "send":
            continue
        if kind == "all-reduce" and where.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"  # a TPU writes one as an all-reduce of which each device keeps its part
        channel = re.search(r"channel_id=(\d+)", instruction.attributes)
        if channel and module.fused(where):
            # A TPU splits a collective into three fusions of one channel: its start, the work that runs meanwhile, and
            # its end. They count once.
            if weight <= seen.get(channel[1], 0.0):
                continue
            weight, seen[channel[1]] = weight - seen.get(channel[1], 0.0), weight
        group = _first_group(instruction.attributes, module.partitions)
        if len(group) < 2:
            continue
        scope = module.computations[where]
        size = sum(size_of(scope[name].type) for name in instruction.operands if name in scope)
        size *= len(group) if kind == "all-gather" else 1
        entry = sums[kind, _axes(group, mesh_shape)]
        _, members = np.unique(islands[group], return_counts=True)
        parts, most = len(members), int(members.max())
        entry[0] += weight
        entry[1] += weight * size
        entry[2] += weight * size * (_SENT[kind](most) if most > 1 else 0.0)
        entry[3] += weight * size * (_SENT[kind](parts) / most if parts > 1 else 0.0)
    found = [Collective(kind, axes, *map(round, numbers)) for (kind, axes), numbers in sums.items()]
    return sorted(found, key=lambda collective: -collective.bytes)


def _first_group(attributes: str, devices: int) -> list[int]:
    """Returns the partitions of a collective's first group, or the first pair of different ones of a permutation.

    The other groups lie along the same mesh axes. The text has one of five forms: pairs; lists; an iota, maybe
    transposed; axes of a mesh, or parts of them; and nothing, which means all devices.
    """
    if found := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", attributes):
        for pair in re.finditer(r"\{(\d+),(\d+)\}", attributes[found.start() :]):
            if pair[1] != pair[2]:
                return [int(pair[1]), int(pair[2])]
        return []
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return [int(number) for number in found[1].split(",")]
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        sides = [int(side) for side in found[3].split(",")]
        order = np.arange(math.prod(sides)).reshape(sides)
        if found[4]:
            order = order.transpose([int(axis) for axis in found[4].split(",")])
        return order.reshape(int(found[1]), int(found[2]))[0].tolist()
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", attributes):
        axes = {name: int(side) for name, side in re.findall(r"'(\w+)'=(\d+)", found[1])}
        order = np.arange(math.prod(axes.values())).reshape(list(axes.values()))
        picked = np.zeros(order.ndim, object)
        for place, name in enumerate(axes):
            part = re.search(rf"'{name}'(?::\((\d+)\)(\d+))?", found[2])
            picked[place] = [0]
            if part and part[1]:  # a sub-axis of `size` members, with `before` parts of the axis above it
                before, size = int(part[1]), int(part[2])
                stride = axes[name] // (before * size)
                picked[place] = [stride * n for n in range(size)]
            elif part:
                picked[place] = list(range(axes[name]))
        return order[np.ix_(*picked)].ravel().tolist()
    return list(range(devices))


def _axes(group: list[int], mesh_shape: dict[str, int]) -> str:
    """Returns the names of the mesh axes along which the members of a group differ, joined by "+"."""
    places = np.unravel_index(group, tuple(mesh_shape.values()))
    return "+".join(name for name, place in zip(mesh_shape, places) if len(set(place.tolist())) > 1)
