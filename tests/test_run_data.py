"""The data files of a run: read before anything is computed, and the same at every start."""

import gzip
import hashlib
import json
import os
import shutil
import types

import pytest
from toy import get_config as toy_config

from rlhf_jax import inputs, pipeline
from rlhf_jax import run as run_lib
from rlhf_jax.config import data_config, default_config
from rlhf_jax.data import prepared
from rlhf_jax.data.corpus import FileCorpus
from rlhf_jax.data.template import Template
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import read_json
from rlhf_jax.sweep.store import Store

DEMOS = [{"prompt": f"question {i}?", "completion": f" answer {i} of many"} for i in range(60)]
PAIRS = [{"prompt": f"question {i}?", "chosen": f" good {i}", "rejected": " bad"} for i in range(60)]
TEXTS = [{"text": f"{i} words " * 30} for i in range(30)]


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def jsonl(folder):
    write(folder / "demos.jsonl", DEMOS)
    return "demos.jsonl", ["demos.jsonl"]


def gz(folder):
    (folder / "demos.jsonl.gz").write_bytes(
        gzip.compress("".join(json.dumps(row) + "\n" for row in DEMOS).encode(), mtime=0)
    )
    return "demos.jsonl.gz@10", ["demos.jsonl.gz"]


def csv(folder):
    (folder / "demos.csv").write_text("prompt,completion\n" + "".join(f"q{i},a{i}\n" for i in range(60)))
    return "demos.csv", ["demos.csv"]


def parquet(folder):
    pyarrow, writer = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (folder / "hub" / "data").mkdir(parents=True)
    for number in range(2):
        table = pyarrow.Table.from_pylist(DEMOS[30 * number : 30 * number + 30])
        writer.write_table(table, folder / "hub" / "data" / f"train-0000{number}-of-00002.parquet")
    (folder / "hub" / "README.md").write_text("of no matter")
    return "hub:train", [f"hub/data/train-0000{number}-of-00002.parquet" for number in range(2)]


