"""Measures the programs on this machine's accelerator, and writes what came out as a page: launch/bench_gpu.sh.

python -m rlhf_jax.bench.gpu --out=docs/bench_gpu.md
python -m rlhf_jax.bench.gpu --out=/tmp/page.md --toy       # at sizes that a CPU does in a minute, to try the script
"""

import argparse
import concurrent.futures
import importlib.metadata
import json
import multiprocessing
import os
import pathlib
import sys

import ml_collections

from rlhf_jax import command_line
from rlhf_jax.bench import measuring, sweeps
from rlhf_jax.plan.topology import CHIPS
from rlhf_jax.runtime.errors import as_command
from rlhf_jax.runtime.files import write_text

_SIZES, _SWEPT = ("124m", "1.3b"), "tiny"
_REPEATS = 5
_SAMPLED = {"sample": "full", "sample_drawn": "drawn", "sample_drawn_slots": "drawn, in slots"}
_TOY = dict(vocab_size=300, num_layers=1, embed_dim=16, num_heads=2, max_length=48)
_TOY_ROWS = dict(
    repeats=1, batch_size=4, episodes=8, prompt_length=8, completion_length=16, trials=2, minibatches=2, slots=2
)


def lines_of(sizes: tuple[str, ...], toy: bool) -> dict[tuple[str, str], dict]:
    """Measures every work of the page in a process of its own; returns its line by (size, work)."""
    lines, fresh = {}, multiprocessing.get_context("spawn")
    works = [(size, work) for size in sizes for work in ("sft_step", *_SAMPLED, "ppo_ptx_iteration")]
    for size, work in [*works, (_SWEPT, "ppo_trials")]:
        config = config_of(size, toy)
        print(f"{size}: {work}", file=sys.stderr, flush=True)
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=fresh) as process:
            lines[size, work] = process.submit(measuring.measure, work, config).result()
        print(json.dumps(lines[size, work]), flush=True)
    return lines


def config_of(size: str, toy: bool) -> ml_collections.ConfigDict:
    """Returns the benchmark's config of a size; with `toy`, of a model that a CPU computes at once."""
    config = command_line.load(f"experiments/bench.py:{size}")
    config.repeats = _REPEATS
    if toy:
        config.model = {name: value for name, value in config.model.items() if name == "dtype"} | _TOY
        config.update(_TOY_ROWS)
    return config


