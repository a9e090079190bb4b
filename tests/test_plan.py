"""plan: topologies that exist, formulas by hand, the command end to end on virtual devices, and the TPU compiler."""

import dataclasses
import importlib.util
import json
import math
import os
import pathlib
import re
import subprocess
import sys

import compiling
import jax
import numpy as np
import plan_config
import pytest
import tiny
from ml_collections import ConfigDict
from test_dpo import packed_of, preferences_of

from rlhf_jax import forecast, model, sharding
from rlhf_jax import run as run_lib
from rlhf_jax.abstract import Data
from rlhf_jax.lora import Lora
from rlhf_jax.model import TransformerConfig, decode, lengths, work
from rlhf_jax.plan import depth, estimate, hlo, planner, search, topology
from rlhf_jax.plan import page as tables
from rlhf_jax.runtime import libtpu
from rlhf_jax.runtime.errors import InputError

PROJECT = pathlib.Path(__file__).resolve().parent.parent
DATA = Data(demonstrations=40, rankings=16, completions=4, vocab_size=300)
GPT3 = TransformerConfig(50_257, num_layers=96, embed_dim=12_288, num_heads=96, attention="blocked")
GIB = 2**30


@pytest.fixture(scope="module", autouse=True)
def simply_compiled():
    """Programs are read, and none is run."""
    with compiling.simply_up_to(8):
        yield


# ---------------------------------------------------------------------------- topologies


@pytest.mark.parametrize(
    "name, chips",
    [
        ("v4:2x2x1", 4),
        ("v4:4x4x8", 128),
        ("v5e:1x1", 1),
        ("v5e:8x16", 128),
        ("v5e:16x16x4slices", 1024),
        ("v5p:8x8x8", 512),
        ("v5p:16x16x24", 6144),
        ("v6e:4x4", 16),
        ("h100:8", 8),
        ("h200:2x8", 16),
        ("cpu:8", 8),
    ],
)
def test_topologies_that_exist(name, chips):
    found = topology.parse(name)
    assert found.chips == chips and found.name == name


@pytest.mark.parametrize(
    "name, hint",
    [
        ("v9:2x2", "the chips are v4, v5e"),
        ("v5e:32x32", "v5e slices are 1x1, 2x2"),
        ("v5e:4x2", "v5e slices are"),
        ("v5p:64x64x64", "up to 6144 chips"),
        ("v5p:3x3x3", "multiples of 4"),
        ("v5p:8x4x4", "A <= B <= C"),
        ("v4:16x16x24", "up to 4096 chips"),
        ("v5p-32", "counts TensorCores"),
        ("v5litepod-16", "counts chips"),
        ("h100:3", "1, 2, 4 or 8"),
        ("h200:2x4", "several nodes 8 each"),
        ("h100:8x2slices", "only v5e, v5p and v6e can have several"),
        ("v5e", "write it as v5e:4x4"),
        ("cpu:0", "write it as cpu:8"),
    ],
)
def test_a_topology_that_does_not_exist_is_refused_by_name(name, hint):
    with pytest.raises(InputError) as refused:
        topology.parse(name)
    assert f"'{name}'" in str(refused.value) and hint in str(refused.value)


def test_slices_may_be_a_flag_and_cannot_be_none():
    assert topology.parse("v6e:16x16", 4).name == "v6e:16x16x4slices"
    with pytest.raises(InputError, match="slices"):
        topology.parse("v6e:16x16", 0)


@pytest.mark.parametrize("name, extra", [("v5e:2x2", "plan"), ("h100:8", "plan_gpu")])
def test_without_its_compiler_a_topology_says_what_to_install(monkeypatch, name, extra):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=rf"pip install -e '.\[{extra}\]'"):
        topology.parse(name).devices()


def test_the_tables_for_docs_name_topologies_that_exist_and_meshes_that_fill_them():
    rows = re.findall(
        r"^plan (\S+) (\S+) (\d+) (\d+)", (PROJECT / "launch" / "plan_tables.sh").read_text(), re.MULTILINE
    )
    assert {size for size, *_ in rows} == {"1.3b", "6b", "175b"}
    for _, name, ways, tensor in rows:
        assert topology.parse(name).chips == int(ways) * int(tensor)


# ---------------------------------------------------------------------------- formulas


def test_parameters_of_gpt3():
    assert round(work.parameters(GPT3) / 1e6) == 174_604
    layers, width = 96, 12_288
    by_hand = 12 * layers * width**2 + 13 * layers * width + 50_257 * width + 2048 * width + 2 * width
    assert work.parameters(GPT3) == by_hand
    assert work.parameters(GPT3, "scalar") == by_hand + width + 1


def test_flops_by_hand():
    config = TransformerConfig(
        61, num_layers=2, embed_dim=32, num_heads=4, mlp_dim=48, attention="blocked", vocab_multiple=61
    )
    weights = 2 * (4 * 32 * 32 + 2 * 32 * 48)
    rows, length, logits = 3, 10, 15
    scores = rows * length * (length + 1) / 2
    once = 2 * weights * 30 + 4 * 2 * 32 * scores + 2 * 32 * 61 * logits
    masked = 4 * 2 * 32 * (rows * length**2 - scores)  # the row is shorter than a block of 64
    assert work.forward(config, rows, length, logits) == work.Work(30, once, once + masked)
    assert work.training(config, rows, length, logits).flops == 3 * once
    full = dataclasses.replace(config, remat="full")
    trained = work.training(full, rows, length, logits)
    assert trained.executed == pytest.approx(3 * (once + masked) + 2 * weights * 30 + 4 * 2 * 32 * rows * length**2)
    chunked = work.training(dataclasses.replace(config, logits_chunk=4), rows, length, logits)
    assert chunked.executed == 3 * (once + masked) + 2 * 32 * 61 * logits  # 5 places of a row, 4 at a time
    chunks = dataclasses.replace(config, logits_chunk=4)
    assert work.training(chunks, rows, length, logits, again=False).executed == 3 * (once + masked)
    long = work.forward(config, rows, 1000, logits)
    xla = work.forward(dataclasses.replace(config, attention="xla"), rows, 1000, logits)
    assert xla.flops == long.flops < long.executed < xla.executed
    assert xla.executed - xla.flops == pytest.approx(4 * 2 * 32 * rows * (1000**2 - 1000 * 1001 / 2))


