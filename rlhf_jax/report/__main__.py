"""Writes the report of a run, of one run with several seeds, or of a sweep:

    python -m rlhf_jax.report runs/quickstart
    python -m rlhf_jax.report runs/seed0 runs/seed1 runs/seed2 --out=report_seeds.md
    python -m rlhf_jax.report runs/figures/fig33_ptx_coef --open
    python -m rlhf_jax.report runs/quickstart --follow
    python -m rlhf_jax.report runs/a runs/b --compare --out=compare.md
    python -m rlhf_jax.report --all runs/figures --publish=docs/reproduction

The directory of a run gets `report.md` and `figures/`; that of a sweep also gets `tables/` and `verdicts.json`.
Several runs are averaged, or shown side by side with --compare. A report can be written at any time: of a run that is
not finished it shows what there is. --follow writes it again while the run goes on. --all reports every sweep in a directory, and writes their claims to REPRODUCTION.md.
Reports are made of files alone. A missing result is left out, or named if a table or claim needs it.
"""

import argparse
import pathlib
import sys
import webbrowser

from rlhf_jax.report import compared, follow, html_page, pages, reproduction, seeds
from rlhf_jax.runtime.errors import InputError, as_command

_EVERY = 30.0  # seconds


@as_command("rlhf_jax.report")
def main(arguments: list[str] | None = None) -> None:
    """Writes a report, shows it and, if asked, opens it in a browser."""
    parser = argparse.ArgumentParser(
        prog="python -m rlhf_jax.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dirs", nargs="+", metavar="DIR", help="a run, a sweep, or several runs")
    parser.add_argument("--out", help="file for several runs; by default report_seeds.md, or report_compare.md")
    parser.add_argument(
        "--compare", action="store_true", help="show several runs side by side instead of averaging them"
    )
    parser.add_argument(
        "--follow", action="store_true", help="write the report again while the run or the sweep goes on"
    )
    parser.add_argument(
        "--every", type=_seconds, metavar="SECONDS", help="with --follow: seconds between two looks (30)"
    )
    parser.add_argument("--all", action="store_true", help="report each sweep in DIR, and write REPRODUCTION.md")
    parser.add_argument("--publish", metavar="DOCS", help="with --all: copy the small files (PNG, tables, pages) there")
    parser.add_argument("--html", action="store_true", help="also write the report as one HTML file")
    parser.add_argument("--open", action="store_true", help="write the HTML file and show it in a browser")
    options = parser.parse_args(arguments)
    _check(options)
    if options.follow:
        _follow(options)
        return
    shown, page = _write(options)
    pages.show(shown)
    if options.html or options.open:
        page = html_page.write(page)
        print(f"One file with everything: {page}")
        if options.open:
            _open(page)


def _check(options) -> None:
    """Raises InputError for flags that do not go together."""
    if options.publish and not options.all:
        raise InputError("--publish goes with --all: it copies the files to which the page of all sweeps links")
    if options.follow and (len(options.dirs) > 1 or options.all or options.compare):
        raise InputError("--follow takes one directory, of a run or a sweep, and neither --all nor --compare")
    if options.every and not options.follow:
        raise InputError("--every goes with --follow: it says how often the files are looked at")
    if options.out and len(options.dirs) == 1:
        raise InputError("--out goes with several runs; the report of one run or sweep goes into its own directory")
    if options.compare and (len(options.dirs) == 1 or options.all):
        raise InputError("--compare takes two or more directories of runs, as in runs/a runs/b --compare")


def _follow(options) -> None:
    """Writes the report again and again until the run is finished; the HTML page is opened once."""
    markdown, opened = pathlib.Path(options.dirs[0]) / "report.md", not options.open
    print(f"{markdown} is written again at each change; Ctrl-C ends this, and not the run", flush=True)

    def written():
        nonlocal opened
        if options.html or options.open:
            page = html_page.write(markdown)
            if not opened:
                _open(page)
                opened = True

    follow.follow(options.dirs[0], options.every or _EVERY, written)


def _open(page: pathlib.Path) -> None:
    """Shows an HTML page in a browser."""
    if not webbrowser.open(page.absolute().as_uri()):
        print("No browser could be opened here: open that file in one.")


def _seconds(text: str) -> float:
    """Returns a number of seconds that a flag gives."""
    seconds = float(text)
    if not 0 < seconds < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0")
    return seconds


def _write(options):
    """Writes the report that was asked for; returns its part for a terminal, and the Markdown file."""
    first = pathlib.Path(options.dirs[0])
    if len(options.dirs) == 1:
        if options.all:
            return reproduction.write(first, options.publish), first / reproduction.PAGE
        return pages.write(first), first / "report.md"
    sweeps = [name for name in options.dirs if (pathlib.Path(name) / "sweep.json").is_file()]
    if options.all or sweeps:
        what = "--all takes" if options.all else f"{sweeps[0]} is a sweep: give"
        raise InputError(
            f"{what} one directory, not {len(options.dirs)}; to report several sweeps, give --all the folder above them"
        )
    out = pathlib.Path(options.out or ("report_compare.md" if options.compare else "report_seeds.md"))
    return (compared if options.compare else seeds).write(options.dirs, out), out


if __name__ == "__main__":
    sys.exit(main())
