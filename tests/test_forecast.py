"""What is said of a stage's memory before it starts."""

import dataclasses
import functools
import os
import pathlib
import subprocess
import sys
import textwrap
import types

import compiling
import jax
import jax.numpy as jnp
import pytest
import tiny

from rlhf_jax import forecast, model, optim, sharding, train
from rlhf_jax import run as run_lib
from rlhf_jax.abstract import Data, Program
from rlhf_jax.config import default_config
from rlhf_jax.fields import registry
from rlhf_jax.model import memory
from rlhf_jax.model.work import Work
from rlhf_jax.ppo import packing
from rlhf_jax.runtime import machine
from rlhf_jax.token_loss import TokenLoss

GIB = 2**30
ROOT = pathlib.Path(__file__).parents[1]
SHAPE = dataclasses.replace(tiny.SCANNED, num_layers=6, embed_dim=128, num_heads=4, max_length=128, vocab_size=512)


@pytest.fixture(scope="module", autouse=True)
def simply_compiled():
    """Programs are read, and none is run."""
    with compiling.simply_up_to(8):
        yield


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (dict(remat="full", logits_chunk=16), 2),
        pytest.param(dict(remat="none"), 1, marks=pytest.mark.slow),
        pytest.param(dict(remat="dots"), 1, marks=pytest.mark.slow),
        pytest.param(dict(remat="none", scan_layers=False), 1, marks=pytest.mark.slow),
        pytest.param(dict(remat="none", attention="blocked"), 4, marks=pytest.mark.slow),
    ],
)
def test_a_train_step_takes_what_the_compiler_says_within_a_quarter(changes, parts):
    config, mesh = dataclasses.replace(SHAPE, **changes), tiny.mesh_of("1x1x1")
    rows, length = 16, 128
    optimizer = optim.make_optimizer(optim.OptimizerConfig())
    step = train.make_train_step(TokenLoss(config, 0.0), optimizer, lambda step: 1.0, parts)
    state = jax.eval_shape(lambda params: train.init_state(params, optimizer), model.param_shapes(config))
    batch = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, tiny.documents_of(rows, length)))
    with jax.set_mesh(mesh):
        lowered = jax.jit(step, donate_argnums=0).lower(state, batch, jnp.float32(0), jax.random.key(0))
    facts = lowered.compile().memory_analysis()
    weights = sum(leaf.size * 4 for leaf in jax.tree.leaves(state.params))
    found = memory.training(config, mesh, rows, length, length, parts, weights)
    real = facts.argument_size_in_bytes + facts.temp_size_in_bytes
    assert facts.temp_size_in_bytes > 0.5 * facts.argument_size_in_bytes  # or the arguments would hide the rest
    assert sum(found.values()) + facts.argument_size_in_bytes == pytest.approx(real, rel=0.25)


@pytest.mark.parametrize(
    ("remat", "sequence_axis"),
    [
        ("full", ""),
        pytest.param("none", "", marks=pytest.mark.slow),
        pytest.param("dots", "", marks=pytest.mark.slow),
        pytest.param("full", "tensor", marks=pytest.mark.slow),
    ],
)
def test_so_does_a_train_step_with_a_tensor_axis(remat, sequence_axis):
    """Most of what is kept lies between the layers, and that is whole on every device of the axis."""
    config = default_config()
    config.stages = ("pretrain", "sft")
    config.prompt_length = config.completion_length = 64
    config.tokenizer.vocab_size = SHAPE.vocab_size
    config.model.update(num_layers=6, embed_dim=128, num_heads=4, max_length=128, logits_chunk=16, scan_layers=True)
    config.model.update(attention="xla", dtype="float32", remat=remat, sequence_axis=sequence_axis)
    config.sft.batch_size = 64
    data = Data(demonstrations=40, rankings=16, completions=2, vocab_size=SHAPE.vocab_size)
    run = run_lib.without_data(config, data, sharding.make_mesh(1, 2, 4))
    (found,) = registry.of(config, "sft").programs(run, "sft", data)
    with jax.set_mesh(run.mesh):
        facts = found.lower().compile({"xla_backend_optimization_level": 0}).memory_analysis()
    assert sum(found.temporaries({}).values()) == pytest.approx(facts.temp_size_in_bytes, rel=0.25)


