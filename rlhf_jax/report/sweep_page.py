"""The report of a sweep, which is written into its directory.

report.md        claims with verdicts, figures, tables, arms that are not done, and commands that repeat the sweep
figures/         each figure as PNG and PDF
tables/          each table as NAME.csv, with a line for each setting, and as NAME.tex
                 all.csv, with a line for each number of each arm
                 seeds.csv, with those lines of all.csv that tables, figures and claims use
verdicts.json    the sweep, its commits, and its claims with verdicts and tests, for REPRODUCTION.md (see reproduction)
"""

import dataclasses
import json
import re
import shlex

import rich.console
from rich.text import Text

from rlhf_jax.report import spec, variance
from rlhf_jax.report.figures import of_sweep as figures
from rlhf_jax.report.record import label
from rlhf_jax.report.sweep_progress import SweepProgress, how_far, state, unfinished_sections
from rlhf_jax.report.sweep_report import Sweep
from rlhf_jax.report.sweep_tables import Drawn, long_csv, tables_of
from rlhf_jax.report.tables import TextTable
from rlhf_jax.report.verdicts import Verdict, judge_all
from rlhf_jax.runtime.files import own_folder, write_json, write_text
from rlhf_jax.runtime.markdown import cell, code, image, json_code, link, prose
from rlhf_jax.runtime.terminal import visible

EVERYTHING = "all.csv"
DECISION = (
    "A claim becomes a number for each seed, and a Student t interval of the mean over seeds decides. The claim holds if the "
    "interval is entirely on the claim's side: above 0, unless the claim names another number. It does not hold if the interval "
    "is entirely on the other side. It is negligible if the interval lies within the smallest difference that matters, which "
    "the claim names. Otherwise, and with fewer than two seeds, it is undecided. A claim of several numbers holds if all of "
    "them do. It does not hold, or is negligible, if one of its m numbers is so by an interval of 1 - 5 %/m. A sweep whose "
    "claims are judged once shows intervals of 95 %. If a sweep has several looks, at growing numbers of seeds, the intervals of "
    "all looks together contain the truth in 95 % of cases, and the look that decided is named. Each claim is judged by itself; "
    '"after Holm" is the verdict with Holm\'s correction for the claims of the sweep.'
)
_MOST_SHOWN = 40  # arms that are named one by one


@dataclasses.dataclass(frozen=True)
class Page:
    """The report of a sweep.

    Attributes:
      sweep: the sweep.
      figures: (name of the file without its ending, declaration, caption) of each figure that was drawn.
      tables: (name of the file without its ending, table) of each table.
      verdicts: each claim with its verdict.
    """

    sweep: Sweep
    figures: list[tuple]
    tables: list[tuple[str, Drawn]]
    verdicts: list[tuple[spec.Claim, Verdict]]


def write(path) -> rich.console.Group:
    """Writes the report of a sweep into its directory.

    Returns:
      The part of the report that belongs on a terminal, for rich's `print`.

    Raises:
      InputError: the path is no sweep, or cannot be written.
    """
    page = make(path)
    finished = not unfinished_sections(page.sweep, [found for _, found in page.verdicts])
    verdicts = TextTable(
        ["verdict", "claim"], [[said(claim), claim["text"]] for claim in facts_of(page)["claims"]], words=2
    )
    return rich.console.Group(
        Text(visible(f"{page.sweep.path.name}{'' if finished else ', unfinished'}: {state(page.sweep)}")),
        *(
            drawn.means.rich(f"{_heading(drawn)}, ± half of a 95 % interval over seeds", wrap=True, most=6)
            for _, drawn in page.tables
        ),
        *[verdicts.rich("claims", wrap=True)] * bool(page.verdicts),
        Text(visible(f"Figures and more: {page.sweep.path / 'report.md'}")),
    )


def progress_of(path) -> SweepProgress:
    """Returns how far a sweep is; raises InputError if the path is no sweep."""
    return SweepProgress.of(Sweep(path))


