"""The tables of a plan in Markdown, for the terminal and for docs."""

import pathlib

_GIB = 2**30
# Columns of the memory table, and the groups of arrays (see abstract.Program) whose bytes each column adds up.
_COLUMNS = {
    "parameters": ("parameters", "policy parameters", "value parameters"),
    "optimizer": ("optimizer", "average", "policy optimizer", "policy average", "value optimizer", "value average"),
    "frozen": ("frozen", "base"),
    "decode copy": ("decode copy",),
    "batch": ("batch", "experience"),
}


def render(found: dict) -> str:
    """Returns all tables of one plan, under its headline."""
    tables = [headline(found), memory(found), time(found)]
    tables += [real_lengths(found)] if found.get("lengths") else []
    return "\n\n".join([*tables, collectives(found), stages(found)]) + "\n"


def overview(plans: list[dict]) -> str:
    """Returns a table with a row for each plan: whether it fits, and the least hours of all its stages together.

    The last columns have how many times the floor that is: for full lengths, and for real ones.
    """
    head = [
        "config",
        "on",
        "chips",
        "mesh",
        "fits",
        "least spare (GiB)",
        "in",
        "hours, at least",
        "chip-hours, at least",
        "times the floor",
        "hours, real lengths",
        "times its floor",
    ]
    rows = []
    for plan in plans:
        known = [row for row in plan["programs"] if row.get("spare") is not None]
        tightest = min(known, key=lambda row: row["spare"], default=None)
        fits = all(row.get("fits", False) for row in plan["programs"])
        rows.append(
            [
                pathlib.Path(plan["name"]).name,
                plan["topology"],
                f"{plan['chips']:,}",
                " x ".join(map(str, plan["mesh"].values())),
                "yes" if fits else "no",
                _gib(tightest and tightest["spare"]),
                _name(tightest) if tightest else "–",
                _number(plan["total"]["hours"]),
                _number(plan["total"]["chip_hours"]),
                _ratio(plan["total"].get("hours"), plan["total"].get("floor_hours")),
                _number(plan["total"].get("real_hours")),
                _ratio(plan["total"].get("real_hours"), plan["total"].get("real_floor_hours")),
            ]
        )
    return _table(head, rows)


def headline(found: dict) -> str:
    """Returns a sentence with the topology, mesh, model, microbatches and compiler of a plan, and what it has chosen."""
    mesh = " ".join(f"{axis}={size}" for axis, size in found["mesh"].items())
    model = ", ".join(f"{name} {value}" for name, value in found["model"].items() if value)
    parts = ", ".join(f"{stage} {count}" for stage, count in found["microbatches"].items())
    compiler = ", ".join(f"{name} {version}" for name, version in found["compiler"].items())
    chosen = ", ".join(f"{name}={value}" for name, value in (found.get("chosen") or {}).items())
    return (
        f"{found['name']} on {found['topology']}: {found['chips']} chips, mesh {mesh}; {model}; microbatches {parts} "
        f"({compiler})" + (f". Chosen by memory: {chosen}" if chosen else "")
    )


def memory(found: dict) -> str:
    """Returns the table of memory: GiB per device held while each program runs, against the chip's memory.

    The second column has the rows that a device computes at once, of its rows of a batch.
    """
    limit = found["memory_limit"]
    head = [
        "program",
        "rows at once",
        *_COLUMNS,
        "KV cache",
        "temporaries",
        "in all",
        f"of {limit / _GIB:.2f} GiB",
        "compile (s)",
    ]
    rows = []
    for row in found["programs"]:
        if message := row.get("refused") or row.get("failed"):
            rows.append([_name(row), "–", message])
            continue
        held = [sum(row["held"].get(name, 0) for name in names) for names in _COLUMNS.values()]
        rest = [row.get(name) for name in ("cache", "temporaries", "total")]
        verdict = f"fits, {_gib(row['spare'])} spare" if row["fits"] else "**does not fit**"
        if row.get("spare", 0) < 0:
            verdict = f"**lacks {_gib(-row['spare'])}**"
        at_once = ", ".join(f"{name} {some} of {all}" for name, (some, all) in row.get("rows", {}).items()) or "–"
        depths = f", of {' and '.join(map(str, row['depths']))} layers" if row.get("depths") else ""
        rows.append([_name(row), at_once, *map(_gib, held + rest), verdict, f"{row['compile_seconds']:.0f}{depths}"])
    return _table(head, rows)


def time(found: dict) -> str:
    """Returns the table of times: the least seconds of one run of each program, and the bound that binds."""
    bounds = list(dict.fromkeys(name for row in found["programs"] for name in row.get("bounds", {})))
    head = [
        "program",
        "runs",
        "tokens",
        "model PFLOP",
        "moved (GB)",
        *(f"{name} (s)" for name in bounds),
        "binds",
        "MFU at most",
        "floor (s)",
        "times the floor",
    ]
    rows = []
    for row in found["programs"]:
        if row.get("bounds") is None:
            continue
        seconds = [_seconds(row["bounds"].get(name)) for name in bounds]
        mfu = f"{100 * row['mfu']:.0f} %" if row["mfu"] else "–"
        rows.append(
            [
                _name(row),
                f"{row['runs']:,}",
                f"{row['tokens']:,}",
                _short(row["flops"] / 1e15),
                _short(row["moved"] / 1e9),
                *seconds,
                row["binds"] or "–",
                mfu,
                _seconds(row.get("floor")),
                _ratio(row["seconds"], row.get("floor")),
            ]
        )
    return _table(head, rows)


