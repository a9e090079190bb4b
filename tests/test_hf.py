"""Released models: what transformers computes and we compute is the same, whichever way a model went."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from released import LENGTH, MODELS, VOCAB, save_with_transformers, their_logits, torch_and_transformers

from rlhf_jax import generate, hf, model, ppo, sharding
from rlhf_jax.hf import tensors as tensors_lib
from rlhf_jax.runtime.errors import InputError

WINDOW = 20  # of the Mistral here


def some(names, *default):
    """The default ones, and the others with the slow tests."""
    return [name if name in default else pytest.param(name, marks=pytest.mark.slow) for name in names]


@functools.partial(jax.jit, static_argnums=0)
def _logits(config, params, tokens):
    mask = jnp.ones(tokens.shape, bool)
    if "scalar_kernel" in params:
        return ppo.sequence_scores(config, params, tokens, mask)
    return model.lm_logits(config, params, model.masked_hidden_states(config, params, tokens, mask))


def our_logits(folder, tokens, head="lm"):
    config = hf.load_config(folder)
    return np.asarray(_logits(config, hf.load_params(folder, config, head=head), tokens))


def tokens_of(length, vocab=VOCAB, rows=3):
    return np.random.default_rng(1).integers(3, vocab, size=(rows, length), dtype=np.int32)


def bits(folder):
    """name -> dtype, shape and bytes of every tensor."""
    return {
        name: (tensor.dtype, tensor.shape, tensor.open().tobytes()) for name, tensor in tensors_lib.find(folder).items()
    }


def exported(source, folder, head="lm", **how):
    """A folder read into our parameters, and written from them."""
    folder.mkdir()
    config = hf.load_config(source)
    hf.save(folder, config, hf.load_params(source, config, head=head), head=head, settings={"pad_token_id": 0}, **how)
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_a_model_gives_the_logits_of_transformers_both_ways(tmp_path, name):
    """In: our logits are theirs. Out: what we write from our parameters is the same model, bit for bit."""
    source = save_with_transformers(tmp_path / "in", name)
    tokens = tokens_of(min(LENGTH, hf.load_config(source).max_length))
    ours, theirs = our_logits(source, tokens), their_logits(source, tokens)
    assert np.std(theirs) > 0.3
    np.testing.assert_allclose(ours[..., :VOCAB], theirs, atol=1e-4)
    assert np.all(ours[..., VOCAB:] < -1e8)  # the padding of the vocabulary
    written = exported(source, tmp_path / "out")
    assert bits(written) == bits(source)
    np.testing.assert_array_equal(their_logits(written, tokens), theirs)


def test_stories260k_gives_the_logits_of_transformers(shared_data, tmp_path):
    folder = shared_data / "stories260K"
    tokens = tokens_of(60, vocab=512)
    tokens[:, 0] = 1
    theirs = their_logits(folder, tokens)
    np.testing.assert_allclose(our_logits(folder, tokens), theirs, atol=1e-4)
    written = exported(folder, tmp_path / "out")
    assert bits(written) == bits(folder)
    np.testing.assert_array_equal(their_logits(written, tokens), theirs)


def greedy_tokens(folder, prompts, length, eos_id):
    config = hf.load_config(folder)
    sample = jax.jit(functools.partial(generate.sample, config, sizes=generate.Sizes(length, eos_id, 0)))
    rollout = sample(hf.load_params(folder, config), prompts, np.ones(prompts.shape, bool), jax.random.key(0), 0.0)
    return np.asarray(rollout.tokens)


def their_greedy_tokens(folder, prompts, length, eos_id):
    torch, transformers = torch_and_transformers()
    network = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = network.generate(
        torch.from_numpy(prompts).long(),
        attention_mask=torch.ones(prompts.shape, dtype=torch.long),
        do_sample=False,
        max_new_tokens=length,
        eos_token_id=eos_id,
        pad_token_id=0,
    )
    return np.pad(found.numpy(), ((0, 0), (0, prompts.shape[1] + length - found.shape[1])))


@pytest.mark.parametrize("name", some(MODELS, "pythia"))
def test_an_exported_model_generates_the_same_greedy_tokens(tmp_path, name):
    source = save_with_transformers(tmp_path / "in", name, std=2.0)
    prompts = tokens_of(5)
    ours = greedy_tokens(source, prompts, 12, eos_id=2)
    np.testing.assert_array_equal(ours, their_greedy_tokens(exported(source, tmp_path / "out"), prompts, 12, eos_id=2))
    assert len(np.unique(ours[:, 5:])) > 1


def test_stories260k_generates_the_same_greedy_tokens(shared_data, tmp_path):
    folder = shared_data / "stories260K"
    prompts = np.array([[1, 403, 407], [1, 410, 280]], np.int32)
    ours = greedy_tokens(folder, prompts, 24, eos_id=2)
    np.testing.assert_array_equal(ours, their_greedy_tokens(exported(folder, tmp_path / "out"), prompts, 24, eos_id=2))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", some(["gpt2", "pythia", "qwen3"], "pythia"))
def test_import_then_export_is_the_same_bits(tmp_path, name, dtype):
    source = save_with_transformers(tmp_path / "in", name, dtype=dtype)
    assert {str(tensor.dtype) for tensor in tensors_lib.find(source).values()} == {dtype}
    assert bits(exported(source, tmp_path / "out", dtype=dtype)) == bits(source)


def test_float16_refuses_what_it_cannot_hold(tmp_path):
    params = tiny.params_of(tiny.CONFIG, 0)
    params["layers"]["w_up"][1, 3, 4] = 1e5
    with pytest.raises(InputError, match=r"'transformer.h.1.mlp.c_fc.weight' has values that float16 does not have"):
        hf.save(tmp_path, tiny.CONFIG, params, dtype="float16")


def test_shards_and_their_index_are_read_and_written(tmp_path):
    torch, transformers = torch_and_transformers()
    source = save_with_transformers(tmp_path / "in", "qwen2")
    transformers.AutoModelForCausalLM.from_pretrained(source).save_pretrained(tmp_path / "cut", max_shard_size="20KB")
    assert len(list((tmp_path / "cut").glob("*.safetensors"))) > 2
    written = exported(tmp_path / "cut", tmp_path / "out", shard_bytes=20_000)
    sizes = [path.stat().st_size for path in written.glob("*.safetensors")]
    assert len(sizes) > 2 and max(sizes) < 20_000 + 4096
    assert bits(written) == bits(tmp_path / "cut") == bits(source)
    tokens = tokens_of(LENGTH)
    np.testing.assert_array_equal(their_logits(written, tokens), their_logits(source, tokens))


# ---------------------------------------------------------------------------- reward models


@pytest.mark.parametrize("name", some(MODELS, "gpt2", "llama"))
def test_a_reward_model_gives_the_scores_of_transformers_both_ways(tmp_path, name):
    source = save_with_transformers(tmp_path / "in", name, head="scalar", std=0.6)
    tokens = tokens_of(9)
    theirs = their_logits(source, tokens)
    assert hf.head_of(source) == "scalar" and np.std(theirs) > 0.05
    np.testing.assert_allclose(our_logits(source, tokens, "scalar"), theirs, atol=1e-4)
    written = exported(source, tmp_path / "out", "scalar")
    assert {name: data for name, data in bits(written).items() if name != "score.bias"} == bits(source)
    np.testing.assert_allclose(their_logits(written, tokens), theirs, atol=1e-6)


@pytest.mark.parametrize("name", some(["gpt2", "opt", "pythia", "llama"], "gpt2", "llama"))
def test_the_demonstration_bias_survives(tmp_path, name):
    """We read it back bit for bit. transformers has it too where the last norm has a bias, and else config.json says it."""
    source = save_with_transformers(tmp_path / "in", name, head="scalar")
    config = hf.load_config(source)
    params = hf.load_params(source, config, head="scalar") | {"scalar_bias": np.float32(-1.2345678)}
    (tmp_path / "out").mkdir()
    hf.save(tmp_path / "out", config, params, head="scalar", settings={"pad_token_id": 0})
    jax.tree.map(np.testing.assert_array_equal, hf.load_params(tmp_path / "out", config, head="scalar"), params)
    tokens = tokens_of(9)
    lacking = json.loads((tmp_path / "out" / "config.json").read_text())["score_bias"]
    assert lacking == (np.float32(-1.2345678) if name == "llama" else 0.0)
    ours = np.asarray(_logits(config, params, tokens))
    np.testing.assert_allclose(their_logits(tmp_path / "out", tokens) + lacking, ours, atol=1e-4)


def their_scores(folder, tokens, mask, **more):
    """f32[B] of transformers, which looks for the last token of each row by itself."""
    torch, transformers = torch_and_transformers()
    network = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        found = network(torch.from_numpy(tokens).long(), attention_mask=torch.from_numpy(mask).long(), **more)
    return found.logits[:, 0].numpy()


def padded(rows, length, side, pad_id=0):
    """i32[B, T] and bool[B, T]: the rows, padded on the left or on the right."""
    room = [(length - len(row), 0) if side == "left" else (0, length - len(row)) for row in rows]
    tokens = [np.pad(row, place, constant_values=pad_id) for row, place in zip(rows, room)]
    return np.stack(tokens), np.stack([np.pad(np.ones(len(row), bool), place) for row, place in zip(rows, room)])


@functools.cache
def rows_of_all_lengths():
    """A full row, one token, and two rows that hold the padding token as their own: first, and before the last."""
    rows = [np.random.default_rng(7).integers(1, VOCAB, length, np.int32) for length in (12, 1, 9, 5)]
    rows[2][0] = rows[3][3] = 0
    return rows


@pytest.mark.parametrize("name", MODELS)
def test_the_scores_of_a_padded_batch_are_those_of_transformers(tmp_path, name):
    """With the bias of the head, and with rows of other lengths padded on either side."""
    torch, _ = torch_and_transformers()
    source = save_with_transformers(tmp_path / "in", name, head="scalar", std=0.4)
    config = hf.load_config(source)
    params = hf.load_params(source, config, head="scalar") | {"scalar_bias": np.float32(1.7)}
    (tmp_path / "out").mkdir()
    hf.save(tmp_path / "out", config, params, head="scalar", settings={"pad_token_id": 0})
    lacking = json.loads((tmp_path / "out" / "config.json").read_text())["score_bias"]
    assert lacking == (0 if config.norm == "layernorm" else np.float32(1.7))
    batches = {side: padded(rows_of_all_lengths(), 12, side) for side in ("right", "left")}
    both = [np.concatenate(parts) for parts in zip(*batches.values())]  # in one batch, which compiles once
    found = np.split(np.asarray(jax.jit(ppo.sequence_scores, static_argnums=0)(config, params, *both)), 2)
    for (side, (tokens, mask)), ours in zip(batches.items(), found):
        positions = torch.from_numpy(
            (np.cumsum(mask, axis=1) - 1).clip(0)
        )  # GPT-2 alone does not take them from the mask
        more = {"position_ids": positions} if name == "gpt2" and side == "left" else {}
        np.testing.assert_allclose(their_scores(tmp_path / "out", tokens, mask, **more) + lacking, ours, atol=1e-4)
        assert np.std(ours) > 0.05


def test_a_classifier_of_several_labels_is_no_reward_model(tmp_path):
    source = save_with_transformers(tmp_path, "gpt2", head="scalar")
    settings = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(settings | {"id2label": {"0": "a", "1": "b"}}))
    with pytest.raises(InputError, match="config.json: the model has 2 labels; a reward model must have one"):
        hf.head_of(source)


# ---------------------------------------------------------------------------- what is which family


def test_our_own_models_have_a_family():
    assert hf.family_of(tiny.CONFIG) == "gpt2"
    assert hf.family_of(dataclasses.replace(tiny.CONFIG, mlp="relu", position_offset=2)) == "opt"
    assert hf.family_of(tiny.llama(head_size=6)) == "llama"
    assert hf.family_of(tiny.llama(qkv_bias=True)) == "qwen2"
    assert hf.family_of(tiny.llama(qk_norm=True)) == "qwen3"


def test_a_model_that_no_family_computes_is_refused():
    with pytest.raises(InputError, match="no model family .*norm=rmsnorm, mlp=gelu"):
        hf.family_of(tiny.llama(mlp="gelu"))


@pytest.mark.parametrize("name, longest", [("mistral", WINDOW), ("qwen2", LENGTH)])
def test_a_sliding_window_bounds_the_length(tmp_path, name, longest):
    """Up to its length attention within a window is attention; beyond it transformers' logits are others than ours."""
    source = save_with_transformers(tmp_path, name)
    assert hf.load_config(source).max_length == longest
    if name == "mistral":
        tokens = tokens_of(LENGTH)
        difference = np.abs(our_logits(source, tokens)[..., :VOCAB] - their_logits(source, tokens)).max(axis=(0, 2))
        assert difference[:WINDOW].max() < 1e-4 < difference[WINDOW:].min()


# ---------------------------------------------------------------------------- on a mesh


@pytest.mark.parametrize("name", some(MODELS, "pythia", "qwen3"))
def test_each_device_gets_its_part(tmp_path, name):
    source = save_with_transformers(tmp_path, name)
    config = hf.load_config(source)
    shapes, axes = model.param_shapes(config), model.logical_axes(config)
    places = sharding.param_shardings(axes, shapes, tiny.mesh_of("2x2x2"))
    whole, params = hf.load_params(source, config), hf.load_params(source, config, places)
    jax.tree.map(np.testing.assert_array_equal, params, whole)
    assert jax.tree.map(lambda x: x.sharding, params) == places
    assert params["layers"]["w_up"].addressable_shards[0].data.size < whole["layers"]["w_up"].size
