"""Lower bounds on the time that a program takes, from the rates of a chip."""

from rlhf_jax.model.work import Work
from rlhf_jax.plan.hlo import Facts
from rlhf_jax.plan.topology import Chip

PETAFLOP_S_DAY = 1e15 * 86_400


def bounds(chip: Chip, chips: int, work: Work, facts: Facts) -> dict[str, float]:
    """Returns lower bounds on the seconds of one run of a program, by the resource that sets each bound.

    Each bound assumes that its resource alone limits the program, and works at the chip's full rate.

    Args:
      chip: the chip, with its rates.
      chips: number of chips that share the work.
      work: FLOPs of one run, all chips together.
      facts: bytes moved and sent in one run, per chip.

    Returns:
      Seconds under "compute", "memory" and "links", and under "network" if anything is sent over it; {} for a chip
      without known rates.
    """
    if chip.flops is None:
        return {}
    links = sum(collective.links for collective in facts.collectives) / chip.link_bandwidth
    network = sum(collective.network for collective in facts.collectives)
    found = {
        "compute": work.executed / chips / chip.flops,
        "memory": facts.moved / chip.memory_bandwidth,
        "links": links,
    }
    return found | ({"network": network / chip.network_bandwidth} if network else {})


def floor(chip: Chip, chips: int, work: Work, read: float) -> float | None:
    """Returns the seconds that no program for the work can beat; None for a chip without known rates.

    It is the larger of two times: that of the model FLOPs at the chip's full rate, and that of the bytes that decoding
    must read at full bandwidth.

    Args:
      chip: the chip, with its rates.
      chips: number of chips that share the work.
      work: FLOPs of one run, all chips together.
      read: bytes that each chip must read.
    """
    if chip.flops is None:
        return None
    return max(work.flops / chips / chip.flops, read / chip.memory_bandwidth)
