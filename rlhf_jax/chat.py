"""Answers typed instructions with three policies of a finished run: the base model, the reference and a chosen one.

    python -m rlhf_jax.chat --workdir=runs/quickstart --stage=ppo
    python -m rlhf_jax.chat --workdir=runs/quickstart --stage=ppo/checkpoints/100
    python -m rlhf_jax.chat --workdir=runs/quickstart --instruction="write two sentences about the cake ."

Each turn is two lines, the instruction and its input, which may be empty; Ctrl-D ends the program. Gold scores exist
only for prompts that the embedded world has made.
"""

import argparse
import functools
import os
import sys
from typing import NamedTuple

import jax
from rich.console import Console
from rich.table import Table
from rich.text import Text

import rlhf_jax.stages  # noqa: F401  registers the kinds of stages
from rlhf_jax import generate, sampling, sharding, sources, weights
from rlhf_jax import run as run_lib
from rlhf_jax.data.records import Prompt
from rlhf_jax.data.text_batches import batch_prompts
from rlhf_jax.evaluate import run_judges
from rlhf_jax.evaluate.answers import completion_logprob
from rlhf_jax.evaluate.scorer import scorer_of
from rlhf_jax.fields import registry, rewards
from rlhf_jax.fields.options import option
from rlhf_jax.fields.ranges import NOT_NEGATIVE
from rlhf_jax.report.record import label
from rlhf_jax.rewards.functions import let_import
from rlhf_jax.runtime import programs, terminal
from rlhf_jax.runtime.errors import InputError, as_command
from rlhf_jax.runtime.terminal import visible


class Answer(NamedTuple):
    """A policy's completion with its scores; a score that the run cannot compute is None."""

    stage: str
    completion: str
    finished: bool
    tokens: int
    score: float | None
    gold: float | None
    kl: float | None  # log pi(completion) - log pi_ref(completion), nats


class Chat:
    """The policies of a finished run, loaded to answer instructions.

    Args:
        run: the run, from `run.open_run`.
        stage: the policy to show beside base and reference: a stage, or a kept checkpoint, STAGE/checkpoints/STEP. By
            default it is the last policy of the run.

    Attributes:
        unscored: why a completion has no reward score, in a sentence; "" if all have one, or the run has no reward.

    Raises:
        InputError: the run has no such policy, or none at all.
    """

    def __init__(self, run, stage: str | None = None):
        self.unscored = ""
        stages = run.giving("policy")
        if not stages:
            raise InputError(f"{run.path} has no finished policy yet; finish a stage that makes one first")
        stage = stage or stages[-1]
        trained = stage if stage in stages else _stage_of_checkpoint(run, stage, stages)
        self._run = run
        self._reference = run_judges.reference_of(run, trained)
        names = [*run.stages(lambda kind: kind.base)[:1], self._reference, stage]
        self._params = {name: weights.load_params(run, name) for name in dict.fromkeys(filter(None, names))}
        judges = run.giving("reward")[::-1] or list(run_judges.reward_models(run).values())
        self._scorer = self._opened(judges[0]) if judges else None

    def _opened(self, judge: str):
        """Returns a reward model or function; None for a function that is not there, or not any more."""
        try:
            return scorer_of(self._run, judge)
        except InputError as error:
            if not rewards.one(judge).function:
                raise
            self.unscored = str(error)
            return None

    def answer(self, instruction: str, input: str = "", *, temperature: float, turn: int = 0) -> list[Answer]:
        """Samples one completion of each policy, all with the same random key.

        Args:
            instruction: the instruction.
            input: the input of the instruction; blank for none.
            temperature: sampling temperature; 0 takes the likeliest tokens.
            turn: number of the turn, which selects the random key.

        Raises:
            InputError: the prompt is longer than the run's prompt_length.
        """
        run = self._run
        text = run.template.prompt(instruction, input)
        prompt = self._known.get(text, Prompt(text, {}))
        rows = sharding.ways(run.mesh)  # the smallest batch that divides over the mesh
        prompts, _ = batch_prompts([prompt] * rows, run.tokenizer, run.config.prompt_length)
        sampler = sampling.sampler(run, run.config.completion_length, rows)
        answers = []
        for stage, params in self._params.items():
            rollout = sampler(params, prompts, run.key("chat", turn), temperature)
            [completion, *_], [finished, *_] = generate.texts(rollout, run.tokenizer)
            sampled = generate.sampled(rollout)[0]
            logprob, reference = (
                None if weights is None else float(completion_logprob(run.model, weights, rollout, temperature)[0])
                for weights in (params, self._params.get(self._reference))
            )
            gold = run.corpus.gold(prompt, completion, finished) if text in self._known else None
            answers.append(
                Answer(
                    run_judges.label(run, stage),
                    completion,
                    finished,
                    tokens=len(sampled),
                    score=self._score(prompt, completion, finished, sampled),
                    gold=gold and gold.total,
                    kl=None if reference is None else logprob - reference,
                )
            )
        return answers

    def _score(self, prompt: Prompt, completion: str, finished: bool, sampled: list[int]) -> float | None:
        """Returns the reward; None without one, or if a reward function needs a field that a typed prompt has not."""
        if self._scorer is None:
            return None
        try:
            return float(self._scorer([prompt], [completion], [finished], [sampled])[0])
        except InputError as error:
            self.unscored = str(error)
            return None

    @property
    def example(self) -> tuple[str, str] | None:
        """Instruction and input of a prompt that has a gold score; None if no prompt has one."""
        rows = (prompt.row for prompt in self._known.values())
        return next(((row["instruction"], row["input"]) for row in rows), None)

    @functools.cached_property
    def _known(self) -> dict[str, Prompt]:
        """The prompts that have a gold score, by their text."""
        corpus = self._run.corpus
        found = corpus.prompts("test", "ppo")
        if corpus.gold(found[0], "") is None:
            return {}
        for split in ("valid", "train"):
            found = found + corpus.prompts(split, "ppo") + corpus.prompts(split, "rm")
            found = found + [Prompt(row.prompt, row.row) for row in corpus.demonstrations(split)]
        return {prompt.prompt: prompt for prompt in found}


