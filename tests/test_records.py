"""Rows in the public formats become records; every bad row is one sentence with its place."""

import dataclasses
import gzip
import json
import lzma
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_jax.config import data_config
from rlhf_jax.data import files, ratings
from rlhf_jax.data.corpus import FileCorpus
from rlhf_jax.data.record_files import read_rows
from rlhf_jax.data.records import Demonstration, Document, Prompt, Ranking
from rlhf_jax.data.row_formats import parse_row
from rlhf_jax.data.template import Template
from rlhf_jax.runtime.errors import InputError

KINDS = ("documents", "prompts", "demonstrations", "rankings")
PAIR = {"prompt": "Q: why?\nA:", "completion": " because"}
RATED = {"completion": "c", "score": 1}
RANKED = {"prompt": "p", "completions": ["a", "b", "c"], "ranks": [2, 1, 2]}


@pytest.fixture
def write(tmp_path):
    """write(rows or text, name) -> path of a file with them."""

    def write(content, name="rows.jsonl"):
        if isinstance(content, list):
            content = "\n".join(json.dumps(row) for row in content)
        data = content if isinstance(content, bytes) else content.encode()
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


def failure(path, kind="demonstrations", **options):
    with pytest.raises(InputError) as caught:
        read_rows(path, kind, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Formats.


def test_demonstrations_of_all_formats_have_the_same_meaning():
    plain = parse_row({"prompt": "sum\n1 2\nanswer:", "completion": " 3"}, "demonstrations")
    instruction = parse_row({"instruction": "sum", "input": "1 2", "output": "3"}, "demonstrations")
    assert (plain.prompt, plain.completion) == (instruction.prompt, instruction.completion)
    chat = parse_row(
        {
            "messages": [
                {"role": "system", "content": "be kind"},
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": "hello"},
                {"role": "user", "content": "bye"},
                {"role": "assistant", "content": "see you"},
                {"role": "user", "content": "thanks"},
            ]
        },
        "demonstrations",
    )
    assert chat.prompt == "be kind\nuser: hi\nassistant: hello\nuser: bye\nassistant:"
    assert chat.completion == " see you"


def test_prompt_and_completion_are_kept_to_the_letter():
    row = {"prompt": "  p \n", "completion": "c\t "}
    assert parse_row(row, "demonstrations") == Demonstration("  p \n", "c\t ", row)


def test_a_pair_is_a_ranking_of_two():
    record = parse_row({"prompt": "p", "chosen": "a", "rejected": "b", "group": 7}, "rankings")
    assert (record.completions, record.ranks, record.group) == (("a", "b"), (1, 2), "7")


def test_ranking_keeps_what_collecting_wrote():
    row = {
        **RANKED,
        "labeler": "ann",
        "group": "north",
        "models": ["sft", "sft", "base"],
        "finished": [True, False, True],
        "note": {"x": 1},
    }
    assert parse_row(row, "rankings") == Ranking(
        "p", ("a", "b", "c"), (2, 1, 2), "ann", "north", ("sft", "sft", "base"), (True, False, True), row
    )


def test_ranking_after_an_instruction_is_rendered():
    record = parse_row({"instruction": "i", "chosen": "a ", "rejected": " b"}, "rankings")
    assert (record.prompt, record.completions) == ("i\nanswer:", (" a ", "  b"))


@pytest.mark.parametrize(
    "row, prompt",
    [
        ({"prompt": "p", "completion": "c"}, "p"),
        ({"instruction": "i", "input": " ", "output": "o"}, "i\nanswer:"),
        ({"instruction": "i", "input": None}, "i\nanswer:"),
        ({"messages": [{"role": "user", "content": "hi"}]}, "user: hi\nassistant:"),
        (
            {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "o"}]},
            "user: hi\nassistant:",
        ),
        ({"prompt": None, "instruction": "i"}, "i\nanswer:"),
    ],
)
def test_prompts_are_read_from_any_row_that_has_one(row, prompt):
    assert parse_row(row, "prompts") == Prompt(prompt, row)


def test_template_of_the_run_is_used():
    template = Template(assistant="BOT\n{output}")
    record = parse_row(
        {"messages": [{"role": "user", "content": "hi"}], "chosen": " a", "rejected": "b"}, "rankings", template
    )
    assert (record.prompt, record.completions) == ("user: hi\nBOT\n", (" a", "b"))


