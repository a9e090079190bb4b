"""Files as a corpus: which rows, in which split, from which files."""

import collections
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_jax.config import data_config
from rlhf_jax.data.corpus import FileCorpus, _spread
from rlhf_jax.data.template import Template
from rlhf_jax.fields import forms
from rlhf_jax.runtime.errors import InputError


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def corpus(folder, on_bad_row="error", **files):
    config = data_config().files
    config.update(dir=str(folder), **files)
    return FileCorpus(config, Template(), on_bad_row)


def pair(question, number):
    return {"prompt": question, "chosen": f"good {number}", "rejected": f"bad {number}", "group": question}


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "pairs.jsonl", [pair(f"question {i // 5}", i) for i in range(500)])
    write(
        tmp_path / "demos.jsonl", [{"instruction": f"task {i}", "input": "", "output": f"done {i}"} for i in range(200)]
    )
    write(tmp_path / "qa.jsonl", [{"question": f"question {i}", "answer": f"answer {i}"} for i in range(100)])
    (tmp_path / "stories.txt").write_text("\n".join(f"story {i}, first part\n\nsecond part" for i in range(60)))
    return tmp_path


SPLITS = ("train", "valid", "test")


def test_every_row_is_in_one_split_and_a_group_is_never_divided(folder):
    found = corpus(folder, rankings="pairs.jsonl")
    rows = {split: found.rankings(split) for split in SPLITS}
    assert sum(map(len, rows.values())) == 500
    groups = {split: {row.group for row in rows[split]} for split in SPLITS}
    assert sum(map(len, groups.values())) == 100 == len(set().union(*groups.values()))
    assert len(rows["train"]) > 300 and min(map(len, groups.values())) >= 3


def test_nothing_is_sampled_after_no_prompt(folder):
    rated = [{"completion": f"text {i}", "score": i} for i in range(60)]
    write(folder / "rated.jsonl", rated + [row | {"prompt": "why?"} for row in rated[:2]])
    found = corpus(folder, rankings="rated.jsonl", demonstrations="demos.jsonl")
    assert len({row.prompt for split in SPLITS for row in found.prompts(split, "ppo")}) == 201
    assert all(row.prompt for split in SPLITS for row in found.prompts(split, "ppo"))
    write(folder / "rated.jsonl", rated)
    with pytest.raises(
        InputError, match="no row of data.files.rankings in the train split has a prompt to sample from"
    ):
        corpus(folder, rankings="rated.jsonl").prompts("train", "ppo")


@pytest.mark.parametrize("fields", [{"per_user": 2}, {"group_field": "user"}, {"held_out_labelers": "20%"}], ids=str)
def test_a_list_where_rows_are_divided_by_names_is_a_bad_row(folder, fields):
    rows = [{"prompt": f"p{i}", "completion": "c", "user": "a", "labeler": "b"} for i in range(9)]
    name = "labeler" if "held_out_labelers" in fields else "user"
    write(folder / "users.jsonl", [*rows, rows[0] | {name: ["a"]}])
    with pytest.raises(InputError, match=f"users.jsonl:10: field '{name}' is a list; it must be a string"):
        corpus(folder, demonstrations="users.jsonl", **fields).demonstrations("train")
    assert corpus(folder, demonstrations="users.jsonl").demonstrations("train")  # then nobody asks who it was


def test_the_split_is_of_the_question_whatever_the_file(folder):
    """A question asked in a preference file and in a demonstration file lies in the same split of both."""
    found = corpus(folder, rankings="pairs.jsonl", demonstrations="qa.jsonl:question=prompt;answer=completion")
    for split in SPLITS:
        asked = {row.prompt for row in found.rankings(split)}
        assert {row.prompt for row in found.demonstrations(split)} == asked
        assert {row.prompt for row in found.prompts(split, "ppo")} == asked  # each once


def test_another_order_or_more_rows_move_nothing(folder):
    before = {
        row.row["chosen"]: split for split in SPLITS for row in corpus(folder, rankings="pairs.jsonl").rankings(split)
    }
    write(folder / "pairs.jsonl", [pair(f"question {i // 5}", i) for i in reversed(range(600))])
    after = {
        row.row["chosen"]: split for split in SPLITS for row in corpus(folder, rankings="pairs.jsonl").rankings(split)
    }
    assert {name: after[name] for name in before} == before


