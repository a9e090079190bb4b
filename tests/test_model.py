"""The Transformer against NumPy, and all the ways to compute the same thing against each other."""

import dataclasses
import functools
import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from decoding import cached_logits

from rlhf_jax import generate, model, train
from rlhf_jax.model import decode
from rlhf_jax.runtime.errors import InputError

T = 14
pytestmark = pytest.mark.usefixtures("simply_compiled")
FAMILIES = {"gpt": tiny.CONFIG, "llama": tiny.llama()}
OTHERS = {  # test_hf.py compares them with transformers
    "opt": dataclasses.replace(tiny.CONFIG, mlp="relu", position_offset=2),
    "gpt_neox": dataclasses.replace(
        tiny.CONFIG,
        positions="rope",
        rotary_fraction=0.5,
        mlp="gelu_exact",
        parallel_residual=True,
        tie_embeddings=False,
    ),
    "llama3": tiny.llama(rope_scaling=(8.0, 1.0, 4.0, 16.0)),
    "qwen2": tiny.llama(qkv_bias=True),
    "qwen3": tiny.llama(qk_norm=True, head_size=6, scan_layers=True),
    "gemma": tiny.llama(norm="rmsnorm_plus_one", mlp="geglu", embedding_scale=True, head_size=6, tie_embeddings=True),
}
# Each is what others are: in the scanned program, in qwen3, or in opt.
LATE = dict.fromkeys(("llama", "gpt_neox", "gemma"), pytest.mark.slow)
families = pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
replace = dataclasses.replace


@functools.partial(jax.jit, static_argnums=0)
def masked_logits(config, params, tokens, mask):
    return model.lm_logits(config, params, model.masked_hidden_states(config, params, tokens, mask))


@functools.partial(jax.jit, static_argnums=0)
def packed_logits(config, params, batch):
    hidden = model.hidden_states(config, params, batch.tokens, batch.positions, batch.segment_ids)
    return model.lm_logits(config, params, hidden)


@functools.cache
def lm_params(config):
    return tiny.params_of(config, 0)


def random_tokens(rows=3, length=T, seed=0):
    return np.random.default_rng(seed).integers(2, tiny.VOCAB, (rows, length)).astype(np.int32)


# --- Against NumPy --------------------------------------------------------------------------------


