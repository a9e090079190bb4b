"""Metrics: one line a step in the file whatever interrupts it."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_jax import metrics
from rlhf_jax.metrics import MetricsWriter, read_metrics
from rlhf_jax.runtime.errors import InputError


def test_scalars_of_every_kind_become_floats():
    found = metrics.compute({"loss": jnp.float32(0.5), "count": np.int32(3), "learning_rate": 0.25})
    assert found == {"loss": 0.5, "count": 3.0, "learning_rate": 0.25}
    assert all(type(value) is float for value in found.values())


def write(path, resume_step, steps, **values):
    with MetricsWriter(path, resume_step) as writer:
        for step in steps:
            writer.write(step, {"objective/kl": step / 3} | values)


def test_lines_are_on_disk_at_once_and_exact(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path, None) as writer:
        writer.write(1, {"a": np.float32(0.1), "b": jnp.int32(3), "c": "text", "d": None})
        row = json.loads(path.read_text())
    assert row.pop("time") > 1e9
    assert row == {"step": 1, "a": float(np.float32(0.1)), "b": 3, "c": "text", "d": None}
    with MetricsWriter(path, None) as writer, pytest.raises(ValueError, match="called step"):
        writer.write(1, {"step": 2})


def test_not_finite_values_are_valid_json(tmp_path):
    path = tmp_path / "metrics.jsonl"
    values = {"a": float("nan"), "b": jnp.float32(jnp.inf), "c": -math.inf, "d": "nan of us"}
    with MetricsWriter(path, None) as writer:
        writer.write(1, values)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    row = json.loads(path.read_text(), parse_constant=refuse)
    assert (row["a"], row["b"], row["c"]) == ("nan", "inf", "-inf")
    [row] = read_metrics(path)
    assert math.isnan(row["a"]) and (row["b"], row["c"]) == (math.inf, -math.inf)
    assert row["d"] == "nan of us"


@given(resume=st.integers(0, 10), cut=st.integers(0, 60))
@settings(deadline=None, max_examples=30)
def test_interrupted_file_equals_uninterrupted_file(tmp_path_factory, resume, cut):
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    write(path, None, range(0, 12))
    with open(path, "ab") as file:  # killed while it wrote the line of step 12
        file.write(b'{"step": 12, "time": 1.5, "objective/kl": 4.0, "name": "\xed\x95\x9c"}'[:cut])
    if cut:
        assert [row["step"] for row in read_metrics(path)] == list(range(12))
    write(path, resume, range(resume + 1, 15))
    rows = read_metrics(path)
    assert [row["step"] for row in rows] == list(range(15))
    assert [row["objective/kl"] for row in rows] == [step / 3 for step in range(15)]


def test_fresh_start(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, None, [0, 1, 2])
    write(path, None, [0, 1])  # nothing was restored: step 0 is not there twice
    assert [row["step"] for row in read_metrics(path)] == [0, 1]
    write(path, 1, [2])
    assert [row["step"] for row in read_metrics(path)] == [0, 1, 2]
    write(tmp_path / "new.jsonl", 5, [6])  # no file yet
    assert [row["step"] for row in read_metrics(tmp_path / "new.jsonl")] == [6]


@pytest.mark.parametrize(
    "bad", ["{", '{"time": 1}', "3", '{"step": "1"}', "", '{"step": 2, "objec', "[" * 100_000, "\udcff"]
)
def test_a_line_that_is_not_whole_is_cut_and_the_others_stay_to_the_byte(tmp_path, bad, capsys):
    path = tmp_path / "metrics.jsonl"
    write(path, None, [1, 2, 3])
    first, _, third, _ = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([first, bad.encode(errors="surrogateescape"), third, b""]))
    assert [row["step"] for row in read_metrics(path)] == [1, 3]
    with MetricsWriter(path, 3) as writer:
        assert path.read_bytes() == first + b"\n" + third + b"\n"
        writer.write(4, {})
    assert capsys.readouterr().err == f"{path} has lost the lines of step 2; its curves have gaps there\n"
    assert [row["step"] for row in read_metrics(path)] == [1, 3, 4]


@given(steps=st.lists(st.integers(1, 12), max_size=30), resume=st.integers(0, 12))
@settings(deadline=None, max_examples=50)
def test_lines_that_are_there_twice_or_not_at_all(tmp_path_factory, steps, resume):
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    write(path, None, steps)
    lines = path.read_text().splitlines()
    write(path, resume, [])
    kept = [step for place, step in enumerate(steps) if step not in steps[:place] and step <= resume]
    assert path.read_text().splitlines() == [lines[steps.index(step)] for step in kept]
    found = metrics.lost_steps(read_metrics(path), resume)
    missing = [step for step in range(1, resume + 1) if step not in steps]
    assert bool(found) == bool(missing)
    for word in found.replace(",", "").split():
        assert word in ("step", "steps", "to") or int(word) in missing


def test_the_steps_that_are_lost_are_named_as_ranges(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    write(path, None, [1, 3, 7, 8])
    write(path, 10, [11])
    assert "has lost the lines of steps 2, 4 to 6, 9 to 10; its" in capsys.readouterr().err
    assert metrics.lost_steps([], 40) == "steps 1 to 40"
    assert (
        metrics.lost_steps([{"step": 2}, {"step": 10**15}], 10**15) == f"steps 1, 3 to {10**15 - 1}"
    )  # without a list of them
    assert metrics.lost_steps([{"step": step} for step in range(2, 40, 2)], 40).endswith(", 13, 15, 12 more gaps")
    write(tmp_path / "whole.jsonl", None, [1, 2, 3])
    write(tmp_path / "whole.jsonl", 2, [3])
    assert capsys.readouterr().err == ""


def test_a_last_line_that_lacks_its_line_end_alone_is_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, None, [1, 2])
    path.write_bytes(path.read_bytes()[:-1])
    write(path, 2, [3])
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3]


def test_a_file_of_something_else_is_refused_and_stays(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("notes\nof somebody\n")
    for read in (read_metrics, lambda path: MetricsWriter(path, 3)):
        with pytest.raises(InputError, match=f"{path}: no line of it is a JSON object"):
            read(path)
    assert path.read_text() == "notes\nof somebody\n"


def test_files_that_cannot_be_read_or_written(tmp_path):
    with pytest.raises(InputError, match="cannot read .*: No such file"):
        read_metrics(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="cannot write .*: No such file"):
        MetricsWriter(tmp_path / "none" / "metrics.jsonl", None)


def test_full_disk_names_the_file(tmp_path):
    writer = MetricsWriter(tmp_path / "metrics.jsonl", None)
    writer._file.close()
    try:
        writer._file = open("/dev/full", "a", encoding="utf-8")
    except OSError:
        pytest.skip("this system has no /dev/full")
    with pytest.raises(InputError, match=r"metrics.jsonl \(step 4\): No space left on device"):
        writer.write(4, {"a": 1.0})
    with pytest.raises(InputError, match="metrics.jsonl: No space left on device"):
        writer.close()
