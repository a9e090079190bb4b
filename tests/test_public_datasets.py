"""Every public dataset in its published form becomes ours, row by row; what breaks a format is named."""

import json
import lzma

import pytest
from published import corpus, made, write_lines

from rlhf_jax.data import prepare
from rlhf_jax.data.public import DATASETS
from rlhf_jax.data.public.hh_rlhf import cut
from rlhf_jax.data.template import Template
from rlhf_jax.runtime.errors import InputError

pytest.importorskip("tensorflow_datasets", reason="the extra tfds is not installed")
pytest.importorskip("array_record")

# hh-rlhf.

TURNS = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant:"


def test_dialogues_are_cut_where_they_part():
    assert cut(TURNS + " Because.", TURNS + " Be quiet.") == (TURNS, " Because.", " Be quiet.")
    one_turn = "\n\nHuman: Hi\n\nAssistant:"
    assert cut(one_turn + " a", one_turn + " b") == (one_turn, " a", " b")
    plays_the_human = " No.  Human: Why?\n\nAssistant:  So."
    assert cut(TURNS + plays_the_human, TURNS + " x") == (TURNS, plays_the_human, " x")


@pytest.mark.parametrize(
    "chosen, rejected, words",
    [
        (TURNS, TURNS + " x", "the chosen answer is empty"),
        (TURNS + " x", TURNS + " ", "the rejected answer is empty"),
        (TURNS + " x", TURNS + " x", "the two answers are the same"),
        (TURNS + " x", TURNS.replace("Hello", "Go") + " y", "they differ before the last turn"),
        (TURNS + " x\n\nHuman: y", TURNS + " x", "they differ before the last turn"),
        (TURNS.replace("Hi", "Ho") + " x", TURNS + " y", "the two share no turn"),
        ("Hi", "Ho", "the two share no turn"),
        ("", "", "the two share no turn"),
    ],
)
def test_dialogues_of_no_use_say_why(chosen, rejected, words):
    with pytest.raises(InputError, match=words):
        cut(chosen, rejected)


def test_the_published_form_of_real_pairs_gives_them_back(shared_data, tmp_path):
    with lzma.open(shared_data / "pref_hh_harmless_train.jsonl.xz", "rt", encoding="utf-8") as file:
        real = [json.loads(line) for line in file]
    published = [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in real]
    write_lines(tmp_path / "source/harmless-base/train.jsonl.gz", published[:1500])
    write_lines(tmp_path / "source/harmless-base/test.jsonl.gz", published[1500:])
    splits, report = made("hh_rlhf_harmless_base", tmp_path / "source", tmp_path)
    wanted = [(row["prompt"], [row["chosen"], row["rejected"]]) for row in real if row["chosen"].strip()]
    found = [(row["prompt"], row["completions"]) for split in ("train", "test") for row in splits[split]]
    assert found == wanted and len(wanted) == 1796
    empty = [number for number, row in enumerate(real, start=1) if not row["chosen"].strip()]
    places = [
        f"{tmp_path}/source/harmless-base/{'train' if n <= 1500 else 'test'}.jsonl.gz:{n - 1500 * (n > 1500)}"
        for n in empty
    ]
    assert report.left_out == {"the chosen answer is empty": places}
    assert all(row["ranks"] == [1, 2] and row["subset"] == "harmless-base" for row in splits["train"])
    # The same conversation is published at several lengths: all of them are one group.
    groups = {}
    for row in splits["train"] + splits["test"]:
        groups.setdefault(row["prompt"].split("\n\nAssistant:")[0].strip(), set()).add(row["group"])
    assert all(len(names) == 1 for names in groups.values()) and len(groups) < 1796


