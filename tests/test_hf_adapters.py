"""Adapters in PEFT's files: what peft computes and we compute is the same, whichever way an adapter went."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from released import save_with_transformers, torch_and_transformers

from rlhf_jax import hf, lora, model, ppo, sources
from rlhf_jax.hf import adapters
from rlhf_jax.lora import Lora
from rlhf_jax.runtime.errors import InputError

TOKENS = np.random.default_rng(1).integers(3, 70, size=(3, 12), dtype=np.int32)
FUSED, TWO_OUTPUTS = "pythia", "gpt2"  # queries, keys and values in one layer; and two layers whose names end alike


def peft_of():
    torch, transformers = torch_and_transformers()
    peft = pytest.importorskip("peft", reason="peft is not installed: bash launch/test.sh --torch")
    return torch, transformers, peft


def network_of(folder, head="lm"):
    torch, transformers, _ = peft_of()
    kind = "AutoModelForCausalLM" if head == "lm" else "AutoModelForSequenceClassification"
    labels = {} if head == "lm" else {"num_labels": 1}
    return getattr(transformers, kind).from_pretrained(folder, dtype=torch.float32, **labels)


def their_logits(network):
    torch, *_ = peft_of()
    with torch.no_grad():
        return network.eval()(torch.from_numpy(TOKENS).long()).logits.numpy()


@functools.partial(jax.jit, static_argnums=0)
def _logits(config, params):
    mask = jnp.ones(TOKENS.shape, bool)
    if "scalar_kernel" in params:
        return ppo.sequence_scores(config, params, TOKENS, mask)
    return model.lm_logits(config, params, model.masked_hidden_states(config, params, TOKENS, mask))


def params_of(base, config, seed=0, head="lm"):
    """The released base with random adapters and, for a reward model, a random head."""
    whole = hf.load_params(base, dataclasses.replace(config, lora=None))
    return lora.joined(whole, lora.trained(tiny.params_of(config, seed, head)))


@pytest.mark.parametrize("name", ["llama", FUSED, TWO_OUTPUTS])
def test_what_peft_has_trained_computes_the_same_here(tmp_path, name):
    torch, _, peft = peft_of()
    base = save_with_transformers(tmp_path / "base", name)
    targets = {
        "llama": ["q_proj", "o_proj", "up_proj"],
        FUSED: ["query_key_value", "dense"],
        TWO_OUTPUTS: ["c_attn", "c_fc"],
    }
    torch.manual_seed(1)
    settings = peft.LoraConfig(
        r=3, lora_alpha=7, target_modules=targets[name], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    network = peft.get_peft_model(network_of(base), settings)
    network.save_pretrained(tmp_path / "adapter")
    source = sources.at(tmp_path / "adapter")
    assert (source.head, source.lora.rank, source.lora.alpha) == ("lm", 3, 7.0) and source.base.folder == base
    config = source.shape()
    params = lora.joined(
        hf.load_params(base, dataclasses.replace(config, lora=None)), adapters.load_params(source.folder, config)
    )
    theirs = their_logits(network)
    np.testing.assert_allclose(_logits(config, params)[..., : theirs.shape[-1]], theirs, atol=1e-4)
    assert np.abs(theirs - their_logits(network_of(base))).max() > 0.1
    whole = dataclasses.replace(config, lora=None)
    np.testing.assert_allclose(
        _logits(whole, lora.merged(config.lora, params))[..., : theirs.shape[-1]], theirs, atol=1e-3
    )


@pytest.mark.parametrize("name, matrices", [("llama", ()), (FUSED, ()), (TWO_OUTPUTS, ("wq", "wv", "wo", "w_down"))])
def test_what_we_write_computes_the_same_in_peft_and_comes_back(tmp_path, name, matrices):
    *_, peft = peft_of()
    base = save_with_transformers(tmp_path / "base", name)
    config = hf.load_config(base, lora=Lora(2, 3.0, matrices))
    params = params_of(base, config)
    (tmp_path / "adapter").mkdir()
    adapters.save(tmp_path / "adapter", config, params, str(base))
    theirs = their_logits(peft.PeftModel.from_pretrained(network_of(base), tmp_path / "adapter"))
    np.testing.assert_allclose(_logits(config, params)[..., : theirs.shape[-1]], theirs, atol=1e-4)
    found = adapters.read_lora(tmp_path / "adapter", dataclasses.replace(config, lora=None))
    assert (found.rank, found.alpha, set(found.matrices)) == (2, 3.0, set(config.adapted))
    again = adapters.load_params(tmp_path / "adapter", config)
    jax.tree.map(np.testing.assert_array_equal, again, lora.trained(params))


def test_a_reward_models_head_goes_with_its_adapters(tmp_path):
    *_, peft = peft_of()
    base = save_with_transformers(tmp_path / "base", "llama")
    config = hf.load_config(base, lora=Lora(2, 3.0))
    params = params_of(base, config, head="scalar")
    (tmp_path / "adapter").mkdir()
    adapters.save(tmp_path / "adapter", config, params, str(base), head="scalar")
    network = network_of(base, "scalar")
    network.config.pad_token_id = 0
    theirs = their_logits(peft.PeftModel.from_pretrained(network, tmp_path / "adapter"))[:, 0]
    np.testing.assert_allclose(_logits(config, params), theirs + params["scalar_bias"], atol=1e-4)
    source = sources.at(tmp_path / "adapter")
    assert source.head == "scalar"
    again = adapters.load_params(source.folder, config, head="scalar")
    jax.tree.map(np.testing.assert_array_equal, again, lora.trained(params))


# ---------------------------------------------------------------------------- bad input


@pytest.fixture
def adapter(tmp_path):
    """An adapter of a llama, made without torch; `change` rewrites its settings."""
    from released import save_llama

    base = save_llama(tmp_path / "base")
    config = hf.load_config(base, lora=Lora(2, 3.0))
    folder = tmp_path / "adapter"
    folder.mkdir()
    adapters.save(folder, config, params_of(base, config), "../base")
    return folder, config


def test_the_base_is_found_beside_the_adapter(adapter):
    folder, config = adapter
    assert sources.at(folder).base.folder == folder.parent / "base" and sources.at(folder).shape() == config


@pytest.mark.parametrize(
    "change, words",
    [
        ({"peft_type": "IA3"}, ["'peft_type' = 'IA3'", "'LORA'"]),
        ({"use_dora": True}, ["'use_dora' = True", "False"]),
        ({"bias": "all"}, ["'bias' = 'all'", "'none'"]),
        ({"r": 0}, ["'r' is 0", "a whole number from 1"]),
        ({"r": True}, ["'r' is True"]),
        ({"lora_alpha": "16"}, ["'lora_alpha' is '16'"]),
        ({"task_type": "TOKEN_CLS"}, ["'task_type' = 'TOKEN_CLS'", "CAUSAL_LM or SEQ_CLS"]),
        ({"base_model_name_or_path": None}, ["'base_model_name_or_path' must name"]),
        ({"base_model_name_or_path": "meta/llama"}, ["'meta/llama'", "rlhf_jax.hf import"]),
        ({"r": 30}, ["model.lora.rank=30 is larger than the matrix"]),
    ],
)
def test_settings_that_cannot_be_read_are_one_sentence(adapter, change, words):
    folder, _ = adapter
    path = folder / adapters.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError) as error:
        source = sources.at(folder)
        source.head, source.shape()
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda tensors, name: tensors.pop(name), ["is missing"]),
        (lambda tensors, name: tensors.update({name: tensors[name][:, :-1]}), ["is [2, 23]", "[2, 24]"]),
        (lambda tensors, name: tensors.update({name: tensors[name] * np.nan}), ["not finite"]),
        (lambda tensors, name: tensors.update({"base_model.model.lm_head.lora_A.weight": tensors[name]}), ["lm_head"]),
    ],
)
def test_tensors_that_do_not_fit_are_one_sentence(adapter, change, words):
    import safetensors.numpy

    folder, config = adapter
    tensors = safetensors.numpy.load_file(folder / adapters.WEIGHTS)
    change(tensors, "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight")
    safetensors.numpy.save_file(tensors, folder / adapters.WEIGHTS)
    with pytest.raises(InputError) as error:
        adapters.load_params(folder, config)
    assert all(word in str(error.value) for word in words), error.value
