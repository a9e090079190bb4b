"""Runs that train adapters: what they write, what they share, and that nothing else changes."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import toy
from compare import assert_same_stage

from rlhf_jax import language_model, lora, pipeline, weights
from rlhf_jax import run as run_lib
from rlhf_jax.data.record_files import read_rows
from rlhf_jax.evaluate.rewards import __main__ as rewards_command
from rlhf_jax.evaluate.rewards import models
from rlhf_jax.generate import __main__ as generate_command
from rlhf_jax.hf import __main__ as hf_command
from rlhf_jax.metrics import read_metrics
from rlhf_jax.model import params as params_lib
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import read_json
from rlhf_jax.runtime.progress import Stopped
from rlhf_jax.stages import ppo as ppo_stage
from rlhf_jax.stages import sft as sft_stage

pytestmark = pytest.mark.usefixtures("one_device")
ADAPTED = ("sft", "reward_model", "dpo", "ppo_ptx")


def config_of(**changes):
    config = toy.get_config()
    config.stages = ("pretrain", "sft", "collect", "reward_model", "dpo", "ppo_ptx")
    config.model.lora.update(rank=2, dropout=0.1)
    config.dpo.update(batch_size=8, checkpoint_every=2, warmup_steps=0)
    config.ppo_ptx.update(reward="reward_model, rlhf_jax.rewards:length(limit=1)", reward_weights=(1.0, 0.25))
    config.checkpoints_every = 2
    config.model.lora.update(changes)
    return config


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbed."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    pipeline.run_stages(config_of(), path)
    return path


def test_stages_write_adapters_and_heads_and_name_their_base(whole):
    for stage in ADAPTED:
        arrays = read_json(whole / stage / "params" / "manifest.json")["arrays"]
        head = {"scalar_kernel", "scalar_bias"} if stage == "reward_model" else set()
        matrices = ("wq", "wk", "wv", "wo", "w_up", "w_down")
        assert set(arrays) == {f"layers/{name}_{part}" for name in matrices for part in "ab"} | head, stage
        assert read_json(whole / stage / "base.json")["folder"] == "pretrain"
        newest = max((whole / stage / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
        assert all(
            "_a" in name or "_b" in name or "layers" not in name
            for name in read_json(newest / "manifest.json")["arrays"]
        )
    assert "layers/wq" in read_json(whole / "pretrain" / "params" / "manifest.json")["arrays"]
    assert not (whole / "pretrain" / "base.json").exists()


def test_all_models_of_a_run_share_the_arrays_of_one_base(whole):
    run = run_lib.open_run(whole)
    base, _ = lora.split(weights.load_params(run, "sft"))
    for stage in ADAPTED + ("pretrain",):
        head = "scalar" if stage == "reward_model" else "lm"
        params = weights.load_params(run, stage, head)
        shapes = params_lib.param_shapes(run.shape(stage), head)
        assert jax.tree.map(lambda x: x.shape, params) == jax.tree.map(lambda x: x.shape, shapes)
        other, _ = lora.split(params)
        assert all(x is y for x, y in zip(jax.tree.leaves(other), jax.tree.leaves(base), strict=True)), stage
    assert run.trained_shape("pretrain").lora is None and run.trained_shape("ppo_ptx").lora.rank == 2


def test_every_stage_learns_and_the_first_kl_is_0(whole):
    run = run_lib.open_run(whole)
    first = read_metrics(whole / "ppo_ptx" / "metrics.jsonl")[0]
    assert first["objective/kl"] == 0.0
    rewards = first["objective/scores/reward_model"], first["objective/scores/length"]
    assert rewards[0] and rewards[1] and first["objective/raw_scores"] == pytest.approx(rewards[0] + rewards[1] / 4)
    for stage in ADAPTED:
        adapters = weights.load_params(run, stage, "scalar" if stage == "reward_model" else "lm")["layers"]
        assert np.abs(adapters["wq_b"]).max() > 1e-4, stage  # B starts at 0
    sft, dpo = (weights.load_params(run, stage)["layers"]["wq_b"] for stage in ("sft", "dpo"))
    assert (np.asarray(sft) != dpo).any()


def test_merged_weights_are_the_same_model(whole):
    run, tokens = run_lib.open_run(whole), np.arange(2, 20, dtype=np.int32)[None]
    shape = run.shape("ppo_ptx")

    def states(shape, params):
        from rlhf_jax import model

        return model.masked_hidden_states(shape, params, tokens, tokens > 0)

    merged = weights.load_params(run, "ppo_ptx", merge=True)
    found = states(dataclasses.replace(shape, lora=None), merged)
    np.testing.assert_allclose(found, states(shape, weights.load_params(run, "ppo_ptx")), atol=1e-4)
    opened = language_model.open_model(str(whole / "ppo_ptx"), training=True)
    assert opened.config.lora is None and "wq_a" not in opened.params["layers"]


@pytest.mark.parametrize("stage, module", [("sft", sft_stage), ("ppo_ptx", ppo_stage)])
def test_a_stage_that_was_stopped_and_resumed_has_the_same_bits(whole, tmp_path, stage, module):
    import shutil

    path = tmp_path / "again"
    shutil.copytree(whole, path, ignore=shutil.ignore_patterns(stage))

    def run_stage(stop_at=None):
        with run_lib.start(config_of(), path) as run:
            key = run.key

            def watched(*names):
                if names[0] in (stage, "ppo") and names[1:] == (stop_at,):
                    run.interrupt.requested = True
                return key(*names)

            run.key = watched
            module.run_stage(run, stage)

    with pytest.raises(Stopped):
        run_stage(stop_at=2)
    run_stage()
    assert_same_stage(path, whole, stage)


# ---------------------------------------------------------------------------- kept checkpoints, and merged weights


def adapters_of(whole, name, head="lm") -> np.ndarray:
    return np.asarray(weights.load_params(run_lib.open_run(whole), name, head)["layers"]["wq_b"])


def test_a_kept_checkpoint_is_the_model_of_its_step_wherever_a_model_is_named(whole, tmp_path, capsys):
    """It is exported with its base, merged or not, generated from and chatted with: the weights are its own."""
    steps = sorted(int(path.name) for path in (whole / "ppo_ptx" / "checkpoints").glob("[0-9]*"))
    first, last = (f"ppo_ptx/checkpoints/{step}" for step in (steps[0], steps[-1]))
    assert len(steps) > 1 and (adapters_of(whole, first) != adapters_of(whole, "ppo_ptx")).any()
    np.testing.assert_array_equal(adapters_of(whole, last), adapters_of(whole, "ppo_ptx"))
    assert hf_command.main(["export", str(whole / "pretrain"), str(tmp_path / "base")]) == 0
    for flags, folder in ((["--merge"], "merged"), ([f"--base={tmp_path}/base"], "adapter")):
        assert hf_command.main(["export", str(whole / first), str(tmp_path / folder), *flags]) == 0
    assert (tmp_path / "adapter" / "adapter_config.json").exists()
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    texts = []
    for name in (whole / first, tmp_path / "merged", tmp_path / "adapter", whole / last, whole / "ppo_ptx"):
        capsys.readouterr()
        arguments = [f"--model={name}", "--prompt=say hello", "--temperature=0", "--max_new_tokens=8"]
        assert generate_command.main(arguments) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] == texts[2] and texts[3] == texts[4]
    assert hf_command.main(["export", str(tmp_path / "adapter"), str(tmp_path / "x"), "--merge"]) == 2
    assert "adapter is an adapter in the files of PEFT: use it as it is" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    merged, opened = (language_model.open_model(str(name)) for name in (tmp_path / "merged", whole / first))
    assert merged.config.lora is None and opened.config.lora.rank == 2
    base, a, b = (np.asarray(opened.params["layers"][name], np.float64) for name in ("w_up", "w_up_a", "w_up_b"))
    wanted = base + opened.config.lora.scale * np.einsum("ldr,lrm->ldm", a, b)
    np.testing.assert_allclose(np.asarray(merged.params["layers"]["w_up"]), wanted, atol=1e-6)


def test_a_kept_reward_model_measures_preferences(whole, tmp_path, capsys):
    rows = [{"prompt": f"say {n}", "chosen": " yes", "rejected": f" no {n}"} for n in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = {}
    steps = sorted(int(path.name) for path in (whole / "reward_model" / "checkpoints").glob("[0-9]*"))
    for name in ("reward_model", *(f"reward_model/checkpoints/{step}" for step in (steps[0], steps[-1]))):
        kept = tmp_path / f"{name.replace('/', '-')}.jsonl"
        assert (
            rewards_command.main([f"--reward={whole / name}", f"--data={tmp_path}/rows.jsonl", f"--rows={kept}"]) == 0
        )
        found[name] = np.array([json.loads(line)["answer"]["score"] for line in kept.read_text().splitlines()])
    assert hf_command.main(["export", str(whole / "pretrain"), str(tmp_path / "base")]) == 0
    arguments = [str(whole / "reward_model"), str(tmp_path / "peft"), f"--base={tmp_path}/base"]
    assert hf_command.main(["export", *arguments]) == 0
    judge = models.open_reward(str(tmp_path / "peft"))
    requests = [row for ranking in judge.encode(read_rows(tmp_path / "rows.jsonl", "rankings")[0]) for row in ranking]
    scores = dict(pair for batch in judge(requests) for pair in batch)
    np.testing.assert_allclose([scores[n] for n in range(6)], found["reward_model"], atol=1e-4)
    assert generate_command.main([f"--model={tmp_path}/peft", "--prompt=x"]) == 2
    whole_stage, first, last = found.values()
    gaps = [scores - scores[0] for scores in (whole_stage, first, last)]  # the bias is set when the stage ends
    np.testing.assert_allclose(gaps[0], gaps[2], atol=1e-4)
    assert len(whole_stage) == 6 and np.abs(gaps[0] - gaps[1]).max() > 1e-3


@pytest.mark.slow
def test_a_run_starts_from_a_folder_of_peft_and_is_rewarded_by_a_function_alone(whole, tmp_path):
    """Its first models are those of the folder; its value model starts as the policy, because no reward model is there."""
    assert hf_command.main(["export", str(whole / "pretrain"), str(tmp_path / "base")]) == 0
    assert hf_command.main(["export", str(whole / "sft"), str(tmp_path / "peft"), f"--base={tmp_path}/base"]) == 0
    config = config_of()
    config.stages, config.sft.init = ("sft", "ppo_ptx"), str(tmp_path / "peft")
    config.tokenizer.path = str(tmp_path / "base" / "tokenizer.json")
    config.ppo_ptx.update(init="sft", reward="rlhf_jax.rewards:length(limit=1)", reward_weights=())
    pipeline.run_stages(config, tmp_path / "run")
    run = run_lib.open_run(tmp_path / "run")
    started = weights.start_params(run, "sft")["layers"]["wq_b"]
    np.testing.assert_array_equal(started, adapters_of(whole, "sft"))
    for stage in ("sft", "ppo_ptx"):
        assert read_json(tmp_path / "run" / stage / "base.json")["folder"] == str(tmp_path / "base")
        assert (adapters_of(tmp_path / "run", stage) != started).any()
    first = read_metrics(tmp_path / "run" / "ppo_ptx" / "metrics.jsonl")[0]
    assert first["objective/kl"] == 0.0 and first["objective/scores/length"] < 0
    config.model.lora.rank = 3
    assert "peft" in refusal(config, tmp_path / "other")


# ---------------------------------------------------------------------------- bad input


def refusal(config, path) -> str:
    with pytest.raises(InputError) as error:
        pipeline.run_stages(config, path)
    assert not list(path.glob("*/params"))
    return str(error.value)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"rank": 0}, ["model.lora.rank=0 must be a whole number from 1, or None"]),
        ({"rank": 33}, ["model.lora.rank=33 is larger than the matrix wq", "32 x 32"]),
        ({"matrices": ("wq", "wz")}, ["model.lora.matrices=('wq', 'wz')", "names of wq, wk"]),
        ({"matrices": ("w_gate",)}, ["model.lora.matrices names 'w_gate'", "w_up, w_down"]),
        ({"dropout": 1.0}, ["model.lora.dropout=1.0"]),
    ],
)
def test_adapters_that_cannot_be_are_one_sentence(changes, words, tmp_path):
    said = refusal(config_of(**changes), tmp_path / "run")
    assert all(word in said for word in words), said


def test_adapters_need_weights_that_are_there(tmp_path):
    config = config_of()
    config.sft.init = ""
    assert "sft.init='' has random weights" in refusal(config, tmp_path / "run")


def test_adapters_of_another_base_are_refused(whole, tmp_path):
    config = config_of()
    config.stages = ("pretrain", "ppo_ptx")
    config.ppo_ptx.update(init="pretrain", reward=str(whole / "reward_model"), reward_weights=())
    config.tokenizer.path = str(whole / "tokenizer.json")
    said = refusal(config, tmp_path / "run")
    assert str(whole / "pretrain") in said and "start both from the same weights" in said


def test_a_base_that_was_changed_is_refused(whole, tmp_path):
    import shutil

    path = tmp_path / "run"
    shutil.copytree(whole, path)
    run = run_lib.open_run(path)
    manifest = path / "pretrain" / "params" / "manifest.json"
    facts = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(facts, indent=1))
    with pytest.raises(InputError, match="pretrain"):
        weights.load_params(run, "sft")
    (path / "pretrain").rename(path / "gone")
    with pytest.raises(InputError, match="is an adapter of the model in .*pretrain, which is not there"):
        weights.load_params(run_lib.open_run(path), "sft")
