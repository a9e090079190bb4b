"""A prompted model as a stage, of random weights that like to end lines: the prefix, its choice, KL, resuming."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from test_evaluate import CONFIG, WORLD, LengthScorer, logprobs, make_run, scorer  # noqa: F401 (fixtures)

from rlhf_jax import sharding, weights
from rlhf_jax.config import prompted_config
from rlhf_jax.data.template import Template
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.evaluate import policy, run_judges
from rlhf_jax.evaluate import scorer as scorer_lib
from rlhf_jax.evaluate.answers import EvaluationPrograms, ask
from rlhf_jax.model import TransformerConfig
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.progress import Stopped
from rlhf_jax.stages import prompted
from rlhf_jax.world.corpus import WorldCorpus

LENGTH = 60  # of 68 places, of which a completion takes 6


@pytest.fixture(scope="module")
def corpus():
    world = WORLD | {"demonstrations": 100, "careless": 0.0, "valid_prompts": 10}
    return WorldCorpus(ConfigDict(world), Template(), skill_items=1)


@pytest.fixture(scope="module")
def shared(corpus):
    """As test_evaluate's, with a tokenizer whose words are few tokens: demonstrations fit before prompts."""
    texts = [item.prompt + item.completion for item in corpus.demonstrations("train")]
    tokenizer = Tokenizer.train([document.text for document in corpus.documents("train")] + texts, 800)
    shape = TransformerConfig(
        tokenizer.vocab_size, num_layers=1, embed_dim=16, num_heads=2, max_length=68, init_std=0.5
    )
    return dict(tokenizer=tokenizer, model=shape, mesh=sharding.make_mesh(devices=jax.devices()[:2]))


@pytest.fixture
def run(make_run, parameters_in_memory):  # noqa: F811
    made = dataclasses.replace(make_run(), config=ConfigDict(CONFIG | {"prompted": prompted_config()}))
    made.config.stages = ("pretrain", "sft", "reward_model", "prompted")
    made.config.prompted.update(candidates=3, length=LENGTH)
    made.finished = ("pretrain", "sft", "reward_model")

    def folder(stage):
        made.folder(stage).mkdir(exist_ok=True)
        return made.folder(stage)

    made.workdir = types.SimpleNamespace(stage=folder)
    load, newline = made.load_params, prompted._separator_id(made)

    def ends_lines(stage):
        params = load(stage)
        return params | {"embedding": params["embedding"].at[newline].multiply(4.0)}

    made.load_params = ends_lines
    answers = ask(made, EvaluationPrograms(made), weights.load_params(made, "sft"), policy.questions(made))
    rows = policy.sample_rows(made, answers.samples)
    run_judges.judge(made, "sft", rows, 1.0)
    policy.write_rows(made.folder("sft") / "samples.jsonl", rows)
    policy.conclude(made, "sft", rows, {}, 1.0)
    return made


def read(run, name):
    return json.loads((run.folder("prompted") / name).read_text())


def samples(run):
    return policy.read_rows(run.folder("prompted") / "samples.jsonl")


def shots_that_fit(run, shots, prompt):
    """By trying all."""
    tries = ["".join(shots[n:]) + prompt for n in range(len(shots) + 1)]
    return next(text for text in tries if len(run.tokenizer.encode(text)) <= LENGTH)


def test_the_reward_model_chooses_the_prefix_and_nobody_else_reads_it(run, monkeypatch):
    asked = []

    class Listening(LengthScorer):
        def __call__(self, prompts, completions, finished, sampled=None):
            scores = super().__call__(prompts, completions, finished)
            asked.append(([prompt.prompt for prompt in prompts], completions, scores))
            return scores

    monkeypatch.setattr(scorer_lib, "Scorer", Listening)
    prompted.run_stage(run, "prompted")
    found, evaluation = read(run, "prefixes.json"), read(run, "evaluation.json")
    valid, test = ([prompt.prompt for prompt in run.corpus.prompts(split, "ppo")] for split in ("valid", "test"))
    assert [candidate["score"] for candidate in found] == pytest.approx([scores.mean() for *_, scores in asked[:3]])
    assert all(prompts == asked[0][0] and set(prompts) <= set(valid) for prompts, *_ in asked[:3])
    assert len({str(completions) for _, completions, _ in asked[:3]}) == 3  # each prefix has answers of its own
    best = max(found, key=lambda candidate: candidate["score"])
    assert len({candidate["score"] for candidate in found}) > 1
    assert evaluation["prefix"] == best["shots"] and evaluation["prefix_score"] == best["score"]
    text = (run.folder("prompted") / "prefix.txt").read_text()
    demonstrations = {item.prompt + item.completion + "\n" for item in run.corpus.demonstrations("train")}
    assert text == "".join(best["shots"]) and set(best["shots"]) <= demonstrations and len(best["shots"]) == 2

    rows = samples(run)
    rivals = policy.read_rows(run.folder("sft") / "samples.jsonl")
    assert [row["index"] for row in rows] == [row["index"] for row in rivals] and len(rows) > 8
    assert [row["prompt"] for row in rows] == [test[row["index"]] for row in rows]
    assert asked[-1][0] == [row["prompt"] for row in rows]
    wins = [np.sign(row["gold"]["total"] - rival["gold"]["total"]) / 2 + 0.5 for row, rival in zip(rows, rivals)]
    assert evaluation["estimates"]["win_rate"]["value"] == pytest.approx(np.mean(wins))
    assert not any(name.startswith("skills/") or name == "valid_loss" for name in evaluation["estimates"])


