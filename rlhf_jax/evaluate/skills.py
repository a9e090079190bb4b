"""Retained skills: what a model has from pretraining and may lose in alignment (the alignment tax).

They are measured by the loss on held-out pretraining text, and by few-shot tasks in formats that no instruction has. As in
appendix D of InstructGPT, decoding is greedy and the answer ends at the first newline.
"""

import collections

import numpy as np

from rlhf_jax import generate, inputs
from rlhf_jax.data import batches, loader, text_batches
from rlhf_jax.data.records import Prompt
from rlhf_jax.evaluate.marks import exact_match, first_line, token_f1
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.statistics import Estimate, mean, share

# How the answers of a task are scored, in [0, 1]; those of a task that is not named here by token F1.
SCORES = {"closed_qa": token_f1, "translation": exact_match, "arithmetic": exact_match}


def questions(run) -> list[batches.Prompts]:
    """The few-shot prompts of the corpus, in batches; no batch where the corpus has no skills.

    A prompt loses its first shots where it is longer than config.evaluate.skill_prompt_length, or than the part of the
    model's context that the answer does not need.
    """
    config, items = run.config.evaluate, _items(run)
    if not items:
        return []
    length = min(config.skill_prompt_length, run.model.max_length - config.skill_completion_length)
    prompts, _ = text_batches.batch_prompts(
        [Prompt(item["prompt"], item) for _, item in items], run.tokenizer, length, too_long="cut_left"
    )
    return list(loader.in_order(prompts, config.batch_size))


def few_shot(run, answers: list[generate.Rollout]) -> list[dict]:
    """Scores the answers to `questions`.

    Returns:
        A row {task, prompt, answer, given, score} for every item: `answer` is the right one, `given` the model's.
    """
    completions = [text for rollout in answers for text in generate.texts(rollout, run.tokenizer)[0]]
    rows = []
    for (task, item), completion in zip(_items(run), completions):
        given = first_line(completion)
        score = SCORES.get(task, token_f1)(given, item["answer"])
        rows.append({"task": task, "prompt": item["prompt"], "answer": item["answer"], "given": given, "score": score})
    return rows


def _items(run) -> list[tuple[str, dict]]:
    return [(task, item) for task, items in run.corpus.skills().items() for item in items]


def scores_and_weights(rows: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Scores f64[N] and weights f64[N] that sum to N, such that the weighted mean is the mean over tasks, not over items."""
    sizes = collections.Counter(row["task"] for row in rows)
    scores = np.array([row["score"] for row in rows], np.float64)
    return scores, np.array([len(rows) / len(sizes) / sizes[row["task"]] for row in rows])


def summarize(rows: list[dict]) -> dict[str, Estimate]:
    """Estimates of the rows of `few_shot`: "skills/TASK" for each task, and "skills/mean", the mean over tasks."""
    found = {}
    for task in dict.fromkeys(row["task"] for row in rows):
        found[f"skills/{task}"] = share([row["score"] for row in rows if row["task"] == task])
    if rows:
        found["skills/mean"] = share(*scores_and_weights(rows))
    return found


def documents(run) -> list[batches.Batch]:
    """Held-out documents, in batches; no batch where a run on files has no documents.

    They are packed into rows as long as a prompt with its completion, as PPO's pretraining batches are by default.
    """
    try:
        packed = inputs.held_out_documents(run, run.config.prompt_length + run.config.completion_length)
    except InputError:
        return []
    return list(loader.in_order(packed, run.config.evaluate.batch_size))


def valid_loss(run, answers: list[tuple[np.ndarray, np.ndarray]]) -> Estimate | None:
    """The negative log-likelihood of `documents` in nats per token; None without documents.

    The interval takes the packed rows as independent.

    Args:
        answers: what programs.row_losses gives for each batch.
    """
    if not answers:
        return None
    totals, counts = (np.concatenate(column).astype(np.float64) for column in zip(*answers))
    per_token = totals / np.maximum(counts, 1)
    return mean(per_token, counts)
