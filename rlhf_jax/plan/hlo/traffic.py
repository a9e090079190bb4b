"""The bytes of main memory that the instructions of an HLO module read and write."""

import functools
import math
from collections.abc import Callable

from rlhf_jax.plan.hlo.module import Module
from rlhf_jax.plan.hlo.text import Computation, Instruction, main_memory, parameters_of, size_of

_Size = Callable[[str], float]  # type -> its bytes in main memory

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


def bytes_moved(module: Module, instruction: Instruction, scope: Computation, on_chip: bool) -> float:
    """Returns the bytes of main memory that one run of an instruction reads and writes.

    Args:
      module: the module.
      instruction: the instruction.
      scope: the computation that it is in.
      on_chip: whether memory spaces other than 0 are not main memory.
    """
    if instruction.opcode in _NO_TRAFFIC or instruction.opcode.endswith("-done"):
        return 0.0
    size = functools.partial(size_of, on_chip_spaces=on_chip)
    if instruction.opcode == "custom-call" and "AllocateBuffer" in instruction.attributes:
        return 0.0
    if instruction.opcode in ("send", "recv"):
        return size(instruction.type)
    if instruction.opcode.endswith("-start"):  # its type lists both the operands and the results
        read = sum(size(scope[name].type) for name in instruction.operands if name in scope)
        return max(size(instruction.type), read)
    if instruction.opcode == "fusion":
        inner = module.computations[instruction.called[0]]
        parameters = parameters_of(inner)
        read = sum(
            min(size(scope[name].type), _read(module, inner, parameters[n], size))
            for n, name in enumerate(instruction.operands)
            if name in scope and n in parameters
        )
        root = next(i for i in inner.values() if i.root)
        return read + min(size(instruction.type), _written(inner, root, size))
    return _plain(instruction, scope, size)


def _plain(instruction: Instruction, scope: Computation, size: _Size) -> float:
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


def _read(module: Module, inner: Computation, name: str, size: _Size) -> float:
    """Returns the bytes that a fusion reads of a parameter: those of the slices if only slices are used, else inf.

    The caller takes the minimum with the parameter's size, so inf stands for the whole parameter.
    """
    total = 0.0
    for user in inner.values():
        if name not in user.operands:
            continue
        place = user.operands.index(name)
        if user.opcode in ("dynamic-slice", "slice", "gather") and place == 0:
            # A slice of a slice reads no more than the smaller of the two.
            rest = math.inf if user.root else _read(module, inner, user.name, size)
            total += min(size(main_memory(user.type)), rest)
        elif user.opcode in ("dynamic-update-slice", "scatter") and place == 0:
            pass  # the array is updated in place, not read
        elif user.opcode in ("bitcast", "reshape"):
            total += math.inf if user.root else _read(module, inner, user.name, size)
        elif user.opcode == "fusion":
            deeper = module.computations[user.called[0]]
            total += _read(module, deeper, parameters_of(deeper)[place], size)
        elif user.opcode == "tuple":
            pass  # a tuple hands the array through
        else:
            return math.inf
    return total


def _written(inner: Computation, root: Instruction, size: _Size) -> float:
    """Returns the bytes of a fusion's result that are written; of an update in place, those of the update alone."""
    if root.opcode == "tuple":
        return sum(_written(inner, inner[name], size) for name in root.operands)
    if root.opcode == "bitcast":
        return _written(inner, inner[root.operands[0]], size)
    if root.opcode == "dynamic-update-slice":
        return size(main_memory(inner[root.operands[1]].type)) if size(root.type) else 0.0
    if root.opcode == "scatter":  # in place too; it reads what it updates as well
        return 2 * size(main_memory(inner[root.operands[-1]].type)) if size(root.type) else 0.0
    if root.opcode == "parameter":
        return 0.0
    return size(root.type)
