"""The world: its text is the same in every process, its splits are apart, what it says is true."""

import collections
import json
import os
import random
import statistics
import subprocess
import sys

import pytest

from rlhf_jax.config import default_config
from rlhf_jax.data.template import Template
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.world import World, __main__, language
from rlhf_jax.world.corpus import WorldCorpus
from rlhf_jax.world.instructions import SHARES
from rlhf_jax.world.knowledge import CLASS_OF, NUMBERS, RELATIONS, RELATIONS_OF
from rlhf_jax.world.tasks import KINDS

_DIGEST = """
import hashlib, json
from rlhf_jax.world import World
world = World(3)
everything = [
    world.knowledge.rows(), world.toy.words, world.documents("train", 60),
    world.documents("valid", 20), world.instructions("train", 60, "rm"), world.skills(5),
]
print(hashlib.sha256(json.dumps(everything).encode()).hexdigest())
"""


@pytest.fixture(scope="module")
def world():
    return World(0)


def test_every_process_makes_the_same_world():
    digests = {
        subprocess.run(
            [sys.executable, "-c", _DIGEST],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_another_seed_is_another_world(world):
    other = World(1)
    assert world.knowledge.rows() != other.knowledge.rows()
    assert world.toy.words != other.toy.words
    assert not set(world.documents("train", 50)) & set(other.documents("train", 50))


def test_more_rows_begin_with_the_fewer(world):
    assert world.documents("train", 30)[:10] == world.documents("train", 10)
    assert world.instructions("valid", 30, "ppo")[:10] == world.instructions("valid", 10, "ppo")


def test_document_splits_are_apart(world):
    train, valid = world.documents("train", 4000), world.documents("valid", 500)
    assert not set(train) & set(valid)
    assert len(set(train)) > 3950
    # Chance alone would nearly do: the text itself must decide.
    assert all(language.bucket(text, 8) for text in train)
    assert not any(language.bucket(text, 8) for text in valid)


def test_documents_have_the_promised_size(world):
    texts = world.documents("train", 2000)
    words = [len(text.split()) for text in texts]
    assert 35 < statistics.mean(words) < 60
    assert len({word for text in texts for word in text.split()}) < 500
    rude = sum(any(word in language.RUDE for word in text.split()) for text in texts)
    assert 0.05 < rude / len(texts) < 0.15


def test_most_facts_in_documents_are_true(world):
    verdicts = [
        language.is_true(claim, world.knowledge)
        for text in world.documents("train", 1000)
        for claim in language.claims(language.read(text))
    ]
    verdicts = [verdict for verdict in verdicts if verdict is not None]
    assert 0.75 < statistics.mean(verdicts) < 0.97  # rumours are in there, and not many


def test_every_fact_is_told(world):
    told = collections.Counter(
        claim[:3] for text in world.documents("train", 4000) for claim in language.claims(language.read(text))
    )
    facts = [
        (name, relation, world.knowledge[name][relation])
        for name, kind in CLASS_OF.items()
        for relation in RELATIONS_OF[kind]
    ]
    assert min(told[fact] for fact in facts) > 10


def test_prompts_of_splits_and_purposes_are_apart(world):
    drawn = {
        (split, purpose): world.instructions(split, count, purpose)
        for split, purpose, count in (
            ("train", "sft", 600),
            ("train", "rm", 600),
            ("train", "ppo", 600),
            ("valid", "ppo", 200),
            ("test", "ppo", 200),
            ("heldout_kinds", "ppo", 100),
        )
    }
    prompts = [(row["instruction"], row["input"]) for rows in drawn.values() for row in rows]
    assert len(set(prompts)) == len(prompts)
    kinds = {key: {row["kind"] for row in rows} for key, rows in drawn.items()}
    held_out = {name for name, kind in KINDS.items() if kind.held_out}
    assert kinds["heldout_kinds", "ppo"] == held_out
    assert not kinds["train", "ppo"] & held_out
    assert kinds["train", "ppo"] == set(KINDS) - held_out


def test_prompts_of_some_kinds_are_theirs_in_equal_parts(world):
    rows = world.instructions("train", 300, kinds=("ad", "which", "title"))
    assert collections.Counter(row["kind"] for row in rows) == {"ad": 100, "which": 100, "title": 100}
    assert len({(row["instruction"], row["input"]) for row in rows}) == 300
    assert {row["category"] for row in rows} == {"generation", "open_qa", "summarization"}
    with pytest.raises(InputError, match="ad ran out"):
        world.instructions("train", 2000, kinds=("ad",))


def test_a_corpus_has_demonstrations_of_few_kinds_and_test_prompts_of_unseen_ones():
    def corpus(**changes):
        config = default_config()
        config.data.world.update(demonstrations=120, test_prompts=50, careless=0.5, **changes)
        return WorldCorpus(config.data.world, Template(), skill_items=0)

    known = corpus()
    kinds = {
        (count, seed): [row.row["kind"] for row in known.demonstrations_of_kinds(count, seed)]
        for count in (1, 3, 9, 27)
        for seed in (0, 1)
    }
    for (count, seed), own in kinds.items():
        assert len(own) == 120 and set(collections.Counter(own).values()) <= {120 // count, 120 // count + 1}
        assert len(set(own)) == count and (count == 27 or set(own) < set(kinds[27, seed]))
    assert set(kinds[1, 0]) < set(kinds[3, 0]) < set(kinds[9, 0]) != set(kinds[9, 1])
    held_out = {name for name, kind in KINDS.items() if kind.held_out}
    assert not held_out & {prompt.row["kind"] for prompt in known.prompts("test", "ppo")}
    unseen = corpus(test_kinds="unseen")
    assert collections.Counter(prompt.row["kind"] for prompt in unseen.prompts("test", "ppo")) == dict.fromkeys(
        held_out, 10
    )
    for split, purpose in (("train", "rm"), ("train", "ppo"), ("valid", "ppo")):
        assert unseen.prompts(split, purpose) == known.prompts(split, purpose)


def test_no_paraphrase_of_a_training_question_is_tested(world):
    def questions(split):
        return {
            (*row["spec"]["about"], *row["spec"]["answers"], len(row["spec"]["options"]))
            for purpose in ("sft", "ppo")
            for row in world.instructions(split, 400, purpose)
            if row["kind"] == "ask"
        }

    shared = questions("train") & questions("test")
    assert not shared, shared


def test_prompts_are_enough_and_in_the_proportions_of_table_1(world):
    for purpose, count in (("sft", 1500), ("rm", 3000), ("ppo", 3000)):
        rows = world.instructions("train", count, purpose)
        assert len({(row["instruction"], row["input"]) for row in rows}) == count
        shares = collections.Counter(row["category"] for row in rows)
        assert shares.keys() == SHARES.keys()
        for category, share in SHARES.items():
            assert abs(100 * shares[category] / count - share) < 0.5
    assert len({row["id"] for row in rows}) == count
    words = [len(f"{row['instruction']} {row['input']}".split()) for row in rows]
    assert max(words) <= 44
    assert statistics.median(words) < 0.9 * statistics.mean(words)  # skewed as in Table 9
    constrained = statistics.mean(bool(row["spec"]["constraints"]) for row in rows)
    flawed = statistics.mean(row["spec"]["flaw"] for row in rows)
    assert 0.2 < constrained < 0.35
    assert 0.09 < flawed < 0.16


def test_demonstrations_are_short_kind_and_true(world):
    rows = world.instructions("train", 600) + world.instructions("heldout_kinds", 100)
    for row in rows:
        words = row["output"].split()
        assert 1 <= len(words) <= 30
        assert not set(words) & set(language.RUDE)
        text = language.read(row["output"])
        for claim in language.claims(text, row["spec"].get("speaker")):
            events = row["spec"].get("events")
            assert language.is_true(claim, world.knowledge, events) is not False, row


def test_rows_are_plain_json(world):
    rows = world.instructions("train", 200)
    assert json.loads(json.dumps(rows)) == rows
    assert all(
        set(row) == {"instruction", "input", "output", "category", "kind", "id", "split", "spec"} for row in rows
    )


def test_unknown_or_exhausted_splits_are_refused(world):
    with pytest.raises(InputError, match="train, valid, not 'test'"):
        world.documents("test", 1)
    with pytest.raises(InputError, match="heldout_kinds"):
        world.instructions("dev", 1)
    with pytest.raises(InputError, match="sft, rm, ppo"):
        world.instructions("train", 1, "pretrain")
    with pytest.raises(InputError, match="fewer than 100000"):
        world.instructions("heldout_kinds", 100000)


def test_skills_are_solvable_and_held_out(world):
    texts = world.documents("train", 8000)
    text = "\n".join(texts)
    passages = [text.split("\n")[0] for text in texts if "\nquestion :" in text]
    assert passages and all(language.bucket(passage, 7) for passage in passages)
    skills = world.skills(100)
    assert set(skills) == {"closed_qa", "translation", "arithmetic"}
    for name, rows in skills.items():
        assert len({row["prompt"] for row in rows}) == 100
        for row in rows:
            assert len(row["prompt"].split()) <= 48
            assert 1 <= len(row["answer"].split()) <= 10
            asked = row["prompt"].split("\n")[0 if name == "closed_qa" else -1]
            if name == "translation":
                asked = row["prompt"].split("\n")[-2]
                english = asked.removeprefix("english : ")
                assert world.toy.translate(english) == row["answer"]
            if name == "arithmetic":
                left, sign, right, _ = asked.split()
                first, second = NUMBERS.index(left), NUMBERS.index(right)
                total = first + second if sign == "plus" else first - second
                assert total == NUMBERS.index(row["answer"])
            if name == "closed_qa":
                assert row["answer"] in asked.split()
            assert (f"{asked}\n" in text if name != "arithmetic" else asked in text) != row["held_out"]
        assert any(row["held_out"] for row in rows)


def test_documents_show_no_prompt_of_ppo_or_evaluation(world):
    asked = set()
    for text in world.documents("train", 3000):
        asked |= {line.removeprefix("request : ") for line in text.split("\n") if line.startswith("request : ")}
    assert len(asked) > 300
    for split in ("train", "valid", "test", "heldout_kinds"):
        rows = world.instructions(split, 200, "ppo")
        assert not asked & {f"{row['instruction']} {row['input']}".rstrip() for row in rows}


def test_the_toy_language_puts_the_verb_last_and_the_noun_first(world):
    words = world.toy.words
    assert len(set(words.values())) == len(words)
    expected = [words[word] for word in ("fox", "red", "owl", "sees")]
    assert world.toy.translate("the red fox sees the owl").split() == expected


@pytest.mark.parametrize(
    "text, expected",
    [
        ("The FOX is small and red, and eats corn.", ["fox size small", "fox colour red", "fox diet corn"]),
        ("the owl is big . it lives in the barn!", ["owl size big", "owl home barn"]),
        ("the colour of the fox is red", ["fox colour red"]),
        ("the bread goes with jam , comes from the mill", ["bread partner jam", "bread source mill"]),
        ("anna likes soup and ben likes cake", ["anna dish soup", "ben dish cake"]),
        ("anna and ben are singers . anna and ben like tea", ["anna dish tea", "ben dish tea"]),
        ("ben is a friend of the fox and wears a red hat", ["ben friend fox", "ben hat red"]),
        ("the rope is made of clay", ["rope material clay"]),
        ("anna went to the mill and found the bell", ["anna went mill", "anna found bell"]),
        ("is the fox red ? the fox ! red", []),
        ("red fox is small big", ["fox size small", "fox size big"]),
        ("i am red", []),
    ],
)
def test_reading_claims(text, expected):
    claims = language.claims(language.read(text))
    assert [" ".join(claim[:3]) for claim in claims] == expected


def test_a_denial_is_the_opposite(world):
    colour = world.knowledge["fox"]["colour"]
    wrong = next(value for value in RELATIONS["colour"].values if value != colour)
    for text, truth in (
        (f"the fox is {colour}", True),
        (f"the fox is not {colour}", False),
        (f"the fox is {wrong}", False),
        (f"the fox is not {wrong}", True),
    ):
        (claim,) = language.claims(language.read(text))
        assert language.is_true(claim, world.knowledge) is truth
    (claim,) = language.claims(language.read("anna never went to the mill"))
    assert language.is_true(claim, world.knowledge) is None
    assert language.is_true(claim, world.knowledge, [["anna", "went", "mill"]]) is False
    assert language.is_true(claim, world.knowledge, []) is True


def test_what_is_told_is_what_is_read(world):
    rng = random.Random(0)
    for _ in range(300):
        entity = rng.choice(sorted(CLASS_OF))
        facts = [
            (entity, relation, world.knowledge[entity][relation])
            for relation in rng.sample(RELATIONS_OF[CLASS_OF[entity]], 3)
        ]
        text = language.tell(rng, facts, rng.random() < 0.5)
        assert [claim[:3] for claim in language.claims(language.read(text))] == facts, text


def test_the_command_writes_every_file(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(__main__, "_DOCUMENTS", {"train": 20, "valid": 5})
    monkeypatch.setattr(__main__, "_INSTRUCTIONS", {("train", "sft"): 20})
    monkeypatch.setattr(__main__, "_SKILLS", 5)
    __main__.main([f"--out={tmp_path / 'a' / 'b'}"])
    rows = (tmp_path / "a" / "b" / "instructions.train.sft.jsonl").read_text().splitlines()
    assert [json.loads(row) for row in rows] == World(0).instructions("train", 20)
    assert len(list((tmp_path / "a" / "b").iterdir())) == 7
    assert "generation" in capsys.readouterr().out


def test_the_command_refuses_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert __main__.main([f"--out={tmp_path / 'file'}"]) == 2
    assert "--out" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_texts_for_the_tokenizer_hold_all_words_of_the_prompts(world):
    known = {word for text in world.texts_for_tokenizer() for word in text.split()}
    for split in ("train", "test", "heldout_kinds"):
        for row in world.instructions(split, 100, "ppo"):
            unknown = set(f"{row['instruction']} {row['input']} {row['output']}".split()) - known
            assert not unknown
