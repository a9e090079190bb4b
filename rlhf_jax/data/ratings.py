"""Rated completions -> rankings, for reward models where nobody compared anything.

A rated row is a ranking of one completion with its score. Rated completions of one prompt (reviews,
say, have none: their prompt is empty) come together in rankings, which keep their scores: regression
learns these, Bradley-Terry the pairs of which one is rated higher.
"""

import random
from collections.abc import Iterable, Sequence

from rlhf_jax.data.records import Ranking, ranks_of
from rlhf_jax.fields import forms
from rlhf_jax.runtime.errors import InputError


def compare(rankings: Iterable[Ranking], size: int, pairs: str = "") -> list[Ranking]:
    """Puts rated single completions together at random, the same way every time; other rankings stay as they are.

    Args:
        size: completions of a ranking; what a prompt has left over makes a smaller one, if two are left.
        pairs: "2<9": only pairs, each of a completion scored at least 9 and one scored at most 2.

    Raises:
        InputError: the scores leave no ranking.
    """
    limits = forms.score_limits(pairs) if pairs else None
    whole, rated = [], {}
    for ranking in rankings:
        if len(ranking.completions) > 1:
            whole.append(ranking)
        else:
            rated.setdefault(ranking.prompt, []).append(ranking)
    made = []
    for prompt, singles in rated.items():
        random.Random(f"{len(singles)}/{prompt}").shuffle(singles)
        if limits:
            low = [row for row in singles if row.scores[0] <= limits[0]]
            high = [row for row in singles if row.scores[0] >= limits[1]]
            made += map(_together, zip(high, low))
        else:
            parts = (singles[first : first + size] for first in range(0, len(singles), size))
            made += [_together(part) for part in parts if len(part) > 1]
    if rated and not made:
        raise InputError(
            f"data.files: {len(rated)} prompts have rated completions, but none has two of them"
            + (f" with scores at most {limits[0]:g} and at least {limits[1]:g}" if limits else "")
        )
    return whole + made


def _together(rows: Sequence[Ranking]) -> Ranking:
    scores = tuple(row.scores[0] for row in rows)
    completions = tuple(row.completions[0] for row in rows)
    return Ranking(rows[0].prompt, completions, ranks_of(scores), None, None, None, None, rows[0].row, scores)