def test_flops_are_those_of_the_compiled_program():
    """Unscanned, on one device: there the compiler counts everything once."""
    config = dataclasses.replace(tiny.CONFIG, embed_dim=64, vocab_size=64, init_std=0.02)

    def loss(params, tokens):
        ids = jax.numpy.ones_like(tokens)
        hidden = model.hidden_states(config, params, tokens, ids, ids)
        return model.lm_logits(config, params, hidden).sum()

    abstract = jax.ShapeDtypeStruct((8, 40), "int32")
    counted = jax.jit(loss).lower(model.param_shapes(config), abstract).compile().cost_analysis()["flops"]
    assert counted == pytest.approx(work.forward(config, 8, 40, 8 * 40).executed, rel=0.12)


def test_sampling_is_a_forward_pass_over_what_was_sampled_token_by_token():
    config = dataclasses.replace(GPT3, num_layers=2, attention="blocked", vocab_multiple=1)
    rows, prompt, completion = 4, 16, 8
    whole = work.forward(config, rows, prompt + completion - 1, logits=rows * completion)
    assert work.sampling(config, *lengths.full(rows, prompt, completion)).flops == pytest.approx(whole.flops, rel=1e-12)


def test_decoding_reads_the_weights_once_a_step_and_of_each_row_what_is_filled():
    """Against a loop over the steps of two devices, each of which refills its slots at once."""
    prompts, completions = np.array([5, 1, 3, 3]), np.array([4, 1, 2, 7])
    decoding = work.Decoding(weights=1000.0, token=10.0, prompts=prompts, completions=completions, places=12, ways=2)
    filled = sum(prompt + step for prompt, whole in zip(prompts, completions) for step in range(1, whole))
    assert decoding.bytes_read(rows=2) == 6 * 1000 + 10 * filled / 2  # as long as the longest
    assert decoding.bytes_read(rows=1) == 6 * 1000 + 10 * filled / 2  # ten tokens after the first on two devices
    alone = dataclasses.replace(decoding, ways=1)
    assert alone.bytes_read(rows=1) == 10 * 1000 + 10 * filled
    assert [alone.rows_in(room) for room in (0, 120, 359, 10_000)] == [1, 1, 2, 4]
    config = dataclasses.replace(GPT3, num_layers=2, dtype="bfloat16", vocab_multiple=1)
    found = work.decoding(config, *lengths.full(8, 16, 4), 20, sharding.make_mesh(1, 4, 2))
    assert (
        found.weights == work.parameters(config) * 2 / 2 and found.token == 2 * 2 * 12_288 * 2 / 2 and found.ways == 4
    )


def test_real_lengths_have_the_papers_mean_and_median():
    prompts, completions = lengths.Lengths(166, 130).drawn(100_000, 100_000, 100_000)
    assert prompts.mean() == pytest.approx(166, rel=0.03) and np.median(prompts) == pytest.approx(62, rel=0.03)
    assert completions.mean() == pytest.approx(130, rel=0.03)
    cut = lengths.Lengths(166, 130).drawn(512, 1024, 100)
    assert cut[0].max() <= 1024 and cut[1].max() == 100 and min(map(np.min, cut)) >= 1


def test_a_floor_is_the_larger_of_compute_and_reading():
    chip = topology.CHIPS["v5p"]
    assert estimate.floor(chip, 10, work.Work(1, 459e13, 9e20), 0.0) == 1.0
    assert estimate.floor(chip, 10, work.Work(1, 459e13, 9e20), 2765e9 * 3) == 3.0
    assert estimate.floor(topology.CHIPS["cpu"], 1, work.Work(), 1.0) is None


def test_the_papers_compute():
    """The published 4.9 petaflop/s-days of SFT are examples counted at the whole context."""
    steps = math.ceil(16 * 12_725 / 8)
    days = steps * work.training(GPT3, 8, 2048, 8 * 2048).flops / estimate.PETAFLOP_S_DAY
    assert 4.9 < days < 5.3


def test_the_slowest_thing_binds():
    chip = topology.CHIPS["v5p"]
    facts = hlo.Facts(
        [hlo.Collective("all-gather", "fsdp", 1, 0, int(600e9), 0)], moved=int(2765e9 * 3), unknown_loops=0
    )
    found = estimate.bounds(chip, 10, work.Work(1, 459e13, 2 * 459e13), facts)
    assert found == {"compute": 2.0, "memory": 3.0, "links": 1.0}
    assert "network" in estimate.bounds(
        chip, 10, work.Work(), hlo.Facts([hlo.Collective("all-reduce", "data", 1, 0, 0, 8)], 0, 0)
    )
    assert estimate.bounds(topology.CHIPS["cpu"], 8, work.Work(), facts) == {}


# ---------------------------------------------------------------------------- the programs of a config


