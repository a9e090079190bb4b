"""Best of n as a stage, of a policy that writes random tokens: what is kept, a pool, resuming, and other judges."""

import dataclasses
import json
import sys
import types

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from test_evaluate import CONFIG, LengthScorer, corpus, make_run, scorer, shared  # noqa: F401 (fixtures)

from rlhf_jax.config import best_of_n_config, default_config
from rlhf_jax.config import check as check_config
from rlhf_jax.evaluate import best_of_n, overoptimization, policy, run_judges
from rlhf_jax.generate import Rollout
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.progress import Stopped
from rlhf_jax.stages import best_of_n as best_of_n_stage

STAGES = ("sft", "reward_model", "other", "best", "by_other")


@pytest.fixture
def run(make_run, parameters_in_memory):  # noqa: F811
    """SFT and two reward models are finished: one likes long texts, the other short ones."""
    sections = {"other": {"kind": "reward_model"}, "best": best_of_n_config(), "by_other": best_of_n_config()}
    made = dataclasses.replace(make_run("sft", batch_size=8), config=ConfigDict(CONFIG | sections))
    made.config.stages = STAGES
    made.config.best.update(samples=4, batch_size=24, judges=("other",))
    made.config.by_other.update(samples=3, reward="other", pool="best")
    made.finished = ("sft", "reward_model", "other")

    def folder(stage):
        made.folder(stage).mkdir(exist_ok=True)
        return made.folder(stage)

    made.workdir = types.SimpleNamespace(stage=folder)
    made.load_params, made.sampler = (
        lambda stage: None,
        lambda length, rows, copies: lambda *asked: random_rollout(made, length, *asked),
    )
    records = made.corpus.prompts("test", "ppo")[: made.config.evaluate.prompts]
    prompts = run_judges.prompt_arrays(made, records)
    rollout = random_rollout(made, 6, None, prompts, made.key("sft"), 1.0)
    rows = policy.describe(made, records, prompts.index, rollout, np.zeros(len(prompts.index)))
    run_judges.judge(made, "sft", rows, 1.0)
    policy.write_rows(made.folder("sft") / "samples.jsonl", rows)
    policy.conclude(made, "sft", rows, {}, 1.0)
    return made


def random_rollout(run, length, params, prompts, key, temperature):
    """Tokens by the key alone, as a sampler gives them."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
    shape = len(prompts.tokens), length
    mask = np.arange(length) < rng.integers(1, length + 1, (shape[0], 1))
    tokens = np.where(mask, rng.integers(300, run.tokenizer.vocab_size, shape), run.tokenizer.pad_id).astype(np.int32)
    return Rollout(np.concatenate([prompts.tokens, tokens], axis=1), prompts.mask, mask, -mask.astype(np.float32))


def candidates(run, stage):
    return [row for path in sorted((run.folder(stage) / "candidates").iterdir()) for row in policy.read_rows(path)]


def contents(run, stage):
    return {path.name: path.read_bytes() for path in run.folder(stage).rglob("*") if path.is_file()}


def test_every_batch_of_samples_has_a_key_of_its_own(run):
    """Else the second sample of a prompt could be its first."""
    keys, sampler = [], run.sampler
    run.sampler = lambda *given, **named: (
        lambda *asked: keys.append(jax.random.key_data(asked[2]).tolist()) or sampler(*given, **named)(*asked)
    )
    best_of_n_stage.run_stage(run, "best")
    assert len(keys) > 2 and len({tuple(key) for key in keys}) == len(keys)


def test_what_it_leaves_and_what_another_makes_of_its_samples(run):
    for stage in ("best", "by_other"):
        best_of_n_stage.run_stage(run, stage)
        run.finished += (stage,)
    rows, ours = candidates(run, "best"), candidates(run, "by_other")
    prompts = len({row["index"] for row in rows})
    assert len(rows) == 4 * prompts and len(ours) == 3 * prompts and prompts > 8
    taken = [row for place, row in enumerate(rows) if place % 4 < 3]  # three of the four of each prompt
    assert [row["completion"] for row in ours] == [row["completion"] for row in taken]
    assert all(row["score"] == -other["score"] for row, other in zip(ours, taken))
    assert len({row["completion"] for row in rows}) > prompts  # each sample has noise of its own

    for stage, own, _chooses in (("best", rows, max), ("by_other", ours, min)):
        count = run.config[stage].samples
        by_prompt = {}
        for row in own:
            by_prompt.setdefault(row["index"], []).append(
                row["scores"]["other" if stage == "by_other" else "reward_model"]
            )
        evaluation = json.loads((run.folder(stage) / "evaluation.json").read_text())
        estimates, points = evaluation["estimates"], evaluation["curve"]
        chosen = policy.read_rows(run.folder(stage) / "samples.jsonl")
        assert [row["scores"][run.config[stage].reward] for row in chosen] == [
            max(by_prompt[row["index"]]) for row in chosen
        ]
        assert [point["n"] for point in points] == list(range(1, count + 1))
        assert estimates["kl"]["value"] == pytest.approx(np.log(count) - 1 + 1 / count)
        assert estimates["score"] == estimates["score/reward_model"]  # all compare by the first
        assert estimates["score/other"]["value"] == pytest.approx(-estimates["score"]["value"])
        assert points[-1]["score"]["value"] == pytest.approx(estimates[f"score/{run.config[stage].reward}"]["value"])
        assert points[-1]["gold"]["value"] == pytest.approx(estimates["gold/total"]["value"])
        assert estimates["win_rate"] is not None and evaluation["reference"] == "sft"
        plain = policy.read_rows(run.folder(stage) / "curve.jsonl")
        assert plain[-1]["gold_gain"] == pytest.approx(points[-1]["gold"]["value"] - points[0]["gold"]["value"])
        assert plain[0]["kl"] == plain[0]["score_gain"] == 0
        by_prompt = policy.read_rows(run.folder(stage) / "by_prompt.jsonl")
        assert len(by_prompt) == prompts and by_prompt[0]["n"] == list(range(1, count + 1))
        for judge in ("score", "gold"):
            mean = np.mean([row[judge] for row in by_prompt], axis=0)
            np.testing.assert_allclose(mean, [point[judge]["value"] for point in points])
        law = overoptimization.fit(*overoptimization.gains(points, "score"))
        assert evaluation["law"]["score"]["alpha"] == pytest.approx(law.alpha)
        assert evaluation["deviation"]["score"] == pytest.approx(np.std([row["score"] for row in own]))
    points = json.loads((run.folder("best") / "best_of_n.json").read_text())["curve"]
    assert points[-1]["score/other"]["value"] == pytest.approx(
        -points[-1]["score"]["value"]
    )  # the judge's opposite view


@pytest.mark.parametrize("samples, size, copies", [(4, 24, 4), (6, 8, 2), (3, 8, 1), (12, 8, 4)])
def test_samples_that_share_the_reading_of_their_prompt_have_one(run, samples, size, copies):
    """In all batches, also those that begin within a prompt's samples, and the last one, which is filled up."""
    asked, sampler = [], run.sampler
    run.config.best.update(samples=samples, batch_size=size)

    def watched(length, rows, copies):
        draw = sampler(length, rows, copies)
        return lambda params, prompts, *given: asked.append((copies, prompts.tokens)) or draw(params, prompts, *given)

    run.sampler = watched
    best_of_n_stage.run_stage(run, "best")
    for found, tokens in asked:
        assert found == copies and len(tokens) == size
        np.testing.assert_array_equal(tokens, np.repeat(tokens[::copies], copies, axis=0))
    rows = candidates(run, "best")
    assert [row["index"] for row in rows] == np.repeat(sorted({row["index"] for row in rows}), samples).tolist()


