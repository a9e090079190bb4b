"""Facts about a compiled program, read from its HLO text: its collectives, and the bytes that it moves.

The compilers' own cost analysis counts the body of a loop once, and all branches of a conditional. Here every
instruction counts as often as the loops around it run it.

    facts = read(compiled.as_text(), mesh)

A program whose loops depend on its data has parts (see module.py), which are read one by one and added up by how often
each of them runs:

    parts = read_parts(compiled.as_text(), mesh, scopes=("blocks", "lengths"))
    facts = together(parts, {"blocks": 32, "lengths 0": 8, "lengths 1": 24})
"""

import collections
import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping

import numpy as np

from rlhf_jax.plan.hlo.collectives import Collective, collectives_of
from rlhf_jax.plan.hlo.module import Module, part_of
from rlhf_jax.plan.hlo.traffic import bytes_moved

__all__ = ["Collective", "Facts", "part_of", "read", "read_parts", "scopes_of", "together"]


@dataclasses.dataclass(frozen=True)
class Facts:
    """The collectives and the memory traffic of one run of a compiled program, or of a part of it.

    Attributes:
      collectives: the collectives by kind and axes, those with the most bytes first.
      moved: bytes that all instructions read from and write to main memory, per device. Data that stay on the chip
        between two instructions are not counted, nor the part of an array that a slice does not touch.
      unknown_loops: number of loops whose trip count could not be read; their bodies count once.
    """

    collectives: list[Collective]
    moved: int
    unknown_loops: int


def read(text: str, mesh, island_of: Callable | None = None, *, on_chip_spaces: bool = False) -> Facts:
    """Returns the facts of a compiled module whose loops do not depend on its data; see `read_parts`."""
    return read_parts(text, mesh, island_of, on_chip_spaces=on_chip_spaces)[""]


def read_parts(
    text: str, mesh, island_of: Callable | None = None, *, on_chip_spaces: bool = False, scopes: Collection[str] = ()
) -> dict[str, Facts]:
    """Returns the facts of one run of each part of a compiled module.

    Args:
      text: the HLO text of the module, after all passes (`compiled.as_text()`).
      mesh: the mesh that the module is compiled for. Its devices, in order, are the module's partitions.
      island_of: device -> index of the slice or node that it is in. None puts all devices into one.
      on_chip_spaces: whether memory spaces other than 0 are not the device's main memory, as on a TPU.
      scopes: the scopes whose loop or conditional is a part of its own.
    """
    module = Module(text, scopes)
    islands = np.array([island_of(device) if island_of else 0 for device in mesh.devices.flat])

    def facts(part):
        moved = sum(
            weight * bytes_moved(module, instruction, around, on_chip_spaces)
            for instruction, around, weight in module.executed(part)
        )
        found = collectives_of(module, dict(mesh.shape), islands, part)
        return Facts(found, round(moved), 0 if part else module.unknown_loops)

    return {part: facts(part) for part in module.parts}


def together(parts: Mapping[str, Facts], runs: Mapping[str, float]) -> Facts:
    """Returns the facts of a whole program.

    Args:
      parts: the facts of each part.
      runs: how often each part runs in one run of the program. The part "" runs once.

    Raises:
      ValueError: the numbers of runs are not those of the program's parts.
    """
    runs = {"": 1.0, **runs}
    if runs.keys() != parts.keys():
        raise ValueError(f"the program has the parts {sorted(parts)}, and runs are known of {sorted(runs)}")
    sums: dict[tuple[str, str], np.ndarray] = collections.defaultdict(lambda: np.zeros(4))
    for part, facts in parts.items():
        for c in facts.collectives:
            sums[c.kind, c.axes] += runs[part] * np.array([c.count, c.bytes, c.links, c.network])
    found = [Collective(kind, axes, *map(round, numbers.tolist())) for (kind, axes), numbers in sums.items()]
    moved = round(sum(runs[part] * facts.moved for part, facts in parts.items()))
    found.sort(key=lambda collective: -collective.bytes)
    return Facts(found, moved, sum(facts.unknown_loops for facts in parts.values()))


def scopes_of(parts: Iterable[str]) -> list[str]:
    """Returns the scopes that parts of a program stand in."""
    return list(dict.fromkeys(part.partition(" ")[0] for part in parts if part))
