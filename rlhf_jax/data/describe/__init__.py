"""Statistics of a dataset, as in InstructGPT's Tables 6 to 11: counts, lengths, categories, rankings, leaks."""

import collections
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from rlhf_jax.data import duplicates, encoding, splits
from rlhf_jax.data.corpus import FileCorpus
from rlhf_jax.data.fitting import SHARE, holding
from rlhf_jax.data.record_files import ReadReport
from rlhf_jax.data.records import Ranking
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.statistics import share

CATEGORY_FIELDS = ("category", "use_case", "task", "template", "source", "subset", "language", "label")
_SHOWN = 12  # number of values that a category lists; the others are summed up
_SPLITS = (*splits.NAMES, splits.HELD_OUT)

Lengths = dict[str, dict[str, np.ndarray]]  # "prompts", "completions", "documents" -> split -> i64[N]


def describe(
    corpus: FileCorpus,
    kinds: Sequence[str],
    tokenizer: Tokenizer | None,
    categories: Sequence[str] = CATEGORY_FIELDS,
    prompt_length: int | None = None,
) -> tuple[dict, dict[str, Lengths]]:
    """Returns the statistics of a corpus.

    Args:
      corpus: the corpus.
      kinds: the kinds of rows to describe, of data.corpus.KINDS; the corpus must have files of each.
      tokenizer: the tokenizer that measures lengths in tokens; None measures them in characters.
      categories: names of fields whose values divide the rows into categories, for rows that have the field.
      prompt_length: length above which prompts are counted as too long; None does not count them.

    Returns:
      Facts of JSON's types, and the lengths by kind.

    Raises:
      InputError: a file cannot be read, or a field of `data.files` does not fit it.
    """
    facts = {"unit": "tokens" if tokenizer else "characters", "kinds": {}}
    lengths = {}
    for kind in kinds:
        by_split = {name: corpus.splits(kind)[name] for name in _SPLITS}
        by_split = {name: rows for name, rows in by_split.items() if rows}
        lengths[kind] = _lengths(by_split, tokenizer)
        facts["kinds"][kind] = {
            "sources": _sources(corpus, kind, by_split),
            "bad_rows": _bad_rows([corpus.reports[key] for key in corpus.reports if key.startswith(f"{kind}: ")]),
            "left_out": corpus.split_reports[kind]["left_out"],
            "lengths": {
                part: {name: length_facts(own) for name, own in (found | {"all": _all(found)}).items()}
                for part, found in lengths[kind].items()
            },
            "categories": _categories(by_split, lengths[kind], categories),
            "duplicates": _duplicates(corpus, kind),
        }
        if tokenizer and "prompts" in lengths[kind]:
            facts["kinds"][kind]["suggestion"] = _suggestion(lengths[kind])
        if prompt_length and "prompts" in lengths[kind]:
            too_long = int((_all(lengths[kind]["prompts"]) > prompt_length).sum())
            facts["kinds"][kind]["too_long"] = {"prompt_length": prompt_length, "prompts": too_long}
        if kind == "rankings":
            rankings = [row for rows in by_split.values() for row in rows]
            facts["kinds"][kind]["rankings"] = ranking_facts(rankings)
    prompted = [kind for kind in kinds if kind != "documents"]
    facts["leaks"] = _leaks(corpus, prompted) if prompted else {}
    return facts, lengths


def length_facts(lengths: np.ndarray) -> dict[str, float]:
    """Returns count, mean, standard deviation, min, quantiles and max of lengths i64[N] or other numbers."""
    low, middle, high, most, nearly = np.quantile(lengths, [0.25, 0.5, 0.75, 0.95, 0.99]).tolist()
    return {
        "count": len(lengths),
        "mean": float(lengths.mean()),
        "sd": float(lengths.std(ddof=1)) if len(lengths) > 1 else 0.0,
        "min": lengths.min().item(),
        "quartile_1": low,
        "median": middle,
        "quartile_3": high,
        "quantile_95": most,
        "quantile_99": nearly,
        "max": lengths.max().item(),
    }