def logits_by_loop(config, params, tokens):
    """One row in float64, layer by layer and head by head, as the papers write it."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def norm(x, p):
        if config.norm == "rmsnorm":
            return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_eps) * p["scale"]
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + config.norm_eps) * p["scale"] + p["bias"]

    def rotate(x):  # dimension i turns with dimension i + half
        if config.positions != "rope":
            return x
        half = config.head_dim // 2
        out = np.empty_like(x)
        for t in range(len(x)):
            for i in range(half):
                angle = t * config.rope_theta ** (-2 * i / config.head_dim)
                turned = (x[t, i] + 1j * x[t, i + half]) * np.exp(1j * angle)
                out[t, i], out[t, i + half] = turned.real, turned.imag
        return out

    def gelu(x):  # GPT-2's
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    x = params["embedding"][tokens]
    if config.positions == "learned":
        x = x + params["positions"][: len(tokens)]
    for layer in range(config.num_layers):
        p = jax.tree.map(lambda w: w[layer], params["layers"])
        y = norm(x, p["norm1"])
        for head in range(config.num_heads):
            group = head // (config.num_heads // config.kv_heads)
            q = rotate(y @ p["wq"][:, head] + (p["bq"][head] if config.use_bias else 0))
            k = rotate(y @ p["wk"][:, group] + (p["bk"][group] if config.use_bias else 0))
            v = y @ p["wv"][:, group] + (p["bv"][group] if config.use_bias else 0)
            scores = np.where(np.tri(len(x), dtype=bool), q @ k.T / np.sqrt(config.head_dim), -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            x = x + weights / weights.sum(-1, keepdims=True) @ v @ p["wo"][head]
        x = x + (p["bo"] if config.use_bias else 0)
        y = norm(x, p["norm2"])
        up = y @ p["w_up"] + (p["b_up"] if config.use_bias else 0)
        if config.mlp == "swiglu":
            gate = y @ p["w_gate"]
            up = gate / (1 + np.exp(-gate)) * up
        else:
            up = gelu(up)
        x = x + up @ p["w_down"] + (p["b_down"] if config.use_bias else 0)
    table = params["embedding" if config.tie_embeddings else "lm_head"]
    return norm(x, params["final_norm"]) @ table[: config.vocab_size].T


@families
def test_the_model_equals_numpy(config):
    tokens = random_tokens()
    logits = masked_logits(config, lm_params(config), tokens, np.ones_like(tokens, bool))
    assert logits.dtype == jnp.float32
    for row in range(len(tokens)):
        expected = logits_by_loop(config, lm_params(config), tokens[row])
        np.testing.assert_allclose(logits[row, :, : tiny.VOCAB], expected, atol=5e-5)


def test_the_parameters_of_gpt3():
    """12 L d^2 + 13 L d + 50257 d + 2048 d + 2 d: the 175 billion of Brown et al. 2020."""
    layers, width = 96, 12288
    config = model.TransformerConfig(50257, layers, width, num_heads=96, vocab_multiple=1)
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(model.param_shapes(config)))
    assert count == 12 * layers * width**2 + 13 * layers * width + (50257 + 2048 + 2) * width
    assert round(count / 1e6) == 174_604


def test_the_parameters_of_llama():
    """Touvron et al. 2023: the "7B" has 6.738 billion."""
    shape = dict(vocab_size=32_000, num_layers=32, embed_dim=4096, num_heads=32, num_kv_heads=0, mlp_dim=11_008)
    config = replace(tiny.llama(), **shape)
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(model.param_shapes(config))) == 6_738_415_616


def test_shapes_are_traced_once_and_every_caller_has_a_tree_of_its_own():
    first = model.param_shapes(tiny.CONFIG)
    before = model.params._param_shapes.cache_info().misses
    first["layers"] = None
    assert model.param_shapes(tiny.CONFIG)["layers"] and model.params._param_shapes.cache_info().misses == before


@families
def test_init(config):
    """GPT-2's standard deviations, norms at one, biases at zero, no two layers alike; always float32."""
    config = replace(config, embed_dim=128, init_std=0.02, dtype="bfloat16", scan_layers=True)
    params = jax.jit(functools.partial(model.init_params, config))(jax.random.key(0))
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        name = path[-1].key
        if name.startswith("w") or name in ("embedding", "positions", "lm_head"):
            std = 0.02 / math.sqrt(2 * config.num_layers) if name in ("wo", "w_down") else 0.02
            np.testing.assert_allclose(np.std(x), std, rtol=0.05, err_msg=name)
        else:
            np.testing.assert_array_equal(x, 1.0 if name == "scale" else 0.0, err_msg=name)
    assert np.any(params["layers"]["wq"][0] != params["layers"]["wq"][1])


def test_the_scalar_head():
    """A reward model keeps the trunk and gets a head of standard deviation 1/sqrt(d + 1), bias 0; no lm head."""
    config = replace(tiny.llama(), num_layers=1, embed_dim=1024)
    policy = tiny.params_of(config, 0)
    reward = model.with_scalar_head(
        policy, jax.jit(functools.partial(model.init_scalar_head, config))(jax.random.key(1))
    )
    assert jax.tree.structure(reward) == jax.tree.structure(model.param_shapes(config, "scalar"))
    assert jax.tree.all(jax.tree.map(np.array_equal, reward["layers"], policy["layers"]))
    np.testing.assert_array_equal(reward["embedding"], policy["embedding"])
    np.testing.assert_allclose(np.std(reward["scalar_kernel"]), 1025**-0.5, rtol=0.1)
    assert reward["scalar_bias"] == 0.0
    hidden = np.random.default_rng(0).normal(size=(2, 1024)).astype(np.float32)
    biased = reward | {"scalar_bias": jnp.float32(3.0)}
    expected = hidden @ np.asarray(reward["scalar_kernel"]) + 3.0
    np.testing.assert_allclose(model.scalar_head(config, biased, hidden), expected, atol=1e-5)


# --- What must not matter -------------------------------------------------------------------------


@families
def test_no_token_sees_a_later_one(config):
    tokens = random_tokens()
    changed = tokens.copy()
    changed[:, 6:] = random_tokens(seed=1)[:, 6:]
    mask = np.ones_like(tokens, bool)
    before, after = (np.asarray(masked_logits(config, lm_params(config), x, mask)) for x in (tokens, changed))
    np.testing.assert_array_equal(after[:, :6], before[:, :6])
    assert np.all(np.any(after[:, 6:] != before[:, 6:], axis=-1))


