"""Evaluates models on benchmarks by EleutherAI's lm-eval:

    python -m rlhf_jax.evaluate --workdir=runs/quickstart --tasks=instructgpt_truthfulqa_mc --data=FOLDER
    python -m rlhf_jax.evaluate --workdir=runs/quickstart --stage=sft,ppo_ptx --tasks=hellaswag --download
    python -m rlhf_jax.evaluate --workdir=runs/quickstart --stage=ppo/checkpoints/100,ppo --tasks=hellaswag --download
    python -m rlhf_jax.evaluate --model=SmolLM2-135M-Instruct --tasks=gsm8k --apply_chat_template --limit=100 --download

--tasks names any tasks, groups or tags of lm-eval, patterns such as 'mmlu_*', or task files; --tasks=list prints the
names. Tasks in the formats of the InstructGPT paper come with this project (experiments/evals).

The results of a stage go into its folder, and into the run's report; those of a kept checkpoint into STAGE/evaluate/STEP;
those of a released model into --out. Ctrl-C stops
after the batch in progress, and the same command goes on. Answers are kept, so that a task that was asked before takes
no time.
"""

import argparse
import pathlib
import sys

import rlhf_jax.stages  # noqa: F401  registers the kinds of stages
from rlhf_jax import run as run_lib
from rlhf_jax import sources
from rlhf_jax.evaluate import harness
from rlhf_jax.evaluate.harness import tasks as tasks_lib
from rlhf_jax.evaluate.harness.tasks import Options, Tasks
from rlhf_jax.fields import registry
from rlhf_jax.fields.options import option
from rlhf_jax.fields.ranges import COUNT, COUNT_OR_NONE, SEED
from rlhf_jax.language_model import model_at, open_model
from rlhf_jax.report.tables import Quantity, TextTable
from rlhf_jax.runtime import hosts, programs, progress, shipped, terminal
from rlhf_jax.runtime.errors import InputError, as_command


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m rlhf_jax.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", help="The work directory of a run.")
    parser.add_argument(
        "--stage",
        default="",
        help="Its stages, or kept checkpoints as STAGE/checkpoints/STEP, with commas between them. Default: all policies.",
    )
    parser.add_argument(
        "--model", default="", help="Or a Hugging Face directory, or a kept checkpoint; several with commas."
    )
    parser.add_argument(
        "--tasks", required=True, help="The tasks, with commas between them; 'list' prints their names."
    )
    parser.add_argument("--include", default="", help="Folders with task files of your own, with commas between them.")
    parser.add_argument(
        "--data", default="", help="The folder with the data of the tasks in experiments/evals, or tfds."
    )
    parser.add_argument("--download", action="store_true", help="Lets lm-eval fetch data from the Hugging Face hub.")
    parser.add_argument("--num_fewshot", type=option(COUNT_OR_NONE), help="Solved examples before each question.")
    parser.add_argument("--limit", type=option(COUNT), help="The number of questions of each task. Default: all.")
    parser.add_argument("--apply_chat_template", action="store_true", help="Asks in the model's chat template.")
    parser.add_argument("--fewshot_as_multiturn", action="store_true", help="Solved examples are turns of the chat.")
    parser.add_argument("--system_instruction", help="The text of the system's turn, or before the prompt.")
    parser.add_argument(
        "--gen_kwargs", default="", help="Settings of completions, e.g. max_gen_toks=64,temperature=0.7"
    )
    parser.add_argument("--out", default="", help="The folder for the results of --model. Default: runs/evaluate/NAME.")
    parser.add_argument(
        "--batch_tokens", type=option(COUNT_OR_NONE), default=0, help="Tokens of a batch, for a device."
    )
    parser.add_argument("--tensor", type=option(COUNT), default=1, help="Devices that the model is split over.")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="", help="The dtype of the computation.")
    parser.add_argument("--seed", type=option(SEED), default=0, help="The seed of completions that are drawn.")
    parser.add_argument("--distributed", default="", help="'auto' joins the other processes of this cluster.")
    parser.add_argument("--coordinator", help="HOST:PORT of process 0, outside a cluster.")
    parser.add_argument("--num_processes", type=int, help="The number of processes of the job.")
    parser.add_argument("--process_id", type=int, help="The number of this process, from 0.")
    return parser.parse_args(arguments)


def _names(text: str) -> list[str]:
    """Returns the names in a flag, which has commas between them."""
    return [name.strip() for name in text.split(",") if name.strip()]


def models(options: argparse.Namespace) -> dict[str, tuple[pathlib.Path, pathlib.Path]]:
    """Returns the folder of each model and the folder for its results, by the model's name in the table."""
    if bool(options.workdir) == bool(options.model):
        raise InputError("give either --workdir=DIR, a run, or --model=FOLDER, a released model")
    if options.model:
        found = {_name(pathlib.Path(name)): pathlib.Path(name) for name in _names(options.model)}
        if len(found) < len(_names(options.model)):
            raise InputError(
                f"--model={options.model} names two folders of one name; evaluate them one after the other"
            )
        for path in found.values():
            if not sources.is_run(path):
                model_at(str(path))  # a wrong folder is named before the tasks' data are read
        places = {name: pathlib.Path(options.out or "runs/evaluate", name) for name in found}
        if options.out and len(found) == 1:
            places = dict.fromkeys(found, pathlib.Path(options.out))
        return {name: (path, places[name]) for name, path in found.items()}
    if options.out:
        raise InputError("--out goes with --model; the results of a run's stages go into their folders")
    run = run_lib.open_run(options.workdir)
    policies = run.giving("policy")
    stages = _names(options.stage) or policies
    for stage in stages:
        if stage not in policies and not _is_kept(run, stage):
            raise InputError(
                f"--stage={stage} is no finished policy of {options.workdir}; there {_are(policies)}; a kept checkpoint is "
                "named STAGE/checkpoints/STEP"
            )
    return {stage: (run.folder(stage), _results(run, stage)) for stage in stages}


