"""Rows of every kind of file and folder; what is broken, too big or points elsewhere is refused in one sentence."""

import datetime
import gzip
import json
import lzma
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_jax.data import files, folders, rows
from rlhf_jax.data.record_files import read_rows
from rlhf_jax.runtime.errors import InputError

PAIRS = [{"prompt": f"p{i}", "chosen": f"gut {i} 좋다", "rejected": "no"} for i in range(5)]


def found(path, **options):
    """The good rows of a file or folder, by place relative to it."""
    listed = list(rows.read(path, **options))
    assert not any(isinstance(row, InputError) for _, row in listed)
    return [row for _, row in listed]


def failure(path, **options):
    with pytest.raises(InputError) as caught:
        for _, row in rows.read(path, **options):
            if isinstance(row, InputError):
                raise row
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    return str(caught.value)


def write_parquet(path, table, **options):
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra parquet is not installed")
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, **options)
    return path


@pytest.fixture
def pyarrow():
    return pytest.importorskip("pyarrow", reason="the extra parquet is not installed")


# Files.


def test_json_lines_a_json_list_and_csv_hold_the_same_rows(tmp_path):
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in PAIRS))
    (tmp_path / "lines.json").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    (tmp_path / "list.json").write_text("\ufeff \n" + json.dumps(PAIRS, indent=2, ensure_ascii=False), encoding="utf-8")
    with gzip.open(tmp_path / "list.jsonl.gz", "wt") as file:
        file.write(json.dumps(PAIRS))
    text = "prompt,chosen,rejected\n" + "".join(f'{row["prompt"]},"{row["chosen"]}",no\r\n' for row in PAIRS)
    (tmp_path / "table.csv").write_text(text, encoding="utf-8")
    for name in ("lines.jsonl", "lines.json", "list.json", "list.jsonl.gz", "table.csv"):
        assert found(tmp_path / name) == PAIRS, name
        records, report = read_rows(tmp_path / name, "rankings")
        assert [record.completions[0] for record in records] == [row["chosen"] for row in PAIRS]


def test_numbers_and_empty_cells_of_csv(tmp_path):
    (tmp_path / "rated.csv").write_text('completion,score,prompt,labeler\n"good, so",9,,ann\nbad,-1.5,,\n')
    records, _ = read_rows(tmp_path / "rated.csv", "rankings")
    assert [(row.completions, row.scores, row.prompt, row.labeler) for row in records] == [
        ((" good, so",), (9.0,), "", "ann"),
        ((" bad",), (-1.5,), "", None),
    ]
    (tmp_path / "demos.csv").write_text("instruction,input,output\nadd,,2\nsub,1,0\n")
    found, _ = read_rows(tmp_path / "demos.csv", "demonstrations")
    assert [row.prompt for row in found] == ["add\nanswer:", "sub\n1\nanswer:"]


def test_binary_columns_are_no_text(tmp_path, pyarrow):
    image = {"text": "a", "image": b"\x00\x01", "many": [b"x"], "length": datetime.timedelta(seconds=3)}
    path = write_parquet(tmp_path / "a.parquet", pyarrow.Table.from_pylist([image]))
    (row,) = found(path)
    assert json.loads(json.dumps(row)) == {
        "text": "a",
        "image": "<2 bytes>",
        "many": ["<1 bytes>"],
        "length": "0:00:03",
    }
    assert read_rows(path, "documents")[0][0].text == "a"
    with pytest.raises(InputError, match="a.parquet:1: field 'text' is binary data; it must be a string"):
        read_rows(path, "documents", fields={"text": "old", "image": "text"})


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.csv", "a.txt", "a.parquet", "a.arrow"])
def test_a_pipe_or_a_device_is_refused_and_nobody_waits_for_it(tmp_path, name, pyarrow):
    os.mkfifo(tmp_path / name)
    assert f"{name}: is a pipe or a device; write its content to a file" in failure(tmp_path / name)
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / name).symlink_to("/dev/zero")
    assert f"{name}: is a pipe or a device; write its content to a file" in failure(tmp_path / "link" / name)
    if name == "a.txt":
        with pytest.raises(InputError, match="is a pipe or a device"):
            read_rows(tmp_path / name, "documents")


