"""What stands beside PPO, as stages of one run: DPO, best of n, a prefix, a reward model that learned from another."""

import json

import numpy as np
import pytest
from compare import assert_same_stage, timeless
from ml_collections import ConfigDict
from toy import get_config as toy_config

from rlhf_jax import pipeline, weights
from rlhf_jax import run as run_lib
from rlhf_jax.data.records import Prompt
from rlhf_jax.report.record import Record
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import read_json
from rlhf_jax.runtime.progress import Stopped
from rlhf_jax.stages import collect, dpo, rankings, reward_model
from rlhf_jax.stages.reward_model import Scorer

pytestmark = pytest.mark.usefixtures("one_device")


def get_config():
    """The toy's first steps; then feedback by its reward model, one that learns from it, DPO, best of n and a prefix."""
    config = toy_config()
    config.stages = ("sft", "collect", "reward_model", "feedback", "taught", "dpo", "best_of_n", "prompted")
    config.model.max_length = 160  # the toy's demonstrations are long
    config.sft.update(init="", pretrain_mix=0.0)
    config.collect.update(models=("sft@1.0", "sft@0.7"))
    config.feedback = config.collect.copy_and_resolve_references()
    config.feedback.update(rankings="collect", labeler="reward_model", reward="reward_model", held_out_group="")
    config.taught = config.reward_model.copy_and_resolve_references()
    config.taught.update(rankings="feedback", subset=":50%", epochs=1.0)
    config.dpo.update(batch_size=8, beta=0.5, epochs=2.0, learning_rate=1e-2, warmup_steps=2, checkpoint_every=2)
    config.dpo.update(rankings="collect", label_smoothing=0.1, validate_epochs=0.5)
    config.best_of_n.update(samples=5, batch_size=16, judges=("taught",))
    config.prompted.update(init="sft", shots=1, candidates=2)
    return config


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbed."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    pipeline.run_stages(get_config(), path)
    return path


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_a_reward_model_ranks_for_another_one(whole):
    run = run_lib.open_run(whole)
    ranked = rankings.load(run, "taught", "valid")
    assert {row.labeler for row in ranked} == {"reward_model"}
    assert {row.labeler for row in rankings.load(run, "reward_model", "valid")}.isdisjoint({"reward_model"})
    for split in ("train", "valid"):  # the same completions, ranked by another
        people = {(row.prompt, row.completions): row.row["source"] for row in rankings.load(run, "reward_model", split)}
        ours = rankings.load(run, "taught", split)
        assert ours and all(people[row.prompt, row.completions] == row.row["source"] for row in ours)
    scorer = Scorer(run, "reward_model")
    for row in ranked[:5]:
        scores = scorer([Prompt(row.prompt, {})] * len(row.completions), row.completions, row.finished)
        assert [sorted(set(scores), reverse=True).index(score) + 1 for score in scores] == list(row.ranks)
    facts = read_json(whole / "taught" / "evaluation.json")
    assert facts["labelers"]["reward"] == "reward_model" and "heldout" not in facts
    data = read_json(whole / "data_report.json")["stages"]
    assert (
        2 * data["taught"]["rankings"]["given"]
        == data["reward_model"]["rankings"]["given"]
        == data["dpo"]["rankings"]["given"]
    )


@pytest.mark.slow
def test_dpo_starts_at_its_reference_and_learns(whole):
    rows = timeless(whole / "dpo")
    assert rows[0]["loss"] == pytest.approx(np.log(2), abs=1e-5) and rows[0]["margin"] == pytest.approx(0, abs=1e-5)
    assert rows[-1]["margin"] > 0.05 and rows[-1]["accuracy"] > 0.6 and rows[-1]["loss"] < np.log(2)
    assert len(rows) == 6 and [row["step"] for row in rows if "valid/loss" in row] == [2, 4, 6]
    row = rows[-1]
    assert row["chosen_reward"] - row["rejected_reward"] == pytest.approx(row["margin"], abs=1e-5)


