"""Argilla's and Label Studio's JSON: there and back again, and as their own documents and programs write it."""

import json

import pytest
from labeling import Client, desk_of, read, serving, write

from rlhf_jax.data.record_files import read_rows
from rlhf_jax.label import judgments
from rlhf_jax.label.convert import __main__ as command

CHAT = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "안녕?"}]
ROWS = [
    {
        "prompt": "say hello",
        "completions": ["hi", "hello there", "hello you"],
        "models": ["a", "b", "c"],
        "split": "train",
    },
    {
        "prompt": CHAT,
        "completions": [{"role": "assistant", "content": "네"}, {"role": "assistant", "content": "안녕하세요"}],
    },
    {
        "instruction": "sum up",
        "input": "long text",
        "completions": ["short", "a longer one"],
        "finished": [True, False],
    },
]


def convert(*arguments):
    return command.main([str(argument) for argument in arguments])


@pytest.fixture
def labels(tmp_path):
    """Judgments of two labelers who tie some, as the program writes them."""
    pytest.importorskip("starlette", reason="starlette is not installed: EXTRAS=label")
    out = tmp_path / "labels.jsonl"
    with serving(desk_of(out, write(tmp_path / "c.jsonl", ROWS), shared=1.0)) as site:
        for name, rank in (("ann", lambda text: len(text) > 8), ("béa", lambda text: -len(text))):
            client = Client(site.host, name)
            while item := client.next():
                count = len(item["completions"])
                client.judge(
                    item, rank, ratings=[7 - n for n in range(count)], flags=[["opinion"], *[[]] * (count - 1)]
                )
    return out


def in_any_order(rows):
    return sorted(json.dumps(row, sort_keys=True) for row in rows)


@pytest.mark.parametrize("program", command.PROGRAMS)
def test_judgments_come_back_as_they_were(program, labels, tmp_path, capsys):
    there, back = tmp_path / "there.json", tmp_path / "back.jsonl"
    assert convert(f"--to={program}", labels, f"--out={there}") == 0, capsys.readouterr().err
    assert len(json.loads(there.read_text())) == 3
    assert convert(f"--from={program}", there, f"--out={back}") == 0, capsys.readouterr().err
    assert in_any_order(read(back)) == in_any_order(read(labels))
    assert len(judgments.read(back)[0]) == 6 and any(len(set(row["ranks"])) == 1 for row in read(back))
    assert convert(f"--from={program}", there, f"--out={back}") == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize("program", command.PROGRAMS)
def test_what_people_changed_there_counts(program, labels, tmp_path):
    there, back = tmp_path / "there.json", tmp_path / "back.jsonl"
    convert(f"--to={program}", labels, f"--out={there}")
    found = json.loads(there.read_text())
    for item in found:
        if program == "argilla":
            for response in item["responses"]["ranking"]:
                response["value"] = sorted(response["value"])
        else:
            for annotation in item["annotations"]:
                ranker = next(part for part in annotation["result"] if part["type"] == "ranker")["value"]["ranker"]
                names = sorted(name for names in ranker.values() for name in names)
                ranker.clear()
                ranker.update({f"rank_{n}": [name] for n, name in enumerate(names, start=1)})
    there.write_text(json.dumps(found))
    assert convert(f"--from={program}", there, f"--out={back}") == 0
    # Argilla has no ties, so an order that agrees with the ties is taken for no change.
    changed = [row for row in read(back) if len(set(row["ranks"])) == len(row["ranks"])]
    assert len(changed) >= 3 and all(row["ranks"] == sorted(row["ranks"]) for row in read(back))


@pytest.mark.parametrize("program", command.PROGRAMS)
def test_what_was_not_asked_does_not_come_back(program, tmp_path):
    rows = [
        {"prompt": "q", "completions": ["a", "b"], "ranks": [1, 2], "flags": [[], ["opinion"]], "labeler": "ann"},
        {"prompt": "q", "completions": ["a", "b"], "ranks": [2, 1], "ratings": [2, 7], "labeler": "bob"},
    ]
    there, back = tmp_path / "there.json", tmp_path / "back.jsonl"
    convert(f"--to={program}", write(tmp_path / "l.jsonl", rows), f"--out={there}")
    assert convert(f"--from={program}", there, f"--out={back}") == 0
    assert [{name: value for name, value in row.items() if name != "item"} for row in read(back)] == rows


