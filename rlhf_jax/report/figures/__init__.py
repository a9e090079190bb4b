"""What the figures of runs and of sweeps share: looks that the colour-blind can tell apart, and error bars."""

import numpy as np

from rlhf_jax.report.tables import has_ends

# Colour, marker and line of each thing shown. The colours are the palette of Okabe and Ito. Markers and lines say again
# what colours say, and the order keeps neighbours apart in grey, too.
LOOKS = [
    ("#0072B2", "o", "-"),
    ("#D55E00", "^", "--"),
    ("#009E73", "D", "-."),
    ("#CC79A7", "v", ":"),
    ("#E69F00", "s", "-"),
    ("#000000", "*", "--"),
    ("#56B4E9", "X", "-."),
    ("#7F7F7F", "P", ":"),
]


def arms_of(estimate: dict) -> np.ndarray:
    """Returns how far an interval {value, low, high} reaches below and above its value, as f64[2, 1].

    Both are 0 for an interval without ends.
    """
    if not has_ends(estimate):
        return np.zeros((2, 1))
    value = estimate["value"]
    return np.array([[value - estimate["low"]], [estimate["high"] - value]]).clip(0)
