"""Finds near-duplicate prompts, which have a long common prefix, by sorting.

InstructGPT (Ouyang et al. 2022, section 3.2) removes prompts that share a long common prefix. The paper does not give
the length, so it is a parameter here. Two prompts are near duplicates if their common prefix has at least `characters`
characters, and makes up at least the fraction `share` of the shorter prompt. Examples are a dialogue and the same
dialogue with more turns, or a prompt and a copy with another last word. Case and white space do not count. A prefix
that very many prompts share, such as a system prompt or the opening of a template, does not count either.
"""

from collections.abc import Sequence

import numpy as np

# A prefix that more than this fraction of the distinct prompts share, and more than _FEW of them, is a template's.
_COMMON = 0.1
_FEW = 50


def clusters(prompts: Sequence[str], characters: int, share: float = 0.8) -> np.ndarray:
    """Returns clusters of near-duplicate prompts: connected components of the near-duplicate relation.

    Takes O(N log N) comparisons of strings. The clusters do not depend on the order of the prompts.

    Args:
        prompts: the N prompts.
        characters: smallest length of a common prefix, in characters.
        share: smallest fraction of the shorter prompt that the common prefix makes up.

    Returns:
        i64[N], for each prompt the place of its cluster's representative, which is the first in alphabetical order.
        Prompts that differ only in case and white space are always in one cluster, however short they are.
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
    """Returns a text with case folded and each run of white space replaced by one space."""
    return " ".join(text.casefold().split())


def _linked(ordered: list[str], characters: int, share: float) -> np.ndarray:
    """Returns whether two neighbours in alphabetical order belong to one cluster, bool[N - 1].

    In sorted order, all texts that share m characters with a given text form one run around it. So each text marks the
    run of texts that share the prefix that its own length requires. A longer text in this run may require a longer
    prefix; the shorter texts' marks still include it.
    """
    shared = np.array([_shared(a, b) for a, b in zip(ordered, ordered[1:])], np.int64)
    common = _template_length(ordered)
    lengths = np.array([len(text) for text in ordered])
    needed = common + np.maximum(characters, np.ceil(share * (lengths - common)))
    left = _reach(shared, needed)
    right = len(ordered) - 1 - _reach(shared[::-1], needed[::-1])[::-1]
    # The running sum of +1 at the start and -1 at the end of each run counts the runs that cover a boundary.
    marks = np.bincount(left, minlength=len(ordered)) - np.bincount(right, minlength=len(ordered))
    return np.cumsum(marks)[:-1] > 0


def _reach(shared: np.ndarray, needed: np.ndarray) -> np.ndarray:
    """Returns for each text the first text of the run before it in which all neighbours share what it needs, i64[N].

    Passes over the texts once, with a stack of the boundaries that are lower than all later ones.

    Args:
        shared: i64[N - 1], length of the common prefix of neighbours, in characters.
        needed: f64[N], prefix length that each text requires, in characters.
    """
    reach = np.arange(len(needed))
    lows, places = [], []  # the stack, ascending: the common prefix of two neighbours, and the later one's place
    for place in range(1, len(needed)):
        low = shared[place - 1]
        while lows and lows[-1] >= low:
            lows.pop()
            places.pop()
        lows.append(low)
        places.append(place)
        # The last boundary that shares too little ends the run. Without one, the run starts at the first text.
        short = np.searchsorted(lows, needed[place])
        reach[place] = places[short - 1] if short else 0
    return reach


def _template_length(ordered: list[str]) -> np.ndarray:
    """Returns the length of the prefix that each text shares with very many texts, in characters; i64[N]."""
    window = max(_FEW, int(_COMMON * len(ordered))) + 1
    if len(ordered) < window:
        return np.zeros(len(ordered), np.int64)
    runs = [_shared(ordered[i], ordered[i + window - 1]) for i in range(len(ordered) - window + 1)]
    # The prefix of a text is the longest among the windows of texts that contain it.
    padded = np.pad(np.array(runs, np.int64), window - 1)
    best = padded
    width = 1
    while width < window:  # a sliding maximum, by doubling the width
        step = min(width, window - width)
        best = np.maximum(best[:-step], best[step:])
        width += step
    return best


def _shared(first: str, second: str) -> int:
    """Returns the length of the common prefix of two texts, in characters, by binary search."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