def test_kl_is_that_of_what_the_model_read_to_the_reference_without_the_prefix(run):
    prompted.run_stage(run, "prompted")
    shots, rows, eos = read(run, "evaluation.json")["prefix"], samples(run), run.tokenizer.eos_id
    newline = prompted._separator_id(run)
    ended = [row for row in rows if row["finished"]]
    open_ended = [row for row in rows if not row["finished"]]
    assert len(ended) > 2 and len(open_ended) > 2
    counts = [shots_that_fit(run, shots, row["prompt"]).count("answer:") - 1 for row in rows]
    assert np.bincount(counts, minlength=3).tolist() == read(run, "evaluation.json")["prompts_by_shots"]
    assert len(set(counts)) > 1
    for row in (*ended[:3], *open_ended[:2], rows[-1]):
        assert newline not in row["tokens"] and (eos in row["tokens"]) == row["finished"]

        def logprob(stage, text, ends):
            context = run.tokenizer.encode(text)
            ids = context + row["tokens"]
            table = logprobs(run, stage, ids)
            steps = [table[place - 1, ids[place]] for place in range(len(context), len(ids))]
            if row["finished"]:
                steps[-1] = np.logaddexp.reduce([table[-2, end] for end in ends])
            return sum(steps)

        read_by_model = shots_that_fit(run, shots, row["prompt"])
        expected = logprob("pretrain", read_by_model, (eos, newline)) - logprob("sft", row["prompt"], (eos,))
        assert row["kl"] == pytest.approx(expected, abs=2e-3)


def test_stopped_it_goes_on_with_the_prefixes_that_were_tried(run, monkeypatch):
    prompted.run_stage(run, "prompted")
    names = ("prefixes.json", "prefix.txt", "samples.jsonl", "evaluation.json")
    whole = [(run.folder("prompted") / name).read_bytes() for name in names]
    for path in run.folder("prompted").iterdir():
        path.unlink()
    run.interrupt.requested = 2
    with pytest.raises(Stopped, match="prompted, prefixes step 1"):
        prompted.run_stage(run, "prompted")
    assert len(read(run, "prefixes.json")) == 1
    run.interrupt.requested = 0
    tried, complete = [], prompted._complete
    monkeypatch.setattr(prompted, "_complete", lambda *args: tried.append(args) or complete(*args))
    prompted.run_stage(run, "prompted")
    assert len(tried) == 3  # two prefixes, and the test prompts
    assert [(run.folder("prompted") / name).read_bytes() for name in names] == whole


def test_adopted_under_other_judges_it_is_judged_anew(run):
    from rlhf_jax.sweep import store

    prompted.run_stage(run, "prompted")
    before = read(run, "evaluation.json")
    store._forget_judges(run.folder("prompted"))
    assert read(run, "evaluation.json")["estimates"]["kl"] is None
    run.finished += ("prompted",)
    policy.rescore(run)
    assert read(run, "evaluation.json") == before


def test_its_identity_follows_the_model_and_who_chooses():
    from rlhf_jax.config import default_config
    from rlhf_jax.sweep.store import identities

    config = default_config()
    config.stages = ("pretrain", "sft", "collect", "reward_model", "prompted", "ppo")
    before = identities(config)
    for field, value, changes in (
        ("prompted.shots", 3, {"prompted"}),
        ("pretrain.steps", 7, set(config.stages)),
        ("reward_model.epochs", 7.0, {"reward_model", "prompted", "ppo"}),
    ):
        other = config.copy_and_resolve_references()
        other.update_from_flattened_dict({field: value})
        assert {stage for stage, identity in identities(other).items() if identity != before[stage]} == changes


@pytest.mark.parametrize(
    "change, message",
    [
        ({"init": "reward_model"}, "prompted.init='reward_model' must name a stage whose policy has the shape"),
        ({"reward": "sft"}, "prompted.reward='sft' must name a reward_model stage"),
        ({"length": 47}, "prompted.length=47 must be from prompt_length=48 to 62"),
        ({"length": 63}, "prompted.length=63 must be from prompt_length=48 to 62"),
    ],
)
def test_a_wrong_field_is_named(run, change, message):
    run.config.prompted.update(change)
    with pytest.raises(InputError, match=message):
        prompted.check(run, "prompted")


def test_demonstrations_that_do_not_fit_are_said(run):
    run.config.prompted.shots = 9
    with pytest.raises(InputError, match="lower prompted.shots, or raise prompted.length=60"):
        prompted.run_stage(run, "prompted")
