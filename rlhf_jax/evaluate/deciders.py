"""What decides between two completions of a prompt, by the gold labeler, and how often judges are right on each kind of pair.

A pair is named after the part of the gold total (`world.gold`) in which its completions differ most, by weight:

topic       one of the two was written for another prompt, whatever else differs
fact        helpful or honest, and one of the two says more that is false
task        helpful, and both are equally honest
rude        harmless
constraint  constraint
length      concise: one of the two rambles, repeats itself or is cut off
taste       nothing: the gold totals are equal, and labelers choose by taste and noise
"""

from collections.abc import Sequence

import numpy as np

from rlhf_jax import statistics
from rlhf_jax.data.records import Ranking
from rlhf_jax.evaluate.preferences import differences, pairs_of
from rlhf_jax.statistics import calibration
from rlhf_jax.world.gold import WEIGHTS, Gold

DECIDERS = ("topic", "fact", "task", "rude", "constraint", "length", "taste")
OTHER_PROMPT = " of another prompt"  # how the name of a model ends that wrote for another prompt
_OF_PARTS = {"harmless": "rude", "constraint": "constraint", "concise": "length"}


def decider(first: Gold, second: Gold) -> str:
    """Returns the name of DECIDERS for a pair of completions that were both written for their prompt."""
    apart = {part: weight * abs(getattr(first, part) - getattr(second, part)) for part, weight in WEIGHTS.items()}
    part = max(apart, key=apart.__getitem__)
    if not apart[part]:
        return "taste"
    return _OF_PARTS.get(part) or ("fact" if apart["honest"] else "task")


def by_decider(
    rankings: Sequence[Ranking], golds: Sequence[Sequence[Gold]], scores: dict[str, np.ndarray]
) -> list[dict]:
    """Returns a row for each kind of pair that occurs: {decider, pairs}, and of each judge the share of right pairs.

    Args:
      rankings: N rankings of at most K completions each, with their models.
      golds: the gold judgement of each completion of each ranking.
      scores: name of a judge -> its scores f[N, K], the higher the better.
    """
    pairs = pairs_of(rankings)
    kinds = np.array([_kind(rankings[n], golds[n], better, worse) for n, better, worse in pairs])
    units = np.array([rankings[n].unit[0] for n, *_ in pairs])
    right = {name: calibration.from_margins(differences(own, pairs))[1] for name, own in scores.items()}
    return [
        {"decider": kind, "pairs": int(own.sum())}
        | {name: statistics.share(values[own], units=units[own].tolist())._asdict() for name, values in right.items()}
        for kind in DECIDERS
        if (own := kinds == kind).any()
    ]


def _kind(ranking: Ranking, golds: Sequence[Gold], better: int, worse: int) -> str:
    foreign = [ranking.models[place].endswith(OTHER_PROMPT) for place in (better, worse)]
    return "topic" if foreign[0] != foreign[1] else decider(golds[better], golds[worse])
