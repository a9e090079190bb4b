"""Makes the documents of the paper's evaluations from published rows; the task files beside it write prompts of them.

Each set is a function of what its task file says under `dataset_kwargs` and of --data, and returns the splits that
lm-eval reads. What appendix D of Ouyang et al. 2022 leaves open is said in the task files.
"""

import itertools
import re
from collections.abc import Iterable, Iterator

from lm_eval.api.samplers import FirstNSampler
from lm_eval.utils import general_detokenize

from rlhf_jax.evaluate import marks
from rlhf_jax.evaluate.published import Document, Documents, Row, Source, Splits
from rlhf_jax.runtime.errors import InputError

NOT_IN_BACKGROUND, NOT_KNOWN = "Not in background.", "I don't know."  # how the paper's prompts say "no answer"


class FirstExamples(FirstNSampler):
    """Takes the first documents of a split as solved examples, the same before every question."""

    def sample(self, n: int, eval_doc=None, df=None, **kwargs):
        if n > len(self.df):
            raise InputError(f"a task wants {n} solved examples, and its split of examples has {len(self.df)}")
        return self.df[:n]


def _splits(about: dict, documents: Documents, examples_of: Documents | None = None) -> Splits:
    source = Source(**{name: about[name] for name in ("name", "file", "hub", "hub_name", "tfds") if name in about})
    return Splits(source, about.get("data"), documents, about["test"], about.get("examples"), examples_of)


def _one_of_each(documents: Iterable[Document], name: str, place: int) -> Iterator[Document]:
    """Yields one of the documents that have the same `name` in a row: the first one (0) or the last one (-1)."""
    for _, group in itertools.groupby(documents, key=lambda document: document[name]):
        yield list(group)[place]


# ---------------------------------------------------------------------- questions on passages


def squadv2(**about) -> Splits:
    """A document is a question with all earlier questions on its paragraph; an example is a paragraph's last one."""
    return _splits(about, _squadv2, lambda rows: _one_of_each(_squadv2(rows), "background", -1))


def _squadv2(rows: Iterable[Row]) -> Iterator[Document]:
    for (title, background), paragraph in itertools.groupby(rows, key=lambda row: (row["title"], row["context"])):
        earlier: list[dict] = []
        for row in paragraph:
            answers = list(dict.fromkeys(row["answers"]["text"]))
            turn = {"question": row["question"], "answer": answers[0] if answers else NOT_IN_BACKGROUND}
            yield {"title": title, "background": background, "earlier": list(earlier), **turn, "answers": answers}
            earlier.append(turn)


def quac(**about) -> Splits:
    """As squadv2, with dialogues. Questions on which people disagree, by QuAC's own rule, are asked in no document."""
    return _splits(about, _quac, lambda rows: _one_of_each(_quac(rows), "background", -1))


def _quac(rows: Iterable[Row]) -> Iterator[Document]:
    for row in rows:
        earlier: list[dict] = []
        about = {"title": row["wikipedia_page_title"], "background": row["context"].removesuffix(" CANNOTANSWER")}
        for question, answer, answers in zip(row["questions"], row["orig_answers"]["texts"], row["answers"]["texts"]):
            turn = {"question": question, "answer": NOT_KNOWN if answer == marks.CANNOT_ANSWER else answer}
            if marks.quac_agreement(answers) >= marks.LEAST_AGREEMENT:
                yield {**about, "earlier": list(earlier), **turn, "answers": answers}
            earlier.append(turn)


def drop(**about) -> Splits:
    """A document is a question on a passage; an example is the first question on a passage."""
    return _splits(about, _drop, lambda rows: _one_of_each(_drop(rows), "passage", 0))


def _drop(rows: Iterable[Row]) -> Iterator[Document]:
    for row in rows:
        answers = [row["answer"], *_listed(row.get("validated_answers") or [])]
        answers = [spans for answer in answers if any(spans := _drop_spans(answer))]
        if answers:
            texts = {"passage": row["passage"], "question": row["question"]}
            yield {**texts, "answer": ", ".join(answers[0]), "answers": answers}


def _listed(values: list | dict) -> list[dict]:
    """Returns a list of objects, which the hub keeps as an object of lists."""
    return [dict(zip(values, one)) for one in zip(*values.values())] if isinstance(values, dict) else values


def _drop_spans(answer: str | dict) -> list[str]:
    """Returns the spans of an answer, which is a number, spans or a date; TFDS has the text alone."""
    if isinstance(answer, str):
        return [answer]
    if answer["number"] != "":
        return [str(answer["number"])]
    date = answer["date"]
    return list(answer["spans"]) or [" ".join(filter(None, (date["day"], date["month"], date["year"])))]


# ---------------------------------------------------------------------- choices


def hellaswag(**about) -> Splits:
    return _splits(about, _hellaswag)


def _hellaswag(rows: Iterable[Row]) -> Iterator[Document]:
    for row in rows:
        context = f"{row['ctx_a']} {row['ctx_b'].capitalize()}" if "ctx_a" in row else row["context"]
        paragraph = _without_marks(f"{row['activity_label']}: {context}")
        yield {
            "paragraph": paragraph,
            "choices": [_without_marks(end) for end in row["endings"]],
            "gold": int(row["label"]),
        }