def _results(run: run_lib.Run, name: str) -> pathlib.Path:
    """Returns the folder for the results of a stage or checkpoint; nothing is written into a checkpoint's own."""
    stage = sources.stage_of_checkpoint(name)
    return run.folder(stage) / "evaluate" / pathlib.Path(name).name if stage else run.folder(name)


def _is_kept(run: run_lib.Run, name: str) -> bool:
    """Whether a name is that of a kept checkpoint of a policy; raises InputError if the stage has no such checkpoint."""
    stage = sources.stage_of_checkpoint(name)
    policy = stage in run.config.stages and registry.of(run.config, stage).gives == "policy"
    return policy and isinstance(run.source(name), sources.Trained)


def _name(path: pathlib.Path) -> str:
    """Returns the name of a model in the table: that of its folder, with the stage for a checkpoint."""
    return (
        f"{path.parts[-3]}-{path.name}" if path.parts[-2:-1] == ("checkpoints",) and len(path.parts) > 2 else path.name
    )


def _are(names: list[str]) -> str:
    return f"{'is' if len(names) == 1 else 'are'} {', '.join(names) or 'none'}"


def gen_kwargs(text: str) -> dict | None:
    """Returns the settings in --gen_kwargs, with numbers as numbers."""

    def value(text):
        for kind in (int, float):
            try:
                return kind(text)
            except ValueError:
                continue
        return {"true": True, "false": False}.get(text.lower(), text)

    found = {}
    for part in _names(text):
        name, equals, said = part.partition("=")
        if not equals:
            raise InputError(f"--gen_kwargs={text}: '{part}' is no NAME=VALUE")
        found[name.strip()] = value(said.strip())
    return found or None


def table(found: dict[str, dict[str, dict]]) -> TextTable:
    """Returns the results as a table: a row for each metric below its task, a column for each model.

    Args:
        found: for each model, its entries of lm_eval.json.
    """
    shown = Quantity("", "", None)
    rows = []
    for task, entry in next(iter(found.values())).items():
        rows.append([task, *[""] * len(found)])
        rows.append(["  items", *(str(entries[task]["items"]) for entries in found.values())])
        for metric in entry["estimates"]:
            estimates = [entries[task]["estimates"].get(metric) for entries in found.values()]
            cells = [
                shown.show(estimate if estimate and estimate["value"] is not None else None) for estimate in estimates
            ]
            rows.append([f"  {metric}", *cells])
    return TextTable(["", *found], rows)


@as_command("rlhf_jax.evaluate")
def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    options = parse(arguments)
    include = [*_names(options.include), *map(str, shipped.folders("experiments/evals"))]
    if options.tasks == "list":
        print("\n".join(tasks_lib.known(include)))
        return
    hosts.start(options.distributed, options.coordinator, options.num_processes, options.process_id)
    programs.keep()
    if not _names(options.tasks):
        raise InputError(f"--tasks={options.tasks} names no task; --tasks=list prints the names")
    named = models(options)
    try:
        with progress.Interrupt() as interrupt:
            found = {name: evaluate(name, *places, options, include, interrupt) for name, places in named.items()}
    except progress.Stopped as error:
        raise KeyboardInterrupt(str(error)) from None
    terminal.console(sys.stdout).print(table(found).rich("± half of a 95 % interval over items", wrap=True))
    for name, (_, folder) in named.items():
        print(f"{name}: {folder / harness.results.SUMMARY}")


def evaluate(
    name: str,
    source: pathlib.Path,
    folder: pathlib.Path,
    options: argparse.Namespace,
    include: list[str],
    interrupt: progress.Interrupt,
) -> dict[str, dict]:
    """Evaluates one model, and says how many requests its context was too short for.

    Args:
        name: name of the model.
        source: its folder.
        folder: folder for the results.
        options: the command line.
        include: folders with task files.
        interrupt: whether to stop.

    Returns:
        The entries of lm_eval.json.
    """
    asked = Options(
        num_fewshot=options.num_fewshot,
        limit=options.limit,
        apply_chat_template=options.apply_chat_template,
        system_instruction=options.system_instruction,
        fewshot_as_multiturn=options.fewshot_as_multiturn,
        gen_kwargs=gen_kwargs(options.gen_kwargs),
    )
    about = {"data": options.data} if options.data else {}
    tasks = Tasks(_names(options.tasks), include, about, options.download)
    print(f"{name}: {', '.join(tasks.names)}", flush=True)
    model = open_model(str(source), tensor=options.tensor, dtype=options.dtype)
    found = harness.evaluate(
        model, source, folder, tasks, asked, asked=interrupt.asked, tokens=options.batch_tokens, seed=options.seed
    )
    for kind, count in next(iter(found.values()))["cut_to_the_context"].items():
        print(f"{name}: {count} requests of {kind} lost their beginning, because the context is shorter")
    return found


if __name__ == "__main__":
    sys.exit(main())
