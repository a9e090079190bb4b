"""Plans a config before any hardware is rented: its programs are compiled ahead of time for a topology.

    python -m rlhf_jax.plan --config=experiments/instructgpt.py:175b --topology=v5p:8x8x8 --config.mesh.tensor=8

A plan says whether the programs fit into memory, what they communicate, and the least time and money that they cost.
The programs are those that a run itself compiles. For the flags, see __main__.py.
"""

import dataclasses
import hashlib
import importlib.metadata
import re
import time
from collections.abc import Callable, MutableMapping

import jax

import rlhf_jax.stages  # noqa: F401  registers the kinds of stages
from rlhf_jax import run as run_lib
from rlhf_jax import sharding
from rlhf_jax.abstract import Data, Program, bytes_per_device
from rlhf_jax.fields import registry
from rlhf_jax.model import TransformerConfig, work
from rlhf_jax.plan import depth, estimate, hlo
from rlhf_jax.plan.topology import Topology
from rlhf_jax.runtime import libtpu
from rlhf_jax.runtime.errors import InputError

_OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"
# A plan reads nothing of the kernels' own code, so that a GPU's compiler need not optimize it.
_OPTIONS = {"gpu": {"xla_backend_optimization_level": 0, "xla_gpu_disable_gpuasm_optimizations": True}}
_FIELDS = ("dtype", "remat", "attention", "sequence_axis", "logits_chunk")  # config.model's, shown beside the mesh


