"""The statistics of a dataset: counted by hand, by plain loops, and on a real file."""

import itertools
import json
import random
import statistics

import numpy as np
import pytest
import released_tokenizers as released

from rlhf_jax.data import describe
from rlhf_jax.data.describe.__main__ import main, open_data, reader
from rlhf_jax.data.fitting import holding
from rlhf_jax.data.records import Ranking
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.runtime.files import read_json


def ranking(prompt, completions, ranks, labeler=None):
    return Ranking(prompt, tuple(completions), tuple(ranks), labeler, None, None, None, {})


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_lengths_are_pythons_statistics():
    values = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
    facts = describe.length_facts(np.array(values))
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    percentiles = statistics.quantiles(values, n=100, method="inclusive")
    assert facts == {
        "count": 11,
        "mean": pytest.approx(statistics.mean(values)),
        "sd": pytest.approx(statistics.stdev(values)),
        "min": 1,
        "quartile_1": low,
        "median": middle,
        "quartile_3": high,
        "quantile_95": pytest.approx(percentiles[94]),
        "quantile_99": pytest.approx(percentiles[98]),
        "max": 9,
    }


def test_pairs_ties_and_biases_by_hand():
    facts = describe.ranking_facts(
        [
            ranking("p", ["a", "bb", "ccc"], [3, 2, 1], "x"),  # three pairs, the longer and later wins
            ranking("q", ["a", "bb", "cc", "d"], [1, 2, 2, 4], "y"),  # one tie; of 5, the longer wins 2, one is as long
            ranking("r", ["a", "b"], [1, 1], "x"),
        ]
    )
    assert (facts["rankings"], facts["pairs"], facts["tied_pairs"], facts["all_tied"]) == (3, 10, 2, 1)
    assert facts["completions"] == {2: 1, 3: 1, 4: 1} and facts["labelers"] == {"x": 2, "y": 1}
    # q: a>bb a>cc a>d bb>d cc>d
    assert facts["longer_preferred"]["value"] == pytest.approx((3 + 0 + 0 + 0.5 + 1 + 1) / 8)
    assert facts["earlier_preferred"]["value"] == pytest.approx(5 / 8)
    assert facts["agreement"] is None


def test_agreement_is_that_of_a_plain_loop_over_pairs_of_judgements():
    rng = random.Random(0)
    rows = []
    for prompt in range(30):
        for labeler in "abc"[: rng.randint(1, 3)]:
            rows.append(ranking(f"p{prompt}", ["x", "y", "z"], [rng.randint(1, 3) for _ in range(3)], labeler))
    same = total = 0
    for first, second in itertools.combinations(rows, 2):
        if first.prompt == second.prompt:
            for i, j in itertools.combinations(range(3), 2):
                a, b = (np.sign(row.ranks[i] - row.ranks[j]) for row in (first, second))
                if a and b:
                    same += a == b
                    total += 1
    found = describe.agreement(rows)
    assert found["comparisons"] == total and found["value"] == pytest.approx(same / total)
    assert found["low"] < found["value"] < found["high"]


def test_agreement_finds_completions_wherever_they_stand_and_counts_a_labeler_once():
    rows = [
        ranking("p", ["x", "y"], [1, 2], "a"),
        ranking("p", ["y", "x"], [2, 1], "b"),
        ranking("p", ["x", "y"], [2, 1], "a"),
        ranking("q", ["x", "y"], [2, 1], "b"),
    ]
    assert describe.agreement(rows) | {"low": 1, "high": 1} == {
        "value": 1.0,
        "low": 1,
        "high": 1,
        "comparisons": 1,
        "prompts": 1,
    }


@pytest.fixture
def folder(tmp_path):
    passage = "a passage that is long enough to be the same beginning of several questions on it, " * 2
    write(
        tmp_path / "demos.jsonl",
        [
            {"prompt": f"{passage if n < 9 else n} what?", "completion": " yes", "category": "qa" if n % 3 else "chat"}
            for n in range(120)
        ]
        + [{"prompt": "x", "completion": " "}],
    )
    write(
        tmp_path / "pairs.jsonl",
        [
            {
                "prompt": f"{passage if n < 20 else n} why {n}?",
                "completions": ["ab", "a"],
                "ranks": [1, 2],
                "labeler": f"l{n % 3}",
            }
            for n in range(90)
        ],
    )
    (tmp_path / "text.txt").write_text("\n\n".join(f"story {n}" for n in range(90)))
    return tmp_path


