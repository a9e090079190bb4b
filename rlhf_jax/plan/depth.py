"""What a program of a deep model takes, from the same program with few layers.

Where layers are unrolled, each of them adds to a program, and to the time of its compilation. All layers are alike: what
lies in memory, what is moved and what is sent grow by the same amount with each. So two depths say what any other takes.
"""

from collections.abc import Mapping

DEPTHS = 2, 4  # numbers of layers that are compiled


def at(layers: int, depths: tuple[int, int], two: tuple[Mapping, Mapping]) -> dict:
    """Returns what the compiler would say of a program with so many layers, as JSON (see `planner.row`).

    Args:
      layers: number of layers.
      depths: two other numbers of layers.
      two: what the compiler said of the program with each of them. If it failed with one, that is returned.
    """
    for said in two:
        if said.get("peak") is None:
            return dict(said)
    (few, more), (first, second) = depths, two

    def line(a: float, b: float) -> int:
        return round(a + (b - a) * (layers - few) / (more - few))

    parts = {name: _part(first["parts"][name], second["parts"][name], line) for name in first["parts"]}
    seconds = round(first["compile_seconds"] + second["compile_seconds"], 1)
    return {
        **first,
        "peak": line(first["peak"], second["peak"]),
        "parts": parts,
        "compile_seconds": seconds,
        "text_bytes": line(first["text_bytes"], second["text_bytes"]),
        "depths": list(depths),
    }


def _part(first: Mapping, second: Mapping, line) -> dict:
    """Returns the facts of a part of the program."""
    sums: dict[tuple[str, str], list] = {}
    for number, part in enumerate((first, second)):
        for one in part["collectives"]:
            sums.setdefault((one["kind"], one["axes"]), [None, None])[number] = one

    def collective(kind, axes, two):
        names = "count", "bytes", "links", "network"
        a, b = ({name: one[name] if one else 0 for name in names} for one in two)
        return {"kind": kind, "axes": axes, **{name: line(a[name], b[name]) for name in names}}

    found = [collective(kind, axes, two) for (kind, axes), two in sums.items()]
    return {
        "collectives": sorted(found, key=lambda one: -one["bytes"]),
        "moved": line(first["moved"], second["moved"]),
        "unknown_loops": max(first["unknown_loops"], second["unknown_loops"]),
    }
