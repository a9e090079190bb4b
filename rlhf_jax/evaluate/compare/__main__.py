"""Compares policies by which of their completions of the same prompts is better:

    python -m rlhf_jax.evaluate.compare runs/quickstart
    python -m rlhf_jax.evaluate.compare runs/a/ppo runs/b/ppo other.jsonl --judge=reward:runs/a/reward_model --out=found.json
    python -m rlhf_jax.evaluate.compare runs/a runs/b --judge='command:python judge.py' --out=found.json --figure=found.png
    python -m rlhf_jax.evaluate.compare runs/a runs/b --export=pairs.jsonl
    python -m rlhf_jax.evaluate.compare --import=pairs.jsonl --out=found.json

A policy is a finished stage, a work directory (its last policy; all its policies if it is the only argument), or a file of
completions, as python -m rlhf_jax.generate --out writes it. Completions are joined by their prompts.

Judges:
    gold, gold:DIR         the gold labeler of the embedded world of the first run, or of the run DIR
    reward:STAGE           a finished reward model, or the last one of a work directory
    command:LINE           a command, which gets {"prompt", "first", "second"} a line, and answers each with a line:
                           "first", "second" or "tie", or the probability of the first; or an object with the one as
                           "winner" or the other as "score"
    MODULE:FUNCTION        a function that gets a list of such objects and returns the list of answers

A command or a function sees each pair in both orders. Its answers are kept in OUT.answers as they come: a command that was
stopped goes on where it was. --export writes pairs without names for judges elsewhere, and a key; --import reads them back,
and the judgments of AlpacaEval, Chatbot Arena and MT-bench.
"""

import argparse
import itertools
import math
import pathlib
import sys

import rlhf_jax.stages  # noqa: F401  registers the kinds of stages
from rlhf_jax.evaluate import compare, outside
from rlhf_jax.evaluate.compare import blind, judges, published
from rlhf_jax.evaluate.compare import policies as policies_lib
from rlhf_jax.evaluate.compare.judgments import Judgment
from rlhf_jax.evaluate.compare.policies import Pair, Policy
from rlhf_jax.fields.options import option
from rlhf_jax.fields.ranges import COUNT, SEED
from rlhf_jax.report.figures import of_comparison
from rlhf_jax.report.tables import TextTable
from rlhf_jax.runtime import programs, terminal
from rlhf_jax.runtime.errors import InputError, as_command
from rlhf_jax.runtime.files import write_json

_WIDTH = 120  # characters of a table in a file
_MOST_CONTESTS = 28  # that are printed: those of 8 policies


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m rlhf_jax.evaluate.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("policies", nargs="*", help="finished stages, work directories, files of completions")
    parser.add_argument("--judge", default="gold", help="who judges; default: gold")
    parser.add_argument("--against", help="name of the only policy that the others meet; default: each meets each")
    parser.add_argument("--limit", type=option(COUNT), help="the number of pairs of each two policies; default: all")
    parser.add_argument(
        "--orders", choices=("both", "one"), help="in which a pair is shown; default: both, and one for --export"
    )
    parser.add_argument("--export", help="file of pairs without names to write; nothing is judged then")
    parser.add_argument("--import", dest="imported", help="file of judgments to read")
    parser.add_argument("--key", help="key of --import; default: the file that --export wrote beside the pairs")
    parser.add_argument("--seed", type=option(SEED), default=0, help="of the order of --export")
    parser.add_argument("--out", help="file of JSON to write")
    parser.add_argument("--figure", help="picture to write, a .png file")
    return parser.parse_args(arguments)


def check(options: argparse.Namespace) -> None:
    """Raises InputError for flags that do not go together, before anything is computed."""
    if bool(options.policies) == bool(options.imported):
        raise InputError("give either policies to compare, or --import=FILE with judgments")
    if options.imported and options.export:
        raise InputError("--export goes with policies; --import has their judgments already")
    if options.figure and pathlib.Path(options.figure).suffix != ".png":
        raise InputError(f"--figure={options.figure} must end in .png")
    for flag in ("out", "figure", "export"):
        path = getattr(options, flag)
        if path and (pathlib.Path(path).is_dir() or not pathlib.Path(path).absolute().parent.is_dir()):
            raise InputError(f"--{flag}={path} must be a file in a folder that is there")


def contests(policies: list[Policy], options: argparse.Namespace) -> list[Pair]:
    """Returns the pairs of all policies that meet, and prints how many completions have no partner."""
    names = [policy.name for policy in policies]
    if options.against and options.against not in names:
        raise InputError(f"--against={options.against} is none of the policies, which are {', '.join(names)}")
    found = []
    for first, second in itertools.combinations(policies, 2):
        if options.against in (None, first.name, second.name):
            pairs, alone = policies_lib.pairs(first, second)
            found += pairs[: options.limit]
            if alone:
                print(
                    f"{first.name}, {second.name}: {alone} completions have no partner and are left out",
                    file=sys.stderr,
                )
    return found


