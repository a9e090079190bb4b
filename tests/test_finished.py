"""The files of a finished stage: damage is found when they are read, and no kill looks like damage."""

import json
import os
import pathlib
import shutil

import numpy as np
import pytest

from rlhf_jax import metrics
from rlhf_jax.checkpoint import load_params, save_params
from rlhf_jax.evaluate import policy
from rlhf_jax.runtime import files, finished
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.workdir import Workdir
from rlhf_jax.sweep.store import Store

ROWS = [{"index": n, "completion": "a \u2028 b"} for n in range(3)]


def make_stage(path, name="sft", value=0.0):
    """A finished stage with a file of each kind, and an evaluation that came afterwards."""
    with Workdir(path, {}) as workdir:
        folder = workdir.stage(name)
        files.write_text(folder / "comparisons.train.jsonl", "".join('{"prompt": "p"}\n' for _ in range(9)))
        metrics.MetricsWriter(folder / "metrics.jsonl", None).close()
        save_params(folder / "params", {"w": np.full(3, value, "float32")})
        (folder / "candidates").mkdir()
        policy.write_rows(folder / "candidates" / "0000.jsonl", ROWS)
        for unread in ("checkpoints/7", "tensorboard"):
            (folder / unread).mkdir(parents=True)
            (folder / unread / "a").write_text("")
        workdir.mark_done(name, 1.0)
        policy.write_rows(folder / "samples.jsonl", ROWS)
        finished.write_json(folder / "evaluation.json", {"a": 1})
        workdir.mark_evaluated(name, 1.0)
    return folder


NAMES = ["comparisons.train.jsonl", "candidates/0000.jsonl", "samples.jsonl", "evaluation.json", "params/manifest.json"]


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_a_line(path):
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:1] + lines[2:]))


def test_what_is_noted_is_what_is_read_later(tmp_path):
    folder = make_stage(tmp_path)
    assert set(finished.facts(folder)["files"]) == {*NAMES, "metrics.jsonl"}
    assert finished.facts(folder)["seconds"] == 1.0 and "writing" not in finished.facts(folder)
    for name in NAMES:
        assert finished.checked(folder / name) == folder / name
    assert policy.read_rows(folder / "samples.jsonl") == ROWS


