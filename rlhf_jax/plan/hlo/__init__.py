"""Facts about a compiled program, read from its HLO text: its collectives, and the bytes that it moves.

The compilers' own cost analysis counts the body of a loop once. Here every instruction counts as often as the loops
around it run it.

    facts = read(compiled.as_text(), mesh)
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from rlhf_jax.plan.hlo.collectives import Collective, collectives_of
from rlhf_jax.plan.hlo.module import Module
from rlhf_jax.plan.hlo.traffic import bytes_moved


@dataclasses.dataclass(frozen=True)
class Facts:
    """The collectives and the memory traffic of one run of a compiled program.

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
    """Returns the facts of a compiled module.

    Args:
      text: the HLO text of the module, after all passes (`compiled.as_text()`).
      mesh: the mesh that the module is compiled for. Its devices, in order, are the module's partitions.
      island_of: device -> index of the slice or node that it is in. None puts all devices into one.
      on_chip_spaces: whether memory spaces other than 0 are not the device's main memory, as on a TPU.
    """
    module = Module(text)
    islands = np.array([island_of(device) if island_of else 0 for device in mesh.devices.flat])
    return Facts(
        collectives_of(module, dict(mesh.shape), islands),
        round(sum(weight * bytes_moved(module, i, c, on_chip_spaces) for i, c, weight in module.executed())),
        module.unknown_loops,
    )