def on_this_machine(name="cpu:8", memory=GIB):
    return dataclasses.replace(topology.parse(name), chip=dataclasses.replace(topology.CHIPS["cpu"], memory=memory))


def tensor_config():
    config = plan_config.get_config()
    config.mesh.tensor = 2
    return config


@pytest.fixture(scope="module")
def planned():
    """A plan on eight virtual devices, without the programs that take long to compile."""
    only = ("train step", "decode layout", "sample")
    return planner.plan(tensor_config(), on_this_machine(), DATA, stages="sft,ppo_ptx", only=only)


def check_rows(planned):
    """Everything that lies on the device is counted, and once."""
    for row in planned["programs"]:
        assert row["fits"] and row["spare"] == GIB - row["total"] and not row["unknown_loops"]
        assert (
            sum(row["held"].values()) + row["cache"] + row["temporaries"]
            == row["total"]
            == row["peak"] + row["resident"]
        )


def test_everything_on_the_device_is_counted(planned):
    assert [row["program"] for row in planned["programs"]] == ["train step", "decode layout", "sample"]
    check_rows(planned)
    sample = planned["programs"][2]
    policy = sample["held"]["policy parameters"]
    assert sample["held"]["policy optimizer"] == pytest.approx(2 * policy, rel=0.01)
    assert sample["cache"] == 2 * 2 * 32 * 16 * 16 * 4 // 8  # keys and values, layers, width, rows, length, bytes


def test_the_base_of_adapters_is_counted_once_and_the_state_is_theirs():
    config = plan_config.get_config()
    config.model.lora.rank = 2
    plans = [
        planner.plan(config, on_this_machine("cpu:1"), DATA, stages="ppo_ptx", only=("score", "update"))
        for config in (plan_config.get_config(), config)
    ]
    check_rows(plans[1])
    whole, adapters = ({row["program"]: row for row in found["programs"]} for found in plans)
    base = whole["update"]["held"]["policy parameters"]
    for name in ("score", "update"):
        assert adapters[name]["held"]["base"] == base
        others = sum(adapters[name]["held"].values()) - base
        assert others < 0.7 * base and adapters[name]["total"] < whole[name]["total"]
        # The compiler's peak has it once as well: what is left beside the arguments, which has what the adapters read and
        # make, has no second copy.
        assert adapters[name]["temporaries"] < whole[name]["temporaries"] + 2 * base


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_a_moving_average_of_the_policy_is_held_where_there_is_one(decay):
    config = plan_config.get_config()
    config.ppo_ptx.ema_decay = decay
    run = run_lib.without_data(config, DATA, sharding.make_mesh(**config.mesh, devices=jax.devices()[:1]))
    for program in planner.programs_of(run, "ppo_ptx", DATA):
        assert ("policy average" in program.passed | program.resident) == (decay > 0)
    state = program.lower().args_info[0][0]
    assert (state.policy.ema_params is not None) == (decay > 0)


def test_rewards_of_functions_are_planned_without_them_and_without_a_reward_model():
    """A function runs on the host: its module need not be here, and its scores are an argument of the program."""
    config = plan_config.get_config()
    config.ppo_ptx.update(reward="not_here:f, reward_model, g=not_here:f(limit=3)", reward_weights=(1.0, 2.0, 0.5))
    alone = plan_config.get_config()
    alone.ppo_ptx.reward = "not_here:f"
    plans = [
        planner.plan(config, on_this_machine("cpu:1"), DATA, stages="ppo_ptx", only=("score",))
        for config in (plan_config.get_config(), config, alone)
    ]
    model, mixed, functions = (found["programs"][0] for found in plans)
    assert mixed["fits"] and functions["fits"] and mixed["held"]["frozen"] == model["held"]["frozen"]
    reward = model["held"]["frozen"] - functions["held"]["frozen"]
    assert reward == pytest.approx(model["held"]["frozen"] / 2, rel=0.01)  # as large as the reference
    assert functions["flops"] < model["flops"] == mixed["flops"]


def test_adapters_spare_the_gradients_of_frozen_weights():
    """Per token and weight of a matrix: 2 forward and 2 backward where it is frozen, 2 and 4 where it is trained."""
    config = TransformerConfig(64, num_layers=2, embed_dim=32, num_heads=4, mlp_dim=48, attention="blocked")
    adapted = dataclasses.replace(config, lora=Lora(3, 6.0))
    frozen = 2 * (4 * 32 * 32 + 2 * 32 * 48) * 30 + 32 * 64 * 15
    trained = 2 * 3 * (4 * (32 + 32) + 2 * (32 + 48)) * 30
    scores = 4 * 2 * 32 * 3 * 10 * 11 / 2
    assert work.training(adapted, 3, 10, 15).flops == 4 * frozen + 6 * trained + 3 * scores
    assert work.training(config, 3, 10, 15).flops == 6 * frozen + 3 * scores


@pytest.mark.parametrize(
    "stage", ["sft", *(pytest.param(name, marks=pytest.mark.slow) for name in ("reward_model", "dpo", "ppo_ptx"))]
)
def test_training_gathers_one_layers_weights_at_a_time(stage):
    """Never those of all layers, nor their gradients: 216 GiB a device for one array at 175B."""
    layers = 11  # no other size is
    config = tensor_config()
    config.model.num_layers = layers
    mesh = sharding.make_mesh(1, 4, 2)
    run = run_lib.without_data(config, DATA, mesh)
    program = planner.programs_of(run, stage, DATA)[-1]
    with jax.set_mesh(mesh):
        text = program.lower().compile().as_text()
    gathered = re.findall(r"= \(?\w+\[([\d,]*)\]\S* all-gather", text)
    assert program.name in ("train step", "update") and gathered
    assert not [shape for shape in gathered if str(layers) in shape.split(",")]


