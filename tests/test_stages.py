"""The stages from end to end on a toy of the embedded world: files, resume, and what stops a run."""

import functools
import json
import math
import multiprocessing
import os
import pathlib
import shutil
import signal

import compiling
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import assert_same_stage, saved_arrays, timeless
from ml_collections import ConfigDict
from toy import TRAINED
from toy import get_config as toy_config

from rlhf_jax import generate, inputs, loop, model, pipeline, sampling, sharding, token_loss, train, weights
from rlhf_jax import run as run_lib
from rlhf_jax.data.batches import Batch
from rlhf_jax.data.loader import Loader, take
from rlhf_jax.data.record_files import read_rows
from rlhf_jax.data.records import Prompt
from rlhf_jax.data.text_batches import batch_demonstrations, batch_prompts
from rlhf_jax.evaluate import policy, scorer
from rlhf_jax.model import TransformerConfig
from rlhf_jax.report import pages
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import read_json, write_json
from rlhf_jax.runtime.progress import Stopped
from rlhf_jax.stages import collect, ppo_models, pretrain, rankings, reward_model, sft, supervised
from rlhf_jax.stages import ppo as ppo_stage

pytestmark = pytest.mark.usefixtures("one_device")
STAGES = {
    "pretrain": pretrain,
    "sft": sft,
    "collect": collect,
    "reward_model": reward_model,
    "ppo": ppo_stage,
    "ppo_ptx": ppo_stage,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbed."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    pipeline.run_stages(toy_config(), path)
    return path


def copy_until(whole, path, stage, config=None) -> pathlib.Path:
    """A run that has finished all stages before `stage`; with a `config`, one of another config."""
    names = [*STAGES][: [*STAGES].index(stage)]
    path.mkdir()
    for name in ["template.txt", "tokenizer.json"] + ([] if config else ["config.json"]):
        shutil.copy(whole / name, path / name)
    for name in names:
        shutil.copytree(whole / name, path / name)
    return path


def run_stage(path, stage, config=None, *, before_step=None):
    """Runs one stage; `before_step` is called as (run, step)."""
    with run_lib.start(config or toy_config(), path) as run:
        key = run.key

        def watched(*names):
            if before_step and names[0] in (stage, "ppo") and len(names) == 2 and isinstance(names[1], int):
                before_step(run, names[1])
            return key(*names)

        run.key = watched
        STAGES[stage].run_stage(run, stage)


def stop_at(step):
    """Asks the run to stop while it makes this step, counted from 0."""

    def before_step(run, now):
        run.interrupt.requested = run.interrupt.requested or now == step

    return before_step


# ---------------------------------------------------------------------------- a whole run


def test_every_stage_leaves_its_files(whole):
    for stage in STAGES:
        files = {path.name for path in (whole / stage).iterdir()}
        wanted = {"done.json", "evaluation.json"}
        if stage == "collect":
            wanted |= {"comparisons.train.jsonl", "comparisons.valid.jsonl", "comparisons.heldout.jsonl"}
        else:
            wanted |= {"params", "checkpoints", "metrics.jsonl"}
        if stage in ("pretrain", "sft", "ppo", "ppo_ptx"):
            wanted |= {"samples.jsonl", "skills.jsonl"}
        assert wanted <= files, stage
    top = {path.name for path in whole.iterdir()}
    assert top >= {"config.json", "overrides.json", "template.txt", "tokenizer.json", "data_report.json", "report.md"}
    steps = {stage: [row["step"] for row in timeless(whole / stage)] for stage in TRAINED}
    kept = read_json(whole / "data_report.json")["stages"]["sft"]["demonstrations"]
    epochs_of_sft = 2 * (kept["given"] - kept["dropped"]) / 6  # 6 rows of a batch of 8, the others are documents
    counts = {"pretrain": 5, "sft": math.ceil(epochs_of_sft), "reward_model": 6, "ppo": 4, "ppo_ptx": 4}
    assert steps == {stage: list(range(1, count + 1)) for stage, count in counts.items()}
    assert counts == {stage: read_json(whole / stage / "steps.json")["total"] for stage in TRAINED}


def test_running_again_repeats_nothing(whole, capsys, monkeypatch):
    for module in STAGES.values():
        monkeypatch.setattr(module, "run_stage", lambda run, stage: pytest.fail(f"{stage} runs again"))
    before = {path: path.stat().st_mtime_ns for path in whole.glob("*/*")}
    pipeline.run_stages(toy_config(), whole)
    printed = capsys.readouterr().out
    assert all(f"{stage}: finished before" in printed for stage in STAGES)
    after = {
        path: path.stat().st_mtime_ns for path in whole.glob("*/*") if path.suffix not in (".json", ".jsonl", ".png")
    }
    assert all(before[path] == time for path, time in after.items())


def test_the_report_of_the_data_says_what_was_dropped_and_cut(whole):
    stages = read_json(whole / "data_report.json")["stages"]
    assert {(stage, records) for stage, found in stages.items() for records in found} == {
        ("pretrain", "documents"),
        ("sft", "demonstrations"),
        ("reward_model", "rankings"),
        ("ppo", "prompts"),
        ("ppo_ptx", "prompts"),
    }
    assert all(
        {"given", "dropped", "cut", "longest", "prompts_cut", "repeats", "long_prompts", "long_completions"}
        == set(found[records])
        for found in stages.values()
        for records in found
    )
    report = (whole / "report.md").read_text()
    assert "## Data" in report
    done = {stage: json.loads((whole / stage / "done.json").read_text()) for stage in STAGES}
    assert {stage for stage in STAGES if "evaluation_seconds" in done[stage]} == {*TRAINED}


def test_the_held_out_group_never_labels_for_training(whole):
    groups = {
        name: {row.group for row in read_rows(whole / "collect" / f"comparisons.{name}.jsonl", "rankings")[0]}
        for name in ("train", "valid", "heldout")
    }
    held_out = toy_config().collect.held_out_group
    assert groups["heldout"] == {held_out}
    assert held_out not in groups["train"] | groups["valid"] and len(groups["train"]) > 1
    prompts = [
        {row.prompt for row in read_rows(whole / "collect" / f"comparisons.{name}.jsonl", "rankings")[0]}
        for name in ("train", "heldout")
    ]
    assert not prompts[0] & prompts[1]


def test_one_of_the_completions_of_a_prompt_was_sampled_for_another(whole):
    rows = read_rows(whole / "collect" / "comparisons.train.jsonl", "rankings")[0]
    borrowed = [sum(name.endswith(" of another prompt") for name in row.models) for row in rows]
    assert set(borrowed) <= {0, 1} and sum(borrowed) > 0.8 * len(rows)  # none where it was among its own
    assert all(2 <= len(set(row.completions)) == len(row.completions) <= 5 for row in rows)
    assert len({name for row in rows for name in row.models}) == 4  # both models, for this prompt and for others


def test_demonstrations_average_0_by_the_stored_reward_model(whole):
    run = run_lib.open_run(whole)
    rows = rankings.fitting(run, run.corpus.demonstrations("train"))
    scores = scorer.Scorer(run)(
        [Prompt(row.prompt, row.row) for row in rows], [r.completion for r in rows], [True] * len(rows)
    )
    assert np.std(scores) > 1e-3 and abs(scores.mean()) < 1e-5
    unbiased = read_json(whole / "reward_model" / "evaluation.json")["demonstration_mean_before_bias"]
    stored = weights.load_params(run, "reward_model", "scalar")["scalar_bias"]
    state = saved_arrays(whole / "reward_model")
    assert (
        stored == pytest.approx(state["['state']['params']['scalar_bias']"] - unbiased, abs=1e-6)
        and abs(unbiased) > 1e-4
    )


def test_ppo_starts_at_the_reference_and_leaves_it(whole):
    for stage in ("ppo", "ppo_ptx"):
        rows = timeless(whole / stage)
        assert rows[0]["objective/kl"] == rows[0]["objective/kl_exact"] == 0.0
        assert all(row["ppo/policy/first_approxkl"] == 0.0 for row in rows)
        assert rows[-1]["objective/kl_exact"] > 1e-4


def test_the_last_parameters_of_ppo_are_evaluated_beside_their_average(whole):
    """On the same prompts, with the same noise: what the average says is not what they say."""
    average, last = (policy.read_rows(whole / "ppo" / f"samples{weights}.jsonl") for weights in ("", ".params"))
    assert [row["index"] for row in last] == [row["index"] for row in average]
    evaluation = read_json(whole / "ppo" / "evaluation.json")
    assert evaluation["other_weights"]["weights"] == "params"
    found = evaluation["other_weights"]["estimates"]
    for name in ("score", "kl"):
        assert found[name]["value"] == pytest.approx(np.mean([row[name] for row in last]), rel=1e-5)
        assert found[name]["value"] != evaluation["estimates"][name]["value"]
    assert (
        "The policy of PPO is the moving average of its parameters. With its last parameters instead, it reaches gold score"
        in ((whole / "report.md").read_text(encoding="utf-8"))
    )


def test_the_two_arms_of_ppo_see_the_same_first_rollout(whole):
    rows = [timeless(whole / stage)[0] for stage in ("ppo", "ppo_ptx")]
    names = [name for name in rows[0] if name.startswith("objective/")]
    assert [rows[0][name] for name in names] == pytest.approx([rows[1][name] for name in names], rel=1e-6)


def test_the_adaptive_kl_coef_follows_the_kl(whole):
    section = toy_config().ppo_ptx
    rows = timeless(whole / "ppo_ptx")
    assert rows[0]["objective/kl_coef"] == np.float32(section.kl_coef)
    for row, after in zip(rows, rows[1:]):
        error = np.clip(row["objective/kl"] / section.kl_target - 1, -0.2, 0.2)
        factor = 1 + error * section.batch_size / section.kl_horizon
        assert after["objective/kl_coef"] == pytest.approx(row["objective/kl_coef"] * factor, rel=1e-5)
    assert {row["objective/kl_coef"] for row in timeless(whole / "ppo")} == {
        float(np.float32(toy_config().ppo.kl_coef))
    }


# ---------------------------------------------------------------------------- stopping and going on


@pytest.mark.parametrize(
    "stage, step", [("sft", 3), ("reward_model", 2), ("ppo_ptx", 1)]
)  # the others: two tests below
def test_a_stage_stopped_and_resumed_is_the_stage_never_stopped(whole, tmp_path, stage, step):
    path = copy_until(whole, tmp_path / "run", stage)
    with pytest.raises(Stopped, match=f"{stage} step {step + 1}; run the same command to go on"):
        run_stage(path, stage, before_step=stop_at(step))
    assert len(timeless(path / stage)) == step + 1 and not (path / stage / "done.json").exists()
    made = []
    run_stage(path, stage, before_step=lambda run, now: made.append(now))
    assert made[0] == step + 1  # the steps before it are not repeated
    assert_same_stage(path, whole, stage)


def _run_until_killed(path, step):
    """In a process of its own: PPO, killed by the system in the middle of a step."""
    sharding.make_mesh = functools.partial(sharding.make_mesh, devices=jax.devices()[:1])

    def kill(run, now):
        if now == step:
            os.kill(os.getpid(), signal.SIGKILL)

    with compiling.simply_up_to(1):
        run_stage(path, "ppo", before_step=kill)


def test_a_killed_process_goes_on_from_its_last_checkpoint(whole, tmp_path):
    path = copy_until(whole, tmp_path / "run", "ppo")
    process = multiprocessing.get_context("spawn").Process(target=_run_until_killed, args=(path, 3))
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
    made = []
    run_stage(path, "ppo", before_step=lambda run, now: made.append(now))
    assert made[0] in (0, 2)  # checkpoint 2 was being written when the end came
    assert_same_stage(path, whole, "ppo")


def test_a_step_that_is_not_finite_stops_the_run_and_spoils_nothing(whole, tmp_path, monkeypatch):
    path = copy_until(whole, tmp_path / "run", "pretrain")
    with pytest.raises(Stopped):
        run_stage(path, "pretrain", before_step=stop_at(1))
    before = saved_checkpoint_files(path / "pretrain")
    build = supervised.build

    def poisoned(*arguments):
        make, program = build(*arguments)

        def poison(state, rate):
            return rate * (jnp.inf if state.step == 2 else 1.0)

        return make, lambda state, batch, rate, *rest: program(state, batch, poison(state, rate), *rest)

    monkeypatch.setattr(supervised, "build", poisoned)
    with pytest.raises(loop.NonFinite) as stopped:
        run_stage(path, "pretrain")
    with run_lib.start(toy_config(), path) as run:
        packed, *_ = inputs.packed_documents(run, "train", 40)
        rows = Loader(packed, 8, run.seed, name="pretrain").rows(2).tolist()
    message = str(stopped.value)
    assert "pretrain step 3: learning_rate not finite" in message and ", ".join(map(str, rows)) in message
    assert f"the last good checkpoint is step 2 in {path / 'pretrain' / 'checkpoints'}" in message
    assert saved_checkpoint_files(path / "pretrain") == before
    assert [row["step"] for row in timeless(path / "pretrain")] == [1, 2]
    monkeypatch.undo()
    run_stage(path, "pretrain")  # once the cause is gone
    assert_same_stage(path, whole, "pretrain")


def saved_checkpoint_files(path) -> dict:
    return {file: file.read_bytes() for file in (path / "checkpoints").rglob("*") if file.is_file()}


def test_a_learning_rate_that_breaks_the_model_is_found_at_once(whole, tmp_path):
    config = toy_config()
    config.sft.learning_rate = 1e30
    path = copy_until(whole, tmp_path / "run", "sft", config)
    with pytest.raises(
        loop.NonFinite, match="sft step 2: .*loss.* not finite; rows of its batch: .*no checkpoint was saved yet"
    ):
        run_stage(path, "sft", config)
    assert not (path / "sft" / "done.json").exists()


# ---------------------------------------------------------------------------- other settings, and refusals


OTHER_PPOS = {
    "rloo": dict(advantage="rloo", samples_per_prompt=2, log_gold=True),
    "grpo": dict(
        advantage="grpo", samples_per_prompt=4, kl_in="loss", kl_estimator="k3", kl_target=0.1, kl_horizon=40.0
    ),
    "shared": dict(value="shared", value_init="reward", entropy_coef=0.01, whiten_advantages="minibatch"),
}


@pytest.mark.parametrize(
    "name", ["rloo", pytest.param("grpo", marks=pytest.mark.slow), pytest.param("shared", marks=pytest.mark.slow)]
)
def test_other_kinds_of_ppo_resume_and_write_a_plain_policy(whole, tmp_path, capsys, name):
    config = toy_config()
    config.ppo.update(OTHER_PPOS[name])
    path, again = (copy_until(whole, tmp_path / copy, "ppo", config) for copy in ("one", "two"))
    run_stage(path, "ppo", config)
    said = capsys.readouterr().out
    assert said.count("ppo: advantages by ") == 1 and said.count("docs/kl.md") == (name == "grpo")
    with pytest.raises(Stopped):
        run_stage(again, "ppo", config, before_step=stop_at(1))
    run_stage(again, "ppo", config)
    assert_same_stage(again, path, "ppo")
    rows = timeless(path / "ppo")
    assert len(rows) == 4 and rows[0]["objective/kl"] == 0.0 and rows[-1]["objective/kl_exact"] > 1e-4
    assert all(row["ppo/policy/first_approxkl"] == 0.0 for row in rows)
    assert ("ppo/val/loss" in rows[0], "ppo/val/grad_norm" in rows[0]) == (name == "shared", False)
    saved, plain = saved_arrays(path / "ppo"), saved_arrays(whole / "ppo")
    assert [x for x in saved if x.startswith("['params']")] == [x for x in plain if x.startswith("['params']")]
    assert any("['policy']['params']['scalar_kernel']" in x for x in saved) == (name == "shared")
    if name == "rloo":
        assert_gold(path, rows[0])


def assert_gold(path, row):
    """The first rollout, which is the reference's, judged again: 4 prompts, each twice, with noise of its own."""
    run = run_lib.open_run(path)
    records = run.corpus.prompts("train", "ppo")
    arrays, _ = batch_prompts(records, run.tokenizer, 64, "drop")
    chosen = Loader(arrays, 4, run.seed, name="ppo").rows(0).repeat(2)
    with jax.set_mesh(run.mesh):
        key = jax.random.fold_in(run.key("ppo", 0), 0)
        rollout = sampling.sampler(run, 8, 8)(weights.load_params(run, "sft"), take(arrays, chosen), key, 1.0)
    texts, finished = generate.texts(rollout, run.tokenizer)
    golds = [run.corpus.gold(records[arrays.index[i]], *said).total for i, *said in zip(chosen, texts, finished)]
    means = [(golds[i] + golds[i + 1]) / 2 for i in range(0, 8, 2)]
    assert row["objective/gold"] == pytest.approx(np.mean(means), abs=1e-6)
    assert row["objective/gold_sem"] == pytest.approx(
        math.sqrt(sum((x - np.mean(means)) ** 2 for x in means) / 3 / 4), abs=1e-6
    )
    assert any(texts[i] != texts[i + 1] for i in range(0, 8, 2))


@pytest.mark.parametrize("loss", [pytest.param("pooled", marks=pytest.mark.slow), "regression"])
def test_the_other_losses_of_the_reward_model_train(whole, tmp_path, loss):
    config = toy_config()
    config.reward_model.update(loss=loss, epochs=4.0)
    path = copy_until(whole, tmp_path / "run", "reward_model", config)
    run_stage(path, "reward_model", config)
    rows = timeless(path / "reward_model")
    halves = np.array_split([row["loss"] for row in rows], 2)
    assert halves[1].mean() < halves[0].mean()
    first, kwise = rows[0]["loss"], timeless(whole / "reward_model")[0]["loss"]
    assert first != kwise


@pytest.mark.slow
def test_reward_and_value_models_may_have_another_shape_than_the_policy(whole, tmp_path):
    config = toy_config()
    config.reward_model.update(model=ConfigDict(dict(num_layers=2, embed_dim=16)), init="")
    path = copy_until(whole, tmp_path / "run", "reward_model", config)
    for stage in ("reward_model", "ppo"):
        run_stage(path, stage, config)
        with run_lib.start(config, path) as run:
            run.workdir.mark_done(stage, 0.0)
    state = saved_arrays(path / "ppo")
    assert state["['state']['policy']['params']['embedding']"].shape[1] == 32
    assert state["['state']['value']['params']['layers']['wq']"].shape[:2] == (2, 16)
    assert saved_arrays(path / "reward_model")["['params']['embedding']"].shape[1] == 16
    with run_lib.start(config, path) as run:
        reward, policy = weights.load_params(run, "reward_model", "scalar"), weights.load_params(run, "sft")
        for choice, width in {"reward": 16, "random": 16, "policy": 32, "zero": 32}.items():
            run.config.ppo.value_init = choice
            value = ppo_models.value_params(run, "ppo", reward, policy)
            shapes = model.param_shapes(ppo_models.value_shape_of(run, "ppo"), "scalar")
            assert jax.tree.map(jnp.shape, value) == jax.tree.map(lambda x: x.shape, shapes)
            assert value["scalar_kernel"].shape == (width,)
            assert np.array_equal(value["embedding"], policy["embedding"]) == (width == 32)
            assert np.all(value["scalar_kernel"] == 0) == (choice == "zero")
        run.config.ppo.value = "shared"
        for choice in ("policy", "random", "zero"):
            run.config.ppo.value_init = choice
            ppo_stage.check(run, "ppo")
            head = ppo_models.value_params(run, "ppo", reward, policy)
            assert jax.tree.map(jnp.shape, head) == {"scalar_kernel": (32,), "scalar_bias": ()}
        run.config.ppo.value_init = "reward"
        with pytest.raises(InputError, match="needs a reward model of the policy's width 32, and it is 16"):
            ppo_stage.check(run, "ppo")


@pytest.mark.slow
def test_a_value_model_that_starts_as_the_policy_has_its_shape(whole, tmp_path):
    config = toy_config()
    config.ppo.value_init = "policy"
    path = copy_until(whole, tmp_path / "run", "ppo", config)
    run_stage(path, "ppo", config)
    assert saved_arrays(path / "ppo")["['state']['value']['params']['layers']['wq']"].shape[:2] == (1, 32)


def test_a_reward_model_of_another_shape_does_not_start_from_a_policy(whole, tmp_path):
    config = toy_config()
    config.reward_model.model = ConfigDict(dict(num_layers=2))
    path = copy_until(whole, tmp_path / "run", "reward_model", config)
    message = "reward_model.init='sft' does not fit reward_model.model: num_layers=1, not 2"
    with pytest.raises(InputError, match=message):
        run_stage(path, "reward_model", config)


def test_another_config_in_the_same_directory_is_refused_with_the_field(whole):
    config = toy_config()
    config.ppo.kl_coef = 0.5
    with pytest.raises(InputError, match="another config .ppo.kl_coef was 0.02 and is now 0.5"):
        pipeline.run_stages(config, whole)


@pytest.mark.parametrize("stages", [("pretrain", "sftt"), ("model",)])
def test_an_unknown_stage_is_refused_before_anything_is_written(tmp_path, stages):
    config = toy_config()
    config.stages = stages
    with pytest.raises(InputError, match=f"config.stages names '{stages[-1]}'"):
        pipeline.run_stages(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"reward_model.loss": "hinge"}, "reward_model.loss='hinge' must be 'kwise', 'pooled' or 'regression'"),
        ({"sft.microbatches": 3}, "sft.microbatches: 8 rows in 3 parts do not divide over data x fsdp = 1 devices"),
        ({"ppo.minibatch_size": 3}, "ppo.batch_size=8 must be a multiple of ppo.minibatch_size=3"),
        ({"ppo_ptx.minibatch_size": 3}, "ppo_ptx.batch_size=8 must be a multiple of ppo_ptx.minibatch_size=3"),
        ({"ppo.value_init": "sft"}, "ppo.value_init='sft' must be 'reward', 'policy', 'random' or 'zero'"),
        ({"ppo.missing_eos": "punish"}, "ppo.missing_eos='punish' must be 'replace', 'subtract' or 'none'"),
        ({"sft.select": "luck"}, "sft.select='luck' must be 'loss' or 'reward'"),
        (
            {"sft.warmup_steps": 9},
            "sft.warmup_steps=9 must be at most 8, the steps that sft.epochs=2 of 24 examples make",
        ),
        ({"sft.pretrain_mix": 0.99}, "sft.pretrain_mix=0.99 leaves no demonstration in a batch of sft.batch_size=8"),
        ({"collect.borrowed": 4}, "collect.borrowed=4 must be below collect.min_completions=4"),
        ({"collect.labeler": "me"}, "collect.labeler='me' must be 'world', 'gold' or 'reward_model'"),
        ({"data.source": "web"}, "data.source='web' must be 'world' or 'files'"),
        ({"completion_length": 30}, "prompt_length . completion_length = 94 is more than model.max_length = 80"),
    ],
)
def test_a_wrong_field_is_named(whole, tmp_path, change, message):
    config = toy_config()
    config.update_from_flattened_dict(change)
    stage = next(iter(change)).partition(".")[0]
    stage = stage if stage in STAGES else "pretrain"
    path = copy_until(whole, tmp_path / "run", stage, config)
    with pytest.raises(InputError, match=message):
        run_stage(path, stage, config)