def test_fields_are_mapped_and_the_row_stays_raw(write):
    rows = [{"Q": "a?", "A": "b", "label": "0"}]
    records, _ = read_rows(write(rows), "demonstrations", fields={"Q": "instruction", "A": "output"})
    assert records == [Demonstration("a?\nanswer:", " b", rows[0])]
    assert "field 'question', to be read as 'prompt', is missing" in failure(write(rows), fields={"question": "prompt"})
    swapped = parse_row(
        {"prompt": "c", "completion": "p"}, "demonstrations", fields={"prompt": "completion", "completion": "prompt"}
    )
    assert (swapped.prompt, swapped.completion) == ("p", "c")


def test_a_text_under_two_ranks_stays_under_the_first(write):
    row = {
        "prompt": "p",
        "completions": ["a", "b", "a", "b", "c"],
        "scores": [4, 2, 1, 2, 0],
        "models": ["v", "w", "x", "y", "z"],
        "finished": [True] * 5,
    }
    records, report = read_rows(write([row, RANKED]), "rankings")
    first = records[0]
    assert (first.completions, first.scores, first.ranks) == (("a", "b", "b", "c"), (4, 2, 2, 0), (1, 2, 2, 5))
    assert first.models == ("v", "w", "y", "z") and first.finished == (True,) * 4
    assert report.repeats == first.repeats == 1 and "1 completions left out" in str(report)
    row["finished"][2] = False  # another completion: it did not end
    assert parse_row(row, "rankings").completions == ("a", "b", "a", "b", "c")


def test_whole_floats_are_ranks_and_names():
    record = parse_row({**RANKED, "ranks": [2.0, 1.0, 2], "labeler": 7.0, "group": 3}, "rankings")
    assert (record.ranks, record.labeler, record.group) == ((2, 1, 2), "7", "3")
    assert all(type(rank) is int for rank in record.ranks)


@pytest.mark.parametrize("text, score", [("9", 9), (" -1.50 ", -1.5), ("1e3", 1000), (".5", 0.5)])
def test_a_score_may_be_text_as_in_csv(text, score):
    assert parse_row({**RATED, "score": text}, "rankings").scores == (score,)


def test_an_empty_system_turn_says_nothing():
    user = {"role": "user", "content": "hi"}
    turns = [{"role": "system", "content": ""}, user]
    assert parse_row({"messages": turns}, "prompts").prompt == Template().chat([user])


def test_a_field_of_names_holds_names(write):
    rows = [{**PAIR, "user": user} for user in ("a", 7, 7.0, None, "")]
    assert len(read_rows(write(rows), "demonstrations", names=["user"])[0]) == 5
    path = write([{**PAIR, "user": ["a"]}])
    assert failure(path, names=["user"]) == f"{path}:1: field 'user' is a list; it must be a string or a whole number"
    assert len(read_rows(path, "demonstrations")[0]) == 1


# Files.


@pytest.mark.parametrize("suffix, compress", [("", bytes), (".xz", lzma.compress), (".gz", gzip.compress)])
def test_plain_and_compressed_files_are_the_same(write, suffix, compress):
    data = '\ufeff{"prompt": "안녕"}\r\n\r\n{"prompt": "\\ud83d\\ude00"}'.encode()
    records, report = read_rows(write(compress(data), "rows.jsonl" + suffix), "prompts")
    assert [record.prompt for record in records] == ["안녕", "😀"]
    assert (report.kept, report.skipped) == (2, ())


def test_text_files_split_at_markers_else_at_blank_lines(write):
    inner = "two <|endoftext|> two <|endoftext|>"
    marked = f"\ufeffone\n\nstill one\n<|endoftext|>\n{inner}\r\n<|endoftext|>\n\n"
    records, _ = read_rows(write(marked, "a.txt"), "documents")
    assert records == [Document("one\n\nstill one"), Document(inner)]
    records, _ = read_rows(write("one\nline\n\n\n two\n", "b.txt"), "documents")
    assert records == [Document("one\nline"), Document(" two")]
    records, _ = read_rows(write("one\n\nmore\ntwo\n\nmore", "c.txt"), "documents", document_end=r"(?<!\n)\n(?!\n)")
    assert records == [Document("one\n\nmore"), Document("two\n\nmore")]


def test_documents_are_read_from_json_lines_too(write):
    assert read_rows(write([{"text": "a"}]), "documents")[0] == [Document("a")]