@pytest.mark.slow
def test_every_program_of_a_config_is_compiled():
    found = planner.plan(tensor_config(), on_this_machine(), DATA)
    names = [(row["stage"], row["program"]) for row in found["programs"]]
    assert names == [
        ("sft", "train step"),
        ("reward_model", "train step"),
        ("ppo_ptx", "decode layout"),
        ("ppo_ptx", "sample"),
        ("ppo_ptx", "score"),
        ("ppo_ptx", "update"),
    ]
    check_rows(found)


def test_runs_and_tokens_of_every_program():
    config = tensor_config()
    run = run_lib.without_data(config, DATA, tiny.mesh_of("2x2x2"))
    found = {
        (p.stage, p.name): p for stage in planner.chosen_stages(config) for p in planner.programs_of(run, stage, DATA)
    }
    counts = {key: (program.runs, program.work.tokens) for key, program in found.items()}
    assert counts == {
        ("sft", "train step"): (10, 8 * 16),
        ("reward_model", "train step"): (2, 8 * 4 * 16),
        ("ppo_ptx", "decode layout"): (3, 0),
        ("ppo_ptx", "sample"): (3, 16 * (8 + 7)),
        ("ppo_ptx", "score"): (3, 4 * 16 * 16),
        ("ppo_ptx", "update"): (6, 2 * 8 * 16 + 16 * 16),
    }
    held = [set(p.passed) | set(p.resident) - {"experience"} for p in found.values() if p.stage == "ppo_ptx"]
    states = {f"{model} {part}" for model in ("policy", "value") for part in ("parameters", "optimizer")} | {
        "policy average",
        "frozen",
    }
    assert all(
        groups - {"batch", "decode copy"} == states for groups in held
    )  # both models, the average and the frozen ones, always


@pytest.mark.parametrize("options", [dict(advantage="rloo", samples_per_prompt=2), dict(value="shared")])
def test_without_a_value_model_none_is_planned(options):
    config = tensor_config()
    config.ppo_ptx.update(options)
    run = run_lib.without_data(config, DATA, tiny.mesh_of("2x2x2"))
    found = {p.name: p for p in planner.programs_of(run, "ppo_ptx", DATA)}
    for program in found.values():
        groups = program.passed | program.resident
        assert not [name for name in groups if name.startswith("value")]
        if program.name != "sample":
            assert ("scalar_kernel" in groups["policy parameters"]) == ("value" in options)
    assert "scalar_kernel" not in found["sample"].passed["decode copy"]
    assert (found["score"].work.tokens, found["update"].work.tokens) == (3 * 16 * 16, 8 * 16 + 16 * 16)
    with jax.set_mesh(run.mesh):
        found["update"].lower()


@pytest.mark.parametrize("packed, tokens", [(False, 8 * 4 * 16), (True, 8 * (8 + 4 * 8))])
def test_dpo_reads_its_rankings_once_more_for_the_reference(packed, tokens):
    config = tensor_config()
    config.dpo.packed = packed
    run = run_lib.without_data(config, DATA, tiny.mesh_of("2x2x2"))
    reference, step = planner.programs_of(run, "dpo", DATA)
    assert [(p.name, p.runs, p.work.tokens) for p in (reference, step)] == [
        ("reference", 2, tokens),
        ("train step", 2, tokens),
    ]
    assert step.work.flops == 3 * reference.work.flops and set(reference.passed) == {"parameters", "batch"}
    real = packed_of(preferences_of(0)) if packed else preferences_of(0)
    assert jax.tree.map(lambda x: (x.ndim, x.dtype), reference.passed["batch"]) == jax.tree.map(
        lambda x: (x.ndim, x.dtype), real
    )
    with jax.set_mesh(run.mesh):
        reference.lower()


@pytest.fixture(scope="module")
def real():
    """A plan for a chip with rates and for real lengths, of programs that were compiled elsewhere."""
    chip = dataclasses.replace(
        topology.CHIPS["cpu"], memory=GIB, flops=1e9, memory_bandwidth=1e9, link_bandwidth=1e9, network_bandwidth=1e9
    )
    place = dataclasses.replace(topology.parse("cpu:8"), chip=chip)
    part = {"collectives": [], "moved": 10_000_000, "unknown_loops": 0}
    said = {"peak": 10**6, "needed": None, "compile_seconds": 1.0}

    def compiled(lowered, run, place, scopes, started):
        nothing = part | {"moved": 0}  # in the loops whose turns the data decide
        return said | {"parts": dict.fromkeys(scopes, nothing) | {"": part}}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planner, "_compile", compiled)
        data = dataclasses.replace(DATA, lengths=lengths.Lengths(4, 3))
        only = ("train step", "sample")
        return planner.plan(tensor_config(), place, data, stages="sft,ppo_ptx", only=only)


def test_real_lengths_lower_the_work_and_the_floor_of_sampling(real):
    step, sample = real["programs"]
    assert step["real"]["flops"] == step["flops"] and step["floor"] == step["flops"] / 8 / 1e9
    assert sample["real"]["tokens"] < sample["tokens"] and sample["real"]["flops"] < sample["flops"]
    assert 0 < sample["real"]["floor"] < sample["floor"] < sample["seconds"] == 0.01
    total = real["total"]
    assert total["hours"] == pytest.approx((step["seconds"] * step["runs"] + 0.01 * sample["runs"]) / 3600)
    assert total["floor_hours"] > total["real_floor_hours"] > 0


