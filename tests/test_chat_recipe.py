"""experiments/chat.py: an instruct model and preferences, with any of the stages."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from released_tokenizers import CHATML, save

from experiments import chat
from rlhf_jax import hf, model, pipeline, shapes
from rlhf_jax import run as run_lib
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.runtime.errors import InputError

WORDS = "cat dog tree rain river road house bread".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """DIR of the recipe: a small random chat model, and data in three published forms."""
    folder, rng = tmp_path_factory.mktemp("chat"), np.random.default_rng(0)
    (folder / "small").mkdir()
    save(folder / "small", "qwen", CHATML)
    tokenizer = Tokenizer.load(folder / "small")
    small = dict(num_layers=1, embed_dim=24, num_heads=3, num_kv_heads=3, mlp_dim=32, max_length=256, init_std=0.3)
    shape = model.TransformerConfig(tokenizer.vocab_size, **(shapes.SHAPES["smollm2_135m"] | small))
    params = model.init_params(dataclasses.replace(shape, vocab_multiple=1), jax.random.key(0))
    hf.save(folder / "small", shape, jax.tree.map(np.asarray, params), settings={"eos_token_id": tokenizer.eos_id})

    def said(count):
        return " ".join(rng.choice(WORDS, count))

    def write(name, rows):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    write("demonstrations.jsonl", [{"instruction": said(4), "input": "", "output": said(3)} for _ in range(40)])
    user, assistant = ({"role": role} for role in ("user", "assistant"))
    write(
        "preferences.jsonl",
        [
            {
                "prompt": [user | {"content": said(5)}],
                "chosen": [assistant | {"content": said(2)}],
                "rejected": [assistant | {"content": said(4)}],
            }
            for _ in range(40)
        ],
    )
    (folder / "documents.txt").write_text("\n\n".join(said(60) for _ in range(40)))
    return folder


def config_of(folder, stages):
    config = chat.get_config(stages)
    config.data.files.dir, config.model.shape = str(folder), "small"
    config.model.update(dtype="float32", attention="xla", vocab_multiple=8)
    config.sft.update(batch_size=8, epochs=1.0)
    config.reward_model.batch_size = config.dpo.batch_size = 8
    for name in ("ppo", "ppo_ptx"):
        config[name].update(iterations=1, batch_size=8, minibatch_size=8, warmup_iterations=0)
    config.evaluate.update(prompts=4, batch_size=4)
    return config


@pytest.mark.parametrize(
    "stages, starts",
    [
        ("sft,reward_model,ppo_ptx", {"sft": "small", "reward_model": "sft", "ppo_ptx": "sft"}),
        ("ppo_ptx,reward_model", {"reward_model": "small", "ppo_ptx": "small"}),
        ("sft,dpo", {"sft": "small", "dpo": "sft"}),
        ("dpo", {"dpo": "small"}),
        ("reward_model", {"reward_model": "small"}),
    ],
)
def test_every_stage_starts_from_the_one_before_it_or_from_the_model(folder, tmp_path, one_device, stages, starts):
    with run_lib.start(config_of(folder, stages), str(tmp_path / "run")) as run:
        pipeline.check(run)
        assert {stage: run.config[stage].init for stage in run.config.stages} == starts
        assert list(run.config.stages) == list(starts)
        assert run.config.prompt_length % 8 == run.config.completion_length % 8 == 0


def test_without_a_reward_model_the_released_one_is_asked_for(folder, tmp_path, one_device):
    with pytest.raises(InputError, match="ppo_ptx.reward names 'reward'"):
        with run_lib.start(config_of(folder, "ppo_ptx"), str(tmp_path / "run")) as run:
            pipeline.check(run)


def test_a_stage_that_there_is_not_is_one_sentence():
    with pytest.raises(InputError, match="'rlhf' is no stage; there are sft, reward_model, dpo, ppo, ppo_ptx"):
        chat.get_config("sft,rlhf")


@pytest.mark.slow
def test_the_whole_recipe_runs(folder, tmp_path, one_device, capsys):
    pipeline.run_stages(config_of(folder, "sft,reward_model,ppo_ptx"), tmp_path / "run")
    said = capsys.readouterr().out
    assert "sft.learning_rate=6.35e-05, by the size of the model" in said and "prompt_length=" in said
    evaluation = json.loads((tmp_path / "run/ppo_ptx/evaluation.json").read_text())
    assert evaluation["estimates"]["score"] and evaluation["estimates"]["kl"]