def _stage_of_checkpoint(run, name: str, stages: list[str]) -> str:
    """Returns the stage of a kept checkpoint; raises InputError if the name is that of no policy."""
    stage = sources.stage_of_checkpoint(name)
    if stage not in run.config.stages or registry.of(run.config, stage).gives != "policy":
        raise InputError(
            f"{run.path} has no finished policy '{name}'; --stage can be {', '.join(stages)}, or STAGE/checkpoints/STEP "
            "for a checkpoint that a stage has kept"
        )
    run.source(name)  # raises InputError where there is no such checkpoint, and says which there are
    return stage


def table(answers: list[Answer]) -> Table:
    """Returns a table of the answers side by side."""
    shown = Table(show_lines=False, title_justify="left")
    shown.add_column("")
    for answer in answers:
        shown.add_column(Text(visible(label(answer.stage))), overflow="fold")
    shown.add_row(
        "",
        *(
            Text(visible(answer.completion.strip() or "(empty)") + ("" if answer.finished else " …"))
            for answer in answers
        ),
    )
    shown.add_section()
    for title, name in {
        "tokens": "tokens",
        "reward score": "score",
        "gold score": "gold",
        "KL to the reference (nats)": "kl",
    }.items():
        values = [getattr(answer, name) for answer in answers]
        shown.add_row(
            title,
            *(f"{value:.2f}" if isinstance(value, float) else "–" if value is None else str(value) for value in values),
        )
    return shown


def converse(chat: Chat, turns, console: Console, temperature: float) -> None:
    """Prints an example of a prompt that has a gold score, and then the answers to every (instruction, input)."""
    if chat.example:
        instruction, text = chat.example
        console.print(Text(visible("\n      input: ".join(filter(None, [f"for example: {instruction}", text])))))
    for turn, (instruction, text) in enumerate(turns):
        show(chat, console, instruction, text, temperature, turn)


def show(chat: Chat, console: Console, instruction: str, input: str, temperature: float, turn: int = 0) -> None:
    """Prints the answers of one turn, or one sentence if the prompt cannot be answered."""
    try:
        answers = chat.answer(instruction, input, temperature=temperature, turn=turn)
    except InputError as error:
        console.print(Text(visible(error)))
        return
    console.print(table(answers))
    if chat.unscored:
        console.print(Text(visible(f"No reward score: {chat.unscored}")))
    if answers[0].gold is None:
        console.print("No gold score: it is known only for prompts that the world made.")


def typed_turns():
    """Yields (instruction, input) from a terminal, with a prompt for each line, or from the lines of a pipe."""

    def ask(cue):
        return input(cue if sys.stdin.isatty() else "")

    try:
        while True:
            if (instruction := ask("\ninstruction> ")).strip():
                try:
                    text = ask("input (or nothing)> ")
                except EOFError:
                    text = ""
                yield instruction, text
    except (EOFError, KeyboardInterrupt):
        print()


@as_command("rlhf_jax.chat")
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m rlhf_jax.chat", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, help="The work directory of a finished run.")
    parser.add_argument(
        "--stage",
        help="The policy to talk to, beside base and reference: a stage, or STAGE/checkpoints/STEP. The default is the last one.",
    )
    parser.add_argument("--instruction", help="The one instruction to answer, after which the command ends.")
    parser.add_argument("--input", default="", help="The text that the instruction is about.")
    parser.add_argument(
        "--temperature",
        type=option(NOT_NEGATIVE),
        default=1.0,
        help="The sampling temperature. 0 takes the likeliest tokens.",
    )
    options = parser.parse_args(arguments)
    programs.keep()
    console = terminal.console()
    let_import(os.getcwd())  # a reward function of the run may lie there
    run = run_lib.open_run(options.workdir)
    with jax.set_mesh(run.mesh):
        chat = Chat(run, options.stage)
        if options.instruction is not None:
            show(chat, console, options.instruction, options.input, options.temperature)
        else:
            converse(chat, typed_turns(), console, options.temperature)


if __name__ == "__main__":
    sys.exit(main())
