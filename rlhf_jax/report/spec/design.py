"""The design of a sweep: at how many seeds its claims are judged, and how the error is spent over these looks."""

import dataclasses

from rlhf_jax.report.spec.fields import one_of, tuple_of
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.statistics.sequential import SPENDING


@dataclasses.dataclass(frozen=True)
class Design:
    """The looks at a sweep's claims. All looks together err in 5 % of cases.

    Attributes:
      looks: the number of seeds at each look, ascending, at least 2.
      spending: how the error is spent over the looks, one of SPENDING (see statistics/sequential.py).
    """

    looks: tuple[int, ...] = (3, 5, 8, 12)
    spending: str = "obrien_fleming"

    def __post_init__(self):
        one_of(self, "spending", SPENDING)
        tuple_of(self, "looks", int)
        if not self.looks or self.looks[0] < 2 or list(self.looks) != sorted(set(self.looks)):
            raise InputError(f"Design: looks={self.looks} must be ascending numbers of seeds, from 2 on")

    @property
    def seeds(self) -> range:
        """The seeds of the last look, for `h.sweep("seed", DESIGN.seeds)`."""
        return range(self.looks[-1])
