"""Looks at numbers while they grow: the interval of each look, and how many seeds a question needs.

The *looks* of a design are the numbers of seeds at which a claim is judged, such as 3, 5, 8 and 12. Each look is a chance to
err. So a rule spends the error of 5 % over the looks (Lan and DeMets 1983, Biometrika 70, 659-663):

    "obrien_fleming"   almost nothing at first: the last look is nearly as sharp as a single one
    "pocock"           about evenly: a large difference is found with few seeds, and the last look is blunter

The interval of a look is Student's t with the level that `levels` gives. All intervals together contain the truth in 95 % of
cases; they are *repeated confidence intervals* (Jennison and Turnbull 1989, J. R. Stat. Soc. B 51, 305-361). So what a look
decides is what its interval shows.

The bounds that are usually printed are for normal numbers of a known variance. With a few seeds of an unknown variance, the
error of t intervals with their levels is 5.2 to 6.1 %. The levels here are those of t statistics of normal numbers (see
`_conditional`), to 1 % of the error, or to 4 % of it if the first look has two seeds. With many seeds they are the printed ones.
"""

import bisect
import functools
import math

import numpy as np
import scipy  # its parts are imported when they are first used

SPENDING = ("obrien_fleming", "pocock")
_EDGES = np.linspace(0, 1, 81) ** 4  # of cells of p-values, narrow where bounds lie
_NODES = 16  # of the quadrature over new seeds
MOST_SEEDS = 1000  # more are not counted


def spent(fraction: float, spending: str, alpha: float) -> float:
    """Returns how much of the two-sided error `alpha` is spent when this fraction of the seeds is there."""
    if spending == "pocock":
        return alpha * math.log1p((math.e - 1) * fraction)
    return 4 * float(scipy.stats.norm.sf(scipy.stats.norm.isf(alpha / 4) / math.sqrt(fraction)))


@functools.cache
def levels(looks: tuple[int, ...], spending: str = "obrien_fleming", alpha: float = 0.05) -> tuple[float, ...]:
    """Returns the two-sided level of the t interval at each look, so that all looks together err in `alpha` of cases.

    Args:
      looks: the number of seeds at each look, at least 2 and ascending.
      spending: one of SPENDING.
      alpha: the error of all looks together, over both sides.
    """
    shares = np.array([spent(seeds / looks[-1], spending, alpha) for seeds in looks])
    return _walk(looks, lambda look, beyond: float(np.interp(np.diff(shares, prepend=0.0)[look], beyond, _EDGES)))[0]


def error(looks: tuple[int, ...], given) -> float:
    """Returns how often one of the t intervals, of the given two-sided levels, excludes the truth."""
    return _walk(looks, lambda look, beyond: given[look])[1]


def _walk(looks, choose) -> tuple[tuple[float, ...], float]:
    """Follows the p-value of a true null hypothesis from look to look, as long as no look has rejected it.

    Args:
      looks: the number of seeds at each look.
      choose: (number of the look, f[E] how often p is below each of _EDGES and no earlier look has rejected) -> level.

    Returns:
      The level of each look, and how often one of them rejects.
    """
    found, total, alive, before = [], 0.0, None, 0
    for look, seeds in enumerate(looks):
        beyond = _EDGES if alive is None else alive @ _conditional(before, seeds)
        found.append(choose(look, beyond))
        rejected = float(np.interp(found[-1], _EDGES, beyond))
        total += rejected
        alive, before = np.diff(np.maximum(beyond, rejected)), seeds
    return tuple(found), total


@functools.lru_cache(maxsize=64)
def _conditional(before: int, after: int) -> np.ndarray:
    """Returns how often the p-value at the next look is below each edge, given the cell of the p-value at this look.

    The numbers x of n seeds are normal with mean 0. Then the direction of x does not depend on its length, and t depends on the
    cosine c between x and (1, ..., 1) alone. With d new seeds, whose cosine is e, the cosine becomes

        sqrt(n / (n + d)) c cos(phi) + sqrt(d / (n + d)) e sin(phi),

    where sin(phi)^2 is the new seeds' share of the squared length, which has a Beta(d / 2, n / 2) distribution. This is exact;
    what is approximate is that p is treated as uniform in parts of a cell, and a quadrature over e.

    Returns:
      f[cells, edges].
    """
    new = after - before
    spots = np.array([0.1127, 0.5, 0.8873])  # Gauss-Legendre of three points
    low, width = _EDGES[:-1, None], np.diff(_EDGES)[:, None]
    old = _cosine(low + spots * width, before)[..., None, None]  # f[cells, spots, 1, 1]
    cosines, weights = (np.array([-1.0, 1.0]), np.array([0.5, 0.5])) if new == 1 else _cosines_of(new)
    level = _cosine(_EDGES, after)  # f[edges]
    along = math.sqrt(before / after) * old
    across = math.sqrt(new / after) * cosines[:, None]
    longest, turn = np.hypot(along, across), np.arctan2(across, along)
    reach = np.arccos(np.minimum(1.0, level / longest))  # 0 where no share takes the cosine beyond the level

    def below(phi):
        return scipy.special.betainc(new / 2, before / 2, np.sin(np.clip(phi, 0, math.pi / 2)) ** 2)

    above = below(turn + reach) - below(turn - reach)
    under = np.where(reach > 0, below(turn - math.pi + reach) + 1 - below(turn + math.pi - reach), 0.0)
    chance = np.einsum("cseg,e->csg", above + under, weights)
    found = np.einsum("csg,s->cg", chance, np.array([5, 8, 5]) / 18)
    found[:, 0], found[:, -1] = 0.0, 1.0
    return found


def _cosine(p, seeds: int) -> np.ndarray:
    """Returns the cosine between numbers and (1, ..., 1) at which a t test of so many seeds has the two-sided p-value p."""
    return np.sqrt(scipy.special.betaincinv(0.5, (seeds - 1) / 2, 1 - np.asarray(p)))


def _cosines_of(count: int):
    """Returns nodes and weights of a quadrature over the cosine of `count` normal numbers, which are at least two."""
    chebyshev = np.polynomial.chebyshev.chebgauss  # two numbers have a direction that is uniform on a circle
    nodes, weights = chebyshev(_NODES) if count == 2 else scipy.special.roots_gegenbauer(_NODES, count / 2 - 1)
    return nodes, weights / weights.sum()


def seeds_to_find(difference: float, deviation: float, power: float = 0.8, level: float = 0.05) -> int | None:
    """Returns the smallest number of seeds with which a t test finds a difference, on its side, as often as `power`.

    Args:
      difference: the true mean.
      deviation: the standard deviation of a seed's number.
      power: how often the difference is to be found.
      level: the two-sided level of the test, which is made once.

    Returns:
      The number, or None for more than MOST_SEEDS.
    """

    def enough(seeds):
        bound = scipy.stats.t.isf(level / 2, seeds - 1)
        noncentral = min(abs(difference) * math.sqrt(seeds) / deviation, 35.0)  # far above any bound, and no overflow
        return scipy.stats.nct.sf(bound, seeds - 1, noncentral) >= power

    if not enough(MOST_SEEDS):
        return None
    return 2 + bisect.bisect_left(range(2, MOST_SEEDS), True, key=enough)
