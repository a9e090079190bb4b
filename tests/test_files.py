"""Files that are written whole or not at all, whoever is killed or plants links meanwhile."""

import contextlib
import errno
import json
import os
import pathlib
import subprocess
import sys
import textwrap

import pytest

from rlhf_jax.runtime import files
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import (
    new_folder,
    read_json,
    read_json_lines,
    remove_left_over,
    whole_lines,
    write_json_lines,
    write_text,
)
from rlhf_jax.runtime.workdir import Workdir

ROOT = pathlib.Path(__file__).parent.parent
WRITERS = {
    "write_text": lambda path: write_text(path, "ours"),
    "copy": lambda path: files.copy(_source(path), path.parent),
    "new_folder": lambda path: _fill(path),
}


def _source(path):
    (path.parent / "source").mkdir()
    source = path.parent / "source" / path.name
    source.write_text("ours")
    return source


def _fill(path):
    with new_folder(path) as folder:
        (folder / "a").write_text("ours")


@pytest.mark.parametrize("name", WRITERS)
def test_a_link_planted_at_the_temporary_name_is_not_followed(tmp_path, name, monkeypatch):
    """Every name that this process could use, but for the random part, and once that too."""
    victim = tmp_path / "victim"
    victim.write_text("theirs")
    planted = tmp_path / "out" / f".new.{os.getpid()}.tmp"
    planted.parent.mkdir()
    planted.symlink_to(victim)
    drawn = iter(["aa", "bb"])
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: next(drawn))
    WRITERS[name](tmp_path / "out" / "new")
    assert victim.read_text() == "theirs" and planted.is_symlink()
    (tmp_path / "out" / ".second.bb.tmp").symlink_to(victim)
    with pytest.raises(InputError, match="cannot write .*second: File exists"):
        write_text(tmp_path / "out" / "second", "ours")
    assert victim.read_text() == "theirs" and not (tmp_path / "out" / "second").exists()


WRITES = """
    import os, sys
    from rlhf_jax.runtime import files
    with files.replacing(sys.argv[1] + "/file") as file, files.new_folder(sys.argv[1] + "/folder") as folder:
        file.write(b"half")
        (folder / "a").write_text("half")
        print("writes", flush=True)
        sys.stdin.read()
"""


