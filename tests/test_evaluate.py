"""Skills and policies: every estimate on a tiny model against a plain computation."""

import dataclasses
import functools
import json

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
import toy
from ml_collections import ConfigDict

from rlhf_jax import generate, model, ppo, run, sampling, sharding, statistics, weights
from rlhf_jax.data import loader
from rlhf_jax.data.corpus import FileCorpus
from rlhf_jax.data.records import Prompt
from rlhf_jax.data.template import Template
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.evaluate import answers as programs
from rlhf_jax.evaluate import policy, run_judges, skills
from rlhf_jax.evaluate import scorer as scorer_lib
from rlhf_jax.model import TransformerConfig
from rlhf_jax.runtime import hosts, progress
from rlhf_jax.stages import best_of_n as best_of_n_stage
from rlhf_jax.stages import collect
from rlhf_jax.stages import ppo as ppo_stage
from rlhf_jax.world.corpus import WorldCorpus

CONFIG = {
    "seed": 3,
    "stages": ("pretrain", "sft", "reward_model", "ppo"),
    "prompt_length": 48,
    "completion_length": 6,
    "too_long": "drop",
    "long_completions": "cut",
    "pretrain": {"kind": "pretrain"},
    "sft": {"kind": "sft"},
    "ppo": {"kind": "ppo"},
    "reward_model": {"kind": "reward_model"},
    "evaluate": {
        "prompts": 20,
        "batch_size": 8,
        "temperature": 1.0,
        "skill_items": 3,
        "skill_prompt_length": 64,
        "skill_completion_length": 4,
        "demonstrations": 0,
        "document_rows": 0,
    },
}
WORLD = {
    "seed": 0,
    "documents": 20,
    "valid_documents": 12,
    "demonstrations": 4,
    "valid_demonstrations": 4,
    "rm_prompts": 4,
    "ppo_prompts": 4,
    "valid_prompts": 4,
    "test_prompts": 24,
    "test_kinds": "known",
}


class MemoryRun(run.Run):
    """A run whose finished stages are random parameters in memory."""

    def done(self, stage):
        return stage in self.finished

    def load_params(self, stage, head="lm"):
        return _init(self.model, jax.random.key(self.config.stages.index(stage)))


_init = jax.jit(model.init_params, static_argnums=0)
_init_scalar = jax.jit(functools.partial(model.init_params, head="scalar"), static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def _logits(shape, params, ids, mask):
    hidden = model.masked_hidden_states(shape, params, ids, mask)
    return model.lm_logits(shape, params, hidden)


def logprobs(run, stage, ids, temperature=1.0):
    """log p f64[T, V] of the next token after each of `ids`, by one padded forward pass."""
    padded = np.zeros((1, 68), np.int32)
    padded[0, : len(ids)] = ids
    mask = np.arange(68)[None] < len(ids)
    logits = _logits(run.model, weights.load_params(run, stage), padded, mask)
    logits = np.asarray(logits, np.float64)[0, : len(ids)] / temperature
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.fixture(scope="module")
def corpus():
    return WorldCorpus(ConfigDict(WORLD), Template(), skill_items=3)


@pytest.fixture(scope="module")
def shared(corpus):
    """What costs time to make: tokenizer, model and mesh."""
    tokenizer = Tokenizer.train([text.text for text in corpus.documents("train")], 400)
    shape = TransformerConfig(
        tokenizer.vocab_size, num_layers=1, embed_dim=16, num_heads=2, max_length=68, init_std=0.5
    )
    return dict(tokenizer=tokenizer, model=shape, mesh=sharding.make_mesh(devices=jax.devices()[:2]))


@pytest.fixture
def make_run(tmp_path, shared, corpus):
    def make(*finished, corpus=corpus, **overrides):
        config = ConfigDict(CONFIG)
        config.evaluate.update(overrides)
        found = MemoryRun(
            config=config,
            path=tmp_path,
            rules=sharding.DEFAULT_RULES,
            template=Template(),
            corpus=corpus,
            interrupt=progress.Interrupt(),
            **shared,
        )
        found.finished = finished
        for stage in CONFIG["stages"]:
            (tmp_path / stage).mkdir(exist_ok=True)
        return found

    return make


def answers(run, params):
    return programs.ask(run, programs.EvaluationPrograms(run), params, policy.questions(run))


def samples(run, params):
    return policy.sample_rows(run, answers(run, params).samples)


class LengthScorer:
    """Stands for the reward model: the length of the text, and of the prompt it was given."""

    def __init__(self, run, stage=None, **_):
        self.sign = -1 if stage == "other" else 1

    def __call__(self, prompts, completions, finished, sampled=None):
        assert all(isinstance(prompt, Prompt) for prompt in prompts)
        return self.sign * np.float32(
            [
                len(prompt.prompt) + len(completion) / 100 - ended
                for prompt, completion, ended in zip(prompts, completions, finished)
            ]
        )


REAL_SCORER = scorer_lib.Scorer


@pytest.fixture(autouse=True)
def scorer(monkeypatch, parameters_in_memory):
    monkeypatch.setattr(scorer_lib, "Scorer", LengthScorer)


# --- skills -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, answer, f1, exact",
    [
        ("mira", "mira", 1, 1),
        ("The  Mira .", "mira", 1, 1),  # articles, case, punctuation and spaces do not count
        ("the old red house", "red house", 0.8, 0),
        ("red red", "red house", 0.5, 0),  # a word counts as often as it stands on both sides
        ("blue", "red", 0, 0),
        ("", "red", 0, 0),
        ("the", "", 1, 1),
        ("9 .5", "9.5", 0, 0),
    ],
)
def test_scores_are_squads(given, answer, f1, exact):
    assert skills.token_f1(given, answer) == pytest.approx(f1)
    assert skills.exact_match(given, answer) == exact


