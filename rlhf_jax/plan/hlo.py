"""Facts about a compiled program, read from its HLO text: its collectives, and the bytes that it moves.

The compilers' own cost analysis counts the body of a loop once. Here every instruction counts as often as the loops
around it run it.

    facts = read(compiled.as_text(), mesh)
"""

import collections
import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Callable, Iterator

import numpy as np

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "f16": 2, "c64": 8, "c128": 16, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^{}]*\})?")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([^\s(]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([^\s=]+) = (.*)$")
_CALLED = re.compile(
    r"\b(?:calls|body|to_apply|called_computations|branch_computations|true_computation|false_computation)="
)

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
# Opcodes that do not read or write main memory themselves.
_NO_TRAFFIC = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
    "after-all",
    "partition-id",
    "replica-id",
    "opt-barrier",
    "optimization-barrier",
    "iota",
    "async-start",
    "async-update",
}


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind over the same mesh axes, in one run of the program, per device.

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


@dataclasses.dataclass
class _Instruction:
    """One HLO instruction; operands are names, type and attributes are text."""

    name: str
    opcode: str
    type: str
    operands: list[str]
    attributes: str
    root: bool

    @functools.cached_property
    def called(self) -> list[str]:
        """The names of the computations that the instruction calls."""
        names = []
        for match in _CALLED.finditer(self.attributes):
            rest = self.attributes[match.end() :]
            listed = rest[1 : rest.index("}")] if rest.startswith("{") else re.match(r"[^\s,]+", rest)[0]
            names += [name.strip().lstrip("%") for name in listed.split(",")]
        return names


_Computation = dict[str, _Instruction]  # the instructions by name, in the order of the text


def read(text: str, mesh, island_of: Callable | None = None, *, on_chip_spaces: bool = False) -> Facts:
    """Returns the facts of a compiled module.

    Args:
      text: the HLO text of the module, after all passes (`compiled.as_text()`).
      mesh: the mesh that the module is compiled for. Its devices, in order, are the module's partitions.
      island_of: device -> index of the slice or node that it is in. None puts all devices into one.
      on_chip_spaces: whether memory spaces other than 0 are not the device's main memory, as on a TPU.
    """
    module = _Module(text)
    islands = np.array([island_of(device) if island_of else 0 for device in mesh.devices.flat])
    return Facts(
        _collectives(module, dict(mesh.shape), islands),
        round(sum(weight * module.traffic(i, c, on_chip_spaces) for i, c, weight in module.executed())),
        module.unknown_loops,
    )