@families
@hypothesis.settings(max_examples=25)
@hypothesis.given(left=st.lists(st.integers(0, 9), min_size=3, max_size=3), seed=st.integers(0, 99))
def test_padding_changes_nothing(config, left, seed):
    """Rows of 5 real tokens: however much padding stands on which side, with whatever ids."""
    real = random_tokens(length=5)
    alone = masked_logits(config, lm_params(config), real, np.ones_like(real, bool))
    padded = np.random.default_rng(seed).integers(0, tiny.VOCAB, (3, T)).astype(np.int32)
    column = np.arange(T)
    mask = (column >= np.array(left)[:, None]) & (column < np.array(left)[:, None] + 5)
    padded[mask] = real.ravel()
    logits = np.asarray(masked_logits(config, lm_params(config), padded, mask))
    np.testing.assert_allclose(logits[mask].reshape(alone.shape), alone, atol=2e-5)
    assert np.all(np.isfinite(logits))


@hypothesis.given(st.lists(st.booleans(), min_size=T, max_size=T))
def test_positions_count_real_tokens(mask):
    positions = np.asarray(model.positions_from_mask(np.array([mask])))[0]
    for t in range(T):
        assert positions[t] == max(sum(mask[: t + 1]) - 1, 0)


@families
def test_packed_documents_do_not_see_each_other(config):
    batch = tiny.documents_of(4, T)
    packed = np.asarray(packed_logits(config, lm_params(config), batch))
    for segment, other in ((1, 2), (2, 1)):
        here, there = batch.segment_ids == segment, batch.segment_ids == other
        noise = random_tokens(rows=4, seed=1)
        changed = packed_logits(config, lm_params(config), batch.replace(tokens=np.where(there, noise, batch.tokens)))
        np.testing.assert_array_equal(np.asarray(changed)[here], packed[here])
        assert np.any(np.asarray(changed)[there] != packed[there])
        # And each is computed as if it stood alone.
        alone = np.asarray(masked_logits(config, lm_params(config), batch.tokens, here))
        np.testing.assert_allclose(packed[here], alone[here], atol=2e-5)


@families
def test_the_padding_of_the_vocabulary_is_never_likely_and_never_trained(config):
    tokens = random_tokens()
    logits = masked_logits(config, lm_params(config), tokens, np.ones_like(tokens, bool))
    assert logits.shape[-1] == config.padded_vocab == 64
    np.testing.assert_array_equal(jax.nn.softmax(logits)[..., tiny.VOCAB :], 0.0)
    _, gradient = loss_and_gradient(*variant_inputs(config, {}))
    gradient = gradient["embedding" if config.tie_embeddings else "lm_head"]
    np.testing.assert_array_equal(gradient[tiny.VOCAB :], 0.0)
    assert np.all(np.any(gradient[: tiny.VOCAB] != 0.0, axis=1))


def test_ids_that_no_token_has_are_never_likely_and_never_trained():
    """A released model's vocabulary is often larger than its tokenizer's, and a tokenizer may leave ids out."""
    config = replace(tiny.CONFIG, absent_ids=((3, 5), (57, 61)))
    known = [i for i in range(tiny.VOCAB) if i not in (3, 4, 57, 58, 59, 60)]
    tokens = random_tokens()
    mask = np.ones_like(tokens, bool)
    logits = np.asarray(masked_logits(config, lm_params(config), tokens, mask), np.float64)
    whole = np.asarray(masked_logits(tiny.CONFIG, lm_params(tiny.CONFIG), tokens, mask), np.float64)[..., known]
    logprobs = np.full(logits.shape, -np.inf)
    logprobs[..., known] = whole - np.log(np.exp(whole).sum(-1, keepdims=True))
    np.testing.assert_allclose(np.exp(jax.nn.log_softmax(logits)), np.exp(logprobs), atol=1e-6)
    probabilities = jnp.exp(jax.nn.log_softmax(jnp.float32(logits)))[0, :1].repeat(500, axis=0)
    draws = generate.inverse_cdf(probabilities, jnp.linspace(0, 1, 500, endpoint=False)[:, None])
    assert set(np.asarray(draws).tolist()) <= set(known)
    _, gradient = loss_and_gradient(
        config, lm_params(config), np.array([known[:12]], np.int32), np.ones((1, 12), np.int32)
    )
    assert not np.any(gradient["embedding"][np.setdiff1d(np.arange(64), known)])


# --- The same result by other programs ------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=0)
def loss_and_gradient(config, params, tokens, segments):
    def loss(params):
        mask = segments > 0
        hidden = model.hidden_states(config, params, tokens, model.positions_from_mask(mask), segments)
        logprobs = model.target_logprobs(config, params, hidden[:, :-1], tokens[:, 1:])
        return -jnp.sum(logprobs * mask[:, 1:]) / tokens.shape[0]

    return jax.value_and_grad(loss)(params)