@hypothesis.given(st.text(), st.text())
def test_f1_is_symmetric_and_1_on_itself(first, second):
    assert skills.token_f1(first, second) == skills.token_f1(second, first)
    assert skills.token_f1(first, first) == 1
    assert 0 <= skills.token_f1(first, second) <= 1
    assert skills.exact_match(first, second) <= skills.token_f1(first, second)


def test_answer_is_the_first_line():
    assert skills.first_line(" mira \nquestion : who ?") == "mira"
    assert skills.first_line("\n mira") == ""


def test_mean_weighs_tasks_alike_whatever_their_sizes():
    rows = [{"task": "closed_qa", "score": 1.0}] * 6 + [{"task": "arithmetic", "score": 0.0}] * 2
    found = skills.summarize(rows)
    assert found["skills/closed_qa"].value == 1 and found["skills/arithmetic"].value == 0
    assert found["skills/mean"].value == pytest.approx(0.5)
    assert skills.summarize([]) == {}


def test_few_shot_completes_every_item_greedily(make_run):
    run = make_run("sft")
    rows = skills.few_shot(run, answers(run, weights.load_params(run, "sft")).skills)
    assert [row["task"] for row in rows] == ["closed_qa"] * 3 + ["translation"] * 3 + ["arithmetic"] * 3
    assert run.corpus.skills() is run.corpus.skills()  # drawn once for all policies
    item = run.corpus.skills()["arithmetic"][0]
    assert rows[6]["prompt"] == item["prompt"] and rows[6]["answer"] == item["answer"]
    tokens = run.tokenizer.encode(item["prompt"])[-64:]
    written = []
    for _ in range(4):  # without cache and padding
        written.append(int(np.argmax(logprobs(run, "sft", tokens + written)[-1])))
        if written[-1] == run.tokenizer.eos_id:
            break
    assert rows[6]["given"] == skills.first_line(run.tokenizer.decode(written, continues=True))


def test_valid_loss_is_the_mean_over_tokens(make_run):
    run = make_run("sft")
    found = skills.valid_loss(run, answers(run, weights.load_params(run, "sft")).documents)
    lines = [
        ids
        for document in run.corpus.documents("valid")
        for ids in [run.tokenizer.encode(document.text) + [run.tokenizer.eos_id]]
    ]
    stream = [(token, start) for ids in lines for token, start in zip(ids, [True] + [False] * 999)]
    total = count = 0
    for begin in range(0, len(stream), 48 + 6):  # rows cut documents in two
        row = stream[begin : begin + 48 + 6]
        starts = [i for i, (_, start) in enumerate(row) if start or i == 0] + [len(row)]
        for first, last in zip(starts, starts[1:]):
            ids = [token for token, _ in row[first:last]]
            table = logprobs(run, "sft", ids)
            total -= sum(table[t - 1, ids[t]] for t in range(1, len(ids)))
            count += len(ids) - 1
    assert found.value == pytest.approx(total / count, rel=1e-5)
    assert found.low < found.value < found.high


