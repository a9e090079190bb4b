"""Building blocks of the function `sweep(h)` of an experiment file; `h` is this module.

    def sweep(h):
        return h.product([h.sweep("seed", range(3)), h.sweep("ppo_ptx.ptx_coef", [0.0, 0.5, 1.0, 2.0])])

A grid is a list of arms. Each arm is a dict of overrides, {dotted field of the config: value}.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from rlhf_jax.runtime.errors import InputError

Grid = list[dict[str, Any]]


def sweep(field: str, values: Iterable) -> Grid:
    """Returns a grid with one arm for each value of a field.

    Raises:
      InputError: there are no values.
    """
    grid = [{field: value} for value in values]
    if not grid:
        raise InputError(f"sweep: {field} has no value; give at least one")
    return grid


def product(grids: Sequence[Grid]) -> Grid:
    """Returns the Cartesian product of grids; the last grid varies fastest.

    Raises:
      InputError: two grids set the same field.
    """
    return [_joined(arms) for arms in itertools.product(*grids)]


def zipit(grids: Sequence[Grid]) -> Grid:
    """Returns a grid whose n-th arm joins the n-th arms of all grids.

    Raises:
      InputError: the grids differ in length, or two of them set the same field.
    """
    lengths = [len(grid) for grid in grids]
    if len(set(lengths)) > 1:
        raise InputError(f"sweep: zipit needs grids of one length, these have {', '.join(map(str, lengths))} arms")
    return [_joined(arms) for arms in zip(*grids)]


def chain(grids: Sequence[Grid]) -> Grid:
    """Returns the arms of all grids, one grid after another."""
    return list(itertools.chain(*grids))


def _joined(arms: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the overrides of all arms as one arm; raises InputError if two set the same field."""
    joined = {}
    for arm in arms:
        for field, value in arm.items():
            if field in joined:
                raise InputError(f"sweep: {field} is set twice in one arm; remove one")
            joined[field] = value
    return joined