@pytest.mark.slow
def test_packed_preferences_are_the_same_preferences(whole):
    run = run_lib.open_run(whole)
    rows = rankings.load(run, "dpo", "train")

    def reference():
        return dpo.with_reference(run, "dpo", weights.start_params(run, "dpo"), dpo.prepare(run, "dpo", rows)[0])

    expected = reference()
    run.config.dpo.packed = True
    found = reference()
    assert found.tokens.shape[0] == len(rows) and found.tokens.ndim == 2
    np.testing.assert_array_equal(found.ranks, expected.ranks)
    np.testing.assert_allclose(
        np.where(found.valid, found.ref_logprobs, 0),
        np.where(expected.valid, expected.ref_logprobs, 0),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.slow
def test_every_comparator_is_evaluated_as_a_policy(whole):
    record = Record.load(whole)
    assert list(record.evaluations) == ["sft", "dpo", "best_of_n", "prompted"]
    for stage in ("dpo", "best_of_n", "prompted"):
        assert all(
            record.estimate(stage, name) for name in ("gold/total", "score", "kl", "win_rate", "completion_length")
        )
        assert record.evaluations[stage]["reference"] == "sft"
    assert record.estimate("dpo", "skills/mean") and not record.estimate("best_of_n", "skills/mean")
    assert record.estimate("dpo", "kl")["value"] != 0
    assert all(name in (whole / "report.md").read_text() for name in ("DPO", "best of n"))


@pytest.mark.slow
def test_the_group_held_out_changes_who_labels_and_nothing_else(whole, tmp_path):
    config = get_config()
    assert config.collect.held_out_group == "caution"
    config.collect.held_out_group = "warmth"
    path = again(whole, tmp_path / "run", "collect")
    with run_lib.start(config, path) as run:
        collect.run_stage(run, "collect")

    def read(path, name):
        return rows_of(path / "collect" / f"comparisons.{name}.jsonl")

    for name in ("train", "valid", "heldout"):
        ours, theirs = read(path, name), read(whole, name)
        assert [row["completions"] for row in ours] == [row["completions"] for row in theirs]
        assert [row["ranks"] for row in ours] != [row["ranks"] for row in theirs]
        groups = {row["group"] for row in ours}
        assert groups == {"warmth"} if name == "heldout" else "warmth" not in groups
    ours, theirs = (read_json(place / "collect" / "evaluation.json") for place in (path, whole))
    assert ours["folds"] == theirs["folds"] and ours["panel"] == theirs["panel"]
    facts = read_json(whole / "reward_model" / "evaluation.json")
    gap = facts["labeler_gap"]
    assert gap["value"] == pytest.approx(facts["valid"]["accuracy"]["value"] - facts["heldout"]["accuracy"]["value"])
    assert gap["low"] < gap["value"] < gap["high"]
    assert gap["planted"] == theirs["folds"]["caution"]["in_group"] - theirs["folds"]["caution"]["held_out"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "packed, shape",
    [
        (True, dict(num_layers=3, embed_dim=16)),
        pytest.param(False, dict(embed_dim=48, num_heads=3, mlp_dim=20)),
        pytest.param(True, dict(num_layers=2, embed_dim=8, num_heads=1)),
        pytest.param(False, dict(embed_dim=64, num_heads=8)),
    ],
)
def test_proxies_of_any_size_learn_from_any_number_of_prompts(whole, tmp_path, packed, shape):
    config = get_config()
    config.reward_model.update(init="", packed=packed, subset=":10", model=ConfigDict(shape))
    path = again(whole, tmp_path / "run", "reward_model")
    with run_lib.start(config, path) as run:
        reward_model.run_stage(run, "reward_model")
        run.workdir.mark_done("reward_model", 0.0)
        found = run.shape("reward_model")
        assert {name: getattr(found, name) for name in shape} == shape
        scores = Scorer(run)(*zip(*[(row, "yes", True) for row in run.corpus.prompts("test", "ppo")[:3]]))
    assert len(timeless(path / "reward_model")) == 3  # two epochs of 10 prompts, in batches of 8
    assert np.isfinite(scores).all() and len(set(scores.tolist())) == 3


def again(whole, path, stage):
    """A run that has finished what comes before `stage`."""
    path.mkdir()
    for name in ["template.txt", "tokenizer.json", *get_config().stages[: get_config().stages.index(stage)]]:
        (path / name).symlink_to(whole / name)
    return path


@pytest.mark.slow
def test_dpo_stopped_and_resumed_is_dpo_never_stopped(whole, tmp_path):
    path = again(whole, tmp_path / "run", "dpo")
    with run_lib.start(get_config(), path) as run:
        key = run.key
        run.key = lambda *names: setattr(run.interrupt, "requested", names == ("dpo", 3) and 2) or key(*names)
        with pytest.raises(Stopped, match="dpo step 4; run the same command to go on"):
            dpo.run_stage(run, "dpo")
    assert len(timeless(path / "dpo")) == 4
    with run_lib.start(get_config(), path) as run:
        dpo.run_stage(run, "dpo")
    assert_same_stage(path, whole, "dpo")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"dpo.beta": 0.0}, "dpo.beta=0.0 must be a number above 0"),
        (
            {"reward_model.warmup_steps": 7},
            "reward_model.warmup_steps=7 must be at most 6, the steps that reward_model.epochs=2 of 24",
        ),
        (
            {"taught.warmup_steps": 3},
            "taught.warmup_steps=3 must be at most 2, the steps that taught.epochs=1 of 12 examples",
        ),
        ({"dpo.rankings": "sft"}, "dpo.rankings='sft' must name a collect stage before 'dpo' in config.stages"),
        (
            {"reward_model.rankings": "feedback"},
            "reward_model.rankings='feedback' must name a collect stage before 'reward_model'",
        ),
        (
            {"taught.subset": "half"},
            "taught.subset='half' must be a part of the prompts, such as ':1000', ':50%' or '50%:', or empty",
        ),
        ({"reward_model.subset": ":0"}, "reward_model.subset=':0' must be a part of the prompts"),
        (
            {"reward_model.subset": "20:25"},
            "reward_model.subset='20:25' must take at least one and at most all of the 24 prompts",
        ),
        ({"taught.subset": "24:"}, "taught.subset='24:' must take at least one and at most all of the 24"),
        ({"dpo.subset": ":1%"}, "dpo.subset=':1%' must take at least one and at most all of the 24"),
        ({"feedback.rankings": "taught"}, "feedback.rankings='taught' must name a collect stage before 'feedback'"),
        ({"dpo.label_smoothing": 0.5}, "dpo.label_smoothing=0.5 must be a number from 0 and below 0.5"),
    ],
)
def test_a_wrong_field_is_said_before_the_first_stage(tmp_path, change, message):
    config = get_config()
    config.update_from_flattened_dict(change)
    with pytest.raises(InputError, match=message):
        pipeline.run_stages(config, tmp_path / "run")
    assert not (tmp_path / "run" / "sft").exists()