@pytest.mark.parametrize(
    ("stage", "program", "fields"),
    [
        ("ppo", "update", {}),
        pytest.param("ppo", "sample", {}, marks=pytest.mark.slow),
        pytest.param("ppo", "score", {}, marks=pytest.mark.slow),
        ("dpo", "reference", {}),
        pytest.param("dpo", "train step", {}, marks=pytest.mark.slow),
        pytest.param("ppo", "update", dict(microbatches=2), marks=pytest.mark.slow),
        pytest.param("ppo_ptx", "update", dict(ptx_ratio=1), marks=pytest.mark.slow),
    ],
)
def test_programs_of_ppo_and_dpo_take_what_the_compiler_says_within_a_quarter(stage, program, fields, monkeypatch):
    monkeypatch.setitem(packing.PLACES, "cpu", 1024)  # smaller parts take less than what the formulas leave out
    config = default_config()
    config.stages = ("pretrain", "sft", "collect", "reward_model", stage)
    config.prompt_length = config.completion_length = 64
    config.tokenizer.vocab_size = SHAPE.vocab_size
    names = "num_layers", "embed_dim", "num_heads", "max_length", "dtype", "scan_layers", "remat", "attention"
    config.model.update({name: getattr(SHAPE, name) for name in names}, logits_chunk=0)
    config[stage].update(batch_size=16, **(dict(minibatch_size=8) | fields if stage != "dpo" else fields))
    data = Data(demonstrations=40, rankings=16, completions=2, vocab_size=SHAPE.vocab_size)
    run = run_lib.without_data(config, data, tiny.mesh_of("1x1x1"))
    found = next(one for one in registry.of(config, stage).programs(run, stage, data) if one.name == program)
    with jax.set_mesh(run.mesh):  # without the passes of LLVM, which decide no buffer
        facts = found.lower().compile({"xla_backend_optimization_level": 0}).memory_analysis()
    assert sum(found.temporaries({}).values()) == pytest.approx(facts.temp_size_in_bytes, rel=0.25)


@pytest.mark.parametrize("mesh, copies", [("2x2x2", 4), pytest.param("1x1x1", 0, marks=pytest.mark.slow)])
def test_scoring_takes_the_memory_of_the_weights_that_it_gathers(mesh, copies, monkeypatch):
    """On a CPU, of all four models at once; in float32 a single device has nothing to gather.

    From version 0.11 on, jax's compiler for CPUs orders the four loops so that each gathers its weights when it begins. They
    take less there than the formula counts.
    """
    monkeypatch.setitem(packing.PLACES, "cpu", 32)
    needs, real, shape = [], [], dataclasses.replace(SHAPE, embed_dim=256, num_layers=3)
    for gather_once in (True, False):
        config = default_config()
        config.stages = ("pretrain", "sft", "reward_model", "ppo")
        config.prompt_length = config.completion_length = 16
        config.tokenizer.vocab_size = shape.vocab_size
        names = "num_layers", "embed_dim", "num_heads", "max_length", "dtype", "scan_layers", "remat", "attention"
        config.model.update({name: getattr(shape, name) for name in names})
        config.ppo.update(batch_size=16, minibatch_size=8, gather_once=gather_once)
        data = Data(demonstrations=40, rankings=16, completions=2, vocab_size=shape.vocab_size)
        run = run_lib.without_data(config, data, tiny.mesh_of(mesh))
        found = next(one for one in registry.of(config, "ppo").programs(run, "ppo", data) if one.name == "score")
        assert ("gather_once" in found.options) == (copies > 0)
        needs.append(found.temporaries({}).get("gathered weights", 0))
        assert found.temporaries({"gather_once": not gather_once}).get("gathered weights", 0) == 0 or not gather_once
        with jax.set_mesh(run.mesh):
            facts = found.lower().compile({"xla_backend_optimization_level": 0}).memory_analysis()
        real.append(facts.temp_size_in_bytes)
    whole = 4 * sum(leaf.size for leaf in jax.tree.leaves(model.param_shapes(run.model)))
    assert needs[1] == 0 and needs[0] == pytest.approx(copies * whole / run.mesh.shape["tensor"], rel=0.02)
    if jax.__version_info__ >= (0, 11):
        assert 0 <= real[0] - real[1] <= 1.25 * needs[0]
    else:
        assert real[0] - real[1] == pytest.approx(needs[0], rel=0.25)