def plan(
    config,
    topology: Topology,
    data: Data,
    *,
    stages: str = "",
    only: tuple[str, ...] = (),
    price: float = 0.0,
    known: MutableMapping[str, dict] | None = None,
    give_up: bool = False,
    whole: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> dict:
    """Compiles the programs of a config for a topology.

    Args:
      config: the config.
      topology: the topology to compile for.
      data: the amounts of data, which set how often each program runs.
      stages: names of the stages to plan, see `chosen_stages`.
      only: names of the programs to compile; empty for all.
      price: price of one chip for one hour, in any currency.
      known: key -> what the compiler said of a program. A program with a key in it is not compiled again; the others
        are added.
      give_up: whether to compile no more programs after one that does not fit; the largest is then compiled first.
      whole: whether to compile all layers of every program. Otherwise a program to which each layer adds is compiled with
        few of them (see depth.py).
      tell: called with a line about each program before it is compiled.

    Returns:
      The plan as JSON: "programs" (a row for each program), "stages" and "total", and under the other keys the
      topology, mesh, model and compiler.

    Raises:
      InputError: the stages, mesh or topology do not exist, or the compiler for the topology is not installed.
    """
    known = {} if known is None else known
    devices = topology.devices()
    mesh = sharding.make_mesh(**config.mesh, devices=devices)
    run = run_lib.without_data(config, data, mesh)
    rows, names = [], []
    for stage in chosen_stages(config, stages):
        try:
            found = programs_of(run, stage, dataclasses.replace(data, lengths=None))
        except InputError as error:
            rows.append({"stage": stage, "program": "all", "refused": str(error)})
            continue
        names += [program.name for program in found if program.name not in names]
        if give_up:
            found = sorted(found, key=lambda program: -program.work.flops)
        real = {program.name: program for program in programs_of(run, stage, data)} if data.lengths else {}
        for program in found:
            if (not only or program.name in only) and not (give_up and not fits({"programs": rows})):
                rows.append(row(run, topology, program, known, tell, real.get(program.name), whole))
    unknown = [name for name in only if name not in names]
    if unknown and not any("refused" in found for found in rows):
        raise InputError(f"--programs names '{unknown[0]}'; the programs of these stages are {', '.join(names)}")
    summary = [
        _stage_summary(config, topology, stage, rows, run, price) for stage in dict.fromkeys(r["stage"] for r in rows)
    ]
    return {
        "topology": topology.name,
        "chips": topology.chips,
        "memory_limit": topology.chip.memory,
        "mesh": dict(mesh.shape),
        "model": {name: getattr(run.model, name) for name in _FIELDS},
        "parameters": work.parameters(run.model),
        "microbatches": {stage: run.parts(stage)["microbatches"] for stage in dict.fromkeys(r["stage"] for r in rows)},
        "compiler": compiler(topology),
        "programs": rows,
        "stages": summary,
        "total": _total(summary),
        "lengths": dataclasses.asdict(data.lengths) if data.lengths else None,
    }


def fits(found: dict) -> bool:
    """Returns whether all programs of a plan were compiled and fit."""
    return all(r.get("fits", False) for r in found["programs"])


def model_shape(config, data: Data, topology: Topology) -> TransformerConfig:
    """Returns the shape of the policy on a topology."""
    return run_lib.model_shape(config, data.vocab_size, topology.chip.kind)


def row(
    run, topology: Topology, program: Program, known: dict, tell, real: Program | None = None, whole: bool = False
) -> dict:
    """Returns the row of one program: its memory, its work, and its bounds on time.

    Args:
      run: the run without data that the program belongs to.
      topology: the topology to compile for.
      program: the program.
      known: key -> what the compiler said; the program is compiled, and added here, only if its key is not in it.
      tell: called with a line before the program is compiled.
      real: the same program with real lengths; what they change of the row is under "real". None without them.
      whole: whether to compile all layers.
    """
    layers, few = run.model.num_layers, depth.DEPTHS
    if program.of_depth is None or whole or layers <= max(few):
        said = _compiled(run, topology, program, program.lower, known, tell)
    else:
        two = [_compiled(run, topology, program, lambda: program.of_depth(n), known, tell, n) for n in few]  # noqa: B023
        said = depth.at(layers, few, tuple(two))
    found = {"stage": program.stage, "program": program.name, "runs": program.runs, **said}
    if "failed" in found:
        return found
    held = {name: bytes_per_device(tree) for name, tree in (program.passed | program.resident).items()}
    resident = sum(bytes_per_device(tree) for tree in program.resident.values())
    rows = {name: list(numbers) for name, numbers in program.rows.items()}
    forecast = sum(program.temporaries({}).values())
    found |= {"held": held, "resident": resident, "forecast": forecast, "rows": rows, **_amounts(program)}
    parts = found.pop("parts")
    arguments = sum(bytes_per_device(tree) for tree in program.passed.values())
    used = found["needed"] if found["peak"] is None else found["peak"]
    if used is None:
        return found | {"fits": False, "total": None}
    cache = min(program.cache, max(used - arguments, 0))
    spare = topology.chip.memory - used - resident
    found |= {"cache": cache, "temporaries": max(used - arguments, 0) - cache, "total": used + resident, "spare": spare}
    found |= {"fits": found["peak"] is not None and spare >= 0}
    if parts:
        room = topology.chip.memory - arguments - resident
        found |= _times(topology, program, parts, room)
        if real:
            found["real"] = _amounts(real) | _times(topology, real, parts, room)
    return found


def _compiled(run, topology: Topology, program: Program, lower, known: dict, tell, layers: int | None = None) -> dict:
    """Returns what the compiler says of a program, with its key; it is compiled only if `known` has no such key.

    Args:
      run: see `row`, which also has the other arguments.
      topology: the topology.
      program: the program.
      lower: () -> the program, lowered.
      known: key -> what the compiler said.
      tell: called with a line before the program is compiled.
      layers: number of layers that are compiled; None: all.
    """
    started = time.perf_counter()
    with jax.set_mesh(run.mesh):
        lowered = lower()
    scopes = hlo.scopes_of(program.parts)
    key = _key(lowered, run, topology, scopes)
    if key not in known:
        some = f" with {layers} layers" if layers else ""
        tell(f"{topology.name}: compiling {program.stage}, {program.name}{some}")
        known[key] = _compile(lowered, run, topology, scopes, started)
    return {"key": key, **known[key]}


def _amounts(program: Program) -> dict:
    """Returns the work of a program, as JSON."""
    return {"tokens": program.work.tokens, "flops": program.work.flops, "executed": program.work.executed}


def _times(topology: Topology, program: Program, parts: dict, room: float) -> dict:
    """Returns what a program moves and sends, its bounds on time, and the floor that no program can beat.

    Args:
      topology: the topology.
      program: the program.
      parts: what the compiler said of each of its parts.
      room: bytes of a device for keys and values, if nothing else were beside the program's arguments.
    """
    facts = hlo.together({name: _facts(part) for name, part in parts.items()}, program.parts)
    decoding = program.decoding
    read = decoding.bytes_read(decoding.rows_in(room)) if decoding else 0.0
    return {
        "moved": facts.moved,
        "collectives": [vars(collective) for collective in facts.collectives],
        "unknown_loops": facts.unknown_loops,
        "floor": estimate.floor(topology.chip, topology.chips, program.work, read),
        **_bounds(topology, program.work, facts),
    }


def _facts(part: dict) -> hlo.Facts:
    """Returns the facts of a part of a program from their JSON."""
    return hlo.Facts(
        [hlo.Collective(**collective) for collective in part["collectives"]], part["moved"], part["unknown_loops"]
    )


def _compile(lowered, run, topology: Topology, scopes: list[str], started: float) -> dict:
    """Compiles a program; returns its peak memory and the facts read from its text, as JSON.

    A program that runs out of memory has no "peak", but the bytes that it would need as "needed". Any other error of
    the compiler is returned as "failed".
    """
    facts = {"peak": None, "needed": None, "parts": None}
    try:
        compiled = lowered.compile(compiler_options=_OPTIONS.get(topology.chip.kind))
    except jax.errors.JaxRuntimeError as error:
        seconds = {"compile_seconds": round(time.perf_counter() - started, 1)}
        if _OUT_OF_MEMORY not in str(error):
            return {"failed": str(error).splitlines()[0][:300]} | seconds
        return facts | {"needed": _needed(str(error))} | seconds
    facts["compile_seconds"] = round(time.perf_counter() - started, 1)
    facts["peak"] = peak_memory(compiled, topology)
    text = compiled.as_text()
    parts = hlo.read_parts(
        text, run.mesh, topology.island_of, on_chip_spaces=topology.chip.kind == "tpu", scopes=scopes
    )
    return facts | {"parts": {name: dataclasses.asdict(part) for name, part in parts.items()}, "text_bytes": len(text)}


def peak_memory(compiled, topology: Topology) -> int:
    """Returns the peak memory of a program, in bytes per device; its arguments are included."""
    memory = compiled.memory_analysis()
    if topology.chip.kind == "tpu":
        return memory.peak_memory_in_bytes
    # On other platforms that number leaves out temporaries, which are one block as large as their peak.
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + results + memory.temp_size_in_bytes


def _needed(message: str) -> int | None:
    """Returns the bytes that a program needs, arguments included, as the compiler's out-of-memory error states them."""
    found = re.search(r"(?:Used|memory required[^(]*\() ?([\d.]+)([KMGT])", message)
    return round(float(found[1]) * 2 ** {"K": 10, "M": 20, "G": 30, "T": 40}[found[2]]) if found else None


def _bounds(topology: Topology, work, facts: hlo.Facts) -> dict:
    """Returns the lower bounds in seconds, the one that binds, and the model FLOPs utilisation (MFU) that it allows."""
    bounds = estimate.bounds(topology.chip, topology.chips, work, facts)
    if not bounds:
        return {"bounds": {}, "binds": None, "seconds": None, "mfu": None}
    binds = max(bounds, key=bounds.get)
    seconds = bounds[binds]
    mfu = work.flops / (topology.chips * topology.chip.flops * seconds) if seconds else None
    return {"bounds": bounds, "binds": binds, "seconds": seconds, "mfu": mfu}


_SUMS = ("tokens", "petaflop_s_days", "hours", "chip_hours", "cost", "floor_hours", "real_hours", "real_floor_hours")


def _stage_summary(config, topology: Topology, stage: str, rows: list[dict], run, price: float) -> dict:
    """Returns the totals of a whole stage: its programs together, each as often as the stage runs it.

    All totals are None if a program of the stage was not compiled, and those of real lengths if none were asked for.
    """
    rows = [r for r in rows if r["stage"] == stage]
    if any("flops" not in r for r in rows):
        return {"stage": stage, "paper": None, **dict.fromkeys(_SUMS)}

    def hours(name, of=lambda row: row):
        seconds = [of(r).get(name) for r in rows]
        known = all(s is not None for s in seconds)
        return sum(r["runs"] * s for r, s in zip(rows, seconds)) / 3600 if known else None

    def real(row):
        return row.get("real", {})

    bound = hours("seconds")
    chip_hours = bound and bound * topology.chips
    is_175b = abs(work.parameters(run.model) / 174.6e9 - 1) < 0.01
    return {
        "stage": stage,
        "tokens": sum(r["runs"] * r["tokens"] for r in rows),
        "petaflop_s_days": sum(r["runs"] * r["flops"] for r in rows) / estimate.PETAFLOP_S_DAY,
        "paper": registry.of(config, stage).paper_compute if is_175b else None,
        "hours": bound,
        "chip_hours": chip_hours,
        "cost": chip_hours * price if chip_hours and price else None,
        "floor_hours": hours("floor"),
        "real_hours": hours("seconds", real),
        "real_floor_hours": hours("floor", real),
    }


def _total(stages: list[dict]) -> dict:
    """Returns the sums over stages; a quantity that is unknown for one stage is None."""
    return {name: sum(s[name] for s in stages) if all(s[name] is not None for s in stages) else None for name in _SUMS}


def _key(lowered, run, topology: Topology, scopes: list[str]) -> str:
    """Returns a hash that is the same for the same program with the same parts, mesh, topology, compiler and options."""
    parts = [lowered.as_text(), str(dict(run.mesh.shape)), topology.name, str(compiler(topology)), str(scopes)]
    if topology.chip.kind == "tpu":
        parts.append(libtpu.options())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def compiler(topology: Topology) -> dict[str, str]:
    """Returns the versions of the packages that compile for a topology."""
    packages = ["jax", "jaxlib"] + {"tpu": ["libtpu"], "gpu": ["jax-cuda13-pjrt", "nvidia-cuda-nvcc"]}.get(
        topology.chip.kind, []
    )
    return {name: importlib.metadata.version(name) for name in packages}


def chosen_stages(config, names: str = "") -> list[str]:
    """Returns the names of the stages to plan.

    Args:
      config: the config.
      names: names joined by commas, or "all". "" chooses one trained stage of each kind: the first, or the last where the
        registry says so (`planned_last`).

    Raises:
      InputError: a name is not a trained stage of the config.
    """
    trained = [name for name in config.stages if registry.of(config, name).programs]
    if names:
        listed = trained if names == "all" else names.split(",")
        for name in listed:
            if name not in trained:
                raise InputError(f"--stages names '{name}'; this config trains {', '.join(trained)}")
        return listed
    chosen: dict[str, str] = {}
    for name in trained:
        kind = registry.of(config, name)
        if kind.planned_last or kind.kind not in chosen:
            chosen[kind.kind] = name
    return list(chosen.values())


def programs_of(run: run_lib.Run, stage: str, data: Data) -> list[Program]:
    """Returns the programs of a stage, in the order in which the stage runs them.

    Raises:
      InputError: the stage lacks something it needs, or its sizes do not fit the mesh.
    """
    kind = registry.of(run.config, stage)
    kind.check(run, stage)
    return kind.programs(run, stage, data)