def test_tables_have_the_floors_and_the_rows_at_once(real):
    step, sample = real["programs"]
    text = tables.render(real | {"name": "tiny"})
    assert "With prompts of 4 tokens in the mean, and completions of 3:" in text
    assert f"{sample['seconds'] / sample['floor']:.2f} |" in text
    assert f"{sample['real']['seconds'] / sample['real']['floor']:.2f} |" in text
    assert step["rows"] == {"rows": [2, 2]} and "| rows 2 of 2 |" in text and "| completions 4 of 4 |" in text
    row = tables.overview([real | {"name": "some/tiny.py"}]).splitlines()[2]
    assert f"| {real['total']['hours'] / real['total']['floor_hours']:.2f} |" in row


def test_what_all_layers_take_is_extrapolated_from_few(monkeypatch):
    monkeypatch.setattr(decode, "unrolls", lambda platform: True)
    config = tensor_config()
    config.prompt_length = config.completion_length = 64
    config.model.update(num_layers=7, max_length=128)
    chosen = dict(stages="ppo_ptx", only=("sample",))
    (whole,), (few,) = (
        planner.plan(config, on_this_machine(), DATA, **chosen, whole=whole)["programs"] for whole in (True, False)
    )
    assert few["depths"] == [2, 4] and "depths" not in whole
    assert " of 2 and 4 layers |" in tables.memory({"memory_limit": GIB, "programs": [few]})
    assert few["held"] == whole["held"] and few["cache"] == whole["cache"] and few["floor"] == whole["floor"]
    for name in ("peak", "moved"):
        assert few[name] == pytest.approx(whole[name], rel=0.01)
    sent = [{(c["kind"], c["axes"]): c["bytes"] for c in row["collectives"]} for row in (few, whole)]
    assert sent[0] == pytest.approx(sent[1], rel=0.01) and sum(sent[0].values()) > 0


def test_what_failed_with_few_layers_failed():
    part = {"collectives": [], "moved": 3, "unknown_loops": 0}
    good = {"peak": 10, "parts": {"": part}, "compile_seconds": 1.0, "text_bytes": 5}
    assert depth.at(10, (2, 4), (good, good | {"peak": 12, "parts": {"": part | {"moved": 4}}})) == {
        "peak": 18,
        "parts": {"": part | {"moved": 7}},
        "compile_seconds": 2.0,
        "text_bytes": 5,
        "depths": [2, 4],
    }
    assert depth.at(10, (2, 4), (good, {"failed": "why"})) == {"failed": "why"}


@pytest.mark.parametrize("text", ["166,130", "prompt:166", "prompt:166,completion:0", "prompt:1,completion:2,other:3"])
def test_lengths_that_are_none_are_refused(text):
    with pytest.raises(InputError, match="as in prompt:166,completion:130"):
        lengths.parse("--lengths", text)
    assert lengths.parse("--lengths", "completion:130,prompt:166.5") == lengths.Lengths(166.5, 130)


def test_totals_of_stages(planned):
    sft, stage = planned["programs"][0], planned["stages"][0]
    assert stage["petaflop_s_days"] == pytest.approx(10 * sft["flops"] / estimate.PETAFLOP_S_DAY)
    assert planned["total"]["tokens"] == sum(stage["tokens"] for stage in planned["stages"])
    assert stage["paper"] is None and stage["chip_hours"] is None  # another size; a CPU has no rates


def test_tables_have_a_row_for_every_program(planned):
    text = tables.render(planned | {"name": "tiny"})
    for row in planned["programs"]:
        assert text.count(f"| {row['stage']}: {row['program']} |") >= 2
    assert "nan" not in text and "None" not in text
    json.dumps(planned, allow_nan=False)


def test_the_overview_names_the_program_with_the_least_room(planned):
    least = min(planned["programs"], key=lambda row: row["spare"])
    small = {**planned, "programs": [*planned["programs"], {**least, "program": "big", "fits": False, "spare": -GIB}]}
    refused = {**planned, "programs": [{"stage": "sft", "program": "all", "refused": "no"}]}
    text = tables.overview([plan | {"name": "some/tiny.py"} for plan in (planned, small, refused)])
    fits, not_, nothing = text.splitlines()[2:]
    assert f"| tiny.py | cpu:8 | 8 | 1 x 4 x 2 | yes | {least['spare'] / GIB:.2f} | {least['stage']}: " in fits
    assert "| no | -1.00 | " in not_ and ": big |" in not_ and "| no | – | – |" in nothing


def test_what_was_compiled_is_not_compiled_again(planned, monkeypatch):
    config = tensor_config()
    known = {
        row["key"]: {"peak": 1, "needed": None, "parts": {"": {"collectives": [], "moved": 0, "unknown_loops": 0}}}
        for row in planned["programs"]
    }
    monkeypatch.setattr(planner, "_compile", lambda *_: pytest.fail("compiles again"))
    again = planner.plan(config, topology.parse("cpu:8"), DATA, stages="sft", known=known)
    assert again["programs"][0]["peak"] == 1
    with pytest.raises(pytest.fail.Exception, match="compiles again"):
        config.sft.learning_rate, config.sft.dropout_rate = 1.0, 0.3  # the program, not only its arguments
        planner.plan(config, topology.parse("cpu:8"), DATA, stages="sft", known=known)