def saved(folder):
    pyarrow = pytest.importorskip("pyarrow")
    (folder / "saved").mkdir()
    (folder / "saved" / "state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
    table = pyarrow.Table.from_pylist(DEMOS)
    with pyarrow.ipc.new_stream(folder / "saved" / "data-00000-of-00001.arrow", table.schema) as stream:
        stream.write_table(table)
    return "saved", ["saved/data-00000-of-00001.arrow"]


def array_record(folder):
    pytest.importorskip("tensorflow_datasets")
    columns = {"prompt": "text", "completion": "text"}
    made = prepared.write(folder, "demos", "1.0.0", columns, (("train", row) for row in DEMOS), description="made")
    (record,) = made.glob("*.array_record*")
    names = ["dataset_info.json", "features.json", record.name]
    return "demos:train", [f"demos/1.0.0/{name}" for name in names]


SOURCES = (jsonl, gz, csv, parquet, saved, array_record)


@pytest.mark.parametrize("source", SOURCES)
def test_the_checksum_of_every_file_that_is_read_is_its_sha_256(tmp_path, source):
    entry, names = source(tmp_path)
    config = data_config().files
    config.update(dir=str(tmp_path), demonstrations=entry)
    corpus = FileCorpus(config, Template(), "error")
    wanted = {name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in names}
    assert corpus.checksums == wanted and list(corpus.checksums) == sorted(names)
    corpus.read()
    assert corpus.reports


def test_a_missing_file_is_named_before_it_is_read(tmp_path):
    config = data_config().files
    config.update(dir=str(tmp_path), demonstrations="none.jsonl")
    with pytest.raises(InputError, match="none.jsonl: no such file"):
        FileCorpus(config, Template(), "error").checksums
    os.mkfifo(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="none.jsonl: is a pipe"):
        FileCorpus(config, Template(), "error").checksums


@pytest.fixture
def config(tmp_path):
    write(tmp_path / "data" / "demos.jsonl", DEMOS)
    write(tmp_path / "data" / "pairs.jsonl", PAIRS)
    write(tmp_path / "data" / "texts.jsonl", TEXTS)
    config = toy_config()
    config.data.source = "files"
    config.mesh.update(data=-1, fsdp=1)
    config.data.files.update(
        dir=str(tmp_path / "data"), demonstrations="demos.jsonl", rankings="pairs.jsonl", documents="texts.jsonl"
    )
    config.stages = ("pretrain", "sft", "reward_model")
    return config


def start(config, path):
    with run_lib.start(config, path) as run:
        run.workdir.stage(config.stages[0])  # from now on it binds
        return run


def test_a_run_goes_on_with_the_files_it_was_begun_with(config, tmp_path):
    run = start(config, tmp_path / "run")
    kept = read_json(tmp_path / "run" / "data_report.json")
    assert kept["checksums"] == run.corpus.checksums and len(kept["checksums"]) == 3
    for name in ("demos.jsonl", "pairs.jsonl"):  # another time of writing is no other content
        (tmp_path / "data" / name).touch()
    start(config, tmp_path / "run")
    write(tmp_path / "data" / "demos.jsonl", [*DEMOS[:-1], DEMOS[-1] | {"completion": " answer 59 of manY"}])
    with pytest.raises(InputError) as caught:
        start(config, tmp_path / "run")
    assert "(demos.jsonl was changed): put back the old files, or give another --workdir" in str(caught.value)
    assert read_json(tmp_path / "run" / "data_report.json") == kept
    write(tmp_path / "data" / "demos.jsonl", DEMOS)
    start(config, tmp_path / "run")


def test_a_file_that_comes_or_goes_is_named(config, tmp_path):
    shards = tmp_path / "data" / "pairs"
    for number in range(2):
        write(shards / f"train-0000{number}-of-00003.jsonl", PAIRS[30 * number : 30 * number + 30])
    config.data.files.rankings = "pairs"
    start(config, tmp_path / "run")
    shutil.move(shards / "train-00001-of-00003.jsonl", shards / "train-00002-of-00003.jsonl")
    with pytest.raises(InputError) as caught:
        start(config, tmp_path / "run")
    assert "pairs/train-00001-of-00003.jsonl is gone, pairs/train-00002-of-00003.jsonl is new" in str(caught.value)


def test_a_run_of_a_version_without_checksums_gets_them(config, tmp_path):
    start(config, tmp_path / "run")
    (tmp_path / "run" / "data_report.json").write_text('{"files": {}, "stages": {"sft": {}}}')
    run = start(config, tmp_path / "run")
    kept = read_json(tmp_path / "run" / "data_report.json")
    assert kept["checksums"] == run.corpus.checksums and kept["stages"] == {"sft": {}}


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("tokenizer.json", lambda text: text.replace('"a"', '"\u0101"', 1), "tokenizer.json was changed"),
        ("template.txt", lambda text: text + " ", "template.txt was changed"),
        ("tokenizer_config.json", lambda text: None, "tokenizer_config.json is gone"),
        ("special_tokens_map.json", lambda text: '{"eos_token": "a"}', "special_tokens_map.json is new"),
    ],
)
def test_a_run_goes_on_with_its_tokenizer_and_template(config, tmp_path, name, text, words):
    start(config, tmp_path / "run")
    path = tmp_path / "run" / name
    before = path.read_text() if path.exists() else None
    changed = text(before)
    path.unlink() if changed is None else path.write_text(changed)
    for use in (lambda: start(config, tmp_path / "run"), lambda: run_lib.open_run(tmp_path / "run")):
        with pytest.raises(InputError, match=rf"was changed after this run began \({words}\): put back"):
            use()
    path.unlink(missing_ok=True) if before is None else path.write_text(before)
    start(config, tmp_path / "run")


def test_a_tokenizer_that_was_removed_is_made_anew_if_the_same_can_be(config, tmp_path):
    start(config, tmp_path / "run")
    kept = (tmp_path / "run" / "tokenizer.json").read_bytes()
    (tmp_path / "run" / "tokenizer.json").unlink()
    start(config, tmp_path / "run")
    assert (tmp_path / "run" / "tokenizer.json").read_bytes() == kept


@pytest.mark.parametrize("name", ["checksums", "kept"])
def test_damaged_checksums_are_a_sentence(config, tmp_path, name):
    start(config, tmp_path / "run")
    path = tmp_path / "run" / "data_report.json"
    path.write_text(json.dumps(read_json(path) | {name: 3}))
    with pytest.raises(InputError, match=f"data_report.json is damaged: '{name}'"):
        start(config, tmp_path / "run")


@pytest.mark.parametrize(
    "name, row, words",
    [
        (
            "pairs.jsonl",
            {"prompt": "p", "completions": ["a", "b"], "ranks": [1, 10**12]},
            "pairs.jsonl:61: field 'ranks'",
        ),
        ("demos.jsonl", {"prompt": "p"}, "demos.jsonl:61: needs one of the fields"),
        ("pairs.jsonl", {"completion": "p", "score": 10**400}, "pairs.jsonl:61: field 'score'"),
        ("texts.jsonl", None, "texts.jsonl: the file is empty"),
    ],
)
def test_all_files_are_read_before_the_first_step(config, tmp_path, name, row, words):
    start(config, tmp_path / "other")
    path = tmp_path / "data" / name
    path.write_text(path.read_text() + json.dumps(row) if row else "")
    config.tokenizer.path = str(tmp_path / "other" / "tokenizer.json")  # then no file is read for a tokenizer
    with run_lib.start(config, tmp_path / "run") as run, pytest.raises(InputError, match=words):
        pipeline.check(run)
    assert not (tmp_path / "run" / "pretrain").exists()