@pytest.mark.parametrize("program", command.PROGRAMS)
def test_demonstrations_come_back_as_they_were(program, tmp_path, capsys):
    rows = [
        {"prompt": "q", "completion": " a", "labeler": "ann", "seconds": 3.0},
        {"prompt": CHAT, "completion": "네", "labeler": "ann"},
        {"instruction": "do", "completion": "done", "labeler": "bob"},
    ]
    there, back = tmp_path / "there.json", tmp_path / "back.jsonl"
    assert convert(f"--to={program}", write(tmp_path / "d.jsonl", rows), f"--out={there}") == 0
    assert convert(f"--from={program}", there, f"--out={back}") == 0, capsys.readouterr().err
    found = [{name: value for name, value in row.items() if name != "item"} for row in read(back)]
    assert in_any_order(found) == in_any_order(rows)
    assert read_rows(back, "demonstrations")[1].kept == 3


# --- As they are published ------------------------------------------------------------------------

USER = "3b9f3f9c-8a0b-4ae2-8f4e-0d5f6d0c9a11"


def argilla_record(fields, responses, **more):
    """A record as argilla 2's Record.to_dict makes it."""
    return {
        "id": "c6c1a9e4-2b7e-4d0a-9d2b-0f2f6a3f5a01",
        "fields": fields,
        "metadata": {"source": "twitter", "language": "en"},
        "suggestions": {"ranking": {"value": ["response1", "response2"], "score": [0.9, 0.1], "agent": "model"}},
        "responses": responses,
        "vectors": {"text": [0, 0, 0]},
        "_server_id": None,
        **more,
    }


def test_argillas_template_of_a_ranking(tmp_path, capsys):
    """The fields and the question are those of `rg.Settings.for_ranking`."""
    texts = {"instruction": "Name a fruit.", "response1": "Car.", "response2": "Apple."}
    records = [
        argilla_record(texts, {"ranking": [{"value": ["response2", "response1"], "user_id": USER}]}),
        argilla_record(texts | {"instruction": "nobody answered"}, {}),
        argilla_record(
            {"messages": CHAT, "a": "one", "b": "two", "c": "three"},
            {
                "comment": [{"value": "hm", "user_id": USER}],
                "order": [  # as Argilla's server has it, with ties
                    {
                        "value": [{"value": "c", "rank": 1}, {"value": "a", "rank": 1}, {"value": "b", "rank": 2}],
                        "user_id": USER,
                        "status": "submitted",
                    },
                    {
                        "value": [{"value": "b", "rank": 1}, {"value": "a", "rank": 2}],
                        "user_id": "x",
                        "status": "draft",
                    },
                ],
            },
        ),
    ]
    path, out = tmp_path / "records.json", tmp_path / "labels.jsonl"
    path.write_text(json.dumps(records))
    assert convert("--from=argilla", path, f"--out={out}") == 0
    assert "2 judgments; left out: 1 that were not submitted" in capsys.readouterr().out
    first, second = read(out)
    assert (
        first["prompt"] == "Name a fruit." and first["completions"] == ["Car.", "Apple."] and first["ranks"] == [2, 1]
    )
    assert (
        second["prompt"] == CHAT and second["completions"] == ["one", "two", "three"] and second["ranks"] == [1, 2, 1]
    )
    assert {row["labeler"] for row in (first, second)} == {USER}
    assert read_rows(out, "rankings")[1].kept == 2


