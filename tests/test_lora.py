"""Adapters against the plain matrices that they stand for: W + (alpha / r) A B."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from decoding import cached_logits

from rlhf_jax import lora, model, token_loss
from rlhf_jax.lora import Lora
from rlhf_jax.runtime.errors import InputError

LORA = Lora(rank=3, alpha=6.0)
GPT = dataclasses.replace(tiny.CONFIG, lora=LORA)
LLAMA = tiny.llama(lora=LORA, scan_layers=True)
pytestmark = pytest.mark.usefixtures("simply_compiled")
FAMILIES = {
    "gpt": GPT,
    "llama, scanned": LLAMA,
    "queries and values": dataclasses.replace(GPT, lora=Lora(2, 1.0, ("wq", "wv"))),
}
families = pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)


def whole(config):
    return dataclasses.replace(config, lora=None)


@functools.partial(jax.jit, static_argnums=0)
def logits(config, params, tokens):
    mask = jnp.ones(tokens.shape, bool)
    return model.lm_logits(config, params, model.masked_hidden_states(config, params, tokens, mask))


def tokens_of(rows=3, length=12):
    return np.random.default_rng(0).integers(2, tiny.VOCAB, (rows, length)).astype(np.int32)


@families
def test_an_adapter_is_the_plain_matrix_that_it_stands_for(config):
    params = tiny.params_of(config, 0)
    layers = dict(lora.split(params)[0]["layers"])
    for name, a, b in lora.pairs(params):
        inputs = "hd" if name == "wo" else "i"
        outputs = "jk" if name in ("wq", "wk", "wv") else "j"
        product = np.einsum(f"l{inputs}r,lr{outputs}->l{inputs}{outputs}", a, b)
        layers[name] = layers[name] + config.lora.alpha / config.lora.rank * product
    assert {name for name, *_ in lora.pairs(params)} == set(config.adapted)
    wanted = lora.split(params)[0] | {"layers": layers}
    found = lora.merged(config.lora, params)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, wanted)
    np.testing.assert_allclose(
        logits(config, params, tokens_of()), logits(whole(config), wanted, tokens_of()), atol=3e-4
    )


@families
def test_a_new_adapter_changes_no_bit(config):
    params = model.init_params(config, jax.random.key(0))
    base, adapter = lora.split(params)
    assert (logits(config, params, tokens_of()) == logits(whole(config), base, tokens_of())).all()
    for name, a, b in lora.pairs(params):
        inputs, _ = lora.sizes(name, config.matrices[name])
        assert not b.any() and 0.8 * inputs**-0.5 < np.abs(a).max() <= inputs**-0.5  # torch's linear layer, as PEFT


@families
def test_cached_decoding_has_the_adapters(config):
    params, tokens = tiny.params_of(config, 0), tokens_of()
    found = cached_logits(config, params, tokens[:, :11], np.ones((3, 11), bool), tokens[:, 11:])
    np.testing.assert_allclose(found, logits(config, params, tokens)[:, 10:], atol=1e-4)


@families
def test_the_gradient_is_that_of_the_plain_matrices_by_the_chain_rule(config):
    """With G the gradient of the matrix W + s A B: dA = s G B^T and dB = s A^T G."""
    params, batch = tiny.params_of(config, 0), tiny.documents_of(4, 16)
    base, adapter = lora.split(params)

    def loss(config, params):
        return token_loss.token_loss(config, params, batch).total

    found = jax.grad(lambda adapter: loss(config, lora.joined(base, adapter)))(adapter)
    full = jax.grad(lambda params: loss(whole(config), params))(lora.merged(config.lora, params))
    assert jax.tree.structure(found) == jax.tree.structure(adapter)
    for name, a, b in lora.pairs(params):
        rank, size = a.shape[-1], lora.sizes(name, config.matrices[name])
        for layer in range(config.num_layers):
            g, a_, b_ = np.asarray(full["layers"][name][layer]).reshape(size), a[layer].reshape(-1, rank), b[layer]
            b_ = b_.reshape(rank, -1)
            pairs = {f"{name}_a": g @ b_.T, f"{name}_b": a_.T @ g}
            for part, wanted in pairs.items():
                ours = np.asarray(found["layers"][part][layer]).reshape(wanted.shape)
                np.testing.assert_allclose(ours, config.lora.scale * wanted, rtol=2e-4, atol=1e-4 * np.abs(ours).max())


def test_parts_are_named_and_joined_without_a_copy():
    params = tiny.params_of(LLAMA, 0, "scalar")
    base, trained = lora.split(params)
    assert set(trained) == {"layers", "scalar_kernel", "scalar_bias"} and "scalar_kernel" not in base
    again = lora.joined(base, trained)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    assert all(x is y for x, y in zip(jax.tree.leaves(again), jax.tree.leaves(params)))
    plain = tiny.params_of(whole(LLAMA), 0)
    assert lora.split(plain) == ({}, plain) and lora.joined({}, plain) is plain and lora.joined(base, plain) is plain


def test_dropout_is_on_the_inputs_of_adapters_alone_and_depends_on_its_keys_alone():
    noisy = dataclasses.replace(LLAMA, lora=dataclasses.replace(LORA, dropout=0.5))
    params, tokens = tiny.params_of(noisy, 0), tokens_of()
    positions, segments = np.broadcast_to(np.arange(12), tokens.shape), np.ones_like(tokens)

    def states(params, seed, config=noisy):
        keys = None if seed is None else jax.random.split(jax.random.key(seed), len(tokens))
        return np.asarray(model.hidden_states(config, params, tokens, positions, segments, keys=keys))

    plain = states(params, 0, LLAMA)
    assert (states(params, None) == plain).all() and (states(params, 0) == states(params, 0)).all()
    assert (states(params, 0) != plain).any() and (states(params, 0) != states(params, 1)).any()
    base, adapter = lora.split(params)
    silent = {name: 0 * x if name.endswith("_b") else x for name, x in adapter["layers"].items()}
    silent = lora.joined(base, {"layers": silent})
    assert (states(silent, 0) == states(silent, None)).all()


@pytest.mark.parametrize(
    "settings, words",
    [
        (Lora(33, 1.0), ["model.lora.rank=33", "wq", "32 x 32", "at most 32"]),
        (Lora(9, 1.0, ("wo", "wk")), ["model.lora.rank=9", "wk", "32 x 8", "at most 8"]),
        (Lora(2, 1.0, ("w_gate",)), ["model.lora.matrices names 'w_gate'", "wq, wk, wv, wo, w_up, w_down"]),
    ],
)
def test_an_adapter_that_a_model_cannot_have_is_one_sentence(settings, words):
    config = tiny.CONFIG if settings.rank != 9 else dataclasses.replace(tiny.CONFIG, num_kv_heads=2)
    with pytest.raises(InputError) as error:
        dataclasses.replace(config, lora=settings)
    assert all(word in str(error.value) for word in words)
