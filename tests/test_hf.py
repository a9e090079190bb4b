"""Released weights: the same logits as transformers, and one clear sentence where a folder is not right."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from rlhf_jax import hf, model
from rlhf_jax.errors import InputError

TINY = dict(
    model_type="llama", hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=6,
    num_key_value_heads=2, vocab_size=70, max_position_embeddings=32, rms_norm_eps=1e-5, rope_theta=500.0,
    hidden_act="silu", attention_bias=False, mlp_bias=False, tie_word_embeddings=True,
)  # fmt: skip


def our_logits(folder, tokens):
    config = hf.load_config(folder)
    params = hf.load_params(folder, config)
    hidden = model.masked_hidden_states(config, params, tokens, jnp.ones(tokens.shape, bool))
    return np.asarray(model.lm_logits(config, params, hidden))


def their_logits(folder, tokens):
    torch = pytest.importorskip("torch", reason="torch is not installed: bash launch/test.sh --torch")
    import transformers

    network = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return network(torch.from_numpy(tokens).long()).logits.numpy()


def save_random_llama(folder, **changes):
    torch = pytest.importorskip("torch", reason="torch is not installed: bash launch/test.sh --torch")
    import transformers

    torch.manual_seed(0)
    network = transformers.LlamaForCausalLM(transformers.LlamaConfig(**TINY | changes))
    for parameter in network.parameters():  # Released norms are not all ones.
        torch.nn.init.normal_(parameter, std=0.5)
    network.save_pretrained(folder)


@pytest.fixture
def folder(tmp_path):
    """A folder like a released one, made without torch; tests break it."""
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    width, mlp, kv = TINY["hidden_size"], TINY["intermediate_size"], 8
    shapes = {"model.embed_tokens.weight": (70, width), "model.norm.weight": (width,)}
    for layer in range(3):
        prefix = f"model.layers.{layer}."
        shapes |= {prefix + name: shape for name, shape in {
            "input_layernorm.weight": (width,), "post_attention_layernorm.weight": (width,),
            "self_attn.q_proj.weight": (width, width), "self_attn.o_proj.weight": (width, width),
            "self_attn.k_proj.weight": (kv, width), "self_attn.v_proj.weight": (kv, width),
            "mlp.gate_proj.weight": (mlp, width), "mlp.up_proj.weight": (mlp, width),
            "mlp.down_proj.weight": (width, mlp),
        }.items()}  # fmt: skip
    rng = np.random.default_rng(0)
    write_tensors(tmp_path, {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()})
    return tmp_path


def read_tensors(folder):
    return safetensors.numpy.load_file(folder / "model.safetensors")


def write_tensors(folder, tensors):
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")


def load(folder):
    return hf.load_params(folder, hf.load_config(folder))


@pytest.mark.parametrize("changes", [
    dict(tie_word_embeddings=True), dict(tie_word_embeddings=False), dict(num_key_value_heads=6),
    dict(vocab_size=64), dict(rope_theta=10_000.0),
], ids=str)  # fmt: skip
def test_random_llama_gives_the_logits_of_transformers(tmp_path, changes):
    save_random_llama(tmp_path, **changes)
    tokens = np.random.default_rng(1).integers(64, size=(3, 17), dtype=np.int32)
    ours, theirs = our_logits(tmp_path, tokens), their_logits(tmp_path, tokens)
    assert np.std(theirs) > 0.5
    np.testing.assert_allclose(ours[..., : theirs.shape[-1]], theirs, atol=1e-4)
    assert np.all(ours[..., theirs.shape[-1] :] < -1e8)  # the padding of the vocabulary


def test_stories260k_gives_the_logits_of_transformers(shared_data):
    folder = shared_data / "stories260K"
    tokens = np.random.default_rng(2).integers(3, 512, size=(2, 60), dtype=np.int32)
    tokens[:, 0] = 1
    np.testing.assert_allclose(our_logits(folder, tokens), their_logits(folder, tokens), atol=1e-4)


def test_params_have_the_layout_of_init_params(folder):
    config = hf.load_config(folder, scan_layers=False)
    assert not config.scan_layers
    params, ours = hf.load_params(folder, config), model.param_shapes(config)
    assert jax.tree.map(lambda p: (p.shape, p.dtype), params) == jax.tree.map(lambda p: (p.shape, p.dtype), ours)


def test_bfloat16_tensors_become_float32(folder):
    rounded = {name: jnp.asarray(x, jnp.bfloat16) for name, x in read_tensors(folder).items()}
    write_tensors(folder, {name: np.asarray(x) for name, x in rounded.items()})
    params = load(folder)
    assert params["final_norm"]["scale"].dtype == np.float32
    np.testing.assert_array_equal(params["final_norm"]["scale"], rounded["model.norm.weight"].astype(jnp.float32))


def test_rope_theta_is_read_from_both_places(folder):
    settings = {key: value for key, value in TINY.items() if key != "rope_theta"}
    settings["rope_parameters"] = {"rope_type": "default", "rope_theta": 777.0}
    assert hf.load_config(folder).rope_theta == 500.0
    (folder / "config.json").write_text(json.dumps(settings))
    assert hf.load_config(folder).rope_theta == 777.0


@pytest.mark.parametrize(("changes", "sentence"), [
    (dict(model_type="mamba"), "config.json: model_type 'mamba' is unknown; it can be llama"),
    (dict(hidden_act="gelu"), "config.json: 'hidden_act' = 'gelu' is not supported; it can be 'silu'"),
    (dict(attention_bias=True), "config.json: 'attention_bias' = True is not supported"),
    (dict(head_dim=16), "config.json: 'head_dim' = 16 is not supported; it can be 4"),
    (dict(rope_scaling={"type": "linear"}), "config.json: 'rope_scaling' = "),
    (dict(rope_parameters={"rope_type": "yarn"}), "'rope_parameters.rope_type' = 'yarn'"),
    (dict(vocab_size=None), "config.json: 'vocab_size' is None; it must be a positive number"),
    (dict(num_hidden_layers=-1), "config.json: 'num_hidden_layers' is -1"),
], ids=str)  # fmt: skip
def test_a_config_that_we_cannot_follow_is_named(folder, changes, sentence):
    (folder / "config.json").write_text(json.dumps(TINY | changes))
    with pytest.raises(InputError, match=re.escape(sentence)):
        hf.load_config(folder)


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_a_broken_config_json_is_named(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json .*Hugging Face model folder"):
        hf.load_config(folder)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere/config\.json cannot be read"):
        hf.load_config(tmp_path / "nowhere")


def test_a_missing_tensor_is_named(folder):
    tensors = read_tensors(folder)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    write_tensors(folder, tensors)
    with pytest.raises(InputError, match=r"'model\.layers\.1\.mlp\.up_proj\.weight' is missing"):
        load(folder)


def test_an_extra_tensor_is_named_but_rotary_frequencies_are_no_parameters(folder):
    tensors = read_tensors(folder) | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32)}
    write_tensors(folder, tensors)
    load(folder)
    write_tensors(folder, tensors | {"model.layers.3.mlp.up_proj.weight": np.ones((40, 24), np.float32)})
    with pytest.raises(InputError, match=r"'model\.layers\.3\.mlp\.up_proj\.weight' is unexpected"):
        load(folder)


@pytest.mark.parametrize("name", ["model.layers.2.self_attn.k_proj.weight", "model.embed_tokens.weight"])
def test_a_misshapen_tensor_is_named(folder, name):
    tensors = read_tensors(folder)
    tensors[name] = np.ascontiguousarray(tensors[name].T)
    write_tensors(folder, tensors)
    with pytest.raises(InputError, match=rf"'{re.escape(name)}' is \[24, \d+\]; by config.json it must be \[\d+, 24\]"):
        load(folder)


def test_a_pickle_is_not_read(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"model\.safetensors is missing, only pytorch_model\.bin"):
        load(folder)


def test_a_cut_file_is_named(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"model\.safetensors cannot be read"):
        load(folder)
