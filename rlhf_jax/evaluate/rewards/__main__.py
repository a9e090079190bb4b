"""Measures reward models on files of preferences or rankings:

    python -m rlhf_jax.evaluate.rewards --reward=runs/quickstart/reward_model --data=preferences.jsonl
    python -m rlhf_jax.evaluate.rewards --reward='right=rlhf_jax.rewards:answer(last_number=True)' --data=one.jsonl
    python -m rlhf_jax.evaluate.rewards --reward=A,B --model=DIR --data=one.jsonl,two.jsonl.xz --out=found.json --rows=scores.jsonl

A reward model is a finished stage, a work directory (its last reward model), a kept checkpoint, or a Hugging Face folder of
a sequence classifier with one label. A reward function is named as in the field `reward` of a config. A language model scores a completion by its log-probability after the prompt: once the total over
its tokens, and once their mean.

A row of a file has prompt, chosen and rejected, or prompt, completions and ranks (or scores); a `group` is a
category to report. Rows with messages or an instruction are written by the model's template; --chat makes a user's turn
of a plain prompt. A function reads texts and rows; turns are written plainly for it. Rows longer than a model's context are left out and counted.

--rows keeps each score as it comes, and the same command goes on from there after Ctrl-C.
"""

import argparse
import dataclasses
import itertools
import math
import os
import sys
from collections.abc import Iterator, Sequence

import rlhf_jax.stages  # noqa: F401  registers the kinds of stages
from rlhf_jax.data.other_formats import is_rendered
from rlhf_jax.data.record_files import read_rows
from rlhf_jax.data.records import Ranking
from rlhf_jax.data.template import Template
from rlhf_jax.evaluate import preferences
from rlhf_jax.evaluate.rewards import scoring
from rlhf_jax.evaluate.rewards.functions import FunctionJudge
from rlhf_jax.evaluate.rewards.models import Judge, open_language_model, open_reward
from rlhf_jax.evaluate.rewards.scoring import Column
from rlhf_jax.fields import rewards
from rlhf_jax.report.tables import TextTable
from rlhf_jax.rewards.functions import let_import
from rlhf_jax.runtime import programs, terminal
from rlhf_jax.runtime.errors import InputError, as_command
from rlhf_jax.runtime.files import write_json
from rlhf_jax.runtime.progress import Interrupt, Stopped

_WIDTH = 120  # characters of a table in a file


def opened(options: argparse.Namespace) -> Iterator[Judge | FunctionJudge]:
    """Yields the judges that the command line names, one at a time: a model is opened when its turn has come.

    Raises:
        InputError: --reward is not of its form, or there is no such model or function.
    """
    try:
        named = rewards.several(options.reward) if options.reward else []
    except ValueError as error:
        raise InputError(f"--reward={options.reward}: {error}") from None
    let_import(os.getcwd())
    functions = {reward.name: FunctionJudge(reward) for reward in named if reward.function}
    for reward in named:
        if reward.function:
            yield functions[reward.name]
        else:
            yield dataclasses.replace(open_reward(reward.model, options.dtype), name=reward.name)
    for name in _listed(options.model):
        yield open_language_model(name, options.dtype)


def read(judge: Judge | FunctionJudge, files: list[str], chat: bool) -> list[Ranking]:
    """Returns the rankings of files that compare something, as the template of a model writes them.

    Raises:
        InputError: a file cannot be read, or no row prefers a completion to another.
    """
    model = None if isinstance(judge, FunctionJudge) else judge.model
    template = model.template if model else Template()
    if chat and template is None:
        model.tokenizer.chat_template()  # raises the InputError that says what is missing
    fields = {"prompt": "instruction"} if chat and model else None
    found = [row for file in files for row in read_rows(file, "rankings", template or Template(), fields=fields)[0]]
    if template is None and any(is_rendered(row.row) for row in found):
        model.tokenizer.chat_template()
    rankings = [row for row in found if len(set(row.ranks)) > 1]
    if not rankings:
        raise InputError(f"--data={','.join(files)}: no row prefers one completion to another")
    return rankings


def measure(options: argparse.Namespace) -> dict:
    """Scores all completions with all models, and returns the numbers."""
    files = _listed(options.data)
    columns: list[Column] = []
    left_out = {}
    with Interrupt() as interrupt:
        for judge in opened(options):
            rankings = read(judge, files, options.chat)
            columns += scoring.columns(judge, rankings, options.rows, interrupt)
            left_out[judge.name] = len(rankings) - len(columns[-1].places)
            if left_out[judge.name]:
                print(
                    f"{judge.name}: {left_out[judge.name]} of {len(rankings)} rows are left out, because they are longer "
                    f"than {judge.limit} or a text has no token",
                    file=sys.stderr,
                )
    differences = []
    for first, second in itertools.combinations(columns, 2):
        if (estimate := scoring.paired(first, second)) is not None:
            differences.append({"first": first.name, "second": second.name, "accuracy": estimate.to_json()})
    numbers = {column.name: scoring.figures(column) for column in columns}
    return {"data": files, "left_out": left_out, "models": numbers, "differences": differences}


