"""Models of other runs: found by their paths, loaded to the bit, refused in one sentence, noticed where they change."""

import json
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest
import toy
from compare import assert_same_stage, params_of

from rlhf_jax import chat, checkpoint, pipeline, sources, weights
from rlhf_jax import run as run_lib
from rlhf_jax.evaluate import __main__ as evaluate_command
from rlhf_jax.evaluate import run_judges
from rlhf_jax.hf import __main__ as hf_command
from rlhf_jax.language_model import open_model
from rlhf_jax.runtime import finished
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import read_json, read_json_lines, write_json

pytestmark = pytest.mark.usefixtures("one_device")


def config_of(*stages, **ppo):
    config = toy.get_config()
    config.stages = stages
    config.checkpoints_every = 2
    config.ppo.update(ppo_epochs=1, **ppo)
    return config


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A run with a policy and a reward model, of random weights that nobody has trained."""
    path = tmp_path_factory.mktemp("runs") / "other"
    with run_lib.start(config_of("sft", "reward_model"), path) as run:
        for stage, head in (("sft", "lm"), ("reward_model", "scalar")):
            folder = run.workdir.stage(stage)
            checkpoint.save_params(folder / "params", weights.init_params(run, stage, run.model, head=head))
            if head == "scalar":
                write_json(folder / "evaluation.json", {"demonstrations": 0})
            run.mark_done(stage, 1.0)
    return path


@pytest.fixture(scope="module")
def from_other(other):
    """A run whose only stage, PPO, starts from the other run and is rewarded by it."""
    path = other.parent / "mine"
    pipeline.run_stages(config_of("ppo", init=f"{other}/sft", reward=f"{other}/reward_model"), path)
    return path


@pytest.fixture(scope="module")
def appended(other):
    """The other run, to which the same PPO is appended."""
    path = other.parent / "appended"
    shutil.copytree(other, path)
    pipeline.run_stages(config_of("sft", "reward_model", "ppo"), path)
    return path


@pytest.fixture
def run(other, tmp_path):
    """A run that can name the models of the other."""
    config = config_of("ppo", init="other/sft", reward="other/reward_model")
    config.data.files.dir = str(other.parent)
    with run_lib.start(config, tmp_path / "run") as run:
        yield run


def estimates(path) -> dict:
    return read_json(path / "ppo" / "evaluation.json")["estimates"]


def test_a_stage_of_another_run_serves_as_one_of_this_run_to_the_bit(from_other, appended):
    assert_same_stage(from_other, appended, "ppo")


def test_such_a_stage_is_resumed_to_the_bit(other, from_other, tmp_path):
    config = config_of("ppo", init=f"{other}/sft", reward=f"{other}/reward_model")
    with pytest.raises(RuntimeError, match="killed"):
        with run_lib.start(config, tmp_path / "run") as run:
            key = run.key

            def killed(*names):
                if names == ("ppo", 3):
                    raise RuntimeError("killed")
                return key(*names)

            run.key = killed
            pipeline.check(run)
            pipeline.run_stage(run, "ppo")
    assert not (tmp_path / "run" / "ppo" / "done.json").exists()
    pipeline.run_stages(config, tmp_path / "run")
    assert_same_stage(tmp_path / "run", from_other, "ppo")


def test_what_a_policy_started_from_and_is_rewarded_by_are_its_judges(from_other, appended):
    """With the names of stages and with paths, the numbers are the same."""
    mine, theirs = estimates(from_other), estimates(appended)
    assert mine.keys() == theirs.keys()
    for name in ("score", "kl", "win_rate", "gold/total"):
        assert mine[name]["value"] is not None and mine[name] == theirs[name]
    facts = read_json(from_other / "ppo" / "evaluation.json")
    assert facts["reference"] == "other/sft" and read_json(appended / "ppo" / "evaluation.json")["reference"] == "sft"
    sft = read_json(appended / "sft" / "evaluation.json")["estimates"]
    assert facts["reference_estimates"]["score"] == sft["score"]
    assert facts["other_weights"]["estimates"]["kl"]["value"] is not None
    assert set(read_json_lines(from_other / "ppo" / "samples.jsonl")[0]["scores"]) == {"other/reward_model"}
    report = (from_other / "report.md").read_text()
    assert "KL to other/sft (nats)" in report and "The reference, other/sft, reaches" in report


def test_the_record_says_where_models_came_from(from_other, other):
    manifest = other / "sft" / "params" / "manifest.json"
    noted = finished.facts(from_other / "ppo")["models"][f"{other}/sft"]
    assert noted == {
        "folder": str(other / "sft"),
        "checksum": finished.facts(other / "sft")["files"]["params/manifest.json"][1],
    }
    assert manifest.is_file() and noted["checksum"][:16] in (from_other / "report.md").read_text()


def test_a_name_is_looked_for_in_the_folder_of_the_data_and_then_in_the_current_one(run, other, monkeypatch, tmp_path):
    assert run.source("other/sft") == sources.Trained(other, "sft") == run.source(f"{other}/sft")
    monkeypatch.chdir(other)
    assert run.source("./sft") == sources.Trained(other, "sft")
    shutil.copytree(other, tmp_path / "other")
    monkeypatch.chdir(tmp_path)
    assert run.source("other/sft").workdir == other
    run.config.data.files.dir = ""
    assert run.source("other/sft").workdir == tmp_path / "other"


def test_parameters_are_those_that_were_written(run, other):
    written = params_of(other / "sft")
    for name in ("other/sft", f"{other}/sft"):
        for path, leaf in jax.tree.leaves_with_path(weights.load_params(run, name)):
            np.testing.assert_array_equal(leaf, written[jax.tree_util.keystr(path)])


def test_a_vocabulary_that_is_padded_otherwise_is_padded_anew(run):
    shape, before = run.model, weights.load_params(run, "other/sft")
    run.model = run.model.__class__(**{**vars(shape), "vocab_multiple": 768})
    after = weights.load_params(run, "other/sft")
    assert after["embedding"].shape[0] == run.model.padded_vocab > shape.padded_vocab
    np.testing.assert_array_equal(after["embedding"][: shape.vocab_size], before["embedding"][: shape.vocab_size])
    assert not np.asarray(after["embedding"][shape.vocab_size :]).any()


@pytest.mark.parametrize(
    "field, name, sentence",
    [
        ("init", "other", r"other is a work directory; give one of its stages: .*other/sft, .*other/reward_model"),
        ("init", "other/ppo", "ppo is no stage of .*other, whose stages are sft, reward_model"),
        ("init", "other/reward_model", "other/reward_model is a reward model; a language model is needed here"),
        ("reward", "other/sft", "other/sft is a language model; a reward model is needed here"),
        ("init", "other/sft/checkpoints/7", "checkpoints/7 is no checkpoint; the stage has kept none"),
        ("init", "nowhere/sft", "ppo.init names 'nowhere/sft', which is neither a stage of this config, nor"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(run, field, name, sentence):
    run.config.ppo[field] = name
    with pytest.raises(InputError, match=sentence):
        weights.check_sources(run, "ppo")


def test_another_shape_or_other_tokens_are_refused(run, other, tmp_path):
    run.model = run.model.__class__(**{**vars(run.model), "num_layers": 2})
    with pytest.raises(InputError, match="other/sft does not fit the model of 'ppo': num_layers=1, not 2"):
        weights.check_sources(run, "ppo")
    copy = tmp_path / "copy"
    shutil.copytree(other, copy)
    spec = json.loads((copy / "tokenizer.json").read_text())
    vocab = spec["model"]["vocab"]
    first, second = [text for text in vocab if vocab[text] in (100, 101)]
    vocab |= {first: vocab[second], second: vocab[first]}
    (copy / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(InputError, match="copy/reward_model reads other tokens than this run"):
        weights.load_params(run, f"{copy}/reward_model", "scalar")


def test_models_that_were_exchanged_are_noticed(run, other, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(other, copy)
    run.config.ppo.init = f"{copy}/sft"
    weights.check_sources(run, "ppo")
    weights.check_sources(run, "ppo")
    params = weights.init_params(run, "another", run.model)
    checkpoint.save_params(copy / "sft" / "params", params)
    finished.mark(copy / "sft", finished.facts(copy / "sft"))
    with pytest.raises(InputError, match="copy/sft' *.* was changed after this run began to use it"):
        weights.check_sources(run, "ppo")


@pytest.mark.parametrize(
    "stages, changes, sentence",
    [
        (("sft", "reward_model", "ppo"), {"ppo.kl_coef": 0.5}, None),
        (("sft", "reward_model"), {"ppo.kl_coef": 0.5}, "ppo.kl_coef was"),
        (("sft",), {}, "stages was"),
        (("sft", "ppo", "reward_model"), {}, "stages was"),
        (("sft", "reward_model", "ppo"), {"sft.learning_rate": 0.5}, "sft.learning_rate was"),
        (("sft", "reward_model", "ppo"), {"prompt_length": 63}, "prompt_length was"),
    ],
)
def test_stages_can_be_appended_where_nothing_before_them_changes(other, tmp_path, stages, changes, sentence):
    path = tmp_path / "copy"
    shutil.copytree(other, path)
    config = config_of(*stages)
    config.update_from_flattened_dict(changes)
    if sentence is None:
        with run_lib.start(config, path):
            assert read_json(path / "config.json")["stages"] == list(stages)
        return
    with pytest.raises(InputError, match=sentence):
        with run_lib.start(config, path):
            pass


def test_the_last_checkpoint_has_the_weights_that_the_stage_hands_on(from_other):
    run = run_lib.open_run(str(from_other))
    handed_on = jax.tree.leaves(weights.load_params(run, "ppo"))
    kept = jax.tree.leaves(weights.load_params(run, "ppo/checkpoints/4"))
    earlier = jax.tree.leaves(weights.load_params(run, "ppo/checkpoints/2"))
    for ours, theirs in zip(kept, handed_on, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert any((ours != theirs).any() for ours, theirs in zip(earlier, handed_on))
    run.config.ppo.output = "params"  # of the run that asks; a checkpoint is read as its own run says
    assert sources.Trained(from_other, "ppo", 4).config.ppo.output == "ema"
    with pytest.raises(InputError, match="checkpoints/3 is no checkpoint; its checkpoints are .*STEP, with STEP 2, 4"):
        run.source("ppo/checkpoints/3")


def test_a_checkpoint_goes_out_and_is_opened_as_a_model(from_other, tmp_path):
    source = from_other / "ppo" / "checkpoints" / "2"
    assert hf_command.main(["export", str(source), str(tmp_path / "out")]) == 0
    ours, theirs = open_model(str(source)), open_model(str(tmp_path / "out"))
    size = ours.config.vocab_size
    for name in ("embedding", "positions"):
        np.testing.assert_array_equal(ours.params[name][:size], theirs.params[name][:size])
    assert ours.template is not None and ours.tokenizer.same_ids(theirs.tokenizer)


def test_a_checkpoint_is_chatted_with_and_evaluated_under_its_name(from_other, capsys):
    """The last one answers as the stage itself does; what an evaluation writes does not go into a checkpoint's folder."""
    run = run_lib.open_run(str(from_other))
    with jax.set_mesh(run.mesh):
        *_, last = chat.Chat(run, "ppo/checkpoints/4").answer("say one word", temperature=1.0)
        *_, policy = chat.Chat(run, "ppo").answer("say one word", temperature=1.0)
    assert last == policy._replace(stage="mine/ppo/checkpoints/4") and last.score is not None and last.kl is not None
    named = ["--tasks=t", f"--workdir={from_other}"]
    assert evaluate_command.models(evaluate_command.parse([*named, "--stage=ppo/checkpoints/2,ppo"])) == {
        "ppo/checkpoints/2": (from_other / "ppo" / "checkpoints" / "2", from_other / "ppo" / "evaluate" / "2"),
        "ppo": (from_other / "ppo", from_other / "ppo"),
    }
    for name, sentence in {
        "ppo/checkpoints/3": "with STEP 2, 4",
        "ppo/4": "no finished policy",
        "x/2": "there is ppo",
    }.items():
        with pytest.raises(InputError, match=sentence):
            evaluate_command.models(evaluate_command.parse([*named, f"--stage={name}"]))


