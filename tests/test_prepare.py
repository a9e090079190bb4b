"""Preparing a dataset: the command, bad input, downloads; written whole or not at all, and read by training."""

import dataclasses
import fnmatch
import functools
import hashlib
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from published import corpus, made, write_lines

from rlhf_jax.data import prepare, prepared
from rlhf_jax.data.public import DATASETS
from rlhf_jax.data.public.dataset import Download
from rlhf_jax.runtime.errors import InputError

tfds = pytest.importorskip("tensorflow_datasets", reason="the extra tfds is not installed")
pytest.importorskip("array_record")


def test_training_reads_a_prepared_dataset(tmp_path):
    pairs = [
        {"chosen": f"\n\nHuman: {i}?\n\nAssistant: yes", "rejected": f"\n\nHuman: {i}?\n\nAssistant: no"}
        for i in range(300)
    ]
    write_lines(tmp_path / "source/helpful-base/train.jsonl", pairs[:250])
    write_lines(tmp_path / "source/helpful-base/test.jsonl", pairs[240:])
    folder, report = prepare.prepare(DATASETS["hh_rlhf_helpful_base"], tmp_path / "source", tmp_path)
    assert folder == tmp_path / "hh_rlhf_helpful_base" / "1.0.0"
    assert report.rows == {"train": 250, "test": 60} and report.shared_groups == {"test in train": 10}
    rows = tfds.data_source("hh_rlhf_helpful_base", split="test", data_dir=tmp_path)
    assert len(rows) == 60 and rows[3]["prompt"] == b"\n\nHuman: 243?\n\nAssistant:"

    by_share = corpus(tmp_path, rankings="hh_rlhf_helpful_base")
    assert sum(len(by_share.rankings(split)) for split in ("train", "valid", "test")) == 310
    (report,) = by_share.reports.values()
    assert report.kept == 310

    def numbers(split, **files):
        found = corpus(tmp_path, rankings="hh_rlhf_helpful_base", splits="published", **files)
        return {int(row.prompt.split()[1][:-1]) for row in found.rankings(split)}

    assert numbers("test") == set(range(240, 300))  # what is held out stays whole
    assert numbers("train") | numbers("valid") == set(range(240)) and not numbers("train") & numbers("valid")
    assert 10 < len(numbers("valid")) < 50
    only_test = corpus(tmp_path, rankings="hh_rlhf_helpful_base:test", valid_share=0.3)
    assert sum(len(only_test.rankings(split)) for split in ("train", "valid", "test")) == 60


# Bad input, and writing whole or not at all.

GOOD = {"instruction": "Who?", "context": "", "response": "Me", "category": "qa"}


def dolly(folder, *rows):
    write_lines(folder / "databricks-dolly-15k.jsonl", rows)
    return folder


def left(folder):
    """What lies in a folder, hidden files too."""
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize(
    "row, words",
    [
        ({**GOOD, "response": 3}, "field 'response' is a number; it must be a string"),
        (
            {"instruction": "Who?", "context": "", "category": "qa"},
            "field 'response' is missing; the row has 'instruction', ",
        ),
        ({**GOOD, "context": "\ud83d"}, "field 'context' holds half a character"),
        ([GOOD], "the line holds a list; a row is a JSON object"),
    ],
)
def test_a_row_that_breaks_the_format_is_named_and_nothing_is_written(tmp_path, row, words):
    source, out = dolly(tmp_path / "source", GOOD, row, GOOD), tmp_path / "out"
    with pytest.raises(InputError) as caught:
        made("dolly", source, out)
    assert str(caught.value).startswith(f"{source}/databricks-dolly-15k.jsonl:2: {words}") and left(out) == []
    splits, report = made("dolly", source, out, on_bad_row="skip")
    assert len(splits["train"]) == 2 and list(report.bad) == [f"{source}/databricks-dolly-15k.jsonl:2"]
    kept = json.loads((out / "dolly" / "1.0.0" / "preparation.json").read_text())
    assert kept["bad"] == report.bad and kept["rows"] == {"train": 2}


