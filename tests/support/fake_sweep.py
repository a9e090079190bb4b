"""Directories of sweeps that never ran: the layout of a sweep with numbers of the test's own."""

import itertools
import json

from rlhf_jax.report import spec
from rlhf_jax.runtime import files

STAGES = {"sft": "sft", "reward_model": "reward_model", "ppo": "ppo", "ppo_ptx": "ppo"}
CONFIG = {
    "seed": 0,
    "stages": list(STAGES),
    **{
        stage: {
            "kind": kind,
            "ptx_coef": 2.0 * (stage == "ppo_ptx"),
            "kl_coef": 0.08,
            "learning_rate": 1e-3,
            "init": "sft",
        }
        for stage, kind in STAGES.items()
    },
}
MACHINE = {"hardware": "1 x cpu, 2 cores", "versions": {"python": "3.11.7", "jax": "0.10.2"}}


def product(**axes) -> list[dict]:
    """Overrides of every combination; field names with __ for dots."""
    names = [name.replace("__", ".") for name in axes]
    return [dict(zip(names, values)) for values in itertools.product(*axes.values())]


def write(
    path, arms, measure, declared=spec.Declared(), config=CONFIG, fate=lambda overrides: "done", history=None, steps=40
):
    """Writes a sweep's directory.

    Args:
        arms: the overrides of every arm.
        measure: (overrides, stage) -> {quantity: value}; of the reward model by path, "valid/accuracy".
        fate: overrides -> status, or (status, reason); "missing" leaves no directory.
        history: (overrides, stage, step) -> metrics of a line, or None.
    """
    named = [
        {
            "number": n,
            "name": f"{n:03d}," + ",".join(f"{field.rpartition('.')[2]}={value}" for field, value in arm.items()),
            "overrides": arm,
        }
        for n, arm in enumerate(arms)
    ]
    path.mkdir(parents=True)
    files.write_json(
        path / "sweep.json",
        {
            "experiment": "experiments/figures/fake.py",
            "argument": "",
            "about": "A sweep that never ran.\n\n    command\n",
            "commit": "abc123",
            "overrides": {"ppo.iterations": 5},
            "config": config,
            "arms": named,
            **declared.to_json(),
        },
    )
    for arm in named:
        ending = fate(arm["overrides"])
        status, reason = ending if isinstance(ending, tuple) else (ending, None)
        if status != "missing":
            write_arm(path / "arms" / arm["name"], arm["overrides"], measure, status, reason, config, history, steps)
    return path


def write_arm(path, overrides, measure, status, reason, config, history, steps):
    path.mkdir(parents=True)
    files.write_json(path / "config.json", config)
    files.write_json(path / "overrides.json", overrides)
    files.write_json(
        path / "arm.json",
        {"status": status, "reason": reason, "seconds": 60.0, "attempts": 1, "commit": "abc123", **MACHINE},
    )
    for stage in config["stages"]:
        (path / stage).mkdir()
        last = stage == config["stages"][-1]
        if history:
            rows = [{"step": step, "time": 0.0, **history(overrides, stage, step)} for step in range(1, steps + 1)]
            (path / stage / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if last and status != "done":
            break
        files.write_json(
            path / stage / "done.json", {"seconds": 30.0, "finished_at": "2026-01-02T03:04:05+00:00", **MACHINE}
        )
        numbers = measure(overrides, stage)
        if numbers:
            files.write_json(path / stage / "evaluation.json", evaluation(numbers, config[stage]["kind"]))


def evaluation(numbers, kind):
    estimates = {name: {"value": value, "low": value - 0.1, "high": value + 0.1} for name, value in numbers.items()}
    if kind != "reward_model":
        return {
            "stage": "x",
            "prompts": 3,
            "temperature": 1.0,
            "win_rate_by": "gold",
            "estimates": estimates,
            "categories": {"chat": {"count": 2, "gold": {"value": 0.5, "low": 0.4, "high": 0.6}}},
        }
    nested = {}
    for name, value in estimates.items():
        split, _, part = name.partition("/")
        nested.setdefault(split, {})[part] = value if part == "accuracy" else value["value"]
    return nested | {"demonstration_mean_before_bias": 0.1, "labelers": {"folds": {}}}