# --- policies ---------------------------------------------------------------------------------


def test_evaluation_holds_what_plain_means_give(make_run):
    run = make_run("pretrain", "sft", "reward_model", "ppo")
    policy.evaluate_policy(run, "sft")
    evaluation = policy.evaluate_policy(run, "ppo")
    assert evaluation == json.loads((run.folder("ppo") / "evaluation.json").read_text())
    rows = policy.read_rows(run.folder("ppo") / "samples.jsonl")
    rivals = policy.read_rows(run.folder("sft") / "samples.jsonl")
    assert evaluation["prompts"] == len(rows) > 8 and evaluation["reference"] == "sft"
    assert [row["index"] for row in rows] == [row["index"] for row in rivals]
    prompts = run.corpus.prompts("test", "ppo")
    for row in rows:
        prompt = prompts[row["index"]]
        assert row["prompt"] == prompt.prompt and row["category"] == prompt.row["category"]
        gold = run.corpus.gold(prompt, row["completion"], row["finished"])
        assert row["gold"] == gold._asdict()
        assert row["score"] == LengthScorer(run)([prompt], [row["completion"]], [row["finished"]])
        assert row["length"] == len(row["tokens"]) <= 6
        assert row["finished"] == (row["tokens"][-1] == run.tokenizer.eos_id)
    estimates = {name: value["value"] for name, value in evaluation["estimates"].items()}
    totals = [row["gold"]["total"] for row in rows]
    assert estimates["gold/total"] == pytest.approx(np.mean(totals))
    assert estimates["gold/honest"] == pytest.approx(np.mean([r["gold"]["honest"] for r in rows]))
    assert estimates["score"] == pytest.approx(np.mean([row["score"] for row in rows]))
    assert estimates["kl"] == pytest.approx(np.mean([row["kl"] for row in rows]))
    assert estimates["completion_length"] == np.mean([row["length"] for row in rows])
    assert estimates["eos"] == np.mean([row["finished"] for row in rows])
    wins = [np.sign(row["gold"]["total"] - rival["gold"]["total"]) / 2 + 0.5 for row, rival in zip(rows, rivals)]
    assert estimates["win_rate"] == pytest.approx(np.mean(wins))
    assert {"skills/mean", "skills/translation", "valid_loss"} <= estimates.keys()
    categories = evaluation["categories"]
    assert sum(entry["count"] for entry in categories.values()) == len(rows)
    chat = [row["gold"]["total"] for row in rows if row["category"] == "chat"]
    assert categories["chat"]["gold"]["value"] == pytest.approx(np.mean(chat))


