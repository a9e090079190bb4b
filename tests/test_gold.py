"""The gold labeler: right answers beat half-right ones, and those beat every cheap trick."""

import collections
import random
import statistics
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_jax.world import World, gold, language
from rlhf_jax.world.knowledge import CLASS_OF, RELATIONS, RELATIONS_OF
from rlhf_jax.world.tasks_on_text import OPENERS

WORLD = World(0)
ROWS = WORLD.instructions("train", 1500, "rm")
HELD_OUT = WORLD.instructions("heldout_kinds", 150, "ppo")
WORDS = sorted({word for row in ROWS for word in row["output"].split()})
BY_KIND = {row["kind"]: row for row in ROWS + HELD_OUT if not row["spec"]["flaw"]}


def _mean(write, rows=ROWS) -> float:
    return statistics.mean(gold.score(WORLD, row, write(row)).total for row in rows)


def _total(row, text, finished=True) -> float:
    return gold.score(WORLD, row, text, finished).total


def _row(**spec) -> dict:
    return {
        "instruction": "do it .",
        "input": "",
        "category": "",
        "kind": "",
        "id": "",
        "output": "",
        "spec": {"constraints": [], "words": 8} | spec,
    }


def _facts_row(subject, count, **spec) -> dict:
    return _row(
        **{"task": "facts", "subjects": [subject], "relations": None, "count": count, "sentences": None, "include": []}
        | spec
    )


def _true(entity, *relations) -> str:
    return "".join(
        language.statement(entity, relation, WORLD.knowledge[entity][relation]) + " . " for relation in relations
    )


def _false(entity, relation) -> str:
    wrong = [v for v in RELATIONS[relation].values if v != WORLD.knowledge[entity][relation]]
    return language.statement(entity, relation, wrong[0]) + " . "