def test_what_a_later_stage_refuses_is_said_before_the_first(tmp_path):
    config = toy_config()
    config.ppo_ptx.ptx_microbatches = 3
    with pytest.raises(InputError, match="ppo_ptx.ptx_microbatches: 8 rows in 3 parts do not divide"):
        pipeline.run_stages(config, tmp_path / "run")
    assert not list((tmp_path / "run").glob("pretrain*"))


def test_a_stage_whose_start_is_missing_says_so(whole, tmp_path):
    path = copy_until(whole, tmp_path / "run", "sft")
    (path / "pretrain" / "done.json").unlink()
    with pytest.raises(InputError, match="stage 'pretrain' is needed and not finished"):
        run_stage(path, "sft")


# ---------------------------------------------------------------------------- the loss of SFT


@pytest.fixture(scope="module")
def demonstrations(whole):
    """(model config, parameters, the first rows of the demonstrations as arrays)."""
    run = run_lib.open_run(whole)
    arrays, _ = batch_demonstrations(run.corpus.demonstrations("train"), run.tokenizer, 72, 64)
    return run.model, weights.load_params(run, "sft"), take(arrays, slice(8))


def logprobs_of(config: TransformerConfig, params, batch: Batch) -> np.ndarray:
    hidden = model.hidden_states(config, params, batch.tokens, batch.positions, batch.segment_ids)
    table = jax.nn.log_softmax(model.lm_logits(config, params, hidden))
    return np.asarray(jnp.take_along_axis(table[:, :-1], batch.tokens[:, 1:, None], axis=-1)[..., 0], np.float64)


