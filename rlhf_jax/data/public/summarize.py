"""OpenAI's summarize-from-feedback: Reddit posts with summaries that people wrote, comparisons and ratings of summaries.

Prompts have exactly the form that the paper's models were trained on. A row's group is the id of its post. So with
`data.files.group_field = "group"` no post lies in two splits, in demonstrations and comparisons alike. `shorter` is the
paper's rule for prompts that are too long: it takes the last paragraph off the post.

Two forms that others made of these files are read as well: Huang et al. 2024's, with prompts of at most 512 of Pythia's
tokens, and TRL's.
"""

from collections.abc import Iterator

from rlhf_jax.data.public.dataset import DEMONSTRATION, RANKING, Dataset, LeftOut, Row, field, filled, number, text
from rlhf_jax.runtime.errors import InputError

_HOMEPAGE = "https://github.com/openai/summarize-from-feedback"

# The authors used the labels of valid1 to select models, and kept those of valid2 for the final evaluation.
_SPLITS = {"train": "train", "valid1": "valid", "valid2": "test", "valid": "valid", "test": "test"}

_END = "\n\nTL;DR:"
_END_OF_ARTICLE = "\n\nTL;DR:\n"
_POST, _ARTICLE = "\n\nPOST: ", "Article:\n"
_AXES = ("overall", "accuracy", "coverage", "coherence")


def _prompt(row: Row) -> tuple[str, str, str]:
    """Returns the prompt of a post or article, the text between it and a summary, and the task: "tldr" or "cnndm"."""
    if row.get("article") is not None:
        return f"{_ARTICLE}{filled(row, 'article')}{_END_OF_ARTICLE}", "", "cnndm"
    title = f"SUBREDDIT: r/{text(row, 'subreddit')}\n\nTITLE: {text(row, 'title')}"
    return f"{title}{_POST}{filled(row, 'post')}{_END}", " ", "tldr"


def shorter(prompt: str) -> str | None:
    """Returns a prompt without the last paragraph of its post or article; None if nothing is left to take off.

    A paragraph ends at a line break. Where the text has none left, its last character is taken off. This is the rule of
    OpenAI's code (summarize_from_feedback/tasks.py, `truncate_text`), which Huang et al. 2024 follow (detail 2).
    """
    head, mark, rest = prompt.partition(_ARTICLE if prompt.startswith(_ARTICLE) else _POST)
    end = _END_OF_ARTICLE if prompt.endswith(_END_OF_ARTICLE) else _END
    body = rest.removesuffix(end)
    if not body:
        return None
    kept = body.rpartition("\n")[0] if "\n" in body else body[:-1]
    return head + mark + kept + end


def _demonstration(row: Row, file: str) -> Iterator[Row]:
    """Converts a post with its summary."""
    prompt, space, _ = _prompt(row)
    yield {
        "prompt": prompt,
        "completion": space + filled(row, "summary").strip(),
        "group": text(row, "id"),
        "subreddit": text(row, "subreddit"),
    }


def _split_of(row: Row) -> str:
    if (split := text(row, "split")) not in _SPLITS:
        raise InputError(f"field 'split' is {split!r}; it must be one of {', '.join(_SPLITS)}")
    return _SPLITS[split]


def _comparison(row: Row, file: str) -> Iterator[Row]:
    """Converts two summaries that a worker compared; `choice` is the number of the better one."""
    info, summaries, choice = field(row, "info", dict), field(row, "summaries", list), field(row, "choice")
    if len(summaries) != 2 or not all(isinstance(summary, dict) for summary in summaries):
        raise InputError("field 'summaries' must be a list of two objects")
    if choice not in (0, 1) or isinstance(choice, bool):
        raise InputError(f"field 'choice' is {choice!r}; it must be 0 or 1")
    split = _split_of(row)
    prompt, space, task = _prompt(info)
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
        "split": split,
        "models": [text(summary, "policy") for summary in summaries],
        "batch": text(row, "batch"),
        "task": task,
        "confidence": number(extra, "confidence") if confidence else None,
    }


def _axis(row: Row, file: str) -> Iterator[Row]:
    """Converts a summary that a worker rated from 1 to 7 on several axes; its score is the overall quality."""
    info, summary = field(row, "info", dict), field(row, "summary", dict)
    axes = field(summary, "axes", dict)
    if axes.get("overall") is None:
        raise LeftOut("the summary has no rating of its overall quality")
    prompt, space, task = _prompt(info)
    rated = {name: number(axes, name) for name in _AXES if axes.get(name) is not None}
    yield {
        "prompt": prompt,
        "completion": space + filled(summary, "text").strip(),
        "score": rated["overall"],
        "labeler": text(row, "worker"),
        "group": text(info, "id"),
        "split": _split_of(row),
        "model": text(summary, "policy"),
        "batch": text(row, "batch"),
        "task": task,
        **{name: rated.get(name) for name in _AXES},
    }


# Huang et al. end what they publish with EOS as text. We add the token itself.
_EOS = "<|endoftext|>"


def _summary(row: Row, name: str) -> str:
    return filled(row, name).removesuffix(_EOS)