def test_names_of_judges_are_short_and_no_two_are_the_same(run, other, tmp_path):
    assert run_judges.label(run, "ppo") == "ppo"
    assert (
        run_judges.label(run, "other/reward_model")
        == "other/reward_model"
        == run_judges.label(run, f"{other}/reward_model")
    )
    shutil.copytree(other, tmp_path / "other")
    run.config.ppo.init = second = f"{tmp_path}/other/reward_model"
    assert (
        run_judges.label(run, second) == second and run_judges.label(run, "other/reward_model") == "other/reward_model"
    )


def test_the_card_of_an_export_has_data_config_and_evaluation_and_no_folders(appended, tmp_path):
    assert hf_command.main(["export", str(appended / "ppo"), str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    shown = estimates(appended)["kl"]["value"]
    assert card.startswith("---\nlibrary_name: transformers\n") and f"KL to SFT (nats) | {shown:.2f}" in card
    assert '"kl_coef": 0.02' in card and "embedded world" in card
    assert "\n{instruction}\n{input}\nanswer: {output}\n" in card  # the form of its prompts
    assert str(appended.parent) not in card


def test_resolution_reads_paths_only(tmp_path):
    with pytest.raises(sources.Missing):
        sources.find("sft", tmp_path, os.curdir)
    assert sources.at(pathlib.Path(tmp_path)) is None