def test_dialogues_as_messages(tmp_path):
    empty = TURNS.replace("Hello", "")
    rows = [{"chosen": TURNS + " a", "rejected": TURNS + " b"}, {"chosen": empty + " a", "rejected": empty + " b"}]
    write_lines(tmp_path / "source/helpful-online/train.jsonl", rows)
    write_lines(tmp_path / "source/helpful-online/test.jsonl", rows[:1])
    folder, report = prepare.prepare(DATASETS["hh_rlhf_helpful_online"].as_chat(), tmp_path / "source", tmp_path)
    assert [list(report.left_out), report.rows] == [["a turn of the prompt is empty"], {"train": 1, "test": 1}]
    (record,) = corpus(tmp_path, rankings="hh_rlhf_helpful_online:train")._rows("rankings")
    assert record.prompt == Template().chat(user("Hi", "Hello", "Why?")) and record.completions == (" a", " b")
    with pytest.raises(InputError, match="--chat: leave it out, because the prompts of dolly are not dialogues"):
        DATASETS["dolly"].as_chat()


# The other sources, as their documentation shows their files.


def summary(text, policy):
    return {"text": text, "policy": policy, "note": None}


def compared(post, split, choice=1, **others):
    info = {"id": f"t3_{post}", "post": f"post {post}", "title": "T", "subreddit": "legaladvice"}
    return {
        "info": info,
        "summaries": [summary(" short", "sup4"), summary(" long", "ref")],
        "choice": choice,
        "worker": "ann",
        "batch": "batch9",
        "split": split,
        "extra": {"confidence": 8},
        **others,
    }


def rated(response, model, *ratings):
    aspects = ("instruction_following", "honesty", "truthfulness", "helpfulness")
    notes = {name: {"Rating": rating, "Rationale": "..."} for name, rating in zip(aspects, ratings)}
    return {"response": response, "model": model, "annotations": notes, "overall_score": 7.5, "critique": "..."}


def message(name, parent, role, text, **others):
    return {
        "message_id": name,
        "parent_id": parent,
        "text": text,
        "role": role,
        "lang": "en",
        "review_result": True,
        "deleted": False,
        "rank": None,
        "message_tree_id": "m1",
        "tree_state": "ready_for_export",
        **others,
    }


MESSAGES = [
    message("m1", None, "prompter", "Why?"),
    message("m2", "m1", "assistant", "Because.", rank=1),
    message("m3", "m2", "prompter", "Really?"),
    message("m4", "m3", "assistant", "Yes."),
    message("m5", "m1", "assistant", "So.", rank=0),
    message("m6", "m1", "assistant", "Spam", rank=2, review_result=False),
    message("m7", "m6", "prompter", "Ha", review_result=True),
    message("m9", "m7", "assistant", "Ho"),
    message("m8", "m1", "assistant", "Gone", rank=3, deleted=True),
]


def tree(messages):
    nodes = {row["message_id"]: {**row, "replies": []} for row in messages}
    for row in messages[1:]:
        nodes[row["parent_id"]]["replies"].append(nodes[row["message_id"]])
    return {"message_tree_id": "m1", "tree_state": "ready_for_export", "prompt": nodes["m1"]}


def user(*turns):
    return [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]


