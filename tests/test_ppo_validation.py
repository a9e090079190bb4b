"""What is looked at while PPO trains: it changes nothing, says the truth, survives a stop, and can end a stage."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from compare import assert_same_stage, saved_arrays, timeless

from rlhf_jax import generate, sampling, weights
from rlhf_jax import run as run_lib
from rlhf_jax.data.text_batches import batch_prompts
from rlhf_jax.evaluate import skills
from rlhf_jax.evaluate.answers import EvaluationPrograms, completion_logprob
from rlhf_jax.evaluate.scorer import Scorer
from rlhf_jax.fields import registry
from rlhf_jax.generate import Rollout
from rlhf_jax.ppo import Experience
from rlhf_jax.ppo.watch import most_common, watch
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.progress import Stopped

BEFORE = ("pretrain", "sft", "collect", "reward_model")


def config_of(**changes):
    """The toy pipeline up to PPO, with fields of PPO changed; its reward has a function beside the reward model."""
    config = toy.get_config()
    config.stages = (*BEFORE, "ppo")
    config.ppo.update(
        reward="reward_model, short=rlhf_jax.rewards:length(limit=4)", samples_every=0, validate_every=0, iterations=6
    )
    config.ppo.update(changes)
    return config


@pytest.fixture(scope="module")
def base(one_device, tmp_path_factory):
    """A run that has finished what comes before PPO."""
    path = tmp_path_factory.mktemp("runs") / "base"
    with run_lib.start(config_of(), path) as run:
        for stage in BEFORE:
            registry.of(run.config, stage).run(run, stage)
            run.mark_done(stage, 0.0)
    return path


def train(base, path, stop_at=None, **changes):
    """Runs PPO with other fields in a copy of the run, and stops before an iteration if asked; returns its folder."""
    if not path.exists():
        shutil.copytree(base, path, ignore=shutil.ignore_patterns("config.json", "ppo"))
    with run_lib.start(config_of(**changes), path) as run:
        if run.done("ppo"):
            return path / "ppo"
        key = run.key

        def watched(*names):
            if names == ("ppo", stop_at):
                run.interrupt.requested = True
            return key(*names)

        run.key = watched
        facts = registry.of(run.config, "ppo").run(run, "ppo")
        run.mark_done("ppo", 0.0, **facts)
    return path / "ppo"


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


ALL = {"validate_every": 2, "samples_every": 1, "samples_kept": 3}


@pytest.fixture(scope="module")
def watched(base, tmp_path_factory):
    """PPO that is looked at after every iteration, and validated after every second."""
    return train(base, tmp_path_factory.mktemp("runs") / "watched", **ALL)


def test_looking_changes_nothing(base, watched, tmp_path):
    plain = train(base, tmp_path / "plain", samples_kept=0)
    rows = [{name: x for name, x in row.items() if not name.startswith("valid/")} for row in timeless(watched)]
    assert rows == timeless(plain)
    assert not (plain / "training_samples.jsonl").exists()
    ours, theirs = saved_arrays(watched), saved_arrays(plain)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], name)


def test_what_was_looked_at_survives_a_stop(base, watched, tmp_path):
    path = tmp_path / "again"
    with pytest.raises(Stopped):
        train(base, path, stop_at=3, **ALL)  # the last checkpoint is that of the stop
    assert {row["step"] for row in rows_of(path / "ppo" / "training_samples.jsonl")} == {1, 2, 3, 4}
    with open(path / "ppo" / "training_samples.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 5, "of": "highest"}\n{"step": 5, "of": "low')  # killed while it wrote the next iteration
    train(base, path, **ALL)
    assert_same_stage(path, watched.parent, "ppo")
    samples = [rows_of(folder / "training_samples.jsonl") for folder in (path / "ppo", watched)]
    assert samples[0] == samples[1]


def test_the_rows_are_the_same_prompts_and_the_extremes_of_each_iteration(watched):
    rows, metrics = rows_of(watched / "training_samples.jsonl"), timeless(watched)
    for step in range(1, 7):
        own = [row for row in rows if row["step"] == step]
        assert [row["of"] for row in own] == ["validation"] * 3 + ["highest", "lowest"]
        assert [row["index"] for row in own[:3]] == [row["index"] for row in rows[:3]]
        assert own[3]["score"] >= metrics[step - 1]["objective/scores"] >= own[4]["score"]
        for row in own:
            total = row["scores"]["reward_model"] + row["scores"]["short"]
            np.testing.assert_allclose(row["raw_score"], total, atol=1e-5)
            assert row["score"] == pytest.approx(row["raw_score"] if row["finished"] else -1.0)
    assert all(abs(row["kl"]) < 1e-4 for row in rows if row["step"] == 1 and row["of"] != "validation")


@pytest.mark.parametrize("output, averaged", [("ema", True), ("params", False)])
def test_a_validation_says_what_its_policy_is_worth(base, tmp_path, output, averaged):
    """The greedy completions of the weights that are handed on, with scores and KL computed apart."""
    path = train(base, tmp_path / "run", output=output, validate_every=6, samples_kept=8, samples_temperature=0.0)
    last = timeless(path)[-1]
    rows = [row for row in rows_of(path / "training_samples.jsonl") if row["of"] == "validation"]
    run = run_lib.open_run(path.parent)
    policy = weights.load_params(run, "ppo")
    records = run.corpus.prompts("valid", "ppo")
    prompts = [records[row["index"]] for row in rows]
    arrays, _ = batch_prompts(prompts, run.tokenizer, run.config.prompt_length, run.config.too_long)
    rollout = sampling.sampler(run, run.config.completion_length, 8)(policy, arrays, jax.random.key(9), temperature=0.0)
    texts, finished = generate.texts(rollout, run.tokenizer)
    assert [row["completion"] for row in rows] == texts
    scores = Scorer(run, "reward_model")(prompts, texts, finished, generate.sampled(rollout))
    np.testing.assert_allclose([row["scores"]["reward_model"] for row in rows], scores, atol=1e-5)
    reference = weights.load_params(run, "sft")
    kl = completion_logprob(run.model, policy, rollout, 1.0) - completion_logprob(run.model, reference, rollout, 1.0)
    np.testing.assert_allclose([row["kl"] for row in rows], kl, atol=1e-4)
    gold = [run.corpus.gold(*said).total for said in zip(prompts, texts, finished)]
    losses = [EvaluationPrograms(run).losses(policy, batch) for batch in skills.documents(run)]
    with_errors = {
        "score": [row["score"] for row in rows],
        "scores/reward_model": scores,
        "scores/short": [row["scores"]["short"] for row in rows],
        "gold": gold,
    }
    errors = {
        name.replace("scores", "scores_sem") if "/" in name else f"{name}_sem": x for name, x in with_errors.items()
    }
    expected = {name: np.mean(values) for name, values in with_errors.items()}
    expected |= {name: np.std(values, ddof=1) / np.sqrt(8) for name, values in errors.items()}
    expected |= {
        "kl": np.mean(kl),
        "completion_length": np.mean([len(tokens) for tokens in generate.sampled(rollout)]),
        "eos": np.mean(finished),
        "ptx_loss": skills.valid_loss(run, losses).value,
    }
    found = {name.removeprefix("valid/"): value for name, value in last.items() if name.startswith("valid/")}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-4, err_msg=name)


def test_a_judge_that_is_not_trained_against_scores_validations(base, tmp_path):
    changes = {"validate_every": 3, "judges": ("wordy=rlhf_jax.rewards:length(limit=1)",)}
    path = train(base, tmp_path / "run", **changes, best_by="valid/scores/wordy", output="best")
    rows = timeless(path)
    values = {row["step"]: row["valid/scores/wordy"] for row in rows if "valid/scores/wordy" in row}
    assert list(values) == [3, 6] and "objective/scores/wordy" not in rows[-1]
    chosen = json.loads((path / "selection.json").read_text())
    assert chosen["value"] == max(values.values()) == values[chosen["step"]]


def test_the_best_weights_are_those_of_their_iteration(base, tmp_path):
    path = train(base, tmp_path / "best", output="best", validate_every=1, best_by="valid/kl")
    values = [row["valid/kl"] for row in timeless(path)]
    step = json.loads((path / "selection.json").read_text())["step"]
    assert values[step - 1] == min(values) and step < 6
    short = train(base, tmp_path / "short", iterations=step)
    ours, theirs = (weights.load_params(run_lib.open_run(folder.parent), "ppo") for folder in (path, short))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    others = path / "samples.ema.jsonl"
    assert (
        others.exists() and not (path / "samples.params.jsonl").exists()
    )  # the last average is compared with the best


def test_a_stop_rule_ends_the_stage_for_good(base, tmp_path, capsys):
    changes = {"validate_every": 3, "stop_kl": 1e-9, "samples_temperature": 0.0}
    path = train(base, tmp_path / "run", **changes)
    said = json.loads((path / "done.json").read_text())["stopped"]
    assert len(timeless(path)) == 3 and (path / "checkpoints" / "3").is_dir()
    assert said.startswith("ended after iteration 3 of 6: its KL on validation prompts, ") and "stop_kl=1e-09" in said
    assert f"ppo: {said}" in capsys.readouterr().out
    before = saved_arrays(path)
    for name in ("done.json", "params"):  # killed after the last checkpoint, before the stage was finished
        shutil.rmtree(path / name) if (path / name).is_dir() else (path / name).unlink()
    train(base, tmp_path / "run", **changes)
    assert json.loads((path / "done.json").read_text())["stopped"] == said and len(timeless(path)) == 3
    for name, value in saved_arrays(path).items():
        np.testing.assert_array_equal(value, before[name], name)


def test_patience_ends_the_stage_without_a_new_best(base, tmp_path):
    path = train(base, tmp_path / "run", validate_every=1, stop_patience=2, best_by="valid/kl", iterations=50)
    values = [row["valid/kl"] for row in timeless(path)]
    best = values.index(min(values))
    assert len(values) == best + 3 < 50
    assert "not better in the 2 validations since" in json.loads((path / "done.json").read_text())["stopped"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"output": "best"}, "output='best', stop_kl and stop_patience go by validations: set ppo.validate_every"),
        ({"stop_patience": 2}, "set ppo.validate_every to the number of iterations"),
        ({"validate_every": 2, "best_by": "valid/scores/other"}, "best_by='valid/scores/other' is no metric of its"),
    ],
)
def test_rules_without_validations_are_refused(base, changes, message):
    run = run_lib.open_run(base)
    run.config.ppo.update(config_of(**changes).ppo)
    with pytest.raises(InputError, match=message):
        registry.of(run.config, "ppo").check(run, "ppo")


# ---------------------------------------------------------------------------- the program


@pytest.mark.parametrize("seed", range(5))
def test_the_program_agrees_with_a_loop(seed):
    rng = np.random.default_rng(seed)
    rows, length = 12, 5
    tokens = rng.integers(0, 2, (rows, 2 + length)).astype(np.int32)
    lengths = rng.integers(1, length + 1, rows)
    mask = np.arange(length) < lengths[:, None]
    scores = rng.integers(-2, 3, rows).astype(np.float32)
    logprobs, ref = (rng.normal(size=(rows, length)).astype(np.float32) for _ in range(2))
    rollout = Rollout(tokens, np.ones((rows, 2), bool), mask, np.where(mask, logprobs, 0.0))
    experience = Experience(rollout, logprobs, ref, None, None, None, None, scores, scores + 1, {"a": scores * 2})
    metrics, looked = jax.jit(watch)(jax.tree.map(jnp.asarray, experience))
    said = [tuple(row[2 : 2 + n]) for row, n in zip(tokens, lengths)]
    assert metrics["watch/most_common"] == pytest.approx(max(said.count(one) for one in said) / rows)
    expected = np.corrcoef(lengths, scores)[0, 1]
    assert metrics["watch/length_score_correlation"] == pytest.approx(expected, abs=1e-5)
    for place, row in enumerate((scores.argmax(), scores.argmin())):
        assert looked.row[place] == row and looked.score[place] == scores[row]
        assert looked.raw_score[place] == scores[row] + 1 and looked.scores["a"][place] == 2 * scores[row]
        kl = np.sum((logprobs - ref)[row, : lengths[row]])
        np.testing.assert_allclose(looked.kl[place], kl, atol=1e-5)
        np.testing.assert_array_equal(looked.rollout.tokens[place], tokens[row])


def test_equal_completions_are_counted_whatever_follows_them():
    tokens = np.array([[5, 7, 1], [5, 7, 9], [5, 7, 4], [7, 5, 9], [5, 0, 0], [5, 7, 1]])
    mask = np.array([[1, 1, 0], [1, 1, 0], [1, 1, 0], [1, 1, 0], [1, 0, 0], [1, 1, 1]], bool)
    assert most_common(jnp.asarray(tokens), jnp.asarray(mask)) == pytest.approx(3 / 6)
    assert most_common(jnp.zeros((3, 2), int), jnp.ones((3, 2), bool)) == 1.0
    padded = jnp.array([[0, 0], [0, 0], [0, 3]])  # a token 0 is not the same as none
    assert most_common(padded, jnp.array([[True, False], [True, True], [True, False]])) == pytest.approx(2 / 3)


def test_what_is_looked_at_may_change_within_a_run(base, watched):
    changed = ALL | {"samples_every": 3, "samples_kept": 1}
    train(base, watched.parent, **changed)  # PPO is finished, and stays so
    with pytest.raises(InputError, match="ppo.validate_every was 2 and is now 3"):
        train(base, watched.parent, **ALL | {"validate_every": 3})


@pytest.mark.parametrize("metric", ["valid/scores/short", "valid/ptx_loss", "valid/gold"])
def test_each_metric_of_a_validation_may_decide(base, metric):
    run = run_lib.open_run(base)
    run.config.ppo.update(config_of(validate_every=2, best_by=metric).ppo)
    registry.of(run.config, "ppo").check(run, "ppo")
