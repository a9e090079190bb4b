"""PPO against the closed-form optimum of the bandit (invariant 15), in processes of one device."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


def table(*flags: str) -> list[list[float]]:
    """The rows that `python -m rlhf_jax.optimum` prints, as numbers."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-m", "rlhf_jax.optimum", "--config=experiments/bandit.py", *flags]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.replace("|", " ").split() for line in done.stdout.splitlines()]
    return [[float(word) for word in words] for words in lines if words and words[0][0].isdigit()]


def check(rows, expected: int):
    assert len(rows) == expected
    for row in rows:
        kl_coef, *_, gain_ratio, kl_ratio, _ = row
        assert gain_ratio >= 0.98, f"kl_coef {kl_coef}: {gain_ratio:.3f} of the gain"
        assert abs(kl_ratio - 1) <= 0.1, f"kl_coef {kl_coef}: {kl_ratio:.3f} of the optimum's KL"


def test_ppo_reaches_the_optimum():
    check(table("--config.seeds=(0,)", "--config.kl_coefs=(0.5,)"), 1)


@pytest.mark.slow
def test_ppo_reaches_the_optimum_at_every_kl_coef():
    check(table("--config.seeds=(0,)"), 5)
