"""The sizes of the sampling program, which are static."""

import dataclasses
import math

_PAGE = 16  # about the number of steps between two looks at the slots
# Completions that share the reading of their prompt fill one of so many parts of the slots at most: they wait for each other.
_SHARED = 4


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes of the sampling program for a batch, or for the part of it on a device.

    Attributes:
      completion: largest number of tokens of a completion, C.
      eos_id: the token that ends a completion, or all such tokens.
      pad_id: the token after the end of a completion.
      slots: number of slots, S; 0 gives each row a slot.
      copies: number of neighbouring rows that have the same prompt, which is read once for as many of them as suits the
        slots.
      chunks: largest number of chunks of the cache (`decode.most_chunks`).
      axes: names of the axes of shard_map or vmap over which the slots of one program are spread. All of them look at
        their slots, and stop, together.
    """

    completion: int
    eos_id: int | tuple[int, ...]
    pad_id: int
    slots: int = 0
    copies: int = 1
    chunks: int = 8
    axes: tuple[str, ...] = ()

    @property
    def page(self) -> int:
        """The number of tokens of a page, R: about _PAGE, so that whole pages make up the completion after its first token."""
        steps = max(self.completion - 1, 1)
        return math.ceil(steps / math.ceil(steps / _PAGE))

    def of_device(self, rows: int, ways: int, axes: tuple[str, ...] = ()) -> "Sizes":
        """Returns the sizes of one of `ways` devices, over which the slots and the `rows` rows of a batch are spread."""
        rows, slots = rows // ways, math.ceil(self.slots / ways)
        most = slots // _SHARED if 0 < slots < rows else rows
        shared = math.gcd(self.copies, rows)
        copies = max(count for count in range(1, shared + 1) if shared % count == 0 and count <= max(most, 1))
        return dataclasses.replace(self, slots=slots, copies=copies, axes=axes or self.axes)