@pytest.mark.slow
def test_rankings_of_a_stage_that_collects_none_are_refused(whole):
    run = run_lib.open_run(whole)
    run.config.dpo.rankings = "sft"
    with pytest.raises(
        InputError, match="dpo.rankings='sft' must name a finished collect stage; these are: collect, feedback"
    ):
        rankings.load(run, "dpo", "train")


@pytest.mark.slow
def test_subsets_are_nested_and_halves_disjoint(whole):
    run = run_lib.open_run(whole)
    rows = rankings.load(run, "reward_model", "train")

    def part(text, seed=0):
        return [row.prompt for row in rankings.subset(rows, text, seed)]

    everything = part(":")
    assert everything == [row.prompt for row in rows]
    assert (
        len(part(":7")) == 7
        and set(part(":7")) < set(part(":12"))
        and part(":12") == [p for p in everything if p in part(":12")]
    )
    halves = set(part(":50%")), set(part("50%:"))
    assert (
        not halves[0] & halves[1]
        and halves[0] | halves[1] == set(everything)
        and len(halves[0]) == round(len(everything) / 2)
    )
    assert part(":7") != part(":7", seed=1) and part(":7") != everything[:7]
    doubled = rankings.subset(rows + rows, ":7", 0)  # rankings of one prompt stay together
    assert len(doubled) == 14 and {row.prompt for row in doubled} == set(part(":7"))
    for wrong, said in ((":1%", "at least one"), (":100000", "at most all of the")):
        with pytest.raises(InputError, match=f"taught.subset='{wrong}'.*{said}"):
            rankings.subset(rows, wrong, 0, "taught.subset")
