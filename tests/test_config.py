"""The configs: every experiment loads and locks, and the paper's has the paper's numbers."""

import importlib.util
import json
import pathlib

import jax
import pytest
from ml_collections import ConfigDict

from rlhf_jax import optim, shapes
from rlhf_jax.config import default_config
from rlhf_jax.model import param_shapes
from rlhf_jax.ppo import programs as ppo_programs
from rlhf_jax.run import model_shape
from rlhf_jax.runtime.errors import InputError

EXPERIMENTS = pathlib.Path(__file__).resolve().parent.parent / "experiments"
RELEASED = dict(
    model_type="llama",
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    vocab_size=70,
    max_position_embeddings=512,
)


def experiment(name: str):
    spec = importlib.util.spec_from_file_location(name, EXPERIMENTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def names(config: ConfigDict, prefix: str = "") -> set[str]:
    found = set()
    for name, value in config.items():
        found |= names(value, f"{prefix}{name}.") if isinstance(value, ConfigDict) else {prefix + name}
    return found


RUNS = [("quickstart", ()), ("real_small", ()), ("real_small", ("ranked4",))] + [
    ("instructgpt", (size,)) for size in ("1.3b", "6b", "175b")
]


@pytest.mark.parametrize("name, arguments", RUNS)
def test_an_experiment_only_sets_fields_that_exist(name, arguments, tmp_path):
    config = experiment(name).get_config(*arguments)
    config.data.files.dir = str(tmp_path)
    for folder in {config.model.shape} - shapes.SHAPES.keys():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(json.dumps(RELEASED))
    known = names(default_config()) | {f"ppo_init.{field}" for field in names(default_config().sft)}
    known |= {f"reward_model.{field}" for field in names(default_config()) if field.startswith("model.")}
    assert names(config) <= known
    for stage in config.stages:
        section = config[stage]
        assert section.get("init", "") in ("", "gpt3", "gpt3_6b", "stories260K", *config.stages)
        if section.kind == "ppo":
            shape = model_shape(config, 64, "cpu")
            ppo_programs.static_config(shape, shape, 0, section)  # sizes divide, every field is there
            optim.schedule(section.schedule, 0, 1)
    assert config.prompt_length + config.completion_length <= shapes.filled(config).model.max_length


def test_a_default_config_is_a_fresh_one():
    config = default_config()
    config.ppo.optimizer.b2 = 0.5
    assert config.ppo_ptx.optimizer.b2 == default_config().ppo.optimizer.b2 == 0.95


# InstructGPT, appendix C: what differs by size, then what does not.
BY_SIZE = {
    "1.3b": (24, 2048, 16, 9.65e-6, 32, 5e-6, 9e-6),
    "6b": (32, 4096, 32, 9.65e-6, 32, 1.04e-5, 9e-6),
    "175b": (96, 12288, 96, 5.03e-6, 8, 2.45e-6, 5e-6),
}
ALL_SIZES = {
    "prompt_length": 1024,
    "completion_length": 1024,
    "too_long": "drop",
    "long_completions": "cut",
    "model.max_length": 2048,
    "sft.epochs": 16,
    "sft.dropout_rate": 0.2,
    "sft.schedule": "cosine",
    "sft.final_fraction": 0.1,
    "sft.warmup_steps": 0,
    "sft.pretrain_mix": 0,
    "ppo_init.epochs": 2,
    "ppo_init.pretrain_mix": 0.1,
    "ppo_init.schedule": "cosine",
    "reward_model.epochs": 1,
    "reward_model.batch_size": 64,
    "reward_model.learning_rate": 9e-6,
    "reward_model.schedule": "cosine",
    "reward_model.final_fraction": 0.1,
    "reward_model.loss": "kwise",
    "ppo.init": "ppo_init",
    "ppo.value_init": None,  # "reward", where there is a reward model
    "ppo.batch_size": 512,
    "ppo.minibatch_size": 64,
    "ppo.ppo_epochs": 1,
    "ppo.kl_coef": 0.02,
    "ppo.cliprange": 0.2,
    "ppo.ema_decay": 0.992,
    "ppo.temperature": 1,
    "ppo.gamma": 1,
    "ppo.schedule": "constant",
    "ppo.warmup_iterations": 10,
    "ppo.warmup_from": 0.1,
    "ppo.ptx_coef": 0,
    "ppo_ptx.ptx_coef": 27.8,
    "ppo_ptx.ptx_ratio": 8,
    "ppo.optimizer.b1": 0.9,
    "ppo.optimizer.b2": 0.95,
}


@pytest.mark.parametrize("size", BY_SIZE)
def test_the_papers_numbers(size):
    config = shapes.filled(experiment("instructgpt").get_config(size))
    found = (
        config.model.num_layers,
        config.model.embed_dim,
        config.model.num_heads,
        config.sft.learning_rate,
        config.sft.batch_size,
        config.ppo_init.learning_rate,
        config.ppo.value_learning_rate,
    )
    assert found == BY_SIZE[size] and config.ppo_init.batch_size == config.sft.batch_size
    flat = config.to_dict()
    for name, value in ALL_SIZES.items():
        part = flat
        for field in name.split("."):
            part = part[field]
        assert part == value, name
    assert config.ppo.iterations * config.ppo.batch_size == 256_000
    assert config.model.embed_dim == config.model.num_heads * 128
    differing = {key for key in config.ppo if config.ppo[key] != config.ppo_ptx[key]}
    assert differing == {"ptx_coef"}


# Brown et al. 2020, Table 2.1: millions of parameters, by the formula below; D.1 has 174,600 for the largest.
GPT3 = {
    "gpt3_125m": 125.2,
    "gpt3_350m": 355.9,
    "gpt3_760m": 760.3,
    "gpt3_1.3b": 1315.7,
    "gpt3_2.7b": 2651.6,
    "gpt3_6.7b": 6658.4,
    "gpt3_13b": 12_853.4,
    "gpt3_175b": 174_604.3,
}


@pytest.mark.parametrize("name", GPT3)
def test_the_shapes_of_gpt3_have_its_number_of_parameters(name):
    """12 L d^2 + 13 L d + 50257 d + 2048 d + 2 d."""
    config = default_config()
    config.model.update(shape=name, vocab_multiple=1)
    shape = model_shape(config, 50_257, "cpu")
    total = sum(leaf.size for leaf in jax.tree.leaves(param_shapes(shape)))
    layers, d = shape.num_layers, shape.embed_dim
    assert total == 12 * layers * d**2 + 13 * layers * d + (50257 + 2048 + 2) * d
    assert total / 1e6 == pytest.approx(GPT3[name], abs=0.1)


def test_a_shape_is_a_folders_but_for_what_the_config_sets(tmp_path):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(RELEASED))
    config = default_config()
    config.data.files.dir = str(tmp_path)
    config.model.update(shape="tiny", num_layers=7)
    config.lock()
    filled = shapes.filled(config)
    found = filled.model.num_layers, filled.model.embed_dim, filled.model.num_kv_heads, filled.model.positions
    assert found == (7, 24, 2, "rope") and filled.model.vocab_size == 70 and config.model.embed_dim is None
    (tmp_path / "tiny" / "config.json").unlink()  # what is filled needs the folder no more
    assert model_shape(ConfigDict(json.loads(json.dumps(filled.to_dict()))), 61, "cpu").vocab_size == 70
    with pytest.raises(InputError, match="the tokenizer has 71 tokens and model.shape=tiny only 70"):
        model_shape(filled, 71, "cpu")


def test_a_stage_has_a_shape_of_its_own():
    config = default_config()
    config.model.shape = "gpt3_125m"
    config.reward_model.model = ConfigDict({"shape": "gpt3_350m", "num_layers": 2})
    model = shapes.filled(config).reward_model.model
    assert (model.num_layers, model.embed_dim, model.num_heads) == (2, 1024, 16)


def test_an_unknown_shape_is_refused_with_the_known_ones():
    config = default_config()
    config.model.shape = "gpt3_1b"
    with pytest.raises(InputError, match=r"model.shape='gpt3_1b' is neither gpt3_125m, .* nor a folder"):
        shapes.filled(config)


@pytest.mark.parametrize(
    "name, argument, right", [("instructgpt", "13b", "1.3b, 6b, 175b"), ("real_small", "hh", "truthfulqa or ranked4")]
)
def test_an_unknown_argument_is_refused_with_the_known_ones(name, argument, right):
    with pytest.raises(InputError, match=f"{argument} is unknown; .*{right}"):
        experiment(name).get_config(argument)
