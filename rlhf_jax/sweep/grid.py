"""What the function `sweep(h)` of an experiment file builds its arms from; `h` is this module.

    def sweep(h):
        return h.product([h.sweep("seed", range(3)), h.sweep("ppo_ptx.ptx_coef", [0.0, 0.5, 1.0, 2.0])])

A grid is a list of arms, each a dict of overrides {dotted field of the config: value}.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from rlhf_jax.runtime.errors import InputError

Grid = list[dict[str, Any]]


def sweep(field: str, values: Iterable) -> Grid:
    """One arm for each value of a field."""
    grid = [{field: value} for value in values]
    if not grid:
        raise InputError(f"sweep: {field} has no value")
    return grid


def product(grids: Sequence[Grid]) -> Grid:
    """Every arm of each grid with every arm of the others; the last one varies fastest.

    Raises:
      InputError: two grids set one field.
    """
    return [_joined(arms) for arms in itertools.product(*grids)]


def zipit(grids: Sequence[Grid]) -> Grid:
    """The first arms of all grids as one, the second ones, and so on.

    Raises:
      InputError: grids of different lengths, or two that set one field.
    """
    lengths = [len(grid) for grid in grids]
    if len(set(lengths)) > 1:
        raise InputError(f"sweep: zipit needs grids of one length, these have {', '.join(map(str, lengths))} arms")
    return [_joined(arms) for arms in zip(*grids)]


def chain(grids: Sequence[Grid]) -> Grid:
    """The arms of one grid after those of another."""
    return list(itertools.chain(*grids))


def _joined(arms: Sequence[dict[str, Any]]) -> dict[str, Any]:
    joined = {}
    for arm in arms:
        for field, value in arm.items():
            if field in joined:
                raise InputError(f"sweep: {field} is set twice in one arm")
            joined[field] = value
    return joined
