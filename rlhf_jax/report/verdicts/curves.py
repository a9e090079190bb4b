"""Numbers of curves: the slope, the fall from a peak, and the gap between two curves."""

import numpy as np


def slope(x, y) -> float:
    """Returns the least-squares slope of y over x, f[N] each, with N >= 2."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    x = x - x.mean()
    return float(x @ (y - y.mean()) / (x @ x))


def turned(courses) -> np.ndarray | None:
    """Returns how far each course has fallen from its peak to its last tenth, f[..., K]; see spec.Turns.

    The peak of a course is the step at which the mean of the other courses is highest, among every other step. The two
    steps beside it, which are no candidates, say how high this course was there. So the noise of a step either chooses
    or judges, and a course that wanders chooses nothing for itself. If courses never fall, the mean is at most 0.

    Args:
      courses: f[..., K, T], the courses of K seeds over T steps.

    Returns:
      The falls, or None for fewer than two seeds or fewer than six steps.
    """
    seeds, total = courses.shape[-2:] if courses.ndim > 1 else (0, 0)
    if seeds < 2 or total < 6:
        return None
    end = max(1, total // 10)
    places = np.arange(1, total - end - 1, 2)
    others = courses.sum(-2, keepdims=True) - courses
    peak = places[others[..., places].argmax(-1)][..., None]
    before, after = (np.take_along_axis(courses, peak + side, -1)[..., 0] for side in (-1, 1))
    return (before + after) / 2 - courses[..., -end:].mean(-1)


def mean_gap(a, b) -> float | None:
    """Returns the mean gap between curve a and curve b, over the x that both cover.

    The points (x, y) of a curve are joined in the order of x. If one curve has fewer points, the gap is measured at
    these points alone, and a single such point gives its own gap. The reason is that lines between the sparse points of
    a bent curve lie on one side of it, and would favour the other curve. Points of one x, such as steps whose estimated KL
    is below 0 and counts as 0, are one point with their mean y: the highest of them would favour the curve with more.

    Returns:
      The mean of y of a less y of b. None if the ranges share no more than one x, or no point of the sparser curve.
    """
    if len(a) < 2 or len(b) < 2:
        return None
    (ax, ay), (bx, by) = map(_by_x, (a, b))
    low, high = max(ax[0], bx[0]), min(ax[-1], bx[-1])
    if not low < high:
        return None
    if len(ax) == len(bx):
        x = np.unique([low, high, *(x for x in (*ax, *bx) if low < x < high)])  # with every kink, the mean is exact
    else:
        x = np.unique([x for x in min(ax, bx, key=len) if low <= x <= high])
    if not len(x):
        return None
    gap = np.interp(x, ax, ay) - np.interp(x, bx, by)
    return float(np.trapezoid(gap, x) / (x[-1] - x[0]) if len(x) > 1 else gap[0])


def _by_x(points) -> tuple[np.ndarray, np.ndarray]:
    """Returns the different x of points (x, y) in ascending order, and the mean y at each."""
    x, place = np.unique([x for x, _ in points], return_inverse=True)
    return x, np.bincount(place, [y for _, y in points]) / np.bincount(place)
