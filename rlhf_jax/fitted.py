"""Chooses how the programs of a run compute, where its config leaves that to the memory.

Open are `model.remat='auto'`, and None in `model.scan_layers`, in `slots`, in PPO's `gather_once`, and in the fields that
split a stage's batch into parts. A number in the config is taken as it is. A run chooses once, at its first start, prints what it has chosen,
and keeps it in program.json: the choice changes results by rounding alone, and a resumed run must not even do that. A
plan chooses in the same way for a topology.

What is chosen is the fastest that fits. Memory is that of the formulas of model/memory.py, and time is counted in FLOPs:
those that are executed, and those that a device could have executed while it adds up the gradients of parts, or sends
weights to other devices.
"""

import math
from collections.abc import Callable, Mapping

import jax

from rlhf_jax import chosen, forecast, sharding
from rlhf_jax.abstract import Program
from rlhf_jax.model.memory import REMAT
from rlhf_jax.run import Run
from rlhf_jax.runtime import hosts, machine

SENT = 1500.0  # FLOPs that an accelerator executes while it sends a byte to another: 800 to 2,300 by plan/topology.py
_SHARE = {"cpu": 0.5}  # of a device's memory that is used: formulas are rough, and a CPU's process keeps what it freed
_SHARE_ELSEWHERE = 0.75
_ADDED = 12  # bytes of a weight that are read and written to add the gradient of a part
_MOVED = {"cpu": 25.0}  # FLOPs that a device executes while it moves a byte of memory (docs/measurements.md)
_MOVED_ELSEWHERE = 250.0
_PASSES = 3  # times that a part sends the weights over links: gathered twice, and their gradients summed
_LOOP = 1.15  # time of a CPU in a loop over layers, relative to unrolled ones (docs/scaling.md)
_MORE = 1.1  # factor by which a limit grows that nothing fits
_UNBOUND = {"slots": None, "gather_once": True}  # the values of fields where no memory is known; of the others, 1
_GIB = 2**30


def fit(run: Run, programs_of: Callable[[Run], Mapping[str, list[Program]]], limit: float, sent: float = SENT) -> dict:
    """Returns the fastest values of the fields that a run's config leaves open with which its programs fit.

    Args:
      run: the run.
      programs_of: run -> the programs of each of its stages that are to fit.
      limit: bytes of each device that may be used. A program that fits with no values may use as little more as possible.
      sent: FLOPs that a device executes while it sends a byte to another.

    Returns:
      Dotted field -> value. `slots` is None where as many fit as are fastest.
    """
    open_fields = [name for name in chosen.open_fields(run.config) if name not in run.chosen]
    candidates, built, most = _candidates(run, open_fields), [], limit
    while True:
        best, least = None, math.inf
        for number, values in enumerate(candidates):
            if number == len(built):
                built.append(programs_of(run.adopting(run.chosen | values)))
            stages = built[number]
            found = _fewest_parts(stages, open_fields, run.mesh, limit, most)
            if found is None:
                continue
            loops = run.adopting(values).model.scan_layers
            time = sum(_time(p, found[stage], loops, run.mesh, sent) for stage in stages for p in stages[stage])
            if time < least:
                best, least = values | _named(found, stages, open_fields), time
            if all(value == 1 for settings in found.values() for field, value in settings.items() if field != "slots"):
                break  # what computes more again is slower in any case
        if best is not None:
            return best
        most *= _MORE


def settle(run: Run) -> None:
    """Chooses what the config leaves open and the work directory has not kept; prints it, and keeps it there.

    All processes of a job must call this. They choose by the least memory that one of them has for a device.
    """
    waiting = [stage for stage in run.config.stages if not run.done(stage)]
    others = tuple(f"{stage}." for stage in run.config.stages if stage not in waiting)
    open_fields = [name for name in chosen.open_fields(run.config) if name not in run.chosen]
    open_fields = [name for name in open_fields if not name.startswith(others)]
    if not waiting or not open_fields:
        return
    memory = machine.memory(run.mesh)
    share = _SHARE.get(run.mesh.devices.flat[0].platform, _SHARE_ELSEWHERE)
    limit = hosts.least(share * memory.whole / memory.sharers if memory.whole else 0.0)

    def programs_of(run):
        found = {stage: forecast.programs_of(run, stage) for stage in waiting}
        return {stage: programs for stage, programs in found.items() if programs}

    found: dict = {name: _UNBOUND.get(name.rpartition(".")[2], 1) for name in open_fields}
    found |= fit(run, programs_of, limit) if limit else _candidates(run, open_fields)[-1]
    whole = [name for name, value in found.items() if name.endswith("microbatches") and value == 1]
    usual = [*whole, *(name for name, value in found.items() if name.endswith("gather_once") and value)]
    said = [f"{name}={value}" for name, value in found.items() if name not in usual and value is not None]
    if whole:
        said.append("no other batch in parts" if any("microbatches" in one for one in said) else "no batch in parts")
    if said:  # slots alone may be left to the sampler
        print(f"chosen for {limit / _GIB:.2f} GiB of memory on a device: {', '.join(said)}", flush=True)
    hosts.on_first(chosen.keep, run.path, found)
    run.adopt(run.chosen | found)


