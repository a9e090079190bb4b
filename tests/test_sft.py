"""What supervised fine-tuning is validated on, and which of its weights are kept."""

import json
import types

import pytest
import toy

from rlhf_jax import run as run_lib
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


@pytest.mark.parametrize(
    "rows, epochs, read",
    [
        (None, 1.0, range(0, 200, 4)),  # 64 rows are more than half of 96
        (None, 2.0, range(0, 200, 3)),  # 96 rows: half of 2 epochs
        (None, 16.0, range(200)),
        (50, 16.0, range(0, 200, 4)),
        (0, 1.0, range(200)),
    ],
)
def test_a_validation_reads_in_proportion_to_the_training_before_it(tmp_path, monkeypatch, rows, epochs, read):
    config = toy.get_config()
    config.stages = ("sft",)
    config.prompt_length, config.completion_length, config.model.max_length = 200, 56, 256  # none is too long
    config.data.world.update(demonstrations=96, valid_demonstrations=200)
    config.sft.update(init="", epochs=16.0, validate_epochs=epochs, validate_rows=rows, pretrain_mix=0.0)
    found = []
    monkeypatch.setattr(sft, "mean_loss", lambda run, stage, params, examples, size: found.append(examples.tokens))
    monkeypatch.setattr(sft.Selection, "offer", lambda *_: {})
    with run_lib.start(config, tmp_path / "run") as run:
        sft.training_of(run, "sft").validate(types.SimpleNamespace(params={}), 1)
        everything, _ = sft.batch_demonstrations(run.corpus.demonstrations("valid"), run.tokenizer, run.whole_length)
    assert found[0].tolist() == everything.tokens[list(read)].tolist()
