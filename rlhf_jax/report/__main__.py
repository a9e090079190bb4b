"""Writes the report of a run, of one run with several seeds, or of a sweep:

    python -m rlhf_jax.report runs/quickstart
    python -m rlhf_jax.report runs/seed0 runs/seed1 runs/seed2 --out=report_seeds.md
    python -m rlhf_jax.report runs/figures/fig33_ptx_coef --open
    python -m rlhf_jax.report --all runs/figures --publish=docs/reproduction

The directory of a run gets `report.md` and `figures/`; that of a sweep also gets `tables/` and `verdicts.json`.
Several runs are averaged. --all reports every sweep in a directory, and writes their claims to REPRODUCTION.md.
Reports are made of files alone. A missing result is left out, or named if a table or claim needs it.
"""

import argparse
import pathlib
import sys
import webbrowser

from rlhf_jax.report import html_page, pages, reproduction, seeds
from rlhf_jax.runtime.errors import InputError, as_command


@as_command("rlhf_jax.report")
def main(arguments: list[str] | None = None) -> None:
    """Writes a report, shows it and, if asked, opens it in a browser."""
    parser = argparse.ArgumentParser(
        prog="python -m rlhf_jax.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dirs", nargs="+", metavar="DIR", help="a run, a sweep, or several runs")
    parser.add_argument("--out", default="report_seeds.md", help="file for several runs")
    parser.add_argument("--all", action="store_true", help="report each sweep in DIR, and write REPRODUCTION.md")
    parser.add_argument("--publish", metavar="DOCS", help="with --all: copy the small files (PNG, tables, pages) there")
    parser.add_argument("--html", action="store_true", help="also write the report as one HTML file")
    parser.add_argument("--open", action="store_true", help="write the HTML file and show it in a browser")
    options = parser.parse_args(arguments)
    shown, page = _write(options)
    pages.show(shown)
    if options.html or options.open:
        page = html_page.write(page)
        print(f"One file with everything: {page}")
        if options.open and not webbrowser.open(page.absolute().as_uri()):
            print("No browser could be opened here: open that file in one.")


def _write(options):
    """Writes the report that was asked for; returns its part for a terminal, and the Markdown file."""
    first = pathlib.Path(options.dirs[0])
    if options.publish and not options.all:
        raise InputError("--publish goes with --all: it copies the files to which the page of all sweeps links")
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
    return seeds.write(options.dirs, options.out), pathlib.Path(options.out)


if __name__ == "__main__":
    sys.exit(main())
