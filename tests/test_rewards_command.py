"""The command that measures reward models on files: its scores, its numbers, how it goes on, and what it refuses."""

import itertools
import json
import sys

import jax
import numpy as np
import pytest
import tiny

from rlhf_jax import hf, model, ppo
from rlhf_jax.data.record_files import read_rows
from rlhf_jax.data.records import Ranking
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.evaluate.rewards import __main__ as command
from rlhf_jax.evaluate.rewards import models, scoring
from rlhf_jax.evaluate.rewards.scoring import Column

pytestmark = pytest.mark.usefixtures("one_device")
BYTES = Tokenizer.train([], 258)
CONFIG = tiny.llama(max_length=40, vocab_size=BYTES.vocab_size)
ROWS = [
    {"prompt": "what?", "chosen": " yes, all", "rejected": " no", "group": "b"},
    {"prompt": "what?", "chosen": " yes", "rejected": " not at all", "group": "a"},
    {"prompt": "who", "completions": [" me", " you two", " us", " them"], "ranks": [2, 1, 3, 3], "group": "a"},
    {"prompt": "how", "chosen": " so", "rejected": " long" * 20},
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def save(folder, seed, head):
    folder.mkdir()
    params = tiny.params_of(CONFIG, seed, head)
    hf.save(folder, CONFIG, params, head=head)
    BYTES.save_to(folder)
    return params


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "data.jsonl", ROWS)


def ids(row, k, end):
    return BYTES.encode_prompts([row.prompt])[0], BYTES.encode(row.completions[k], continues=True) + end


def run(data, *more):
    out = data.parent / "found.json"
    assert command.main([f"--data={data}", f"--out={out}", *more]) == 0
    return json.loads(out.read_text())


def hand_made():
    rankings = [
        Ranking(prompt, tuple("abcd"[: len(ranks)]), ranks, None, group, None, None, row)
        for prompt, ranks, group, row in (
            ("p", (1, 2), "x", {}),
            ("p", (2, 1), "y", {}),
            ("q", (2, 1, 3, 3), "y", {}),
            ("r", (1, 2, 2, 2), "x", {}),
            ("s", (1, 2), None, {"id": "ref:1"}),
            ("t", (1, 1, 2), None, {"id": "tied:1"}),
        )
    ]
    random = np.random.default_rng(3)
    lengths = random.integers(1, 30, (6, 4))
    return Column("A", list(range(6)), rankings, random.normal(size=(6, 4)), lengths)


def pairs(column):
    for n, ranking in enumerate(column.rankings):
        for i, j in itertools.permutations(range(len(ranking.ranks)), 2):
            if ranking.ranks[i] < ranking.ranks[j]:
                yield ranking, column.scores[n, i] - column.scores[n, j], column.lengths[n, i], column.lengths[n, j]


def test_the_numbers_are_those_of_loops_over_the_pairs():
    column = hand_made()
    found = scoring.figures(column)
    margins = np.array([margin for _, margin, _, _ in pairs(column)])
    assert found["pairs"] == len(margins) == 1 + 1 + 5 + 3 + 1 + 2 and found["prompts"] == 5
    assert found["accuracy"]["value"] == pytest.approx((margins > 0).mean())
    assert found["log_loss"] == pytest.approx(np.log1p(np.exp(-margins)).mean())
    groups = {}
    for ranking, margin, _, _ in pairs(column):
        groups.setdefault(ranking.group or "", []).append(margin > 0)
    assert found["by_group"] == pytest.approx({name: np.mean(values) for name, values in groups.items()})
    assert found["mean_over_groups"] == pytest.approx(np.mean([np.mean(values) for values in groups.values()]))
    longer = [(margin > 0) == (better > worse) for _, margin, better, worse in pairs(column) if better != worse]
    assert found["length_probe"]["longer_scores_higher"]["value"] == pytest.approx(np.mean(longer))
    best = [np.argmax(column.scores[2]) == 1, np.argmax(column.scores[3]) == 0]
    assert found["best_of_4"]["value"] == pytest.approx(np.mean(best))
    assert found["ties"]["reference_accuracy"] == float(column.scores[4, 0] > column.scores[4, 1])
    assert found["ties"]["tied_accuracy"] == float(column.scores[5, :2].min() > column.scores[5, 2])