def test_a_batch_that_does_not_divide_is_refused_in_its_row():
    config = plan_config.get_config()
    config.sft.batch_size = 4
    found = planner.plan(config, topology.parse("cpu:8"), DATA, stages="sft")
    assert "4 rows in 1 parts do not divide over data x fsdp = 8" in found["programs"][0]["refused"]
    assert not planner.fits(found) and found["total"]["tokens"] is None
    assert "4 rows" in tables.render(found | {"name": "tiny"})


def test_stages_are_chosen_by_name():
    config = plan_config.get_config()
    assert planner.chosen_stages(config) == ["sft", "reward_model", "ppo_ptx"]
    assert planner.chosen_stages(config, "all") == ["sft", "reward_model", "ppo", "ppo_ptx"]
    with pytest.raises(InputError, match="'evaluate'"):
        planner.chosen_stages(config, "evaluate")


# ---------------------------------------------------------------------------- what does not fit, and search


def test_an_out_of_memory_error_says_how_much_was_needed():
    new = "RESOURCE_EXHAUSTED: [E1000] the total memory required for HLO temporaries (36.11G) exceeds available HBM (15.75G)"
    old = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 36.11G of 15.75G hbm."
    assert planner._needed(new) == planner._needed(old) == round(36.11 * GIB)
    assert planner._needed("RESOURCE_EXHAUSTED: no numbers") is None


def test_search_drops_what_cannot_fit_and_starts_with_the_fastest():
    config = plan_config.get_config()
    config.model.update(num_layers=24, embed_dim=2048, num_heads=16, max_length=2048, dtype="bfloat16")
    config.prompt_length = config.completion_length = 1024
    config.ppo_ptx.minibatch_size = config.sft.batch_size = config.reward_model.batch_size = 64
    place = topology.parse("v5e:4x4")
    shape = planner.model_shape(config, dataclasses.replace(DATA, vocab_size=50_257), place)
    found = search.candidates(config, shape, place, ["sft", "ppo_ptx"])
    assert all(c.data * c.fsdp * c.tensor == 16 and c.memory <= place.chip.memory for c in found)
    assert [c.seconds for c in found] == sorted(c.seconds for c in found)
    meshes = [(c.data, c.fsdp, c.tensor) for c in found]
    assert len(meshes) == len(set(meshes)) > 1
    applied = found[0].apply(config)
    assert tuple(applied.mesh.values()) == meshes[0] and config.mesh.fsdp == -1  # the config itself is as it was
    config.sft.batch_size, shape = 7, dataclasses.replace(shape, num_heads=2)
    with pytest.raises(InputError, match="no mesh of v5e:4x4"):
        search.candidates(config, shape, place, ["sft"])


def test_settings_are_fitted_to_the_memory_of_a_chip():
    config = tensor_config()
    large = search.fit(config, on_this_machine(memory=GIB), DATA, ["sft", "ppo_ptx"], {}, 0.8)
    assert large["sft.microbatches"] == large["ppo_ptx.microbatches"] == 1
    need = max(need_of(config, large, stage) for stage in ("sft", "ppo_ptx"))
    small = search.fit(config, on_this_machine(memory=0.7 * need), DATA, ["sft", "ppo_ptx"], {}, 1.0)
    assert small.keys() - {"slots"} == large.keys() and small != large
    assert max(need_of(config, small, stage) for stage in ("sft", "ppo_ptx")) <= 0.7 * need
    least = search.fit(config, on_this_machine(memory=1000), DATA, ["sft"], {}, 1.0)  # nothing fits
    assert need_of(config, least, "sft") < need_of(config, large, "sft")
    config.model.update(remat="dots", scan_layers=True)  # what the config says is not chosen
    config.slots = config.sft.microbatches = 2
    assert search.fit(config, on_this_machine(memory=1000), DATA, ["sft"], {}, 1.0) == {}


def test_a_program_that_does_not_fit_is_chosen_anew_by_what_the_compiler_said_of_it():
    config, place, stages = tensor_config(), on_this_machine(memory=GIB), ["sft", "ppo_ptx"]
    whole = search.fit(config, place, DATA, stages, {})
    assert search.fit(config, place, DATA, stages, {("ppo_ptx", "update"): 1.0}) == whole
    found = search.fit(config, place, DATA, stages, {("ppo_ptx", "update"): 1e4})
    assert found["sft.microbatches"] == 1 and found["ppo_ptx.microbatches"] > 1
    rows = [
        row_of("sft", "train step", True, temporaries=8),
        row_of("ppo", "sample", False, temporaries=5, cache=20),
        row_of("ppo", "update", False, temporaries=10),
        row_of("ppo", "score", False, total=None),  # the compiler gave no number
        {"stage": "dpo", "program": "all", "refused": "no rankings"},
    ]
    found = search.corrected({"programs": rows}, {("ppo", "update"): 2.0})
    expected = {("sft", "train step"): 0.8, ("ppo", "sample"): 2.5, ("ppo", "update"): 2.2, ("ppo", "score"): 1.1}
    assert found == pytest.approx(expected)
    rows[0] |= {"temporaries": 12}  # what fits may take more than the formula says
    assert search.corrected({"programs": rows[:1]}, {}) == {("sft", "train step"): 1.0}


