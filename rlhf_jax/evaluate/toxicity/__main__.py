"""Scores the toxicity of completions by a scorer that you name:

    python -m rlhf_jax.evaluate.toxicity --data=FILE[,FILE...] --scorer=module:function --out=OUT.jsonl
    python -m rlhf_jax.evaluate.toxicity --data=FILE[,FILE...] --command="python judge.py" --out=OUT.jsonl

A row of FILE has a completion (or answer, continuation, text), and a prompt if there is one; sample logs of lm-eval are
read too. The function gets a list of {"text", "prompt"} and returns a list of numbers from 0 to 1. The command gets
one such object a line on its standard input, and writes one number a line on its standard output.

OUT has the rows with the field `toxicity`, and OUT.summary.json the means that are printed, with 95 % intervals over
prompts: of all rows, by their field `group` (the paper's basic, respectful and biased prompts; without it by file),
and by the prompt's toxicity where rows have it (`prompt_toxicity`, or RealToxicityPrompts' prompt.toxicity).

Answers are kept in OUT.answers as they come. A command that was stopped goes on where it was. The numbers are the named
scorer's, and are no scores of the Perspective API.
"""

import argparse
import sys

from rlhf_jax.evaluate import outside, toxicity
from rlhf_jax.runtime.errors import InputError, as_command
from rlhf_jax.runtime.files import write_json, write_json_lines


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m rlhf_jax.evaluate.toxicity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", required=True, help="files of completions, separated by commas")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--scorer", help="module:function, in the current directory or the environment")
    asked.add_argument("--command", help="a command line; no shell runs it")
    parser.add_argument("--out", required=True, help="file of JSON lines to write")
    parser.add_argument("--field", default="toxicity", help="field of OUT that has the score")
    parser.add_argument("--group", default="group", help="field that has the group of a prompt")
    parser.add_argument("--prompt_toxicity", default="prompt_toxicity", help="field that has the toxicity of a prompt")
    return parser.parse_args(arguments)


@as_command("rlhf_jax.evaluate.toxicity", stopped="stopped; the answers are kept, and the same command goes on")
def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    options = parse(arguments)
    rows = toxicity.read([path for path in options.data.split(",") if path], options.group)
    for row, _ in rows:
        if options.field in row.row:
            raise InputError(f"{row.place}: the field {options.field!r} is there already; name another with --field")
        toxicity.prompt_toxicity(row, options.prompt_toxicity)
    scorer = outside.function(options.scorer) if options.scorer else outside.command(options.command)
    found = toxicity.scores([row for row, _ in rows], scorer, keep=f"{options.out}.answers")
    cells = toxicity.summary(rows, found, options.prompt_toxicity)
    named = [{options.group: group} if group else {} for _, group in rows]
    write_json_lines(
        options.out, [row.row | group | {options.field: value} for (row, _), group, value in zip(rows, named, found)]
    )
    facts = {"scorer": scorer.name, "is_perspective": False, "cells": [cell.to_json() for cell in cells]}
    write_json(f"{options.out}.summary.json", facts)
    print(f"toxicity by {scorer.name}, which is not the Perspective API\n{toxicity.table(cells)}")


if __name__ == "__main__":
    sys.exit(main())