def page(lines: dict[tuple[str, str], dict], command: str) -> str:
    """Returns the page: what was measured, in tables.

    Args:
      lines: lines of measuring.measure by (size, work).
      command: the command that measured them.
    """
    sizes = list(dict.fromkeys(size for size, work in lines if work == "sft_step"))
    some = lines[sizes[0], "sft_step"]
    chip = next((chip for name, chip in CHIPS.items() if name.upper() in some["device"].upper()), None)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib"))

    def peak(line, rate, number):
        known = chip and getattr(chip, number)
        return f"{100 * line['machine'][rate] * (1e12 if number == 'flops' else 1e9) / known:.0f} %" if known else "–"

    machine = [
        [size, some["machine"]["matrix_tflops"], peak(some, "matrix_tflops", "flops")]
        + [some["machine"]["copy_gb_per_second"], peak(some, "copy_gb_per_second", "memory_bandwidth")]
        for size, some in ((size, lines[size, "sft_step"]) for size in sizes)
    ]

    def mfu(line):
        achieved = line["shares"]["step"]["flops"] * line["machine"]["matrix_tflops"] * 1e12
        return f"{100 * achieved / chip.flops:.1f} %" if chip and chip.flops else "–"

    def sft(size):
        line = lines[size, "sft_step"]
        rows = f"{line['shape']['sequences']} x {line['shape']['length']}"
        share = _percent(line["shares"]["step"]["flops"])
        return [size, rows, line["seconds"], line["tokens_per_second"], mfu(line), share, line["peak_mib"]]

    def planned(size):
        line = lines[size, "sft_step"]
        floor = line["shares"]["step"]["flops"] * line["seconds"]
        memory = line["planned_mib"]
        return [
            size,
            f"{floor:.4g}",
            line["seconds"],
            round(memory),
            line["peak_mib"],
            f"{line['peak_mib'] / memory:.2f}",
        ]

    def sampled(size, work):
        line, kind = lines[size, work], _SAMPLED[work]
        share = line["shares"]["sample"]
        return [
            size,
            kind,
            line["shape"]["episodes"],
            line["seconds"],
            line["tokens_per_second"],
            _percent(share["bytes"]),
        ]

    def iteration(size):
        line = lines[size, "ppo_ptx_iteration"]
        return [
            [size, part, seconds, f"{100 * seconds / line['seconds']:.0f} %", _percent(line["shares"][part]["flops"])]
            for part, seconds in line["parts"].items()
        ]

    gain = sweeps.gain_at_once({"ppo_trials": lines[_SWEPT, "ppo_trials"]}, "ppo_trials") or {}
    hour = gain["per_hour"]
    return "\n".join(
        [
            "# Measured on an accelerator",
            "",
            f"The machine has one {some['device']} in use and {some['cores']} CPU cores, with {versions}. The command was",
            f"`{command}`. Seconds are medians of {len(some['repeats'])} repetitions, after a first one that compiles.",
            "Models have the shapes of GPT-3 and random weights. Shares are of what this machine reaches in one large matrix",
            "product, and in a copy of a large array:",
            "",
            *_table(["size", "TFLOP/s", "of the data sheet", "copy, GB/s", "of the data sheet "], machine),
            "",
            "## SFT step",
            "",
            "MFU is the share of the data sheet's rate that the model FLOPs reach.",
            "",
            *_table(
                ["size", "rows x tokens", "seconds", "tokens/s", "MFU", "of the matrix product", "peak MiB"],
                map(sft, sizes),
            ),
            "",
            "## Plan against measured",
            "",
            "The floor is the time of the model FLOPs at the rate of the matrix product. The planned memory is the formula's",
            "of state, gradients, activations and logits.",
            "",
            *_table(
                ["size", "floor, s", "seconds", "planned MiB", "peak MiB", "measured / planned"], map(planned, sizes)
            ),
            "",
            "## Sampling",
            "",
            "The share is that of the copy's rate at which weights, keys and values must have been read: the weights once for",
            "each step of all rows, keys and values as far as they are filled. Drawn lengths have 130 / 1,024 of the",
            "completion length in the mean.",
            "",
            *_table(
                ["size", "lengths", "rows", "seconds", "tokens/s", "of the memory roof"],
                [sampled(size, work) for size in sizes for work in _SAMPLED],
            ),
            "",
            "## PPO-ptx iteration",
            "",
            *_table(
                ["size", "part", "seconds", "of the iteration", "of the matrix product"],
                [row for size in sizes for row in iteration(size)],
            ),
            "",
            "## Sweep",
            "",
            f"PPO iterations per hour of the size {_SWEPT}, of one arm and of {gain['trials']} arms in one program:",
            "",
            *_table(["one arm", "all at once", "gain"], [[hour["alone"], hour["at_once"], gain["gain"]]]),
            "",
        ]
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _table(names: list[str], rows) -> list[str]:
    """Returns the lines of a Markdown table."""
    return [f"| {' | '.join(map(str, row))} |" for row in (names, ["---"] * len(names), *rows)]


@as_command("rlhf_jax.bench.gpu")
def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        prog="python -m rlhf_jax.bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, help="The file of the page.")
    parser.add_argument("--toy", action="store_true", help="Measure tiny models, to try the script on any machine.")
    options = parser.parse_args(arguments)
    # Each work has a process and the device to itself. What JAX takes in advance would count as the peak.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    lines = lines_of(_SIZES[:1] if options.toy else _SIZES, options.toy)
    command = "bash launch/bench_gpu.sh" + (" --toy" if options.toy else "")
    write_text(pathlib.Path(options.out), page(lines, command))


if __name__ == "__main__":
    main()