def test_samples_in_the_order_of_an_older_version(run):
    """A whole pool of them is used; a stage that was stopped among them does not go on."""
    best_of_n_stage.run_stage(run, "best")
    folder = run.folder("best") / "candidates"
    rows = candidates(run, "best")
    older = [row for number in range(4) for row in rows[number::4]]  # one sample of every prompt after another
    for number, path in enumerate(sorted(folder.iterdir())):
        policy.write_rows(path, older[24 * number : 24 * number + 24])
    with pytest.raises(InputError, match="0000.jsonl has samples of other prompts, .*: remove .*candidates"):
        best_of_n_stage.run_stage(run, "best")
    best_of_n_stage.run_stage(run, "by_other")
    assert [row["completion"] for row in candidates(run, "by_other")] == [
        row["completion"] for place, row in enumerate(rows) if place % 4 < 3
    ]


def test_stopped_it_goes_on_with_the_samples_that_are_there(run):
    best_of_n_stage.run_stage(run, "best")
    whole = contents(run, "best")
    for path in run.folder("best").rglob("*.json*"):
        path.unlink()
    run.interrupt.requested = 2
    with pytest.raises(Stopped, match="best step 1"):
        best_of_n_stage.run_stage(run, "best")
    assert {name: data for name, data in contents(run, "best").items()} == {"0000.jsonl": whole["0000.jsonl"]}
    run.interrupt.requested = 0
    before = (run.folder("best") / "candidates" / "0000.jsonl").stat().st_mtime_ns
    best_of_n_stage.run_stage(run, "best")
    assert contents(run, "best") == whole
    assert (run.folder("best") / "candidates" / "0000.jsonl").stat().st_mtime_ns == before


def test_under_other_judges_it_is_judged_anew_and_keeps_its_curve(run):
    """As where an arm of a sweep adopts it: scores and KL are forgotten, and come back."""
    from rlhf_jax.sweep import store

    best_of_n_stage.run_stage(run, "best")
    before = json.loads((run.folder("best") / "evaluation.json").read_text())
    store._forget_judges(run.folder("best"))
    forgotten = json.loads((run.folder("best") / "evaluation.json").read_text())["estimates"]
    assert forgotten["kl"] is forgotten["score"] is None and "score/other" not in forgotten
    run.finished += ("best",)
    policy.rescore(run)
    assert json.loads((run.folder("best") / "evaluation.json").read_text()) == before


