"""Measures how long the parts of a step take on the devices, without making them wait."""

import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

import jax


class Clock:
    """The seconds of the parts of each step; use as a context manager around the steps.

    The host hands programs to the devices and goes on, so that the time around a call says nothing. A thread waits for a
    result of each part, in the order in which the devices compute them, and notes when it is there. A part begins when
    the part before it has ended or, if that is later, when the host begins to prepare it: the parts of a step add up to
    its whole time, with the compilation that the first step waits for, and without what the host does between steps.
    """

    def __init__(self):
        self._waiter = ThreadPoolExecutor(1, "clock")
        self._parts: list[tuple[str, float, Future]] = []
        self._began = self._ended = 0.0
        self._took = math.inf  # the seconds of the step before

    def begin(self) -> None:
        """Notes that the host begins to prepare a step."""
        self._parts, self._began = [], time.monotonic()

    def mark(self, part: str, result) -> None:
        """Notes that what the host has handed over since the last mark is a part of this name.

        Args:
          part: the name; a step may have several parts of one name.
          result: arrays that the part computes last; they must not be donated before they are computed.
        """
        arrays = jax.tree.leaves(result)  # now: the caller may add the results of later parts to a dict of metrics
        self._parts.append((part, self._began, self._waiter.submit(_ready, arrays)))
        self._began = time.monotonic()

    def end(self, result) -> Callable[[], dict[str, float]]:
        """Ends a step, and returns the function that waits for its end and returns its seconds: "time/PART" -> seconds.

        The functions of the steps must be called in the order of the steps.

        Args:
          result: arrays that the step computes last; without any mark, the whole step is the part "step".
        """
        if not self._parts:
            self.mark("step", result)
        parts = self._parts

        def seconds():
            found: dict[str, float] = {}
            for part, began, ready in parts:
                ended = ready.result()
                found[f"time/{part}"] = found.get(f"time/{part}", 0.0) + max(0.0, ended - max(began, self._ended))
                self._ended = ended
            self._took = sum(found.values())
            return {name: round(value, 4) for name, value in found.items()}

        return seconds

    def wait_nearly(self, ahead: float) -> None:
        """Waits until the step that was ended last is computed, or will be in `ahead` seconds.

        It is then time to prepare the next step: the devices do not wait for the host, and what is decided between two
        steps, such as to stop, is decided late. A step is taken to need the seconds of the step before it. Without a
        step before it, it is waited for.

        Args:
          ahead: seconds. They are more than the host needs to hand a step over.
        """
        _, began, _ = self._parts[0]
        *_, last = self._parts[-1]
        left = max(began, self._ended) + self._took - ahead - time.monotonic()
        if left > 0:
            wait([last], None if left == math.inf else left)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._waiter.shutdown(wait=False, cancel_futures=True)


def _ready(arrays: list) -> float:
    """Returns the time at which arrays are computed."""
    jax.block_until_ready(arrays)
    return time.monotonic()
