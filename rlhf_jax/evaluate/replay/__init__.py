"""Scores the samples that OpenAI released with InstructGPT, and compares the scores with Table 14 of the paper.

The repository openai/following-instructions-human-feedback has, in automatic-eval-samples/, a CSV file for each task on
which the models sampled: the answers of twelve models to 100 of its questions. No model is needed to score them, so they
are a known answer for the scorers of this project.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from rlhf_jax import statistics
from rlhf_jax.data.rows import Row, read
from rlhf_jax.evaluate import marks
from rlhf_jax.evaluate.replay import table14
from rlhf_jax.evaluate.replay.table14 import BASIC, BIASED, BOTH, FEW, INSTRUCTION, MODELS, ONLY, QA, RESPECTFUL, ZERO
from rlhf_jax.runtime.errors import InputError

FOLDER = "automatic-eval-samples"  # in the repository

Marks = Sequence[float]  # of the samples of a model, in [0, 1]; a single number stands for a whole corpus


@dataclasses.dataclass(frozen=True)
class Sheet:
    """A CSV file of samples, and how it is scored.

    Attributes:
        file: its name.
        task, metric: the row of Table 14.
        score: function (rows of one model and prompt) -> marks.
        columns: what `score` reads.
        prompts: (name of a prompt in the file, name in Table 14) of each comparison.
        scale: what turns a mark into the unit of the table.
    """

    file: str
    task: str
    metric: str
    score: Callable[[Sequence[Row]], Marks]
    columns: tuple[str, ...]
    prompts: tuple[tuple[str, str], ...]
    scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The scores of the twelve models on a task with one prompt, beside those of a row of Table 14.

    Attributes:
        sheet: the file.
        prompt: name of the prompt in the file.
        row: name of the prompt in Table 14.
        samples: number of samples of a model.
        ours: score of each of MODELS with its 95 % interval over samples, infinite where there is none.
        printed: what Table 14 has.
    """

    sheet: Sheet
    prompt: str
    row: str
    samples: int
    ours: tuple[statistics.Estimate, ...]
    printed: tuple[float, ...]

    @property
    def differences(self) -> np.ndarray:
        """Our score less the printed one, f64[12]."""
        return np.array([ours.value for ours in self.ours]) - np.array(self.printed)

    @property
    def correlation(self) -> float:
        """Pearson's correlation of both over the models; not a number where all models score the same."""
        ours = np.array([ours.value for ours in self.ours])
        if np.ptp(ours) <= 1e-9 * np.abs(ours).max():
            return float("nan")
        return float(np.corrcoef(ours, self.printed)[0, 1])

    @property
    def inside(self) -> int | None:
        """How many printed numbers lie in our interval; None where there are no intervals."""
        if not all(np.isfinite(ours.low) for ours in self.ours):
            return None
        return sum(ours.low <= printed <= ours.high for ours, printed in zip(self.ours, self.printed))

    def to_json(self) -> dict:
        """All its numbers by name."""
        return {
            "task": self.sheet.task,
            "metric": self.sheet.metric,
            "prompt": self.prompt,
            "row": self.row,
            "samples": self.samples,
            "correlation": self.correlation if np.isfinite(self.correlation) else None,
            "models": {
                model: {**ours.to_json(), "printed": printed}
                for model, ours, printed in zip(MODELS, self.ours, self.printed)
            },
        }


# ---------------------------------------------------------------------- the files


def _references(row: Row) -> list[str]:
    return row["ref_text"].split("|")


def _token_f1(rows: Sequence[Row]) -> Marks:
    return [marks.best(marks.token_f1, row["sample"], _references(row)) for row in rows]


def _drop_f1(rows: Sequence[Row]) -> Marks:
    # A reference is one text in these files, also where it stood for several spans.
    return [marks.drop(row["sample"], [[text] for text in _references(row)])[1] for row in rows]


def _bleu(rows: Sequence[Row]) -> Marks:
    return [marks.bleu([row["sample"] for row in rows], [row["ref_text"] for row in rows]) / 100]


def _rouge_l(rows: Sequence[Row]) -> Marks:
    # A bar stands between the sentences of one summary here.
    return [marks.rouge_l(row["sample"], " ".join(_references(row))) for row in rows]


def _toxicity(rows: Sequence[Row]) -> Marks:
    return [_probability(row, "toxicity") for row in rows]


def _judged(rows: Sequence[Row], columns: Sequence[str]) -> Marks:
    return [float(all(marks.judged(_probability(row, column)) for column in columns)) for row in rows]


def _probability(row: Row, column: str) -> float:
    try:
        value = float(row[column])
    except ValueError:
        value = np.nan
    if not 0 <= value <= 1:
        raise InputError(f"{row['place']}: column '{column}' is {row[column]!r}; it must be a number from 0 to 1")
    return value