def ranking_facts(rankings: Sequence[Ranking]) -> dict:
    """Returns statistics of rankings: K, pairs, ties, labelers and their agreement, and biases of length and order.

    The biases are the shares of untied pairs whose longer, or earlier listed, completion is preferred.
    """
    pairs = tied = 0
    longer, earlier, units = [], [], []  # one entry for each pair that is not tied
    for ranking in rankings:
        for i, j in itertools.combinations(range(len(ranking.ranks)), 2):
            pairs += 1
            if ranking.ranks[i] == ranking.ranks[j]:
                tied += 1
                continue
            difference = len(ranking.completions[i]) - len(ranking.completions[j])
            first_wins = ranking.ranks[i] < ranking.ranks[j]
            earlier.append(first_wins)
            longer.append(0.5 if difference == 0 else (difference > 0) == first_wins)
            units.append(ranking.unit)
    labelers = collections.Counter(ranking.labeler for ranking in rankings if ranking.labeler is not None)
    facts = {
        "rankings": len(rankings),
        "prompts": len({ranking.prompt for ranking in rankings} - {""}),
        "completions": dict(sorted(collections.Counter(len(ranking.ranks) for ranking in rankings).items())),
        "pairs": pairs,
        "tied_pairs": tied,
        "all_tied": sum(ranking.all_tied for ranking in rankings),
        "labelers": dict(labelers.most_common()),
    }
    if longer:
        facts["longer_preferred"] = share(longer, units=units)._asdict()
        if np.mean(earlier) < 1:  # at 1 the order is the ranking itself, as in {chosen, rejected}
            facts["earlier_preferred"] = share(earlier, units=units)._asdict()
    if scores := [score for ranking in rankings for score in ranking.scores or ()]:
        facts["scores"] = length_facts(np.array(scores))
    return facts | {"agreement": agreement(rankings)}


def agreement(rankings: Sequence[Ranking]) -> dict | None:
    """Returns how often two labelers prefer the same one of two completions that both ranked without a tie.

    Returns:
      The share of such pairs of judgements that agree, with its interval over prompts, and the numbers of comparisons
      and prompts; None if no two labelers ranked the same completions.
    """
    votes = collections.defaultdict(dict)  # prompt -> labeler -> completion -> its rank in the labeler's first ranking
    for ranking in rankings:
        if ranking.labeler is not None:
            ranks = dict(zip(ranking.completions, ranking.ranks))
            for text, rank in ranks.items():
                votes[ranking.prompt].setdefault(ranking.labeler, {}).setdefault(text, rank)
    shares, counts = [], []
    for by_labeler in votes.values():
        wins = collections.Counter()  # (better, worse) -> number of labelers
        for ranks in by_labeler.values():
            for first, second in itertools.permutations(ranks, 2):
                wins[first, second] += ranks[first] < ranks[second]
        agree = sum(count * (count - 1) // 2 for count in wins.values())
        differ = sum(count * wins[second, first] for (first, second), count in wins.items()) // 2
        if agree + differ:
            shares.append(agree / (agree + differ))
            counts.append(agree + differ)
    if not counts:
        return None
    return {**share(shares, counts)._asdict(), "comparisons": sum(counts), "prompts": len(counts)}


def _all(by_split: dict[str, np.ndarray]) -> np.ndarray:
    """Returns the values of all splits together."""
    return np.concatenate(list(by_split.values()))


def _lengths(by_split: dict[str, list], tokenizer: Tokenizer | None) -> Lengths:
    """Returns the lengths of documents, of distinct prompts and of all completions, each by split."""
    parts = {"documents": {}, "prompts": {}, "completions": {}}
    for name, rows in by_split.items():
        if hasattr(rows[0], "text"):
            parts["documents"][name] = _measure([row.text for row in rows], tokenizer, "documents", starts=True)
            continue
        if prompts := list(dict.fromkeys(row.prompt for row in rows if row.prompt)):
            parts["prompts"][name] = _measure(prompts, tokenizer, "prompts", prompts=True)
        completions = [text for row in rows for text in _completions(row)]
        if completions:
            parts["completions"][name] = _measure(completions, tokenizer, "completions")
    return {part: found for part, found in parts.items() if found}


def _measure(texts: list[str], tokenizer: Tokenizer | None, what: str, **start: bool) -> np.ndarray:
    """Returns the length of each text, i64[N], in tokens, or in characters without a tokenizer."""
    if tokenizer is None:
        return np.array([len(text) for text in texts])
    return encoding.lengths(tokenizer, texts, what, **start)


def _completions(row: Any) -> tuple[str, ...]:
    """Returns the completions of a ranking, the one of a demonstration, or none."""
    return getattr(row, "completions", None) or ((row.completion,) if hasattr(row, "completion") else ())


def _suggestion(lengths: Lengths) -> str:
    """Returns a sentence with the lengths of a config that hold most prompts and completions, of lengths in tokens."""
    said = f"prompt_length={holding(_all(lengths['prompts']))} holds {SHARE:.0%} of the prompts"
    if "completions" in lengths:  # the token that ends a completion counts, too
        length = holding(_all(lengths["completions"]) + 1)
        said += f", and completion_length={length} of the completions with the token that ends them"
    return said


def _sources(corpus: FileCorpus, kind: str, by_split: dict[str, list]) -> dict[str, dict[str, int]]:
    """Returns the number of rows and distinct prompts of each file, and of rows in each split."""
    split_of = {id(getattr(row, "row", row)): name for name, rows in by_split.items() for row in rows}
    table = {}
    for source, rows in corpus.sources(kind).items():
        counts = collections.Counter(split_of.get(id(getattr(row, "row", row)), "left out") for row in rows)
        prompts = {getattr(row, "prompt", None) for row in rows} - {None, ""}
        table[source] = {"rows": len(rows), **({"prompts": len(prompts)} if prompts else {}), **counts}
    return table


def _bad_rows(reports: list[ReadReport]) -> dict:
    """Returns the number of skipped rows for each reason, most frequent first, and the place of the first of them."""
    reasons = {}
    for place, reason in (skipped for report in reports for skipped in report.skipped):
        entry = reasons.setdefault(reason, {"count": 0, "first": place})
        entry["count"] += 1
    return dict(sorted(reasons.items(), key=lambda item: -item[1]["count"]))


def _categories(by_split: dict[str, list], lengths: Lengths, names: Sequence[str]) -> dict[str, dict[str, dict]]:
    """Returns field -> value -> number of rows, share and mean prompt length, largest first (Tables 1, 7, 10)."""
    if "prompts" not in lengths:
        return {}
    size = {}
    for name, rows in by_split.items():
        size |= zip(dict.fromkeys(row.prompt for row in rows if row.prompt), lengths["prompts"][name].tolist())
    rows = [row for own in by_split.values() for row in own]
    table = {}
    for name in names:
        found = collections.defaultdict(list)
        for row in rows:
            value = splits.field(row, name)
            if isinstance(value, (str, int)) and row.prompt:
                found[str(value)].append(size[row.prompt])
        ordered = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))
        if len(ordered) > 1:
            head, rest = ordered[:_SHOWN], ordered[_SHOWN:]
            if rest:
                head.append((f"{len(rest)} others", [x for _, own in rest for x in own]))
            table[name] = {
                value: {"rows": len(own), "share": len(own) / len(rows), "mean_prompt": float(np.mean(own))}
                for value, own in head
            }
    return table