OASST = {
    "oasst_demonstrations": [
        {"messages": user("Why?", "So."), "group": "m1", "lang": "en"},
        {"messages": user("Why?", "Because.", "Really?", "Yes."), "group": "m1", "lang": "en"},
    ],
    "oasst_rankings": [
        {"messages": user("Why?"), "completions": ["Because.", "So."], "ranks": [2, 1], "group": "m1", "lang": "en"}
    ],
}
TLDR = {"id": "t3_1", "subreddit": "running", "title": "Hm", "post": "I ran.", "summary": "Ran."}
WEB_QUESTION = {"dataset": "eli5", "id": "q7", "full_text": "Why is it blue?"}
SHP = {
    "post_id": "p1",
    "domain": "askbaking_train",
    "upvote_ratio": 0.98,
    "history": "How?",
    "c_root_id_A": "a",
    "score_A": 5,
    "score_B": 9,
    "human_ref_A": "So",
    "human_ref_B": "Thus",
    "labels": 0,
    "seconds_difference": 3.0,
    "score_ratio": 1.8,
}
CHECKED = {  # dataset: (file, published rows, {split: our rows}, {reason: lines left out})
    "summarize_tldr": (
        "tldr_3_filtered/{train,valid,test}.jsonl",
        [TLDR, {**TLDR, "summary": " "}],
        {
            "train": [
                {
                    "prompt": "SUBREDDIT: r/running\n\nTITLE: Hm\n\nPOST: I ran.\n\nTL;DR:",
                    "completion": " Ran.",
                    "group": "t3_1",
                    "subreddit": "running",
                }
            ]
        },
        {"field 'summary' is empty": [2] * 3},
    ),
    "summarize_comparisons": (
        "comparisons/batch9.json",
        [
            compared(1, "train"),
            compared(2, "valid2", 0),
            compared(3, "valid1", extra={"confidence": None}),
            compared(4, "train", summaries=[summary(" x", "a"), summary("x ", "b")]),
        ],
        {
            split: [
                {
                    "prompt": f"SUBREDDIT: r/legaladvice\n\nTITLE: T\n\nPOST: post {post}\n\nTL;DR:",
                    "batch": "batch9",
                    "task": "tldr",
                    "completions": [" short", " long"],
                    "ranks": ranks,
                    "labeler": "ann",
                    "group": f"t3_{post}",
                    "models": ["sup4", "ref"],
                    **({} if post == 3 else {"confidence": 8.0}),
                }
            ]
            for post, split, ranks in ((1, "train", [2, 1]), (2, "test", [1, 2]), (3, "valid", [2, 1]))
        },
        {"the two summaries are the same": [4]},
    ),
    "webgpt": (
        "comparisons.jsonl",
        [
            [
                {"question": WEB_QUESTION, "quotes": {}, "answer": "Air [1].", "tokens": {}, "score": -0.5},
                {"question": WEB_QUESTION, "quotes": {}, "answer": "Light.", "tokens": {}, "score": 0.5},
            ],
            [
                {"question": WEB_QUESTION, "answer": "a", "score": 0},
                {"question": WEB_QUESTION, "answer": "b", "score": 0},
            ],
        ],
        {
            "train": [
                {
                    "instruction": "Why is it blue?",
                    "completions": ["Air [1].", "Light."],
                    "group": "q7",
                    "scores": [-0.5, 0.5],
                },
                {"instruction": "Why is it blue?", "completions": ["a", "b"], "group": "q7", "scores": [0.0, 0.0]},
            ]
        },
        {},
    ),
    "shp": (
        "askbaking/{train,validation,test}.json",
        [SHP, {**SHP, "labels": 1}, {**SHP, "human_ref_B": ""}],
        {
            "train": [
                {
                    "instruction": "How?",
                    "completions": ["So", "Thus"],
                    "ranks": ranks,
                    "group": "p1",
                    "domain": "askbaking_train",
                    "score_ratio": 1.8,
                }
                for ranks in ([2, 1], [1, 2])
            ]
        },
        {"field 'human_ref_B' is empty": [3] * 3},
    ),
    "ultrafeedback": (
        "evol_instruct.jsonl",
        [
            {
                "source": "evol_instruct",
                "instruction": "Do it",
                "models": ["a", "b", "c", "d"],
                "correct_answers": [],
                "completions": [
                    rated("A", "a", "1", "2", "1", "2"),
                    rated("B", "b", "5", "5", "N/A", "5"),
                    rated("C", "c", "2", "1", "2", "1"),
                    rated("D", "d", "5", "4", "5", "5"),
                ],
            },
            {"source": "flan", "instruction": "Do it", "models": [], "completions": []},
        ],
        {
            "train": [
                {
                    "instruction": "Do it",
                    "completions": list("ABCD"),
                    "models": list("abcd"),
                    "source": "evol_instruct",
                    "scores": [1.5, 5.0, 1.5, 4.75],
                    "instruction_following": [1, 5, 2, 5],
                    "honesty": [2, 5, 1, 4],
                    "truthfulness": [1, 0, 2, 5],
                    "helpfulness": [2, 5, 1, 5],
                }
            ]
        },
        {"fewer than two completions": [2]},
    ),
    "dolly": (
        "databricks-dolly-15k.jsonl",
        [
            {"instruction": "Who?", "context": "Ann did.", "response": "Ann", "category": "closed_qa"},
            {"instruction": "Who?", "context": "", "response": "Me", "category": "open_qa"},
        ],
        {
            "train": [
                {"instruction": "Who?", "input": "Ann did.", "output": "Ann", "category": "closed_qa"},
                {"instruction": "Who?", "output": "Me", "category": "open_qa"},
            ]
        },
        {},
    ),
    "oasst_demonstrations": (
        "2023-04-12_oasst_ready.trees.jsonl.gz",
        [tree(MESSAGES), tree(MESSAGES[:1])],
        {"train": OASST["oasst_demonstrations"]},
        {"a tree without a reply that is ranked or alone": [2]},
    ),
    "oasst_rankings": (
        "2023-04-12_oasst_ready.messages.jsonl.gz",
        [*MESSAGES, message("n1", None, "prompter", "Hm?", message_tree_id="n1")],
        {"train": OASST["oasst_rankings"]},
        {"a tree without two ranked replies to one message": [10]},
    ),
    "hh_rlhf_red_team": (
        "red-team-attempts/red-team-attempts.jsonl.gz",
        [
            {
                "transcript": TURNS + " No",
                "min_harmlessness_score_transcript": -1.5,
                "num_params": "13B",
                "rating": 4.0,
                "model_type": "rlhf",
                "task_description": "x",
                "tags": None,
                "red_team_member_id": 7,
            }
        ],
        {"train": [{"prompt": "\n\nHuman: Hi\n\nAssistant:", "rating": 4.0, "min_harmlessness": -1.5, "task": "x"}]},
        {},
    ),
    "c4": (
        "en/c4-train.00000-of-01024.json.gz",
        [
            {"text": "A page", "timestamp": "2019", "url": "http://a"},
            {"text": "\n", "timestamp": "2019", "url": "http://b"},
        ],
        {"train": [{"text": "A page", "url": "http://a"}]},
        {"field 'text' is empty": [2]},
    ),
}


