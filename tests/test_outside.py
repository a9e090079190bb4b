"""Scorers of the user's: what is asked, what is kept, and what a scorer that fails leaves behind."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from rlhf_jax.evaluate import outside
from rlhf_jax.runtime.errors import InputError

ROWS = [{"text": text} for text in ("a", "bb", "ccc", "dddd", "ccc")]
LENGTHS = [1, 2, 3, 4, 3]
COUNT = outside.number(0, 10)


def python(tmp_path, body: str) -> outside.Scorer:
    """A command that runs a Python script, with `rows` as its parsed standard input."""
    script = tmp_path / "judge.py"
    script.write_text(f"import json, os, sys, time\nrows = map(json.loads, sys.stdin)\n{body}\n")
    return outside.command(f"'{sys.executable}' '{script}'")


def kept(path) -> list:
    return [json.loads(line)["answer"] for line in path.read_text().splitlines()]


def lengths(rows):
    lengths.asked += [row["text"] for row in rows]
    return np.array([len(row["text"]) for row in rows])


@pytest.fixture
def here(monkeypatch):
    """This file as a module in the current directory, as a user has one."""
    monkeypatch.chdir(pathlib.Path(__file__).parent)
    monkeypatch.setattr(sys, "path", list(sys.path))
    module = sys.modules[__name__]
    monkeypatch.setitem(sys.modules, "test_outside", module)
    lengths.asked = []


def test_a_function_is_asked_once_for_equal_rows_and_never_again(here, tmp_path):
    scorer = outside.function("test_outside:lengths", batch=2)
    keep = tmp_path / "answers"
    assert outside.answers(ROWS, scorer, keep=keep, check=COUNT) == LENGTHS
    assert lengths.asked == ["a", "bb", "ccc", "dddd"]
    assert outside.answers(ROWS[::-1] + [{"text": "new"}], scorer, keep=keep, check=COUNT) == LENGTHS[::-1] + [3]
    assert lengths.asked == ["a", "bb", "ccc", "dddd", "new"]


def test_answers_of_another_scorer_are_not_taken_for_its_own(here, tmp_path):
    keep = tmp_path / "answers"
    outside.answers(ROWS, outside.function("test_outside:lengths"), keep=keep)
    other = python(tmp_path, "for row in rows: print(9)")
    assert outside.answers(ROWS, other, keep=keep, check=COUNT) == [9] * 5


def test_a_command_answers_row_by_row_or_all_at_once(tmp_path):
    for body in (
        "for row in rows: print(len(row['text']), flush=True)",
        "for row in list(rows): print(json.dumps({'score': len(row['text'])}))",
    ):
        assert outside.answers(ROWS, python(tmp_path, body), check=COUNT) == LENGTHS


def test_more_rows_than_the_pipes_hold_do_not_block_it(tmp_path):
    rows = [{"text": "x" * 5000, "n": n} for n in range(300)]
    command = python(tmp_path, "for row in rows: print(json.dumps({'n': row['n'], 'text': row['text']}), flush=True)")
    assert [answer["n"] for answer in outside.answers(rows, command)] == list(range(300))


def test_a_command_that_dies_half_way_leaves_its_answers_and_goes_on_from_there(tmp_path):
    keep = tmp_path / "answers"
    dying = (
        "for n, row in enumerate(rows):\n  if n == 2: sys.exit('out of memory')\n  print(len(row['text']), flush=True)"
    )
    with pytest.raises(InputError, match=r"status 1 after 2 answers to 4 rows \(out of memory\)"):
        outside.answers(ROWS, python(tmp_path, dying), keep=keep, check=COUNT)
    assert kept(keep) == [1, 2]
    # The same command, of a judge that was mended meanwhile, is asked for the rest alone.
    mended = python(tmp_path, "for row in rows: print(len(row['text']) if len(row['text']) > 2 else 0)")
    assert outside.answers(ROWS, mended, keep=keep, check=COUNT) == LENGTHS


@pytest.mark.parametrize(
    "answer, said",
    [
        ("'good'", r"row 3 is \"good\"; it must be a number from 0 to 10"),
        ("11", "row 3 is 11; it must be"),
        ("True", "row 3 is true; it must be"),
        ("float('nan')", "row 3 is NaN; it must be"),
        ("None", "row 3 is null; it must be"),
        ("{'value': 1}", 'row 3 is {"value": 1}; it must be'),
    ],
)
def test_nonsense_is_one_sentence_and_what_came_before_is_kept(tmp_path, answer, said):
    keep = tmp_path / "answers"
    body = f"for n, row in enumerate(rows): print(json.dumps({answer} if n == 2 else n))"
    with pytest.raises(InputError, match=said):
        outside.answers(ROWS, python(tmp_path, body), keep=keep, check=COUNT)
    assert kept(keep) == [0, 1]


def test_a_line_that_is_no_json_is_shown(tmp_path):
    with pytest.raises(InputError, match="line 1 of its answers is 'Loading the model', and no JSON"):
        outside.answers(ROWS, python(tmp_path, "print('Loading the model')\nfor row in rows: print(1)"))


@pytest.mark.parametrize("body", ["for row in rows: print(1); print(2)", "list(rows); print(1)"])
def test_answers_that_no_row_can_be_told_to_have_are_not_kept(tmp_path, body):
    keep = tmp_path / "answers"
    outside.answers(ROWS[:1], python(tmp_path, "for row in rows: print(7)"), keep=keep)
    with pytest.raises(InputError, match="it must write one line for each row"):
        outside.answers(ROWS, python(tmp_path, body), keep=keep)
    assert kept(keep) == [7]


def too_few(rows):
    return [1.0]


def fails(rows):
    raise RuntimeError("no\nGPU")


def test_a_function_that_fails_is_one_sentence(here):
    with pytest.raises(InputError, match="returned 1 answers for 4 rows; it must return one for each"):
        outside.answers(ROWS, outside.function("test_outside:too_few"))
    with pytest.raises(
        InputError, match=r"failed in rows 1 to 4: RuntimeError: no GPU \(.*test_outside.py, line \d+\)"
    ):
        outside.answers(ROWS, outside.function("test_outside:fails"))


@pytest.mark.parametrize(
    "name, said",
    [
        ("scores", "not of the form module:function"),
        ("no_such_module_here:f", "there is no module no_such_module_here, in this folder or in the environment"),
        ("test_outside:no_such", "has no function no_such"),
        ("test_outside:ROWS", "has no function ROWS"),
    ],
)
def test_a_function_that_is_not_there(here, name, said):
    with pytest.raises(InputError, match=said):
        outside.function(name)


@pytest.mark.parametrize(
    "text, said", [("", "is empty"), ("'", "cannot be split"), ("/no/such x", "cannot be started")]
)
def test_a_command_that_is_not_there(text, said):
    with pytest.raises(InputError, match=said):
        outside.answers(ROWS, outside.command(text))


def test_a_command_that_waits_for_more_rows_for_ever_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(outside, "_SECONDS_TO_END", 0.1)
    body = "print(os.getpid(), flush=True)\ntime.sleep(1000)"
    [pid] = outside.answers(ROWS[:1], python(tmp_path, body))
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_half_a_line_of_a_killed_process_is_taken_away(here, tmp_path):
    keep = tmp_path / "answers"
    scorer = outside.function("test_outside:lengths")
    outside.answers(ROWS[:2], scorer, keep=keep)
    whole = keep.read_bytes()
    keep.write_bytes(whole[:-10])
    assert outside.answers(ROWS[:2], scorer, keep=keep) == LENGTHS[:2]
    assert keep.read_bytes() == whole
    keep.write_bytes(b"{}\n" + whole)
    with pytest.raises(InputError, match="line 1: no answer that this command kept"):
        outside.answers(ROWS, scorer, keep=keep)


def test_ctrl_c_keeps_the_answers_and_ends_the_command(tmp_path):
    body = "for n, row in enumerate(rows):\n  if n == 2: time.sleep(1000)\n  print(os.getpid(), flush=True)"
    command, keep = python(tmp_path, body), tmp_path / "answers"
    code = "import json, sys; from rlhf_jax.evaluate import outside\n" + (
        f"outside.answers({ROWS!r}, outside.command({command.name!r}), keep={str(keep)!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=pathlib.Path(__file__).parent.parent, stderr=-1)
    deadline = time.monotonic() + 60
    while not (keep.exists() and keep.read_bytes().count(b"\n") == 2) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert b"KeyboardInterrupt" in said and process.returncode
    [pid] = set(kept(keep))
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
