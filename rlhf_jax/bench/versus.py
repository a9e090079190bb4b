"""The works of the benchmark, side by side with the same work by others: --vs=torch or --vs=tunix.

Each side has its own process, which is kept alive and told one repetition at a time, so that a busy moment of the machine
hits all of them. They have the same weights and tokens. What they computed is compared, too: the losses of all steps, the
lengths of completions, and the most likely tokens.

    torch, torch_compile    transformers' GPT-2 with sdpa attention and torch's fused AdamW
    trl                     the trainers of TRL, where it is installed
    transformers            generate, with its cache of keys and values
    tunix                   Tunix's sampler, on a model of Llama's form
"""

import concurrent.futures
import importlib.util
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator

import ml_collections
import numpy as np

from rlhf_jax.bench import ours, works
from rlhf_jax.bench.sides import Side
from rlhf_jax.bench.workload import rounded
from rlhf_jax.runtime.errors import InputError

PEERS = {
    "torch": {
        "sft_step": ("torch", "torch_compile", "trl"),
        "reward_step": ("torch", "torch_compile", "trl"),
        "sample": ("transformers",),
    },
    "tunix": {"sample": ("tunix",)},
}
_NEEDED = {"torch": {"torch": "rlhf_jax[bench]", "transformers": "rlhf_jax[bench]"}, "tunix": {"tunix": "google-tunix"}}
_MODULES = {"trl": "trl_side", "tunix": "tunix_side"}
_GREEDY = 8  # tokens
# Relative differences of losses after a few steps: sums in another order, and bfloat16 at other places. TRL decays no
# biases and norms, and rounds the losses that it logs to four digits.
_TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2}


def check(others: str, config: ml_collections.ConfigDict) -> None:
    """Raises InputError if what every comparison with `others` needs is missing."""
    for name, package in _NEEDED[others].items():
        if importlib.util.find_spec(name) is None:
            raise InputError(f"--vs={others} needs {name}: pip install '{package}'")
    if others == "tunix" and config.model.get("norm") != "rmsnorm":
        raise InputError(
            f"--vs=tunix compares models of Llama's form: --config=experiments/bench.py:{config.size},llama"
        )


def compare(others: str, name: str, config: ml_collections.ConfigDict) -> Iterator[dict]:
    """Yields a line for each peer of a work; says on stderr which peers are left out, and why.

    A line has "ours" and "theirs", with the median "seconds", all "repeats", the "first_seconds" with compilation and the
    peak memory in MiB; the "ratio" of their median to ours; and "agrees", whether both computed the same, with what was
    compared.
    """
    peers = [peer for peer in PEERS[others][name] if _usable(peer)]
    with tempfile.TemporaryDirectory(prefix="rlhf_jax_bench_") as folder:
        fresh = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=fresh) as process:
            process.submit(ours.prepare, name, config, folder).result()
        running: dict[str, Side] = {}
        try:
            for side in ("ours", *peers):
                running[side] = _start(side, name, config, folder)
            first = {side: sum(process.run().values()) for side, process in running.items()}
            repeats: dict[str, list[float]] = {side: [] for side in running}
            for _ in range(config.repeats):
                for side, process in running.items():
                    repeats[side].append(sum(process.run().values()))
            ends = {side: process.end() for side, process in running.items()}
        finally:
            for process in running.values():
                process.kill()
    numbers = {
        side: {
            "seconds": rounded(statistics.median(seconds)),
            "repeats": [rounded(one) for one in seconds],
            "first_seconds": round(first[side], 2),
            "peak_mib": round(ends[side]["peak"] / 2**20),
        }
        for side, seconds in repeats.items()
    }
    tolerance = _TOLERANCE[config.model.get("dtype", "bfloat16")]
    for peer in peers:
        yield {
            "work": name,
            "size": config.size,
            "vs": peer,
            "ours": numbers["ours"],
            "theirs": numbers[peer],
            "ratio": rounded(numbers[peer]["seconds"] / numbers["ours"]["seconds"]),
            **agreement(ends["ours"]["found"], ends[peer]["found"], tolerance),
        }


def agreement(found: dict[str, list], theirs: dict[str, list], tolerance: float) -> dict:
    """Returns whether two sides computed the same, "agrees", and what was "compared": name -> both lists.

    Losses may differ by `tolerance`, relative to the larger; lengths and tokens must be equal.
    """
    compared = {name: [found[name], theirs[name]] for name in found if name in theirs}

    def same(name, a, b):
        if len(a) != len(b):
            return False
        return bool(np.allclose(a, b, rtol=tolerance, atol=0)) if name == "loss" else a == b

    agrees = bool(compared) and all(same(name, *pair) for name, pair in compared.items())
    shown = {name: [one[:_GREEDY] for one in pair] for name, pair in compared.items()}
    return {"agrees": agrees, "compared": shown}


def _usable(peer: str) -> bool:
    """Whether a peer can run here; otherwise a sentence says why not."""
    missing = ""
    if peer == "torch_compile" and not shutil.which(os.environ.get("CXX", "g++")) and not shutil.which("clang++"):
        missing = "torch.compile needs a C++ compiler (g++)"
    if peer == "trl" and any(importlib.util.find_spec(name) is None for name in ("trl", "datasets", "accelerate")):
        missing = "TRL is not installed (pip install trl)"
    if missing:
        print(f"rlhf_jax.bench: {peer} is left out: {missing}", file=sys.stderr, flush=True)
    return not missing


def _start(side: str, name: str, config: ml_collections.ConfigDict, folder: str) -> Side:
    given = {"name": name, "config": config.to_dict(), "greedy": _GREEDY}
    if side == "ours":
        # The sides share an accelerator.
        return Side("rlhf_jax.bench.ours", given, {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"})
    given |= {
        "folder": folder,
        "compile": side == "torch_compile",
        "dtype": config.model.get("dtype", "bfloat16"),
        "learning_rate": works.LEARNING_RATE,
        "weight_decay": works.WEIGHT_DECAY,
    }
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "GLIBC_TUNABLES": ""}
    return Side(f"rlhf_jax.bench.{_MODULES.get(side, 'torch_side')}", given, offline)