def test_shares_are_those_of_the_config(folder):
    found = corpus(folder, demonstrations="demos.jsonl", valid_share=0.2, test_share=0.7)
    counts = [len(found.demonstrations(split)) for split in SPLITS]
    assert sum(counts) == 200 and counts == pytest.approx([20, 40, 140], abs=20)


@pytest.mark.parametrize("published, other", [("rankings", "prompts"), ("prompts", "rankings")])
def test_published_splits_are_kept_and_what_is_held_out_is_in_no_other_kind(tmp_path, capsys, published, other):
    """A prompt that one file publishes as test is no train row of any file, published or not."""
    names = ("train", "validation", "test")
    write(
        tmp_path / "split.jsonl",
        [pair(f"q{i}", i) | {"split": names[i % 3]} for i in range(90)] + [pair("q2", 91) | {"split": "train"}],
    )
    write(tmp_path / "plain.jsonl", [pair(f"q{i}", i) for i in range(150)])
    found = corpus(tmp_path, splits="published", **{published: "split.jsonl", other: "plain.jsonl"})
    asked = {split: [row.prompt for row in found._split(published, split)] for split in SPLITS}
    assert asked == {split: [f"q{i}" for i in range(place, 90, 3)] for place, split in enumerate(SPLITS)}
    assert f"{published}: 1 rows left out, because their group is in valid or test too" in capsys.readouterr().out
    shown = {split: [row.prompt for row in found._split(other, split)] for split in SPLITS}
    assert all([prompt for prompt in shown[split] if int(prompt[1:]) < 90] == asked[split] for split in SPLITS)
    assert sum(map(len, shown.values())) == 150 and len(shown["valid"]) > 30  # the others by their shares


def test_an_unknown_way_to_split_is_refused(folder):
    with pytest.raises(InputError, match="data.files.splits='own' must be 'shares' or 'published'"):
        corpus(folder, rankings="pairs.jsonl", splits="own").rankings("train")


def test_an_empty_split_says_what_to_change(folder):
    found = corpus(folder, demonstrations="demos.jsonl", valid_share=0.0)
    with pytest.raises(
        InputError, match="valid split of data.files.demonstrations is empty; raise data.files.valid_share"
    ):
        found.demonstrations("valid")
    found = corpus(folder, demonstrations="demos.jsonl@1", valid_share=0.9, test_share=0.09)
    with pytest.raises(
        InputError, match="train split of data.files.demonstrations is empty; lower data.files.valid_share or"
    ):
        found.demonstrations("train")


def test_a_kind_without_a_file_is_named(folder):
    with pytest.raises(InputError, match="data.files.documents is empty: name files"):
        corpus(folder, demonstrations="demos.jsonl").documents("train")


def test_several_files_a_row_count_and_renamed_fields(folder):
    entries = "demos.jsonl@40, qa.jsonl@10:question=instruction;answer=output"
    found = corpus(folder, demonstrations=entries, valid_share=0.2, test_share=0.2)
    rows = [row for split in SPLITS for row in found.demonstrations(split)]
    kinds = collections.Counter("output" in row.row for row in rows)
    assert kinds == {True: 40, False: 10}
    taken = sorted(int(row.row["output"].split()[1]) for row in rows if "output" in row.row)
    assert taken == list(range(0, 200, 5))  # spread over the file
    assert {row.completion for row in rows} >= {" answer 0", " answer 90"}  # rendered as an instruction's
    assert sorted(found.reports) == [f"demonstrations: {folder / name}" for name in ("demos.jsonl", "qa.jsonl")]


def test_prompts_of_their_own_replace_those_of_the_rows(folder):
    write(folder / "prompts.jsonl", [{"prompt": f"only {i}"} for i in range(50)])
    found = corpus(folder, demonstrations="demos.jsonl", prompts="prompts.jsonl")
    assert all(row.prompt.startswith("only") for row in found.prompts("train", "ppo"))


