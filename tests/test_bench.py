"""The benchmark runs the stages' own programs and reports what it says, at a size that takes seconds."""

import ast
import json
import math
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments import bench as experiment
from rlhf_jax import bench, model
from rlhf_jax.bench import command, drawn, host, measuring, roofs, sides, sweeps, versus, workload, works
from rlhf_jax.runtime.errors import InputError

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
    line = json.loads(json.dumps(measuring.measure(name, config)))
    assert line["work"] == name and line["size"] == "tiny"
    assert line["jax"] == jax.__version__ and line["model"]["embed_dim"] == 16
    assert len(line["repeats"]) == 2 and line["first_seconds"] > min(line["repeats"])
    assert line["tokens_per_second"] * line["seconds"] == pytest.approx(tokens, rel=0.02)
    assert line["peak_mib"] > 50
    if name == "ppo_iteration":
        assert set(line["parts"]) == {"sample", "score", "update"}
        assert sum(line["parts"].values()) == pytest.approx(line["seconds"], rel=0.3)


@pytest.mark.parametrize(
    "name",
    [
        "reward_step_packed",
        "sample_drawn_slots",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("sample_drawn", "ppo_ptx_iteration")),
    ],
)
def test_a_work_of_the_papers_kind_computes_what_it_says(config, name):
    config.model.update(vocab_size=300, max_length=64)
    config.completion_length = 40
    work = measuring.WORKS[name](config)
    seconds = work.run()
    assert set(work.costs) == set(seconds) and all(cost.flops > 0 for cost in work.costs.values())
    if name == "reward_step_packed":
        assert work.shape["completions"] == 9 and 8 * 50 < work.tokens <= 8 * 64  # rows that are nearly full
        assert work.found["loss"][0] == pytest.approx(math.log(2), rel=0.2)  # of a model that knows nothing
    if name.startswith("sample_drawn"):
        assert work.shape["slots"] == (8 if name == "sample_drawn_slots" else 16)
        expected = drawn.drawn_lengths(16, 40).tolist()
        assert work.found["lengths"] == expected and work.tokens == sum(expected) and len(set(expected)) > 1
    if name == "ppo_ptx_iteration":
        assert work.shape["ptx_rows"] == 8 * 16
        assert work.found["ratio"] == [pytest.approx(1.0, abs=1e-5)] and work.found["lengths"] == [40] * 16


def test_drawn_lengths_have_the_mean_of_the_papers_outputs():
    lengths = drawn.drawn_lengths(100_000, 1024)
    assert lengths.min() >= 1 and lengths.max() == 1024
    assert lengths.mean() == pytest.approx(130, rel=0.03)  # the cap takes a little
    assert np.median(lengths) == pytest.approx(130 / math.exp(0.5), rel=0.03)


def test_decoding_reads_the_weights_once_a_step_and_what_is_filled_of_the_cache(config):
    cost = works._sampling_cost(config, np.array([3, 1]))
    lm = workload.model_of(config)
    weights, of_token = 4 * sum(x.size for x in jax.tree.leaves(model.param_shapes(lm))), 2 * 1 * 16 * 4
    padding = (lm.padded_vocab - lm.vocab_size) * 16 * 4
    # The first token of each row comes with the prompt. The other two of one row read 5 and 6 keys.
    assert cost.bytes == (weights - padding) * 1 + of_token * (5 + 6)


def test_a_share_of_the_machines_rate_is_below_one_and_grows_with_the_work(config):
    assert 0 < roofs.matrix_rate("float32") < 1e14 and 0 < roofs.copy_rate() < 1e13
    work = workload.Workload(dict, 1, {}, {"step": workload.Cost(1e6, 1e3)})
    once = measuring._shares(work, [{"step": 0.5}], "float32")["shares"]["step"]
    twice = measuring._shares(work, [{"step": 1.0}], "float32")["shares"]["step"]
    assert set(once) == {"flops", "bytes"} and 0 < twice["flops"] < once["flops"] < 1


@pytest.mark.slow
def test_every_completion_runs_to_its_full_length_and_no_two_calls_are_alike(config):
    draw = works.sampler(config)
    params = model.init_params(workload.model_of(config), jax.random.key(0))
    first, second = draw(params), draw(params)
    assert first.completion_mask.all() and first.completion_mask.shape == (16, 6)
    assert (first.completions != second.completions).any()


def test_the_sizes_are_the_published_ones():
    parameters = {}
    for size in [*experiment.SIZES, *experiment.LARGE]:
        shapes = model.param_shapes(workload.model_of(experiment.get_config(size)))
        parameters[size] = sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6
    assert parameters == pytest.approx(
        {"tiny": 3.45, "small": 29.5, "124m": 125, "350m": 356, "1.3b": 1316, "6.7b": 6658}, rel=0.01
    )


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
    lines = {name: json.loads(json.dumps(measuring.measure(name, config))) for name in ("loading", "sft_step")}
    found = host.against_steps(lines)["kinds"]
    assert set(found) == {"documents", "demonstrations", "demonstrations_packed"}  # what the measured step takes
    for own in found.values():
        assert own["needed"] == pytest.approx(8 / lines["sft_step"]["seconds"], rel=1e-3)
        assert own["share"] == pytest.approx(own["needed"] / own["rows_per_second"], rel=1e-3)
    assert set(lines["loading"]["parts"]) == set(host._FEEDS)
    assert host.against_steps({"loading": lines["loading"]}) is None


