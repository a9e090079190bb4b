"""The page of what a GPU measured, written on a CPU: of lines that are given, and of a toy that is measured."""

import json
import pathlib
import re
import subprocess

import pytest

from rlhf_jax.bench import gpu

PROJECT = pathlib.Path(__file__).resolve().parent.parent


def line(parts, shape, **more):
    return {
        "device": "NVIDIA H200",
        "cores": 16,
        "repeats": [1.0] * 5,
        "machine": {"matrix_tflops": 700.0, "copy_gb_per_second": 4000.0},
        "shares": {part: {"flops": 0.5, "bytes": 0.65} for part in parts},
        "seconds": sum(parts.values()),
        "parts": parts,
        "first_parts": parts,
        "tokens_per_second": 100.0,
        "shape": shape,
        **more,
    }


@pytest.fixture
def lines():
    rows = {"episodes": 32}
    swept = line({"alone": 1.0, "at_once": 3.2}, {"alone": 1, "at_once": 32})
    ppo = {"sample": 6.0, "score": 1.0, "update": 3.0}
    found = {("tiny", "ppo_trials"): swept}
    for size in ("124m", "1.3b"):
        shape = {"sequences": 8, "length": 2048}
        found[size, "sft_step"] = line({"step": 2.0}, shape, peak_mib=3000, planned_mib=2500)
        found |= {(size, work): line({"sample": 4.0}, rows) for work in gpu._SAMPLED}
        found[size, "ppo_ptx_iteration"] = line(ppo, rows)
    return found


def rows_of(page, title):
    """The cells of the first table below a heading, without its names."""
    text = page.partition(f"## {title}\n")[2]
    table = re.search(r"(?:^\|.*\|\n)+", text, re.MULTILINE)[0].splitlines()
    assert len({row.count("|") for row in table}) == 1
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table[2:]]


def test_the_page_has_what_was_measured(lines):
    page = gpu.page(lines, "bash launch/bench_gpu.sh")
    assert "`bash launch/bench_gpu.sh`" in page and "NVIDIA H200" in page
    # Half of the 700 TFLOP/s of the matrix product is 35.4 % of the data sheet's 989.4.
    assert rows_of(page, "SFT step")[1] == ["1.3b", "8 x 2048", "2.0", "100.0", "35.4 %", "50.0 %", "3000"]
    assert rows_of(page, "Plan against measured")[0] == ["124m", "1", "2.0", "2500", "3000", "1.20"]
    sampled = rows_of(page, "Sampling")
    assert [row[:2] for row in sampled] == [[size, kind] for size in ("124m", "1.3b") for kind in gpu._SAMPLED.values()]
    assert {row[-1] for row in sampled} == {"65.0 %"}
    parts = rows_of(page, "PPO-ptx iteration")
    assert parts[:3] == [
        ["124m", "sample", "6.0", "60 %", "50.0 %"],
        ["124m", "score", "1.0", "10 %", "50.0 %"],
        ["124m", "update", "3.0", "30 %", "50.0 %"],
    ]
    assert rows_of(page, "Sweep") == [["3600.0", "36000.0", "10.0"]]


def test_a_device_without_a_data_sheet_has_no_mfu(lines):
    lines["124m", "sft_step"]["device"] = "GPU of next year"
    assert rows_of(gpu.page(lines, ""), "SFT step")[0][4] == "–"


def test_a_toy_does_not_overwrite_what_a_gpu_measured():
    for flags in (["--toy"], ["--toy", "--out=docs/bench_gpu.md"], ["--fast"]):
        done = subprocess.run(["bash", "launch/bench_gpu.sh", *flags], cwd=PROJECT, capture_output=True, text=True)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_the_script_measures_and_writes_its_page(tmp_path, capsys):
    gpu.main(["--toy", f"--out={tmp_path / 'page.md'}"])
    works = [json.loads(line)["work"] for line in capsys.readouterr().out.splitlines()]
    assert works == ["sft_step", "sample", "sample_drawn", "sample_drawn_slots", "ppo_ptx_iteration", "ppo_trials"]
    page = (tmp_path / "page.md").read_text()
    assert [row[1] for row in rows_of(page, "PPO-ptx iteration")] == ["sample", "score", "update"]
    assert 0 < float(rows_of(page, "SFT step")[0][5].rstrip(" %")) < 100
