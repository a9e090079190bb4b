"""The memory that a stage will take, which is said before it starts."""

import dataclasses
from collections.abc import Mapping

import jax

from rlhf_jax.abstract import Data, Program, bytes_per_device
from rlhf_jax.fields import registry
from rlhf_jax.model import choice
from rlhf_jax.run import Run
from rlhf_jax.runtime import machine
from rlhf_jax.runtime.errors import InputError

_KEPT = 1.6  # times what is in use, a process takes that keeps what is freed (docs/scaling.md)
_COMPILED = 0.1 * 2**30  # bytes that a process keeps after it has compiled a program for a CPU (docs/scaling.md)
_SHOWN = 4  # parts of the memory that are named one by one
_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Need:
    """The memory of a stage's largest program, in bytes on each device.

    Attributes:
      program: name of the program.
      parts: name -> bytes of what lies on the device, and of what the program makes.
    """

    program: str
    parts: dict[str, float]

    @property
    def total(self) -> float:
        """All of it, in bytes."""
        return sum(self.parts.values())


def of(programs: list[Program], mesh, change: Mapping) -> Need:
    """Returns the memory of the largest of a stage's programs.

    Args:
      programs: the programs.
      mesh: their mesh.
      change: values of fields with which the programs are computed (see Program.temporaries).
    """

    def need(program):
        groups = program.passed | program.resident
        copy = jax.tree.leaves(groups.get("decode copy", ()))
        if mesh.size == 1 and copy and copy[0].dtype == "float32":  # the parameters have the layout of sampling already
            del groups["decode copy"]
        held = {name: bytes_per_device(tree) for name, tree in groups.items()}
        return Need(program.name, held | program.temporaries(change))

    return max(map(need, programs), key=lambda found: found.total)


def choose(programs: list[Program], mesh, limits: list[float], options: choice.Options) -> dict | None:
    """Returns the fastest values of options with which each program of a stage fits into its limit, in bytes of a device.

    It is None if nothing fits.
    """

    def need(program):
        return lambda change: of([program], mesh, change).total

    return choice.choose([need(program) for program in programs], options, limits)


def programs_of(run: Run, stage: str) -> list[Program]:
    """Returns the programs of a stage with the amounts of the run's data; [] if it has none, or lacks what they need."""
    kind = registry.of(run.config, stage)
    try:
        return kind.programs(run, stage, data_of(run)) if kind.programs else []
    except InputError:  # the stage itself says it, when it starts
        return []


def data_of(run: Run) -> Data:
    """Returns the amounts of a run's data."""
    demonstrations = len(run.corpus.demonstrations("train")) if run.corpus.has("demonstrations") else 0
    counts = [
        section.max_completions for name in run.config.stages if "max_completions" in (section := run.config[name])
    ]
    rankings = []
    if not counts and run.corpus.has("rankings"):
        rankings = run.corpus.rankings("train")
        counts = [len(row.completions) for row in rankings]
    tokenizer = run.tokenizer
    return Data(
        max(1, demonstrations),
        max(1, len(rankings)),
        max(counts, default=2),
        tokenizer.vocab_size,
        tokenizer.end_ids,
        tokenizer.pad_id,
    )


def tell(run: Run, stage: str) -> None:
    """Prints what a stage will take of memory, and a warning with the fields that lower it if there is not so much."""
    programs = programs_of(run, stage)
    if not programs:
        return
    need, memory = of(programs, run.mesh, {}), machine.memory(run.mesh)
    parts = {name: size * memory.sharers for name, size in need.parts.items()}
    if memory.own:
        parts["the process itself"] = memory.own + _COMPILED * len(programs)
    total = sum(parts.values())
    free = "" if memory.free is None else f", of {memory.free / _GIB:.2f} that are free"
    where = " on each device" if run.mesh.size > memory.sharers else ""
    print(
        f"{stage}: about {total / _GIB:.2f} GiB of memory{where} in its {need.program} ({_listed(parts)}){free}",
        flush=True,
    )
    if memory.own and memory.free is not None and _KEPT * total - memory.own > memory.free:
        if machine.gives_back_memory():
            print(
                f"{stage}: freed memory goes back to the system at once, which costs up to a tenth of the time",
                flush=True,
            )
    if memory.free is not None and total - memory.own > memory.free:
        print(f"{stage}: warning: that is more than there is; {_advice(run, stage, need)}", flush=True)


def _listed(parts: Mapping[str, float]) -> str:
    """Returns the largest parts by name and the sum of the others, in GiB."""
    ordered = sorted(parts.items(), key=lambda part: -part[1])
    shown, others = ordered[:_SHOWN], ordered[_SHOWN:]
    shown += [("others", sum(size for _, size in others))] if others else []
    return ", ".join(f"{name} {size / _GIB:.2f}" for name, size in shown)


def _advice(run: Run, stage: str, need: Need) -> str:
    """Returns the fields that lower the memory of a stage's largest program."""
    model, rows = run.shape(stage), registry.of(run.config, stage).parts(run.config[stage])
    sampling = need.program == "sample"
    if sampling:
        ways = ["set slots to fewer completions at once"]
    else:
        ways = [f"raise {stage}.{field}={parts}" for field, parts in run.parts(stage).items() if parts < rows[field]]
    if not sampling and not (model.remat == "full" and model.scan_layers):
        ways.append("set model.remat='full' and model.scan_layers=True")
    if not sampling and need.parts.get("logits", 0) > need.total / 10:
        ways.append(f"lower model.logits_chunk={model.logits_chunk} (0 means all places)")
    return ", ".join([*ways, "or use more devices, shorter texts or a smaller model"])