def real_lengths(found: dict) -> str:
    """Returns the table of times for real lengths: one run of each program whose time depends on them."""
    means = found["lengths"]
    rows = [
        [
            _name(row),
            f"{row['real']['tokens']:,}",
            _short(row["real"]["flops"] / 1e15),
            _short(row["real"]["moved"] / 1e9),
            _seconds(row["real"]["seconds"]),
            row["real"]["binds"] or "–",
            _seconds(row["real"]["floor"]),
            _ratio(row["real"]["seconds"], row["real"]["floor"]),
        ]
        for row in found["programs"]
        if row.get("real") and row["real"]["flops"] != row["flops"]
    ]
    head = ["program", "tokens", "model PFLOP", "moved (GB)", "at least (s)", "binds", "floor (s)", "times the floor"]
    said = f"With prompts of {means['prompt']:g} tokens in the mean, and completions of {means['completion']:g}:"
    return f"{said}\n\n{_table(head, rows)}"


def collectives(found: dict) -> str:
    """Returns the table of collectives: their count and GB per device, in one run of each program.

    A collective with less than 0.1 % of its program's bytes is left out.
    """
    rows = [
        [_name(row), c["kind"], c["axes"], f"{c['count']:,}", _short(c["bytes"] / 1e9)]
        for row in found["programs"]
        for c in row.get("collectives") or []
        if c["bytes"] >= 0.001 * sum(other["bytes"] for other in row["collectives"])
    ]
    return _table(["program", "collective", "mesh axis", "count", "GB"], rows)


def stages(found: dict) -> str:
    """Returns the table of whole stages, each program at its largest bound, with the paper's compute beside ours."""
    named = [*found["stages"], {"stage": "in all", "paper": None, **found["total"]}]
    cost = any(stage["cost"] for stage in named)
    head = [
        "stage",
        "tokens",
        "petaflop/s-days",
        "paper's",
        "hours, at least",
        "chip-hours, at least",
        *(["cost, at least"] if cost else []),
        "times the floor",
        *(["hours, real lengths", "times its floor"] if found.get("lengths") else []),
    ]
    rows = []
    for stage in named:
        row = [
            stage["stage"],
            *(_number(stage[name]) for name in ("tokens", "petaflop_s_days", "paper", "hours", "chip_hours")),
        ]
        ratios = [_ratio(stage["hours"], stage.get("floor_hours"))]
        if found.get("lengths"):
            real = stage.get("real_hours")
            ratios += [_number(real), _ratio(real, stage.get("real_floor_hours"))]
        rows.append(row + ([_number(stage["cost"])] if cost else []) + ratios)
    return _table(head, rows)


def ranking(plans: list[dict], limit: int) -> str:
    """Returns the table of a search: a row for each candidate, in the order given.

    Args:
      plans: the plans of the candidates.
      limit: bytes of memory of a chip.
    """
    head = [
        "mesh",
        "remat",
        "microbatches",
        "most (GiB)",
        f"of {limit / _GIB:.2f} GiB",
        "binds",
        "chip-hours, at least",
    ]
    rows = []
    for found in plans:
        totals = [row["total"] for row in found["programs"] if row.get("total")]
        refused = [row["refused"] for row in found["programs"] if "refused" in row]
        verdict = refused[0] if refused else "fits" if found["fits"] else "does not"
        binds = max(
            (row for row in found["programs"] if row.get("seconds")), key=lambda r: r["seconds"] * r["runs"], default={}
        )
        rows.append(
            [
                " ".join(f"{axis}={size}" for axis, size in found["mesh"].items()),
                found["model"]["remat"],
                ", ".join(f"{stage} {count}" for stage, count in found["microbatches"].items()),
                _gib(max(totals, default=None)),
                verdict,
                f"{binds['binds']} in {binds['program']}" if binds else "–",
                _number(found["total"]["chip_hours"]) if found["fits"] else "–",
            ]
        )
    return _table(head, rows)


def _name(row: dict) -> str:
    return f"{row['stage']}: {row['program']}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    """Returns a Markdown table; a row that is too short is filled with empty cells."""
    rows = [row + [""] * (len(head) - len(row)) for row in rows]
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _gib(size: float | None) -> str:
    """Returns a number of bytes in GiB."""
    return "–" if size is None else f"{size / _GIB:.2f}" if abs(size) >= 0.1 * _GIB else f"{size / _GIB:.2g}"


def _seconds(value: float | None) -> str:
    return "–" if value is None else _short(value)


def _ratio(value: float | None, floor: float | None) -> str:
    """Returns how many times a floor a value is; "–" where the floor is 0 or either is unknown."""
    return f"{value / floor:.2f}" if value is not None and floor else "–"


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _number(value: float | None) -> str:
    return "–" if value is None else _short(value)
