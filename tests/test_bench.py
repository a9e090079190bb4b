"""The benchmark runs the stages' own programs and reports what it says, at a size that takes seconds."""

import ast
import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from experiments import bench as experiment
from rlhf_jax import bench

PROJECT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture
def config():
    config = experiment.get_config("tiny")
    config.model.update(vocab_size=64, num_layers=1, embed_dim=16, num_heads=2, max_length=16)
    config.update(repeats=2, batch_size=8, episodes=16, prompt_length=4, completion_length=6, minibatches=2)
    return config


@pytest.mark.parametrize(
    ("name", "tokens"), [("reward_step", 16 * 16), pytest.param("ppo_iteration", 16 * 10, marks=pytest.mark.slow)]
)
def test_a_line_says_how_much_work_was_done_how_fast(config, name, tokens):
    line = json.loads(json.dumps(bench.measure(name, config)))
    assert line["work"] == name and line["size"] == "tiny"
    assert line["jax"] == jax.__version__ and line["model"]["embed_dim"] == 16
    assert len(line["repeats"]) == 2 and line["first_seconds"] > min(line["repeats"])
    assert line["tokens_per_second"] * line["seconds"] == pytest.approx(tokens, rel=0.02)
    assert line["peak_mib"] > 50
    if name == "ppo_iteration":
        assert set(line["parts"]) == {"sample", "score", "update"}
        assert sum(line["parts"].values()) == pytest.approx(line["seconds"], rel=0.3)


@pytest.mark.slow
def test_every_completion_runs_to_its_full_length_and_no_two_calls_are_alike(config):
    draw = bench._sampler(config)
    params = bench.model.init_params(bench.workload.model_of(config), jax.random.key(0))
    first, second = draw(params), draw(params)
    assert first.completion_mask.all() and first.completion_mask.shape == (16, 6)
    assert (first.completions != second.completions).any()


def test_the_sizes_are_the_published_ones():
    parameters = {}
    for size in experiment.SIZES:
        shapes = bench.model.param_shapes(bench.workload.model_of(experiment.get_config(size)))
        parameters[size] = sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6
    assert parameters == pytest.approx({"tiny": 3.45, "small": 29.5}, rel=0.01)


@pytest.mark.slow
def test_the_command_prints_one_json_line_a_work():
    flags = [
        "model.num_layers=1",
        "model.embed_dim=16",
        "model.max_length=96",
        "repeats=1",
        "works=('sample','sft_step')",
    ]
    command = [sys.executable, "-m", "rlhf_jax.bench", "--config=experiments/bench.py:tiny"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    result = subprocess.run(
        command + [f"--config.{flag}" for flag in flags],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = {line["work"]: line for line in map(json.loads, result.stdout.splitlines())}
    assert list(lines) == ["sample", "sft_step"]
    assert lines["sample"]["tokens_per_second"] * lines["sample"]["seconds"] == pytest.approx(32 * 64, rel=0.02)
    assert lines["sft_step"]["tokens_per_second"] * lines["sft_step"]["seconds"] == pytest.approx(16 * 96, rel=0.02)


def test_the_benchmark_copies_no_program():
    """It has no gradient, loss or network of its own."""
    trees = [ast.parse(path.read_text()) for path in pathlib.Path(bench.__file__).parent.glob("*.py")]
    names = {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert len(trees) > 1
    assert not names & {"grad", "value_and_grad", "softmax", "log_softmax", "einsum", "dot", "apply_updates"}


def test_the_loader_is_measured_against_what_the_steps_take(config):
    config.loader_rows = 200
    lines = {name: json.loads(json.dumps(bench.measure(name, config))) for name in ("loading", "sft_step")}
    found = bench.against_steps(lines)["kinds"]
    assert set(found) == {"documents", "demonstrations", "demonstrations_packed"}  # what the measured step takes
    for own in found.values():
        assert own["needed"] == pytest.approx(8 / lines["sft_step"]["seconds"], rel=1e-3)
        assert own["share"] == pytest.approx(own["needed"] / own["rows_per_second"], rel=1e-3)
    assert set(lines["loading"]["parts"]) == set(bench._FEEDS)
    assert bench.against_steps({"loading": lines["loading"]}) is None


def test_the_gain_of_all_at_once_is_in_arms_per_hour_without_compilation():
    line = {
        "shape": {"alone": 2, "at_once": 32, "iterations": 20},
        "parts": {"alone": 40.0, "at_once": 64.0},
        "first_parts": {"alone": 70.0, "at_once": 154.0},
    }
    assert bench.gain_at_once({"sweep_arms": line}, "sweep_arms") == {
        "work": "sweep_arms_at_once",
        "trials": 32,
        "per_hour": {"alone": 180.0, "at_once": 1800.0},
        "gain": 10.0,
        "compilation": {"alone": 30.0, "at_once": 90.0},
    }
    assert bench.gain_at_once({}, "sweep_arms") is None


@pytest.mark.slow
def test_whole_arms_are_measured_by_both_runners(config):
    config.model.update(vocab_size=512, max_length=80)
    config.update(repeats=1, trials=3, arms_alone=1, iterations=2, test_prompts=8)
    line = json.loads(json.dumps(bench.measure("sweep_arms", config)))
    assert line["shape"]["alone"] == 1 and line["shape"]["at_once"] == 3 and line["shape"]["prompt_length"] == 74
    for part in ("alone", "at_once"):
        assert line["first_parts"][part] > line["parts"][part] > 0  # nothing is compiled the second time