def test_sft_loss_is_the_token_mean_over_the_batch_of_completions_alone(demonstrations):
    config, params, batch = demonstrations
    logprobs = logprobs_of(config, params, batch)
    total, count, means = 0.0, 0, []
    for row, mask in zip(logprobs, batch.loss_mask[:, 1:]):
        total, count = total - row[mask > 0].sum(), count + int(mask.sum())
        means.append(-row[mask > 0].mean())
    assert abs(np.mean(means) - total / count) > 1e-4  # rows of different lengths: the two differ
    gradients = functools.partial(train.gradients, functools.partial(token_loss.token_loss, config))
    for parts in (1, 4):
        _, loss = jax.jit(gradients, static_argnums=3)(params, batch, jax.random.key(0), parts)
        assert loss.weight == count and loss.total / loss.weight == pytest.approx(total / count, rel=1e-5)


def test_sft_loss_does_not_depend_on_prompt_labels(demonstrations, monkeypatch):
    """What is to be predicted at prompt positions is replaced; what the model reads is not."""
    config, params, batch = demonstrations
    target_logprobs = model.target_logprobs
    prompt = jnp.asarray(batch.loss_mask[:, 1:] == 0)

    def grad_and_loss():
        def mean(params):
            loss = token_loss.token_loss(config, params, batch, jax.random.key(0))
            return loss.total / loss.weight

        return jax.value_and_grad(mean)(params)

    expected = grad_and_loss()
    monkeypatch.setattr(
        model,
        "target_logprobs",
        lambda c, p, hidden, targets: target_logprobs(c, p, hidden, jnp.where(prompt, 7, targets)),
    )
    assert prompt.any()
    jax.tree.map(np.testing.assert_array_equal, grad_and_loss(), expected)