def test_what_was_refused_before_the_first_step_can_be_mended(config, tmp_path):
    """A row, a field, the tokenizer that was trained on it: the same work directory takes the next start."""
    good = (tmp_path / "data" / "pairs.jsonl").read_text()
    (tmp_path / "data" / "pairs.jsonl").write_text(good + '{"prompt": "p"}\n')
    config.tokenizer.vocab_size = 300
    with pytest.raises(InputError, match="pairs.jsonl:61: "), run_lib.start(config, tmp_path / "run") as run:
        pipeline.check(run)
    assert read_json(tmp_path / "run" / "data_report.json")["checksums"]
    (tmp_path / "data" / "pairs.jsonl").write_text(good)
    config.tokenizer.vocab_size = 280
    with run_lib.start(config, tmp_path / "run") as run:
        run.corpus.read()
    assert run.tokenizer.vocab_size == 280


def test_a_sweep_shares_no_stage_that_saw_other_data(config, tmp_path):
    store = Store(tmp_path / "store")

    def shared(name):
        with run_lib.start(config, tmp_path / name) as run:
            with store.shared(run, "pretrain"):
                adopted = run.done("pretrain")
                run.workdir.stage("pretrain")
                if not adopted:
                    run.workdir.mark_done("pretrain", 0.0)
            return adopted

    assert [shared("a"), shared("b")] == [False, True]
    write(tmp_path / "data" / "demos.jsonl", DEMOS[:-1])
    assert [shared("c"), shared("d")] == [False, True]


@pytest.mark.parametrize(
    ("stages", "rows"), [(("pretrain", "ppo"), 300), (("sft",), 160), (("ppo",), 96), (("collect",), 64)]
)
def test_held_out_rows_are_in_proportion_to_the_longest_stage(stages, rows):
    config = default_config()
    config.stages = stages
    config.pretrain.update(steps=100, batch_size=30)
    config.sft.epochs = 16.0
    config.ppo.update(iterations=10, batch_size=24, ppo_epochs=4)
    run = types.SimpleNamespace(config=config)
    run.corpus = types.SimpleNamespace(demonstrations=lambda split: [None] * 100)
    assert inputs._in_proportion(run) == rows
    config.pretrain.steps = 10_000
    assert inputs._in_proportion(run) == (1024 if "pretrain" in stages else rows)


def test_rankings_of_people_and_those_of_nectar_train_a_reward_model(shared_data, tmp_path, one_device):
    """Of K answers, from files: every pair that is not tied counts, and the numbers are those of the rows."""
    texts = ("hello", "hi there", "no", "go away", "what", "why", "so")
    rows = [
        {
            "prompt": f"\n\nHuman: say {n}\n\nAssistant: ",
            "answers": [{"answer": f"{text} {n}", "model": "m", "rank": k + 1.0} for k, text in enumerate(texts)],
        }
        for n in range(24)
    ]
    path = tmp_path / "data"
    path.mkdir()
    write(path / "nectar.jsonl", rows)
    (path / "ranked4.jsonl.xz").symlink_to(shared_data / "ranked4_qa_feedback.jsonl.xz")
    config = toy_config()
    config.stages, config.data.source = ("reward_model",), "files"
    config.tokenizer.vocab_size = 258
    config.prompt_length, config.completion_length, config.model.max_length = 48, 16, 64
    config.too_long = "cut_left"
    config.data.files.update(
        dir=str(path), rankings="nectar.jsonl,ranked4.jsonl.xz@30", valid_share=0.2, test_share=0.1
    )
    config.reward_model.update(init="", epochs=1.0)
    with run_lib.start(config, tmp_path / "run") as run:
        pipeline.check(run)
        pipeline.run_stage(run, "reward_model")
        train, valid = run.corpus.rankings("train"), run.corpus.rankings("valid")
    assert {len(row.completions) for row in train} == {4, 7}
    nectar = next(row for row in train if len(row.completions) == 7)
    assert nectar.prompt.endswith("Assistant:") and nectar.completions[0].startswith(" hello") and nectar.ranks[0] == 1
    pairs = 0
    for (
        row
    ) in valid:  # tokens are bytes; an answer that repeats another one once it is cut has that one's rank, or goes
        ranks: dict[bytes, int] = {}
        cut = [(text.encode()[:16], rank) for text, rank in zip(row.completions, row.ranks)]
        kept = [rank for text, rank in cut if ranks.setdefault(text, rank) == rank]
        pairs += sum(one < other for one in kept for other in kept)
    found = read_json(tmp_path / "run" / "reward_model" / "evaluation.json")["valid"]
    assert found["pairs"] == pairs > 42  # 21 of each row of Nectar