@pytest.mark.parametrize(
    "damage, said",
    [
        (cut, "it has .* bytes instead of"),
        (cut_a_line, "it has .* bytes instead of"),
        (flip, "it is not what the stage wrote"),
        (lambda path: path.unlink(), "it is missing"),
        (lambda path: path.write_bytes(b""), "it has 0 bytes instead of"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_every_damage_is_named_with_what_to_do(tmp_path, name, damage, said):
    folder = make_stage(tmp_path)
    damage(folder / name)
    with pytest.raises(InputError) as error:
        finished.checked(folder / name)
    error.match(
        rf"{folder / name} is damaged \({said}.*\): put it back as it was, or delete the folder {folder} and start"
    )
    for other in set(NAMES) - {name}:
        finished.checked(folder / other)


def test_a_link_to_another_file_is_damage(tmp_path):
    folder, other = make_stage(tmp_path, "sft"), make_stage(tmp_path, "ppo")
    policy.write_rows(other / "samples.jsonl", ROWS[:1])
    policy.write_rows(tmp_path / "theirs.jsonl", ROWS[:1])
    for target in (other / "samples.jsonl", tmp_path / "theirs.jsonl"):
        (folder / "samples.jsonl").unlink()
        (folder / "samples.jsonl").symlink_to(target)
        with pytest.raises(InputError, match="sft/samples.jsonl is damaged"):
            finished.checked(folder / "samples.jsonl")


def test_parameters_of_two_stages_that_were_exchanged(tmp_path):
    one, two = make_stage(tmp_path, "sft", 1.0), make_stage(tmp_path, "ppo", 2.0)
    (one / "params").rename(tmp_path / "aside")
    (two / "params").rename(one / "params")
    (tmp_path / "aside").rename(two / "params")
    for folder in (one, two):
        load_params(folder / "params", {"w": np.zeros(3, "float32")})  # whole, but another's
        with pytest.raises(InputError, match="manifest.json is damaged"):
            finished.checked(folder / "params" / "manifest.json")


def test_parameters_that_arms_share_are_checked_where_they_lie(tmp_path):
    """Also when that stage was deleted, as the sentence advises, and made again."""
    theirs, ours = make_stage(tmp_path / "a"), tmp_path / "b" / "sft"
    ours.mkdir(parents=True)
    (ours / "params").symlink_to(os.path.relpath(theirs / "params", ours))
    finished.mark(ours, {"seconds": 1.0, "shared_from": "../a/sft"})
    finished.checked(ours / "params" / "manifest.json")
    shutil.rmtree(theirs)
    make_stage(tmp_path / "a")
    finished.checked(ours / "params" / "manifest.json")
    flip(theirs / "params" / "manifest.json")
    with pytest.raises(InputError, match=f"delete the folder {theirs}"):
        finished.checked(ours / "params" / "manifest.json")


def test_a_link_of_an_arm_leads_to_the_stage_that_it_shares(tmp_path):
    """And to no other, although that is whole: neither to another arm's, nor to another stage's of the same arm."""
    store = Store(tmp_path / "stages")
    make_stage(tmp_path / "a")
    (store.path / "id").mkdir()
    files.write_json(store.path / "id" / "judges.json", {"folder": "../a/sft"})
    assert store.adopt(tmp_path / "b", "sft", "id", "judges")
    link = tmp_path / "b" / "sft" / "params"
    finished.checked(link / "manifest.json")
    for other in (make_stage(tmp_path / "c", value=1.0), make_stage(tmp_path / "b", "ppo", 2.0)):
        link.unlink()
        link.symlink_to(os.path.relpath(other / "params", link.parent))
        load_params(link, {"w": np.zeros(3, "float32")})  # whole, but another's
        with pytest.raises(InputError, match=f"{link} is a link to {other / 'params'}, and the stage shares .*a/sft"):
            finished.checked(link / "manifest.json")


def test_an_arm_adopts_what_another_arm_has_adopted(tmp_path):
    """Also where their directories lie at different depths: each says where the folders lie."""
    store = Store(tmp_path / "stages")
    home = make_stage(tmp_path / "a")
    (store.path / "id").mkdir()
    arm, chain = tmp_path / "sweep" / "arms" / "b", ("../a/sft", "../sweep/arms/b/sft")
    for path, folder in zip((arm, tmp_path / "c"), chain):
        files.write_json(store.path / "id" / "judges.json", {"folder": folder})
        assert store.adopt(path, "sft", "id", "judges")
        assert (path / finished.facts(path / "sft")["shared_from"]).resolve() == home
        finished.checked(path / "sft" / "params" / "manifest.json")
    shutil.rmtree(home)  # then nobody has the parameters any more
    assert not store.adopt(tmp_path / "d", "sft", "id", "judges")


@pytest.mark.parametrize("name", ["params", "candidates"])
@pytest.mark.parametrize(
    "noted, said",
    [(True, "bytes instead of|is not what the stage wrote"), (False, "{0} is a link to {1}, and the stage shares")],
)
def test_a_folder_of_a_stage_that_became_a_link_to_another_stages_is_damage(tmp_path, name, noted, said):
    """Although what it leads to is whole; also where the stage does not note what the folder had."""
    ours, theirs = make_stage(tmp_path, "sft", 1.0), make_stage(tmp_path, "ppo", 2.0)
    policy.write_rows(theirs / "candidates" / "0000.jsonl", ROWS[:1])
    finished.mark(theirs, finished.facts(theirs))
    shutil.rmtree(ours / name)
    (ours / name).symlink_to(os.path.relpath(theirs / name, ours))
    if not noted:
        finished.mark(ours, finished.facts(ours))
    file = ours / name / {"params": "manifest.json", "candidates": "0000.jsonl"}[name]
    with pytest.raises(InputError, match=said.format(ours / name, theirs / name)) as error:
        finished.checked(file)
    error.match(f"delete the folder {ours} and start its run again")
    finished.checked(theirs / file.relative_to(ours))


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", range(1, 7))
def test_killed_at_any_file_operation_of_a_rewrite_is_no_damage(tmp_path, at, monkeypatch):
    """Three files are written one after the other, each announced, written and noted; then it goes on where it can."""
    folder, count = make_stage(tmp_path), 0
    replace = os.replace

    def kill(*arguments):
        nonlocal count
        count += 1
        if count == at:
            raise Killed
        replace(*arguments)

    new = [{"index": 5}]
    monkeypatch.setattr(files.os, "replace", kill)
    with pytest.raises(Killed):
        policy.write_rows(folder / "samples.jsonl", new)
        finished.write_json(folder / "evaluation.json", {"b": 2})
    monkeypatch.setattr(files.os, "replace", replace)
    for name in NAMES:
        finished.checked(folder / name)
    assert policy.read_rows(folder / "samples.jsonl") == (ROWS if at <= 2 else new)
    assert finished.read_json(folder / "evaluation.json") == ({"a": 1} if at <= 5 else {"b": 2})
    policy.write_rows(folder / "skills.jsonl", new)  # settles what was announced
    for name in NAMES:
        finished.checked(folder / name)
    assert "writing" not in finished.facts(folder)
    policy.write_rows(folder / "samples.jsonl", new)
    finished.write_json(folder / "evaluation.json", {"b": 2})
    flip(folder / "samples.jsonl")
    with pytest.raises(InputError, match="samples.jsonl is damaged"):
        policy.read_rows(folder / "samples.jsonl")


def test_killed_before_the_first_evaluation_was_written(tmp_path, monkeypatch):
    with Workdir(tmp_path, {}) as workdir:
        folder = workdir.stage("sft")
        workdir.mark_done("sft", 1.0)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        write = files.write_text

        def kill(path, text):
            if pathlib.Path(path).name == "evaluation.json":
                raise Killed
            write(path, text)

        patch.setattr(files, "write_text", kill)
        finished.write_json(folder / "evaluation.json", {})
    assert finished.read_if_there(folder / "evaluation.json") is None
    finished.write_json(folder / "evaluation.json", {"a": 1})
    assert finished.read_if_there(folder / "evaluation.json") == {"a": 1}


def test_a_file_that_is_written_while_it_is_read_is_no_damage(tmp_path, monkeypatch):
    folder, fingerprint = make_stage(tmp_path), finished._fingerprint

    def meanwhile(path):
        monkeypatch.setattr(finished, "_fingerprint", fingerprint)
        for number in range(3):
            finished.write_json(folder / "evaluation.json", {"number": number})
        return fingerprint(path)

    monkeypatch.setattr(finished, "_fingerprint", meanwhile)
    finished.checked(folder / "evaluation.json")


def test_stages_of_an_earlier_version_are_read_unchecked(tmp_path):
    folder = make_stage(tmp_path)
    files.write_json(folder / "done.json", {"seconds": 1.0})
    flip(folder / "evaluation.json")
    finished.checked(folder / "evaluation.json")
    finished.write_json(folder / "evaluation.json", {"a": 2})
    flip(folder / "evaluation.json")
    with pytest.raises(InputError, match="evaluation.json is damaged"):
        finished.read_json(folder / "evaluation.json")


def test_no_rows_are_read_back(tmp_path):
    policy.write_rows(tmp_path / "samples.jsonl", [])
    assert policy.read_rows(tmp_path / "samples.jsonl") == []


@pytest.mark.parametrize("line", ["", "{", "[1]", "3", '{"a": 1}x', "\udcff", "[" * 100_000])
def test_rows_that_are_no_json_name_their_line(tmp_path, line):
    path = tmp_path / "samples.jsonl"
    path.write_bytes(b'{"a": "\xe2\x80\xa8"}\n' + line.encode(errors="surrogateescape") + b'\n{"a": 1}\n')
    with pytest.raises(InputError, match=f"{path}, line 2: not a JSON object"):
        policy.read_rows(path)
    with pytest.raises(InputError, match="cannot read .*none.jsonl: No such file"):
        policy.read_rows(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "3",
        "{",
        "\0",
        "[" * 100_000,
        "{}",
        '{"files": {}}',
        '{"seconds": 1.0, "files": []}',
        '{"seconds": 1.0, "files": {"samples.jsonl": 3}}',
        '{"seconds": 1.0, "writing": {"samples.jsonl": []}}',
        '{"seconds": "1"}',
        '{"seconds": 1.0, "config": []}',
        '{"seconds": 1.0, "shared_from": 3}',
    ],
)
def test_a_damaged_mark_is_a_sentence(tmp_path, text):
    folder = make_stage(tmp_path)
    (folder / "done.json").write_text(text)
    said = f"{folder}/done.json is damaged: delete it and start the run again, which finishes the stage"
    with pytest.raises(InputError, match=said):
        finished.checked(folder / "samples.jsonl")
    with pytest.raises(InputError, match=said), Workdir(tmp_path, {}) as workdir:
        workdir.done("sft")
    assert json.loads((folder / "evaluation.json").read_text()) == {"a": 1}


def test_an_arm_adopts_a_stage_whole_and_none_that_is_damaged(tmp_path):
    source, store = make_stage(tmp_path / "a"), Store(tmp_path / "stages")
    (store.path / "id").mkdir()
    files.write_json(store.path / "id" / "judges.json", {"folder": "../a/sft"})
    assert store.adopt(tmp_path / "b", "sft", "id", "judges")
    finished.check(tmp_path / "b" / "sft")
    linked = {"candidates/0000.jsonl", "params/manifest.json"}
    assert set(finished.facts(tmp_path / "b" / "sft")["files"]) == set(finished.facts(source)["files"]) - linked
    cut(source / "samples.jsonl")
    with pytest.raises(InputError, match=f"samples.jsonl is damaged .* delete the folder {source}"):
        store.adopt(tmp_path / "c", "sft", "id", "judges")
    assert not (tmp_path / "c" / "sft" / "done.json").exists()