class _Module:
    """A parsed HLO module, with how often each of its computations is run."""

    def __init__(self, text: str):
        self.computations, entry = _parse(text)
        header = re.search(r"num_partitions=(\d+)", text[: text.find("\n")])
        self.partitions = int(header[1]) if header else 1
        self.unknown_loops = 0
        self._weights: dict[str, float] = collections.defaultdict(float)
        self._fused: set[str] = set()
        self._visit(entry, 1.0, fused=False)

    def executed(self) -> Iterator[tuple[_Instruction, _Computation, float]]:
        """Yields (instruction, its computation, how often it is run), for the instructions outside of fusions.

        A fusion is run as a whole: only its operands and its result are in main memory.
        """
        for name, weight in self._weights.items():
            if name not in self._fused:
                for instruction in self.computations[name].values():
                    yield instruction, self.computations[name], weight

    def everything(self) -> Iterator[tuple[_Instruction, str, float]]:
        """Yields (instruction, name of its computation, how often it is run), inside of fusions too."""
        for name, weight in self._weights.items():
            for instruction in self.computations[name].values():
                yield instruction, name, weight

    def fused(self, name: str) -> bool:
        """Returns whether a computation is part of a fusion or a custom call."""
        return name in self._fused

    def _visit(self, name: str, weight: float, fused: bool) -> None:
        """Adds `weight` runs of a computation, and of those that it calls."""
        self._weights[name] += weight
        if fused:
            self._fused.add(name)
        for instruction in self.computations[name].values():
            turns = self._turns(instruction, self.computations[name]) if instruction.opcode == "while" else 1
            inside = fused or instruction.opcode in ("fusion", "custom-call")
            if instruction.opcode in ("fusion", "while", "call", "conditional", "async-start", "custom-call"):
                for called in instruction.called:
                    if called in self.computations:
                        self._visit(called, weight * turns, inside)

    def _turns(self, loop: _Instruction, around: _Computation) -> int:
        """Returns a loop's trip count: the compiler's note, or the limit in its condition `counter < limit`.

        A loop whose trip count cannot be read counts as one turn, and among the unknown loops.
        """
        if found := re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', loop.attributes):
            return int(found[1])
        condition = self.computations[re.search(r"condition=%?([^\s,]+)", loop.attributes)[1]]
        bounds = [bound for bound in self._bounds(condition) if bound]
        if not bounds:
            self.unknown_loops += 1
            return 1
        index, limit = bounds[0]
        start = self._constant(around, around[loop.operands[0]].operands[index]) if index is not None else 0
        return max(limit - (start or 0), 0)

    def _bounds(self, condition: _Computation) -> Iterator[tuple[int | None, int] | None]:
        """Yields (index of the counter in the loop's tuple, its limit), for every comparison of a condition."""
        for instruction in condition.values():
            if instruction.opcode == "fusion":
                arguments = instruction.operands
                inner = self.computations[instruction.called[0]]
                parameters = {_parameter_number(i): i.name for i in inner.values() if i.opcode == "parameter"}
                outside = {parameters[n]: name for n, name in enumerate(arguments) if n in parameters}
            else:
                inner, outside = {instruction.name: instruction}, {}
            for compare in inner.values():
                if compare.opcode != "compare" or "direction=LT" not in compare.attributes:
                    continue
                names = [outside.get(name, name) for name in compare.operands]
                scopes = [condition if name in condition else inner for name in names]
                limit = self._constant(scopes[1], names[1])
                counter = scopes[0].get(names[0])
                if limit is not None and counter is not None:
                    yield _tuple_index(counter), limit

    def _constant(self, scope: _Computation, name: str) -> int | None:
        """Returns the integer that a name stands for, followed through copies; None if it is not a constant."""
        while name in scope:
            instruction = scope[name]
            if instruction.opcode == "constant":
                found = re.match(r"-?\d+", instruction.operands[0]) if instruction.operands else None
                return int(found[0]) if found else None
            if instruction.opcode not in ("copy", "bitcast", "convert", "reshape"):
                return None
            name = instruction.operands[0]
        return None

    # ------------------------------------------------------------------------ memory

    def traffic(self, instruction: _Instruction, scope: _Computation, on_chip: bool) -> float:
        """Returns the bytes of main memory that one run of an instruction reads and writes.

        Args:
          instruction: the instruction.
          scope: the computation that it is in.
          on_chip: whether memory spaces other than 0 are not main memory.
        """
        if instruction.opcode in _NO_TRAFFIC or instruction.opcode.endswith("-done"):
            return 0.0
        size = functools.partial(_size, on_chip_spaces=on_chip)
        if instruction.opcode == "custom-call" and "AllocateBuffer" in instruction.attributes:
            return 0.0
        if instruction.opcode in ("send", "recv"):
            return size(instruction.type)
        if instruction.opcode.endswith("-start"):  # its type lists both the operands and the results
            read = sum(size(scope[name].type) for name in instruction.operands if name in scope)
            return max(size(instruction.type), read)
        if instruction.opcode == "fusion":
            inner = self.computations[instruction.called[0]]
            parameters = {_parameter_number(i): i.name for i in inner.values() if i.opcode == "parameter"}
            read = sum(
                min(size(scope[name].type), self._read(inner, parameters[n], size))
                for n, name in enumerate(instruction.operands)
                if name in scope and n in parameters
            )
            root = next(i for i in inner.values() if i.root)
            return read + min(size(instruction.type), self._written(inner, root, size))
        return self._plain(instruction, scope, size)

    def _plain(self, instruction, scope, size) -> float:
        """Returns the bytes that an instruction outside of a fusion reads and writes.

        A slice reads and writes as much as its result. An update in place reads and writes as much as the update; a
        scatter reads what it updates as well.
        """
        types = [scope[name].type for name in instruction.operands if name in scope]
        if instruction.opcode in ("dynamic-slice", "slice", "gather"):
            return 2 * size(instruction.type)
        if instruction.opcode == "dynamic-update-slice":
            return 2 * size(types[1])
        if instruction.opcode == "scatter":
            return 3 * size(types[-1])
        return size(instruction.type) + sum(map(size, types))

    def _read(self, inner: _Computation, name: str, size) -> float:
        """Returns the bytes that a fusion reads of a parameter: those of the slices if only slices are used, else inf.

        The caller takes the minimum with the parameter's size, so inf stands for the whole parameter.
        """
        total = 0.0
        for user in inner.values():
            if name not in user.operands:
                continue
            place = user.operands.index(name)
            if user.opcode in ("dynamic-slice", "slice", "gather") and place == 0:
                total += size(_main_memory(user.type))
            elif user.opcode == "dynamic-update-slice" and place == 0:
                pass  # the array is updated in place, not read
            elif user.opcode in ("bitcast", "reshape"):
                total += self._read(inner, user.name, size)
            elif user.opcode == "fusion":
                deeper = self.computations[user.called[0]]
                named = next(
                    i.name for i in deeper.values() if i.opcode == "parameter" and _parameter_number(i) == place
                )
                total += self._read(deeper, named, size)
            elif user.opcode == "tuple":
                pass  # a tuple hands the array through
            else:
                return math.inf
        return total

    def _written(self, inner: _Computation, root: _Instruction, size) -> float:
        """Returns the bytes of a fusion's result that are written; of an update in place, those of the update alone."""
        if root.opcode == "tuple":
            return sum(self._written(inner, inner[name], size) for name in root.operands)
        if root.opcode == "bitcast":
            return self._written(inner, inner[root.operands[0]], size)
        if root.opcode == "dynamic-update-slice":
            return size(_main_memory(inner[root.operands[1]].type)) if size(root.type) else 0.0
        if root.opcode == "parameter":
            return 0.0
        return size(root.type)


