"""What a stage needs is asked for before the first step of a run, or its absence has a meaning: no end comes late."""

import json
import random
import shutil

import numpy as np
import pytest

from rlhf_jax import pipeline, weights
from rlhf_jax import run as run_lib
from rlhf_jax.config import default_config
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import read_json
from rlhf_jax.stages import reward_model

pytestmark = pytest.mark.usefixtures("one_device")
KINDS = ("documents", "demonstrations", "rankings", "prompts")
SPLITS = ("train", "valid", "test")
WORDS = "the cat dog sat ran mat house tree big red blue green sun moon star".split()
# Stage -> the stages before it, and what of the files it needs beside test prompts.
STAGES = {
    "pretrain": ((), {"documents": ("train", "valid")}),
    "sft": ((), {"demonstrations": ("train", "valid")}),
    "collect": (("sft", "reward_model"), {"prompts": ("train", "valid")}),
    "reward_model": (("sft",), {"rankings": ("train", "valid")}),
    "dpo": (("sft",), {"rankings": ("train", "valid")}),
    "ppo": (("sft", "reward_model"), {"prompts": ("train",)}),
    "ppo_ptx": (("sft", "reward_model"), {"prompts": ("train",), "documents": ("train",)}),
    "best_of_n": (("sft", "reward_model"), {}),
    "prompted": (("sft", "reward_model"), {"demonstrations": ("train",), "prompts": ("valid",)}),
}
UNJUDGED = ("collect", "reward_model")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A row of each kind in every published split, forty for training."""
    folder, rng = tmp_path_factory.mktemp("files"), random.Random(0)

    def text(count):
        return " ".join(rng.choices(WORDS, k=count))

    rows = {kind: [] for kind in (*KINDS, "tied")}
    for number in range(56):
        split = "valid" if number < 8 else "test" if number < 16 else "train"
        common = {"split": split, "prompt": f"{text(2)} {number}"}
        rows["documents"].append({"split": split, "text": text(40)})
        rows["demonstrations"].append(common | {"completion": text(2)})
        ranking = common | {"completions": [text(1), text(2), text(3)]}
        rows["rankings"].append(ranking | {"ranks": rng.sample([1, 2, 3], 3)})
        rows["tied"].append(ranking | {"ranks": [1, 1, 1] if split == "valid" else [1, 2, 3]})
        rows["prompts"].append(common)
    for kind, found in rows.items():
        for split in ("", *SPLITS):  # and files that lack a split
            kept = "".join(json.dumps(row) + "\n" for row in found if row["split"] != split)
            (folder / f"{kind}{split and f'_no_{split}'}.jsonl").write_text(kept, encoding="utf-8")
    return folder


def config_of(files, stages, **changes):
    config = default_config()
    config.stages = stages
    config.prompt_length, config.completion_length = 32, 8
    config.tokenizer.vocab_size = 300
    config.model.update(
        num_layers=1, embed_dim=16, num_heads=2, max_length=40, dtype="float32", scan_layers=False, remat="none"
    )
    config.data.source = "files"
    config.data.files.update(
        dir=str(files), splits="published", near_duplicates="ignore", valid_share=0.0, test_share=0.0
    )
    config.data.files.update({kind: f"{kind}.jsonl" for kind in KINDS})
    config.pretrain.update(length=40, batch_size=8, steps=2, warmup_steps=1)
    config.sft.update(init="", epochs=1.0, batch_size=8)
    config.collect.update(models=("sft@1.0",), labeler="reward_model", reward="reward_model", batch_size=8)
    config.reward_model.update(epochs=1.0, batch_size=8)
    config.dpo.update(epochs=1.0, batch_size=8, warmup_steps=0)
    for section in (config.ppo, config.ppo_ptx):
        section.update(iterations=1, batch_size=8, minibatch_size=8, ptx_ratio=1, warmup_iterations=1)
    config.best_of_n.update(samples=2, batch_size=8)
    config.prompted.update(init="sft", shots=1, candidates=1)
    config.evaluate.update(prompts=8, batch_size=8)
    config.update_from_flattened_dict(changes)
    return config


def checked(config, path, done=()):
    """pipeline.check of a run in which some stages are finished and evaluated."""
    for stage in done:
        (path / stage).mkdir(parents=True)
        (path / stage / "done.json").write_text('{"seconds": 1.0}')
        (path / stage / "evaluation.json").write_text("{}")
    with run_lib.start(config, path) as run:
        pipeline.check(run)


@pytest.mark.parametrize("stage", STAGES)
def test_every_source_that_a_stage_lacks_is_named_before_its_first_step(stage, files, tmp_path):
    before, needs = STAGES[stage]
    needs = needs if stage in UNJUDGED else needs | {"prompts": (*needs.get("prompts", ()), "test")}
    checked(config_of(files, (*before, stage)), tmp_path / "all", before)
    for kind in KINDS:
        change = {f"data.files.{kind}": ""}
        # Prompts are then those of the demonstrations and rankings; only without these there are none.
        other = (
            {"data.files.demonstrations": "", "data.files.rankings": ""} if kind == "prompts" and kind in needs else {}
        )
        config = config_of(files, (*before, stage), **change | other)
        if kind in needs:
            lacking = next(name for name in needs if name == kind or f"data.files.{name}" in other)
            with pytest.raises(
                InputError, match=f"{stage} needs {lacking}, and there are none: give data.files.{lacking}"
            ):
                checked(config, tmp_path / kind, before)
        else:
            checked(config, tmp_path / kind, before)
        for split in SPLITS:
            config = config_of(files, (*before, stage), **{f"data.files.{kind}": f"{kind}_no_{split}.jsonl"})
            if split in needs.get(kind, ()):
                # Where the tokenizer is trained on rows of a kind, it asks first.
                with pytest.raises(InputError, match=f"the {split} split of data.files.{kind} is empty"):
                    checked(config, tmp_path / f"{kind}_{split}", before)
            elif kind in needs or split != "train":
                checked(config, tmp_path / f"{kind}_{split}", before)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_with_what_it_needs_and_no_more_finishes(stage, files, tmp_path):
    stages = (*STAGES[stage][0], stage)
    needed = {kind for name in stages for kind in STAGES[name][1]} | {"prompts"}
    config = config_of(files, stages, **{f"data.files.{kind}": "" for kind in KINDS if kind not in needed})
    pipeline.run_stages(config, tmp_path / "run")
    assert all((tmp_path / "run" / name / "evaluation.json").exists() for name in stages)


@pytest.mark.parametrize(
    "stages, change, message",
    [
        (("sft", "ppo"), {}, "ppo.reward names 'reward_model', which is no reward_model stage before 'ppo'"),
        (("ppo", "sft"), {}, "ppo.init names 'sft', which is no pretrain or sft or ppo or dpo stage before 'ppo'"),
        (("sft",), {"sft.init": "sft"}, "sft.init names 'sft', .* there are none"),
        (("sft", "reward_model", "collect"), {"collect.models": ("sft@1.0", "stf@0.7")}, "collect.models names 'stf'"),
        (
            ("sft", "reward_model", "collect"),
            {"collect.models": ("reward_model",)},
            "collect.models names 'reward_model'",
        ),
        (
            ("sft", "reward_model", "collect"),
            {"collect.labeler": "world"},
            "labeler='world' needs data.source='world', and it is 'files'",
        ),
        (("sft", "reward_model", "best_of_n"), {"best_of_n.judges": ("sft",)}, "best_of_n.judges names 'sft'"),
        (("sft", "reward_model"), {"data.files.rankings": "tied.jsonl:split=mine"}, "none of its .* training rankings"),
        (("pretrain",), {"pretrain.length": 41}, "pretrain.length=41 is more than the 40 places"),
        (
            ("sft", "reward_model", "ppo_ptx"),
            {"ppo_ptx.ptx_length": 41},
            "ppo_ptx.ptx_length=41 is more than the 40 places",
        ),
        (
            ("sft", "reward_model"),
            {"reward_model.init": "", "reward_model.model.max_length": 39},
            "prompt_length . completion_length=40 is more than the 39 places",
        ),
    ],
)
def test_what_does_not_fit_together_is_said_before_the_first_step(stages, change, message, files, tmp_path):
    config = config_of(files, stages)
    with config.unlocked():
        config.update_from_flattened_dict(change)
        if "reward_model.model.max_length" in change:
            config.reward_model.model.max_length = 39
    if "tied" in config.data.files.rankings:
        config.data.files.rankings = "all_tied.jsonl"
        rows = (files / "rankings.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.dumps(json.loads(row) | {"ranks": [1, 1, 1]}) for row in rows]
        (files / "all_tied.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=message):
        checked(config, tmp_path / "run")


def test_a_folder_may_have_the_name_of_a_section_that_is_no_stage(files, tmp_path):
    checked(config_of(files, ("sft",), **{"sft.init": "model"}), tmp_path / "run")


def rankings_alone(files, **changes):
    nothing = {f"data.files.{kind}": "" for kind in KINDS if kind != "rankings"}
    return config_of(files, ("reward_model",), **{"reward_model.init": ""} | nothing | changes)


def test_a_reward_model_of_rankings_alone_finishes_with_a_bias_of_0(files, tmp_path, capsys):
    pipeline.run_stages(rankings_alone(files), tmp_path / "run")
    assert "there are no demonstrations to set the bias by, so it is 0" in capsys.readouterr().out
    found = read_json(tmp_path / "run" / "reward_model" / "evaluation.json")
    assert found["demonstrations"] == 0 and found["valid"]["pairs"] == 8 * 3
    ours, words, above = (found["valid"][name] for name in ("accuracy", "bag_of_words_accuracy", "above_bag_of_words"))
    assert above["value"] == pytest.approx(ours["value"] - words["value"]) and above["low"] < above["high"]
    report = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    assert "There were no demonstrations whose mean score could be set to 0" in report
    assert weights.load_params(run_lib.open_run(tmp_path / "run"), "reward_model", "scalar")["scalar_bias"] == 0.0


def test_validation_rankings_without_a_preference_are_counted(files, tmp_path):
    """And one training prompt is too few for a bag of words, not for a reward model."""
    config = rankings_alone(files, **{"data.files.rankings": "tied.jsonl", "reward_model.loss": "regression"})
    config.reward_model.subset = ":1"
    pipeline.run_stages(config, tmp_path / "run")
    found = read_json(tmp_path / "run" / "reward_model" / "evaluation.json")
    assert found["valid"] == {"rankings": 8, "prompts": 8, "pairs": 0}
    report = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    assert "No validation ranking says that one completion is better than another" in report


def test_an_evaluation_that_fails_loses_nothing_and_comes_at_the_next_start(files, tmp_path, monkeypatch):
    path = tmp_path / "run"
    with monkeypatch.context() as broken:
        broken.setattr(reward_model, "evaluate", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pipeline.run_stages(rankings_alone(files), path)
    assert (path / "reward_model" / "done.json").exists() and not (path / "reward_model" / "evaluation.json").exists()
    monkeypatch.setattr(reward_model, "run_stage", lambda *_: pytest.fail("it is trained already"))
    pipeline.run_stages(rankings_alone(files), path)
    assert np.isfinite(read_json(path / "reward_model" / "evaluation.json")["valid"]["log_loss"])


def test_a_work_directory_that_was_removed_is_what_is_said(files, tmp_path):
    with pytest.raises(InputError, match="run was moved or removed while this command used it"):
        with run_lib.start(config_of(files, ("sft",)), tmp_path / "run") as run:
            shutil.rmtree(tmp_path / "run")
            weights.load_params(run, "sft")
