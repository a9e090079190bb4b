"""Reads and writes judgments in the JSON of Argilla 2 and Label Studio:

    python -m rlhf_jax.label.convert --from=argilla records.json --out=labels.jsonl
    python -m rlhf_jax.label.convert --from=label_studio export.json --out=labels.jsonl
    python -m rlhf_jax.label.convert --to=argilla labels.jsonl --out=records.json
    python -m rlhf_jax.label.convert --to=label_studio labels.jsonl --out=tasks.json

The rows of labels.jsonl are those that training and rlhf_jax.label read; docs/labeling.md has the forms of the others.
"""

import argparse
import pathlib
import sys

from rlhf_jax.data import rows
from rlhf_jax.label.convert import argilla, label_studio
from rlhf_jax.runtime import files
from rlhf_jax.runtime.errors import InputError, as_command

PROGRAMS = ("argilla", "label_studio")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m rlhf_jax.label.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--from", dest="source", choices=PROGRAMS, help="The program that the file comes from.")
    way.add_argument("--to", dest="target", choices=PROGRAMS, help="The program that the file goes to.")
    parser.add_argument("file", help="The file to read.")
    parser.add_argument("--out", required=True, help="The file to write, which must not be there yet.")
    parser.add_argument(
        "--prompt", help="The name of the prompt's field there. The default is prompt, instruction, ..."
    )
    parser.add_argument("--question", help="Argilla: the question to read, if it is not clear.")
    parser.add_argument(
        "--buckets", default="", help="Label Studio: the ranker's buckets, separated by commas, the best first."
    )
    parser.add_argument("--sides", default="", help="Label Studio: the fields of a pairwise comparison, LEFT,RIGHT.")
    return parser.parse_args(arguments)


@as_command("rlhf_jax.label.convert")
def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    options = parse(arguments)
    if pathlib.Path(options.out).exists():
        raise InputError(f"--out={options.out} is there already; name a new file")
    if options.target:
        read = rows.read(options.file)
        made = argilla.to_records(read) if options.target == "argilla" else label_studio.to_tasks(read)
        files.write_text(options.out, files.json_text(made))
        print(f"{options.out}: {len(made)} items")
        return
    found = files.read_json(options.file, list)
    try:
        if options.source == "argilla":
            answers = list(argilla.to_rows(found, options.prompt, options.question))
        else:
            buckets, sides = (tuple(filter(None, text.split(","))) for text in (options.buckets, options.sides))
            answers = list(label_studio.to_rows(found, options.prompt, buckets, sides))
    except InputError as error:
        raise InputError(f"{options.file}, {error}") from None
    judgments = [row for row in answers if row is not None]
    if not judgments:
        raise InputError(f"{options.file}: it has no submitted judgment")
    files.write_json_lines(options.out, judgments)
    left = len(answers) - len(judgments)
    print(
        f"{options.out}: {len(judgments)} judgments" + (f"; left out: {left} that were not submitted" if left else "")
    )


if __name__ == "__main__":
    sys.exit(main())
