"""Writes the world as JSON lines, for people to read: `python -m rlhf_jax.world --out=DIR`."""

import argparse
import collections
import pathlib
import statistics
import sys

from rlhf_jax.fields.options import folder, option
from rlhf_jax.fields.ranges import SEED
from rlhf_jax.runtime.errors import InputError, as_command
from rlhf_jax.runtime.files import write_json_lines
from rlhf_jax.world import World

_DOCUMENTS = {"train": 40000, "valid": 2000}
_INSTRUCTIONS = {
    ("train", "sft"): 1500,
    ("train", "rm"): 3000,
    ("train", "ppo"): 3000,
    ("valid", "ppo"): 600,
    ("test", "ppo"): 600,
    ("heldout_kinds", "ppo"): 300,
}
_SKILLS = 500


def _words(texts) -> str:
    """Returns the mean, median and maximum number of words of the texts, as columns of the printed table."""
    counts = [len(text.split()) for text in texts]
    return f"{statistics.mean(counts):6.1f} {statistics.median(counts):6.0f} {max(counts):5d}"


def write_world(world: World, out: pathlib.Path) -> None:
    """Writes every part of the world into a folder, and prints a line for each file.

    Raises:
        InputError: `out` is a file, or cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out must name a folder that can be made; {out}: {error.strerror}") from error
    print(f"{'file':38s} {'rows':>6s}   words: mean median max")

    def report(name, rows, texts):
        write_json_lines(out / name, rows)
        print(f"{name:38s} {len(rows):6d}       {_words(texts)}")

    for split, count in _DOCUMENTS.items():
        texts = world.documents(split, count)
        report(f"documents.{split}.jsonl", [{"text": text} for text in texts], texts)
    categories = collections.Counter()
    for (split, purpose), count in _INSTRUCTIONS.items():
        rows = world.instructions(split, count, purpose)
        prompts = [f"{row['instruction']} {row['input']}" for row in rows]
        report(f"instructions.{split}.{purpose}.jsonl", rows, prompts)
        categories.update(row["category"] for row in rows if split != "heldout_kinds")
    for name, rows in world.skills(_SKILLS).items():
        report(f"skills.{name}.jsonl", rows, [row["prompt"] for row in rows])
    write_json_lines(out / "knowledge.json", [{"entities": world.knowledge.rows(), "toy": world.toy.words}])
    print("\ncategory          share")
    for category, count in categories.most_common():
        print(f"{category:16s} {100 * count / categories.total():5.1f} %")


@as_command("rlhf_jax.world")
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m rlhf_jax.world", description=__doc__)
    parser.add_argument("--out", type=folder, required=True, help="The folder to write the world into.")
    parser.add_argument("--seed", type=option(SEED), default=0, help="The seed of the world. The default is 0.")
    options = parser.parse_args(arguments)
    write_world(World(options.seed), options.out)


if __name__ == "__main__":
    sys.exit(main())
