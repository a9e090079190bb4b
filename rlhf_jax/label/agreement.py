"""How much labelers agree, with each other and with known rankings, each with its 95 % interval.

Agreement counts the pairs of completions that both labelers ranked without a tie (`data.describe.agreement`). Against
known rankings, a pair counts if the known ranks differ, and a labeler's tie counts one half. The unit of the intervals is
the item. InstructGPT's labelers were screened with a soft cut-off of 75 % (appendix B.1).
"""

import collections
import itertools
import math
import pathlib
import statistics
from collections.abc import Sequence

from rlhf_jax.data.describe import agreement
from rlhf_jax.data.records import Ranking
from rlhf_jax.label import judgments
from rlhf_jax.label.questions import FLAGS, RATINGS
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.statistics import mean, share

CUTOFF = 0.75


def summary(rows: Sequence[dict], screening: Sequence[dict] = ()) -> dict:
    """Returns the numbers of judgments, agreement and screening as plain JSON.

    Args:
        rows: the judgments of a file, rankings or demonstrations.
        screening: the judgments of items with known ranks, which have `gold_ranks`.
    """
    names = sorted({row["labeler"] for row in (*rows, *screening)})
    rankings = [row for row in rows if "ranks" in row]
    pairs = [pair for row in rankings for pair in itertools.combinations(row["ranks"], 2)]
    return {
        "judgments": len(rows),
        "items": len({row["item"] for row in rows}),
        "ties": sum(first == second for first, second in pairs) / len(pairs) if pairs else None,
        "agreement": _agreement(rankings),
        "labelers": [_labeler(name, rows, screening) for name in names],
    }


def by_model(rows: Sequence[dict]) -> list[dict]:
    """Returns, for each model, its mean rating and the share of completions with each flag; for people who may know."""
    ratings, flags = collections.defaultdict(list), collections.defaultdict(list)
    for row in rows:
        for place, model in enumerate(row.get("models") or ()):
            if "ratings" in row:
                ratings[model].append((row["ratings"][place], row["item"]))
            if "flags" in row:
                flags[model].append(row["flags"][place])
    found = []
    for model in sorted({*ratings, *flags}):
        marks, given = ratings[model], flags[model]
        rating = mean([mark for mark, _ in marks], units=[item for _, item in marks]).to_json() if marks else None
        shares = {name: sum(name in names for names in given) / len(given) for name in FLAGS if given}
        shares = {name: value for name, value in shares.items() if value}
        found.append({"model": model, "rating": rating, "completions": max(len(marks), len(given)), "flags": shares})
    return found


def against_gold(rows: Sequence[dict]) -> dict | None:
    """Returns a labeler's share of agreement with known ranks, and what the cut-off says; None without a pair."""
    right, units = [], []
    for row in rows:
        for (gold, ours), (other_gold, other_ours) in itertools.combinations(zip(row["gold_ranks"], row["ranks"]), 2):
            if gold != other_gold:
                side = (other_gold - gold) * (other_ours - ours)
                right.append(0.5 if side == 0 else float(side > 0))
                units.append(row["item"])
    if not right:
        return None
    found = share(right, units=units)
    verdict = "passes" if found.value >= CUTOFF else "fails"
    certain = not found.low < CUTOFF <= found.high
    return {**found.to_json(), "pairs": len(right), "items": len(set(units)), "verdict": verdict, "certain": certain}


def lines(found: dict, models: Sequence[dict] = ()) -> list[str]:
    """Returns a summary as lines of text."""
    said = [f"{found['judgments']} judgments of {found['items']} items"]
    if found["ties"] is not None:
        said[0] += f", {100 * found['ties']:.0f} % of their pairs tied"
    agreed = found["agreement"]
    if agreed:
        said.append(
            f"agreement of two labelers: {_percent(agreed)}, {agreed['comparisons']} comparisons of {agreed['prompts']} prompts"
        )
    elif found["ties"] is not None:
        said.append("agreement of two labelers: not known, since no two have ranked the same completions without a tie")
    for labeler in found["labelers"]:
        line = f"{labeler['name']}: {labeler['judgments']} judgments"
        if labeler["seconds"] is not None:
            line += f", {labeler['seconds']:.0f} s each (median)"
        if gold := labeler["gold"]:
            line += (
                f"; with known rankings {_percent(gold)}, {gold['pairs']} pairs of {gold['items']} items: "
                f"{gold['verdict']} the {100 * CUTOFF:.0f} % rule"
                + ("" if gold["certain"] else ", but its interval holds both sides of it")
            )
        said.append(line)
    for model in models:
        line = f"{model['model']}: {model['completions']} completions"
        if (rating := model["rating"]) is not None:
            line += f", rated {rating['value']:.2f}"
            if rating["low"] is not None:
                low, high = (
                    max(rating["low"], RATINGS[0]),
                    min(rating["high"], RATINGS[-1]),
                )  # a mean lies between these
                line += f" [{low:.2f}, {high:.2f}]"
        line += "".join(f"; {FLAGS[name].lower()} {100 * value:.0f} %" for name, value in model["flags"].items())
        said.append(line)
    return said


def of_file(path) -> list[str]:
    """Returns the summary of a file of judgments as lines of text.

    Raises:
        InputError: the file is not there, or a line of it is no judgment.
    """
    screening = judgments.beside(path, "screening")
    if not pathlib.Path(path).exists() and not screening.exists():
        raise InputError(f"--summary={path}: there is no such file; give the file that --out has named")
    rows, gold = judgments.read(path)[0], judgments.read(screening)[0]
    if not rows and not gold:
        raise InputError(f"--summary={path}: there are no judgments in this file")
    return lines(summary(rows, gold), by_model(rows))


def _agreement(rows: Sequence[dict]) -> dict | None:
    # Names stand for prompt and completions: a completion may be a message, and a prompt may have two items.
    names = [tuple(map(str, range(len(row["ranks"])))) for row in rows]
    return agreement(
        [
            Ranking(row["item"], texts, tuple(row["ranks"]), row["labeler"], None, None, None, {})
            for row, texts in zip(rows, names)
        ]
    )


def _labeler(name: str, rows: Sequence[dict], screening: Sequence[dict]) -> dict:
    own, gold = ([row for row in part if row["labeler"] == name] for part in (rows, screening))
    seconds = [row["seconds"] for row in own if isinstance(row.get("seconds"), int | float)]
    return {
        "name": name,
        "judgments": len(own),
        "seconds": statistics.median(seconds) if seconds else None,
        "gold": against_gold(gold),
    }


def _percent(found: dict) -> str:
    low, high = (None if end is None or not math.isfinite(end) else 100 * end for end in (found["low"], found["high"]))
    ends = "" if low is None or high is None else f" ({low:.0f} to {high:.0f} %)"
    return f"{100 * found['value']:.0f} %{ends}"
