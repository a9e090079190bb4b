"""The measurement of one work: its time, its memory, and its shares of what the machine can do."""

import os
import statistics
import time

import jax
import ml_collections

from rlhf_jax.bench import host, roofs, sweeps, workload, works
from rlhf_jax.bench.workload import Workload, rounded
from rlhf_jax.runtime import machine

WORKS = works.WORKS | {
    "saving": host.saving,
    "loading": host.loading,
    "ppo_trials": sweeps.ppo_trials,
    "sweep_arms": sweeps.sweep_arms,
}


def measure(name: str, config: ml_collections.ConfigDict) -> dict:
    """Compiles and runs a work on one device; returns its line.

    Args:
      name: name of the work.
      config: the benchmark's config.

    Returns:
      JSON with, among others, the median "seconds" of a run, "tokens_per_second", the times of all "repeats", the
      "first_seconds" with compilation, the peak memory in MiB, and the "shares" of what the machine can do.
    """
    machine.give_back_after_compiling()  # as every command does
    with jax.set_mesh(workload.one_device()):
        work = WORKS[name](config)
        start = time.perf_counter()
        first_parts = work.run()
        first = time.perf_counter() - start
        runs = [work.run() for _ in range(config.repeats)]
        peak = workload.peak_bytes()
        shares = _shares(work, runs, workload.model_of(config).dtype)
    totals = [sum(run.values()) for run in runs]
    seconds = statistics.median(totals)
    parts = {part: rounded(statistics.median(run[part] for run in runs)) for part in runs[0]}
    return {
        "work": name,
        "size": config.size,
        "device": jax.devices()[0].device_kind,
        "cores": len(os.sched_getaffinity(0)),
        "jax": jax.__version__,
        "model": {key: value for key, value in config.model.items()},
        "shape": work.shape,
        "seconds": rounded(seconds),
        "tokens_per_second": round(work.tokens / seconds, 1),
        **(
            {"parts": parts, "first_parts": {name: rounded(x) for name, x in first_parts.items()}}
            if len(parts) > 1
            else {}
        ),
        **shares,
        "repeats": [rounded(total) for total in totals],
        "first_seconds": round(first, 2),
        "peak_mib": round(peak / 2**20),
        **({"planned_mib": round(work.planned / 2**20)} if work.planned else {}),
        "malloc": "tuned" if "GLIBC_TUNABLES" in os.environ else "default",
    }


def _shares(work: Workload, runs: list[dict[str, float]], dtype: str) -> dict:
    """Returns the fields that compare the parts of a work with the machine's own rates, measured in this process.

    "flops" is the share of the rate of a large matrix product that the model FLOPs of a part reach. "bytes" is the
    share of the rate of a copy at which the part must have read its weights, keys and values.
    """
    if not work.costs:
        return {}
    matrix, copy = roofs.matrix_rate(dtype), roofs.copy_rate()
    shares: dict[str, dict[str, float]] = {}
    for part, cost in work.costs.items():
        seconds = statistics.median(run[part] for run in runs)
        shares[part] = {"flops": rounded(cost.flops / seconds / matrix)}
        if cost.bytes:
            shares[part]["bytes"] = rounded(cost.bytes / seconds / copy)
    machine = {"matrix_tflops": rounded(matrix / 1e12), "copy_gb_per_second": rounded(copy / 1e9)}
    return {"machine": machine, "shares": shares}
