"""The field's scorers: pure functions of answers and references, in [0, 1] unless they say otherwise.

Each has the rule of its benchmark's own scorer, so that a number here is comparable with printed ones. BLEU and ROUGE are
computed by the packages that the field uses, sacrebleu and rouge-score, which come with the extra [eval].
"""

import collections
import functools
import importlib
import math
import re
import string
from collections.abc import Callable, Sequence

import numpy as np
import scipy  # its parts are imported when they are first used

from rlhf_jax.runtime.errors import InputError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def first_line(completion: str) -> str:
    """Returns the answer in a completion that goes on after it, as a base model's does."""
    return completion.split("\n", 1)[0].strip()


def best(mark: Callable[[str, str], float], given: str, references: Sequence[str]) -> float:
    """Returns the best mark of an answer over several references.

    Raises:
        ValueError: there is no reference.
    """
    return max(mark(given, reference) for reference in references)


# ---------------------------------------------------------------------- SQuAD


def normalize(text: str) -> str:
    """Returns the normal form of SQuAD: lower case, no punctuation, no articles, words separated by single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(given: str, answer: str) -> float:
    """Returns 1 if the normal forms are equal, 0 otherwise."""
    return float(normalize(given) == normalize(answer))


def token_f1(given: str, answer: str) -> float:
    """Returns the F1 score of SQuAD 2.0 over the words of the normal forms; two empty texts agree."""
    given, answer = normalize(given).split(), normalize(answer).split()
    shared = (collections.Counter(given) & collections.Counter(answer)).total()
    if not given or not answer:
        return float(given == answer)
    return 2 * shared / (len(given) + len(answer))


def squad(given: str, references: Sequence[str], no_answer: str) -> tuple[float, float]:
    """Returns exact match and F1 as the scorer of SQuAD 2.0 computes them, the best over the references.

    Args:
        given: the answer.
        references: the answers of people; empty where the question has no answer.
        no_answer: the words with which the model says that there is no answer. They count as an empty answer.
    """
    given = "" if exact_match(given, no_answer) else given
    references = [reference for reference in references if normalize(reference)] or [""]
    return best(exact_match, given, references), best(token_f1, given, references)


# ---------------------------------------------------------------------- QuAC

CANNOT_ANSWER = "CANNOTANSWER"  # how QuAC writes that the paragraph has no answer
LEAST_AGREEMENT = 0.4  # QuAC's scorer leaves out questions on which people agree less


def quac_references(references: Sequence[str]) -> list[str]:
    """Returns the references that count: the majority says whether the question has an answer, and a tie says no."""
    answers = [reference for reference in references if reference != CANNOT_ANSWER]
    return answers if 2 * len(answers) > len(references) else [CANNOT_ANSWER]


def quac_f1(given: str, references: Sequence[str]) -> float:
    """Returns QuAC's F1: the mean, over the references, of the best F1 with that reference left out.

    People are scored like this against each other, so a model is not at an advantage.

    Args:
        given: the answer; CANNOT_ANSWER where the model says that there is none.
        references: the answers of people, as published.
    """
    references = quac_references(references)
    marks = [_quac_pair(given, reference) for reference in references]
    return marks[0] if len(marks) == 1 else _left_out(marks)


def quac_agreement(references: Sequence[str]) -> float:
    """Returns the mean F1 of each reference against the others, 1 for a single one."""
    references = quac_references(references)
    if len(references) == 1:
        return 1.0
    others = [[*references[:place], *references[place + 1 :]] for place in range(len(references))]
    return sum(best(_quac_pair, one, rest) for one, rest in zip(references, others)) / len(references)


def _quac_pair(given: str, reference: str) -> float:
    if CANNOT_ANSWER in (given, reference):
        return float(given == reference)
    return token_f1(given, reference)


def _left_out(marks: Sequence[float]) -> float:
    return sum(max([*marks[:place], *marks[place + 1 :]]) for place in range(len(marks))) / len(marks)


# ---------------------------------------------------------------------- DROP


def drop(given: str | Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, float]:
    """Returns exact match and F1 of DROP, each the best over the references.

    A reference is a list of spans. The spans of the answer are aligned one to one with those of a reference, so that the
    sum of their F1 is largest. A span whose numbers differ from the reference's gets 0.

    Args:
        given: the answer, one span or several.
        references: the answers of people; one whose first span is blank is left out.
    """
    spans = [given] if isinstance(given, str) else list(given)
    marks = [_drop_pair(spans, reference) for reference in references if reference[0].strip()]
    return max((exact for exact, _ in marks), default=0.0), max((f1 for _, f1 in marks), default=0.0)


def _drop_pair(given: Sequence[str], reference: Sequence[str]) -> tuple[float, float]:
    given, reference = ([_drop_form(span) for span in spans] for spans in (given, reference))
    exact = set(given) == set(reference) and len(given) == len(reference)
    bags, wanted = ([set(span.split()) for span in spans] for spans in (given, reference))
    scores = np.array([[_bag_f1(bag, want) for bag in bags] for want in wanted])
    f1 = scores[scipy.optimize.linear_sum_assignment(scores, maximize=True)].sum() / max(scores.shape)
    return float(exact), round(float(f1), 2)  # DROP's scorer rounds here


def _bag_f1(given: set[str], reference: set[str]) -> float:
    """Returns the F1 of two sets of words; 0 if the reference has numbers, and none of them is in the answer."""
    numbers = {word for word in reference if _is_number(word)}
    if numbers and not numbers & given:
        return 0.0
    if not given or not reference:
        return float(given == reference)
    precision, recall = len(given & reference) / len(given), len(given & reference) / len(reference)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _drop_form(span: str) -> str:
    """Returns the normal form of DROP: as SQuAD's, but hyphens divide words, and numbers keep their point and sign."""
    return " ".join(word for token in re.split("[ -]", span.lower()) if (word := _drop_word(token)))