def variant_inputs(config, changes):
    config = replace(config, max_length=80, **changes)  # 70 tokens: two blocks of queries
    tokens = random_tokens(rows=2, length=70)
    segments = np.repeat(np.array([[1, 2, 0]], np.int32), [20, 40, 10], axis=1).repeat(2, axis=0)
    return config, tiny.params_of(config, 0), tokens, segments


@pytest.mark.parametrize(
    "family, changes",
    [
        ("gpt", dict(scan_layers=True, remat="full")),
        ("gpt", dict(remat="dots")),
        ("llama", dict(scan_layers=True, attention="blocked")),
    ],
    ids=lambda x: x if isinstance(x, str) else ",".join(f"{k}={v}" for k, v in x.items()),
)
def test_every_program_computes_the_same_loss_and_gradient(family, changes):
    loss, gradient = loss_and_gradient(*variant_inputs(FAMILIES[family], changes))
    base_loss, base_gradient = loss_and_gradient(*variant_inputs(FAMILIES[family], {}))
    np.testing.assert_allclose(loss, base_loss, rtol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=2e-4), gradient, base_gradient)


def test_bfloat16_is_near_float32_and_returns_float32():
    config = tiny.CONFIG
    tokens = random_tokens()
    mask = np.ones_like(tokens, bool)
    exact = masked_logits(config, lm_params(config), tokens, mask)
    rough = masked_logits(replace(config, dtype="bfloat16"), lm_params(config), tokens, mask)
    assert rough.dtype == jnp.float32
    error = np.abs(rough - exact)[..., : tiny.VOCAB]
    assert 0 < error.max() < 0.5 and error.mean() < 0.05  # logits have standard deviation 1


@pytest.mark.parametrize(
    "config",
    [
        tiny.CONFIG,
        tiny.llama(scan_layers=True),
        *(
            pytest.param(config, marks=LATE.get(name, ()))
            for name, config in (FAMILIES | OTHERS).items()
            if name != "gpt"
        ),
    ],
    ids=["gpt", "llama, scanned", "llama", *OTHERS],
)
def test_cached_decoding_equals_the_whole_forward(config, monkeypatch):
    """Prompts of 1 to 6 tokens on the left, then 8 more tokens one by one."""
    prompts, params = tiny.prompts_of(4, 6), lm_params(replace(config, scan_layers=False))
    completions = random_tokens(rows=4, length=8)
    tokens = np.concatenate([prompts.tokens, completions], axis=1)
    mask = np.concatenate([prompts.mask, np.ones_like(completions, bool)], axis=1)
    whole = masked_logits(config, params, tokens, mask)

    monkeypatch.setattr(decode, "_CHUNK", 6)  # several chunks
    found = cached_logits(config, params, prompts.tokens, prompts.mask, completions)
    np.testing.assert_allclose(found, whole[:, 5:], atol=2e-5)


# --- Log-probabilities ----------------------------------------------------------------------------


def by_log_softmax(logits, targets):
    return jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_select_logprobs_and_its_gradient_equal_log_softmax(scale):
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=scale, size=(3, 5, 11)).astype(np.float32)
    logits[..., 9:] = -1e9  # a masked vocabulary
    targets = rng.integers(0, 9, (3, 5))
    weights = rng.normal(size=(3, 5)).astype(np.float32)
    np.testing.assert_allclose(model.select_logprobs(logits, targets), by_log_softmax(logits, targets), atol=1e-5)

    def gradient(f):
        return jax.grad(lambda x: (f(x, targets) * weights).sum())(logits)

    actual, expected = gradient(model.select_logprobs), gradient(by_log_softmax)
    np.testing.assert_allclose(actual, expected, atol=3e-6 * scale)


def test_select_logprobs_is_the_same_bits_with_and_without_a_gradient():
    logits = np.random.default_rng(0).normal(scale=5, size=(64, 61)).astype(np.float32)
    targets = np.random.default_rng(1).integers(0, 61, 64)

    def total(logits, temperature):
        logprobs = model.select_logprobs(logits * (1.0 / temperature), targets)
        return jnp.sum(logprobs**2), logprobs

    with_gradient, without = jax.jit(jax.grad(total, has_aux=True)), jax.jit(total)
    for temperature in (1.0, 0.7):
        np.testing.assert_array_equal(with_gradient(logits, temperature)[1], without(logits, temperature)[1])


# --- Dropout --------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=(0, 3))
def dropped(config, params, tokens, rate, key):
    ones = jnp.ones_like(tokens)
    keys = None if key is None else train.row_keys(key, len(tokens))
    return model.hidden_states(config, params, tokens, jnp.cumsum(ones, 1) - 1, ones, dropout_rate=rate, keys=keys)