def test_everyone_scores_the_tokens_that_were_sampled_as_ppo_does(make_run, monkeypatch):
    """An untrained model spells most texts unlike the tokenizer."""
    run = make_run("sft", "reward_model")
    policy_params, reward = weights.load_params(run, "sft"), _init_scalar(run.model, jax.random.key(5))
    monkeypatch.setattr(run, "load_params", lambda stage, head="lm": {"lm": policy_params, "scalar": reward}[head])
    monkeypatch.setattr(scorer_lib, "Scorer", REAL_SCORER)
    monkeypatch.setattr(scorer_lib, "_BATCH_TOKENS", 512)
    records = run.corpus.prompts("valid", "ppo")
    prompts = loader.take(run_judges.prompt_arrays(run, records), np.arange(8) % 4)  # each prompt twice
    rollout = hosts.fetch(sampling.sampler(run, 6, 8)(policy_params, prompts, run.key("select", 0), 1.0))
    asked = np.asarray(jax.jit(ppo.SequenceScore(run.model))(reward, rollout))  # PPO's reward

    rows = policy.describe(run, records, prompts.index, rollout, np.zeros(8))
    spelled = run.tokenizer.encode_batch([row["completion"] for row in rows], continues=True)
    assert (
        sum(list(ids) != row["tokens"][: len(row["tokens"]) - row["finished"]] for ids, row in zip(spelled, rows)) > 5
    )
    scorer = REAL_SCORER(run, "reward_model")
    best_of_n_stage._score(records, rows, {"reward_model": scorer})
    np.testing.assert_allclose([row["scores"]["reward_model"] for row in rows], asked, atol=2e-5)
    for row in rows:
        row["scores"] = {}
    monkeypatch.setattr(run.corpus, "prompts", lambda split, stage: records)
    run_judges.add_scores(run, rows)
    np.testing.assert_allclose([row["score"] for row in rows], asked, atol=2e-5)

    said = *generate.texts(rollout, run.tokenizer), ["sft"] * 8, generate.sampled(rollout)
    items = [
        collect.Sampled(records[prompts.index[i]], *((column[i], column[i + 4]) for column in said)) for i in range(4)
    ]
    for i, ranking in enumerate(collect.rank_by_scores(scorer, items, "reward_model")):
        assert ranking.ranks == ((1, 2) if asked[i] > asked[i + 4] else (2, 1))
    valid = scorer_lib.ValidationReward(run, "reward_model")
    same = hosts.fetch(
        sampling.sampler(run, 6, 8)(policy_params, *loader.in_order(valid._arrays, 8), run.key("select", 0), 1.0)
    )
    asked = np.asarray(jax.jit(ppo.SequenceScore(run.model))(reward, same))[:4]
    assert valid(policy_params) == pytest.approx(asked.mean(), abs=2e-5)


def test_every_token_that_ends_a_text_ends_a_completion_everywhere(make_run, monkeypatch):
    run = make_run("sft", "reward_model")
    ends = run.tokenizer.eos_id, *range(300, 340)
    monkeypatch.setattr(run.tokenizer, "end_ids", ends)
    (batch,) = loader.in_order(run_judges.prompt_arrays(run, run.corpus.prompts("test", "ppo")), 24)
    rollout = hosts.fetch(sampling.sampler(run, 6, 8)(weights.load_params(run, "sft"), batch, run.key("sft", 0), 1.0))
    asked = int(np.any(batch.mask, axis=1).sum())  # rows without a prompt fill the batch up, and are not sampled
    finished, sampled = generate.texts(rollout, run.tokenizer)[1][:asked], generate.sampled(rollout)[:asked]
    ended = [[token in ends for token in ids] for ids in sampled]
    assert finished == [row[-1] for row in ended] and not any(sum(row[:-1]) for row in ended)
    assert finished != [ids[-1] == run.tokenizer.eos_id for ids in sampled]

    config = toy.get_config()
    config.prompt_length = 48  # with the completion within 68 places
    ours = dataclasses.replace(run, config=config)
    monkeypatch.setattr(ppo_stage.programs, "compiled", lambda *arguments: arguments)
    programs, reward, _, sampler, *_ = ppo_stage.build(ours, "ppo")  # PPO's metrics, its missing-EOS rule, its reward
    assert programs.eos_id == reward.ends == ends and sampler is sampling.sampler(
        ours, config.completion_length, config.ppo.batch_size
    )


def test_a_reward_model_of_another_tokenizer_reads_the_text(make_run, shared):
    run = make_run("reward_model")
    other = dataclasses.replace(run, tokenizer=Tokenizer.train(["another text of other words"], 300))
    params = _init_scalar(run.model, jax.random.key(5))
    asked = [Prompt("say yes", {})], ["yes"], [True]
    theirs = REAL_SCORER(run, "reward_model", params, asker=other)
    assert theirs(*asked, [(7, other.tokenizer.eos_id)]) == theirs(*asked)
    ours = REAL_SCORER(run, "reward_model", params)
    assert ours(*asked, [(7, run.tokenizer.eos_id)]) != ours(*asked)