def test_rows_are_split_over_the_mesh_and_parts_of_a_batch_follow_one_another():
    one, mesh = tiny.mesh_of("1x1x1"), tiny.mesh_of("2x2x2")
    alone = memory.training(SHAPE, one, 4, 64, 64, 1, 1000)
    split = dataclasses.replace(SHAPE, sequence_axis="tensor")
    shared = memory.training(split, mesh, 32, 64, 64, 2, 1000)  # 4 rows at once, over tensor=2
    assert shared == {"gradients": 2000, "activations": alone["activations"] / 2, "logits": alone["logits"] / 2}
    shared = memory.training(SHAPE, mesh, 32, 64, 64, 2, 1000)  # what lies between layers is whole
    assert alone["activations"] / 2 < shared["activations"] < alone["activations"]
    order = [
        sum(memory.training(dataclasses.replace(SHAPE, remat=name), one, 4, 64, 64, 1, 0).values())
        for name in memory.REMAT
    ]
    assert order == sorted(order, reverse=True) and order[0] > 2 * order[-1]


@pytest.mark.parametrize(
    ("platform", "rows", "tokens", "weights", "parts"),
    [
        ("cpu", 16, 128, 14 * 2**20, 2),  # the sum stays in the cache: 1,024 tokens suffice
        ("cpu", 16, 256, 118 * 2**20, 2),
        ("cpu", 12, 1024, 118 * 2**20, 6),
        ("cpu", 12, 4096, 118 * 2**20, 12),  # no more parts than rows
        ("cpu", 7, 512, 118 * 2**20, 1),  # 7 parts would be too small, and nothing else divides 7
        ("cpu", 1, 64, 118 * 2**20, 1),
        ("gpu", 16, 2048, 118 * 2**20, 1),
    ],
)
def test_a_gradient_on_a_cpu_has_the_most_parts_that_are_large_enough(platform, rows, tokens, weights, parts):
    assert memory.free_parts(platform, rows, tokens, weights) == parts


