"""How often each part of the sampling program runs, for known lengths of the prompts and completions.

The parts are the bodies of its loops and the branches of its switches (plan/hlo/module.py): "groups" of prompts that are
read, by the length to which they are read, and "pages" of tokens that are decoded in each stage, by the chunks of the cache
that are read. The loop of slots.py is played here with numbers alone.
"""

import collections

import numpy as np

from rlhf_jax.generate.sizes import Sizes
from rlhf_jax.generate.slots import GROUPS, LONGEST, PAGES, READ, Decoder, in_stage


def turns(prompts: np.ndarray, completions: np.ndarray, width: int, sizes: Sizes, ways: int) -> dict[str, int]:
    """Returns how often each part of the program runs while it samples a batch.

    Args:
      prompts: i64[B], the lengths of the prompts.
      completions: i64[B], the lengths of the completions.
      width: P, to which the prompts are padded.
      sizes: the sizes of the program, for the whole batch.
      ways: number of devices over which the rows are split, each of which has its own slots.
    """
    sizes = sizes.of_device(len(prompts), ways)
    shape = np.broadcast_to(0, (len(prompts) // ways, width))
    decoder = Decoder(None, None, shape, shape, None, None, None, sizes, None, None, None)
    devices = [_Device(decoder, *rows) for rows in zip(np.split(prompts, ways), np.split(completions, ways))]
    runs = collections.Counter({part: 0 for part in _parts(decoder)})

    def branch(scope, bounds, place):
        if len(bounds) > 1:  # a switch with one branch is none
            runs[f"{scope} {np.searchsorted(bounds, place)}"] += 1

    def decode_pages(width, fewer):
        while True:
            wanted = sum(min(decoder.group, device.waiting) for device in devices)
            ready = sum(min(decoder.group, device.waiting, device.free) for device in devices)
            if 2 * ready >= wanted if wanted else max(device.live.sum() for device in devices) <= fewer:
                return
            runs[in_stage(PAGES, width)] += 1
            branch(in_stage(READ, width), decoder.bounds_of(width)[1:], max(device.filled for device in devices))
            for device in devices:
                device.decode_page()

    while any(device.waiting for device in devices):
        runs[GROUPS] += 1
        branch(LONGEST, decoder.read_bounds, max(device.read_group() for device in devices))
        decode_pages(*decoder.widths[:2])
    for width, fewer in zip(decoder.widths[1:], decoder.widths[2:]):
        decode_pages(width, fewer)  # where free slots are does not matter
    return dict(runs)


def _parts(decoder: Decoder) -> list[str]:
    """Returns the names of all parts of the program."""
    stages = decoder.widths[:-1]
    branches = {LONGEST: len(decoder.read_bounds)}
    branches |= {in_stage(READ, width): len(decoder.bounds_of(width)) - 1 for width in stages}
    numbered = [f"{scope} {number}" for scope, count in branches.items() if count > 1 for number in range(count)]
    return [GROUPS, *(in_stage(PAGES, width) for width in stages), *numbered]


class _Device:
    """The slots of a device: the numbers that decide about its loops."""

    def __init__(self, decoder: Decoder, prompts: np.ndarray, completions: np.ndarray):
        self._decoder, self._copies, self._page = decoder, decoder.sizes.copies, decoder.sizes.page
        self._prompts, self._completions = prompts, completions
        self._queue = np.argsort(-prompts[:: self._copies], kind="stable") * self._copies
        self._left = np.zeros(decoder.slots, np.int64)  # tokens that are still to come in each slot
        self._end = np.zeros(decoder.slots, np.int64)  # places of the cache that each slot fills

    @property
    def waiting(self) -> int:
        """Number of prompts that were not read."""
        return len(self._queue)

    @property
    def live(self) -> np.ndarray:
        """bool[S], True where a completion has not ended."""
        return self._left > 0

    @property
    def free(self) -> int:
        """Number of prompts that the free slots take."""
        return int((~self.live).sum()) // self._copies

    @property
    def filled(self) -> int:
        """Largest number of places that a live slot fills."""
        return int(np.where(self.live, self._end, 0).max())

    def read_group(self) -> int:
        """Reads the next prompts into free slots; returns the places of the longest of them, 0 without any."""
        count = min(self._decoder.group, self.free, self.waiting)
        taken, self._queue = self._queue[:count], self._queue[count:]
        slots = np.argsort(self.live, kind="stable")[: count * self._copies]
        rows = (taken[:, None] + np.arange(self._copies)).reshape(-1)
        ends = np.repeat(-(-self._prompts[taken] // self._page) * self._page, self._copies)
        self._left[slots], self._end[slots] = self._completions[rows] - 1, ends
        return int(ends.max(initial=0))

    def decode_page(self) -> None:
        """Decodes a page in all slots; only rows that go on keep it."""
        self._left = np.maximum(self._left - self._page, 0)
        self._end = self._end + self._page * self.live