def test_kl_is_the_log_ratio_of_the_sampled_tokens(make_run):
    run = make_run("sft", "ppo", temperature=0.7)
    assert policy.evaluate_policy(run, "sft")["estimates"]["kl"] == dict(value=0, low=None, high=None)
    evaluation = policy.evaluate_policy(run, "ppo")
    rows = policy.read_rows(run.folder("ppo") / "samples.jsonl")

    def logprob(stage, row):
        prompt = run.tokenizer.encode(row["prompt"])
        ids = prompt + row["tokens"]
        table = logprobs(run, stage, ids, temperature=0.7)
        return sum(table[t - 1, ids[t]] for t in range(len(prompt), len(ids)))

    for row in rows[:3] + rows[-1:]:  # of the first and of the last, filled-up batch
        assert row["kl"] == pytest.approx(logprob("ppo", row) - logprob("sft", row), abs=1e-3)
    assert evaluation["estimates"]["kl"]["value"] > 0


def test_kl_of_a_policy_to_itself_is_exactly_0(make_run, monkeypatch):
    run = make_run("sft", "ppo")
    sft = weights.load_params(run, "sft")
    monkeypatch.setattr(run, "load_params", lambda stage: sft)
    policy.evaluate_policy(run, "sft")
    evaluation = policy.evaluate_policy(run, "ppo")
    assert evaluation["estimates"]["kl"] == dict(value=0, low=None, high=None)  # of equal values, which show no spread
    assert evaluation["estimates"]["win_rate"]["value"] == 0.5


def test_rescore_fills_in_what_was_missing_and_keeps_the_rest(make_run):
    run = make_run("pretrain")
    before = policy.evaluate_policy(run, "pretrain")
    assert before["reference"] is None
    for name in ("score", "kl", "win_rate"):
        assert before["estimates"][name] is None
    completions = [row["completion"] for row in policy.read_rows(run.folder("pretrain") / "samples.jsonl")]

    run.finished = ("pretrain", "sft")
    policy.evaluate_policy(run, "sft")
    run.finished = ("pretrain", "sft", "reward_model")
    policy.rescore(run)
    after = json.loads((run.folder("pretrain") / "evaluation.json").read_text())
    rows = policy.read_rows(run.folder("pretrain") / "samples.jsonl")
    assert [row["completion"] for row in rows] == completions
    assert after["estimates"]["skills/mean"] == before["estimates"]["skills/mean"]
    assert after["estimates"]["gold/total"] == before["estimates"]["gold/total"]
    assert after["estimates"]["kl"]["value"] > 0 and after["estimates"]["score"] is not None
    sft = json.loads((run.folder("sft") / "evaluation.json").read_text())
    assert sft["estimates"]["score"] is not None and sft["estimates"]["win_rate"] is None

    fresh = policy.evaluate_policy(run, "pretrain")  # what it would have been with all there
    assert fresh["estimates"]["kl"]["value"] == pytest.approx(after["estimates"]["kl"]["value"])
    assert fresh["estimates"]["win_rate"] == after["estimates"]["win_rate"]
    assert fresh["estimates"]["score"] == after["estimates"]["score"]


def test_several_reward_models_all_score_and_the_first_is_what_policies_compare_by(make_run):
    run = make_run("sft", "reward_model")
    before = policy.evaluate_policy(run, "sft")["estimates"]
    assert not [name for name in before if name.startswith("score/")]
    run = dataclasses.replace(run, config=ConfigDict(CONFIG | {"other": {"kind": "reward_model"}}))
    run.config.stages = (*CONFIG["stages"], "other")
    run.finished = ("sft", "reward_model", "other", "ppo")
    policy.rescore(run)
    policy.evaluate_policy(run, "ppo")
    for stage in ("sft", "ppo"):
        found = json.loads((run.folder(stage) / "evaluation.json").read_text())["estimates"]
        assert found["score"] == found["score/reward_model"]
        assert found["score/other"]["value"] == pytest.approx(-found["score"]["value"])
        assert stage == "ppo" or found["score"] == before["score"]


