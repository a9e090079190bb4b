"""Serves a page on this machine where people rank completions, or write demonstrations:

    python -m rlhf_jax.label --completions=FILE,FILE --out=labels.jsonl
    python -m rlhf_jax.label --prompts=FILE --models=DIR,DIR --per_model=2 --out=labels.jsonl
    python -m rlhf_jax.label --task=demonstrations --prompts=FILE --out=demonstrations.jsonl
    python -m rlhf_jax.label --summary=labels.jsonl

A row of --completions has a prompt and its `completions`, or one `completion`, as rlhf_jax.generate writes them; give then
one file for each model. With --models, the completions are sampled first, and kept in NAME.completions/ beside --out.

Each judgment is on the disk before the page goes on. The file has the rows that training reads:
--config.data.source=files --config.data.files.rankings=labels.jsonl. The same command goes on where everybody was.
Ctrl-C ends it. docs/labeling.md has more.
"""

import argparse
import contextlib
import os
import sys

from rlhf_jax.fields.options import option
from rlhf_jax.fields.ranges import COUNT, NOT_NEGATIVE, SEED, Number
from rlhf_jax.label import agreement, items, judgments, questions, sampled, server
from rlhf_jax.label.desk import Desk, name_of
from rlhf_jax.label.items import Item
from rlhf_jax.runtime.errors import InputError, as_command


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m rlhf_jax.label", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--completions", help="The files of completions, separated by commas, each as FILE or NAME=FILE."
    )
    parser.add_argument("--prompts", help="The file of prompts: for --models, or for demonstrations.")
    parser.add_argument("--models", help="The models that complete the prompts, separated by commas.")
    parser.add_argument("--out", help="The .jsonl file of judgments, which grows.")
    parser.add_argument("--summary", metavar="FILE", help="Print what a file of judgments holds, and serve nothing.")
    parser.add_argument(
        "--task",
        choices=("rankings", "demonstrations"),
        default="rankings",
        help="What people do. The default is rankings.",
    )
    parser.add_argument(
        "--ask",
        default=",".join(questions.ASKED),
        help="What is asked of each completion, of ranks, ratings and flags. The default is all three.",
    )
    parser.add_argument("--labeler", default="", help="The name of the one labeler; by default the page asks for it.")
    parser.add_argument(
        "--shared",
        type=option(Number(low=0, high=1)),
        default=0.1,
        help="The share of items that every labeler judges, for their agreement. The default is 0.1.",
    )
    parser.add_argument("--gold", help="A file of items with known rankings, mixed in to screen labelers.")
    parser.add_argument(
        "--seed", type=option(SEED), default=0, help="The seed of all orders, and of sampling. The default is 0."
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="The address to listen on. The default is this machine alone."
    )
    parser.add_argument(
        "--port", type=option(Number(low=0, high=65535, type=int)), default=8765, help="The port; 0 takes a free one."
    )
    parser.add_argument("--token", help="The secret in the page's address. The default is a random one.")
    sampling = parser.add_argument_group("sampling of --models, as in rlhf_jax.generate")
    sampling.add_argument(
        "--per_model", type=option(COUNT), default=2, help="Completions of each model. The default is 2."
    )
    sampling.add_argument("--max_new_tokens", type=option(COUNT), help="The largest number of tokens of a completion.")
    sampling.add_argument(
        "--temperature", type=option(NOT_NEGATIVE), default=1.0, help="The temperature. The default is 1."
    )
    sampling.add_argument("--chat", action="store_true", help="Take each plain prompt as a user's turn.")
    return parser.parse_args(arguments)


def check(options: argparse.Namespace) -> None:
    """Raises InputError where flags are missing or do not go together."""
    if not options.out:
        raise InputError("--out is missing: name the .jsonl file that the judgments go to")
    if options.task == "demonstrations":
        if not options.prompts or options.models or options.completions or options.gold:
            raise InputError("--task=demonstrations needs --prompts, and neither --models, --completions nor --gold")
    elif bool(options.completions) == bool(options.prompts and options.models):
        raise InputError("give either --completions=FILE, or --prompts=FILE and --models=DIR,DIR")
    elif options.completions and (options.prompts or options.models):
        raise InputError("--completions has prompts and completions; leave out --prompts and --models")
    options.asked = tuple(dict.fromkeys(filter(None, options.ask.split(","))))
    if "ranks" not in options.asked or not {*options.asked} <= {*questions.ASKED}:
        raise InputError(f"--ask={options.ask}: give ranks, and with it any of ratings, flags")
    options.labeler = options.labeler and name_of(options.labeler)
    options.token = server.new_token(options.token)
    for name in ("starlette", "uvicorn"):  # before anything is sampled
        server.package(name)


def read_items(options: argparse.Namespace) -> list[Item]:
    """Returns what is to be judged, and says what of the files is left out."""
    if options.task == "demonstrations":
        found, left_out = items.read_prompts(options.prompts)
    else:
        if options.completions:
            sources = [_named(part) for part in options.completions.split(",") if part]
        else:
            flags = [f"--samples={options.per_model}", f"--seed={options.seed}", f"--temperature={options.temperature}"]
            flags += [f"--max_new_tokens={options.max_new_tokens}"] if options.max_new_tokens else []
            flags += ["--chat"] if options.chat else []
            models = [name for name in options.models.split(",") if name]
            sources = sampled.completions(options.out, models, options.prompts, flags)
        found, left_out = items.read_comparisons(sources)
    if said := str(left_out):
        print(f"left out: {said}")
    return found


def _named(part: str) -> tuple[str, str]:
    """Returns name and path of FILE or NAME=FILE; the name of a file is that without its endings."""
    name, _, path = part.rpartition("=")
    return name or os.path.basename(path).split(".")[0], path


def work(options: argparse.Namespace) -> None:
    """Serves the page until Ctrl-C."""
    with judgments.locked(options.out):
        found = read_items(options)
        gold = items.read_gold(options.gold) if options.gold else []
        labels = judgments.Judgments(options.out)
        screening = judgments.Judgments(judgments.beside(options.out, "screening"))
        for file, part in ((labels, found), (screening, gold)):
            judgments.check_items(file.path, file.rows, {item.key for item in part} if part else _Everything())
            if file.torn:
                print(f"{file.path}: removed half a line, which a killed process left")
        desk = Desk(found, gold, labels, screening, seed=options.seed, shared=options.shared, asked=options.asked)
        with contextlib.closing(server.listen(options.host, options.port)) as listening:
            port = listening.getsockname()[1]
            site = server.Site(
                desk, task=options.task, token=options.token, host=options.host, port=port, labeler=options.labeler
            )
            app = site.app()
            said = f"{len(found)} items, {len(labels.rows)} judgments in {options.out}"
            print(f"{said}\nopen {server.address(options.host, port, options.token)}\nCtrl-C ends", flush=True)
            server.serve(app, listening)
        print(f"\n{options.out} has {len(labels.rows)} judgments")


class _Everything:
    """A set that holds everything: without --gold, judgments of a screening stay as they are."""

    def __contains__(self, key) -> bool:
        return True


@as_command("rlhf_jax.label")
def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.summary:
        print("\n".join(agreement.of_file(options.summary)))
        return 0
    check(options)
    try:
        work(options)
    except sampled.Failed as error:
        return error.status
    return 0


if __name__ == "__main__":
    sys.exit(main())
