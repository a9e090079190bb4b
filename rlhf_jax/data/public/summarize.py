"""OpenAI's summarize-from-feedback: Reddit posts with summaries that people wrote, and comparisons of summaries.

Prompts have exactly the form that the paper's models were trained on. A row's group is the id of its post. So with
`data.files.group_field = "group"` no post lies in two splits, in demonstrations and comparisons alike.
"""

from collections.abc import Iterator

from rlhf_jax.data.public.dataset import DEMONSTRATION, RANKING, Dataset, LeftOut, Row, field, filled, number, text
from rlhf_jax.runtime.errors import InputError

_HOMEPAGE = "https://github.com/openai/summarize-from-feedback"

# The authors used the labels of valid1 to select models, and kept those of valid2 for the final evaluation.
_SPLITS = {"train": "train", "valid1": "valid", "valid2": "test", "valid": "valid", "test": "test"}


def _prompt(row: Row) -> tuple[str, str]:
    """Returns the prompt of a post or article, and the text between it and a summary."""
    if row.get("article") is not None:
        return f"Article:\n{filled(row, 'article')}\n\nTL;DR:\n", ""
    return (
        f"SUBREDDIT: r/{text(row, 'subreddit')}\n\nTITLE: {text(row, 'title')}\n\nPOST: {filled(row, 'post')}\n\nTL;DR:"
    ), " "


def _demonstration(row: Row, file: str) -> Iterator[Row]:
    """Converts a post with its summary."""
    prompt, space = _prompt(row)
    yield {
        "prompt": prompt,
        "completion": space + filled(row, "summary").strip(),
        "group": text(row, "id"),
        "subreddit": text(row, "subreddit"),
    }


def _comparison(row: Row, file: str) -> Iterator[Row]:
    """Converts two summaries that a worker compared; `choice` is the number of the better one."""
    info, summaries, choice = field(row, "info", dict), field(row, "summaries", list), field(row, "choice")
    if len(summaries) != 2 or not all(isinstance(summary, dict) for summary in summaries):
        raise InputError("field 'summaries' must be a list of two objects")
    if choice not in (0, 1) or isinstance(choice, bool):
        raise InputError(f"field 'choice' is {choice!r}; it must be 0 or 1")
    if (split := text(row, "split")) not in _SPLITS:
        raise InputError(f"field 'split' is {split!r}; it must be one of {', '.join(_SPLITS)}")
    prompt, space = _prompt(info)
    completions = [space + filled(summary, "text").strip() for summary in summaries]
    if completions[0] == completions[1]:
        raise LeftOut("the two summaries are the same")
    extra = row.get("extra")
    confidence = isinstance(extra, dict) and extra.get("confidence") is not None
    yield {
        "prompt": prompt,
        "completions": completions,
        "ranks": [2, 1] if choice else [1, 2],
        "labeler": text(row, "worker"),
        "group": text(info, "id"),
        "split": _SPLITS[split],
        "models": [text(summary, "policy") for summary in summaries],
        "batch": text(row, "batch"),
        "confidence": number(extra, "confidence") if confidence else None,
    }


DATASETS = (
    Dataset(
        name="summarize_tldr",
        kind="demonstrations",
        about="OpenAI: filtered TL;DR, a Reddit post and its summary",
        homepage=_HOMEPAGE,
        files={split: (f"{split}|tldr_3_filtered/{split}",) for split in ("train", "valid", "test")},
        convert=_demonstration,
        columns={**DEMONSTRATION, "subreddit": "text"},
    ),
    Dataset(
        name="summarize_comparisons",
        kind="rankings",
        about="OpenAI: two summaries of a post, compared by a worker",
        homepage=_HOMEPAGE,
        files={None: ("comparisons/*|*",)},
        convert=_comparison,
        columns={**RANKING, "models": "texts", "batch": "text", "confidence": "number"},
    ),
)
