"""The page REPRODUCTION.md: a table of every claim of the sweeps in a directory, then how each was judged and by what runs.

The page is made of each sweep's verdicts.json alone. So a sweep that was published earlier and is not run again
stays on it, with the commit at which it ran.
"""

import pathlib
import re
import shutil

import rich.console
from rich.text import Text

from rlhf_jax.report import archive, sweep_page
from rlhf_jax.report.form import ANYTHING, NUMBER, TEXT, WHOLE, Maybe, Object, check
from rlhf_jax.report.sweep_report import Sweep
from rlhf_jax.report.tables import TextTable
from rlhf_jax.report.verdicts import WITHDRAWN
from rlhf_jax.report.verdicts.contrast import HOLDS, NEGLIGIBLE, NOT, UNDECIDED
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import new_folder, read_json, write_text
from rlhf_jax.runtime.markdown import cell, code, image, link
from rlhf_jax.runtime.terminal import visible

PAGE = "REPRODUCTION.md"
_TEST = Object(
    {"what": TEXT}, {"effect": TEXT, "seeds": WHOLE} | dict.fromkeys(("value", "low", "high"), Maybe(NUMBER))
)
_CLAIM = Object(
    dict.fromkeys(("source", "text", "note", "figure", "verdict", "sentence"), TEXT) | {"looks": [ANYTHING]},
    {"corrected": TEXT, "tests": [_TEST]},
)
_VERDICTS = Object(
    dict.fromkeys(("name", "state", "command"), TEXT) | {"commits": [TEXT], "figures": [TEXT], "claims": [_CLAIM]}
)


def write(path, publish=None) -> rich.console.Group:
    """Writes the report of each sweep in a directory, and the page of all their claims.

    Args:
      path: the directory of the sweeps' directories; others in it are passed over.
      publish: a folder of the project, to which the small files of each report are copied: figures as PNG, tables,
        verdicts and the page. The folder also gets the page of all sweeps that it then holds. None: nothing is copied.

    Returns:
      The verdicts, for a terminal.

    Raises:
      InputError: the path has no sweep, or something cannot be read or written.
    """
    path = pathlib.Path(path)
    found = sorted(file.parent for file in path.glob("*/sweep.json"))
    if not found:
        raise InputError(f"{path} holds no directory of a sweep: none in it has a sweep.json")
    made = []
    for folder in found:
        made.append(sweep_page.make(folder).sweep)
        print(f"{folder.name}: {sweep_page.state(made[-1])}", flush=True)
    sweeps = [_read(folder) for folder in found]
    write_text(path / PAGE, text_of(sweeps))
    written = [path / PAGE]
    if publish is not None:
        target = pathlib.Path(publish)
        for sweep in made:
            publish_sweep(sweep, target / sweep.path.name)
        write_text(target / PAGE, page_of(target))
        written.append(target / PAGE)
    rows = [[sweep["name"], sweep_page.said(claim), claim["text"]] for sweep in sweeps for claim in sweep["claims"]]
    table = TextTable(["sweep", "verdict", "claim"], rows, words=3)
    return rich.console.Group(
        table.rich("claims", wrap=True), *(Text(visible(f"written to {file}")) for file in written)
    )


def page_of(folder) -> str:
    """Returns the page of all sweeps whose reports are in a folder."""
    return text_of([_read(file.parent) for file in sorted(pathlib.Path(folder).glob("*/verdicts.json"))])