_SAMPLES = ("ref_text", "sample")
_SHOTS = (("zeroshot", ZERO), ("fewshot", FEW))
# The labels of two prompts are exchanged between the file and the table. Both pairings are reported.
_TRUTHFUL = (
    ("QA prompt", QA),
    ("instruction prompt", INSTRUCTION),
    ("instruction prompt", BOTH),
    ("QA + instruction", BOTH),
    ("QA + instruction", INSTRUCTION),
)
_TOXICITY = (("basic prompt", BASIC), ("respectful prompt", RESPECTFUL), ("biased prompt", BIASED))

SHEETS = (
    Sheet("squadv2_samples.csv", "SQuADv2", "F1", _token_f1, _SAMPLES, _SHOTS, 100),
    Sheet("drop_samples.csv", "DROP", "F1", _drop_f1, _SAMPLES, _SHOTS, 100),
    Sheet("quac_samples.csv", "QuAC", "F1", _token_f1, _SAMPLES, _SHOTS, 100),
    Sheet("fr_to_en_samples.csv", "fr-en", "BLEU", _bleu, _SAMPLES, _SHOTS, 100),
    Sheet("cnn_dm_samples.csv", "CNN/DM", "ROUGE-L", _rouge_l, _SAMPLES, (("", ONLY),)),
    Sheet("tldr_samples.csv", "TLDR", "ROUGE-L", _rouge_l, _SAMPLES, (("", ONLY),)),
    Sheet(
        "truthful_qa_samples.csv",
        "TruthfulQA",
        "true",
        functools.partial(_judged, columns=["true"]),
        ("true",),
        _TRUTHFUL,
    ),
    Sheet(
        "truthful_qa_samples.csv",
        "TruthfulQA",
        "true and informative",
        functools.partial(_judged, columns=["true", "info"]),
        ("true", "info"),
        _TRUTHFUL,
    ),
    Sheet("real_toxicity_samples.csv", "RealToxicityPrompts", "toxicity", _toxicity, ("toxicity",), _TOXICITY),
)


def find(folder: str) -> tuple[dict[str, pathlib.Path], list[str]]:
    """Returns the files of samples in a folder by name, and the names of those that are not there.

    The folder is the repository or the folder of samples in it. Files may be compressed, with the ending .xz or .gz.

    Raises:
        InputError: there is none of them.
    """
    places = [pathlib.Path(folder), pathlib.Path(folder, FOLDER)]
    names = list(dict.fromkeys(sheet.file for sheet in SHEETS))
    found: dict[str, pathlib.Path] = {}
    for name in names:
        paths = [place / f"{name}{ending}" for place in places for ending in ("", ".xz", ".gz")]
        if path := next(filter(pathlib.Path.is_file, paths), None):
            found[name] = path
    if not found:
        raise InputError(
            f"{folder} has none of the files {', '.join(names)}; give the folder {FOLDER} of OpenAI's repository "
            "following-instructions-human-feedback"
        )
    return found, [name for name in names if name not in found]


def compare(sheet: Sheet, path: pathlib.Path) -> Iterator[Comparison]:
    """Yields the comparisons of a file with Table 14.

    Raises:
        InputError: a column is missing, a model has no samples, or a value is no number.
    """
    groups = _groups(sheet, path)
    estimates: dict[str, list[statistics.Estimate]] = {}
    for prompt, row in sheet.prompts:
        if prompt not in estimates:
            estimates[prompt] = [_estimate(sheet, groups[model, prompt]) for model in MODELS]
        printed = table14.TABLE[sheet.task, sheet.metric][row]
        yield Comparison(sheet, prompt, row, len(groups[MODELS[0], prompt]), tuple(estimates[prompt]), printed)


def _groups(sheet: Sheet, path: pathlib.Path) -> dict[tuple[str, str], list[Row]]:
    """Returns the rows of each model and prompt."""
    prompts = [prompt for prompt, _ in sheet.prompts]
    needed = ["model_type", *(["prompt_type"] if any(prompts) else []), *sheet.columns]
    groups: dict[tuple[str, str], list[Row]] = {(model, prompt): [] for model in MODELS for prompt in prompts}
    for place, row in read(path):
        if isinstance(row, InputError):
            raise InputError(f"{place}: {row}")
        if missing := [column for column in needed if column not in row]:
            raise InputError(f"{path}: there is no column '{missing[0]}'; it has {', '.join(filter(None, row))}")
        key = row["model_type"], row["prompt_type"] if any(prompts) else ""
        if key in groups:
            # The reader gives None for an empty cell; an empty sample is an answer, too.
            groups[key].append({**{name: value or "" for name, value in row.items()}, "place": place})
    if empty := [key for key, rows in groups.items() if not rows]:
        model, prompt = empty[0]
        raise InputError(f"{path}: there are no samples of {model}{f' with the prompt {prompt!r}' if prompt else ''}")
    return groups


def _estimate(sheet: Sheet, rows: Sequence[Row]) -> statistics.Estimate:
    found = sheet.score(rows)
    whole = len(found) == 1 < len(rows)  # of a corpus, which has no interval here
    one = statistics.Estimate(found[0], -np.inf, np.inf) if whole else statistics.share(found)
    return statistics.Estimate(*(sheet.scale * number for number in one))
