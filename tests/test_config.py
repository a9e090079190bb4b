"""The configs: every experiment loads and locks, and the paper's has the paper's numbers."""

import importlib.util
import pathlib

import jax
import pytest
from ml_collections import ConfigDict

from rlhf_jax import optim, ppo_stage
from rlhf_jax.config import default_config
from rlhf_jax.errors import InputError
from rlhf_jax.model import param_shapes
from rlhf_jax.run import model_shape

EXPERIMENTS = pathlib.Path(__file__).resolve().parent.parent / "experiments"


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
def test_an_experiment_only_sets_fields_that_exist(name, arguments):
    config = experiment(name).get_config(*arguments)
    known = names(default_config()) | {f"ppo_init.{field}" for field in names(default_config().sft)}
    known |= {f"reward_model.{field}" for field in names(default_config()) if field.startswith("model.")}
    assert names(config) <= known
    for stage in config.stages:
        section = config[stage]
        assert section.get("init", "") in ("", "gpt3", "gpt3_6b", "stories260K", *config.stages)
        if section.kind == "ppo":
            shape = model_shape(config.model, 512, "cpu")
            ppo_stage.programs_config(shape, shape, 0, section)  # sizes divide, every field is there
            optim.schedule(section.schedule, 0, 1)
    assert config.prompt_length + config.completion_length <= config.model.max_length


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
    "prompt_length": 1024, "completion_length": 1024, "too_long": "drop", "model.max_length": 2048,
    "sft.epochs": 16, "sft.dropout_rate": 0.2, "sft.schedule": "cosine", "sft.final_fraction": 0.1, "sft.warmup_steps": 0,
    "sft.pretrain_mix": 0, "ppo_init.epochs": 2, "ppo_init.pretrain_mix": 0.1, "ppo_init.schedule": "cosine",
    "reward_model.epochs": 1, "reward_model.batch_size": 64, "reward_model.learning_rate": 9e-6,
    "reward_model.schedule": "cosine", "reward_model.final_fraction": 0.1, "reward_model.loss": "kwise",
    "ppo.init": "ppo_init", "ppo.value_init": "reward", "ppo.batch_size": 512, "ppo.minibatch_size": 64, "ppo.ppo_epochs": 1,
    "ppo.kl_coef": 0.02, "ppo.cliprange": 0.2, "ppo.ema_decay": 0.992, "ppo.temperature": 1, "ppo.gamma": 1,
    "ppo.schedule": "constant", "ppo.warmup_iterations": 10, "ppo.warmup_from": 0.1, "ppo.ptx_coef": 0,
    "ppo_ptx.ptx_coef": 27.8, "ppo_ptx.ptx_ratio": 8, "ppo.optimizer.b1": 0.9, "ppo.optimizer.b2": 0.95,
}  # fmt: skip


@pytest.mark.parametrize("size", BY_SIZE)
def test_the_papers_numbers(size):
    config = experiment("instructgpt").get_config(size)
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


@pytest.mark.parametrize("size, millions", [("1.3b", 1315.7), ("6b", 6658.4), ("175b", 174_604.3)])
def test_the_shapes_have_gpt3s_number_of_parameters(size, millions):
    """12 L d^2 + 13 L d + 50257 d + 2048 d + 2 d, which is 174,600M in GPT-3's table D.1."""
    config = experiment("instructgpt").get_config(size)
    config.model.vocab_multiple = 1
    shapes = param_shapes(model_shape(config.model, 50_257, "cpu"))
    total = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert total / 1e6 == pytest.approx(millions, abs=0.1)


@pytest.mark.parametrize(
    "name, argument, right", [("instructgpt", "13b", "1.3b, 6b, 175b"), ("real_small", "hh", "truthfulqa or ranked4")]
)
def test_an_unknown_argument_is_refused_with_the_known_ones(name, argument, right):
    with pytest.raises(InputError, match=f"{argument} is unknown; .*{right}"):
        experiment(name).get_config(argument)
