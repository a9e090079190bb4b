"""The field's scorers against the field's own code, closed forms, and plain loops."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_jax.evaluate import marks
from rlhf_jax.runtime.errors import InputError

WORDS = st.sampled_from(
    ["the", "a", "An", "12", "12.50", "$1,000", "-3", "10-4", "Cats,", "cats", "run", "(run)", "''", "é"]
)
TEXTS = st.lists(WORDS, max_size=6).map(" ".join)
SOME = st.lists(TEXTS, min_size=1, max_size=3)


# ---------------------------------------------------------------------- SQuAD


@given(TEXTS, TEXTS)
def test_squad_f1_is_that_of_lm_eval(answer, reference):
    """Its scorer of QASPER has SQuAD's F1; two texts without a word get 0 there, and 1 by the rule of SQuAD 2.0."""
    theirs = pytest.importorskip("lm_eval.tasks.qasper.metrics")
    assert marks.normalize(answer) == theirs.normalize_answer(answer)
    if marks.normalize(answer) or marks.normalize(reference):
        assert marks.token_f1(answer, reference) == pytest.approx(theirs.f1_abstractive([answer], [reference]))
    else:
        assert marks.token_f1(answer, reference) == 1
    same = theirs.normalize_answer(answer) == theirs.normalize_answer(reference)
    assert marks.exact_match(answer, reference) == same


def test_squad_without_an_answer_is_all_or_nothing():
    nothing = "Not in background."
    assert marks.squad("not in background", [], nothing) == (1, 1)
    assert marks.squad("in the background", [], nothing) == (0, 0)  # shares words with the phrase
    assert marks.squad("Not in background.", ["the background"], nothing) == (0, 0)
    assert marks.squad("a red dog", ["dog", "red cat"], nothing) == (0, pytest.approx(2 / 3))
    assert marks.squad("the dog", ["cat", "dog."], nothing) == (1, 1)


def test_the_first_line_of_a_completion_is_the_answer():
    assert marks.first_line(" Paris \n\nQ: what?") == "Paris"


# ---------------------------------------------------------------------- QuAC


def test_quac_leaves_each_reference_out_in_turn():
    references = ["red dog", "red cat", "blue bird"]
    ones = [marks.token_f1("red dog", reference) for reference in references]  # 1, 1/2, 0
    assert ones == [1, 0.5, 0]
    assert marks.quac_f1("red dog", references) == pytest.approx((0.5 + 1 + 1) / 3)
    assert marks.quac_f1("red dog", ["dog"]) == pytest.approx(2 / 3)
    # People score like this: red dog and red cat share a word, blue bird none.
    assert marks.quac_agreement(references) == pytest.approx((0.5 + 0.5 + 0) / 3)


@pytest.mark.parametrize(
    "references, kept",
    [
        (["x", marks.CANNOT_ANSWER], [marks.CANNOT_ANSWER]),
        (["x", "y", marks.CANNOT_ANSWER], ["x", "y"]),
        ([marks.CANNOT_ANSWER] * 3, [marks.CANNOT_ANSWER]),
    ],
)
def test_quac_takes_the_majority_on_whether_there_is_an_answer(references, kept):
    assert marks.quac_references(references) == kept
    assert marks.quac_f1(marks.CANNOT_ANSWER, references) == float(kept == [marks.CANNOT_ANSWER])
    assert marks.quac_f1("x", ["CANNOTANSWER"]) == 0


# ---------------------------------------------------------------------- DROP


@given(st.one_of(TEXTS, SOME), st.lists(SOME, min_size=1, max_size=3))
def test_drop_is_that_of_lm_eval(answer, references):
    theirs = pytest.importorskip("lm_eval.tasks.drop.utils")
    found = theirs.process_results({"answers": references}, [answer] if isinstance(answer, str) else answer)
    assert marks.drop(answer, references) == pytest.approx((found["em"], found["f1"]))


def test_drop_by_hand():
    assert marks.drop("5 yards", [["4 yards"]]) == (0, 0)  # the number is wrong, so the yards do not count
    assert marks.drop("5", [["5 yards"]]) == (0, 0.67)
    assert marks.drop("5.0", [["5"]]) == (1, 1)
    assert marks.drop("$41,809", [["41809"]]) == (1, 1)
    assert marks.drop(["Smith", "Jones"], [["Jones", "Smith"]]) == (1, 1)  # aligned, in whatever order
    assert marks.drop("Smith and Jones", [["Jones", "Smith"]]) == (0, 0.25)  # one span: 1/2 for one of the two
    assert marks.drop("x", [[" "]]) == (0, 0)