def test_two_columns_are_compared_over_the_pairs_that_both_have():
    first = hand_made()
    kept = [0, 2, 3]
    second = Column("B", kept, [first.rankings[n] for n in kept], -first.scores[kept], first.lengths[kept])
    inside = first._replace(rankings=second.rankings, scores=first.scores[kept], lengths=first.lengths[kept])
    right = np.array([margin > 0 for _, margin, _, _ in pairs(inside)], float)
    assert scoring.paired(first, second).value == pytest.approx((right - (1 - right)).mean())


def test_rankings_of_one_prompt_by_several_labelers_make_no_interval_narrower():
    rng = np.random.default_rng(0)
    rankings = [Ranking(f"p{n}", tuple("abcd"), (1, 2, 3, 4), None, None, None, None, {}) for n in range(30)]
    scores, other, lengths = rng.normal(size=(30, 4)), rng.normal(size=(30, 4)), rng.integers(1, 30, (30, 4))
    once, twice = (
        [
            Column(
                name, list(range(30 * times)), times * rankings, np.tile(own, (times, 1)), np.tile(lengths, (times, 1))
            )
            for name, own in (("A", scores), ("B", other))
        ]
        for times in (1, 2)
    )
    assert scoring.paired(*twice) == pytest.approx(scoring.paired(*once))
    assert scoring.figures(twice[0])["best_of_4"] == pytest.approx(scoring.figures(once[0])["best_of_4"])


def test_a_reward_model_scores_the_last_token_of_each_row_and_leaves_out_what_is_too_long(data, capsys):
    params = save(data.parent / "reward", 0, "scalar")
    kept = data.parent / "scores.jsonl"
    found = run(data, f"--reward={data.parent}/reward", f"--rows={kept}")
    rankings, _ = read_rows(data, "rankings")
    scores = {}
    for row in (json.loads(line)["answer"] for line in kept.read_text().splitlines()):
        scores[row["prompt"], row["completion"]] = row["score"]
    assert len(scores) == 8
    for ranking in rankings[:3]:
        for k, text in enumerate(ranking.completions):
            context, rest = ids(ranking, k, [BYTES.eos_id])
            tokens = np.array([context + rest])
            truth = float(ppo.sequence_scores(CONFIG, params, tokens, np.ones(tokens.shape, bool))[0])
            assert scores[ranking.prompt, text] == pytest.approx(truth, abs=1e-4)
    assert found["left_out"] == {f"{data.parent}/reward": 1}
    printed = capsys.readouterr()
    assert (
        "1 of 4 rows are left out" in printed.err and "best of 4" in printed.out and "mean over groups" in printed.out
    )


def test_a_language_model_scores_by_the_log_probability_of_the_text(data):
    params = save(data.parent / "lm", 1, "lm")
    save(data.parent / "reward", 0, "scalar")
    kept = data.parent / "scores.jsonl"
    found = run(data, f"--model={data.parent}/lm", f"--reward={data.parent}/reward", f"--rows={kept}")
    rankings, _ = read_rows(data, "rankings")
    context, rest = ids(rankings[0], 0, [])
    tokens = np.array([context + rest])
    hidden = model.masked_hidden_states(CONFIG, params, tokens, np.ones(tokens.shape, bool))
    logprobs = jax.nn.log_softmax(model.lm_logits(CONFIG, params, hidden)[0])
    truth = sum(float(logprobs[len(context) + n - 1, token]) for n, token in enumerate(rest))
    rows = [json.loads(line)["answer"] for line in kept.read_text().splitlines()]
    row = next(row for row in rows if row["completion"] == " yes, all" and "total" in row)
    assert row["total"] == pytest.approx(truth, abs=1e-3) and row["mean"] == pytest.approx(truth / len(rest), abs=1e-4)
    assert len(found["models"]) == 3 and len(found["differences"]) == 3


def test_a_stopped_command_goes_on_from_the_scores_that_it_has(data, monkeypatch):
    save(data.parent / "reward", 0, "scalar")
    asked = [f"--reward={data.parent}/reward"]
    whole = run(data, *asked)
    kept = data.parent / "scores.jsonl"
    run(data, *asked, f"--rows={kept}")
    lines = kept.read_bytes().splitlines(keepends=True)
    kept.write_bytes(b"".join(lines[:5]) + lines[5][:20])
    scored, usual = [], models.Judge.__call__

    def counted(judge, rows):
        scored.extend(rows)
        return usual(judge, rows)

    monkeypatch.setattr(models.Judge, "__call__", counted)
    assert run(data, *asked, f"--rows={kept}") == whole
    assert len(scored) == 3 and len(kept.read_bytes().splitlines()) == 8