def make(path) -> Page:
    """Reads a sweep, judges its claims, writes all files of its report, and returns the report."""
    sweep = Sweep(path)
    drawn, declared = tables_of(sweep), sweep.declared.figures or _default_figures(sweep)
    tables = dict(zip(_names([table.declared for table in drawn], "table"), drawn))
    for folder in ("figures", "tables"):
        own_folder(sweep.path / folder)
    for name, table in tables.items():
        write_text(sweep.path / "tables" / f"{name}.tex", _latex(sweep, name, table))
        write_text(sweep.path / "tables" / f"{name}.csv", table.wide)
    _write_numbers(sweep, [*declared, *(table.declared for table in drawn), *sweep.declared.claims])
    page = Page(sweep, _draw(sweep, declared), list(tables.items()), list(zip(sweep.declared.claims, judge_all(sweep))))
    write_json(sweep.path / "verdicts.json", facts_of(page))
    write_text(sweep.path / "report.md", "\n\n".join(_sections(page)) + "\n")
    return page


def _latex(sweep: Sweep, name: str, table: Drawn) -> str:
    """Returns a table and its differences as LaTeX, with the facts that repeat it as comments."""
    facts = (command(sweep), *_facts(sweep), "packages: booktabs, graphicx")
    text = "".join(f"% {' '.join(visible(fact).split())}\n" for fact in facts)
    caption = f"{table.declared.title or sweep.path.name}: means over seeds, ± half of a 95 % Student t interval."
    text += table.means.latex(caption, f"tab:{sweep.path.name}-{name}")
    if table.differences:
        caption = f"Differences to {table.baseline}, paired by seed."
        text += "\n" + table.differences.latex(caption, f"tab:{sweep.path.name}-{name}-differences")
    return text


def _write_numbers(sweep: Sweep, specs: list) -> None:
    """Writes all.csv, with every number of the sweep, and seeds.csv, with the numbers that specs ask for."""
    asked = _asked(specs)
    rows = sweep.rows(asked["quantity"])
    few = [row for row in rows if not row.stage or row.stage in asked["stage"] and row.quantity in asked["quantity"]]
    write_text(sweep.path / "tables" / EVERYTHING, long_csv(rows))
    write_text(sweep.path / "tables" / "seeds.csv", long_csv(few))


def facts_of(page: Page) -> dict:
    """Returns the contents of verdicts.json."""
    commits = [
        commit
        for commit in dict.fromkeys([page.sweep.commit, *(arm.facts.get("commit") for arm in page.sweep.arms)])
        if commit
    ]
    return {
        "name": page.sweep.path.absolute().name,
        "title": " ".join(page.sweep.about.strip().partition("\n\n")[0].split()),
        "state": state(page.sweep),
        "commits": commits,
        "command": command(page.sweep),
        "design": spec.to_json(page.sweep.declared.design),
        "figures": [name for name, _, _ in page.figures],
        "claims": [
            {
                "source": claim.source,
                "text": claim.text,
                "note": claim.note,
                "because": claim.because,
                "family": claim.family,
                "figure": figure_of(page, claim) or "",
                "rule": spec.to_json(claim.rule),
                **verdict.to_json(),
            }
            for claim, verdict in page.verdicts
        ],
    }


def said(claim: dict) -> str:
    """Returns the verdict on a claim of verdicts.json, with the look that decided if there were several."""
    looks = claim["looks"]
    return claim["verdict"] + (f" (look {len(looks)}, {looks[-1]} seeds)" if len(looks) > 1 else "")


def effects(claim: dict) -> str:
    """Returns the numbers of a claim of verdicts.json, each with its interval, on lines of their own."""

    def number(test):
        if "effect" in test:
            return test["effect"]
        value, low, high, seeds = (
            test.get(name) for name in ("value", "low", "high", "seeds")
        )  # of an earlier version
        if None in (value, low, high, seeds):
            return "no interval"
        return f"{value:.3g} ({low:.3g} to {high:.3g}), {seeds} seeds"

    return "\n".join(f"{test['what']}: {number(test)}" for test in claim.get("tests", ())) or claim["sentence"]


def figure_of(page: Page, claim: spec.Claim) -> str | None:
    """Returns the name of the figure that a claim names, or of the first figure; None if it was not drawn."""
    if claim.figure:
        return next((name for name, figure, _ in page.figures if figure.name == claim.figure), None)
    return page.figures[0][0] if page.figures else None


