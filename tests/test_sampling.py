"""How many completions the sampler of a run has at once."""

import types

import numpy as np
import pytest

from rlhf_jax import sampling


@pytest.mark.parametrize(
    "platform, rows, given, fitting, slots",
    [
        ("cpu", 127, None, None, 127),
        ("cpu", 128, None, None, 32),
        ("cpu", 511, None, None, 32),
        ("cpu", 512, None, None, 128),
        ("cpu", 512, None, 16, 16),  # as many as memory holds
        ("tpu", 512, None, None, 512),
        ("tpu", 512, None, 64, 64),
        ("cpu", 512, 24, 16, 24),  # a number in the config wins
        ("cpu", 512, 0, 16, 512),
    ],
)
def test_slots_by_platform_rows_and_memory(platform, rows, given, fitting, slots):
    devices = np.array([types.SimpleNamespace(platform=platform)])
    mesh = types.SimpleNamespace(devices=devices)
    run = types.SimpleNamespace(config={"slots": given}, chosen={"slots": fitting} if fitting else {}, mesh=mesh)
    assert sampling.slots_of(run, rows) == slots