def sized(name="train step"):
    """A program whose memory is known: 1 GiB of state and 7 of temporaries."""
    state = {"parameters": jax.ShapeDtypeStruct((GIB // 4,), jnp.float32)}
    return [
        Program("sft", name, lambda: None, state, {}, Work(), 1, temporaries=lambda change: {"activations": 7 * GIB})
    ]


def run_of(stage="sft"):
    config = default_config()
    config.stages = (stage,)
    shape = dataclasses.replace(tiny.CONFIG, logits_chunk=512)
    run = types.SimpleNamespace(
        config=config, mesh=tiny.mesh_of("1x1x1"), model=shape, shape=lambda stage: shape, chosen={}
    )
    run.parts = functools.partial(run_lib.Run.parts, run)
    return run


def test_what_a_stage_takes_is_said_with_the_fields_that_lower_it(monkeypatch, capsys):
    monkeypatch.setattr(forecast, "programs_of", lambda run, stage: sized())
    monkeypatch.setattr(machine, "gives_back_memory", lambda: False)  # whatever allocator the tests run with
    monkeypatch.setattr(machine, "memory", lambda mesh: machine.Memory(16 * GIB, 9 * GIB, own=GIB // 2))
    forecast.tell(run_of(), "sft")
    said = (
        "sft: about 8.60 GiB of memory in its train step (activations 7.00, parameters 1.00, the process itself 0.60), "
        "of 9.00 that are free"
    )
    assert capsys.readouterr().out.splitlines() == [said]
    monkeypatch.setattr(machine, "memory", lambda mesh: machine.Memory(16 * GIB, 7 * GIB))
    forecast.tell(run_of(), "sft")
    warning = capsys.readouterr().out.splitlines()[1]
    assert warning.startswith(
        "sft: warning: that is more than there is; raise sft.microbatches=1, set model.remat='full'"
    )
    monkeypatch.setattr(forecast, "programs_of", lambda run, stage: sized("sample"))
    forecast.tell(run_of("ppo"), "ppo")
    assert "; set slots to fewer completions at once, or use more devices" in capsys.readouterr().out


def test_the_parts_that_are_said_add_up_to_what_is_said():
    parts = {name: size * GIB for size, name in enumerate("abcdef", 1)}
    assert forecast._listed(parts) == "f 6.00, e 5.00, d 4.00, c 3.00, others 3.00"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is Linux's")
@pytest.mark.parametrize("how", ["", "assert machine.gives_back_memory()", "machine.give_back_after_compiling()"])
def test_what_the_allocator_keeps_is_given_back_to_a_stage_and_after_a_compilation(how):
    """200 MiB below a small block that stays, as the temporaries of a program are."""
    program = f"""
        import jax
        import numpy as np
        from rlhf_jax.runtime import machine
        {how}
        events = []
        jax.monitoring.register_event_duration_secs_listener(lambda event, seconds, **_: events.append(event))
        jax.jit(lambda x: x + 1)(1.0)
        assert machine._COMPILED in events
        before = machine.memory(machine.jax.sharding.Mesh(machine.jax.devices(), "x")).own
        block = np.ones(200 << 17)
        small = [np.ones(64) for _ in range(1000)]
        del block
        jax.monitoring.record_event_duration_secs(machine._COMPILED, 1.0)  # as a program that takes long does
        print((machine.memory(machine.jax.sharding.Mesh(machine.jax.devices(), "x")).own - before) >> 20)
    """
    settings = next(
        line for line in (ROOT / "launch" / "python.sh").read_text().splitlines() if "GLIBC_TUNABLES=" in line
    )
    settings = settings.partition("=")[2].rstrip('}"')
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=os.environ | {"GLIBC_TUNABLES": settings, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (int(done.stdout) < 60) is bool(how)


def test_memory_is_given_back_where_it_is_short(monkeypatch, capsys):
    monkeypatch.setattr(forecast, "programs_of", lambda run, stage: sized())
    monkeypatch.setattr(machine, "gives_back_memory", lambda: True)
    for free, said in ((14, False), (12, True)):  # 8.5 GiB in use would be 13.6
        monkeypatch.setattr(machine, "memory", lambda mesh: machine.Memory(16 * GIB, free * GIB, own=GIB // 2))
        forecast.tell(run_of(), "sft")
        assert ("goes back to the system" in capsys.readouterr().out) is said


def test_the_memory_of_this_machine(tmp_path, monkeypatch):
    found = machine.memory(tiny.mesh_of("2x2x2"))
    assert found.sharers == 8 and 2**27 < found.own < found.whole and 0 < found.free < found.whole
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(machine, "_CGROUPS", (str(limit),))
    limit.write_text(f"{found.own + GIB}\n")
    assert machine.memory(tiny.mesh_of("1x1x1")).whole == found.own + GIB  # a container's
    limit.write_text("max\n")
    assert machine.memory(tiny.mesh_of("1x1x1")).whole > found.own + GIB

    device = types.SimpleNamespace(platform="gpu", memory_stats=lambda: {"bytes_limit": 10, "bytes_in_use": 4})
    assert machine.memory(types.SimpleNamespace(local_devices=[device])) == machine.Memory(10, 6)
    device.memory_stats = lambda: None
    assert machine.memory(types.SimpleNamespace(local_devices=[device])) == machine.Memory(None, None)
