"""The text of an HLO module, parsed: its computations and instructions, and the sizes of their types."""

import dataclasses
import functools
import math
import re

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "f16": 2, "c64": 8, "c128": 16, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^{}]*\})?")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([^\s(]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([^\s=]+) = (.*)$")
_CALLED = re.compile(
    r"\b(?:calls|body|to_apply|called_computations|branch_computations|true_computation|false_computation)="
)


@dataclasses.dataclass
class Instruction:
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
            listed = rest[1 : rest.index("}")] if rest.startswith("{") else re.split(r"[\s,]", rest, maxsplit=1)[0]
            names += [name.strip().lstrip("%") for name in listed.split(",")]
        return names


Computation = dict[str, Instruction]  # the instructions by name, in the order of the text


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """Returns all computations by name, and the name of the entry computation.

    Raises:
      ValueError: the text has no entry computation.
    """
    computations: dict[str, Computation] = {}
    current: Computation | None = None
    entry: str | None = None
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


def _instruction(name: str, rest: str, root: bool) -> Instruction | None:
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
    return Instruction(name, opcode, type_, operands, rest[end + 1 :], root)


def _closing(text: str, start: int) -> int:
    """Returns the index at which the parenthesis that opens at or after `start` closes."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0 and text[place] == ")":
            return place
    return len(text)


def size_of(type_: str, on_chip_spaces: bool = False) -> float:
    """Returns the bytes of all arrays of a type.

    With on_chip_spaces, arrays in memory spaces other than 0 count nothing: they lie on the chip.
    """
    total = 0.0
    for dtype, sides, layout in _ARRAY.findall(type_):
        if on_chip_spaces and re.search(r"S\(\d", layout):
            continue
        total += _item(dtype) * math.prod(int(side) for side in sides.split(",") if side)
    return total


def main_memory(type_: str) -> str:
    """Returns a type without its layouts, whose memory spaces do not say, inside a fusion, where the data come from."""
    return _ARRAY.sub(r"\1[\2]", type_)


def _item(dtype: str) -> float:
    """Returns the bytes of an element; 0.0 for a word that is no dtype."""
    if dtype in _BYTES:
        return _BYTES[dtype]
    bits = re.match(r"[a-z]+(\d+)", dtype)
    return int(bits[1]) / 8 if bits else 0.0


def parameters_of(computation: Computation) -> dict[int, str]:
    """Returns the names of a computation's parameters by their positions among its arguments."""
    return {int(i.operands[0]): i.name for i in computation.values() if i.opcode == "parameter"}


def tuple_index(instruction: Instruction) -> int | None:
    """Returns the index of a get-tuple-element; None for another instruction."""
    found = re.search(r"\bindex=(\d+)", instruction.attributes)
    return int(found[1]) if instruction.opcode == "get-tuple-element" and found else None
