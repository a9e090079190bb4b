"""Makes rankings of rated completions, for reward models on data without comparisons.

A rated row is a ranking of one completion with its score. Rated completions of one prompt are joined in rankings that
keep the scores; texts without a prompt, such as reviews, share the empty prompt. Regression trains on the scores,
Bradley-Terry on the pairs whose scores differ.
"""

import random
from collections.abc import Iterable, Sequence

from rlhf_jax.data.records import Ranking, ranks_of
from rlhf_jax.fields import forms
from rlhf_jax.runtime.errors import InputError


def compare(rankings: Iterable[Ranking], size: int, pairs: str = "") -> list[Ranking]:
    """Joins single rated completions into rankings, in a random order that depends only on the data.

    Rankings of more than one completion stay as they are.

    Args:
        rankings: the rankings.
        size: number of completions per ranking. The rest of a prompt's completions make a smaller ranking, if they are
            at least two.
        pairs: a text such as "2<9": only pairs are made, of a completion scored at most 2 and one scored at least 9.

    Raises:
        InputError: there are rated completions, but they make no ranking.
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
            f"data.files.rankings: {len(rated)} prompts have rated completions, but none has two of them"
            + (f", one scored at most {limits[0]:g} and one at least {limits[1]:g} (rated_pairs)" if limits else "")
            + ", and a ranking needs two"
        )
    return whole + made


def _together(rows: Sequence[Ranking]) -> Ranking:
    """Returns single rated completions of one prompt as one ranking."""
    scores = tuple(row.scores[0] for row in rows)
    completions = tuple(row.completions[0] for row in rows)
    return Ranking(rows[0].prompt, completions, ranks_of(scores), None, None, None, None, rows[0].row, scores)