def _huang_demonstration(row: Row, file: str) -> Iterator[Row]:
    """Converts a row of Huang et al.'s SFT dataset: a prompt that was cut to 512 tokens, and the reference summary."""
    yield {
        "prompt": filled(row, "query"),
        "completion": _summary(row, "reference_response"),
        "group": text(row, "id"),
        "subreddit": text(row, "subreddit"),
    }


def _huang_comparison(row: Row, file: str) -> Iterator[Row]:
    """Converts a row of Huang et al.'s preference dataset."""
    completions = [_summary(row, "chosen"), _summary(row, "rejected")]
    if completions[0] == completions[1]:
        raise LeftOut("the two summaries are the same")
    extra = row.get("extra")
    confidence = isinstance(extra, dict) and extra.get("confidence") is not None
    info = field(row, "info", dict)
    yield {
        "prompt": filled(row, "query"),
        "completions": completions,
        "ranks": [1, 2],
        "labeler": text(row, "worker"),
        "group": text(info, "id"),
        "models": [text(row, "chosen_policy"), text(row, "rejected_policy")],
        "batch": text(row, "batch"),
        "task": "tldr" if info.get("article") is None else "cnndm",
        "confidence": number(extra, "confidence") if confidence else None,
    }


def _trl_demonstration(row: Row, file: str) -> Iterator[Row]:
    yield {"prompt": filled(row, "prompt"), "completion": filled(row, "completion")}


def _trl_comparison(row: Row, file: str) -> Iterator[Row]:
    # A space separates a summary from "TL;DR:", whether or not the published text has it.
    completions = [f" {filled(row, name).strip()}" for name in ("chosen", "rejected")]
    if completions[0] == completions[1]:
        raise LeftOut("the two summaries are the same")
    yield {"prompt": filled(row, "prompt"), "completions": completions, "ranks": [1, 2]}


def _hub(*, test: bool = True) -> dict[str | None, tuple[str, ...]]:
    """Returns the files of a dataset on the Hugging Face hub: data/train-00000-of-00001.parquet and so on."""
    files = {"train": ("data/train-*",), "valid": ("data/validation-*",)}
    return files | {"test": ("data/test-*",)} if test else files


_COMPARISON = {**RANKING, "models": "texts", "batch": "text", "task": "text", "confidence": "number"}
_HUANG = "https://huggingface.co/datasets/vwxyzjn/summarize_from_feedback"

DATASETS = (
    Dataset(
        name="summarize_tldr",
        kind="demonstrations",
        about="OpenAI: filtered TL;DR, a Reddit post and its summary",
        homepage=_HOMEPAGE,
        files={split: (f"{split}|tldr_3_filtered/{split}",) for split in ("train", "valid", "test")},
        convert=_demonstration,
        columns={**DEMONSTRATION, "subreddit": "text"},
        shorter=shorter,
    ),
    Dataset(
        name="summarize_comparisons",
        kind="rankings",
        about="OpenAI: two summaries of a post (task=tldr) or of an article (task=cnndm), compared by a worker",
        homepage=_HOMEPAGE,
        files={None: ("comparisons/*|*",)},
        convert=_comparison,
        columns=_COMPARISON,
        shorter=shorter,
    ),
    Dataset(
        name="summarize_axis",
        kind="rankings",
        about="OpenAI: a summary, rated by a worker on four axes; the score is the overall quality",
        homepage=_HOMEPAGE,
        files={None: ("axis_evals/*|axis/*|*",)},
        convert=_axis,
        columns={
            "prompt": "text",
            "completion": "text",
            "score": "number",
            "labeler": "text",
            "group": "text",
            "model": "text",
            "batch": "text",
            "task": "text",
            **dict.fromkeys(_AXES, "number"),
        },
        shorter=shorter,
    ),
    Dataset(
        name="huang_tldr",
        kind="demonstrations",
        about="Huang et al. 2024: filtered TL;DR, with prompts of at most 512 of Pythia's tokens",
        homepage=f"{_HUANG}_tldr_3_filtered_oai_preprocessing_1706381144",
        files=_hub(),
        convert=_huang_demonstration,
        columns={**DEMONSTRATION, "subreddit": "text"},
    ),
    Dataset(
        name="huang_comparisons",
        kind="rankings",
        about="Huang et al. 2024: OpenAI's comparisons, with prompts of at most 512 of Pythia's tokens",
        homepage=f"{_HUANG}_oai_preprocessing_1706381144",
        files=_hub(test=False) | {"test": ("data/validation_cnndm-*|",)},
        convert=_huang_comparison,
        columns=_COMPARISON,
    ),
    Dataset(
        name="trl_tldr",
        kind="demonstrations",
        about="TRL: filtered TL;DR as prompts and completions",
        homepage="https://huggingface.co/datasets/trl-lib/tldr",
        files=_hub(),
        convert=_trl_demonstration,
        columns={"prompt": "text", "completion": "text"},
        shorter=shorter,
    ),
    Dataset(
        name="trl_tldr_preference",
        kind="rankings",
        about="TRL: comparisons of summaries of posts",
        homepage="https://huggingface.co/datasets/trl-lib/tldr-preference",
        files=_hub(test=False),
        convert=_trl_comparison,
        columns={"prompt": "text", "completions": "texts", "ranks": "ints"},
        shorter=shorter,
    ),
)