@pytest.mark.parametrize(
    ("name", "slices", "mesh", "bandwidth"),
    [
        ("h100:8", 1, (1, 8, 1), 450e9),
        ("h100:2x8", 1, (1, 16, 1), 450e9),  # a node receives half of each weight over eight network cards: 800 GB/s
        ("h100:2x8", 1, (1, 2, 8), 50e9 * 2),  # each chip receives the other half of its part alone
        ("h100:64x8", 1, (1, 64, 8), 50e9 * 64 / 63),
        ("h100:64x8", 1, (64, 8, 1), 450e9),  # the data axis gathers nothing
        ("v5e:8x8", 2, (2, 32, 2), 200e9),
        ("v5e:8x8", 2, (1, 64, 2), 3.125e9 * 32 * 2),
        ("cpu:8", 1, (1, 8, 1), None),
    ],
)
def test_weights_come_as_fast_as_the_slower_of_links_and_network(name, slices, mesh, bandwidth):
    place = topology.parse(name, slices)
    sent = search._sent(place, dict(zip(("data", "fsdp", "tensor"), mesh)))
    assert sent == pytest.approx(place.chip.flops / bandwidth if bandwidth else 0.0)


def row_of(stage, program, fits, total=99, temporaries=0, cache=0, forecast=10):
    """A row of a plan, whose formula says 10 bytes."""
    amounts = {"total": total, "temporaries": temporaries, "cache": cache, "forecast": forecast}
    return {"stage": stage, "program": program, "fits": fits, **amounts}


@pytest.mark.parametrize("ratio, best", [(1.0, 8), (0.5, 16), (0.28, 32), (1.2, 8), (1.3, 4), (3.0, 2), (1000.0, None)])
def test_a_plan_takes_what_the_compiler_says_that_it_may(ratio, best):
    """Each row takes 10 bytes by the formula, of 100; the more rows at once, the faster."""
    planned = []

    def fit(corrections):
        rows = [n for n in (32, 16, 8, 4, 2, 1) if 10 * n * corrections.get(("ppo", "sample"), 1.0) <= 0.9 * 100]
        return {"slots": max(rows, default=1)}

    def plan(settings):
        planned.append(settings["slots"])
        formula = 10 * settings["slots"]
        fits = ratio * formula <= 100
        row = row_of("ppo", "sample", fits, temporaries=ratio * formula, forecast=formula)
        return {"fits": fits, "programs": [row], "total": {"hours": 1 / settings["slots"]}, "slots": settings["slots"]}

    found = search.fastest(fit, plan)
    assert found["fits"] == (best is not None) and found["slots"] == (best or 1)
    assert len(planned) == len(set(planned)) <= 5
    assert search.fastest(fit, plan, first=True)["slots"] == (min(best, 8) if best else 1)


def test_settings_of_a_stages_own_model_are_applied():
    config = tensor_config()
    config.reward_model.model = ConfigDict({"num_layers": 1})
    config.lock()
    chosen = search.fit(config, on_this_machine(), DATA, ["reward_model"], {}, 0.8)
    own = search.applied(config, chosen | {"reward_model.model.remat": "dots"}).reward_model.model
    assert "reward_model.model.remat" in chosen and own.to_dict() == {"num_layers": 1, "remat": "dots"}
    assert config.reward_model.model.to_dict() == {"num_layers": 1}


def need_of(config, settings, stage):
    """The bytes of a stage's largest program with these settings."""
    mesh = sharding.make_mesh(1, 4, 2)
    run = run_lib.without_data(search.applied(config, settings), DATA, mesh)
    return forecast.of(planner.programs_of(run, stage, DATA), mesh, {}).total


_CONFIG = f"{PROJECT}/tests/support/plan_config.py:tiny"


def command(*flags, **options):
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "XLA_FLAGS": ""}
    return subprocess.run(
        [sys.executable, "-m", "rlhf_jax.plan", "--config", _CONFIG, *flags],
        env=environment,
        capture_output=True,
        text=True,
        cwd=PROJECT,
        **options,
    )


def test_the_command_end_to_end(tmp_path):
    flags = "--topology", "cpu:2", "--stages=sft", "--out", str(tmp_path)
    first = command(*flags)
    assert first.returncode == 0, first.stderr
    assert "sft: train step | " in first.stdout and first.stderr.count("compiling") == 1
    again = command(*flags, "--json")
    assert again.returncode == 0 and "compiling" not in again.stderr
    assert json.loads(again.stdout)["programs"][0]["fits"]
    said = f"python -m rlhf_jax.plan --config {_CONFIG} --stages=sft --topology=cpu:2"
    assert said in (tmp_path / "plan.md").read_text().splitlines()
    assert len(list(tmp_path.glob("*.json"))) == len(list((tmp_path / "compiled").glob("*.json"))) == 1


def test_bad_input_is_one_sentence():
    found = command("--topology=v5e:3x3")
    assert found.returncode == 2 and found.stderr.startswith("rlhf_jax.plan: topology 'v5e:3x3' does not exist")
    assert found.stderr.count("\n") == 1


def test_a_program_or_folder_that_there_is_not_is_one_sentence(tmp_path):
    found = command("--topology", "cpu:1", "--stages=sft", "--programs=trian")
    assert found.returncode == 2
    assert found.stderr.endswith("--programs names 'trian'; the programs of these stages are train step\n")
    (tmp_path / "file").write_text("")
    found = command("--topology=cpu:1", "--stages=sft", f"--out={tmp_path}/file")
    assert (found.returncode, found.stderr.count("\n")) == (2, 1) and "cannot keep plans in --out=" in found.stderr


# ---------------------------------------------------------------------------- the process itself