def test_label_studios_examples_of_a_ranker_and_of_a_pair(tmp_path):
    """The data and results of the pages of its tags Ranker and List, in tasks as it exports them."""
    data = {
        "prompt": "How to write functions?",
        "items": [
            {"id": "blog", "title": "10 tips to write a better function", "body": "There is nothing worse than ..."},
            {"id": "mdn", "title": "Arrow function expressions", "body": "An arrow function expression is ..."},
            {"id": "wiki", "title": "Arrow (computer science)", "body": "In computer science, arrows or bolts are ..."},
        ],
    }

    def task(value, kind="ranker", data=data, to_name="results", **more):
        result = {"id": "PpwBv_NMxd", "from_name": "rank", "to_name": to_name, "type": kind, "value": value}
        annotation = {"id": 1001, "completed_by": 10, "result": [result], "was_cancelled": False, "ground_truth": False}
        return {"id": 1, "data": data, "annotations": [annotation | more], "predictions": [], "project": 83}

    pair = {"prompt": "who?", "answer1": "me", "answer2": "you"}
    tasks = [
        task({"ranker": {"rank": ["mdn", "wiki", "blog"]}}),
        task({"ranker": ["wiki", "mdn", "blog"]}, completed_by={"id": 3, "email": "ann@example.org"}),  # before 1.9
        task({"selected": "right"}, "pairwise", pair, "answer1,answer2"),
        task({"selected": "left"}, "pairwise", pair, "txt-1,txt-2"),
        task({"ranker": {"rank": ["mdn", "wiki", "blog"]}}, was_cancelled=True),
    ]
    path, out = tmp_path / "export.json", tmp_path / "labels.jsonl"
    path.write_text(json.dumps(tasks))
    assert convert("--from=label_studio", path, f"--out={out}") == 0
    rows = read(out)
    assert [row["ranks"] for row in rows] == [[3, 1, 2], [3, 2, 1], [2, 1], [1, 2]]
    assert [row["labeler"] for row in rows] == ["10", "ann@example.org", "10", "10"]
    assert rows[0]["completions"] == [item["body"] for item in data["items"]] and rows[2]["completions"] == [
        "me",
        "you",
    ]
    assert read_rows(out, "rankings")[1].kept == 4

    # Buckets are groups; which is better is for the person to say. "_" has what nobody has moved.
    buckets = tmp_path / "buckets.json"
    buckets.write_text(json.dumps([task({"ranker": {"_": ["wiki"], "bad": ["blog"], "good": ["mdn"]}})]))
    new = tmp_path / "buckets.jsonl"
    assert convert("--from=label_studio", buckets, f"--out={new}", "--buckets=good,fair,bad") == 0
    assert [(row["completions"], row["ranks"]) for row in read(new)] == [
        ([data["items"][0]["body"], data["items"][1]["body"]], [2, 1])
    ]


@pytest.mark.parametrize(
    "program, content, sentence",
    [
        ("argilla", {"a": 1}, "is not a JSON list"),
        ("argilla", [], "no submitted judgment"),
        ("argilla", [{"text": "flat"}], "record 1: has no `fields` and `responses`"),
        ("argilla", [{"fields": {"x": "a"}, "responses": {}}], "record 1: has no field prompt; its fields are x"),
        (
            "argilla",
            [{"fields": {"text": "t", "a": "1"}, "responses": {"q": [{"value": "x"}], "r": [{"value": "y"}]}}],
            "has the questions q, r; name the one to read by --question",
        ),
        ("label_studio", [{"prompt": "min"}], "task 1: has no `data`"),
        ("label_studio", [{"data": {"prompt": "p"}, "annotations": [{"result": 3}]}], "has no list `result`"),
        (
            "label_studio",
            [
                {
                    "data": {"prompt": "p", "items": [{"id": "a", "body": "x"}, {"id": "b", "body": "y"}]},
                    "annotations": [
                        {"result": [{"type": "ranker", "value": {"ranker": {"ads": ["a"], "best": ["b"]}}}]}
                    ],
                }
            ],
            "the ranker has the buckets ads, best; say by --buckets",
        ),
        (
            "label_studio",
            [
                {
                    "data": {"prompt": "p"},
                    "annotations": [{"result": [{"type": "pairwise", "value": {"selected": "left"}}]}],
                }
            ],
            "say by --sides",
        ),
    ],
)
def test_what_cannot_be_read_is_a_sentence_and_nothing_is_written(program, content, sentence, tmp_path, capsys):
    path, out = tmp_path / "there.json", tmp_path / "out.jsonl"
    path.write_text(json.dumps(content))
    assert convert(f"--from={program}", path, f"--out={out}") == 2
    said = capsys.readouterr().err
    assert sentence in said and "there.json" in said and said.count("\n") == 1 and not out.exists(), said


def test_rows_that_are_no_judgments_are_named(tmp_path, capsys):
    path = write(tmp_path / "l.jsonl", [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completions": ["x", "y"]}])
    assert convert("--to=argilla", path, f"--out={tmp_path / 'o.json'}") == 2
    assert "l.jsonl:2: " in capsys.readouterr().err