def test_a_run_of_an_older_version_is_resumed_and_read(whole, tmp_path):
    """Its config.json lacks a field that came later; at its default that is no difference, otherwise it is one."""
    path = tmp_path / "run"
    shutil.copytree(whole, path)
    older = read_json(path / "config.json")
    del older["pretrain"]["seed"], older["evaluate"]["document_rows"], older["ppo"]["lam"], older["slots"]
    older["ppo"]["sample_parts"] = 2  # before there were slots
    write_json(path / "config.json", older)
    assert run_lib.open_run(path).config.ppo.lam == 0.95
    config = toy_config()
    with run_lib.start(config, path) as run:
        assert run.done("ppo")
    write_json(path / "config.json", older)
    config.ppo.lam = 0.9
    with pytest.raises(InputError, match="ppo.lam was 0.95 and is now 0.9"):
        with run_lib.start(config, path):
            pass


def test_held_out_text_is_bounded(whole):
    with run_lib.start(toy_config(), whole) as run:
        everything = inputs.packed_documents(run, "valid", 20)[0].tokens
        assert np.array_equal(inputs.held_out_documents(run, 20).tokens, everything)
        run.config.evaluate.document_rows = 3
        some = inputs.held_out_documents(run, 20).tokens
    assert 1 < len(some) <= 3 < len(everything) and np.array_equal(some, everything[:: -(-len(everything) // 3)])


@pytest.mark.slow
def test_a_smaller_reward_model_starts_from_a_base_of_its_own_size(whole, tmp_path):
    """That base is no policy of the run: it is not evaluated as one."""
    config = toy_config()
    config.small_base = config.pretrain.copy_and_resolve_references()
    config.small_base.model.embed_dim = config.reward_model.model.embed_dim = 16
    config.reward_model.init = "small_base"
    config.stages = ("pretrain", "sft", "collect", "small_base", "reward_model")
    path = copy_until(whole, tmp_path / "run", "reward_model", config)
    pipeline.run_stages(config, path)
    assert (path / "small_base" / "done.json").exists() and not (path / "small_base" / "evaluation.json").exists()
    assert read_json(path / "sft" / "evaluation.json")["estimates"]["score"] is not None
    with run_lib.start(config, path) as run:
        assert weights.load_params(run, "reward_model", "scalar")["embedding"].shape[-1] == 16


def test_sft_is_selected_by_a_reward_model_of_its_own_run(whole, tmp_path):
    config = toy_config()
    config.sft_long = config.sft.copy_and_resolve_references()
    config.sft_long.update(select="reward", reward="reward_model", epochs=3.0)
    config.stages = (*config.stages[:4], "sft_long")
    path = copy_until(whole, tmp_path / "run", "ppo", config)
    pipeline.run_stages(config, path)
    scores = [row["valid/score"] for row in timeless(path / "sft_long") if "valid/score" in row]
    chosen = read_json(path / "sft_long" / "selection.json")
    assert len(scores) == 3 and chosen["value"] == max(scores) and chosen["by"] == "reward"
    config.sft_long.reward = ""
    with pytest.raises(InputError, match="sft_long.select='reward' needs sft_long.reward"):
        with run_lib.start(config, tmp_path / "other") as run:
            sft.check(run, "sft_long")


# ---------------------------------------------------------------------------- damage


def _cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def test_what_a_later_stage_reads_is_as_it_was_written(whole, tmp_path):
    """A file of rankings that ends too early, and parameters that are another stage's or have one other bit."""
    path = copy_until(whole, tmp_path / "cut", "reward_model")
    _cut(path / "collect" / "comparisons.train.jsonl")
    for read in (lambda: run_stage(path, "reward_model"), lambda: pipeline.run_stages(toy_config(), path)):
        with pytest.raises(InputError, match="comparisons.train.jsonl is damaged .* bytes instead of"):
            read()
    path = copy_until(whole, tmp_path / "short", "ppo")
    _cut(max((path / "pretrain" / "params").rglob("*"), key=lambda file: file.stat().st_size))
    with pytest.raises(
        InputError,
        match="pretrain/params: .* bytes instead of .*; put it back .* delete the folder .*/pretrain and start its run again",
    ):
        pipeline.run_stages(toy_config(), path)  # though ppo reads nothing of it
    path = copy_until(whole, tmp_path / "run", "ppo")
    (path / "pretrain" / "params").rename(tmp_path / "aside")
    (path / "sft" / "params").rename(path / "pretrain" / "params")
    (tmp_path / "aside").rename(path / "sft" / "params")
    biggest = max((path / "reward_model" / "params").rglob("*"), key=lambda file: file.stat().st_size)
    _flip(biggest)
    run = run_lib.open_run(path)  # as generate, chat and the export read it
    for stage, head, message in [
        ("pretrain", "lm", "manifest"),
        ("sft", "lm", "manifest"),
        ("reward_model", "scalar", biggest.name),
    ]:
        with pytest.raises(InputError, match=message):
            weights.load_params(run, stage, head)


@pytest.mark.parametrize(
    "name, text",
    [
        ("config.json", "[]"),
        ("config.json", "{}"),
        ("overrides.json", "[1]"),
        ("data_report.json", "[]"),
        ("sft/done.json", "[]"),
        ("sft/done.json", "{}"),
        ("sft/evaluation.json", "[]"),
        ("sft/evaluation.json", "{}"),
        ("reward_model/evaluation.json", "3"),
        ("sft/samples.jsonl", None),
        ("sft/skills.jsonl", None),
        ("ppo/samples.jsonl", ""),
        ("ppo/skills.jsonl", "{}\n"),
        ("sft/metrics.jsonl", '{"step": 1}\n'),
        ("ppo/metrics.jsonl", None),
    ],
)
def test_a_report_of_a_damaged_run_is_a_sentence_that_names_the_file(whole, tmp_path, name, text):
    path = tmp_path / "run"
    shutil.copytree(whole, path, ignore=shutil.ignore_patterns("params", "checkpoints"))
    (path / name).unlink() if text is None else (path / name).write_text(text)
    with pytest.raises(InputError, match=f"{path / name}"):
        pages.write(path)
