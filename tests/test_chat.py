"""The chat: what it shows against a plain computation, and what a user may get wrong."""

import dataclasses
import functools
import io
import sys
import types

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from rich.console import Console

from rlhf_jax import chat, model, run, sharding, weights
from rlhf_jax.data.corpus import FileCorpus
from rlhf_jax.data.template import Template
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.evaluate import scorer
from rlhf_jax.model import TransformerConfig
from rlhf_jax.runtime import progress
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.world.corpus import WorldCorpus

WORLD = {
    "seed": 0,
    "documents": 20,
    "valid_documents": 4,
    "demonstrations": 4,
    "valid_demonstrations": 4,
    "careless": 0.0,
    "rm_prompts": 4,
    "ppo_prompts": 4,
    "valid_prompts": 4,
    "test_prompts": 6,
    "test_kinds": "known",
}
KINDS = {"pretrain": "pretrain", "sft": "sft", "reward_model": "reward_model", "ppo": "ppo", "ppo_ptx": "ppo"}
_init = jax.jit(model.init_params, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def _logits(shape, params, ids, mask):
    hidden = model.masked_hidden_states(shape, params, ids, mask[None])
    return model.lm_logits(shape, params, hidden)


class MemoryRun(run.Run):
    """A run whose finished stages are random parameters in memory."""

    finished = tuple(KINDS)

    def done(self, stage):
        return stage in self.finished

    def load_params(self, stage, head="lm"):
        return _init(self.model, jax.random.key(list(KINDS).index(stage)))


@pytest.fixture(autouse=True)
def in_memory(parameters_in_memory):
    pass


class FixedScorer:
    def __init__(self, run, name):
        pass

    def __call__(self, prompts, completions, finished, sampled=None):
        return np.float32([len(prompts[0].prompt) + finished[0]])


@pytest.fixture(scope="module")
def world():
    return WorldCorpus(ConfigDict(WORLD), Template(), skill_items=0)


@pytest.fixture(scope="module")
def made(world):
    tokenizer = Tokenizer.train([text.text for text in world.documents("train")], 400)
    shape = TransformerConfig(
        tokenizer.vocab_size, num_layers=1, embed_dim=16, num_heads=2, max_length=96, init_std=0.5
    )
    config = {
        "seed": 5,
        "stages": tuple(KINDS),
        "prompt_length": 88,
        "completion_length": 8,
        **{stage: {"kind": kind} for stage, kind in KINDS.items()},
    }
    return MemoryRun(
        config=ConfigDict(config),
        path="runs/made",
        template=Template(),
        tokenizer=tokenizer,
        corpus=world,
        model=shape,
        rules=sharding.DEFAULT_RULES,
        interrupt=progress.Interrupt(),
        mesh=sharding.make_mesh(devices=jax.devices()[:2]),
    )


@pytest.fixture(autouse=True)
def context(made, monkeypatch):
    monkeypatch.setattr(chat, "scorer_of", FixedScorer)
    with jax.set_mesh(made.mesh):  # as in the command: programs are compiled once
        yield


def test_answers_stand_side_by_side_with_their_worth(made, world):
    row = world.prompts("test", "ppo")[0].row
    answers = chat.Chat(made, "ppo").answer(row["instruction"], row["input"], temperature=1.0)
    assert [answer.stage for answer in answers] == ["pretrain", "sft", "ppo"]
    prompt = world.prompts("test", "ppo")[0]
    for answer in answers:
        gold = world.gold(prompt, answer.completion, answer.finished).total
        assert answer.gold == gold
        assert answer.score == len(prompt.prompt) + answer.finished
        assert 1 <= answer.tokens <= 8
    assert answers[1].kl == 0
    assert len({answer.completion for answer in answers}) == 3


def test_kl_is_that_of_the_completion_shown(made):
    session = chat.Chat(made, "ppo")
    answer = session.answer("say one word", temperature=0.0)[2]
    tokens = made.tokenizer.encode(made.template.prompt("say one word"))
    chosen, logprob = list(tokens), {"sft": 0.0, "ppo": 0.0}
    for _ in range(answer.tokens):  # greedy, by hand
        ids = np.zeros((1, 96), np.int32)
        ids[0, : len(chosen)] = chosen
        tables = {}
        for stage in logprob:
            logits = _logits(made.model, weights.load_params(made, stage), ids, np.arange(96) < len(chosen))
            logits = np.asarray(logits, np.float64)[0, len(chosen) - 1]
            tables[stage] = logits - np.log(np.exp(logits).sum())
        chosen.append(int(np.argmax(tables["ppo"])))
        for stage in logprob:
            logprob[stage] += tables[stage][chosen[-1]]
    shown = [token for token in chosen[len(tokens) :] if token != made.tokenizer.eos_id]
    assert answer.completion == made.tokenizer.decode(shown, continues=True)
    assert answer.kl == pytest.approx(logprob["ppo"] - logprob["sft"], abs=1e-3)


def test_default_is_the_last_policy_and_turns_differ(made):
    session = chat.Chat(made)
    first, second = (session.answer("say one word", temperature=1.0, turn=turn) for turn in (0, 1))
    assert first[-1].stage == "ppo_ptx"
    assert first == session.answer("say one word", temperature=1.0, turn=0)
    assert [a.completion for a in first] != [a.completion for a in second]


def test_what_the_run_does_not_know_is_a_dash(made, monkeypatch):
    monkeypatch.setattr(made, "finished", ("pretrain",), raising=False)
    [answer] = chat.Chat(made).answer("say one word", temperature=1.0)
    assert answer.stage == "pretrain"
    assert answer.gold is None and answer.score is None and answer.kl is None
    console = Console(file=io.StringIO(), width=80)
    chat.show(chat.Chat(made), console, "say one word", "", 1.0)
    shown = console.file.getvalue()
    assert "No gold score" in shown
    assert next(line for line in shown.splitlines() if "KL to the reference" in line).count("–") == 1


def test_a_reward_function_scores_what_has_a_row_and_what_it_cannot_score_is_a_dash(made, world, monkeypatch):
    """A function is no reason to end a chat: it may want a field that a typed prompt has not, or be gone."""
    told = types.ModuleType("told")
    told.near = lambda texts, prompts, rows: [len(rows[0]["instruction"]) + len(text) for text in texts]
    monkeypatch.setitem(sys.modules, "told", told)
    monkeypatch.setattr(chat, "scorer_of", scorer.scorer_of)
    run = dataclasses.replace(made, config=ConfigDict(made.config.to_dict()))
    run.finished, run.config.ppo.reward = ("pretrain", "sft", "ppo"), "told:near"
    row = world.prompts("test", "ppo")[0].row
    for answer in chat.Chat(run).answer(row["instruction"], row["input"], temperature=1.0):
        assert answer.score == len(row["instruction"]) + len(answer.completion)

    def shown(instruction):
        console = Console(file=io.StringIO(), width=300)
        chat.show(chat.Chat(run), console, instruction, "", 1.0)
        return console.file.getvalue()

    assert "raised KeyError: 'instruction'" in shown("say one word") and "reward score" in shown("say one word")
    monkeypatch.delitem(sys.modules, "told")
    assert "No reward score: reward='told:near': there is no module told" in shown("say one word")


def test_real_text_has_no_gold(made, world, monkeypatch):
    monkeypatch.setattr(WorldCorpus, "gold", FileCorpus.gold)
    session = chat.Chat(made, "sft")
    row = world.prompts("test", "ppo")[0].row
    assert session.example is None
    assert session.answer(row["instruction"], row["input"], temperature=1.0)[0].gold is None


def test_text_is_shown_to_the_letter():
    answer = chat.Answer("ppo", "[red]so[/red] [x] \\", True, 4, 1.0, None, 0.5)
    empty = answer._replace(stage="sft", completion=" ", finished=False)
    console = Console(file=io.StringIO(), width=80)
    console.print(chat.table([answer, empty]))
    shown = console.file.getvalue()
    assert "[red]so[/red] [x] \\" in shown and "(empty) …" in shown


# --- the command ---------------------------------------------------------------------------


@pytest.fixture
def command(made, monkeypatch, capsys):
    monkeypatch.setattr(chat.run_lib, "open_run", lambda path: made)

    def call(*arguments, stdin=""):
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        code = chat.main(["--workdir=runs/made", *arguments])
        return code, *capsys.readouterr()

    return call


def test_lines_from_a_pipe_are_turns_of_two(command, world):
    row = world.prompts("test", "ppo")[0].row
    code, out, err = command(
        "--stage=ppo", stdin=f"\n{row['instruction']}\n{row['input']}\nsay one word\n\nsay another word"
    )
    assert code == 0 and err == ""
    assert out.count("reward score") == 3 and out.count("No gold score") == 2
    assert row["instruction"] in out.replace("\n", " ")  # the example
    assert "instruction>" not in out


def test_what_is_typed_is_text_to_the_letter(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("  return a \n    b\n   \nc\n"))
    assert list(chat.typed_turns()) == [("  return a ", "    b"), ("c", "")]


def test_one_instruction_and_no_conversation(command):
    code, out, _ = command("--instruction=say one word", "--temperature=0", stdin="ignored\n\n")
    assert code == 0 and out.count("reward score") == 1
    assert all(name in out for name in ("base", "SFT", "PPO-ptx"))


def test_prompt_that_is_too_long_is_one_sentence_and_no_end(command):
    code, out, _ = command(stdin=f"{'word ' * 200}\n\nsay one word\n\n")
    assert code == 0 and "prompt_length" in out and out.count("reward score") == 1


def test_unknown_stage_is_one_sentence(command):
    code, out, err = command("--stage=reward_model")
    assert code == 2 and out == ""
    assert err.count("\n") == 1 and "pretrain, sft, ppo, ppo_ptx" in err


def test_no_run_is_one_sentence(tmp_path, capsys):
    assert chat.main([f"--workdir={tmp_path}"]) == 2
    assert "is not the work directory of a run" in capsys.readouterr().err


def test_run_without_a_finished_policy_is_one_sentence(made, monkeypatch):
    monkeypatch.setattr(made, "finished", (), raising=False)
    with pytest.raises(InputError, match="no finished policy yet"):
        chat.Chat(made)