def write_published(folder, name, rows):
    """Writes the rows into every file of `a/{x,y}.jsonl`; returns their paths."""
    stem, _, ending = name.partition("{")
    names, _, ending = ending.partition("}")
    paths = [folder / f"{stem}{part}{ending}" for part in names.split(",")]
    for path in paths:
        write_lines(path, rows)
    return paths


@pytest.mark.parametrize("name", CHECKED)
def test_published_rows_become_ours(name, tmp_path):
    file, rows, wanted, left_out = CHECKED[name]
    paths = write_published(tmp_path / "source", file, rows)
    splits, report = made(name, tmp_path / "source", tmp_path)
    if len(paths) == 3:
        wanted = dict.fromkeys(("train", "valid", "test"), wanted["train"])
    if name == "hh_rlhf_red_team":
        assert splits["train"][0].pop("group")
    assert splits == wanted
    places = {reason: [int(place.rsplit(":", 1)[1]) for place in found] for reason, found in report.left_out.items()}
    assert places == left_out and all(
        place.startswith(str(tmp_path / "source")) for found in report.left_out.values() for place in found
    )


def test_a_json_list_is_read_entry_by_entry(tmp_path):
    rows = [{"instruction": f"Say {i}", "input": "", "output": "" if i == 2 else f"{i}"} for i in range(4)]
    (tmp_path / "alpaca_data.json").write_text(json.dumps(rows, indent=4), encoding="utf-8")
    splits, report = made("alpaca", tmp_path, tmp_path / "out")
    assert [row["output"] for row in splits["train"]] == ["0", "1", "3"]
    assert report.left_out == {"field 'output' is empty": [f"{tmp_path}/alpaca_data.json:12"]}