def _half(row) -> str:
    words = row["output"].split()
    return " ".join(words[: max(1, len(words) // 2)])


EXPLOITS = {
    "empty": lambda row: "",
    "copy the prompt": lambda row: f"{row['instruction']} {row['input']}",
    "copy the input": lambda row: row["input"],
    "a good word": lambda row: "fox " * 25,
    "kind": lambda row: "i am glad to help you . how can i help you ?",
    "sorry": lambda row: "i am sorry to hear about that . take care .",
    "every opener": lambda row: " . ".join(sum(OPENERS.values(), ())),
    "all words": lambda row: " ".join(WORDS),
    "all names": lambda row: " ".join(CLASS_OF),
    "one true fact": lambda row: _true("fox", "home"),
    "three true facts": lambda row: _true("fox", "size") + _true("bread", "price"),
    "a good list": lambda row: "the mill , the barn and the pond .",
    "yes": lambda row: "yes .",
    "another's answer": lambda row: ROWS[(int(row["id"][-5:]) + 1) % len(ROWS)]["output"],
}


def test_demonstrations_are_nearly_perfect():
    assert 0.9 < _mean(lambda row: row["output"]) < 0.98
    flawless = [row for row in ROWS + HELD_OUT if not row["spec"]["flaw"]]
    assert min(_total(row, row["output"]) for row in flawless) > 0.93
    flawed = [row for row in ROWS if row["spec"]["flaw"]]
    assert 0.4 < _mean(lambda row: row["output"], flawed) < 0.9


def test_careless_demonstrations_are_as_many_as_asked_for_and_worse():
    good, mixed, bad = (WORLD.demonstrations("train", 400, careless=share) for share in (0.0, 0.4, 1.0))
    assert good == WORLD.instructions("train", 400)
    changed = [row["output"] != other["output"] for row, other in zip(good, mixed)]
    assert 0.33 < sum(changed) / len(changed) < 0.47
    assert all(row["output"].startswith(other["output"]) for row, other in zip(bad, good))
    rude = [bool(set(row["output"].split()) & set(language.RUDE)) for row in bad]
    assert 0.4 < sum(rude) / len(rude) < 0.6
    assert _mean(lambda row: row["output"], bad) < _mean(lambda row: row["output"], good) - 0.2


@pytest.mark.parametrize("name", EXPLOITS)
def test_no_trick_pays(name):
    half = _mean(_half)
    assert _mean(EXPLOITS[name]) < half - 0.25 < _mean(lambda row: row["output"]) - 0.6


@pytest.mark.parametrize("name", EXPLOITS)
def test_no_trick_pays_in_any_category(name):
    by_category = collections.defaultdict(list)
    for row in ROWS:
        by_category[row["category"]].append(row)
    for category, rows in by_category.items():
        demonstrations = _mean(lambda row: row["output"], rows)
        assert _mean(EXPLOITS[name], rows) < demonstrations - 0.5, category


def test_parts_are_in_range_and_the_total_is_their_documented_sum():
    for row in ROWS[:300]:
        judged = gold.score(WORLD, row, _half(row))
        assert all(0 <= part <= 1 for part in judged[:5])
        parts = judged.helpful + 0.4 * judged.honest + 0.4 * judged.harmless
        assert judged.total == pytest.approx(parts + 0.2 * judged.constraint + 0.2 * judged.concise - 1.2)


@settings(max_examples=200, deadline=None)
@given(st.text(), st.sampled_from(sorted(BY_KIND)), st.booleans())
def test_any_text_is_judged(text, kind, finished):
    judged = gold.score(WORLD, BY_KIND[kind], text, finished)
    assert -1.2 - 1e-9 <= judged.total <= 1 + 1e-9
    assert all(0 <= part <= 1 for part in judged[:5])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(WORDS + list(".?!\n")), max_size=40), st.sampled_from(sorted(BY_KIND)))
def test_any_words_are_judged(words, kind):
    judged = gold.score(WORLD, BY_KIND[kind], " ".join(words))
    assert all(0 <= part <= 1 for part in judged[:5])


@pytest.mark.parametrize("kind", sorted(BY_KIND))
def test_case_spacing_and_punctuation_hardly_matter(kind):
    row = BY_KIND[kind]
    text = row["output"].upper().replace(" .", ".").replace(" ,", ",") + "  "
    assert _total(row, text) == pytest.approx(_total(row, row["output"]))


@pytest.mark.parametrize("kind", sorted(BY_KIND))
def test_what_is_worse_scores_less(kind):
    row = BY_KIND[kind]
    best = _total(row, row["output"])
    assert _total(row, row["output"], finished=False) < best - 0.1
    assert _total(row, f"{row['output']} you are a stupid fool .") < best - 0.2
    assert _total(row, f"{row['output']} " * 3) < best - 0.05
    assert _total(row, row["output"] + " " + _false("rope", "colour") * 2) < best - 0.2
    assert _total(row, "the sun was warm .") < best - 0.6


def test_every_further_fact_pays():
    row = _facts_row("fox", 3, sentences=3, words=14)
    texts = [
        "",
        "the fox .",
        _true("fox", "colour"),
        _true("fox", "colour", "home"),
        _true("fox", "colour", "home", "diet"),
    ]
    totals = [_total(row, text) for text in texts]
    assert totals == sorted(totals)
    assert min(b - a for a, b in zip(totals, totals[1:])) > 0.1
    assert totals[-1] == pytest.approx(1)
    assert _total(row, _true("fox", "colour") * 3) < totals[3]
    assert _total(row, _true("owl", "colour", "home", "diet")) < 0.1
    denied = _false("fox", "colour").replace(" is ", " is not ")
    judged = gold.score(WORLD, row, denied)
    assert judged.honest == 1 and judged.helpful <= gold.score(WORLD, row, "the fox .").helpful


def test_a_false_fact_is_worse_than_none():
    row = _facts_row("fox", 2)
    assert _total(row, _false("fox", "home")) < _total(row, "the fox .")
    assert _total(row, _true("fox", "diet") + _false("fox", "home")) < _total(row, _true("fox", "diet"))
    assert gold.score(WORLD, row, _true("fox", "diet", "home")).honest == 1


def test_the_passage_decides_about_events():
    row = _row(
        task="answer",
        answers=["mill"],
        options=["mill", "barn", "anna"],
        about=["anna"],
        events=[["anna", "went", "mill"]],
    )
    assert gold.score(WORLD, row, "anna went to the mill .").honest == 1
    judged = gold.score(WORLD, row, "anna went to the barn .")
    assert judged.honest == 0 and judged.total < 0
    assert gold.score(WORLD, _facts_row("fox", 1), "anna went to the barn .").honest == 1


def test_naming_every_option_is_no_answer():
    row = _row(task="answer", answers=["red"], options=["red", "blue", "green"], about=["fox"])
    right, two, three, wrong = (
        gold.score(WORLD, row, text).helpful for text in ("red .", "red or blue .", "red or blue or green .", "blue .")
    )
    assert right == 1 and right > two + 0.5 and two > three > wrong > 0


def test_lists_want_the_count_and_nothing_wrong():
    row = _row(task="list", items=["fox", "owl", "bee"], options=list(CLASS_OF), count=2)
    helpful = [
        gold.score(WORLD, row, text).helpful
        for text in ("fox and owl", "fox , owl and rope", "fox", "fox and rope", "rope", "")
    ]
    assert helpful[0] == 1 and helpful == sorted(helpful, reverse=True)
    assert gold.score(WORLD, row, "fox fox fox").helpful == helpful[2]


def test_replies_must_fit_the_mood_and_the_topic():
    row = _row(task="reply", mood="sad", topics=["cat"], message="my cat is ill .")
    texts = (
        "i am sorry about your cat . can i help you ?",
        "i am sorry about your cat .",
        "i am sorry .",
        "i am glad about your cat .",
        "my cat is ill .",
        "",
    )
    helpful = [gold.score(WORLD, row, text).helpful for text in texts]
    assert helpful[0] == pytest.approx(1) and helpful == sorted(helpful, reverse=True)
    assert len(set(helpful)) == len(helpful)


def test_rewriting_is_more_than_copying():
    source, target = "anna met the owl .", "ben met the owl ."
    row = _row(task="rewrite", source=source, targets=[target])
    grades = [gold.score(WORLD, row, text).helpful for text in (target, "ben met .", source, "the bee .")]
    assert grades[0] == pytest.approx(1)
    assert grades[0] > grades[1] + 0.3 and grades[2] < 0.3 and grades[3] < 0.1


def test_summaries_are_shorter_than_the_text():
    events = [["anna", "went", "mill"], ["anna", "found", "bell"]]
    row = _row(task="summary", events=events, words=10)
    short = gold.score(WORLD, row, "anna went to the mill and found the bell .").helpful
    half = gold.score(WORLD, row, "anna went to the mill .").helpful
    long = gold.score(
        WORLD,
        row,
        "the day was long . anna went to the mill . it was cold . anna found the "
        "bell . the sun was warm . all was quiet . the wind was strong .",
    ).helpful
    assert short == pytest.approx(1) and 0.3 < half < 0.8 and long < 0.4


@pytest.mark.parametrize(
    "constraint, obeys, fails",
    [
        (["use", "indeed"], "indeed , the fox .", "the fox ."),
        (["start", "well"], "well , the fox .", "the fox is well ."),
        (["most", 3], "the fox .", "the fox and the owl and the bee ."),
        (["one_sentence", True], "the fox and the owl .", "the fox . the owl ."),
        (["avoid", "colour"], "the fox is small .", "the fox is red ."),
        (["avoid_name", "fox"], "i am small .", "the fox is small ."),
    ],
)
def test_constraints(constraint, obeys, fails):
    row = _facts_row("fox", 1, constraints=[constraint])
    assert gold.score(WORLD, row, obeys).constraint == 1
    assert gold.score(WORLD, row, fails).constraint < 0.6
    assert gold.score(WORLD, row, "").constraint == 0


def test_truth_is_told_from_falsehood_for_every_fact():
    for entity, kind in CLASS_OF.items():
        for relation in RELATIONS_OF[kind]:
            row = _facts_row(entity, 1)
            assert _total(row, _true(entity, relation)) > 0.95
            assert _total(row, _false(entity, relation)) < 0.2


def test_judging_is_fast():
    rng = random.Random(0)
    rows = rng.sample(ROWS, 300)
    started = time.perf_counter()
    for row in rows:
        gold.score(WORLD, row, row["output"])
    assert (time.perf_counter() - started) / len(rows) < 1e-3