def test_forgetting_judges_keeps_completions_with_other_separators(run):
    from rlhf_jax.sweep import store

    best_of_n_stage.run_stage(run, "best")
    path = run.folder("best") / "samples.jsonl"
    rows = [row | {"completion": f"{row['completion']}\u2028\x85"} for row in policy.read_rows(path)]
    policy.write_rows(path, rows)
    store._forget_judges(run.folder("best"))
    assert [row["completion"] for row in policy.read_rows(path)] == [row["completion"] for row in rows]


def test_the_first_prompts_are_sampled_and_compared_with_the_same_of_the_reference(run):
    best_of_n_stage.run_stage(run, "best")
    everything = candidates(run, "best")
    for path in run.folder("best").rglob("*.json*"):
        path.unlink()
    run.config.best.prompts = 6  # a batch has 6 prompts, 4 samples of each
    best_of_n_stage.run_stage(run, "best")
    assert candidates(run, "best") == everything[: 6 * 4]
    evaluation = json.loads((run.folder("best") / "evaluation.json").read_text())
    assert evaluation["prompts"] == 6 < len(policy.read_rows(run.folder("sft") / "samples.jsonl"))
    assert evaluation["estimates"]["win_rate"] is not None


def test_of_another_policy_than_the_reference_no_kl_to_it_is_claimed(run):
    run.config.best.init, run.finished = "ppo", (*run.finished, "ppo")
    run.config.stages = (*STAGES, "ppo")
    best_of_n_stage.run_stage(run, "best")
    evaluation = json.loads((run.folder("best") / "evaluation.json").read_text())
    assert evaluation["estimates"]["kl"] is None and evaluation["curve"][-1]["kl"] == pytest.approx(best_of_n.kl(4))
    run.finished += ("best",)
    time = (run.folder("best") / "evaluation.json").stat().st_mtime_ns
    policy.rescore(run)  # nothing is missing that could be known
    assert (run.folder("best") / "evaluation.json").stat().st_mtime_ns == time


@pytest.mark.parametrize(
    "change, message",
    [
        ({"by_other.pool": "sft"}, "by_other.pool='sft' must name a best_of_n stage"),
        ({"by_other.samples": 6}, "and by_other.samples of at most 4"),
        ({"by_other.init": "ppo"}, "by_other.pool=.* needs the same init, temperature and prompts"),
        ({"by_other.prompts": 3}, "by_other.pool=.* needs the same init, temperature and prompts"),
    ],
)
def test_a_wrong_field_is_named(run, change, message):
    run.config.update_from_flattened_dict(change)
    with pytest.raises(InputError, match=message):
        best_of_n_stage.check(run, next(iter(change)).partition(".")[0])


def test_functions_choose_and_judge_and_two_of_one_name_are_told_apart(run, monkeypatch):
    module, asked = types.ModuleType("told"), []

    def near(texts, prompts, rows, size=0):
        asked.extend(zip(prompts, (row["id"] for row in rows)))
        return [-abs(len(text) - size) for text in texts]

    module.near = near
    monkeypatch.setitem(sys.modules, "told", module)
    judges = {"other": None, "told:near(size=9)": 9, "few=told:near(size=1)": 1}
    run.config.best.update(reward="told:near", judges=tuple(judges))
    best_of_n_stage.run_stage(run, "best")
    rows, chosen = candidates(run, "best"), policy.read_rows(run.folder("best") / "samples.jsonl")
    records = run.corpus.prompts("test", "ppo")
    assert {(records[row["index"]].prompt, records[row["index"]].row["id"]) for row in rows} == set(asked)
    shortest = {}
    for row in rows:
        size = len(row["completion"])
        assert row["score"] == -size
        shortest[row["index"]] = min(size, shortest.get(row["index"], size))
    for row in chosen:
        size = len(row["completion"])
        assert size == shortest[row["index"]]
        scores = {"near": 0, "told:near(size=9)": 9, "few": 1}
        assert {name: row["scores"][name] for name in scores} == {n: -abs(size - s) for n, s in scores.items()}
    estimates = json.loads((run.folder("best") / "evaluation.json").read_text())["estimates"]
    for name in ("near", "told:near(size=9)", "few", "other"):
        mean = np.mean([row["scores"][name] for row in chosen])
        assert estimates[f"score/{name}"]["value"] == pytest.approx(mean), name


@pytest.mark.parametrize("field, text", [("best.reward", "told:near(9)"), ("best.judges", ["told:near("])])
def test_a_reward_of_another_form_is_refused_by_name(field, text):
    config = default_config()
    with config.unlocked():
        config.best = best_of_n_config()
        config.stages = ("pretrain", "sft", "best")
    config.update_from_flattened_dict({field: text if isinstance(text, str) else tuple(text)})
    with pytest.raises(InputError, match=f"{field}=.* must be .*module:function"):
        check_config(config)