def command(sweep: Sweep) -> str:
    """Returns the command that runs the sweep again."""
    config = f"{sweep.experiment}{f':{sweep.argument}' if sweep.argument else ''}"
    parts = [
        f"--config={config}",
        f"--workdir=runs/figures/{sweep.path.absolute().name}",
        *(f"--config.{name}={_given(value)}" for name, value in sweep.overrides.items()),
        *["--until-decided"] * (sweep.declared.design is not None),
    ]
    return " ".join(["python -m rlhf_jax.sweep", *map(shlex.quote, parts)])


def _draw(sweep, declared):
    """Draws the declared figures, and returns (name, declaration, caption) of those that have data."""
    drawn = []
    for name, figure in zip(_names(declared, "figure"), declared):
        caption = figures.draw(sweep, figure, sweep.path / "figures" / f"{name}.png")
        if caption:
            drawn.append((name, figure, caption))
    return drawn


def _default_figures(sweep) -> list[spec.Curve]:
    """Returns a figure for each swept field: the main quantity of the last policy over its values."""
    if not (policies := sweep.policies()):
        return []
    known = {name for arm in sweep.arms for name in sweep.numbers(arm, policies[-1])}
    y = next((name for name in ("gold/total", "score", "valid_loss") if name in known), None)
    axes = [name for name in sweep.swept if len(sweep.levels(sweep.select(axis=name), name)) > 1]
    return [spec.Curve(y=y, stage=policies[-1], axis=name) for name in axes] if y else []


def _names(items, kind) -> list[str]:
    """Returns a file name for each declaration.

    It is made of the declared name or, without one, of the kind, number and quantity.
    """
    own = [re.sub(r"[^\w.-]+", "_", item.name, flags=re.ASCII).lstrip(".") for item in items]
    return [
        name or re.sub(r"[^a-z0-9]+", "_", "_".join([f"{kind}{n}", getattr(item, "y", "")]).lower()).strip("_")
        for n, (name, item) in enumerate(zip(own, items), 1)
    ]


def _heading(table: Drawn) -> str:
    """Returns the heading of a table."""
    return table.declared.title or table.declared.name or ", ".join(map(label, table.declared.stages))


def _asked(specs) -> dict[str, list[str]]:
    """Returns the names under "stage" and under "quantity" that figures, tables and claims use anywhere in them."""
    found = {"stage": [], "quantity": []}
    kinds = {"stage": "stage", "stages": "stage", "x": "quantity", "y": "quantity", "quantities": "quantity"}

    def walk(item):
        if isinstance(item, (tuple, list)):
            for part in item:
                walk(part)
        elif dataclasses.is_dataclass(item):
            for field in dataclasses.fields(item):
                value = getattr(item, field.name)
                if field.name in kinds and value and not (field.name in "xy" and spec.of_metrics(item)):
                    found[kinds[field.name]].extend((value,) if isinstance(value, str) else value)
                else:
                    walk(value)

    walk(specs)
    return {kind: list(dict.fromkeys(names)) for kind, names in found.items()}


# --- the page ----------------------------------------------------------------------------------------------------


