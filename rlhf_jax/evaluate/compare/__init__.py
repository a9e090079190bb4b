"""Comparisons of policies: win rates of each two, ratings of all, and what the judge's position and length do to them.

policies.py   completions of finished stages, work directories and files, joined by prompt
judges.py     who judges: gold, reward models, commands and functions of the user's
blind.py      pairs without names for judges elsewhere, and their judgments
published.py  judgments in the forms of AlpacaEval, Chatbot Arena and MT-bench
rates.py      win rates, and whether the judge favours a position or the longer completion
ratings.py    Bradley and Terry's ratings, on Elo's scale
"""

from collections.abc import Sequence
from typing import Any

from rlhf_jax.evaluate.compare import rates, ratings
from rlhf_jax.evaluate.compare.judgments import Judgment, comparisons
from rlhf_jax.statistics import Estimate


def summarize(judgments: Sequence[Judgment], names: Sequence[str]) -> dict[str, Any]:
    """Returns what judgments say of policies, as the command writes it.

    Args:
        judgments: at least one.
        names: all policies, in the order of tables.

    Returns:
        {"contests": for each two policies {first, second, prompts, pairs, win_rate, ties, length_difference,
        length_controlled, length_coefficient}, "ratings": for each policy {bradley_terry, elo, why}, "positions": for each
        judge {first, agreement, pairs, favours}}. An estimate is {value, low, high}, with None for an end that is infinite.
    """
    found = comparisons(judgments, names)
    contests = []
    for (first, second), rows in found.items():
        controlled = rates.length_controlled(rows)
        contests.append(
            {
                "first": first,
                "second": second,
                "prompts": len({row.prompt for row in rows}),
                "pairs": len(rows),
                "win_rate": _plain(rates.win_rate(rows)),
                "ties": rates.ties(rows),
                "length_difference": _plain(rates.length_difference(rows)),
                "length_controlled": _plain(controlled and controlled.rate),
                "length_coefficient": _plain(controlled and controlled.coefficient),
            }
        )
    rated = ratings.rate(found, names)
    positions = rates.positions(judgments)
    return {
        "contests": contests,
        "ratings": {
            name: {"bradley_terry": _plain(rating.value), "elo": _plain(rating.elo), "why": rating.why}
            for name, rating in rated.items()
        },
        "positions": {
            judge: {
                "first": _plain(position.first),
                "agreement": _plain(position.agreement),
                "pairs": position.pairs,
                "favours": position.favours,
            }
            for judge, position in positions.items()
        },
    }


def _plain(estimate: Estimate | None) -> dict[str, float | None] | None:
    return estimate and estimate.to_json()