# ---------------------------------------------------------------------- translations and summaries


def test_bleu_is_one_number_of_a_corpus():
    sacrebleu = pytest.importorskip("sacrebleu")
    ours, wanted = ["the cat sat on the mat", "hello there my friend"], ["the cat sat on a mat", "hello there friend"]
    assert marks.bleu(ours, wanted) == pytest.approx(sacrebleu.corpus_bleu(ours, [wanted]).score)
    assert marks.bleu(wanted, wanted) == pytest.approx(100)
    # By hand: four matches of 1 to 4 words out of 4, 3, 2, 1, and the brevity penalty of 4 words for 5.
    assert marks.bleu(["a b c d"], ["a b c d e"]) == pytest.approx(100 * math.exp(1 - 5 / 4))


def longest_common(first, second):
    best = 0
    for size in range(len(first), 0, -1):
        for places in itertools.combinations(first, size):
            rest = iter(second)
            if all(word in rest for word in places):
                return size
    return best


@given(*[st.lists(st.sampled_from(["running", "runs", "dogs", "dog", "blue"]), min_size=1, max_size=5)] * 2)
def test_rouge_l_is_of_the_longest_common_stems(first, second):
    pytest.importorskip("rouge_score")
    stems = {"running": "run", "runs": "run", "dogs": "dog"}
    common = longest_common([stems.get(word, word) for word in first], [stems.get(word, word) for word in second])
    f1 = 2 * common / (len(first) + len(second))
    assert marks.rouge_l(" ".join(first), " ".join(second)) == pytest.approx(f1)


def test_a_library_that_is_missing_is_a_sentence(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sacrebleu", None)
    with pytest.raises(InputError, match=r"^sacrebleu is not installed: pip install 'rlhf_jax\[eval\]'$"):
        marks.bleu(["a"], ["a"])


# ---------------------------------------------------------------------- choices


def test_entropy_of_two_texts():
    assert marks.entropy_bits(-1234.5, -1234.5) == 1
    assert marks.entropy_bits(-1000, -1100) < 1e-40 and marks.entropy_bits(0, -1e9) == 0
    for p in (0.9, 0.5, 0.3, 1e-3):
        wanted = -p * math.log2(p) - (1 - p) * math.log2(1 - p)
        shift = -500.0  # whole texts are unlikely: their probabilities do not fit into floats
        found = marks.entropy_bits(math.log(p) + shift, math.log1p(-p) + shift)
        assert found == pytest.approx(wanted, rel=1e-9)
        assert marks.entropy_bits(math.log1p(-p) + shift, math.log(p) + shift) == pytest.approx(found, rel=1e-9)


def test_the_choice_is_by_the_mean_over_tokens():
    assert marks.likeliest([-6.0, -4.0], [4, 2]) == 0  # -1.5 against -2, though its sum is lower
    assert marks.likeliest([-6.0, -4.0], [2, 2]) == 1
    assert marks.likeliest([-2.0, -1.0], [2, 1]) == 0


def test_truthful_mc1_and_mc2():
    logprobs, true = np.log([0.2, 0.1, 0.4, 0.1]) - 800, [True, True, False, False]
    assert marks.truthful_mc1(logprobs, true) == 0
    assert marks.truthful_mc1(logprobs[:2], true[:2]) == 1
    assert marks.truthful_mc2(logprobs, true) == pytest.approx(0.3 / 0.8)


def test_winograd_answers_contain_the_noun_or_the_noun_them():
    assert marks.contains_either("The city councilmen.", "the City Councilmen")
    assert marks.contains_either("councilmen", "The city councilmen")
    assert marks.contains_either("the old city councilmen did", "city councilmen")
    assert not marks.contains_either("the demonstrators", "the city councilmen")
    assert not marks.contains_either("", "the city councilmen") and not marks.contains_either("the", "Joan")


def test_a_judge_says_yes_above_a_half():
    assert [marks.judged(p) for p in (0.2, 0.5, 0.51)] == [False, False, True]
    assert marks.judged(0.2, 0.1)
