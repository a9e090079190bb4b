"""What supervised fine-tuning is validated on, and which of its weights are kept."""

import json
import types

import pytest
import toy

from rlhf_jax import run as run_lib
from rlhf_jax import weights
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.selection import Selection
from rlhf_jax.stages import sft


@pytest.fixture
def selection(tmp_path, monkeypatch):
    """By the highest or the lowest number; the parameters that were saved are in `saved`."""
    saved = []
    monkeypatch.setattr(weights, "save_params", lambda run, stage, params: saved.append(params))

    def make(highest):
        run = types.SimpleNamespace(folder=lambda stage: tmp_path)
        chosen = Selection(run, "sft", "worth", highest)
        chosen.saved = saved
        return chosen

    return make


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_best_validation_is_kept_and_of_equal_ones_the_first(selection, sign):
    chosen = selection(sign > 0)
    for step, worth in enumerate([1.0, 3.0, 3.0, 2.0], 1):
        chosen.offer(f"weights {step}", step, sign * worth)
    assert chosen.saved == ["weights 1", "weights 2"]
    assert chosen.chosen() == {
        "step": 2,
        "by": "worth",
        "value": sign * 3.0,
        "before": {"step": 1, "by": "worth", "value": sign * 1.0, "before": None},
    }


@pytest.mark.parametrize(
    "again, value, kept", [((3, 3.0), 3.0, [1.0, 2.0, 5.0, 3.0]), ((2, 1.5), 1.5, [1.0, 2.0, 5.0, 1.5])]
)
def test_a_resumed_run_forgets_what_it_chose_further_on(selection, tmp_path, again, value, kept):
    chosen = selection(True)
    for step, worth in enumerate([1.0, 2.0, 5.0], 1):
        chosen.offer(worth, step, worth)
    chosen.offer(again[1], *again)  # a step again, after a stop before it, with another result
    assert json.loads((tmp_path / "selection.json").read_text())["value"] == value
    assert chosen.saved == kept


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
    monkeypatch.setattr(Selection, "offer", lambda *_: None)
    with run_lib.start(config, tmp_path / "run") as run:
        sft.training_of(run, "sft").validate(types.SimpleNamespace(params={}), 1)
        everything, _ = sft.batch_demonstrations(run.corpus.demonstrations("valid"), run.tokenizer, run.whole_length)
    assert found[0].tolist() == everything.tokens[list(read)].tolist()


def test_unprompted_completions_are_trained_on_and_prompted_ones_validated(tmp_path, monkeypatch):
    config = toy.get_config()
    config.stages = ("sft",)
    config.data.world.update(demonstrations=16, valid_demonstrations=16)
    config.sft.update(init="", loss_on="unprompted", packed=False, pretrain_mix=0.0, validate_rows=0)
    found = []
    monkeypatch.setattr(sft, "mean_loss", lambda run, stage, params, examples, size: found.append(examples))
    monkeypatch.setattr(Selection, "offer", lambda *_: None)
    with run_lib.start(config, tmp_path / "run") as run:
        training = sft.training_of(run, "sft")
        training.validate(types.SimpleNamespace(params={}), 1)
        batch, tokenizer = training.loader.batch(0), run.tokenizer
        completions = {row.completion.strip() for row in run.corpus.demonstrations("train")}
        for tokens, mask in zip(batch.tokens, batch.loss_mask):
            targets = int(mask.sum())  # all but the first token, which nothing predicts
            assert mask[1 : targets + 1].all() and tokens[targets] == tokenizer.eos_id
            assert tokenizer.decode(tokens[:targets].tolist()).strip() in completions
        prompted, _ = sft.batch_demonstrations(run.corpus.demonstrations("valid"), tokenizer, run.whole_length)
    assert found[0].tokens.tolist() == prompted.tokens.tolist()
    assert (found[0].loss_mask == prompted.loss_mask).all()


def test_a_stage_learns_as_many_demonstrations_of_few_kinds(tmp_path):
    config = toy.get_config()
    config.stages = ("sft",)
    config.data.world.update(demonstrations=16, valid_demonstrations=16)
    config.sft.update(init="", kinds=2, packed=False, pretrain_mix=0.0)
    with run_lib.start(config, tmp_path / "run") as run:
        loader, seed = sft.training_of(run, "sft").loader, run.seed_of("sft")
        wanted = run.corpus.demonstrations_of_kinds(2, seed)
        expected, _ = sft.batch_demonstrations(wanted, run.tokenizer, run.whole_length)
        steps = range(loader.steps(1.0))
        learned = {tuple(row) for step in steps for row in loader.batch(step).tokens.tolist()}
        assert len(wanted) == 16 and learned == set(map(tuple, expected.tokens.tolist()))
    config.sft.kinds = 28
    with (
        run_lib.start(config, tmp_path / "more") as run,
        pytest.raises(InputError, match="sft.kinds=28 must be at most 27"),
    ):
        sft.check(run, "sft")
