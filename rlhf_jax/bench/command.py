"""Runs the works that a config names, alone or side by side with others, and prints a line of JSON for each."""

import concurrent.futures
import json
import multiprocessing

import ml_collections

from rlhf_jax.bench import fields, host, measuring, sweeps, versus
from rlhf_jax.fields.checks import check_values
from rlhf_jax.runtime.errors import InputError


def main(config: ml_collections.ConfigDict, others: str | None = None) -> int:
    """Prints a line for each work, and the lines that compare works; returns the exit status.

    Args:
      config: the benchmark's config.
      others: "torch" or "tunix" measures each work that these can do, side by side with them; None: each work alone.

    Raises:
      InputError: a field has a value that it does not allow, no work can be compared, or a package is missing.
    """
    check_values("", config, fields.FIELDS)
    if others:
        return _compare(others, config)
    fresh = multiprocessing.get_context("spawn")
    lines = {}
    for name in config.works:
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=fresh) as process:
            lines[name] = process.submit(measuring.measure, name, config).result()
            print(json.dumps(lines[name]), flush=True)
    gains = (sweeps.gain_at_once(lines, name) for name in ("ppo_trials", "sweep_arms"))
    for line in filter(None, (host.against_steps(lines), *gains)):
        print(json.dumps(line), flush=True)
    return 0


def _compare(others: str, config: ml_collections.ConfigDict) -> int:
    """Prints the lines of a comparison; returns 1 if two sides did not compute the same."""
    versus.check(others, config)
    peers = versus.PEERS[others]
    names = [name for name in config.works if name in peers]
    if not names:
        raise InputError(f"--vs={others} compares {', '.join(peers)}; --config.works has none of them")
    agree = True
    for name in names:
        for line in versus.compare(others, name, config):
            print(json.dumps(line), flush=True)
            agree &= line["agrees"]
    return int(not agree)
