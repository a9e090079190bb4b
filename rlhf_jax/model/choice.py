"""Chooses how many rows of a batch are computed at once: as many as fit into memory.

Each setting has its values from the fastest to the one that takes the least memory. What a program takes is said by
formulas (memory.py).
"""

from collections.abc import Callable, Mapping, Sequence

Options = Mapping[str, Sequence]  # field -> its values, from the fastest to the one of the least memory


def choose(needs: Sequence[Callable[[Mapping], float]], options: Options, limits: Sequence[float]) -> dict | None:
    """Returns the fastest value of each field with which every program fits; None if none do.

    While a program does not fit, the field goes one value on whose next value takes the least memory of it.

    Args:
      needs: for each program, {field: value} -> the bytes that a device holds while it runs.
      options: the fields.
      limits: for each program, the bytes of a device that it may use.
    """
    place = dict.fromkeys(options, 0)

    def at(place):
        return {field: options[field][number] for field, number in place.items()}

    last = {field: values[-1] for field, values in options.items()}
    for need, limit in zip(needs, limits):
        while need(at(place)) > limit:
            further = [
                place | {field: number + 1} for field, number in place.items() if number + 1 < len(options[field])
            ]
            best = min(further, key=lambda place: need(at(place)), default=place)
            if not further or need(at(best)) >= need(at(place)) and need(last) >= need(at(place)):
                return None
            place = best
    return at(place)


def parts(rows: int, ways: int) -> list[int]:
    """Returns the numbers of equal parts of a batch whose rows divide over `ways` devices, the fewest parts first."""
    return [count for count in range(1, rows + 1) if rows % count == 0 and (rows // count) % ways == 0]


def rows_at_once(rows: int, ways: int) -> list[int]:
    """Returns the numbers of rows of a batch that can be computed at once over `ways` devices, the largest first."""
    return [rows // count for count in parts(rows, ways)]