_REALLY_USED = """
import sys
sys.path.insert(0, {project!r})
import jax, numpy as np
from rlhf_jax import abstract, model, sharding
from rlhf_jax.stages import pretrain, supervised
from rlhf_jax import run as run_lib
from rlhf_jax.plan import planner, topology
import plan_config

config, data = plan_config.get_config("large"), abstract.Data(64, 16, 4, 8192)
config.sft.batch_size = 32
run = run_lib.without_data(config, data, sharding.make_mesh(devices=jax.devices()))
(program,) = planner.programs_of(run, "sft", data)
with jax.set_mesh(run.mesh):
    compiled = program.lower().compile()

def status(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))

before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the high-water mark starts anew
make, step = supervised.build(run, "sft", pretrain.loss_of(run, "sft"), program.runs)
with jax.set_mesh(run.mesh):
    leaves, tree = jax.tree.flatten(make.eval_shape(model.param_shapes(run.model)))
    state = jax.tree.unflatten(tree, [np.ones(x.shape, x.dtype) for x in leaves])
    state = jax.device_put(state)
    batch = abstract.batch(run, 32, 256)
    batch = jax.tree.map(lambda x: jax.device_put(np.ones(x.shape, x.dtype)), batch)
    state, metrics = compiled(state, batch, jax.numpy.float32(0), jax.random.key(0))
    jax.block_until_ready(state)
print(planner.peak_memory(compiled, topology.parse("cpu:1")), status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux's /proc")
def test_peak_memory_is_what_the_process_really_uses():
    found = subprocess.run(
        [sys.executable, "-c", _REALLY_USED.format(project=str(PROJECT))],
        env=os.environ | {"PYTHONPATH": str(PROJECT), "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    planned, used = map(int, found.stdout.split())
    assert used == pytest.approx(planned, rel=0.15), f"planned {planned / 2**20:.0f} MiB, used {used / 2**20:.0f} MiB"


# ---------------------------------------------------------------------------- the real compilers

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: [plan]")
needs_cuda = pytest.mark.skipif(
    importlib.util.find_spec("jax_plugins.xla_cuda13") is None if importlib.util.find_spec("jax_plugins") else True,
    reason="the CUDA compiler is not installed: [plan_gpu]",
)


@needs_libtpu
def test_the_tpu_compiler_plans_a_train_step():
    found = command("--topology=v5e:2x2", "--stages=sft", "--json", "--config.mesh.tensor=2", "--price=1.2")
    assert found.returncode == 0, found.stderr
    (planned,) = map(json.loads, found.stdout.splitlines())
    (row,) = planned["programs"]
    assert row["fits"] and 0 < row["mfu"] < 1 and row["moved"] > 0 and not row["unknown_loops"]
    axes = {collective["axes"] for collective in row["collectives"]}
    assert {"fsdp", "tensor"} <= axes
    assert planned["total"]["cost"] == pytest.approx(1.2 * planned["total"]["chip_hours"])


@needs_libtpu
@pytest.mark.parametrize(
    "given, travels", [("", "all-gather"), ("--xla_jf_spmd_threshold_for_windowed_einsum_mib=0", "collective-permute")]
)
def test_a_tpu_gathers_split_weights_before_it_multiplies_with_them(given, travels):
    code = [sys.executable, "-m", "tests.support.split_product"]
    found = subprocess.run(
        code, cwd=PROJECT, env=os.environ | {"LIBTPU_INIT_ARGS": given}, capture_output=True, text=True, timeout=300
    )
    assert found.stdout.split() == [travels], found.stderr


def test_options_of_libtpu_that_the_user_has_set_stay(monkeypatch):
    mine = "--xla_jf_spmd_threshold_for_windowed_einsum_mib=7 --xla_other=true"
    monkeypatch.setenv("LIBTPU_INIT_ARGS", mine)
    libtpu.set_options()
    assert libtpu.options() == mine
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_other=true")
    libtpu.set_options()
    libtpu.set_options()
    assert libtpu.options() == "--xla_other=true --xla_jf_spmd_threshold_for_windowed_einsum_mib=1000000"


@pytest.mark.slow
@needs_libtpu
def test_a_program_that_is_too_large_for_a_tpu_says_by_how_much():
    flags = [
        f"--config.model.{name}"
        for name in ("num_layers=48", "embed_dim=2048", "num_heads=16", "max_length=2048", "remat=none")
    ]
    found = command("--topology=v5e:1x1", "--stages=sft", "--json", *flags)
    assert found.returncode == 1, found.stderr
    (row,) = json.loads(found.stdout)["programs"]
    assert not row["fits"] and row["spare"] < 0


@needs_libtpu
@pytest.mark.parametrize(
    "name, sizes", [("v6e:16x16", (1, 8, 32)), ("v5e:4x4", (1, 2, 8)), ("v5e:4x4x2slices", (2, 2, 8))]
)
def test_a_mesh_may_split_an_axis_of_the_torus(name, sizes):
    place = topology.parse(name)
    topology.prepare([place])  # another plan may be at work on this machine
    devices = place.devices()
    mesh = sharding.make_mesh(*sizes, devices=devices)
    assert tuple(mesh.shape.values()) == sizes
    assert {device.id for device in mesh.devices.flat} == {device.id for device in devices}


@pytest.mark.slow
@needs_libtpu
def test_slices_talk_over_the_network():
    found = command("--topology=v5e:2x2x2slices", "--stages=sft", "--json", "--config.mesh.data=2")
    (row,) = json.loads(found.stdout)["programs"]
    assert row["bounds"]["network"] > 0
    assert {c["axes"] for c in row["collectives"] if c["network"]} <= {"data", "data+fsdp", "data+fsdp+tensor"}


@pytest.mark.slow
@needs_cuda
def test_a_gpus_memory_is_compared_with_the_card():
    found = command("--topology=h100:2", "--stages=sft", "--json")
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["memory_limit"] == 84_942_979_072
