"""Chooses the fastest settings of a stage's programs that fit into memory.

Settings trade time for memory: how many rows are computed at once, and what a backward pass computes again. Each has its
values from the fastest to the one that takes the least memory. What a program takes is said by formulas (memory.py), and
what a combination costs in time by whoever knows the machine.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence

Options = Mapping[str, Sequence]  # field -> its values, from the fastest to the one of the least memory


def choose(
    needs: Sequence[Callable[[Mapping], float]],
    options: Options,
    limit: float,
    shared: Options | None = None,
    seconds: Callable[[Mapping], float] | None = None,
) -> dict | None:
    """Returns the value of each field with which every program fits; None if none do.

    Args:
      needs: for each program, {field: value} -> the bytes that a device holds while it runs.
      options: the fields of which one can go to less memory without the others.
      limit: bytes of a device that may be used.
      shared: the fields whose values are compared as a whole, such as `remat`; None for none.
      seconds: {field: value} -> the time of the programs; None takes the first values of the shared fields that fit.
    """
    fitting = []
    for values in itertools.product(*(shared or {}).values()):
        found = _least(needs, options, limit, dict(zip(shared or {}, values)))
        if found is not None and seconds is None:
            return found
        if found is not None:
            fitting.append(found)
    return min(fitting, key=seconds, default=None)


def _least(needs, options: Options, limit: float, fixed: dict) -> dict | None:
    """Returns the fastest values of the options that fit beside the fixed ones; None if none do.

    While a program does not fit, the field goes one value on whose next value takes the least memory of it.
    """
    place = dict.fromkeys(options, 0)

    def at(place):
        return fixed | {field: options[field][number] for field, number in place.items()}

    for need in needs:
        while need(at(place)) > limit:
            further = [
                place | {field: number + 1} for field, number in place.items() if number + 1 < len(options[field])
            ]
            best = min(further, key=lambda place: need(at(place)), default=place)
            if not further or need(at(best)) >= need(at(place)) and not _helps(need, options, fixed, place):
                return None
            place = best
    return at(place)


def _helps(need, options: Options, fixed: dict, place: dict) -> bool:
    """Returns whether the last values of all options take less memory than those at a place."""
    now = fixed | {field: options[field][number] for field, number in place.items()}
    return need(fixed | {field: values[-1] for field, values in options.items()}) < need(now)


def parts(rows: int, ways: int) -> list[int]:
    """Returns the numbers of equal parts of a batch whose rows divide over `ways` devices, the fewest parts first."""
    return [count for count in range(1, rows + 1) if rows % count == 0 and (rows // count) % ways == 0]


def rows_at_once(rows: int, ways: int) -> list[int]:
    """Returns the numbers of rows of a batch that can be computed at once over `ways` devices, the largest first."""
    return [rows // count for count in parts(rows, ways)]
