"""Trains a judge of answers, and judges completions with it:

    python -m rlhf_jax.evaluate.judge --model=FOLDER_OR_STAGE --data=FILE --out=JUDGE [--kind=info]
    python -m rlhf_jax.evaluate.judge --judge=TRUTH [--judge=INFO] --score=FILE --out=OUT.jsonl

The first trains a judge of truth (or of information, --kind=info) from any model: to say yes or no after "Q: ...",
"A: ...", "True:" (or "Helpful:"), as TruthfulQA's authors fine-tuned GPT-3. The rows of --data have question, answer and
label; or prompt, chosen and rejected (the chosen answer is true, the rejected one false); or prompt and completion, as
those authors' files have them. Seven tenths of the questions are trained on, one tenth chooses the best weights, and
two tenths test. JUDGE is a Hugging Face folder with judge.json, which has the accuracy on the questions to test.
A training that was stopped goes on with the same command; its state is in JUDGE.training until it is finished.

The second adds the probability of yes to completions, as the field `true` (or `info`), and prints the share above 0.5
with a 95 % interval over questions. Rows have a question (or prompt) and a completion (or answer); sample logs of
lm-eval are read too. Numbers are kept in OUT.answers as they come, and are not computed again.
"""

import argparse
import dataclasses
import pathlib
import shutil
import sys

import jax

import rlhf_jax.stages  # noqa: F401  registers the kinds of stages
from rlhf_jax import hf
from rlhf_jax.data.files import checksum
from rlhf_jax.evaluate import completions
from rlhf_jax.evaluate.judge import form, labelled, scoring, training
from rlhf_jax.evaluate.judge.form import KINDS
from rlhf_jax.evaluate.judge.quality import quality
from rlhf_jax.evaluate.judge.training import Settings
from rlhf_jax.fields.options import option
from rlhf_jax.fields.ranges import COUNT, COUNT_OR_NONE, POSITIVE, SEED
from rlhf_jax.language_model import open_model
from rlhf_jax.loop import NonFinite
from rlhf_jax.runtime import programs
from rlhf_jax.runtime.errors import InputError, as_command
from rlhf_jax.runtime.files import write_json_lines
from rlhf_jax.runtime.progress import Interrupt, Stopped
from rlhf_jax.runtime.workdir import Workdir

_TRAINING = tuple(field.name for field in dataclasses.fields(Settings))


def train(options: argparse.Namespace) -> None:
    """Trains a judge, tests it, and writes it."""
    out, kind = pathlib.Path(options.out), KINDS[options.kind]
    if out.exists():
        raise InputError(f"--out={out} exists already; remove it or give another folder")
    answers, report = labelled.read(options.data)
    parts = labelled.divide(answers, options.per_question)
    settings = Settings(**{name: getattr(options, name) for name in _TRAINING})
    data = {"file": pathlib.Path(options.data).name, "checksum": checksum(options.data), **report._asdict()}
    asked = {name: getattr(options, name) for name in ("model", "kind", "length", "per_question", "dtype")}
    asked |= {"data": data["checksum"], **dataclasses.asdict(settings)}
    model = open_model(options.model, tensor=options.tensor, dtype=options.dtype, training=True)
    hf.family_of(model.config)  # raises for a model that cannot be written at the end
    with (
        Interrupt() as interrupt,
        Workdir(f"{out}.training", asked, ignore=lambda *_: ("checkpoint_every",)) as workdir,
    ):
        texts = [kind.text(one.question, one.answer) for part in parts.values() for one in part]
        longest = form.length_of(texts, model.tokenizer, model.config.max_length)
        length = min(longest, options.length or longest)
        said = {
            name: {"questions": len({one.question for one in own}), "answers": len(own)} for name, own in parts.items()
        }
        print(f"{data['file']}: {report.answers} answers to {report.questions} questions; {_counts(said)}")
        with jax.set_mesh(model.mesh):
            home = training.Home(workdir, interrupt)
            judge, facts = training.fit(model, kind, parts, length, settings, home)
            asked_of = [(one.question, one.answer) for one in parts["test"]]
            found = quality(judge.probabilities(asked_of, interrupt), parts["test"], parts["train"] + parts["choose"])
        print(f"{options.kind} judge, on {said['test']['questions']} questions that it has not seen:\n{found}")
        judge.save(
            out,
            {
                "kind": options.kind,
                "note": f"a judge trained here on {data['file']}, not the paper's GPT-3 judge",
                "template": kind.template,
                "words": [form.YES, form.NO],
                "model": options.model,
                "data": data,
                "parts": said,
                "training": dataclasses.asdict(settings) | facts,
                "test": found.to_json(),
            },
        )
    shutil.rmtree(f"{out}.training", ignore_errors=True)
    print(f"{out}: a judge trained here on {data['file']}, not the paper's GPT-3 judge")