def judged(policies: list[Policy], pairs: list[Pair], options: argparse.Namespace) -> list[Judgment]:
    """Returns the judgments of --judge."""
    kind, _, name = options.judge.partition(":")
    if kind == "gold":
        runs = [policy.run for policy in policies if policy.run is not None]
        if not name and not runs:
            raise InputError("--judge=gold needs a run, whose world it knows: give --judge=gold:DIR, or another judge")
        return judges.by_scores(policies, pairs, judges.gold(pathlib.Path(name) if name else runs[0]), options.judge)
    if kind == "reward":
        return judges.by_scores(policies, pairs, judges.reward(name), options.judge)
    if kind == "command":
        scorer = outside.command(name)
    elif name:
        scorer = outside.function(options.judge)
    else:
        raise InputError(f"--judge={options.judge} is none of gold, reward:STAGE, command:LINE and MODULE:FUNCTION")
    if not options.out:
        raise InputError(f"--judge={options.judge} needs --out=FILE: what it answers is kept beside that file")
    return judges.ask(pairs, scorer, f"{options.out}.answers", options.orders != "one")


def imported(options: argparse.Namespace) -> list[Judgment]:
    """Returns the judgments of --import, and prints how many pairs have none."""
    found = None if options.key else published.read(options.imported)
    judgments, without = found or blind.read(options.imported, options.key)
    if without:
        print(f"{options.imported}: {without} pairs have no verdict and are left out", file=sys.stderr)
    return judgments


def show(found: dict) -> None:
    """Prints the tables, and what is to be known of the judge."""
    console = terminal.console(width=None if sys.stdout.isatty() else _WIDTH)
    if len(found["contests"]) <= _MOST_CONTESTS:
        console.print(contest_table(found["contests"]).rich(title(found), wrap=True))
    if len(found["ratings"]) > 2:
        console.print(rating_table(found["ratings"]).rich("Ratings, whose mean is 1000 on Elo's scale"))
    for name, rating in found["ratings"].items():
        if rating["why"]:
            print(f"{name} has no finite rating: {rating['why']}.")
    for judge, position in found["positions"].items():
        print(position_line(judge, position))


def title(found: dict) -> str:
    """Returns who judged how many prompts."""
    counts = sorted({row["prompts"] for row in found["contests"]})
    prompts = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
    return f"Judged by {found['judge']} on {prompts} prompts; length in characters"


def contest_table(rows: list[dict]) -> TextTable:
    """Returns the win rate of each two policies."""
    columns = ["policy", "against", "win rate (%)", "ties", "at equal length", "longer"]
    return TextTable(
        columns,
        [
            [
                row["first"],
                row["second"],
                _shown(row["win_rate"], 100),
                f"{100 * row['ties']:.0f}",
                _shown(row["length_controlled"], 100),
                "–" if row["length_difference"] is None else f"{row['length_difference']['value']:+.0f}",
            ]
            for row in rows
        ],
        words=2,
    )


def rating_table(ratings: dict[str, dict]) -> TextTable:
    """Returns the ratings, the highest first."""
    order = sorted(ratings.items(), key=lambda item: -(item[1]["elo"] or {"value": -math.inf})["value"])
    return TextTable(
        ["policy", "Elo's scale", "Bradley-Terry (nats)"],
        [[name, _shown(rating["elo"], digits=0), _shown(rating["bradley_terry"], digits=2)] for name, rating in order],
    )


def _shown(estimate: dict | None, scale: float = 1, digits: int = 1) -> str:
    """Returns `value [low, high]`; an end that the data do not bound is infinite."""
    if estimate is None:
        return "–"
    low, high = ("∞" if end is None else f"{scale * end:.{digits}f}" for end in (estimate["low"], estimate["high"]))
    return f"{scale * estimate['value']:.{digits}f} [{'-' * (low == '∞')}{low}, {high}]"


def position_line(judge: str, position: dict) -> str:
    """Returns the sentence on what the position does to a judge."""
    share = _shown(position["first"], 100)
    agreement = position["agreement"]
    says = (
        f"; of {position['pairs']} pairs in both orders it says the same of {_shown(agreement, 100)} %"
        if agreement
        else ""
    )
    if position["favours"]:
        return (
            f"{judge or 'The judge'} favours the completion shown {position['favours']}: the first one wins {share} % of "
            f"balanced pairs{says}. Pairs judged in one order alone lean that way."
        )
    return f"{judge or 'The judge'}: no sign that the position matters: the first one wins {share} % of balanced pairs{says}."


@as_command("rlhf_jax.evaluate.compare", stopped="stopped; the answers are kept, and the same command goes on")
def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    options = parse(arguments)
    programs.keep()
    check(options)
    sources = {}
    if options.imported:
        judgments = imported(options)
        sides = [row.first for row in judgments], [row.second for row in judgments]
        names = list(dict.fromkeys(itertools.chain(*sides)))  # a baseline, which is never the first, is the last
    else:
        policies = policies_lib.read(options.policies)
        pairs = contests(policies, options)
        if options.export:
            lines = blind.write(options.export, pairs, options.seed, options.orders == "both")
            print(f"{options.export}: {lines} pairs to judge; {blind.key_of(options.export)} says who wrote what")
            return
        judgments = judged(policies, pairs, options)
        names = [policy.name for policy in policies]
        sources = {policy.name: str(policy.source) for policy in policies}
    found = compare.summarize(judgments, names)
    found |= {"judge": options.imported or options.judge, "sources": sources, "judgments": len(judgments)}
    if options.out:
        write_json(options.out, found)
    if options.figure:
        of_comparison.draw(found, options.figure)
    show(found)


if __name__ == "__main__":
    sys.exit(main())