def test_a_row_of_other_fields_is_told_how_to_rename_them(write):
    message = failure(write([{"question": "a", "answer": "b"}]))
    assert "the row has 'question', 'answer'; in a config, FILE:THEIRS=OURS renames a field" in message


def test_missing_file_says_what_is_there(write, tmp_path):
    write([PAIR], "train.jsonl")
    message = failure(tmp_path / "trian.jsonl")
    assert message.startswith(f"{tmp_path}/trian.jsonl: no such file") and "train.jsonl" in message
    message = failure(tmp_path / "nothing" / "here" / "x.jsonl")
    assert f"because there is no folder {tmp_path}/nothing/here; {tmp_path} holds train.jsonl" in message
    (tmp_path / "folder.jsonl").mkdir()
    assert "holds none of the files" in failure(tmp_path / "folder.jsonl")


@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
@pytest.mark.parametrize("suffix, compress", [(".xz", lzma.compress), (".gz", gzip.compress)])
def test_broken_compression_is_an_error_even_when_skipping(write, suffix, compress, on_bad_row):
    name = "rows.jsonl" + suffix
    data = compress(b"\n".join(json.dumps({"prompt": str(i)}).encode() for i in range(5000)))
    assert "ends too early" in failure(write(data[: len(data) // 2], name), "prompts", on_bad_row=on_bad_row)
    assert f"not a valid {suffix} file" in failure(write(b'{"prompt": "p"}', name), "prompts", on_bad_row=on_bad_row)


@pytest.mark.parametrize(
    "content, name, kind, words",
    [
        ("", "rows.jsonl", "prompts", "the file is empty"),
        ("\n \n", "rows.jsonl", "prompts", "no usable row"),
        (" \n", "text.txt", "documents", "the file is empty"),
        (b"fine\nfine\n\xff", "text.txt", "documents", "text.txt:3: byte 0xff is not UTF-8"),
        ("a", "text.txt", "prompts", "prompts are read from .jsonl, .json, .csv, .parquet, .arrow files"),
        ("a", "rows.tsv", "documents", "documents are read from .txt, .jsonl, .json, .csv"),
    ],
)
def test_unusable_files(write, content, name, kind, words):
    assert words in failure(write(content, name), kind)


def test_a_line_of_any_length_is_refused_in_bounded_memory(write, monkeypatch):
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 100)
    exact = json.dumps({"prompt": "x" * (100 - len('{"prompt": ""}'))})
    assert len(exact) == 100
    text = "\n".join(['{"prompt": "a"}', '"' + "y" * 999, exact, '{"prompt": "b"}'])
    assert "rows.jsonl:2: the line is longer" in failure(write(text), "prompts")
    records, report = read_rows(write(text), "prompts", on_bad_row="skip")
    assert [len(record.prompt) for record in records] == [1, 86, 1]
    assert [where.rsplit(":")[-1] for where, _ in report.skipped] == ["2"]


# Bad rows.

BAD_ROWS = [
    ("prompts", b'{"prompt": "a"', "not valid JSON"),
    ("prompts", b"[" * 100_000, "the line cannot be read: it nests lists or objects too deep"),
    (
        "prompts",
        b'{"prompt": "a", "n": ' + b"9" * 5000 + b"}",
        "the line cannot be read: it holds a whole number of more than",
    ),
    ("prompts", b"[1]", "the line holds a list"),
    ("prompts", b'\xed\x95{"prompt": "a"}', "byte 0xed is not UTF-8"),
    ("prompts", b'{"prompt": "a", "prompt": "b"}', "field 'prompt' appears twice"),
    ("prompts", b'{"prompt": "\\ud83d"}', "field 'prompt' holds half a character, \\ud83d"),
    ("prompts", {}, "the row has no fields"),
    ("prompts", {"prompt": 3}, "field 'prompt' is a number; it must be a string"),
    ("prompts", {"prompt": None}, "field 'prompt' is null"),
    ("prompts", {"prompt": " \n"}, "field 'prompt' is empty"),
    ("prompts", {"instruction": "i", "input": ["x"]}, "field 'input' is a list"),
    ("prompts", {"prompt": "p", "messages": []}, "fields 'prompt' and 'messages' belong to"),
    ("prompts", {"messages": []}, "field 'messages' is empty"),
    ("prompts", {"messages": ["hi"]}, "field 'messages[0]' is a string"),
    ("prompts", {"messages": [{"role": "bot", "content": "x"}]}, 'messages[0].role\' is "bot"'),
    ("prompts", {"messages": [{"role": "user"}]}, "field 'messages[0].content' is null"),
    ("prompts", {"messages": [{"role": "assistant", "content": "x"}]}, "needs a turn before"),
    ("documents", {"prompt": "p"}, "field 'text' is missing; the row has 'prompt';"),
    ("demonstrations", {"question": "q"}, "needs one of the fields"),
    ("demonstrations", {"prompt": "p"}, "needs one of the fields messages, conversations, completion, output"),
    ("demonstrations", {"prompt": "p", "completion": ""}, "field 'completion' is empty"),
    ("demonstrations", {**PAIR, "output": "o"}, "fields 'completion' and 'output' belong to"),
    ("demonstrations", {**PAIR, "instruction": "o"}, "fields 'prompt' and 'instruction' belong"),
    ("demonstrations", {"messages": [{"role": "user", "content": "x"}]}, "needs an assistant turn after another"),
    ("rankings", {"prompt": "p", "chosen": "a"}, "field 'rejected' is missing"),
    ("rankings", {**RANKED, "chosen": "a"}, "fields 'chosen' and 'completions' belong to"),
    ("rankings", {**RANKED, "completions": ["a"], "ranks": [1]}, "needs at least 2"),
    ("rankings", {**RANKED, "completions": "abc"}, "field 'completions' is a string"),
    ("rankings", {**RANKED, "completions": ["a", "", "c"]}, "'completions[1]' is empty"),
    ("rankings", {**RANKED, "ranks": [1, 2]}, "'ranks' has 2 entries for 3 completions"),
    ("rankings", {**RANKED, "ranks": [0, 1, 2]}, "'ranks' is [0, 1, 2]; ranks are whole numbers"),
    ("rankings", {**RANKED, "ranks": [1, 2, 2.5]}, "ranks are whole numbers"),
    ("rankings", {**RANKED, "ranks": [1, True, 2]}, "ranks are whole numbers"),
    ("rankings", {"prompt": "p", "completions": ["a", "b"]}, "needs one of the fields ranks, scores"),
    ("rankings", {**RANKED, "models": ["a"]}, "'models' has 1 entries for 3 completions"),
    ("rankings", {**RANKED, "finished": [1, 0, 1]}, "must be a list of true or false"),
    ("rankings", {**RANKED, "labeler": ["x"]}, "field 'labeler' is a list"),
    ("rankings", {**RANKED, "labeler": 1.5}, "field 'labeler' is 1.5; it must be a string or a whole number"),
    ("rankings", {**RANKED, "ranks": [1, 2, 10**12]}, "whole numbers from 1 (best) to 2147483647, equal"),
    ("rankings", {**RANKED, "ranks": [1, 2, 2**31]}, "'ranks' is [1, 2, 2147483648]; ranks"),
    ("rankings", {**RANKED, "ranks": [1, 2, 10**400]}, "ranks are whole numbers"),
    ("rankings", {**RANKED, "ranks": [1, 2, float("inf")]}, "ranks are whole numbers"),
    ("rankings", {**RATED, "score": 1e300}, "field 'score' is 1e+300; it must be a number from -1000000000 to"),
    ("rankings", {**RATED, "score": 10**400}, "field 'score' is 1000"),
    ("rankings", {**RATED, "score": float("nan")}, "field 'score' is NaN"),
    ("rankings", {**RATED, "score": True}, "field 'score' is true; it must be a number"),
    ("rankings", {**RATED, "score": "nine"}, "field 'score' is \"nine\"; it must be a number"),
    ("rankings", {**RATED, "score": "nan"}, "field 'score' is"),
    ("rankings", {**RATED, "score": "9" * 100_000 + "x"}, "field 'score' is"),
    ("rankings", {**RANKED, "ranks": None, "scores": [1, 2, -2e9]}, "field 'scores[2]' is -2000000000.0"),
    ("rankings", {"prompt": "p", "chosen": "a", "rejected": "a"}, "all completions are the same text"),
    ("rankings", {**RANKED, "completions": ["a", "a", "a"], "ranks": [1, 2, 3]}, "all completions are the same text"),
    ("prompts", {"messages": [{"role": "system", "content": " "}]}, "field 'messages' is empty"),
    ("prompts", b'{"prompt": "p", "note": ["\\ud83d"]}', "field 'note' holds half a character, \\ud83d"),
    ("prompts", b'{"prompt": "p", "note": {"\\udc00": 1}}', "field 'note' holds half a character"),
    ("prompts", b'{"prompt": "p", "note": ' + b"[" * 101 + b"]" * 101 + b"}", "more than 100 deep"),
]


@pytest.mark.parametrize("kind, row, words", BAD_ROWS)
def test_bad_row_is_one_sentence_with_its_place(write, kind, row, words):
    good = {"documents": {"text": "t"}, "prompts": PAIR, "demonstrations": PAIR, "rankings": RANKED}[kind]
    bad = row if isinstance(row, bytes) else json.dumps(row).encode()
    path = write(json.dumps(good).encode() + b"\n\n" + bad + b"\n")
    message = failure(path, kind)
    assert message.startswith(f"{path}:3: ") and words in message
    records, report = read_rows(path, kind, on_bad_row="skip")
    assert len(records) == report.kept == 1
    assert report.skipped == ((f"{path}:3", message.removeprefix(f"{path}:3: ")),)
    assert "1 bad ones skipped" in str(report)


def test_skipping_everything_is_an_error(write):
    assert "no usable row; the first of 2 bad rows" in failure(write([{}, {}]), on_bad_row="skip")


def test_rankings_that_say_nothing_are_kept_and_counted(write):
    rows = [RANKED, {**RANKED, "ranks": [3, 3, 3]}]
    records, report = read_rows(write(rows), "rankings")
    assert [record.all_tied for record in records] == [False, True]
    assert report.all_tied == 1 and "1 of them" in str(report)


@pytest.mark.parametrize("options", [{"kind": "pairs"}, {"kind": "prompts", "on_bad_row": "no"}])
def test_unknown_options(write, options):
    with pytest.raises(InputError):
        read_rows(write([PAIR]), **options)


NAMES = st.sampled_from(
    [
        "prompt",
        "instruction",
        "input",
        "output",
        "completion",
        "messages",
        "conversations",
        "tools",
        "tool_calls",
        "label",
        "weight",
        "from",
        "value",
        "chosen",
        "rejected",
        "completions",
        "ranks",
        "text",
        "labeler",
        "models",
        "finished",
        "role",
        "content",
        "\ud800",
        "a\nb",
        "x" * 999,
    ]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-1, 3)
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["user", "assistant", "tool", "gpt", "text"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
)


def nested(depth):
    value = "x"
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


LINES = st.binary(max_size=30) | st.dictionaries(NAMES, VALUES, max_size=5).map(lambda row: json.dumps(row).encode())


@given(lines=st.lists(LINES, min_size=1, max_size=6), kind=st.sampled_from(KINDS))
def test_any_bytes_are_records_or_skipped_rows(tmp_path_factory, lines, kind):
    path = tmp_path_factory.mktemp("any") / "rows.jsonl"
    path.write_bytes(b"\n".join(lines))
    rows = sum(bool(line.strip()) for line in path.read_bytes().split(b"\n"))
    try:
        records, report = read_rows(path, kind, on_bad_row="skip")
    except InputError as error:
        assert str(error).startswith(str(path))
    else:
        assert len(records) + len(report.skipped) == rows
        for record in records:
            for name in ("prompt", "completion", "text"):
                assert getattr(record, name, "x").strip()


@given(row=st.dictionaries(NAMES, VALUES, max_size=6), kind=st.sampled_from(KINDS))
def test_any_row_is_a_record_or_an_input_error(row, kind):
    try:
        record = parse_row(row, kind)
    except InputError as error:
        sentence = str(error)
        assert sentence.encode() and "\n" not in sentence and len(sentence) < 400
        return
    if kind == "rankings":
        assert len(record.ranks) == len(record.completions) >= 2
        assert all(type(rank) is int and rank >= 1 for rank in record.ranks)


WHOLE = {
    "documents": {"text": "t"},
    "prompts": {"messages": [{"role": "user", "content": "hi"}]},
    "demonstrations": {"instruction": "i", "input": "j", "output": "o", "user": "u", "group": "g", "split": "train"},
    "rankings": {
        "prompt": "p",
        "completions": ["a", "b", "c"],
        "scores": [1, 2, 3],
        "labeler": "l",
        "group": "g",
        "models": ["x", "y", "z"],
        "finished": [True, True, False],
        "user": "u",
    },
}
EXTREMES = st.sampled_from(
    [
        10**400,
        -(10**400),
        10**12,
        2**31,
        2**63,
        1e300,
        -1e300,
        5e-324,
        float("nan"),
        float("inf"),
        -1,
        0,
        1.0,
        True,
        "",
        " ",
        "9" * 5000,
        "\ud800",
        "a\udfffb",
        "\u2028",
        "\x00",
        "\x1b[2J",
        "nan",
        "1_0",
        [[[]]],
        {"a": {"b": []}},
        "<|endoftext|>",
        "{output}",
    ]
)
ANYTHING = (
    EXTREMES
    | st.recursive(
        EXTREMES | VALUES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=3)
    )
    | st.integers(1, 300).map(nested)
)


@settings(deadline=None)
@given(data=st.data(), kind=st.sampled_from(KINDS))
def test_any_value_in_any_field_is_rows_or_a_sentence_with_its_place(tmp_path_factory, data, kind):
    whole = WHOLE[kind]
    bad = dict(whole)
    for name in data.draw(
        st.lists(st.sampled_from([*whole, "score", "completion", "chosen", "rejected", "ranks"]), max_size=3)
    ):
        old = bad.get(name)
        part = isinstance(old, list) and data.draw(st.booleans())
        bad[name] = [*old[:-1], data.draw(ANYTHING)] if part else data.draw(ANYTHING)
    folder = tmp_path_factory.mktemp("any")
    good = [whole | {"user": f"u{i}", "group": f"g{i}", "labeler": f"l{i}"} for i in range(4)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*good, bad]))
    config = data_config().files
    options = {"group_field": "group", "per_user": 1, "near_duplicates": "drop", "splits": "published"}
    config.update(dir=str(folder), **{kind: "rows.jsonl"}, **data.draw(st.just({}) | st.just(options)))
    try:
        corpus = FileCorpus(config, Template(), "error")
        found = corpus.splits(kind)
    except InputError as error:
        assert str(error).startswith(f"{folder}/rows.jsonl:5: ") or "no row has the field" in str(error)
        assert "\n" not in str(error) and len(str(error)) < 600
        return
    for row in sum(found.values(), []):
        json.dumps(dataclasses.asdict(row), ensure_ascii=False).encode()  # it can be written again
        if kind == "rankings":
            np.array(row.ranks, np.int32), np.array(row.scores or (), np.float32)
            assert np.isfinite(np.float32(row.scores or 0)).all() and min(row.ranks) >= 1
    if kind == "rankings" and found["train"]:
        ratings.compare(found["train"], 4)