def test_missing_and_doubled_files_are_named(tmp_path):
    with pytest.raises(InputError, match="--source: .*nowhere is not a folder"):
        made("dolly", tmp_path / "nowhere", tmp_path)
    write_lines(tmp_path / "source" / "harmless-base" / "train.jsonl", [])
    with pytest.raises(
        InputError, match=r"source: has no helpful-base/train.jsonl \(or .*hh_rlhf is made.*harmless-base"
    ):
        made("hh_rlhf", tmp_path / "source", tmp_path)
    for name in ("databricks-dolly-15k.jsonl", "databricks-dolly-15k.jsonl.gz"):
        write_lines(tmp_path / "twice" / name, [GOOD])
    with pytest.raises(InputError, match="are the same file of dolly twice; remove one"):
        made("dolly", tmp_path / "twice", tmp_path)
    with pytest.raises(InputError, match="no row of dolly is usable; .*left out 1: field 'response' is empty"):
        made("dolly", dolly(tmp_path / "empty", {**GOOD, "response": ""}), tmp_path)
    assert "dolly" not in left(tmp_path)


def test_a_truncated_or_unfolding_source_leaves_nothing(tmp_path):
    path = tmp_path / "source" / "databricks-dolly-15k.jsonl.gz"
    write_lines(path, [{**GOOD, "response": os.urandom(500).hex()} for _ in range(200)])
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(InputError, match="databricks-dolly-15k.jsonl.gz: the compressed file ends too early"):
        made("dolly", path.parent, tmp_path / "out", on_bad_row="skip")
    assert left(tmp_path / "out") == []


def test_what_is_there_is_not_overwritten(tmp_path):
    source = dolly(tmp_path / "source", GOOD)
    first, _ = prepare.prepare(DATASETS["dolly"], source, tmp_path / "out")
    with pytest.raises(InputError, match="dolly/1.0.0 exists already; delete it, or give another --out"):
        made("dolly", source, tmp_path / "out")
    second, _ = prepare.prepare(DATASETS["dolly"], source, tmp_path / "out", name="again")
    assert second == tmp_path / "out" / "again" / "1.0.0" and left(tmp_path / "out") == ["again", "dolly"]
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot make the folder"):
        made("dolly", source, tmp_path / "file")
    same = [path.read_bytes() for folder in (first, second) for path in sorted(folder.glob("*.array_record-*"))]
    assert len(same) == 2 and same[0] == same[1]


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path):
    """A limit on the size of files stands for the disk."""
    dolly(tmp_path / "source", *[{**GOOD, "response": os.urandom(200).hex()} for _ in range(5000)])
    command = ["--dataset=dolly", f"--source={tmp_path}/source", f"--out={tmp_path}/out"]
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (2**18,) * 2)\n"
        f"from rlhf_jax.data import prepare; sys.exit(prepare.main({command}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, left(tmp_path / "out")) == (2, [])
    assert f"cannot write {tmp_path}/out/dolly/1.0.0: " in result.stderr and "File too large" in result.stderr
    assert "Traceback" not in result.stderr and result.stderr.count("\n") == 1


