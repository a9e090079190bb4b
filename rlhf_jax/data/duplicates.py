"""Near-duplicate prompts: those with a long beginning in common, found by sorting.

InstructGPT (Ouyang et al. 2022, section 3.2) deduplicates prompts that share a long common prefix.
How long is not printed, so it is a parameter here. Two prompts are near duplicates where the beginning
they share has at least `characters` characters and at least `share` of the shorter prompt: an earlier
turn of a dialogue is a near duplicate of a later one, a prompt with a word changed at its end of the
original. Case and white space do not count. A beginning that very many prompts have, such as a system
prompt or a template's opening, is no evidence, and is taken off before.
"""

from collections.abc import Sequence

import numpy as np

_COMMON = 0.1  # of the distinct prompts, and more than _FEW: such a beginning belongs to a template
_FEW = 50


def clusters(prompts: Sequence[str], characters: int, share: float = 0.8) -> np.ndarray:
    """Which prompts are near duplicates of each other, through others where need be.

    O(n log n) comparisons of strings; the order of the prompts does not matter.

    Returns:
        i64[N], for each prompt the place of its cluster's representative, which is the first in
        alphabetical order. Prompts that are equal but for case and white space are always in one
        cluster, however short.
    """
    texts = [normalised(prompt) for prompt in prompts]
    first = {}
    for place in sorted(range(len(texts)), key=lambda place: (texts[place], prompts[place], place)):
        first.setdefault(texts[place], place)
    ordered = list(first)
    if not ordered:
        return np.zeros(0, np.int64)
    linked = _linked(ordered, characters, share)
    starts = np.maximum.accumulate(np.where(np.append(False, linked), 0, np.arange(len(ordered))))
    representative = {text: first[ordered[start]] for text, start in zip(ordered, starts)}
    return np.array([representative[text] for text in texts], np.int64)


def normalised(text: str) -> str:
    """The text without differences of case and white space."""
    return " ".join(text.casefold().split())


def _linked(ordered: list[str], characters: int, share: float) -> np.ndarray:
    """bool[N - 1]: whether two neighbours in alphabetical order belong to one cluster.

    All that share m characters with a text lie around it without gaps. So each text marks the whole
    run of those that share as much with it as its own length asks for; a longer text between two of
    them may ask for more, and is marked by the shorter ones all the same.
    """
    shared = np.array([_shared(a, b) for a, b in zip(ordered, ordered[1:])], np.int64)
    common = _template_length(ordered)
    lengths = np.array([len(text) for text in ordered])
    needed = common + np.maximum(characters, np.ceil(share * (lengths - common)))
    left = _reach(shared, needed)
    right = len(ordered) - 1 - _reach(shared[::-1], needed[::-1])[::-1]
    marks = np.bincount(left, minlength=len(ordered)) - np.bincount(right, minlength=len(ordered))
    return np.cumsum(marks)[:-1] > 0


def _reach(shared: np.ndarray, needed: np.ndarray) -> np.ndarray:
    """For each text the first of the run before it in which all neighbours share what it needs.

    Walks once, keeping a stack of the boundaries that are lower than all after them.
    """
    reach = np.arange(len(needed))
    lows, places = [], []  # ascending: what neighbours share, and the later one of them
    for place in range(1, len(needed)):
        low = shared[place - 1]
        while lows and lows[-1] >= low:
            lows.pop()
            places.pop()
        lows.append(low)
        places.append(place)
        # The last boundary that shares too little ends the run; without one it goes to the start.
        short = np.searchsorted(lows, needed[place])
        reach[place] = places[short - 1] if short else 0
    return reach


def _template_length(ordered: list[str]) -> np.ndarray:
    """i64[N]: how much of each text is a beginning that very many texts have."""
    window = max(_FEW, int(_COMMON * len(ordered))) + 1
    if len(ordered) < window:
        return np.zeros(len(ordered), np.int64)
    runs = [_shared(ordered[i], ordered[i + window - 1]) for i in range(len(ordered) - window + 1)]
    # A text has the longest beginning of the runs that it is part of.
    padded = np.pad(np.array(runs, np.int64), window - 1)
    best = padded
    width = 1
    while width < window:  # a maximum over a window, by doubling
        step = min(width, window - width)
        best = np.maximum(best[:-step], best[step:])
        width += step
    return best


def _shared(first: str, second: str) -> int:
    """How many characters two texts have in common from their start."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
