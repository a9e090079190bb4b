"""What policies answer to demonstrations that they have not seen, marked against the answers that people wrote.

With groups that are tasks (`data.files.group_field="task"`), no task of the split test is trained on, and the marks say how
well instruction tuning carries over to unseen tasks (Mishra et al. 2021; Wei et al. 2021; Sanh et al. 2021). Tasks are then
the independent units: the mean is over tasks, and its interval is, too.

The answer has as many lines as the longest reference, because a model that was never taught to end an answer goes on after
it. Exact match compares the normal forms of SQuAD, and ROUGE-L is that of stemmed words, each the best over the references.
"""

import collections

from rlhf_jax import generate, inputs
from rlhf_jax.data import batches, documents, loader, text_batches
from rlhf_jax.data.chat_template import shown
from rlhf_jax.data.records import Demonstration, Prompt
from rlhf_jax.data.splits import group_of, place
from rlhf_jax.evaluate import marks
from rlhf_jax.run import Run
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.statistics import Estimate, paired_difference, share

PREFIX = "demonstrations/"  # of the names of estimates
MARKS = {"exact_match": marks.exact_match, "rouge_l": marks.rouge_l}


def check(run: Run, stage: str) -> None:
    """Raises InputError if the config asks for demonstrations that there are not, or that cannot be marked."""
    if not run.config.evaluate.demonstrations:
        return
    if run.config.data.source == "world":
        raise InputError(
            "evaluate.demonstrations needs data.source='files': the world's answers are judged by its gold"
        )
    inputs.need(run, stage, "demonstrations", "test")
    marks.rouge_l("", "")  # raises InputError where the package is not installed
    _arrays(run)


def questions(run: Run) -> list[batches.Prompts]:
    """Returns the prompts of the demonstrations in batches; no batch if the config asks none.

    They are as many of each group as config.evaluate.demonstrations says, drawn by a hash of the prompt.
    """
    return list(loader.in_order(_arrays(run), run.config.evaluate.batch_size)) if _asked(run) else []


def marked(run: Run, answers: list[generate.Rollout]) -> list[dict]:
    """Returns a row {task, prompt, references, given, exact_match, rouge_l} for each answer to `questions`."""
    if not answers:
        return []
    completions = [text for rollout in answers for text in generate.texts(rollout, run.tokenizer)[0]]
    asked, rows = _asked(run), []
    for index, completion in zip(_arrays(run).index, completions):  # the last batch is filled up behind the answers
        demonstration = asked[index]
        references = references_of(demonstration)
        given = answer_of(completion, references)
        rows.append(
            {
                "task": group_of(demonstration, run.config.data.files.group_field),
                "prompt": shown(demonstration.prompt),
                "references": references,
                "given": given,
                **{name: marks.best(mark, given, references) for name, mark in MARKS.items()},
            }
        )
    return rows


def summarize(rows: list[dict]) -> dict[str, Estimate]:
    """Returns the estimates of the rows of `marked`, by name.

    Each task has the same weight, and intervals are over tasks. A row without a task is a task of its own. If all rows are
    of one task, intervals are over rows.
    """
    weights, units = _weights_and_units(rows)
    return {f"{PREFIX}{name}": share([row[name] for row in rows], weights, units) for name in MARKS}


def differences(first: list[dict], second: list[dict]) -> dict[str, Estimate]:
    """Returns by how much the marks of `first` exceed those of `second`, by name; weights and units are as in `summarize`.

    Args:
        first, second: rows of two policies that answered the same questions in the same order, of one seed or of several.

    Raises:
        InputError: the two answered other questions.
    """
    asked = [[(row["task"], row["prompt"]) for row in rows] for rows in (first, second)]
    if asked[0] != asked[1]:
        raise InputError(
            "the two policies answered other demonstrations: give both runs the same data.files, but for training_groups "
            "and training_group_rows"
        )
    weights, units = _weights_and_units(first)
    return {
        f"{PREFIX}{name}": paired_difference(
            [row[name] for row in first], [row[name] for row in second], weights, units
        )
        for name in MARKS
    }


def _weights_and_units(rows: list[dict]) -> tuple[list[float], list | None]:
    tasks = [number if row["task"] is None else row["task"] for number, row in enumerate(rows)]
    sizes = collections.Counter(tasks)
    return [1 / sizes[task] for task in tasks], tasks if len(sizes) > 1 else None


def references_of(demonstration: Demonstration) -> list[str]:
    """Returns the right answers: the row's `references` where it has such a list of texts, and its completion otherwise."""
    given = demonstration.row.get("references")
    texts = given if isinstance(given, list) and given and all(isinstance(text, str) for text in given) else []
    return [_plain(text) for text in texts or [demonstration.completion]]


def answer_of(completion: str, references: list[str]) -> str:
    """Returns the part of a completion that is compared with the references: as many lines as the longest of them."""
    lines = max(len(reference.split("\n")) for reference in references)
    return _plain("\n".join(_plain(completion).split("\n")[:lines]))


def _plain(text: str) -> str:
    """Returns a text without the space around it, and without the mark by which some datasets end their texts."""
    return shown(text).strip().removesuffix(documents.MARKER).strip()


def _asked(run: Run) -> list[Demonstration]:
    config, by_group = run.config, collections.defaultdict(list)
    if not config.evaluate.demonstrations:
        return []
    for row in run.corpus.demonstrations("test"):
        by_group[group_of(row, config.data.files.group_field)].append(row)
    return [
        row
        for rows in by_group.values()
        for row in sorted(rows, key=lambda row: place(row.prompt))[: config.evaluate.demonstrations]
    ]


def _arrays(run: Run) -> batches.Prompts:
    prompts = [Prompt(row.prompt, row.row) for row in _asked(run)]
    return text_batches.batch_prompts(prompts, run.tokenizer, run.config.prompt_length, too_long=run.config.too_long)[0]