def _without_marks(text: str) -> str:
    """Returns a text of WikiHow without the marks of its parts, [title], [step] and so on, as GPT-3's authors read it."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ").strip()


def rte(**about) -> Splits:
    return _splits(about, _rte)


def _rte(rows: Iterable[Row]) -> Iterator[Document]:
    for row in rows:
        hypothesis = row["hypothesis"].strip().removesuffix(".")
        yield {"passage": row["premise"].strip(), "hypothesis": hypothesis, "gold": int(row["label"])}


def sst(**about) -> Splits:
    return _splits(about, _sst)


def _sst(rows: Iterable[Row]) -> Iterator[Document]:
    for row in rows:
        yield {"text": general_detokenize(row["sentence"]).strip(), "gold": int(row["label"])}


def wsc(**about) -> Splits:
    """An example is a passage whose candidate noun is the right one, because only there is the answer known."""
    return _splits(about, _wsc, lambda rows: (document for document in _wsc(rows) if document["refers"]))


def _wsc(rows: Iterable[Row]) -> Iterator[Document]:
    for row in rows:
        words, place, pronoun = row["text"].split(), int(row["span2_index"]), row["span2_text"]
        if not (place < len(words) and pronoun in words[place]):
            raise InputError(
                f"{row.place}: word {place} of the text, from 0, is not {pronoun!r}; use the set wsc.fixed"
            )
        words[place] = words[place].replace(pronoun, f"*{pronoun}*", 1)
        passage = general_detokenize(" ".join(words))
        yield {"passage": passage, "pronoun": pronoun, "noun": row["span1_text"], "refers": bool(int(row["label"]))}


def truthfulqa(**about) -> Splits:
    """A document has the answers of TruthfulQA.csv, the best one first; `labels` says which are true."""
    return _splits(about, _truthfulqa)


def _truthfulqa(rows: Iterable[Row]) -> Iterator[Document]:
    names = ("question", "best_answer", "correct_answers", "incorrect_answers")  # on the hub
    published = ("Question", "Best Answer", "Correct Answers", "Incorrect Answers")
    for row in rows:
        question, best, true, false = (row[name] for name in (names if names[0] in row else published))
        best, true, false = best.strip(), _answers(true), _answers(false)
        choices = [best, *(answer for answer in true if answer != best)]
        labels = [1] * len(choices) + [0] * len(false)
        yield {"question": question.strip(), "best": best, "choices": choices + false, "labels": labels}


def _answers(value: str | list[str]) -> list[str]:
    listed = value.split(";") if isinstance(value, str) else value
    return list(dict.fromkeys(answer.strip() for answer in listed if answer.strip()))


# ---------------------------------------------------------------------- texts


def wmt15(**about) -> Splits:
    return _splits(about, _wmt15)


def _wmt15(rows: Iterable[Row]) -> Iterator[Document]:
    for row in rows:
        pair = row["translation"] if "translation" in row else row
        yield {"french": pair["fr"].strip(), "english": pair["en"].strip()}


def cnn_dm(**about) -> Splits:
    return _splits(about, lambda rows: _summaries(rows, "article", "highlights"))


def tldr(**about) -> Splits:
    return _splits(about, lambda rows: _summaries(rows, "content", "summary"))


def _summaries(rows: Iterable[Row], text: str, summary: str) -> Iterator[Document]:
    for row in rows:
        yield {"text": row[text].strip(), "summary": " ".join(row[summary].split())}


_BINS, _OF_EACH = 100, 50  # of prompts by their toxicity: at most 5,000


def real_toxicity_prompts(**about) -> Splits:
    """At most 5,000 prompts whose toxicity is spread evenly: the first 50 of each hundredth."""
    return _splits(about, _real_toxicity_prompts)


def _real_toxicity_prompts(rows: Iterable[Row]) -> Iterator[Document]:
    taken = [0] * _BINS
    for row in rows:
        prompt = row["prompt"]
        if prompt["toxicity"] is None:
            continue
        place = min(int(prompt["toxicity"] * _BINS), _BINS - 1)
        if taken[place] < _OF_EACH:
            taken[place] += 1
            yield {"text": prompt["text"], "prompt_toxicity": float(prompt["toxicity"])}


# ---------------------------------------------------------------------- pairs of sentences


def winogender(**about) -> Splits:
    """The 120 pairs of sentences with "he" and "she" that name both people; those with "someone" are left out."""
    return _splits(about, _winogender)


def _winogender(rows: Iterable[Row]) -> Iterator[Document]:
    pairs: dict[str, dict[str, str]] = {}
    for row in rows:
        template, _, gender = row["sentid"].removesuffix(".txt").rpartition(".")
        if ".someone." not in template:
            pairs.setdefault(template, {})[gender] = row["sentence"].strip()
    for template, sentences in pairs.items():
        if {"male", "female"} - sentences.keys():
            raise InputError(f"Winogender: the sentences {template} lack the one of male or female")
        yield {"template": template, "choices": [sentences["male"], sentences["female"]]}


def crows_pairs(**about) -> Splits:
    """The first sentence of a pair is the more stereotyping one."""
    return _splits(about, _crows_pairs)


def _crows_pairs(rows: Iterable[Row]) -> Iterator[Document]:
    for row in rows:
        yield {"kind": row["bias_type"], "choices": [row["sent_more"].strip(), row["sent_less"].strip()]}


def natural_instructions(**about) -> Splits:
    return _splits(about, _natural_instructions)


def _natural_instructions(rows: Iterable[Row]) -> Iterator[Document]:
    for row in rows:
        references = row.get("references") or [row["output"]]
        yield {"instruction": row["instruction"], "input": row["input"], "references": list(references)}
