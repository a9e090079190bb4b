"""Values that a config leaves open: learning rates by the size of the model, lengths by the data."""

import json
import math

import numpy as np
import pytest

from rlhf_jax import run as run_lib
from rlhf_jax import settled
from rlhf_jax.config import default_config
from rlhf_jax.data import lengths
from rlhf_jax.data.corpus import FileCorpus
from rlhf_jax.data.template import Template
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.fields.training import PPO_RATES, PRETRAIN_RATES, SFT_RATES
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.sweep import store

POINTS = ((1e8, 1e-4), (1e10, 1e-6))


def test_a_published_size_has_its_published_rate():
    for points in (PRETRAIN_RATES, SFT_RATES, PPO_RATES):
        assert [settled.at_size(points, size) for size, _ in points] == [rate for _, rate in points]


def test_between_two_sizes_the_rate_is_their_geometric_mean_at_the_geometric_mean_of_the_sizes():
    assert math.isclose(settled.at_size(POINTS, 1e9), 1e-5, rel_tol=1e-9)


def test_nothing_is_extrapolated():
    assert settled.at_size(POINTS, 1e6) == 1e-4
    assert settled.at_size(POINTS, 1e12) == 1e-6
    assert settled.at_size(((3e9, 1e-6),), 1e8) == 1e-6


def test_a_config_gets_the_rate_of_its_own_model_and_says_so():
    config, said = default_config(), []
    config.model.shape = "gpt3_1.3b"
    config.sft.learning_rate = config.ppo.learning_rate = None
    config.reward_model.learning_rate = None
    config.reward_model.model = {"shape": "gpt3_6.7b"}
    found = settled.by_model(config, said.append)
    assert config.sft.learning_rate is None  # the config of the caller stays
    assert math.isclose(found.sft.learning_rate, 6.35e-5, rel_tol=0.01)
    assert math.isclose(found.ppo.learning_rate, 1.5e-5, rel_tol=0.01)
    assert math.isclose(found.reward_model.learning_rate, 5e-6, rel_tol=0.03)
    assert found.ppo_ptx.learning_rate == config.ppo_ptx.learning_rate
    assert [sentence.split("=")[0] for sentence in said] == [
        f"{stage}.learning_rate" for stage in ("sft", "reward_model", "ppo")
    ]


@pytest.mark.parametrize("shape", ["", "gpt3_1.3b"])
def test_a_config_that_is_filled_has_the_fields_of_the_default_config_alone(shape):
    """A field more would change the identity of every stage, and a start would refuse the work directories before it."""
    config = default_config()
    config.model.shape = shape
    assert set(settled.by_model(config).model) == set(config.model)


def test_adapters_learn_ten_times_as_fast_and_pretraining_has_none():
    config = default_config()
    config.pretrain.learning_rate = config.sft.learning_rate = None
    whole = settled.by_model(config)
    config.model.lora.rank = 4
    found = settled.by_model(config)
    assert math.isclose(found.sft.learning_rate, 10 * whole.sft.learning_rate, rel_tol=1e-6)
    assert found.pretrain.learning_rate == whole.pretrain.learning_rate


def rows(path, count=200):
    random = np.random.default_rng(0)
    with open(path, "w", encoding="utf-8") as file:
        for number in range(count):
            prompt, words = f"{number} " + "why " * random.integers(1, 30), random.integers(1, 60)
            file.write(json.dumps({"prompt": prompt, "completion": " because" * words}) + "\n")


def files_config(folder):
    config = default_config()
    config.stages = ("sft",)
    config.data.update(source="files")
    config.data.files.update(dir=str(folder), demonstrations="rows.jsonl")
    config.prompt_length = config.completion_length = None
    config.tokenizer.path = "tokenizer.json"
    config.model.update(shape="gpt3_125m", num_layers=1, embed_dim=16, num_heads=2, max_length=1024)
    config.sft.init = ""
    return config


@pytest.fixture
def folder(tmp_path):
    rows(tmp_path / "rows.jsonl")
    Tokenizer.train(["why because " * 9], 280).save(tmp_path / "tokenizer.json")
    return tmp_path


def test_a_length_is_the_95_percent_quantile_rounded_up(folder):
    config, tokenizer = files_config(folder), Tokenizer.load(folder / "tokenizer.json")
    corpus = FileCorpus(config.data.files, Template(), "error")
    texts = [row.completion for row in corpus.demonstrations("train")]
    counts = sorted(len(tokenizer.encode_batch([text], continues=True)[0]) + 1 for text in texts)
    length, sentence = lengths.chosen("completion_length", corpus, tokenizer)
    fitting = sum(count <= length for count in counts) / len(counts)
    assert length % 8 == 0
    assert fitting >= 0.95 > sum(count <= length - 8 for count in counts) / len(counts)
    assert f"completion_length={length}" in sentence and str(counts[-1]) in sentence


def test_a_run_measures_its_lengths_once_and_a_resume_keeps_them(folder, capsys):
    config = files_config(folder)
    with run_lib.start(config, str(folder / "run")) as run:
        first = run.config.prompt_length, run.config.completion_length
        assert run.config.prompt_length < run.config.completion_length
    assert "prompt_length=" in capsys.readouterr().out
    (folder / "run" / "sft").mkdir()  # the run has begun
    with run_lib.start(config, str(folder / "run")) as run:
        assert (run.config.prompt_length, run.config.completion_length) == first
    assert "prompt_length=" not in capsys.readouterr().out


def test_before_the_first_stage_a_start_measures_anew(folder):
    config = files_config(folder)
    with run_lib.start(config, str(folder / "run")) as run:
        first = run.config.completion_length
    (folder / "rows.jsonl").write_text('{"prompt": "why", "completion": "because"}\n' * 200)
    config.data.files.valid_share = config.data.files.test_share = 0.0
    with run_lib.start(config, str(folder / "run")) as run:
        assert run.config.completion_length < first


def test_a_sweep_asks_for_a_number(folder):
    with pytest.raises(InputError, match="prompt_length and completion_length are None"):
        store.identities(files_config(folder))


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda config: config.tokenizer.update(path=""), "needs tokenizer.path"),
        (lambda config: config.data.update(source="world"), "needs data.source='files'"),
        (lambda config: config.data.files.update(demonstrations="", documents="rows.jsonl"), "have no prompts"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(folder, change, said):
    config = files_config(folder)
    change(config)
    with pytest.raises(InputError, match=said):
        with run_lib.start(config, str(folder / "run")):
            pass


def test_a_program_without_data_asks_for_a_number(folder):
    with pytest.raises(InputError, match="--config.prompt_length=256"):
        run_lib.without_data(files_config(folder), Tokenizer.load(folder / "tokenizer.json"), None)