def test_dropout_depends_on_its_key_alone():
    config, tokens = tiny.CONFIG, random_tokens()
    params = lm_params(config)
    a, again, b = (dropped(config, params, tokens, 0.3, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(a, again)
    assert np.any(a != b)
    off, also_off = (dropped(config, params, tokens, 0.0, jax.random.key(seed)) for seed in (0, 1))
    np.testing.assert_array_equal(off, also_off)
    np.testing.assert_array_equal(off, dropped(config, params, tokens, 0.0, None))


def test_a_rows_dropout_depends_on_its_key_and_place_alone():
    """Neither on the other rows nor on how far the row is padded; rows of one text differ."""
    config, tokens = tiny.CONFIG, random_tokens()
    tokens = np.concatenate([tokens[:1], tokens])
    keys = train.row_keys(jax.random.key(0), len(tokens))

    @functools.partial(jax.jit, static_argnums=0)
    def states(config, tokens, keys):
        ones = jnp.ones_like(tokens)
        return model.hidden_states(
            config, lm_params(config), tokens, jnp.cumsum(ones, 1) - 1, ones, dropout_rate=0.3, keys=keys
        )

    whole = states(config, tokens, keys)
    assert np.abs(whole[0] - whole[1]).max() > 0.1
    np.testing.assert_allclose(states(config, tokens[1:2, :-3], keys[1:2]), whole[1:2, :-3], atol=2e-5)


def test_dropout_is_on_the_residual_branches_alone():
    """With branches of 0 nothing is left to drop: the embeddings and the stream are never touched."""
    config, tokens = tiny.CONFIG, random_tokens()
    params = lm_params(config)
    silent = {name: np.zeros_like(params["layers"][name]) for name in ("wo", "bo", "w_down", "b_down")}
    params = params | {"layers": params["layers"] | silent}
    out = dropped(config, params, tokens, 0.5, jax.random.key(0))
    np.testing.assert_allclose(out, dropped(config, params, tokens, 0.0, None), atol=2e-6)


def test_dropout_keeps_the_mean():
    """One layer whose mlp is 0: its output is the stream plus a branch of 1, of which a share is dropped."""
    config = replace(tiny.CONFIG, num_layers=1)
    layer = jax.tree.map(lambda x: np.zeros_like(x[0]), lm_params(config)["layers"])
    layer["bo"] = layer["bo"] + 1.0
    ones = np.ones((64, 8), np.int32)
    x = np.zeros((64, 8, config.embed_dim), np.float32)
    keys = jax.random.split(jax.random.key(0), (2, len(x)))
    out, _ = model.Block(config).apply({"params": layer}, x, None, ones, 0.2, False, keys)
    np.testing.assert_allclose(np.unique(out), [0.0, 1.25])
    np.testing.assert_allclose(np.mean(out), 1.0, atol=0.02)  # 16384 draws: standard error 0.004


@pytest.mark.parametrize("scan_layers", [True, False])
def test_every_layer_drops_its_own(scan_layers):
    """Branches of 1 on a stream of 0: a unit is kept by none, one or both of the two layers."""
    config = replace(tiny.CONFIG, scan_layers=scan_layers)
    params = jax.tree.map(np.zeros_like, lm_params(config))
    params["layers"]["bo"] += 1.0
    params["final_norm"]["scale"] += 1.0
    out = np.asarray(dropped(config, params, random_tokens(), 0.5, jax.random.key(0)))
    assert len(np.unique(np.round(out[0, 0], 3))) == 3


# --- Bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "field, value, words",
    [
        ("positions", "sinus", ["model.positions='sinus'", "'learned' or 'rope'"]),
        ("attention", "flash", ["model.attention='flash'", "'splash' or 'blocked'"]),
        ("dtype", "float16", ["model.dtype='float16'", "'float32' or 'bfloat16'"]),
        ("remat", "some", ["model.remat='some'", "'none', 'full' or 'dots'"]),
        ("num_layers", 0, ["model.num_layers=0 must be a whole number from 1"]),
        ("logits_chunk", -1, ["model.logits_chunk=-1 must be a whole number from 0"]),
        ("rope_scaling", (8.0, 1.0), ["model.rope_scaling=(8.0, 1.0) must be () or 4 numbers above 0"]),
        ("num_heads", 5, ["model.num_heads=5", "embed_dim=32"]),
        ("num_kv_heads", 3, ["model.num_heads=8", "num_kv_heads=3"]),
    ],
)
def test_a_senseless_config_is_an_error(field, value, words):
    with pytest.raises(InputError) as error:
        replace(tiny.CONFIG, **{field: value})
    assert all(word in str(error.value) for word in words)