def test_what_a_killed_process_was_writing_is_removed_and_nothing_else(tmp_path):
    for name in (".file.1234.tmp", ".notes.tmp", ".file.xyz.tmp", "file.12.tmp"):  # the first by an older version
        (tmp_path / name).write_text("")
    (tmp_path / ".elsewhere.12.tmp").symlink_to(tmp_path / ".notes.tmp")
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITES), str(tmp_path)],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == "writes\n"
    others = {".notes.tmp", ".file.xyz.tmp", "file.12.tmp", ".elsewhere.12.tmp"}
    remove_left_over(tmp_path)  # while it lives
    assert len({path.name for path in tmp_path.iterdir()} - others) == 2
    process.kill()
    process.communicate()
    assert len({path.name for path in tmp_path.iterdir()} - others) == 2
    remove_left_over(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == others
    remove_left_over(tmp_path / "none")


def test_one_that_is_removed_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    """Another process may take what has just been made, and is not locked yet, for left over."""
    lock, removed = files.fcntl.flock, []

    def remove_first(descriptor, how):
        if not removed:
            removed.extend(tmp_path.glob(".a.*.tmp"))
            removed[0].unlink()
        lock(descriptor, how)

    monkeypatch.setattr(files.fcntl, "flock", remove_first)
    write_text(tmp_path / "a", "ours")
    assert removed and (tmp_path / "a").read_text() == "ours" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("error", ["ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO"])
def test_a_disk_that_refuses_is_a_sentence_and_the_old_file_stays(tmp_path, monkeypatch, error):
    (tmp_path / "a").write_text("old")
    number = getattr(errno, error)

    def refuse(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "fsync", refuse)
    with pytest.raises(InputError, match=f"cannot write .*a: {os.strerror(number)}"):
        write_text(tmp_path / "a", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_text() == "old"


def test_a_limit_on_the_size_of_files_is_a_sentence(tmp_path):
    """`ulimit -f`: Python ignores SIGXFSZ, and the write fails; NumPy then says no reason of the system's."""
    program = """
        import resource, sys
        import numpy as np
        from rlhf_jax.runtime import files
        from rlhf_jax.runtime.errors import InputError
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        for number, write in enumerate([lambda file: file.write(b"x" * 2000), lambda file: np.save(file, np.zeros(2000))]):
            try:
                with files.replacing(f"{sys.argv[1]}/{number}") as file:
                    write(file)
            except InputError as error:
                print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)],
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=True,
    )
    first, second = done.stdout.splitlines()
    assert first == f"cannot write {tmp_path / '0'}: File too large"
    assert second.startswith(f"cannot write {tmp_path / '1'}: ") and "None" not in second
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text, said",
    [
        (None, "cannot read {path}: No such file or directory"),
        (b'{"a": "\xff"}', "cannot read {path}: byte 7 of it is not UTF-8"),
        (b'{"a":\n 1,,}', "{path}, line 2: not valid JSON: "),
        (b'{"a": ' + b"[" * 10**5, "cannot read {path}: it nests lists or objects too deep"),
        (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", "cannot read {path}: it nests lists or objects too deep"),
        (b'{"a": ' + b"9" * 5000 + b"}", "cannot read {path}: it holds a whole number of more than 4300 digits"),
        (b'{"a": [[-' + b"9" * 400 + b"]]}", "cannot read {path}: it holds a number beyond 10^308"),
        (b"[1]", "{path} is not a JSON object, {{...}}; it holds [1]"),
        (b"{}", "{path} is damaged: it has no 'a'"),
    ],
)
def test_json_that_cannot_be_read_is_a_sentence(tmp_path, text, said):
    path = tmp_path / "a.json"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(InputError) as error:
        files.read_json(path, needs=["a"])
    assert str(error.value).startswith(said.format(path=path))


def test_json_is_read_down_to_its_deepest_level(tmp_path):
    text = '{"a": ' + "[" * 98 + '{"b": 3}' + "]" * 98 + "}"
    (tmp_path / "a.json").write_text(text)
    assert json.dumps(files.read_json(tmp_path / "a.json")) == text


def test_a_folder_takes_the_place_of_another_only_if_asked(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "b").write_text("")
    with pytest.raises(InputError, match="old exists already"):
        _fill(tmp_path / "old")
    with pytest.raises(KeyError), new_folder(tmp_path / "old", replace=True):
        raise KeyError
    assert [path.name for path in tmp_path.rglob("*")] == ["old", "b"]
    with new_folder(tmp_path / "old", replace=True) as folder:
        (folder / "a").write_text("")
    assert [path.name for path in tmp_path.rglob("*")] == ["old", "a"]


@pytest.mark.parametrize("text", ["[]", "3", '"a"', "null"])
def test_json_of_another_kind_is_named(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=r"a.json is not a JSON object, \{...\}; it holds"):
        read_json(tmp_path / "a.json")
    with pytest.raises(InputError, match=r"is not a JSON list") if text != "[]" else contextlib.nullcontext():
        read_json(tmp_path / "a.json", list)
    (tmp_path / "a.json").write_text('{"stage": 1}')
    with pytest.raises(InputError, match="a.json is damaged: it has no 'members'"):
        read_json(tmp_path / "a.json", needs=["stage", "members"])
    for deep in ("[" * 100_000, '{"a": 1' + "0" * 5000 + "}"):
        (tmp_path / "b.json").write_text(deep)
        with pytest.raises(InputError, match="b.json"):
            read_json(tmp_path / "b.json")


def test_a_link_planted_at_the_name_of_a_lock_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "victim").write_text("theirs")
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "victim")
    with pytest.raises(InputError, match="the work directory .* is not writable"):
        Workdir(tmp_path / "run", {})
    assert (tmp_path / "victim").read_text() == "theirs"


def test_a_run_removes_at_its_start_what_it_was_killed_at(tmp_path):
    (tmp_path / "sft").mkdir()
    for name in (".config.json.0123456789abcdef.tmp", "sft/.done.json.77.tmp"):
        (tmp_path / name).write_text("half")
    Workdir(tmp_path, {}).close()
    assert not list(tmp_path.rglob("*.tmp"))


# --- JSON lines -----------------------------------------------------------------------------------

SEPARATORS = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei\rj"  # all of which str.splitlines splits at


def test_only_a_line_feed_ends_a_row(tmp_path):
    rows = [{"text": SEPARATORS, SEPARATORS: SEPARATORS}, {"text": "\n"}, {}]
    write_json_lines(tmp_path / "rows.jsonl", rows)
    assert read_json_lines(tmp_path / "rows.jsonl") == rows
    assert len(whole_lines(tmp_path / "rows.jsonl")) == 3 and whole_lines(tmp_path / "rows.jsonl")[2] == b"{}"


def test_the_half_line_of_a_killed_process_is_no_line(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b'{"a": 1}\n{"a"')
    assert whole_lines(tmp_path / "rows.jsonl") == [b'{"a": 1}']
    assert whole_lines(tmp_path / "rows.jsonl", cut=False) == [b'{"a": 1}', b'{"a"']


@pytest.mark.parametrize(
    "content, words",
    [
        (b'{"a": 1}\n{"a"', "rows.jsonl, line 2: not a JSON object; the file was cut or changed after it was written"),
        (b'{"a": 1}\n\n{}\n', "line 2"),
        (b"[1]\n", "line 1"),
        (b'{"a": "\xff"}\n', "line 1"),
        (b"[" * 100_000 + b"\n", "line 1"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, content, words):
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=words):
        read_json_lines(tmp_path / "rows.jsonl")


def test_a_missing_file_of_rows_is_named(tmp_path):
    with pytest.raises(InputError, match="cannot read .*none.jsonl: No such file or directory"):
        read_json_lines(tmp_path / "none.jsonl")