def tables(found: dict) -> list[tuple[str, TextTable]]:
    """Returns the tables to print, each with its title."""
    columns = [_cells(figures) for figures in found["models"].values()]
    quantities = list(dict.fromkeys(name for cells in columns for name in cells))
    rows = [[name, *(cells.get(name, "–") for cells in columns)] for name in quantities]
    made = [(f"Preferences of {', '.join(found['data'])}", TextTable(["", *found["models"]], rows))]
    if found["differences"]:
        rows = [[row["first"], row["second"], _shown(row["accuracy"])] for row in found["differences"]]
        title = "Accuracy of the first less that of the second, over the same pairs"
        made.append((title, TextTable(["first", "second", "difference"], rows, words=2)))
    return made


def _cells(figures: dict) -> dict[str, str]:
    """Returns the column of a model: what stands in each row."""
    cells = {name: f"{figures[name]}" for name in ("prompts", "pairs")}
    cells["accuracy"] = _shown(figures["accuracy"])
    cells |= {"log loss": f"{figures['log_loss']:.3f}", "ECE": f"{figures['ece']:.3f}"}
    if figures["mean_over_groups"] is not None:
        cells |= {f"group {name}": f"{value:.3f}" for name, value in sorted(figures["by_group"].items())}
        cells["mean over groups"] = f"{figures['mean_over_groups']:.3f}"
    cells |= _bins("margin", preferences.MARGINS, figures["by_margin"])
    cells |= _bins("better longer by", preferences.LENGTHS, figures["by_length_difference"])
    probe = figures["length_probe"]
    cells |= {
        "longer is better": _shown(probe["longer_is_better"]),
        "longer scores higher": _shown(probe["longer_scores_higher"]),
        "accuracy, longer better": _shown(probe["accuracy_longer_better"]),
        "accuracy, shorter better": _shown(probe["accuracy_shorter_better"]),
        "accuracy, equal length": _shown(probe["accuracy_matched"]),
        "weight of the margin": f"{probe['margin_weight']:.2f}",
        "weight of the length": f"{probe['length_weight']:.2f}",
    }
    if figures["best_of_4"]:
        cells["best of 4"] = _shown(figures["best_of_4"])
    if figures["ties"]:
        cells["ties"] = f"{figures['ties']['score']:.3f}"
    return cells


def _bins(name: str, edges: Sequence[float], rows: list[dict]) -> dict[str, str]:
    """Returns the accuracy in each bin, with the number of pairs; a dash stands for a bin without pairs."""
    known = {row["low"]: f"{row['accuracy']['value']:.3f} ({row['count']})" for row in rows}
    return {
        f"{name} {low:g} to {high:g}".replace("inf", "∞"): known.get(low if math.isfinite(low) else None, "–")
        for low, high in itertools.pairwise(edges)
    }


def _shown(estimate: dict | None) -> str:
    if estimate is None:
        return "–"
    low, high = ("∞" if estimate[end] is None else f"{estimate[end]:.3f}" for end in ("low", "high"))
    return f"{estimate['value']:.3f} [{'-' * (low == '∞')}{low}, {high}]"


def _listed(text: str | None) -> list[str]:
    return list(dict.fromkeys(part for part in (text or "").split(",") if part))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m rlhf_jax.evaluate.rewards",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--reward", help="The reward models and functions, separated by commas, as NAME or NAME=REWARD."
    )
    parser.add_argument("--model", help="The language models, separated by commas.")
    parser.add_argument("--data", required=True, help="The files of preferences or rankings, separated by commas.")
    parser.add_argument("--out", help="The JSON file to write, with all numbers.")
    parser.add_argument("--rows", help="The file of JSON lines that keeps the score of each completion.")
    parser.add_argument("--chat", action="store_true", help="Take each plain prompt as a user's turn.")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="",
        help="The number format of the computation. "
        "The default is that of the run; for a Hugging Face folder it is float32 on a CPU, and bfloat16 elsewhere.",
    )
    options = parser.parse_args(arguments)
    if not options.reward and not _listed(options.model):
        parser.error("give --reward or --model")
    return options


@as_command("rlhf_jax.evaluate.rewards")
def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    options = parse(arguments)
    programs.keep()
    try:
        found = measure(options)
    except Stopped as error:
        lost = "stopped; no score is kept without --rows=FILE"
        raise KeyboardInterrupt(str(error) if options.rows else lost) from None
    if options.out:
        write_json(options.out, found)
    console = terminal.console(width=None if sys.stdout.isatty() else _WIDTH)
    for title, table in tables(found):
        console.print(table.rich(title, wrap=True))


if __name__ == "__main__":
    sys.exit(main())