def test_a_folder_is_described_by_what_its_rows_say(folder):
    corpus, kinds = open_data(str(folder))
    facts, lengths = describe.describe(corpus, kinds, None)
    assert kinds == ["documents", "demonstrations", "rankings"]
    found = facts["kinds"]["demonstrations"]
    source = found["sources"]["demos.jsonl"]
    assert source["rows"] == 120 and source["train"] + source["valid"] + source["test"] == 120
    (bad,) = found["bad_rows"].values()
    assert bad == {"count": 1, "first": f"{folder / 'demos.jsonl'}:121"}
    assert found["categories"]["category"]["qa"] == {
        "rows": 80,
        "share": 2 / 3,
        "mean_prompt": pytest.approx(27, abs=20),
    }
    assert found["duplicates"]["equal_rows"] == 8  # 9 are alike
    assert set(lengths["rankings"]) == {"prompts", "completions"}
    assert found["lengths"]["completions"]["all"] == describe.length_facts(np.full(120, 4))
    assert facts["leaks"]["across_splits"] == 0 < facts["leaks"]["across_splits_by_prompt_alone"]
    assert facts["leaks"]["between_files"] == {"demos.jsonl (demonstrations) and pairs.jsonl (rankings)": 1}  # cluster


def test_the_command_writes_a_page_a_picture_and_json(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    Tokenizer.train([], 258).save(folder / "tokenizer.json")
    out = folder / "out"
    assert main([f"--data={folder}", f"--tokenizer={folder}", f"--out={out}"]) == 0
    shown = capsys.readouterr().out
    assert "prompts, train" in shown and "length in tokens" in shown and "demos.jsonl" in shown
    assert main([f"--data={folder}", f"--tokenizer={folder}", "--prompt_length=10"]) == 0
    longer = capsys.readouterr().out  # the passage with one question, and with twenty
    assert "1 of 112 prompts (0.9 %) are longer than prompt_length = 10" in longer and "20 of 90 prompts" in longer
    facts = read_json(out / "facts.json")
    assert facts["unit"] == "tokens" and facts["kinds"]["rankings"]["rankings"]["pairs"] == 90
    page = (out / "report.md").read_text()
    assert "| rankings | 90 |" in page and "lengths.png" in page
    assert (out / "lengths.png").read_bytes()[:4] == b"\x89PNG" and (out / "lengths.png").stat().st_size > 20_000
    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert lines and all(line.count("|") >= 3 for line in lines)


def test_chats_are_measured_as_transformers_writes_them(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    model = released.save(tmp_path, "qwen", released.QWEN)
    asked = [[{"role": "user", "content": f"What is {n}, 고양이?" + " why" * n}] for n in range(40)]
    rows = [
        {"messages": [*turns, {"role": "assistant", "content": "It is " + "so " * n}]} for n, turns in enumerate(asked)
    ]
    path = write(tmp_path / "chats.jsonl", rows)
    theirs = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(model)
    prompts = [len(theirs.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]) for turns in asked]
    whole = [len(theirs.apply_chat_template(row["messages"])["input_ids"]) for row in rows]
    newline = len(theirs("\n")["input_ids"])  # behind the end of the last turn
    completions = [length - before - newline for length, before in zip(whole, prompts)]
    tokenizer, template = reader(str(model), "", path)
    corpus, _ = open_data(path, None, template)
    facts, found = describe.describe(corpus, ["demonstrations"], tokenizer)
    own = found["demonstrations"]
    assert sorted(np.concatenate(list(own["prompts"].values()))) == sorted(prompts)
    assert sorted(np.concatenate(list(own["completions"].values())) + 1) == sorted(completions)
    fits = {name: -(-sorted(own)[37] // 8) * 8 for name, own in (("prompt", prompts), ("completion", completions))}
    suggestion = (
        f"prompt_length={fits['prompt']} holds 95% of the prompts, and completion_length={fits['completion']} of"
    )
    assert facts["kinds"]["demonstrations"]["suggestion"].startswith(suggestion)  # 38 of 40 rows
    assert main([f"--data={path}", f"--tokenizer={model}"]) == 0
    shown = capsys.readouterr().out
    assert "rendered by the chat template of" in shown and f"prompt_length={fits['prompt']}" in shown
    assert main([f"--data={path}", f"--tokenizer={model}", "--template=plain"]) == 0
    assert "chat template" not in capsys.readouterr().out
    assert main([f"--data={path}", "--template=chat"]) == 2
    assert "give its folder as --tokenizer" in capsys.readouterr().err


def test_lengths_that_hold_a_share():
    assert [holding(np.array(values)) for values in ([1], [8], [9], range(1, 101))] == [8, 8, 16, 96]
    assert holding(np.arange(1, 101), share=1.0) == 104


def test_one_file_and_one_kind_and_renamed_fields(folder, capsys):
    path = write(folder / "qa.jsonl", [{"q": f"question {n}", "a": " yes"} for n in range(60)])
    corpus, kinds = open_data(f"{path}@20:q=prompt;a=completion")
    assert kinds == ["demonstrations"] and len(corpus.sources("demonstrations")["qa.jsonl"]) == 20
    corpus, kinds = open_data(f"{path}:q=prompt", "prompts")
    assert kinds == ["prompts"]
    assert main([f"--data={path}"]) == 2
    assert "the fields a, q do not tell the kind of the rows; give --kind" in capsys.readouterr().err
    assert main(["--data=nowhere.jsonl"]) == 2 and main([f"--data={folder / 'none'}", "--kind=prompts"]) == 2


def test_the_work_directory_of_a_run_is_described_as_the_run_splits_it(folder):
    from rlhf_jax.config import default_config
    from rlhf_jax.data.template import Template
    from rlhf_jax.runtime.files import write_json

    config = default_config()
    config.data.source = "files"
    config.data.files.update(dir=str(folder), demonstrations="demos.jsonl", test_share=0.5)
    config.data.on_bad_row = "skip"
    (folder / "run").mkdir()
    write_json(folder / "run" / "config.json", config.to_dict())
    Template().save(folder / "run" / "template.txt")
    corpus, kinds = open_data(str(folder / "run"))
    assert kinds == ["demonstrations"] and 45 < len(corpus.demonstrations("test")) < 75


def test_a_real_file(shared_data):
    """What its page says: 4 bad rows; the longer answer is chosen in 44 % (there by words, here by characters)."""
    corpus, kinds = open_data(str(shared_data / "pref_hh_harmless_train.jsonl.xz"))
    facts, _ = describe.describe(corpus, kinds, None)
    found = facts["kinds"]["rankings"]
    assert sum(bad["count"] for bad in found["bad_rows"].values()) == 4
    assert found["rankings"]["pairs"] == 1796 and "earlier_preferred" not in found["rankings"]
    assert found["rankings"]["longer_preferred"]["value"] == pytest.approx(0.44, abs=0.02)
    assert found["duplicates"]["clusters"] > 30
    assert facts["leaks"]["across_splits"] == 0 < facts["leaks"]["across_splits_by_prompt_alone"]


def test_published_splits_are_shown_and_what_leaks_through_them_is_named(tmp_path):
    rows = [
        {"prompt": f"question {n}", "completion": " yes", "split": "train" if n < 80 else "test"} for n in range(100)
    ]
    rows += [{**row, "split": "train"} for row in rows[90:]]
    corpus, kinds = open_data(write(tmp_path / "demos.jsonl", rows))
    facts, _ = describe.describe(corpus, kinds, None)
    found = facts["kinds"]["demonstrations"]
    assert found["sources"]["demos.jsonl"]["test"] == 20 and found["sources"]["demos.jsonl"]["left out"] == 10
    assert found["left_out"] == {"their group is in valid or test too": 10}


def test_documents_have_lengths_and_no_leaks(tmp_path):
    (tmp_path / "text.txt").write_text("\n\n".join(f"story {n}" for n in range(90)))
    corpus, kinds = open_data(str(tmp_path / "text.txt"))
    facts, lengths = describe.describe(corpus, kinds, None)
    assert set(lengths) == {"documents"} and facts["leaks"] == {}
    assert facts["kinds"]["documents"]["lengths"]["documents"]["all"]["count"] == 90
