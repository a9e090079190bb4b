"""experiments/tldr.py and hh.py: what the papers state, programs of every size, and runs at the smallest size."""

import json
import pathlib
import random
import re

import jax
import numpy as np
import pytest
import recipes
import tiny

from experiments import hh, tldr
from rlhf_jax import config as config_lib
from rlhf_jax import model, pipeline, shapes, weights
from rlhf_jax import run as run_lib
from rlhf_jax.abstract import Data
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.evaluate.scorer import Scorer
from rlhf_jax.model import TransformerConfig, work
from rlhf_jax.plan import planner
from rlhf_jax.runtime.errors import InputError

PYTHIA = {  # parameters without the two embeddings, as the table of the released models has them
    "pythia_160m": 85_056_000,
    "pythia_410m": 302_311_424,
    "pythia_1b": 805_736_448,
    "pythia_1.4b": 1_208_602_624,
    "pythia_2.8b": 2_517_652_480,
    "pythia_6.9b": 6_444_163_072,
    "pythia_12b": 11_327_027_200,
}
# The tables of Huang et al. 2024 and the defaults of its code; docs/tldr.md has the detail of each.
PAPER = {
    "prompt_length": 512,
    "completion_length": 53,
    "reward_model.completion_length": 638 - 512,
    "evaluate.temperature": 0.01,
    "sft.epochs": 1,
    "sft.batch_size": 128,
    "sft.dropout_rate": 0,
    "sft.loss_on": "sequence",
    "reward_model.epochs": 1,
    "reward_model.batch_size": 64,
    "dpo.epochs": 1,
    "dpo.batch_size": 64,
    "dpo.beta": 0.05,
    "ppo.batch_size": 512,
    "ppo.minibatch_size": 512,
    "ppo.ppo_epochs": 4,
    "ppo.schedule": "linear",
    "ppo.final_fraction": 0,
    "ppo.kl_coef": 0.05,
    "ppo.gamma": 1,
    "ppo.lam": 0.95,
    "ppo.cliprange": 0.2,
    "ppo.cliprange_value": 0.2,
    "ppo.vf_coef": 0.1,
    "ppo.temperature": 0.7,
    "ppo.value": "separate",
    "ppo.value_init": "reward",
    "ppo.missing_eos": "replace",
    "ppo.missing_eos_value": -1,
    "ppo.whiten_rewards": False,
    "ppo.whiten_advantages": "batch",
}
SUPERVISED = {"learning_rate": 3e-6, "schedule": "cosine", "final_fraction": 0, "warmup_steps": 0}
ADAM_W = {"b1": 0.9, "b2": 0.999, "eps": 1e-5, "eps_placement": "torch", "weight_decay": 0.01, "max_grad_norm": 0}


@pytest.mark.parametrize("size", tldr.SIZES)
def test_tldr_has_the_numbers_of_the_paper(size):
    config = tldr.get_config(size)
    config_lib.check(config)
    for name, wanted in PAPER.items():
        section, _, field = name.rpartition(".")
        found = config[section][field] if section else config[field]
        assert found == wanted, name
    for stage in ("sft", "reward_model", "dpo"):
        assert {name: config[stage][name] for name in SUPERVISED} == SUPERVISED
        assert config[stage].optimizer.to_dict() == ADAM_W
    assert config.ppo.optimizer.to_dict() == config.ppo.value_optimizer.to_dict() == ADAM_W
    assert config.ppo.learning_rate == config.ppo.value_learning_rate == 3e-6 and config.ppo.warmup_iterations == 0
    assert 0 <= 1_000_000 - config.ppo.iterations * config.ppo.batch_size < config.ppo.batch_size
    assert config.ppo.iterations * config.ppo.batch_size / 116_722 == pytest.approx(8.56, abs=0.01)


def test_the_penalty_of_hh_is_the_papers_and_what_it_leaves_open_is_named():
    config = hh.get_config("1b")
    assert (config.ppo.kl_coef, config.reward_model.epochs, config.reward_model.schedule) == (0.001, 1, "constant")
    open_fields = " ".join(hh.OPEN)
    for field in ("learning_rate", "batch_size", "cliprange", "lam", "temperature", "value_init", "prompt_length"):
        assert field in open_fields