def text_of(sweeps: list[dict]) -> str:
    """Returns the page of sweeps, each given by its verdicts.json.

    Links lead to a folder with the name of the sweep, beside the page.
    """
    claims = [(sweep, claim) for sweep in sweeps for claim in sweep["claims"]]
    counts = {
        verdict: sum(claim["verdict"] == verdict for _, claim in claims)
        for verdict in (HOLDS, NOT, NEGLIGIBLE, UNDECIDED, WITHDRAWN)
    }
    shown = [f"{verdict} {count}" for verdict, count in counts.items() if count or verdict in (HOLDS, NOT, UNDECIDED)]
    sections = [
        "# Reproduction",
        f"{len(claims)} claims of {len(sweeps)} sweeps: {', '.join(shown)}.",
        _table(sorted(claims, key=lambda pair: _place(pair[1]["source"]))),
        "## How claims are judged",
        f"{sweep_page.DECISION} A claim that does not hold stays here, with the known reasons. "
        "A sweep that was not run again stays as it was at the commits that its section names.",
    ]
    if counts[WITHDRAWN]:
        sections += [
            "A withdrawn claim was judged by a rule that could not be trusted, or with other settings. "
            "It has not been judged again."
        ]
    for sweep in sweeps:
        name, commits = sweep["name"], ", ".join(sweep["commits"])
        ran = f" Run at commit {cell(commits)}." if commits else ""
        reasons = [f"- {cell(claim['text'])} {cell(claim['note'])}" for claim in sweep["claims"] if claim["note"]]
        sections += [
            f"## {cell(sweep.get('title') or name.replace('_', ' '))}",
            f"{cell(sweep['state'])}.{ran} {link('Report', f'{name}/report.md')}.",
            *(["Known reasons:", "\n".join(reasons)] if reasons else []),
            *(image(figure, f"{name}/figures/{figure}.png") for figure in sweep["figures"]),
            code(sweep["command"]),
        ]
    sections += ["## This page", "```\npython -m rlhf_jax.report --all runs/figures --publish=docs/reproduction\n```"]
    return "\n\n".join(sections) + "\n"


def _table(claims: list[tuple[dict, dict]]) -> str:
    """Returns the table of claims, each given with its sweep."""
    heads = ("the paper's claim", "source", "verdict", "after Holm", "effect (interval)", "page")
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for sweep, claim in claims:
        page = f"{sweep['name']}/report.md"
        numbers = claim["sentence"] if claim["verdict"] == WITHDRAWN else sweep_page.effects(claim)
        lines.append(
            f"| {cell(claim['text'])} | {cell(claim['source'])} | **{cell(sweep_page.said(claim))}** | "
            f"{cell(claim.get('corrected') or '–')} | {cell(numbers)} | {link(sweep['name'].replace('_', ' '), page)} |"
        )
    return "\n".join(lines)


def _place(source: str) -> list:
    """Returns a key that sorts claims by the place in their paper: numbers in a text count as numbers."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", source)]


def _read(folder: pathlib.Path) -> dict:
    """Returns the verdicts.json of a sweep."""
    return check(folder / "verdicts.json", read_json(folder / "verdicts.json"), _VERDICTS)


def publish_sweep(sweep: Sweep, target: pathlib.Path) -> None:
    """Copies the small files of a sweep's report, in place of an earlier copy, and archives what the report read.

    Args:
      sweep: a sweep whose report has been made.
      target: the folder of the copy.

    Raises:
      InputError: the target is there, and is no copy of a sweep's report.
    """
    if target.exists() and not (target / "verdicts.json").is_file():
        raise InputError(f"{target} exists and is no copy of a sweep's report: give --publish another folder")
    source = sweep.path
    with new_folder(target, replace=True) as fresh:
        # The page must not link to files that are not copied.
        links = rf" \[PDF\]\([^)]*\)| All numbers of every arm: \[[^)]*{sweep_page.EVERYTHING}\)\."
        text = re.sub(links, "", (source / "report.md").read_text(encoding="utf-8"))
        shutil.copyfile(source / "verdicts.json", fresh / "verdicts.json")
        for pattern in ("figures/*.png", "tables/*.csv", "tables/*.tex"):
            for file in source.glob(pattern):
                name = file.relative_to(source)
                if (
                    f"({name.as_posix()})" in text and not file.is_symlink()
                ):  # a link leads out, and other files are of an earlier report
                    (fresh / name).parent.mkdir(exist_ok=True)
                    shutil.copyfile(file, fresh / name)
        write_text(fresh / "report.md", f"{text}\n{archive.section(source.absolute().name)}")
        archive.write(sweep, fresh / archive.NAME)