def test_a_folder_of_text_becomes_documents(tmp_path):
    source = tmp_path / "source"
    write_lines(source / "b" / "more.jsonl.gz", [{"text": "from json", "other": 1}])
    (source / "a.txt").write_text("one\n\nstill one\n<|endoftext|>\n\ntwo\n", encoding="utf-8")
    (source / "c.txt").write_text("three\nlines\n\n \nfour", encoding="utf-8")
    (source / "README.md").write_text("not this")
    splits, _ = made("text", source, tmp_path)
    assert [row["text"] for row in splits["train"]] == ["one\n\nstill one", "two", "from json", "three\nlines", "four"]
    found = corpus(tmp_path, documents="text", valid_share=0.2, test_share=0.2)
    texts = [row["text"] for row in splits["train"]]
    assert [row.text for row in found._rows("documents")] == texts
    (source / "b" / "more.jsonl.gz").unlink()  # without tables, a folder's texts are read without preparing them
    assert [row.text for row in corpus(tmp_path, documents="source")._rows("documents")] == texts[:2] + texts[3:]


def test_only_wanted_rows_are_written(tmp_path):
    write_lines(
        tmp_path / "oasst_ready.trees.jsonl",
        [
            tree(MESSAGES),
            tree([message("m1", None, "prompter", "Warum?", lang="de"), message("m2", "m1", "assistant", "Darum.")]),
        ],
    )
    splits, report = made("oasst_demonstrations", tmp_path, tmp_path / "out", where={"lang": "en"})
    assert len(splits["train"]) == 2 and report.not_wanted == 1
    with pytest.raises(InputError, match="--where: oasst_demonstrations has no column language"):
        made("oasst_demonstrations", tmp_path, tmp_path / "out", where={"language": "en"})


BAD = {
    "summarize_comparisons": [
        (compared(1, "train", 2), "field 'choice' is 2; it must be 0 or 1"),
        (compared(1, "dev"), "field 'split' is 'dev'; it must be one of train, valid1"),
        (compared(1, "train", summaries=[summary("x", "a")]), "field 'summaries' must be a list of two"),
        ({**compared(1, "train"), "info": {"id": "1", "title": "", "subreddit": ""}}, "field 'post' is missing"),
    ],
    "webgpt": [
        ([{"question": WEB_QUESTION, "answer": "a", "score": 0}], "a row must be a list of two answers"),
        ({"answer_0": "a"}, "field 'question' is missing"),
        ([{"question": WEB_QUESTION, "answer": "a", "score": "0"}] * 2, "field 'score' is not a number"),
    ],
    "shp": [({**SHP, "labels": True}, "field 'labels' is True; it must be 0")],
    "ultrafeedback": [
        (
            {"source": "x", "instruction": "i", "completions": [rated("A", "a", "1", "2", "1", "9")] * 2},
            "field 'annotations.helpfulness.Rating' is '9'",
        ),
        (
            {"source": "x", "instruction": "i", "completions": ["A", "B"]},
            "field 'completions' must be a list of objects",
        ),
    ],
    "oasst_rankings": [
        (message("m2", "m1", "assistant", "So"), "the message m2 follows m1, which does not stand before it"),
        (tree([message("m1", None, "bot", "Hm")]), "field 'role' is 'bot'"),
        (tree([*MESSAGES[:1], message("m2", "m1", "assistant", "So", rank="0")]), "field 'rank' is '0'"),
    ],
}


@pytest.mark.parametrize("name, row, words", [(name, *case) for name, cases in BAD.items() for case in cases])
def test_what_each_format_refuses(tmp_path, name, row, words):
    file = CHECKED[name][0].replace("{train,validation,test}", "train").replace(".messages", ".trees")
    write_lines(tmp_path / "source" / file, [row])
    for other in ("validation", "test") if name == "shp" else ():
        write_lines(tmp_path / "source" / "askbaking" / f"{other}.json", [SHP])
    with pytest.raises(InputError) as caught:
        made(name, tmp_path / "source", tmp_path)
    assert f"{tmp_path}/source/{file}:1: " in str(caught.value) and words in str(caught.value)