def test_every_test_that_the_table_of_details_names_is_there():
    tests = pathlib.Path(__file__).parent
    text = (tests.parent / "docs" / "tldr.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if re.match(r"\| \d+ \|", line)]
    assert [int(row.split("|")[1]) for row in rows] == list(range(1, 26))
    there = {
        name for path in tests.glob("test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    }
    assert set(re.findall(r"`(test_\w+)`", text)) <= there
    assert all("`test_" in row or "as above" in row for row in rows)


@pytest.mark.parametrize("recipe", [tldr, hh])
def test_a_size_that_there_is_not_is_one_sentence(recipe):
    with pytest.raises(InputError, match=r":7b is unknown; the sizes are 135m, 1b, 2.8b, 6.9b"):
        recipe.get_config("7b")


@pytest.mark.parametrize("name, count", PYTHIA.items())
def test_the_shapes_of_pythia_have_the_published_numbers_of_parameters(name, count):
    shape = TransformerConfig(50_304, **shapes.SHAPES[name])
    assert work.parameters(shape) - 2 * 50_304 * shape.embed_dim == count


def test_the_shape_of_smollm2_is_the_released_one():
    assert work.parameters(TransformerConfig(49_152, **shapes.SHAPES["smollm2_135m"])) == 134_515_008


@pytest.mark.parametrize(
    "recipe, size",
    [
        (tldr, "6.9b"),
        (hh, "1b"),
        *(
            pytest.param(recipe, size, marks=pytest.mark.slow)
            for recipe, other in ((tldr, "6.9b"), (hh, "1b"))
            for size in tldr.SIZES
            if size != other
        ),
    ],
)
def test_the_programs_of_every_size_have_the_papers_shapes(recipe, size):
    """Abstractly: nothing is compiled and no file is read."""
    config = recipe.get_config(size)
    config.model.attention = "xla"
    data = Data(demonstrations=116_722, rankings=92_858, completions=2, vocab_size=config.model.vocab_size - 10)
    run = run_lib.without_data(config, data, tiny.mesh_of("1x8x1"))
    found = {(p.stage, p.name): p for stage in config.stages for p in planner.programs_of(run, stage, data)}
    assert set(found) == {("sft", "train step"), ("reward_model", "train step")} | {
        ("ppo", name) for name in ("decode layout", "sample", "score", "update")
    }
    if recipe is tldr:
        assert found["sft", "train step"].passed["batch"].tokens.shape == (128, 512 + 53)
        assert found["reward_model", "train step"].passed["batch"].tokens.shape == (64, 2, 638)
        assert found["ppo", "sample"].passed["batch"][0].shape == (512, 512)
        runs = {key: program.runs for key, program in found.items()}
        assert runs["sft", "train step"] == 912 and runs["reward_model", "train step"] == 1451
        assert runs["ppo", "update"] == 4 * 1953


@pytest.fixture(scope="module")
def tldr_run(tmp_path_factory, one_device):
    """Two iterations from a small random Pythia, on posts in OpenAI's published form."""
    pytest.importorskip("tensorflow_datasets", reason="the extra tfds is not installed")
    pytest.importorskip("array_record")
    folder = tmp_path_factory.mktemp("tldr")
    recipes.release(folder / "pythia-1b-deduped", "pythia_1b")
    recipes.posts(folder, Tokenizer.load(folder / "pythia-1b-deduped"), random.Random(0))
    config = tldr.get_config("1b")
    recipes.shrink(config, folder, "pythia-1b-deduped", iterations=2)
    config.reward_model.completion_length = 24
    pipeline.run_stages(config, folder / "run")
    return folder / "run"


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_tldr_runs_from_a_released_pythia(tldr_run):
    steps = lines(tldr_run / "ppo" / "metrics.jsonl")
    assert len(steps) == 2 and steps[0]["objective/kl"] == pytest.approx(0, abs=1e-4)
    rates = [step["ppo/learning_rate"] for step in steps]  # of an iteration's last step, or their mean
    assert 3e-6 >= rates[0] > rates[1] >= 0
    for stage in ("sft", "ppo"):
        assert (tldr_run / stage / "evaluation.json").is_file()
    report = json.loads((tldr_run / "data_report.json").read_text())["stages"]
    assert report["sft"]["demonstrations"]["dropped"] == 0  # their posts were cut to fit, by prepare


def test_the_reference_summaries_of_training_score_0(tldr_run):
    """Detail 15: the bias makes the mean score of all of them 0."""
    run = run_lib.open_run(tldr_run)
    rows = run.corpus.demonstrations("train")
    scores = Scorer(run, "reward_model")(rows, [row.completion for row in rows], [True] * len(rows))
    assert scores.std() > 1e-3 and abs(scores.mean()) < 1e-4
    assert float(weights.load_params(run, "reward_model", "scalar")["scalar_bias"]) != 0.0


def test_sft_learns_the_whole_sequence(tldr_run):
    """The validation loss is the mean over all tokens but the first of a row, one row at a time and without padding."""
    run = run_lib.open_run(tldr_run)
    params, nats = weights.load_params(run, "sft"), []

    @jax.jit  # once for each length: operation by operation, compiling takes three times as long
    def logits_of(tokens):
        hidden = model.masked_hidden_states(run.model, params, tokens, np.ones(tokens.shape, bool))
        return model.lm_logits(run.model, params, hidden)

    for row in run.corpus.demonstrations("valid"):
        ids = run.tokenizer.encode_prompts([row.prompt])[0]
        ids += [*run.tokenizer.encode(row.completion, continues=True), run.tokenizer.eos_id]
        tokens = np.array([ids[: run.whole_length]])
        logits = np.asarray(logits_of(tokens), np.float64)[0, :-1]
        logits -= logits.max(-1, keepdims=True)
        nats += list(np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(logits)), tokens[0, 1:]])
    assert lines(tldr_run / "sft" / "metrics.jsonl")[-1]["valid/loss"] == pytest.approx(np.mean(nats), rel=1e-4)


@pytest.mark.slow
def test_hh_runs_from_a_released_llama(tmp_path, one_device):
    pytest.importorskip("tensorflow_datasets", reason="the extra tfds is not installed")
    pytest.importorskip("array_record")
    name = "SmolLM2-135M-Instruct"
    recipes.release(tmp_path / name, "smollm2_135m", num_kv_heads=2)
    recipes.dialogues(tmp_path, random.Random(0))
    config = hh.get_config("135m")
    recipes.shrink(config, tmp_path, name, iterations=1)
    pipeline.run_stages(config, tmp_path / "run")
    (step,) = lines(tmp_path / "run" / "ppo" / "metrics.jsonl")
    assert np.isfinite(step["objective/scores"]) and step["objective/kl_coef"] == pytest.approx(0.001)