@pytest.mark.parametrize(
    "asked, said",
    [
        (["--reward=nowhere"], "is no reward model"),
        (["--reward=lm"], "name it with --model"),
        (["--model=reward"], "name it with --reward"),
        (["--reward=reward", "--data=prompts.jsonl"], "prompts.jsonl:1: "),
        (["--reward=reward", "--data=tied.jsonl"], "no row prefers"),
        (["--reward=reward", "--data=long.jsonl"], "none of the 1 rows fits"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_sentence(data, monkeypatch, capsys, asked, said):
    monkeypatch.chdir(data.parent)
    save(data.parent / "reward", 0, "scalar")
    save(data.parent / "lm", 0, "lm")
    write(data.parent / "prompts.jsonl", [{"prompt": "a"}])
    write(data.parent / "tied.jsonl", [{"prompt": "a", "completions": ["b", "c"], "ranks": [1, 1]}])
    write(data.parent / "long.jsonl", ROWS[3:])
    assert command.main([f"--data={data}", "--out=out.json", *asked]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
    assert not (data.parent / "out.json").exists()


JUDGES = """
def near(texts, prompts, rows, size=0):
    CALLS.append((texts, prompts, rows))
    return [-abs(len(text.split()) - size) for text in texts]
CALLS = []
"""


def test_functions_score_beside_models_as_a_config_names_them(data, monkeypatch, capsys):
    """Texts, prompts and rows are those of the file; the numbers are those of loops; --rows keeps the scores."""
    monkeypatch.chdir(data.parent)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(data.parent))])
    (data.parent / "told.py").write_text(JUDGES)
    save(data.parent / "reward", 0, "scalar")
    rows = [row | {"size": n} for n, row in enumerate(ROWS)]
    write(data, rows)
    found = run(data, "--reward=two=told:near(size=2), reward, told:near", "--rows=scores.jsonl")
    assert found["models"].keys() == found["left_out"].keys() == {"two", "reward", "near"}
    assert found["left_out"] == {"two": 0, "reward": 1, "near": 0}
    calls = sys.modules["told"].CALLS
    assert len(calls) == 2  # a call for all completions, and not one for each
    texts, prompts, given = calls[0]
    assert texts[:2] == [" yes, all", " no"] and prompts[:2] == ["what?"] * 2 and given[:2] == [rows[0]] * 2
    pairs = [("yes, all", "no"), ("yes", "not at all"), ("you two", "me"), ("you two", "us"), ("you two", "them")]
    pairs += [("me", "us"), ("me", "them"), ("so", "long " * 20)]
    for name, size in {"two": 2, "near": 0}.items():
        scores = [[-abs(len(text.split()) - size) for text in pair] for pair in pairs]
        right = np.mean([(better > worse) + (better == worse) / 2 for better, worse in scores])
        assert found["models"][name]["accuracy"]["value"] == pytest.approx(right), name
    kept = [json.loads(line)["answer"] for line in (data.parent / "scores.jsonl").read_text().splitlines()]
    assert {"model": "two", "prompt": "how", "completion": " so", "words": 1, "score": -1.0} in kept
    again = run(data, "--reward=two=told:near(size=2), reward, told:near", "--rows=scores.jsonl")
    assert again == found and len(calls) == 2
    # Another version of the file is another judge; turns of a chat are written plainly.
    (data.parent / "told.py").write_text(JUDGES + "# changed\n")
    del sys.modules["told"]
    run(data, "--reward=told:near", "--rows=scores.jsonl")
    assert len(calls := sys.modules["told"].CALLS) == 1
    chat = {"messages": [{"role": "user", "content": "hi"}], "chosen": "a b", "rejected": "c"}
    write(data, [chat | {"size": 4}, chat | {"size": 5}])
    run(data, "--reward=told:near", "--rows=scores.jsonl")
    texts, prompts, given = calls[1]
    assert texts == [" a b", " c"] * 2 and prompts[0] == "user: hi\nassistant:"
    assert [row["size"] for row in given] == [4, 4, 5, 5]  # a function may read the rows, so equal texts are not one
    del sys.modules["told"]
    capsys.readouterr()
    for asked, said in {
        "told:ner": "has no function ner; did you mean near?",
        "told:near(2)": "each option in (2) needs a name",
        "told:near, told:near(size=1)": "two are called 'near'",
        "rlhf_jax.rewards:answer": "the row has no answer",
    }.items():
        assert command.main([f"--data={data}", f"--reward={asked}"]) == 2
        assert said in (error := capsys.readouterr().err) and "--reward" in error and len(error.splitlines()) == 1