def _sections(page) -> list[str]:
    """Returns the paragraphs of report.md."""
    sweep = page.sweep
    sections = [
        f"# {cell(sweep.path.absolute().name)}",
        *[prose(sweep.about)] * bool(sweep.about.strip()),
        f"{cell(state(sweep))}.",
        *unfinished_sections(sweep, [found for _, found in page.verdicts]),
        "± in tables and figures is half of a 95 % Student t interval over seeds. (2 of 3) means that only two of a setting's three seeds "
        "have the number. Differences are taken within each seed.",
    ]
    if page.verdicts:
        sections += ["## Claims", *claims_text(facts_of(page)["claims"])]
        if (split := variance.table(sweep, page.verdicts)) is not None:
            sections += ["## Where the variance comes from", variance.ABOUT, split.markdown()]
    if page.figures:
        sections += [
            "## Figures",
            *(
                f"{image(name, f'figures/{name}.png')}\n\n*{cell(caption)}* {link('PDF', f'figures/{name}.pdf')}"
                for name, _, caption in page.figures
            ),
        ]
    sections += ["## Tables"]
    for name, table in page.tables:
        sections += [
            f"### {cell(_heading(table))}",
            f"{link('CSV', f'tables/{name}.csv')}, {link('LaTeX', f'tables/{name}.tex')}.",
            table.means.markdown(),
        ]
        if table.differences:
            sections += [f"Differences to {cell(table.baseline)}, paired by seed:", table.differences.markdown()]
    sections += ["Numbers by seed: [seeds.csv](tables/seeds.csv). All numbers of every arm: [all.csv](tables/all.csv)."]
    if unfinished := [arm for arm in sweep.arms if arm.status != "done"]:
        rows = [[arm.name, arm.status, how_far(arm), arm.reason] for arm in unfinished[:_MOST_SHOWN]]
        heads = ["arm", "status", "how far", "reason"]
        sections += ["## Arms that are not done", TextTable(heads, rows, words=4).markdown()]
        if len(unfinished) > _MOST_SHOWN:
            sections += [f"{len(unfinished) - _MOST_SHOWN} more arms are in [seeds.csv](tables/seeds.csv)."]
    return [*sections, *[f"Not read: {cell(note)}" for note in sweep.notes], "## How to repeat this", *_repeat(sweep)]


def claims_text(claims: list[dict]) -> list[str]:
    """Returns the claims of verdicts.json as paragraphs of Markdown."""
    sections = [DECISION]
    for claim in claims:
        figure = claim["figure"]
        see = f" See {link(figure, f'figures/{figure}.png')}." if figure else ""
        note = f"\n  Known reasons: {cell(claim['note'])}" if claim["note"] else ""
        why = f"\n  The smallest difference that matters: {cell(claim['because'])}." if claim.get("because") else ""
        holm = (
            f" (after Holm: {cell(claim['corrected'])})"
            if claim.get("corrected", claim["verdict"]) != claim["verdict"]
            else ""
        )
        sections.append(
            f"- **{cell(said(claim))}**{holm}: {cell(claim['text'])} ({cell(claim['source'])}).\n"
            f"  {cell(claim['sentence'])}.{see}{why}{note}"
        )
    return sections


def _facts(sweep) -> list[str]:
    """Returns the facts that a reader needs to repeat a table: commit, overrides, seeds, hardware, versions, time."""
    done = [arm for arm in sweep.arms if arm.facts]
    facts = [
        f"commit: {sweep.commit or 'unknown'}",
        f"overrides of the config: {json.dumps(sweep.overrides)}",
        f"seeds: {', '.join(map(str, sweep.seeds))}",
    ]
    for name in ("hardware", "versions", "commit"):
        found = dict.fromkeys(_said(arm.facts[name]) for arm in done if arm.facts.get(name) not in (None, sweep.commit))
        if found:
            facts.append(f"{'arms of other commits' if name == 'commit' else name}: {'; '.join(found)}")
    seconds = sum(arm.facts.get("seconds") or 0 for arm in done)
    return [*facts, f"time of all arms: {seconds / 3600:.2f} h, {len(done)} of {len(sweep.arms)} arms begun"]


def _repeat(sweep) -> list[str]:
    """Returns the commands, the facts and the settings that repeat the sweep."""
    lines = ["| setting | overrides | arms, one for each seed |", "| --- | --- | --- |"]
    for setting in sweep.settings:
        numbers = ", ".join(str(arm.number) for arm in sweep.arms if arm.setting == setting)
        lines.append(f"| {cell(setting.name)} | {json_code(setting.overrides)} | {numbers} |")
    return [
        code(
            f"{command(sweep)}\npython -m rlhf_jax.report {shlex.quote(f'runs/figures/{sweep.path.absolute().name}')}"
        ),
        "\n".join(f"- {cell(fact)}" for fact in _facts(sweep)),
        "\n".join(lines),
    ]


def _said(value) -> str:
    """Returns a fact of an arm.json as text."""
    return ", ".join(f"{name} {number}" for name, number in value.items()) if isinstance(value, dict) else str(value)


def _given(value) -> str:
    """Returns the value of an override as a flag takes it."""
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
