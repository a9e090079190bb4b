"""Anthropic's hh-rlhf: pairs of whole dialogues, one chosen and one rejected.

A dialogue is one text, '\\n\\nHuman: ...\\n\\nAssistant: ...' and so on. The dialogues of a pair differ only in their
last turn, which is the assistant's; the text before it is the prompt, kept verbatim. Some published pairs differ
earlier or have an empty answer. They are left out, and the report lists them.
"""

import dataclasses
import hashlib
import re
from collections.abc import Iterator

from rlhf_jax.data.other_formats import ASSISTANT, HUMAN, cut_dialogues
from rlhf_jax.data.public.dataset import DEMONSTRATION, RANKING, Dataset, Download, LeftOut, Row, field, number, text
from rlhf_jax.runtime.errors import InputError

_ROLES = {"Human": "user", "Assistant": "assistant"}
_HOMEPAGE = "https://huggingface.co/datasets/Anthropic/hh-rlhf"
_REVISION = "d8d97fe9e96fcd19cc8fc31bd04ee393422abfbb"
_SUBSETS = ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled")


def cut(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Divides a pair of dialogues into (prompt, chosen completion, rejected completion).

    Raises:
        LeftOut: the dialogues differ before the last turn, or an answer contains a human turn; the dialogues share no
            turns; or an answer is empty, or equal to the other.
    """
    if (parts := cut_dialogues(chosen, rejected)) is None:
        raise LeftOut("the two share no turn of Human's before one of Assistant's")
    prompt, *answers = parts
    if any(HUMAN in answer for answer in answers):
        raise LeftOut("they differ before the last turn")
    for name, answer in zip(("chosen", "rejected"), answers):
        if not answer.strip():
            raise LeftOut(f"the {name} answer is empty")
    if chosen == rejected:
        raise LeftOut("the two answers are the same")
    return prompt, *answers


def opening(dialogue: str) -> str:
    """Returns a hash of a dialogue's first turn, as its group: one conversation is published at several lengths."""
    return hashlib.blake2b(dialogue.split(ASSISTANT)[0].strip().encode(), digest_size=8).hexdigest()


def chat(row: Row) -> Row:
    """Returns a row with its prompt as messages, and a completion as the last of them.

    Raises:
        LeftOut: a turn is empty.
    """
    parts = re.split(r"\n\n(Human|Assistant):", row["prompt"])[1:-2]
    turns = [(_ROLES[name], content.strip()) for name, content in zip(parts[::2], parts[1::2])]
    if not all(content for _, content in turns):
        raise LeftOut("a turn of the prompt is empty")
    others = {name: value for name, value in row.items() if name not in ("prompt", "completion")}
    if "completions" in row:  # the space after "Assistant:" is markup of the source
        others["completions"] = [text.removeprefix(" ") for text in row["completions"]]
    if "completion" in row:
        turns.append((_ROLES["Assistant"], row["completion"].removeprefix(" ")))
    return {"messages": [{"role": role, "content": content} for role, content in turns], **others}


def _pair(row: Row, file: str) -> Iterator[Row]:
    """Converts a pair of dialogues; its group is its opening, and its subset the folder of the file."""
    prompt, chosen, rejected = cut(text(row, "chosen"), text(row, "rejected"))
    yield {
        "prompt": prompt,
        "completions": [chosen, rejected],
        "ranks": [1, 2],
        "group": opening(prompt),
        "subset": file.split("/")[0],
    }


def _chosen(row: Row, file: str) -> Iterator[Row]:
    """Converts the chosen dialogue of a pair, as a demonstration of its last answer."""
    for pair in _pair(row, file):
        yield {
            "prompt": pair["prompt"],
            "completion": pair["completions"][0],
            "group": pair["group"],
            "subset": pair["subset"],
        }


def _red_team(row: Row, file: str) -> Iterator[Row]:
    """Yields the first turn of a transcript as a prompt; the dataset card forbids training on the transcripts."""
    transcript = text(row, "transcript")
    if not transcript.startswith(HUMAN) or ASSISTANT not in transcript:
        raise LeftOut("field 'transcript' is no dialogue of Human's and Assistant's turns")
    asked = transcript.split(ASSISTANT)[0]
    if not asked.removeprefix(HUMAN).strip():
        raise LeftOut("the first turn is empty")
    tags = field(row, "tags") or []
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise InputError("field 'tags' must be a list of strings")
    yield {
        "prompt": asked + ASSISTANT,
        "group": opening(transcript),
        "tags": tags,
        "rating": number(row, "rating"),
        "min_harmlessness": number(row, "min_harmlessness_score_transcript"),
        "task": text(row, "task_description"),
    }


# The SHA-256 that the hub shows for the files stored there.
_SHA256 = {
    "harmless-base/train.jsonl.gz": "bf3e1ecd3db61bf21d190f69351d26670c67aababa0fd282fa008c17a7202217",
    "harmless-base/test.jsonl.gz": "ebfaaed21162a4de120ae85366075b34425e2a6303fac59b99555002f7016f03",
    "helpful-base/train.jsonl.gz": "518a5bf288456fc9f3b7c980c54116fba0c52f274d3f4d344675d83e4058f6f4",
    "helpful-base/test.jsonl.gz": "8be3fc1a13b27901631696f2be6f184c799f1baeaf145f53ac5db24960adc37b",
    "helpful-online/train.jsonl.gz": "0994d18b82083f5c084ce04071b683958a724df8c7215ab1d851986642d36a2a",
    "helpful-online/test.jsonl.gz": "39a475cc7e0df972902f8e3a0972726fce826ac65369bda8c671de4330c60a10",
}


def _downloads(subsets: tuple[str, ...]) -> tuple[Download, ...]:
    """Returns the downloads of subsets; () unless the checksums of all their files are known."""
    paths = [f"{subset}/{split}.jsonl.gz" for subset in subsets for split in ("train", "test")]
    if not all(path in _SHA256 for path in paths):
        return ()
    return tuple(Download(path, f"{_HOMEPAGE}/resolve/{_REVISION}/{path}", _SHA256[path]) for path in paths)


def _pairs(name: str, subsets: tuple[str, ...], about: str) -> Dataset:
    """Returns the dataset of the pairs of some subsets."""
    return Dataset(
        name=name,
        kind="rankings",
        about=about,
        homepage=_HOMEPAGE,
        files={split: tuple(f"{subset}/{split}" for subset in subsets) for split in ("train", "test")},
        convert=_pair,
        columns={**RANKING, "subset": "text"},
        downloads=_downloads(subsets),
        chat=chat,
    )


DATASETS = (
    _pairs("hh_rlhf", _SUBSETS, "Anthropic: human preferences between two answers, all four subsets"),
    *(
        _pairs(f"hh_rlhf_{subset.replace('-', '_')}", (subset,), f"the subset {subset} of hh_rlhf")
        for subset in _SUBSETS
    ),
    dataclasses.replace(
        _pairs("hh_rlhf_chosen", _SUBSETS, "the chosen answers of hh_rlhf, as demonstrations"),
        kind="demonstrations",
        convert=_chosen,
        columns={**DEMONSTRATION, "subset": "text"},
    ),
    Dataset(
        name="hh_rlhf_red_team",
        kind="prompts",
        about="Anthropic: how people opened attempts to provoke harm",
        homepage=_HOMEPAGE,
        files={"train": ("red-team-attempts/red_team_attempts|red-team-attempts/red-team-attempts",)},
        convert=_red_team,
        chat=chat,
        columns={
            "prompt": "text",
            "group": "text",
            "tags": "texts",
            "rating": "number",
            "min_harmlessness": "number",
            "task": "text",
        },
        downloads=(
            Download(
                "red-team-attempts/red-team-attempts.jsonl.gz",
                f"{_HOMEPAGE}/resolve/6323bfcd9e8101a9eae80a7cdb48c079e4fd944e/"
                "red-team-attempts/red-team-attempts.jsonl.gz",
                "031a8b6536d0a7cd607dd2440263e63d561cb961fb33d76dd2c5ef8612d25d51",
            ),
        ),
    ),
)