def test_a_prompt_that_a_file_repeats_is_one_prompt_of_its_split(folder, capsys):
    """Else intervals over test prompts would count the samples of one as independent."""
    write(folder / "prompts.jsonl", [{"prompt": f"only {i % 30}", "category": i // 30} for i in range(150)])
    found = corpus(folder, demonstrations="demos.jsonl", prompts="prompts.jsonl")
    by_split = {split: found.prompts(split, "ppo") for split in SPLITS}
    assert sorted(row.prompt for rows in by_split.values() for row in rows) == sorted(f"only {i}" for i in range(30))
    assert all(row.row["category"] == 0 for rows in by_split.values() for row in rows)  # the first stays
    assert found.prompts("test", "ppo") is found.prompts("test", "rm")
    left_out = 4 * len(by_split["test"])
    assert (
        capsys.readouterr().out.count(f"data.files.prompts: {left_out} rows left out of test, because they repeat") == 1
    )


def test_documents_are_divided_by_the_given_expression(folder):
    found = corpus(folder, documents="stories.txt", document_end=r"(?<!\n)\n(?!\n)")
    texts = [row.text for split in SPLITS for row in found.documents(split)]
    assert sorted(texts) == sorted(f"story {i}, first part\n\nsecond part" for i in range(60))


def test_bad_rows_are_an_error_or_counted_and_listed(folder):
    rows = [pair(f"question {i}", i) for i in range(40)]
    rows[7]["chosen"] = " "
    write(folder / "dirty.jsonl", rows)
    with pytest.raises(InputError, match=r"dirty.jsonl:8: field 'chosen' is empty"):
        corpus(folder, rankings="dirty.jsonl").rankings("train")
    found = corpus(folder, on_bad_row="skip", rankings="dirty.jsonl")
    assert sum(len(found.rankings(split)) for split in SPLITS) == 39
    (report,) = found.reports.values()
    assert report.kept == 39 and [where for where, _ in report.skipped] == [f"{folder / 'dirty.jsonl'}:8"]


@pytest.mark.parametrize("entry", ["a.jsonl:a+:b=c", "a.jsonl@many", "a.jsonl@", ":a=b", "a.jsonl:a=b=c", "a.jsonl:=b"])
def test_a_wrong_entry_says_how_files_are_given(folder, entry):
    with pytest.raises(InputError, match=r"data.files.demonstrations='.*' must be entries name\[@rows\]"):
        corpus(folder, demonstrations=entry).demonstrations("train")


@given(
    st.from_regex(r"[a-z./_-]{1,12}", fullmatch=True),
    st.none() | st.integers(1, 10**6),
    st.lists(st.from_regex(r"[a-z_]{1,6}", fullmatch=True), max_size=2),
    st.dictionaries(*2 * [st.from_regex(r"[a-z_ ]{1,6}", fullmatch=True)], max_size=3),
)
def test_entries_are_read_as_written(name, count, splits, fields):
    entry = name + (f"@{count}" if count else "") + (f":{'+'.join(splits)}" if splits else "")
    entry += ":" + ";".join(f"{a}={b}" for a, b in fields.items()) if fields else ""
    assert forms.entry(entry) == (name, count, splits, fields, None)
    weighted = entry.replace(name + (f"@{count}" if count else ""), name + (f"@{count}" if count else "") + "*0.25", 1)
    assert forms.entry(weighted) == (name, count, splits, fields, 0.25)


@given(st.integers(1, 200), st.integers(1, 250))
def test_spread_rows_are_distinct_in_order_and_evenly_apart(total, count):
    rows = _spread(list(range(total)), count)
    assert len(rows) == min(total, count) and rows == sorted(set(rows))
    gaps = [b - a for a, b in zip(rows, rows[1:])]
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_the_real_files(shared_data):
    """The dirt that is known: empty answers, and rankings in which all are equal."""
    found = corpus(
        shared_data,
        on_bad_row="skip",
        rankings="pref_truthfulqa_judge.jsonl.xz@1000,ranked4_qa_feedback.jsonl.xz",
        documents="text_tinystories.txt.xz",
        document_end=r"(?<!\n)\n(?!\n)",
    )
    rows = {split: found.rankings(split) for split in SPLITS}
    assert sum(map(len, rows.values())) == 1334
    judged, ranked = found.reports.values()
    assert (judged.kept, len(judged.skipped)) == (23_847, 153) and (ranked.kept, ranked.all_tied) == (334, 8)
    prompts = [{row.prompt for row in rows[split]} for split in SPLITS]
    assert not (prompts[0] & prompts[1] or prompts[0] & prompts[2] or prompts[1] & prompts[2])
    assert len(found.documents("valid")) > 400
