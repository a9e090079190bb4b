"""REPRODUCTION.md: every claim of every sweep of a directory, with its figure, numbers and verdict."""

import pathlib
import re
import shutil

import rich.console
from rich.text import Text

from rlhf_jax.errors import InputError
from rlhf_jax.files import new_folder, write_text
from rlhf_jax.report import sweep_page
from rlhf_jax.report.tables import Table, cell
from rlhf_jax.report.verdicts import HOLDS, NOT, UNDECIDED

PAGE = "REPRODUCTION.md"


def write(path, publish=None) -> rich.console.Group:
    """Reports every sweep of a directory and assembles their claims in its REPRODUCTION.md.

    Args:
        path: holds directories of sweeps; others in it are passed over.
        publish: a folder of the project, which gets the page too, and of every sweep a folder with what is small:
            figures as PNG, tables as CSV, verdicts and the report. None: none.

    Returns:
        The verdicts for a terminal.

    Raises:
        InputError: the path has no sweep, or something cannot be read or written.
    """
    path = pathlib.Path(path)
    found = sorted(file.parent for file in path.glob("*/sweep.json"))
    if not found:
        raise InputError(f"{path} holds no directory of a sweep: none in it has a sweep.json")
    pages = []
    for folder in found:
        pages.append(sweep_page.make(folder))
        print(f"{folder.name}: {sweep_page.state(pages[-1].sweep)}", flush=True)
    write_text(path / PAGE, text_of(pages))
    written = [path / PAGE]
    if publish is not None:
        target = pathlib.Path(publish)
        for page in pages:
            publish_sweep(page.sweep.path, target / page.sweep.path.name)
        write_text(target / PAGE, text_of(pages))
        written.append(target / PAGE)
    rows = [[page.sweep.path.name, verdict.verdict, claim.text] for page in pages for claim, verdict in page.verdicts]
    table = Table(["sweep", "verdict", "claim"], rows, words=3)
    return rich.console.Group(table.rich("claims", wrap=True), *(Text(f"written to {file}") for file in written))


def text_of(pages) -> str:
    """The page; links go to a folder of each sweep's name beside it."""
    counts = {verdict: sum(found.verdict == verdict for page in pages for _, found in page.verdicts)
              for verdict in (HOLDS, NOT, UNDECIDED)}  # fmt: skip
    sections = [
        "# Reproduction", f"{sum(counts.values())} claims of {len(pages)} sweeps: "
        + ", ".join(f"{verdict} {count}" for verdict, count in counts.items()) + ".",
        f"{sweep_page.DECISION} A claim that does not hold stays here, with what is known of why."]  # fmt: skip
    heads = ("the paper's claim", "source", "verdict", "numbers", "our figure", "what is known of why")
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for page in pages:
        name = page.sweep.path.absolute().name
        for claim, verdict in page.verdicts:
            figure = sweep_page.figure_of(page, claim)
            link = f"[{cell(figure)}]({name}/figures/{figure}.png)" if figure else "–"
            lines.append(f"| {cell(claim.text)} | {cell(claim.source)} | **{verdict.verdict}** | "
                         f"{cell(verdict.sentence)} | {link} | {cell(claim.note) or '–'} |")
    sections += ["\n".join(lines)]
    for page in pages:
        name = page.sweep.path.absolute().name
        sections += [f"## {name}", f"{sweep_page.state(page.sweep)}. [Report]({name}/report.md).",
                     *(f"![{figure}]({name}/figures/{figure}.png)" for figure, _, _ in page.figures),
                     f"```\n{sweep_page.command(page.sweep)}\n```"]  # fmt: skip
    sections += ["## This page", "```\npython -m rlhf_jax.report --all runs/figures --publish=docs/reproduction\n```"]
    return "\n\n".join(sections) + "\n"


def publish_sweep(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies the small files of a sweep's report, in place of those of an earlier one, and of nothing else."""
    if target.exists() and not (target / "verdicts.json").is_file():
        raise InputError(f"{target} exists and is no copy of a sweep's report: give --publish another folder")
    with new_folder(target, replace=True) as fresh:
        # Without the links to what is not copied.
        links = rf" \[PDF\]\([^)]*\)|, of every arm: \[[^)]*{sweep_page.EVERYTHING}\)"
        text = re.sub(links, "", (source / "report.md").read_text(encoding="utf-8"))
        shutil.copyfile(source / "verdicts.json", fresh / "verdicts.json")
        for pattern in ("figures/*.png", "tables/*.csv", "tables/*.tex"):
            for file in source.glob(pattern):
                name = file.relative_to(source)
                if f"({name.as_posix()})" in text:  # not what an earlier report drew and this one does not
                    (fresh / name).parent.mkdir(exist_ok=True)
                    shutil.copyfile(file, fresh / name)
        write_text(fresh / "report.md", text)