def _candidates(run: Run, open_fields: list[str]) -> list[dict]:
    """Returns values of the model's open fields: the fastest first, and last those of the least memory."""
    platform, layers = run.mesh.devices.flat[0].platform, run.model.num_layers
    scans = [run.model.scan_layers]
    if "model.scan_layers" in open_fields:
        scans = [True] if chosen.loops(platform, layers) else [False, True]
    remats = REMAT if "model.remat" in open_fields else [run.model.remat]
    own = [name for name in open_fields if name.endswith(".model.remat")]
    found = []
    for scan in scans:
        for remat in remats:
            # On a CPU, an unrolled layer that is computed again takes the memory of one that is not.
            if platform == "cpu" and not scan and remat != "none" and len(remats) * len(scans) > 1:
                continue
            for other in dict.fromkeys([remat, "full"] if own else [remat]):
                values = {"model.scan_layers": scan, "model.remat": remat, **dict.fromkeys(own, other)}
                found.append({name: value for name, value in values.items() if name in open_fields})
    return found


def _fewest_parts(
    stages: Mapping[str, list[Program]], open_fields: list[str], mesh, limit: float, most: float
) -> dict | None:
    """Returns the values of each stage's open options with which its programs fit; None if a stage has none.

    A program that does not fit into `limit` with any values may take `most`.
    """
    found = {}
    for stage, programs in stages.items():
        options = {field: values for program in programs for field, values in program.options.items()}
        options = {field: values for field, values in options.items() if _name(stage, field) in open_fields}
        fits = [forecast.choose([program], mesh, [limit], options) is not None for program in programs]
        values = forecast.choose(programs, mesh, [limit if one else most for one in fits], options)
        if values is None:
            return None
        found[stage] = values
    return found


def _name(stage: str, field: str) -> str:
    """Returns the dotted name of an option of a stage; `slots` are those of the whole run."""
    return field if field == "slots" else f"{stage}.{field}"


def _named(found: Mapping[str, dict], stages: Mapping[str, list[Program]], open_fields: list[str]) -> dict:
    """Returns the values of all stages by dotted name."""
    parts = {_name(stage, field): value for stage in found for field, value in found[stage].items()}
    if "slots" in open_fields:
        most = {
            stage: p.options["slots"][0] for stage, programs in stages.items() for p in programs if "slots" in p.options
        }
        fewer = [found[stage]["slots"] for stage in most if found[stage]["slots"] < most[stage]]
        parts["slots"] = min(fewer, default=None)
    return parts


def _time(program: Program, settings: Mapping, loops: bool, mesh, sent: float) -> float:
    """Returns a rough time of all runs of a program, in FLOPs of a device: for computing, or if it is longer for sending.

    Sampling reads and sends nothing that depends on the settings of the others, and counts nothing.
    """
    if program.decoding:
        return 0.0
    cpu = mesh.devices.flat[0].platform == "cpu"
    weights = sum(
        math.prod(leaf.shape)
        for name, tree in program.passed.items()
        if name.endswith("parameters")
        for leaf in jax.tree.leaves(tree)
    )
    parts = max([settings[field] for field in program.options if field in settings], default=1)
    executed = program.work.executed * (_LOOP if cpu and loops else 1)
    added = parts * _ADDED * weights * (_MOVED["cpu"] if cpu else _MOVED_ELSEWHERE)
    over_links = 2 * weights / mesh.shape["tensor"] if sharding.ways(mesh) > 1 and not cpu else 0
    return program.runs * max((executed + added) / mesh.size, sent * _PASSES * parts * over_links)