# Real files.


@pytest.mark.parametrize(
    "name, kind, fields, rows, bad",
    [
        ("pref_truthfulqa_judge.jsonl.xz", "rankings", None, 24000, 153),
        ("ranked4_qa_feedback.jsonl.xz", "rankings", None, 334, 0),
        ("ranked4_qa_feedback.jsonl.xz", "prompts", {"prompt": "instruction"}, 334, 0),
        ("sft_llamafactory_alpaca_en.jsonl.xz", "demonstrations", None, 999, 0),
        ("sft_ko_chatbot.jsonl.xz", "demonstrations", {"Q": "instruction", "A": "output"}, 11000, 0),
        ("sft_gsm8k_train.jsonl.xz", "demonstrations", {"question": "prompt", "answer": "completion"}, 7473, 0),
    ],
)
def test_real_files_are_read_as_they_are(shared_data, name, kind, fields, rows, bad):
    records, report = read_rows(shared_data / name, kind, fields=fields, on_bad_row="skip")
    assert (len(records), len(report.skipped)) == (rows - bad, bad)
    equal = [reason for _, reason in report.skipped if "all completions are the same text" in reason]
    assert all("is empty; give its text" in reason for _, reason in report.skipped if reason not in equal)
    assert len(equal) == (5 if bad else 0)


def test_reading_does_not_import_jax():
    code = (
        "import sys, rlhf_jax.data.record_files, rlhf_jax.data.template, rlhf_jax.data.tokenizer; "
        'sys.exit("jax" in sys.modules)'
    )
    subprocess.run([sys.executable, "-c", code], check=True)