SEPARATORS = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei"  # all of which str.splitlines splits at


def test_only_a_line_feed_ends_a_row(tmp_path, pyarrow):
    row = {"prompt": SEPARATORS, "completion": f"{SEPARATORS}\r\n{SEPARATORS}"}
    line = json.dumps(row, ensure_ascii=False) + "\n"
    quoted = ",".join(f'"{value}"' for value in row.values())
    contents = {
        "a.jsonl": 2 * line,
        "b.json": json.dumps([row, row], ensure_ascii=False),
        "c.csv": f"prompt,completion\n{quoted}\n{quoted}\n",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content.encode())
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(contents["a.jsonl"].encode()))
    write_parquet(tmp_path / "e.parquet", pyarrow.Table.from_pylist([row, row]))
    for path in sorted(tmp_path.iterdir()):
        assert [place[-1] for place, _ in rows.read(path)] == (
            ["1", "1"] if path.name == "b.json" else ["2", "4"] if path.name == "c.csv" else ["1", "2"]
        ), path
        wanted = row if path.name != "c.csv" else {name: text.replace("\r\n", "\n") for name, text in row.items()}
        assert found(path) == [wanted, wanted], path
    (tmp_path / "f.txt").write_text(f"{SEPARATORS}\n{SEPARATORS}\n\n{SEPARATORS}", newline="\n")
    texts = [f"{SEPARATORS}\n{SEPARATORS}", SEPARATORS]
    assert [row["text"] for row in found(tmp_path / "f.txt")] == texts
    assert [document.text for document in read_rows(tmp_path / "f.txt", "documents")[0]] == texts


def test_places_are_the_lines_where_rows_begin(tmp_path):
    (tmp_path / "list.json").write_text('[\n  {"a": 1},\n\n  {"a":\n 2}, 3,\n {"a": 4}\n]\n')
    listed = list(rows.read(tmp_path / "list.json"))
    assert [place.rsplit(":", 1)[1] for place, _ in listed] == ["2", "4", "5", "6"]
    assert "the entry holds a number" in str(listed[2][1])
    (tmp_path / "table.csv").write_text('a,b\n"two\nlines",x\nshort\n3,y\n')
    listed = list(rows.read(tmp_path / "table.csv"))
    assert [place.rsplit(":", 1)[1] for place, _ in listed] == ["2", "4", "5"]
    assert listed[0][1] == {
        "a": "two\nlines",
        "b": "x",
    } and "the row has 1 values; it must have one for each of the 2 columns" in str(listed[1][1])


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("a.json", '[{"a": 1},\n {"a" 2}]', "a.json:2: not valid JSON"),
        ("a.json", '[{"a": 1}', "a.json:1: not valid JSON"),
        (
            "a.json",
            '[\n{"a": ' + "[" * 100_000,
            "a.json:2: the entry cannot be read: it nests lists or objects too deep",
        ),
        (
            "a.json",
            '[\n{"a": ' + "9" * 5000 + "}]",
            "a.json:2: the entry cannot be read: it holds a whole number of more than 4300 digits",
        ),
        ("a.json", '[{"a": 1, "a": 2}]', "a.json:1: field 'a' appears twice"),
        ("a.json", '[{"a": 1}] \n\n x', "text follows the end of the JSON list"),
        ("a.csv", "a,a\n1,2\n", "a.csv:1: two columns have the same name"),
        ("a.csv", 'a,b\n"x"y,2\n', "a.csv:2: not valid CSV"),
        ("a.csv", b"a,b\n1,\xff\n", "a.csv:2: byte 0xff is not UTF-8"),
        ("a.parquet", "PAR1 is no more", "not a readable .parquet file"),
        ("a.arrow", "nothing", "not a readable .arrow file"),
        ("a.arrow", "", "not a readable .arrow file"),
    ],
)
def test_broken_files_are_one_sentence(tmp_path, name, content, words):
    pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert words in failure(tmp_path / name) and str(tmp_path / name) in failure(tmp_path / name)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json.xz", "a.csv", "a.txt", "a.parquet", "a.arrow"])