def test_policies_answer_the_same_prompts_with_the_same_noise(make_run):
    run = make_run("sft", "ppo")
    params = weights.load_params(run, "sft")
    first, again, other = (samples(run, p) for p in (params, params, weights.load_params(run, "ppo")))
    assert first == again
    assert [row["index"] for row in first] == [row["index"] for row in other]
    assert [row["completion"] for row in first] != [row["completion"] for row in other]
    assert len({row["completion"] for row in first}) > len(first) / 2  # noise differs by row


def test_without_gold_the_reward_score_decides(make_run, corpus):
    class RealText(WorldCorpus):
        gold = FileCorpus.gold
        skills = FileCorpus.skills

    real = RealText(ConfigDict(WORLD), Template(), skill_items=0)
    run = make_run("sft", "ppo", corpus=real)
    policy.evaluate_policy(run, "sft")
    evaluation = policy.evaluate_policy(run, "ppo")
    assert evaluation["win_rate_by"] is None and evaluation["estimates"]["win_rate"] is None
    run.finished = ("sft", "reward_model", "ppo")
    policy.rescore(run)
    evaluation = json.loads((run.folder("ppo") / "evaluation.json").read_text())
    assert evaluation["win_rate_by"] == "score"
    assert evaluation["estimates"]["gold/total"] is None and evaluation["categories"] == {}
    assert not any(name.startswith("skills/") for name in evaluation["estimates"])
    scores = [
        [row["score"] for row in policy.read_rows(run.folder(stage) / "samples.jsonl")] for stage in ("ppo", "sft")
    ]
    assert evaluation["estimates"]["win_rate"]["value"] == statistics.win_rate(*scores).value


def test_intervals_of_scores_know_that_they_end_at_0_and_1():
    """All 256 answers harmless: rude ones may be as frequent as one in a hundred. Lengths that are all equal show no spread."""
    gold = {"helpful": 0.5, "harmless": 1.0}
    rows = [
        {"gold": gold | {"total": n / 256}, "score": None, "kl": 0.0, "length": 48, "finished": False}
        for n in range(256)
    ]
    found = policy.summarize(rows, None)
    assert found["gold/harmless"] == statistics.share(np.ones(256)) and 0.98 < found["gold/harmless"].low < 0.99
    assert found["gold/total"] == statistics.mean(np.arange(256) / 256)
    assert found["completion_length"] == (48, -np.inf, np.inf) and found["eos"].high > 0.01


def test_rows_survive_any_text(tmp_path):
    rows = [{"completion": 'two\u2028lines \x85 \r\n 한국어 \\ "'}, {"completion": ""}]
    policy.write_rows(tmp_path / "rows.jsonl", rows)
    assert policy.read_rows(tmp_path / "rows.jsonl") == rows


@pytest.mark.parametrize(
    "part, shown", [("samples", "samples"), ("skills", "skills"), ("documents", "pretraining loss")]
)
def test_an_evaluation_stops_between_two_batches_when_asked(make_run, part, shown):
    run = make_run("sft", batch_size=2)
    asked = programs.Questions([], [], [])._replace(**{part: getattr(policy.questions(run), part)})
    run.interrupt.requested = True
    with pytest.raises(progress.Stopped, match=f"stopped at evaluation, {shown} step 1; run the same command to go on"):
        programs.ask(run, programs.EvaluationPrograms(run), weights.load_params(run, "sft"), asked)


def test_fewer_prompts_are_the_first_of_the_same(make_run):
    run = make_run("sft")
    few = dataclasses.replace(run, config=ConfigDict(CONFIG))
    few.config.evaluate.prompts = 8
    params = weights.load_params(run, "sft")
    first = samples(few, params)
    assert len(first) > 4 and first == samples(run, params)[: len(first)]


def test_a_win_rate_meets_completions_of_one_prompt():
    """Also where one of the two policies has answered fewer prompts; without a common one there is no rate."""
    ours, theirs = (
        [{"index": index, "gold": None, "score": score} for index, score in found]
        for found in (((1, 5.0), (2, 0.0), (4, 3.0)), ((4, 3.0), (3, 9.0), (1, 4.0), (2, 1.0)))
    )
    assert policy._win_rate(ours, theirs) == statistics.win_rate([5.0, 0.0, 3.0], [4.0, 1.0, 3.0])
    assert policy._win_rate(ours[:1], theirs[:1]) is None
