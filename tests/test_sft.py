"""Which weights of supervised fine-tuning are kept."""

import json
import types

import pytest

from rlhf_jax import weights
from rlhf_jax.stages import sft


@pytest.fixture
def selection(tmp_path, monkeypatch):
    """By "loss" or "reward", of parameters that are their own reward; what was saved is in `saved`."""
    saved = []
    monkeypatch.setattr(weights, "save_params", lambda run, stage, params: saved.append(params))
    monkeypatch.setattr(sft, "ValidationReward", lambda run, reward: lambda params: params)

    def make(by):
        section = types.SimpleNamespace(select=by, reward="rm")
        run = types.SimpleNamespace(config={"sft": section}, folder=lambda stage: tmp_path)
        chosen = sft.Selection(run, "sft")
        chosen.saved = saved
        return chosen

    return make


@pytest.mark.parametrize("by, sign", [("loss", -1), ("reward", 1)])
def test_the_best_validation_is_kept_and_of_equal_ones_the_first(selection, by, sign):
    chosen = selection(by)
    for step, worth in enumerate([1.0, 3.0, 3.0, 2.0], 1):
        value = sign * worth
        metrics = chosen.offer(params=value, step=step, loss=value if by == "loss" else -99.0 * step)
        assert metrics == ({} if by == "loss" else {"valid/score": value})
    assert chosen.saved == [sign * 1.0, sign * 3.0]
    assert chosen.chosen() == {
        "step": 2,
        "by": by,
        "value": sign * 3.0,
        "before": {"step": 1, "by": by, "value": sign * 1.0, "before": None},
    }


def test_a_resumed_run_forgets_what_it_chose_further_on(selection, tmp_path):
    chosen = selection("reward")
    for step, worth in enumerate([1.0, 2.0, 5.0], 1):
        chosen.offer(worth, step, 0.0)
    chosen.offer(3.0, 3, 0.0)  # step 3 again, after a stop at step 2, with another result
    assert json.loads((tmp_path / "selection.json").read_text())["value"] == 3.0
    assert chosen.saved == [1.0, 2.0, 5.0, 3.0]