def test_a_pointer_of_git_lfs_is_no_data(tmp_path, name):
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 13\n")
    assert f"{tmp_path}/{name}: is a pointer of Git LFS, and not the file; run `git lfs pull`" in failure(
        tmp_path / name
    )


def test_parquet_rows_have_plain_values(tmp_path, pyarrow):
    rated = [{"aspect": "honesty", "Rating": 4}]
    table = pyarrow.Table.from_pylist(
        [
            {**pair, "ratings": rated, "when": datetime.datetime(2023, 4, 12), "none": None, "score": 0.5, "raw": b"xy"}
            for pair in PAIRS
        ]
    )
    path = write_parquet(tmp_path / "train-00000-of-00001.parquet", table, row_group_size=2)
    extra = {"ratings": rated, "when": "2023-04-12T00:00:00", "none": None, "score": 0.5, "raw": "<2 bytes>"}
    assert found(path) == [{**pair, **extra} for pair in PAIRS]
    assert [place for place, _ in rows.read(path)] == [f"{path}:{number}" for number in range(1, 6)]
    json.dumps(found(path))


def test_wrong_types_in_a_parquet_name_row_and_field(tmp_path, pyarrow):
    path = write_parquet(
        tmp_path / "a.parquet", pyarrow.table({"prompt": ["a", "b"], "chosen": [1, 2], "rejected": ["x", "y"]})
    )
    with pytest.raises(InputError, match=r"a.parquet:1: field 'chosen' is a number; it must be a string"):
        read_rows(path, "rankings")
    dates = pyarrow.table({"prompt": [datetime.date(2020, 1, 1)], "completions": [["a", "b"]], "ranks": [["1", "2"]]})
    with pytest.raises(InputError, match=r"b.parquet:1: field 'ranks' is \[\"1\", \"2\"\]"):
        read_rows(write_parquet(tmp_path / "b.parquet", dates), "rankings")


def test_a_truncated_parquet_is_refused(tmp_path, pyarrow):
    path = write_parquet(tmp_path / "a.parquet", pyarrow.Table.from_pylist(PAIRS * 100))
    path.write_bytes(path.read_bytes()[:-20])
    assert "a.parquet: not a readable .parquet file" in failure(path)


PIECES = st.sampled_from(["word", "two words", "<|endoftext|>", "a <|endoftext|>", "\n", "\n\n", "\n \t\n", "\r\n"])


@given(st.lists(PIECES, max_size=12))
def test_documents_are_those_of_the_whole_text(tmp_path_factory, pieces):
    """Read line by line or at once, by `prepare` or by data.files.documents."""
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_text("word" + "".join(pieces), newline="")
    assert [row["text"] for row in found(path)] == [document.text for document in read_rows(path, "documents")[0]]


def test_a_real_csv(shared_data):
    fields = {"Question": "instruction", "Best Answer": "output"}
    records, report = read_rows(shared_data / "eval" / "TruthfulQA.csv.xz", "demonstrations", fields=fields)
    assert (report.kept, report.skipped) == (817, ())
    assert records[0].prompt.startswith("What happens to you if you eat watermelon seeds?")


# Bombs.