def _drop_word(token: str) -> str:
    word = token if _is_number(token) else token.translate(_PUNCTUATION)
    return str(float(word)) if _is_number(word) else " ".join(_ARTICLES.sub(" ", word).split())


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# ---------------------------------------------------------------------- translations and summaries


def bleu(given: Sequence[str], references: Sequence[str]) -> float:
    """Returns the BLEU of a corpus by sacrebleu's defaults, in [0, 100]; there is one reference for each text."""
    return _eval_library("sacrebleu").corpus_bleu(list(given), [list(references)]).score


def rouge_l(given: str, reference: str) -> float:
    """Returns the F-measure of ROUGE-L by rouge-score, of stemmed words."""
    return _rouge().score(reference, given)["rougeL"].fmeasure


@functools.cache
def _rouge():
    return _eval_library("rouge_score.rouge_scorer").RougeScorer(["rougeL"], use_stemmer=True)


def _eval_library(name: str):
    """Imports and returns a library of the extra [eval].

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.split(".")[0].replace("_", "-")
        raise InputError(f"{package} is not installed: pip install 'rlhf_jax[eval]'") from None


# ---------------------------------------------------------------------- choices


def likeliest(logprobs: Sequence[float], tokens: Sequence[int]) -> int:
    """Returns the choice with the highest mean log-probability of a token, the first one of equals.

    The paper's appendix D writes "lowest", which would choose the answer that the model thinks least of.

    Args:
        logprobs: log-probability of each choice, the sum over its tokens.
        tokens: number of tokens of each choice.
    """
    means = [total / count for total, count in zip(logprobs, tokens, strict=True)]
    return means.index(max(means))


def entropy_bits(first: float, second: float) -> float:
    """Returns the entropy of a choice between two texts, in bits: 1 if they are equally likely.

    Args:
        first, second: log-probabilities of the whole texts, in nats; as small as they like.
    """
    odds = math.exp(-abs(first - second))  # of the less likely text against the other; 0 where they are far apart
    if odds == 0.0:
        return 0.0
    return (math.log1p(odds) - odds * math.log(odds) / (1 + odds)) / math.log(2)


def truthful_mc1(logprobs: Sequence[float], true: Sequence[bool]) -> float:
    """Returns 1 if the most likely answer is true; TruthfulQA takes whole answers, without regard to their lengths."""
    return float(true[max(range(len(logprobs)), key=logprobs.__getitem__)])


def truthful_mc2(logprobs: Sequence[float], true: Sequence[bool]) -> float:
    """Returns the probability of the true answers, when the probabilities of all answers are scaled to sum to 1."""
    weights = np.exp(np.asarray(logprobs) - max(logprobs))
    return float(weights[np.asarray(true, bool)].sum() / weights.sum())


def contains_either(given: str, noun: str) -> bool:
    """Returns whether the answer contains the noun, or the noun the answer, in the normal form of SQuAD.

    This is how the paper turns an answer to a Winograd schema into True or False. An empty answer contains nothing.
    """
    given, noun = normalize(given), normalize(noun)
    return bool(given and noun) and (given in noun or noun in given)


def judged(probability: float, threshold: float = 0.5) -> bool:
    """Returns what a judge says that gives a probability."""
    return probability > threshold
