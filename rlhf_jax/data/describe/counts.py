"""Writes the statistics of a dataset as Markdown."""

from rlhf_jax.runtime.markdown import cell


def markdown(facts: dict, title: str) -> str:
    """Returns a page of Markdown about the facts that describe.describe returns."""
    parts = [f"# {cell(title)}"]
    for kind, found in facts["kinds"].items():
        parts += [f"## {kind.capitalize()}", *_kind(found, facts["unit"])]
    if facts["leaks"]:
        parts += ["## Leaks", _leaks(facts["leaks"])]
    return "\n\n".join(part for part in parts if part) + "\n"


def _kind(found: dict, unit: str) -> list[str]:
    """Returns the parts of the page about one kind of rows."""
    columns = list(dict.fromkeys(name for row in found["sources"].values() for name in row))
    rows = [[name, *(_count(row.get(column, 0)) for column in columns)] for name, row in found["sources"].items()]
    if len(rows) > 1:
        totals = [sum(row.get(column, 0) for row in found["sources"].values()) for column in columns]
        rows.append(["all", *map(_count, totals)])
    parts = [_table(["file", *columns], rows)]
    if found["bad_rows"]:
        parts.append(_bad_rows(found["bad_rows"]))
    parts += [
        f"{_count(count)} rows are left out, because {cell(reason)}." for reason, count in found["left_out"].items()
    ]
    parts.append(_lengths(found["lengths"], unit))
    if "suggestion" in found:
        parts.append(f"{found['suggestion']}.")
    if "too_long" in found:
        own, count = found["too_long"], found["lengths"]["prompts"]["all"]["count"]
        share = f"{_count(own['prompts'])} of {_count(count)} prompts ({100 * own['prompts'] / count:.1f} %)"
        parts.append(f"{share} are longer than prompt_length = {own['prompt_length']}.")
    for field, values in found["categories"].items():
        parts.append(
            _table(
                [field, "rows", "%", f"mean prompt ({unit})"],
                [
                    [value, _count(row["rows"]), f"{100 * row['share']:.1f}", f"{row['mean_prompt']:.0f}"]
                    for value, row in values.items()
                ],
            )
        )
    if "rankings" in found:
        parts += _rankings(found["rankings"])
    return [*parts, _duplicates(found["duplicates"])]


def _lengths(lengths: dict, unit: str) -> str:
    """Returns a table of lengths, by part and split."""
    names = ("count", "mean", "sd", "min", "quartile_1", "median", "quartile_3", "quantile_95", "quantile_99", "max")
    rows = [
        [f"{part}, {split}", *(_count(round(own[name])) for name in names)]
        for part, by_split in lengths.items()
        for split, own in by_split.items()
        if split != "all" or len(by_split) > 2
    ]
    return _table(
        [f"length in {unit}", "count", "mean", "sd", "min", "25 %", "median", "75 %", "95 %", "99 %", "max"], rows
    )


def _rankings(found: dict) -> list[str]:
    """Returns a table about rankings."""
    sizes = ", ".join(f"K = {size}: {_count(count)}" for size, count in found["completions"].items())
    rows = [
        ["rankings", _count(found["rankings"])],
        ["distinct prompts", _count(found["prompts"])],
        ["completions", sizes],
        ["pairs", _count(found["pairs"])],
        ["tied pairs", f"{_count(found['tied_pairs'])} ({100 * found['tied_pairs'] / max(1, found['pairs']):.1f} %)"],
        ["rankings in which all are tied", _count(found["all_tied"])],
    ]
    if "scores" in found:
        own = found["scores"]
        spread = f"{own['min']:g} to {own['max']:g}"
        rows.append(["scores", f"{spread}, mean {own['mean']:.2f}, sd {own['sd']:.2f}, median {own['median']:g}"])
    if labelers := list(found["labelers"].values()):
        rows.append(["labelers", f"{len(labelers)}; {_count(labelers[-1])} to {_count(labelers[0])} rankings each"])
    for name, title in (
        ("longer_preferred", "the longer is preferred"),
        ("earlier_preferred", "the first listed is preferred"),
    ):
        if name in found:
            rows.append([title, _percent(found[name])])
    if found["agreement"]:
        own = found["agreement"]
        of = f"{_count(own['comparisons'])} comparisons on {_count(own['prompts'])} prompts"
        rows.append(["two labelers agree", f"{_percent(own)} of {of}"])
    else:
        rows.append(["two labelers agree", "unknown: no two named labelers ranked the same completions"])
    return [_table(["", "value"], rows)]


def _bad_rows(reasons: dict, shown: int = 8) -> str:
    """Returns a table of the most frequent reasons for which rows were skipped."""
    total = sum(found["count"] for found in reasons.values())
    rows = [[reason, _count(found["count"]), found["first"]] for reason, found in reasons.items()]
    if len(rows) > shown:
        rows = rows[:shown] + [
            [f"{len(rows) - shown} other reasons", _count(sum(f["count"] for f in list(reasons.values())[shown:])), ""]
        ]
    return f"Bad rows, skipped: {_count(total)}.\n\n" + _table(["reason", "rows", "the first"], rows)


def _duplicates(found: dict) -> str:
    """Returns sentences about equal rows and near-duplicate prompts."""
    text = f"Rows that repeat another one: {_count(found['equal_rows'])} of {_count(found['rows'])}."
    if found["clusters"]:
        text += (
            f" Near-duplicate prompts: {_count(found['in_clusters'])} of {_count(found['prompts'])}, in "
            f"{_count(found['clusters'])} clusters, the largest of {_count(found['largest'])}."
        )
    return text


def _leaks(found: dict) -> str:
    """Returns a sentence about clusters across splits, and a table of prompts that files share."""
    text = (
        f"Clusters of near-duplicate prompts that lie in more than one split: {_count(found['across_splits'])} as "
        f"configured, {_count(found['across_splits_by_prompt_alone'])} if each prompt were split by itself."
    )
    if found["between_files"]:
        rows = [[pair, _count(count)] for pair, count in found["between_files"].items()]
        text += "\n\n" + _table(["files that share prompts, or near duplicates", "prompts"], rows)
    return text


def _percent(estimate: dict) -> str:
    """Returns a share with its interval, in percent."""
    return f"{100 * estimate['value']:.1f} % [{100 * estimate['low']:.1f}, {100 * estimate['high']:.1f}]"


def _count(value: int) -> str:
    return f"{value:,}"


def _table(columns: list[str], rows: list[list[str]]) -> str:
    """Returns a Markdown table with escaped cells; all columns but the first are aligned right."""
    rule = ["---"] + ["---:"] * (len(columns) - 1)
    lines = [[cell(text) for text in columns], rule, *([cell(text) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
