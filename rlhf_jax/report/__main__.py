"""See rlhf_jax.report."""

import argparse
import sys

from rlhf_jax import report
from rlhf_jax.errors import InputError
from rlhf_jax.report import seeds


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m rlhf_jax.report", description=report.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dirs", nargs="+", metavar="DIR", help="work directories of runs")
    parser.add_argument("--out", default="report_seeds.md", help="file for several runs")
    options = parser.parse_args(arguments)
    try:
        if len(options.dirs) == 1:
            shown = report.write(options.dirs[0])
        else:
            shown = seeds.write(options.dirs, options.out)
    except InputError as error:
        print(f"rlhf_jax.report: {error}", file=sys.stderr)
        return 2
    report.show(shown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