def test_a_run_that_is_interrupted_leaves_nothing(tmp_path):
    dolly(tmp_path / "source", *[{**GOOD, "response": "word " * 50}] * 60_000)
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "rlhf_jax.data.prepare",
            "--dataset=dolly",
            f"--source={tmp_path}/source",
            f"--out={tmp_path}/out",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not list((tmp_path / "out").rglob("*.array_record*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left(tmp_path / "out")[0].startswith(".dolly-1.0.0.")  # beside, under another name
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and error.endswith("rlhf_jax.data.prepare: stopped, nothing is written\n")
    assert "Traceback" not in error and left(tmp_path / "out") == []


def test_a_damaged_dataset_is_one_sentence(tmp_path):
    folder, _ = prepare.prepare(DATASETS["dolly"], dolly(tmp_path / "source", *[GOOD] * 50), tmp_path)
    records = next(folder.glob("*.array_record-*"))
    whole = records.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", whole[:90] + bytes(8) + whole[98:]):
        records.write_bytes(damaged)
        with pytest.raises(InputError, match=r"dolly/1.0.0.*prepare it again"):
            corpus(tmp_path, demonstrations="dolly").demonstrations("train")
    records.write_bytes(whole)
    (folder / "dataset_info.json").write_text("{")
    with pytest.raises(InputError, match="dolly/1.0.0: not a readable TFDS dataset"):
        corpus(tmp_path, demonstrations="dolly").demonstrations("train")


def test_without_tfds_the_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(InputError, match=r"pip install 'rlhf_jax\[tfds\]'"):
        made("dolly", dolly(tmp_path / "source", GOOD), tmp_path)


def test_rows_are_read_by_number_without_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr(prepared, "_ROWS_A_SHARD", 700)
    rows = [{**GOOD, "response": f"{i}"} for i in range(3000)]
    folder, _ = prepare.prepare(DATASETS["dolly"], dolly(tmp_path / "source", *rows), tmp_path)
    assert len(list(folder.glob("dolly-train.array_record-*"))) == 5
    found = prepared.open_splits(folder)["train"]
    assert len(found) == 3000 and found[2999]["output"] == found[-1]["output"] == "2999"
    assert [row["output"] for row in found[10:13]] == ["10", "11", "12"] and found[3:3] == []
    assert [row["output"] for row in found.take(np.array([7, 2999, 7]))] == ["7", "2999", "7"]
    assert [row["output"] for row in found] == [row["response"] for row in rows]
    with pytest.raises(IndexError):
        found[3000]


# The command, and downloads.


def test_the_command_says_what_it_did(tmp_path, capsys):
    source = dolly(tmp_path / "source", GOOD, {**GOOD, "response": ""})
    assert prepare.main(["--dataset=dolly", f"--source={source}", f"--out={tmp_path}"]) == 0
    assert capsys.readouterr().out == (
        f"{tmp_path}/dolly/1.0.0: demonstrations\ntrain 1 rows\n"
        f"left out 1: field 'response' is empty ({source}/databricks-dolly-15k.jsonl:2)\n"
    )
    assert prepare.main(["--dataset=dolli", f"--source={source}", f"--out={tmp_path}"]) == 2
    assert "--dataset: 'dolli' must be one of hh_rlhf, " in capsys.readouterr().err
    assert prepare.main(["--dataset=dolly", f"--source={source}", f"--out={tmp_path}", "--where=x"]) == 2
    assert "--where: 'x' must be COLUMN=VALUE" in capsys.readouterr().err


@pytest.fixture
def server(tmp_path):
    """A local stand-in for the hub: serves tmp_path/served; yields its URL."""
    (tmp_path / "served").mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "served")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as http_server:
        threading.Thread(target=http_server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http_server.server_port}"
        http_server.shutdown()


def test_downloads_are_checked_and_kept_whole(tmp_path, server, monkeypatch, capsys):
    dolly(tmp_path / "served", GOOD)
    content = (tmp_path / "served" / "databricks-dolly-15k.jsonl").read_bytes()
    command = ["--dataset=dolly", "--download", f"--source={tmp_path}/source", f"--out={tmp_path}/out"]

    def offered(sha256, name="databricks-dolly-15k.jsonl"):
        file = Download("databricks-dolly-15k.jsonl", f"{server}/{name}", sha256)
        monkeypatch.setitem(DATASETS, "dolly", dataclasses.replace(DATASETS["dolly"], downloads=(file,)))

    offered("0" * 64)
    assert prepare.main(command) == 2 and left(tmp_path / "source") == []
    assert "has the SHA-256" in capsys.readouterr().err
    offered("0" * 64, "missing.jsonl")
    assert prepare.main(command) == 2 and "missing.jsonl: cannot be downloaded" in capsys.readouterr().err
    offered(hashlib.sha256(content).hexdigest())
    assert prepare.main(command) == 0 and (tmp_path / "source" / "databricks-dolly-15k.jsonl").read_bytes() == content
    offered("0" * 64)  # what is there is not fetched again
    assert prepare.main([*command, "--name=again"]) == 0
    capsys.readouterr()
    assert prepare.main(["--dataset=shp", "--download", f"--source={tmp_path}/source", f"--out={tmp_path}/out"]) == 2
    assert "no checksum of the files of shp is known here, so fetch them yourself from https" in capsys.readouterr().err


def test_pinned_files_are_those_that_the_builders_read():
    for dataset in DATASETS.values():
        for file in dataset.downloads:
            assert len(bytes.fromhex(file.sha256)) == 32 and file.url.endswith(file.path)
            names = [
                pattern for names in dataset.files.values() for name in names for pattern in name.split("|") if pattern
            ]
            assert any(fnmatch.fnmatch(file.path, f"{pattern}.*") for pattern in names), file.path