def test_the_gain_of_all_at_once_is_in_arms_per_hour_without_compilation():
    line = {
        "shape": {"alone": 2, "at_once": 32, "iterations": 20},
        "parts": {"alone": 40.0, "at_once": 64.0},
        "first_parts": {"alone": 70.0, "at_once": 154.0},
    }
    assert sweeps.gain_at_once({"sweep_arms": line}, "sweep_arms") == {
        "work": "sweep_arms_at_once",
        "trials": 32,
        "per_hour": {"alone": 180.0, "at_once": 1800.0},
        "gain": 10.0,
        "compilation": {"alone": 30.0, "at_once": 90.0},
    }
    assert sweeps.gain_at_once({}, "sweep_arms") is None


@pytest.mark.slow
def test_whole_arms_are_measured_by_both_runners(config):
    config.model.update(vocab_size=512, max_length=80)
    config.update(repeats=1, trials=3, arms_alone=1, iterations=2, test_prompts=8)
    line = json.loads(json.dumps(measuring.measure("sweep_arms", config)))
    assert line["shape"]["alone"] == 1 and line["shape"]["at_once"] == 3 and line["shape"]["prompt_length"] == 74
    for part in ("alone", "at_once"):
        assert line["first_parts"][part] > line["parts"][part] > 0  # nothing is compiled the second time


# --- Side by side with others -------------------------------------------------------------------------------


def test_losses_agree_to_a_tolerance_and_lengths_and_tokens_exactly():
    found = {"loss": [2.0, 1.5], "lengths": [3, 3]}
    assert versus.agreement(found, {"loss": [2.001, 1.5], "lengths": [3, 3]}, 1e-3)["agrees"]
    assert not versus.agreement(found, {"loss": [2.01, 1.5]}, 1e-3)["agrees"]
    assert not versus.agreement(found, {"loss": [2.0]}, 1e-3)["agrees"]  # a step was not made
    assert not versus.agreement(found, {"lengths": [3, 2]}, 1e-3)["agrees"]
    assert not versus.agreement(found, {}, 1e-3)["agrees"]  # nothing was compared


def test_a_side_that_ends_is_told_with_its_last_words():
    with pytest.raises(InputError, match="no_such_module ended with status 1: .*no_such_module"):
        sides.Side("rlhf_jax.bench.no_such_module", {}, {})


def test_without_torch_or_a_work_to_compare_one_sentence_says_so(config, monkeypatch):
    config.works = ("loading",)
    monkeypatch.setattr(versus.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="--vs=torch needs torch"):
        command.main(config, "torch")
    with pytest.raises(InputError, match="--vs=tunix needs tunix: pip install 'google-tunix'"):
        command.main(config, "tunix")
    monkeypatch.setattr(versus.importlib.util, "find_spec", lambda name: name)
    with pytest.raises(InputError, match="experiments/bench.py:tiny,llama"):
        command.main(config, "tunix")
    with pytest.raises(InputError, match="--config.works has none of them"):
        command.main(config, "torch")


@pytest.mark.slow
def test_the_sampler_of_tunix_draws_as_many_tokens_and_the_same_most_likely_ones(config, capsys):
    pytest.importorskip("tunix")
    config.works = ("sample",)
    config.model.update(positions="rope", norm="rmsnorm", mlp="swiglu", use_bias=False)
    assert command.main(config, "tunix") == 0
    (line,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert line["vs"] == "tunix" and line["agrees"] and set(line["compared"]) == {"lengths", "greedy"}


@pytest.mark.parametrize("name", ["sft_step", pytest.param("sample", marks=pytest.mark.slow)])
def test_torch_computes_the_same_side_by_side(config, monkeypatch, name, capsys):
    """The losses of several steps, so that also the optimizers agree; TRL where it is installed."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    monkeypatch.setattr(versus.shutil, "which", lambda _: None)  # torch.compile takes half a minute
    config.works = (name,)
    status = command.main(config, "torch")
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert status == 0 and "torch_compile is left out: torch.compile needs a C++ compiler" in err or name == "sample"
    assert {line["vs"] for line in lines} >= ({"torch"} if name == "sft_step" else {"transformers"})
    for line in lines:
        assert line["agrees"] and line["ratio"] > 0
        assert all(len(line[side]["repeats"]) == 2 and line[side]["peak_mib"] > 50 for side in ("ours", "theirs"))
