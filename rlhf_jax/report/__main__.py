"""What a run, one run with several seeds, or a sweep has shown:

    python -m rlhf_jax.report runs/quickstart
    python -m rlhf_jax.report runs/seed0 runs/seed1 runs/seed2 --out=report_seeds.md
    python -m rlhf_jax.report runs/figures/fig33_ptx_coef --open
    python -m rlhf_jax.report --all runs/figures --publish=docs/reproduction

A run gets `report.md` and `figures/` inside its directory; a sweep `tables/` and `verdicts.json`, too;
several runs are averaged. --all judges every sweep of a directory: REPRODUCTION.md. Everything is read
from files, and what is not there is left out, or named where somebody waits for it.
"""

import argparse
import pathlib
import sys
import webbrowser

from rlhf_jax.report import html_page, pages, reproduction, seeds
from rlhf_jax.runtime.errors import InputError, as_command


@as_command("rlhf_jax.report")
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m rlhf_jax.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dirs", nargs="+", metavar="DIR", help="a run, a sweep, several runs")
    parser.add_argument("--out", default="report_seeds.md", help="file for several runs")
    parser.add_argument("--all", action="store_true", help="DIR holds sweeps: report each, and REPRODUCTION.md")
    parser.add_argument("--publish", metavar="DOCS", help="with --all: copy what is small (PNG, CSV, pages) there")
    parser.add_argument("--html", action="store_true", help="also write one HTML file with everything in it")
    parser.add_argument("--open", action="store_true", help="and show it in a browser")
    options = parser.parse_args(arguments)
    shown, page = _write(options)
    pages.show(shown)
    if options.html or options.open:
        page = html_page.write(page)
        print(f"One file with everything: {page}")
        if options.open and not webbrowser.open(page.absolute().as_uri()):
            print("No browser could be opened here: open that file in one.")


def _write(options):
    """(what to show, the Markdown file) of what was asked for."""
    first = pathlib.Path(options.dirs[0])
    if options.publish and not options.all:
        raise InputError("--publish goes with --all: it copies what the page of all sweeps links to")
    if len(options.dirs) == 1:
        if options.all:
            return reproduction.write(first, options.publish), first / reproduction.PAGE
        return pages.write(first), first / "report.md"
    sweeps = [name for name in options.dirs if (pathlib.Path(name) / "sweep.json").is_file()]
    if options.all or sweeps:
        what = "--all takes" if options.all else f"{sweeps[0]} is a sweep: give"
        raise InputError(f"{what} one directory, not {len(options.dirs)}; --all with the folder above takes several")
    return seeds.write(options.dirs, options.out), pathlib.Path(options.out)


if __name__ == "__main__":
    sys.exit(main())
