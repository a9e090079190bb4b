"""A judge at work: the probability that it gives to yes, for answers in memory and for completions in files."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from rlhf_jax import hf, statistics
from rlhf_jax.evaluate import outside
from rlhf_jax.evaluate.completions import Completion
from rlhf_jax.evaluate.harness.likelihood import Likelihood
from rlhf_jax.evaluate.judge import form
from rlhf_jax.evaluate.judge.form import KINDS, THRESHOLD, Kind
from rlhf_jax.language_model import LanguageModel, open_model
from rlhf_jax.runtime import hosts
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import json_text, new_folder, read_json, write_json
from rlhf_jax.runtime.progress import Interrupt, Progress, Stopped
from rlhf_jax.statistics import Estimate

FACTS = "judge.json"
_BATCH_TOKENS = 2048  # of a batch on each device
_PART = 512  # answers that are judged before their numbers are kept


@dataclasses.dataclass(frozen=True)
class Judge:
    """A language model that judges.

    Attributes:
        model: the model.
        kind: what it judges.
        length: of a row, in tokens; a longer text loses its beginning, as in training.
    """

    model: LanguageModel
    kind: Kind
    length: int

    def probabilities(self, answers: Sequence[tuple[str, str]], interrupt: Interrupt | None = None) -> np.ndarray:
        """Returns the probability of yes, of the two words that the judge may say, for (question, answer); f64[N].

        Args:
            answers: the answers.
            interrupt: what may stop it; then its progress is shown, too.

        Raises:
            Stopped: an interrupt was asked for; what was computed is lost.
        """
        texts = [self.kind.text(question, answer) for question, answer in answers]
        asked = form.requests(texts, self.model.tokenizer, self.length)
        logprobs, done = np.empty(len(asked)), 0
        shown = Progress("judging", len(answers), unit="answers") if interrupt else contextlib.nullcontext()
        with jax.set_mesh(self.model.mesh), shown:
            for batch in Likelihood(self.model, _BATCH_TOKENS)(asked):
                for number, logprob, _ in batch:
                    logprobs[number] = logprob
                done += len(batch)
                if interrupt:
                    shown.update(done // 2)
                if interrupt and interrupt.requested and done < len(asked):
                    raise Stopped("judging", done // 2, interrupt.asked())
        yes, no = logprobs.reshape(-1, 2).T
        return 1 / (1 + np.exp(np.clip(no - yes, -700, 700)))

    def save(self, folder: pathlib.Path, facts: dict) -> None:
        """Writes the judge as a Hugging Face folder with `judge.json`; the folder appears when it is complete.

        Raises:
            InputError: the folder is there already, or cannot be written.
        """
        params = hosts.fetch(self.model.params)
        hosts.on_first(self._write, folder, params, facts | {"length": self.length, "field": self.kind.field})

    def _write(self, folder: pathlib.Path, params: dict, facts: dict) -> None:
        tokenizer = self.model.tokenizer
        with new_folder(folder) as new:
            hf.save(new, self.model.config, params, settings=tokenizer.special_ids)
            tokenizer.save_to(new)
            write_json(new / FACTS, facts)


def read_facts(folder: str) -> dict:
    """Returns the facts of a judge that `Judge.save` wrote.

    Raises:
        InputError: the folder holds no judge.
    """
    path = pathlib.Path(folder) / FACTS
    if not path.is_file():
        raise InputError(f"--judge={folder} has no {FACTS}: it is no judge that this command trained")
    facts = read_json(path, needs=("kind", "length"))
    if facts["kind"] not in KINDS or type(facts["length"]) is not int:
        raise InputError(f"{path} is damaged: its kind must be {' or '.join(KINDS)}, and its length a number of tokens")
    return facts


def open_judge(folder: str, facts: dict, *, tensor: int = 1, dtype: str = "") -> Judge:
    """Returns the judge in a folder, of which `read_facts` has read the facts."""
    return Judge(open_model(folder, tensor=tensor, dtype=dtype), KINDS[facts["kind"]], facts["length"])


def judged(judge: Judge, facts: dict, rows: Sequence[Completion], keep: str | None) -> np.ndarray:
    """Returns a judge's probabilities of yes for completions, f64[N]; those that `keep` has are not computed again."""

    def ask(asked: Sequence[dict]) -> Iterator[float]:
        for begin in range(0, len(asked), _PART):
            part = [(row["question"], row["answer"]) for row in asked[begin : begin + _PART]]
            yield from judge.probabilities(part).tolist()

    # The facts hold the checksum of the data and the settings of the training, and so tell judges apart.
    scorer = outside.Scorer(f"a judge of {facts['kind']}", ask, f"{judge.model.config.dtype} {json_text(facts)}")
    # Answers to one question stand together, so that their beginning is computed once.
    order = sorted(range(len(rows)), key=lambda place: rows[place].question)
    asked = [{"question": rows[place].question, "answer": rows[place].text} for place in order]
    found = np.empty(len(rows))
    found[order] = outside.answers(asked, scorer, keep=keep, progress=f"judging, {judge.kind.field}")
    return found


def shares(columns: dict[str, Sequence[float]], rows: Sequence[Completion]) -> dict[str, Estimate]:
    """Returns the share of completions above the threshold for each judge, and above it for all, over questions.

    Args:
        columns: field of a judge -> its probabilities of yes.
        rows: the completions.
    """
    units = [row.question or row.place for row in rows]
    yes = {name: np.asarray(values) > THRESHOLD for name, values in columns.items()}
    if len(yes) > 1:
        yes[" and ".join(yes)] = np.logical_and.reduce(list(yes.values()))
    return {name: statistics.share(values.astype(np.float64), units=units) for name, values in yes.items()}
