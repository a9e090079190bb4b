"""Scores the samples that OpenAI released with InstructGPT, beside Table 14 of the paper:

    git clone https://github.com/openai/following-instructions-human-feedback
    python -m rlhf_jax.evaluate.replay following-instructions-human-feedback

For each task there is a table of the twelve models: our score with its 95 % interval over the samples, and the printed
number. The last table has, for each of their rows, the correlation over the models and the differences. No model is
needed.
"""

import argparse
import math
import sys
from collections.abc import Iterable, Sequence

from rich.cells import cell_len

from rlhf_jax.evaluate import replay
from rlhf_jax.evaluate.replay import Comparison
from rlhf_jax.evaluate.replay.table14 import MODELS
from rlhf_jax.runtime.errors import as_command
from rlhf_jax.runtime.files import write_json
from rlhf_jax.statistics import Estimate


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table whose columns are aligned; all but the first are aligned on the right.

    A Chinese or Korean character is as wide as two others.
    """
    lines = [list(head), *map(list, rows)]
    widths = [max(cell_len(line[place]) for line in lines) for place in range(len(head))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]

    def shown(line):
        spaces = [" " * (width - cell_len(cell)) for cell, width in zip(line, widths)]
        first, *others = zip(line, spaces)
        return f"| {' | '.join([''.join(first), *(space + cell for cell, space in others)])} |"

    return "\n".join(map(shown, [lines[0], rule, *lines[1:]]))


def of_models(comparisons: Sequence[Comparison]) -> str:
    """Returns the table of a task: for each model, our score with each prompt, and the printed rows."""
    digits = _digits(comparisons[0])
    ours = {one.prompt: one.ours for one in comparisons}
    printed = {one.row: one.printed for one in comparisons}
    head = ["model", *(_title("ours", prompt) for prompt in ours), *(_title("Table 14", row) for row in printed)]
    rows = [
        [
            model,
            *(_with_interval(scores[place], digits) for scores in ours.values()),
            *(f"{numbers[place]:.{digits}f}" for numbers in printed.values()),
        ]
        for place, model in enumerate(MODELS)
    ]
    return table(head, rows)


def _title(whose: str, prompt: str) -> str:
    return f"{whose}: {prompt}" if prompt else whose


def _digits(comparison: Comparison) -> int:
    return 3 if comparison.sheet.scale == 1 else 1


def _with_interval(ours: Estimate, digits: int) -> str:
    ends = f" [{ours.low:.{digits}f}, {ours.high:.{digits}f}]" if math.isfinite(ours.low) else ""
    return f"{ours.value:.{digits}f}{ends}"


def summary(comparisons: Sequence[Comparison]) -> str:
    """Returns the table with a row for each comparison."""
    rows = []
    for one in comparisons:
        digits, differences = _digits(one), one.differences
        largest = differences[abs(differences).argmax()]
        rows.append(
            [
                f"{one.sheet.task}, {one.sheet.metric}",
                one.prompt or "–",
                one.row or "–",
                f"{one.samples}",
                f"{one.correlation:.3f}",
                f"{differences.mean():+.{digits}f}",
                f"{largest:+.{digits}f}",
                "–" if one.inside is None else f"{one.inside} of {len(MODELS)}",
            ]
        )
    head = ["task", "prompt of the file", "row of Table 14", "samples", "correlation", "mean difference"]
    return table([*head, "largest", "printed in our interval"], rows)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m rlhf_jax.evaluate.replay",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", metavar="DIR", help="OpenAI's repository, or the folder of samples in it")
    parser.add_argument("--out", help="a JSON file for all numbers")
    return parser.parse_args(arguments)


@as_command("rlhf_jax.evaluate.replay")
def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    options = parse(arguments)
    found, missing = replay.find(options.folder)
    everything: list[Comparison] = []
    for sheet in replay.SHEETS:
        if sheet.file not in found:
            continue
        comparisons = list(replay.compare(sheet, found[sheet.file]))
        print(f"## {sheet.task}, {sheet.metric}\n\n{of_models(comparisons)}\n", flush=True)
        everything += comparisons
    print(f"## All rows\n\n{summary(everything)}")
    if missing:
        print(f"\nNot in the folder, and not compared: {', '.join(missing)}.")
    if options.out:
        write_json(options.out, [one.to_json() for one in everything])


if __name__ == "__main__":
    sys.exit(main())
