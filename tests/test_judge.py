"""The judge command: what it trains on, what it says of answers, and that its numbers are those of its form and data."""

import json
import lzma
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from rlhf_jax import checkpoint, sharding
from rlhf_jax.data.records import Demonstration
from rlhf_jax.data.text_batches import batch_demonstrations
from rlhf_jax.evaluate.answers import row_losses
from rlhf_jax.evaluate.completions import Completion
from rlhf_jax.evaluate.judge import __main__ as command
from rlhf_jax.evaluate.judge import form, labelled, scoring, training
from rlhf_jax.evaluate.judge.labelled import Answer
from rlhf_jax.evaluate.judge.quality import quality, words_say_yes
from rlhf_jax.language_model import open_model
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.progress import Interrupt

pytestmark = pytest.mark.usefixtures("one_device")
ENDS = {True: ("a happy dog", "the happy girl"), False: ("a sad dog", "the sad girl")}
NAMES = [f"{first} and {second}" for first in ("tom", "lily", "sam", "ben", "mia", "zoe") for second in ("max", "sue")]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def stories(shared_data):
    return shared_data / "stories260K"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Answers to 60 questions, of which a word decides whether they are true."""
    rows = [
        {"question": f"{name}, what did number {n} see?", "answer": f"{name} saw {end}", "label": label}
        for n, name in enumerate(NAMES * 5)
        for label, ends in ENDS.items()
        for end in ends
    ]
    return write(tmp_path_factory.mktemp("data") / "labelled.jsonl", rows)


def arguments(stories, data, out, *more):
    quick = "--epochs=2", "--batch_size=32", "--learning_rate=3e-3"
    return [f"--model={stories}", f"--data={data}", f"--out={out}", *quick, *more]


@pytest.fixture(scope="module")
def judge(stories, data, tmp_path_factory, one_device):
    """A judge that stories260K became."""
    out = tmp_path_factory.mktemp("judges") / "truth"
    assert command.main(arguments(stories, data, out)) == 0
    return out


# --- Training --------------------------------------------------------------------------------------


def test_a_judge_learns_and_says_how_well_on_questions_that_it_has_not_seen(judge, data):
    facts = json.loads((judge / "judge.json").read_text())
    assert facts["note"] == "a judge trained here on labelled.jsonl, not the paper's GPT-3 judge"
    assert facts["template"] == "Q: {question}\nA: {answer}\nTrue:" and facts["words"] == [" yes", " no"]
    test = facts["test"]
    assert test["accuracy"]["value"] > 0.9 and test["accuracy"]["low"] > test["majority"]["value"]
    assert facts["data"] | {"checksum": ""} == {
        "file": "labelled.jsonl",
        "checksum": "",
        "rows": 240,
        "answers": 240,
        "questions": 60,
        "contradictory": 0,
    }
    parts = labelled.divide(labelled.read(data)[0])
    assert facts["parts"] == {name: {"questions": len(own) // 4, "answers": len(own)} for name, own in parts.items()}
    assert not judge.with_name("truth.training").exists()


@pytest.mark.slow
def test_a_training_that_was_stopped_gives_the_bits_of_one_that_was_not(judge, stories, data, tmp_path, monkeypatch):
    calls = iter(range(100))
    monkeypatch.setattr(Interrupt, "asked", lambda self: 15 if next(calls) == 6 else 0)
    out = tmp_path / "truth"
    assert command.main(arguments(stories, data, out)) == 130
    assert not out.exists() and (tmp_path / "truth.training" / "judge" / "checkpoints").is_dir()
    assert command.main(arguments(stories, data, out, "--seed=1")) == 2  # not the training that was begun
    assert command.main(arguments(stories, data, out)) == 0
    ours, theirs = (safetensors.numpy.load_file(folder / "model.safetensors") for folder in (out, judge))
    assert ours.keys() == theirs.keys() and all((ours[name] == theirs[name]).all() for name in ours)
    assert json.loads((out / "judge.json").read_text()) == json.loads((judge / "judge.json").read_text())


@pytest.mark.slow
def test_a_judge_is_the_same_on_a_mesh_of_eight_devices(judge, stories, data, tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "make_mesh", sharding.make_mesh.func)
    assert command.main(arguments(stories, data, tmp_path / "truth", "--tensor=2", "--microbatches=2")) == 0
    ours, theirs = (json.loads((folder / "judge.json").read_text()) for folder in (tmp_path / "truth", judge))
    assert ours["training"]["choose_log_loss"] == pytest.approx(theirs["training"]["choose_log_loss"], abs=1e-3)
    assert ours["test"]["log_loss"] == pytest.approx(theirs["test"]["log_loss"], abs=1e-3)


def test_the_best_weights_are_kept_also_where_a_resume_repeats_steps(tmp_path):
    losses = {1: 3.0, 2: 1.0, 3: 2.0}
    best = training.Best(tmp_path)
    for step in (1, 2, 3, 1, 2, 3):
        best.offer({"w": jnp.full(2, step, jnp.float32)}, step, losses[step])
        kept = checkpoint.load_params(tmp_path / "params", {"w": jax.ShapeDtypeStruct((2,), jnp.float32)})
        assert best.facts()["choose_log_loss"] == losses[best.facts()["kept_step"]]
        assert kept["w"].tolist() == [best.facts()["kept_step"]] * 2
    assert best.facts() == {"kept_step": 2, "choose_log_loss": 1.0}


# --- What is said of an answer ----------------------------------------------------------------------


@pytest.mark.parametrize("length", [64, 24])
def test_the_probability_is_that_of_the_two_words_after_the_text(stories, length):
    """Against a row of its own for each word; a text that is too long loses its beginning."""
    model = open_model(str(stories))
    answers = [("what is it?", "a cat"), ("what is it?", "a very big red dog and his ball"), ("who are you?", "")]
    found = scoring.Judge(model, form.KINDS["truth"], length).probabilities(answers)
    texts = [f"Q: {question}\nA: {answer}\nTrue:" for question, answer in answers]
    losses = []
    for word in (" yes", " no"):
        room = length - 1 - max(len(model.tokenizer.encode(word, continues=True)) for word in (" yes", " no"))
        rows, report = batch_demonstrations(
            [Demonstration(text, word, {}) for text in texts], model.tokenizer, length, room, "cut_left"
        )
        assert (report.prompts_cut > 0) == (length == 24)
        with jax.set_mesh(model.mesh):
            batch = rows.replace(loss_mask=np.where(rows.tokens == model.tokenizer.eos_id, 0, rows.loss_mask))
            losses.append(np.asarray(row_losses(model.config, model.params, batch)[0], np.float64))
    assert found == pytest.approx(1 / (1 + np.exp(losses[0] - losses[1])), abs=1e-4)
    assert np.ptp(found) > 0.01


def test_only_the_verdict_is_learned(stories):
    tokenizer = open_model(str(stories)).tokenizer
    batch, _ = form.batch(["Q: a\nA: b\nTrue:", "Q: a\nA: b\nTrue:"], [True, False], tokenizer, 40)
    for row, word in enumerate((" yes", " no")):
        targets = batch.tokens[row][batch.loss_mask[row] > 0]
        assert targets.tolist() == tokenizer.encode(word, continues=True)


def test_completions_get_fields_and_both_judges_a_share_of_both(judge, tmp_path, capsys):
    info = shutil.copytree(judge, tmp_path / "info")
    write(info / "judge.json", [json.loads((judge / "judge.json").read_text()) | {"kind": "info"}])
    rows = [
        {"prompt": "Q: hi?\nA: hi\n\nQ: what did tom see?\nA:", "completion": " tom saw a happy dog"},
        {"question": "what did lily see?", "answer": "lily saw a sad dog", "n": 1},
        {"doc": {"question": "what did sam see?"}, "resps": [["sam saw the happy girl\n"]], "filtered_resps": ["sad"]},
    ]
    scored, out = write(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl"
    capsys.readouterr()
    asked = [f"--judge={judge}", f"--judge={info}", f"--score={scored}", f"--out={out}"]
    assert command.main(asked) == 0
    said, found = capsys.readouterr().out, read(out)
    assert [set(row) - {"true", "info"} for row in found] == [set(row) for row in rows]
    model = scoring.open_judge(str(judge), scoring.read_facts(str(judge)))
    pairs = [
        ("what did tom see?", "tom saw a happy dog"),
        ("what did lily see?", "lily saw a sad dog"),
        ("what did sam see?", "sad"),
    ]
    assert [row["true"] for row in found] == pytest.approx(model.probabilities(pairs), abs=1e-5)
    assert found[0]["true"] > 0.5 > found[1]["true"]
    info_model = scoring.open_judge(str(info), scoring.read_facts(str(info)))
    assert [row["info"] for row in found] == pytest.approx(info_model.probabilities(pairs), abs=1e-5)
    assert [row["info"] for row in found] != [
        row["true"] for row in found
    ]  # the one reads "Helpful:", the other "True:"
    both = np.mean([row["true"] > 0.5 and row["info"] > 0.5 for row in found])
    assert f"true and info    {both:.3f} [" in said and "not the paper's GPT-3 judge" in said


def test_what_is_judged_already_is_not_judged_again(judge, tmp_path, monkeypatch):
    rows = [{"question": f"what did {name} see?", "answer": "a happy dog"} for name in ("tom", "lily", "tom")]
    scored, out = write(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl"
    asked = [f"--judge={judge}", f"--score={scored}", f"--out={out}"]
    probabilities, seen = scoring.Judge.probabilities, []

    def count(self, answers, interrupt=None):
        seen.extend(answers)
        return probabilities(self, answers)

    monkeypatch.setattr(scoring.Judge, "probabilities", count)
    assert command.main(asked) == 0
    first = out.read_text()
    write(scored, [*rows, {"question": "who?", "answer": "me"}])
    assert command.main(asked) == 0
    assert seen == [("what did lily see?", "a happy dog"), ("what did tom see?", "a happy dog"), ("who?", "me")]
    assert out.read_text().startswith(first)


# --- Labelled answers -------------------------------------------------------------------------------


def test_three_forms_of_rows_are_read_each_answer_once(tmp_path):
    rows = [
        {"question": "Who?", "answer": "me", "label": "yes"},
        {"prompt": "Q: a?\nA: b\n\nQ: Who?\nA:", "chosen": " me", "rejected": " you"},
        {"prompt": "Q: Who?\nA: she\nTrue:", "completion": " no"},
        {"prompt": "Q: Who?\nA: he\nTrue:", "completion": " yes"},
        {"question": "Who?", "answer": "he", "label": 0},
    ]
    found, report = labelled.read(write(tmp_path / "rows.jsonl", rows))
    assert found == [Answer("Who?", "me", True), Answer("Who?", "you", False), Answer("Who?", "she", False)]
    assert report == (5, 3, 1, 1)


def test_no_question_is_in_two_parts_and_similar_ones_stay_together(shared_data):
    answers, report = labelled.read(shared_data / "pref_truthfulqa_judge.jsonl.xz")
    assert report.rows == 24000 and report.questions == 600
    rows = [json.loads(line) for line in lzma.open(shared_data / "pref_truthfulqa_judge.jsonl.xz")]
    labels = {(row["prompt"], row[name].strip(), name) for row in rows for name in ("chosen", "rejected")}
    assert report.answers + 2 * report.contradictory == len(labels)
    parts = labelled.divide(answers, per_question=4)
    questions = {name: {one.question for one in own} for name, own in parts.items()}
    assert sum(map(len, questions.values())) == 600 == len(set.union(*questions.values()))
    assert 0.6 < len(questions["train"]) / 600 < 0.8 and 0.14 < len(questions["test"]) / 600 < 0.26
    assert max(sum(one.question == question for one in answers) for question in questions["test"]) > 4
    assert all(sum(one.question == question for one in parts["test"]) <= 4 for question in questions["test"])
    # A part does not depend on the other questions of a file.
    fewer = labelled.divide([one for one in answers if "What" in one.question])
    assert {one.question for one in fewer["test"]} <= questions["test"] | {one.question for one in fewer["train"]}
    [spain] = [name for name, own in questions.items() if "What are some books that are still banned in Spain?" in own]
    similar = {question for one in questions.values() for question in one if question.startswith("What are some books")}
    assert len(similar) > 1 and similar & questions[spain]


@pytest.mark.parametrize(
    "row, said",
    [
        ({"question": "Who?", "answer": "me", "label": "maybe"}, "rows.jsonl:1: field 'label' is 'maybe', and must be"),
        ({"question": "Who?", "label": 1}, "rows.jsonl:1: field 'answer' is missing, and must be a text"),
        ({"prompt": "Who?", "chosen": "me"}, "rows.jsonl:1: field 'rejected' is missing"),
        ({"prompt": "Who?", "completion": " yes"}, "a prompt with a completion is 'Q: "),
        ({"text": "Who?"}, "rows.jsonl:1: fields text; a labelled answer has"),
    ],
)
def test_a_bad_row_is_one_sentence(tmp_path, stories, capsys, row, said):
    path = write(tmp_path / "rows.jsonl", [row])
    assert command.main(arguments(stories, path, tmp_path / "out")) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.glob("out*"))


def test_too_few_questions_or_labels_are_one_sentence():
    with pytest.raises(InputError, match=r"none of the 1 questions falls into the part to"):
        labelled.divide([Answer("Who?", "me", True), Answer("Who?", "you", False)])
    with pytest.raises(InputError, match="all answers to train on have one label"):
        labelled.divide([Answer(f"Who is number {n}?", "me", True) for n in range(60)])


# --- Quality ----------------------------------------------------------------------------------------


def test_the_quality_is_that_of_counts():
    answers = [Answer(f"q{n % 20}", f"{'red' if n % 3 else 'blue'} {n}", bool(n % 3)) for n in range(60)]
    rng = np.random.default_rng(0)
    stated = np.clip(np.array([one.label for one in answers]) * 0.4 + rng.uniform(0, 0.6, 60), 0.01, 0.99)
    train = [Answer(f"other {n}", f"{'red' if n % 2 else 'blue'} {n}", bool(n % 2)) for n in range(31)]
    found = quality(stated, answers, train)
    labels = np.array([one.label for one in answers])
    right = (stated > 0.5) == labels
    assert found.accuracy.value == pytest.approx(right.mean())
    assert found.of_yes.value == pytest.approx(right[labels].mean())
    assert found.of_no.value == pytest.approx(right[~labels].mean())
    assert found.majority.value == pytest.approx((~labels).mean())  # 16 of 31 are labelled no
    assert found.bag_of_words.value == 1 and found.better_than_words.value == pytest.approx(right.mean() - 1)
    assert found.log_loss == pytest.approx(-np.log(np.where(labels, stated, 1 - stated)).mean())
    json.dumps(found.to_json(), allow_nan=False)


def test_answers_to_one_question_make_no_interval_narrower():
    rng = np.random.default_rng(0)
    answers = [Answer(f"q{n}", f"{'red' if n % 3 else 'blue'} {n}", bool(n % 3)) for n in range(60)]
    train = [Answer(f"other {n}", f"{'red' if n % 2 else 'blue'} {n}", bool(n % 2)) for n in range(31)]
    stated = rng.uniform(size=60)
    once, twice = quality(stated, answers, train), quality(np.tile(stated, 2), 2 * answers, train)
    for name in ("accuracy", "of_yes", "of_no", "majority", "better_than_words"):
        assert getattr(twice, name) == pytest.approx(getattr(once, name)), name
    rows = [Completion("me", f"Who is {n}?", {}, {}, f"file:{n}") for n in range(60)]
    shares = scoring.shares
    assert shares({"true": np.tile(stated, 2)}, 2 * rows) == {
        "true": pytest.approx(shares({"true": stated}, rows)["true"])
    }


def test_the_words_of_answers_have_an_intercept():
    """Answers of unknown words get the label that is more common."""
    for label in (True, False):
        train = [Answer(f"q{n}", f"word{n}", label if n % 4 else not label) for n in range(40)]
        assert words_say_yes(train, [Answer("q", "another", True)]).tolist() == [label]


# --- Bad input --------------------------------------------------------------------------------------


def test_flags_and_folders_that_do_not_go_together(judge, stories, data, tmp_path, capsys):
    with pytest.raises(SystemExit):
        command.main([f"--model={stories}", f"--out={tmp_path}/out"])
    assert "--model and --data" in capsys.readouterr().err
    assert command.main(arguments(stories, data, judge)) == 2
    assert "exists already" in capsys.readouterr().err
    assert command.main(arguments(tmp_path, data, tmp_path / "out")) == 2
    assert "has no config.json" in capsys.readouterr().err and not list(tmp_path.iterdir())
    rows = write(tmp_path / "rows.jsonl", [{"question": "Who?", "answer": "me", "true": 1}])
    asked = [f"--score={rows}", f"--out={tmp_path}/out.jsonl"]
    assert command.main([f"--judge={stories}", *asked]) == 2
    assert "has no judge.json: it is no judge that this command trained" in capsys.readouterr().err
    assert command.main([f"--judge={judge}", *asked]) == 2
    assert "rows.jsonl:1: the field 'true' is there already" in capsys.readouterr().err
    write(rows, [{"question": "Who?", "answer": "me"}])
    assert command.main([f"--judge={judge}", f"--judge={judge}", *asked]) == 2
    assert "is a second judge of truth" in capsys.readouterr().err
