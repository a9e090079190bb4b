"""A parsed HLO module, with how often each of its computations is run.

How often some loops turn, and which branch of a conditional is taken, only the data decide. Such a loop or conditional
stands in a scope (`jax.named_scope`), which the compilers keep in its metadata. Its body, or each of its branches, is a
part of the module, with the name that `part_of` gives it. Loops of one scope that run equally often are one part.
Everything else is the part "".
"""

import collections
import re
from collections.abc import Collection, Iterator

from rlhf_jax.plan.hlo.text import Computation, Instruction, parameters_of, parse, tuple_index


def part_of(scope: str, branch: int | None = None) -> str:
    """Returns the name of the body of the loop in a scope, or of a branch of the conditional in it."""
    return scope if branch is None else f"{scope} {branch}"


class Module:
    """A parsed HLO module, with how often each of its computations is run.

    Attributes:
      computations: all computations by name.
      partitions: number of devices that the module is compiled for.
      unknown_loops: number of loops without a scope whose trip count could not be read; their bodies count once.
      parts: names of the module's parts, "" first.
    """

    def __init__(self, text: str, scopes: Collection[str] = ()):
        self.computations, entry = parse(text)
        header = re.search(r"num_partitions=(\d+)", text[: text.find("\n")])
        self.partitions = int(header[1]) if header else 1
        self.unknown_loops = 0
        self._scopes = frozenset(scopes)
        # part -> computation -> how often it is run in one run of the part
        self._weights: dict[str, dict[str, float]] = {}
        self._fused: set[str] = set()
        self._visit(entry, 1.0, "", fused=False)
        self.parts = list(self._weights)

    def executed(self, part: str = "") -> Iterator[tuple[Instruction, Computation, float]]:
        """Yields (instruction, its computation, how often a run of the part runs it), outside of fusions.

        A fusion is run as a whole: only its operands and its result are in main memory.
        """
        for name, weight in self._weights[part].items():
            if name not in self._fused:
                for instruction in self.computations[name].values():
                    yield instruction, self.computations[name], weight

    def everything(self, part: str = "") -> Iterator[tuple[Instruction, str, float]]:
        """Yields (instruction, name of its computation, how often a run of the part runs it), inside of fusions too."""
        for name, weight in self._weights[part].items():
            for instruction in self.computations[name].values():
                yield instruction, name, weight

    def fused(self, name: str) -> bool:
        """Returns whether a computation is part of a fusion or a custom call."""
        return name in self._fused

    def _visit(self, name: str, weight: float, part: str, fused: bool) -> None:
        """Adds `weight` runs of a computation to a part, and of those computations that it calls."""
        weights = self._weights.setdefault(part, collections.defaultdict(float))
        weights[name] += weight
        if fused:
            self._fused.add(name)
        for instruction in self.computations[name].values():
            if instruction.opcode in ("while", "conditional") and (scope := self._scope(instruction)):
                for part_, called in self._parts(instruction, scope):
                    if called not in self._weights.get(part_, ()):  # it may stand in a computation that several call
                        self._visit(called, 1.0, part_, fused)
                continue
            turns = self._turns(instruction, self.computations[name]) if instruction.opcode == "while" else 1
            inside = fused or instruction.opcode in ("fusion", "custom-call")
            if instruction.opcode in ("fusion", "while", "call", "conditional", "async-start", "custom-call"):
                for called in instruction.called:
                    if called in self.computations:
                        self._visit(called, weight * turns, part, inside)

    def _scope(self, instruction: Instruction) -> str | None:
        """Returns which of the scopes a loop or a conditional stands in directly; None if in none."""
        path = re.search(r'op_name="([^"]*)"', instruction.attributes)
        around = path[1].split("/")[-2:-1] if path else []
        return next((scope for scope in self._scopes if scope in around), None)

    def _parts(self, instruction: Instruction, scope: str) -> list[tuple[str, str]]:
        """Returns (name of the part, name of its computation) for the body of a loop, or for each branch."""
        if instruction.opcode == "while":
            return [(part_of(scope), re.findall(r"body=%?([^\s,]+)", instruction.attributes)[0])]
        branches = instruction.called
        if "true_computation=" in instruction.attributes:  # it stands first, and is branch 1
            branches = branches[::-1]
        return [(part_of(scope, number), called) for number, called in enumerate(branches)]

    def _turns(self, loop: Instruction, around: Computation) -> int:
        """Returns a loop's trip count: the compiler's note, or the limit in its condition `counter < limit`.

        A loop whose trip count cannot be read counts as one turn, and among the unknown loops.
        """
        if found := re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', loop.attributes):
            return int(found[1])
        condition = self.computations[re.findall(r"condition=%?([^\s,]+)", loop.attributes)[0]]
        bounds = [bound for bound in self._bounds(condition) if bound]
        if not bounds:
            self.unknown_loops += 1
            return 1
        index, limit = bounds[0]
        start = self._constant(around, around[loop.operands[0]].operands[index]) if index is not None else 0
        return max(limit - (start or 0), 0)

    def _bounds(self, condition: Computation) -> Iterator[tuple[int | None, int] | None]:
        """Yields (index of the counter in the loop's tuple, its limit), for every comparison of a condition."""
        for instruction in condition.values():
            if instruction.opcode == "fusion":
                arguments = instruction.operands
                inner = self.computations[instruction.called[0]]
                parameters = parameters_of(inner)
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
                    yield tuple_index(counter), limit

    def _constant(self, scope: Computation, name: str) -> int | None:
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