def _collectives(module: _Module, mesh_shape: dict[str, int], islands: np.ndarray) -> list[Collective]:
    """Returns the collectives of a module by kind and axes, those with the most bytes first.

    Args:
      module: the module.
      mesh_shape: sizes of the mesh axes, by name.
      islands: index of the slice or node of each partition.
    """
    # (kind, axes) -> count, bytes, bytes over links, bytes over the network
    sums: dict[tuple[str, str], list[float]] = collections.defaultdict(lambda: [0.0, 0.0, 0.0, 0.0])
    seen: dict[str, float] = {}
    for instruction, where, weight in module.everything():
        kind = re.sub(r"-start$", "", instruction.opcode)
        if kind == "ragged-all-to-all":
            kind = "all-to-all"
        if kind == "send" and "xla_megascale_runtime" in instruction.attributes:
            # Each TPU slice has its own program, so the groups of a collective between slices are not in the text. The
            # first device of each slice stands for the group.
            kind = _BETWEEN_SLICES[re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes)[1]]
            firsts = np.unique(islands, return_index=True)[1].tolist()
            size = _size(module.computations[where][instruction.operands[0]].type)
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
        size = sum(_size(scope[name].type) for name in instruction.operands if name in scope)
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
        sides = {name: int(side) for name, side in re.findall(r"'(\w+)'=(\d+)", found[1])}
        order = np.arange(math.prod(sides.values())).reshape(list(sides.values()))
        picked = np.zeros(order.ndim, object)
        for place, name in enumerate(sides):
            part = re.search(rf"'{name}'(?::\((\d+)\)(\d+))?", found[2])
            picked[place] = [0]
            if part and part[1]:  # a sub-axis of `size` members, with `before` parts of the axis above it
                before, size = int(part[1]), int(part[2])
                stride = sides[name] // (before * size)
                picked[place] = [stride * n for n in range(size)]
            elif part:
                picked[place] = list(range(sides[name]))
        return order[np.ix_(*picked)].ravel().tolist()
    return list(range(devices))