@pytest.mark.parametrize("suffix, compress", [(".xz", lzma.compress), (".gz", gzip.compress)])
@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".txt"])
def test_a_small_file_that_unfolds_without_end_is_refused(tmp_path, monkeypatch, suffix, compress, ending):
    monkeypatch.setattr(files, "ALWAYS_ALLOWED_BYTES", 2**18)
    monkeypatch.setattr(files, "MAX_RATIO", 50)
    row = {".jsonl": b'{"text": "aaaaaaaaaaaaaaaa"}\n', ".json": b" " * 60 + b"\n", ".csv": b"a,b\n", ".txt": b"aaaa\n"}
    data = (b"[" if ending == ".json" else b"") + row[ending] * (2 * 2**20 // len(row[ending]))
    path = tmp_path / f"bomb{ending}{suffix}"
    path.write_bytes(compress(data))
    assert path.stat().st_size * files.MAX_RATIO < len(data)
    assert "the content is more than 50 times as large as the file" in failure(path)
    if ending == ".txt":
        with pytest.raises(InputError, match="the content is more than 50 times as large as the file"):
            read_rows(path, "documents")


@pytest.mark.parametrize("nested", [False, True])
def test_a_parquet_that_repeats_a_long_text_is_refused_in_bounded_memory(tmp_path, pyarrow, nested):
    """16 MiB (1 MiB in lists) of text, kept once, for each of 20,000 rows: 320 GB if each had its own."""
    texts = pyarrow.DictionaryArray.from_arrays(
        pyarrow.array([0] * 20_000, pyarrow.int32()), ["x" * (2**20 if nested else 2**24)]
    )
    if nested:
        texts = pyarrow.ListArray.from_arrays(pyarrow.array(range(20_001), pyarrow.int32()), texts)
    path = write_parquet(
        tmp_path / "bomb.parquet", pyarrow.table({"text": texts}), compression="zstd", store_schema=False
    )
    assert path.stat().st_size < 2**20
    code = (
        f"import resource; resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30,) * 2)\n"
        f"from rlhf_jax.data import rows\nfor _ in rows.read({str(path)!r}): pass"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "the content is more than 300 times as large as the file" in result.stderr


# Folders.


def snapshot(folder, names, table):
    for name in names:
        write_parquet(folder / name, table)
    (folder / "README.md").write_text("---\nconfigs: []\n---\n")


def test_a_hub_folder_is_read_with_its_splits(tmp_path, pyarrow):
    table = pyarrow.Table.from_pylist(PAIRS)
    snapshot(
        tmp_path,
        [
            "data/train-00000-of-00002.parquet",
            "data/train-00001-of-00002-0123456789abcdef.parquet",
            "data/validation-00000-of-00001.parquet",
        ],
        table,
    )
    listed = found(tmp_path)
    assert [row["split"] for row in listed] == ["train"] * 10 + ["valid"] * 5
    assert found(tmp_path, splits=["valid"]) == [{**row, "split": "valid"} for row in PAIRS]
    assert found(tmp_path, splits=["validation"]) == found(tmp_path, splits=["valid"])
    assert "has no split test; it has train, validation" in failure(tmp_path, splits=["test"])


def test_a_folder_of_several_tables_wants_one_named(tmp_path, pyarrow):
    table = pyarrow.Table.from_pylist(PAIRS)
    snapshot(tmp_path / "a", ["main/train-00000.parquet", "socratic/train-00000.parquet"], table)
    assert "holds several tables, in main, socratic; name one of these folders" in failure(tmp_path / "a")
    snapshot(
        tmp_path / "b",
        [f"data/{name}-00000-of-00001.parquet" for name in ("train_sft", "train_prefs", "test_prefs")],
        table,
    )
    assert "holds several tables, train_prefs, train_sft; name one, as b:train_" in failure(tmp_path / "b")
    assert len(found(tmp_path / "b", splits=["train_prefs", "test_prefs"])) == 10
    (tmp_path / "b" / "data" / "x.jsonl").write_text("{}")
    assert "holds .jsonl and .parquet files; name one of them, or its folder" in failure(tmp_path / "b")
    (tmp_path / "c").mkdir()
    assert "holds none of the files that rows are read from" in failure(tmp_path / "c")
    assert "a file has no splits" in failure(tmp_path / "b" / "data" / "x.jsonl", splits=["train"])


def test_files_whose_names_say_the_split(tmp_path):
    for name in (
        "helpful/train.jsonl",
        "helpful/test.jsonl",
        "parts/train/0.jsonl",
        "parts/test/1.jsonl",
        "plain/a.jsonl",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('{"text": "x"}\n')
    for name in ("helpful", "parts"):
        assert [row["split"] for row in found(tmp_path / name)] == ["test", "train"]
    assert found(tmp_path / "plain") == [{"text": "x"}]


def saved_to_disk(folder, splits, pyarrow):
    """As `datasets.DatasetDict.save_to_disk` writes: Arrow streams, named by state.json."""
    folder.mkdir()
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))
    for split, tables in splits.items():
        (folder / split).mkdir()
        names = [f"data-{i:05d}-of-{len(tables):05d}.arrow" for i in range(len(tables))]
        for name, table in zip(names, tables):
            with (
                pyarrow.OSFile(str(folder / split / name), "wb") as file,
                pyarrow.ipc.new_stream(file, table.schema) as writer,
            ):
                writer.write_table(table)
        (folder / split / "dataset_info.json").write_text("{}")
        (folder / split / "state.json").write_text(
            json.dumps({"_data_files": [{"filename": name} for name in names], "_split": split})
        )


def test_what_datasets_saved_to_disk(tmp_path, pyarrow):
    tables = [pyarrow.Table.from_pylist(PAIRS[:3]), pyarrow.Table.from_pylist(PAIRS[3:])]
    saved_to_disk(tmp_path / "saved", {"train": tables, "test": tables[:1]}, pyarrow)
    assert found(tmp_path / "saved") == [{**row, "split": "train"} for row in PAIRS] + [
        {**row, "split": "test"} for row in PAIRS[:3]
    ]
    assert found(tmp_path / "saved" / "train") == PAIRS
    (tmp_path / "saved" / "train" / "data-00001-of-00002.arrow").unlink()
    assert "data-00001-of-00002.arrow: no such file" in failure(tmp_path / "saved")


@pytest.mark.parametrize("name", ["../secret.arrow", "/etc/passwd", "a/../../secret.arrow", "", None, 3])
def test_a_description_that_points_outside_its_folder_is_refused(tmp_path, pyarrow, name):
    saved_to_disk(tmp_path / "saved", {"train": [pyarrow.Table.from_pylist(PAIRS)]}, pyarrow)
    (tmp_path / "saved" / "train" / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    assert "which lies outside its folder" in failure(tmp_path / "saved")
    (tmp_path / "saved" / "dataset_dict.json").write_text(json.dumps({"splits": [name]}))
    assert f"{tmp_path}/saved/dataset_dict.json: names the file {name!r}" in failure(tmp_path / "saved")


@pytest.mark.parametrize(
    "content, words",
    [
        ("{", "not valid JSON"),
        ("[]", "is not a JSON object"),
        ("{}", "needs the field '_data_files'"),
        ('{"_data_files": ["x"]}', "must be a list of objects"),
    ],
)
def test_a_broken_description_is_named(tmp_path, content, words):
    (tmp_path / "state.json").write_text(content)
    assert words in failure(tmp_path) and "state.json" in failure(tmp_path)


@pytest.mark.parametrize(
    "published, split",
    [
        ("train", "train"),
        ("train_sft", "train"),
        ("validation", "valid"),
        ("valid1", "valid"),
        ("dev", "valid"),
        ("Test", "test"),
        ("test_prefs", "test"),
        ("latest", None),
        ("training", None),
        ("data", None),
        ("contest-2", None),
    ],
)
def test_names_of_splits(published, split):
    assert folders.split_name(published) == split


def test_without_pyarrow_the_sentence_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install 'rlhf_jax[parquet]'" in failure(tmp_path / "a.parquet")


def test_reading_tables_imports_neither_jax_nor_tensorflow():
    code = "import sys, rlhf_jax.data.rows, rlhf_jax.data.prepare; sys.exit(bool({'jax', 'tensorflow', 'pyarrow'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)