def _duplicates(corpus: FileCorpus, kind: str) -> dict:
    """Returns the numbers of equal rows and of near-duplicate prompts among all rows of a kind."""
    rows = [row for own in corpus.sources(kind).values() for row in own]
    equal = len(rows) - len({splits.content(row) for row in rows})
    return {"rows": len(rows), "equal_rows": equal} | corpus.split_reports[kind]["near_duplicates"]


def _leaks(corpus: FileCorpus, kinds: Sequence[str]) -> dict:
    """Counts clusters of near-duplicate prompts that lie in several splits, or in two files.

    Clusters across splits are counted for the corpus's splits, and for splits by a hash of each prompt alone.
    """
    places = [
        (row.prompt, kind, source, row)
        for kind in kinds
        for source, rows in corpus.sources(kind).items()
        for row in rows
        if row.prompt
    ]
    prompts = sorted({prompt for prompt, *_ in places})
    cluster = dict(zip(prompts, duplicates.clusters(prompts, max(1, corpus.config.common_prefix)).tolist()))
    split_of = {
        row.prompt: name for kind in kinds for name, rows in corpus.splits(kind).items() for row in rows if row.prompt
    }
    alone = {prompt: splits.share_split(prompt, corpus.config) for prompt in prompts}

    def divided(split_of):
        found = collections.defaultdict(set)
        for prompt, name in split_of.items():
            found[cluster[prompt]].add(name)
        return {number for number, names in found.items() if len(names) > 1}

    sources = collections.defaultdict(set)
    for prompt, kind, source, _ in places:
        sources[f"{source} ({kind})"].add(cluster[prompt])
    shared = {}
    for (first, own), (second, others) in itertools.combinations(sources.items(), 2):
        if both := len(own & others):
            shared[f"{first} and {second}"] = both
    return {
        "across_splits": len(divided(split_of)),
        "across_splits_by_prompt_alone": len(divided(alone)),
        "between_files": shared,
    }