def _axes(group: list[int], mesh_shape: dict[str, int]) -> str:
    """Returns the names of the mesh axes along which the members of a group differ, joined by "+"."""
    places = np.unravel_index(group, tuple(mesh_shape.values()))
    return "+".join(name for name, place in zip(mesh_shape, places) if len(set(place.tolist())) > 1)


# ---------------------------------------------------------------------------- the text


def _parse(text: str) -> tuple[dict[str, _Computation], str]:
    """Returns all computations by name, and the name of the entry computation.

    Raises:
      ValueError: the text has no entry computation.
    """
    computations, current, entry = {}, None, None
    for line in text.splitlines():
        if current is None:
            if header := _COMPUTATION.match(line):
                current = computations[header[2]] = {}
                entry = header[2] if header[1] else entry
        elif line == "}":  # exactly: lines of a kernel's source in a custom call may begin with a brace
            current = None
        elif found := _INSTRUCTION.match(line):
            if instruction := _instruction(found[2], found[3], bool(found[1])):
                current[instruction.name] = instruction
    if entry is None:
        raise ValueError("the text is no HLO module: it has no ENTRY")
    return computations, entry


def _instruction(name: str, rest: str, root: bool) -> _Instruction | None:
    """Returns the instruction of a line, or None if the line is not one.

    Args:
      name: name before the "=".
      rest: text after the "=": type, opcode, operands in parentheses, attributes.
      root: whether the line is marked as the root of its computation.
    """
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    type_, rest = rest[:end], rest[end:].lstrip()
    opcode, parenthesis, _ = rest.partition("(")
    if not parenthesis or not re.fullmatch(r"[a-z][\w-]*", opcode):
        return None  # the line belongs to the source of a kernel
    end = _closing(rest, len(opcode))
    inside = rest[len(opcode) + 1 : end]
    if opcode in ("constant", "parameter"):
        operands = [inside]
    else:
        operands = re.findall(r"%([^\s,()]+)", inside) or [
            part.split()[-1] for part in inside.split(",") if part.strip()
        ]
    return _Instruction(name, opcode, type_, operands, rest[end + 1 :], root)


def _closing(text: str, start: int) -> int:
    """Returns the index at which the parenthesis that opens at or after `start` closes."""
    depth = 0
    for place in itertools.count(start):
        if place >= len(text):
            return len(text)
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0 and text[place] == ")":
            return place


def _size(type_: str, on_chip_spaces: bool = False) -> float:
    """Returns the bytes of all arrays of a type.

    With on_chip_spaces, arrays in memory spaces other than 0 count nothing: they lie on the chip.
    """
    total = 0.0
    for dtype, sides, layout in _ARRAY.findall(type_):
        if on_chip_spaces and re.search(r"S\(\d", layout):
            continue
        total += _item(dtype) * math.prod(int(side) for side in sides.split(",") if side)
    return total


def _main_memory(type_: str) -> str:
    """Returns a type without its layouts, whose memory spaces do not say, inside a fusion, where the data come from."""
    return _ARRAY.sub(r"\1[\2]", type_)


def _item(dtype: str) -> float:
    """Returns the bytes of an element; 0.0 for a word that is no dtype."""
    if dtype in _BYTES:
        return _BYTES[dtype]
    bits = re.match(r"[a-z]+(\d+)", dtype)
    return int(bits[1]) / 8 if bits else 0.0


def _parameter_number(instruction: _Instruction) -> int:
    """Returns the position of a parameter among the arguments of its computation."""
    return int(instruction.operands[0])


def _tuple_index(instruction: _Instruction) -> int | None:
    """Returns the index of a get-tuple-element; None for another instruction."""
    found = re.search(r"\bindex=(\d+)", instruction.attributes)
    return int(found[1]) if instruction.opcode == "get-tuple-element" and found else None