def _counts(said: dict) -> str:
    return ", ".join(f"{name} {own['answers']} to {own['questions']}" for name, own in said.items())


def score(options: argparse.Namespace) -> None:
    """Judges the completions of a file, and writes them with the judges' probabilities of yes."""
    rows = completions.read(options.score)
    judges = [(folder, scoring.read_facts(folder)) for folder in options.judge]
    fields = [KINDS[facts["kind"]].field for _, facts in judges]
    if len(set(fields)) < len(fields):
        raise InputError(f"--judge={judges[-1][0]} is a second judge of {judges[-1][1]['kind']}; give one of each kind")
    if taken := next(((row.place, field) for row in rows for field in fields if field in row.row), None):
        raise InputError(f"{taken[0]}: the field {taken[1]!r} is there already; judge a file without it")
    columns: dict[str, list[float]] = {}
    for field, (folder, facts) in zip(fields, judges):
        judge = scoring.open_judge(folder, facts, tensor=options.tensor, dtype=options.dtype)
        columns[field] = scoring.judged(judge, facts, rows, f"{options.out}.answers").round(6).tolist()
        print(f"{field}: by {facts.get('note', 'a judge')}")
    found = [row.row | {field: values[n] for field, values in columns.items()} for n, row in enumerate(rows)]
    write_json_lines(options.out, found)
    for name, estimate in scoring.shares(columns, rows).items():
        print(f"  {name:<16} {estimate}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m rlhf_jax.evaluate.judge",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", required=True, help="folder of the judge to write, or file of judged completions")
    parser.add_argument("--judge", action="append", help="folder of a judge; one of each kind can be given")
    parser.add_argument("--score", help="file of completions to judge")
    parser.add_argument("--model", help="a Hugging Face directory, a work directory or a finished stage, to train from")
    parser.add_argument("--data", help="file of labelled answers to train on")
    parser.add_argument("--kind", choices=tuple(KINDS), default="truth", help="what the labels say")
    parser.add_argument("--per_question", type=option(COUNT_OR_NONE), default=0, help="most answers of one; 0: all")
    parser.add_argument("--length", type=option(COUNT), help="largest row, in tokens; default: the longest text")
    defaults = Settings()
    for name, allowed, says in (
        ("epochs", POSITIVE, "how often each answer is seen"),
        ("batch_size", COUNT, "answers of an optimizer step"),
        ("microbatches", COUNT, "parts in which a step's gradient is computed, to save memory"),
        ("learning_rate", POSITIVE, "its peak"),
        ("validate_epochs", POSITIVE, "epochs between two looks at the questions to choose by"),
        ("checkpoint_every", COUNT, "steps between two checkpoints"),
        ("seed", SEED, "of the order of the answers"),
    ):
        default = getattr(defaults, name)
        parser.add_argument(f"--{name}", type=option(allowed), default=default, help=f"{says}; default: {default}")
    parser.add_argument("--tensor", type=option(COUNT), default=1, help="devices that the model is split over")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="", help="of the computation")
    options = parser.parse_args(arguments)
    if bool(options.judge) != bool(options.score) or bool(options.model) != bool(options.data):
        parser.error("--judge and --score go together, and so do --model and --data")
    if bool(options.judge) == bool(options.model):
        parser.error("give --model and --data to train a judge, or --judge and --score to judge with one")
    return options


@as_command("rlhf_jax.evaluate.judge", stopped="stopped; what was computed is kept, and the same command goes on")
def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    options = parse(arguments)
    programs.keep()
    try:
        score(options) if options.judge else train(options)
    except Stopped as error:
        raise KeyboardInterrupt(str(error)) from None
    except NonFinite as error:
        raise InputError(str(error)) from None


if __name__ == "__main__":
    sys.exit(main())
