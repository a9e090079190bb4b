"""Attention against a plain loop, and every implementation against the others."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from rlhf_jax import sharding
from rlhf_jax.model import attention
from rlhf_jax.runtime.errors import InputError

H, G, WIDTH = 4, 2, 8
attend = {name: jax.jit(functools.partial(attention.attend, implementation=name)) for name in ("xla", "blocked")}


def inputs(length, seed=0, batch=2):
    """q [B, T, H, Dh], k and v [B, T, G, Dh], a shared prefix, three segments and some padding."""
    rng = np.random.default_rng(seed)
    q, k, v = (rng.normal(size=(batch, length, heads, WIDTH)).astype(np.float32) for heads in (H, G, G))
    segments = np.sort(rng.choice([attention.PREFIX, 1, 2, 3], (batch, length)), axis=1).astype(np.int32)
    segments[:, -length // 6 :] = 0
    return q, k, v, segments


def by_loop(q, k, v, segments):
    out = np.zeros(q.shape)
    for b, t, h in np.ndindex(q.shape[:3]):
        group = h // (H // G)
        seen = [s for s in range(t + 1) if segments[b, s] in (attention.PREFIX, segments[b, t])]
        scores = np.array([q[b, t, h].astype(np.float64) @ k[b, s, group] for s in seen]) / np.sqrt(WIDTH)
        weights = np.exp(scores - scores.max())
        out[b, t, h] = (weights / weights.sum()) @ v[b, seen, group]
    return out


@pytest.mark.parametrize("length", [7, 64, 150])  # one block, exactly one block, blocks and a rest
@pytest.mark.parametrize("name", attend)
def test_attention_equals_loop(name, length):
    q, k, v, segments = inputs(length)
    np.testing.assert_allclose(attend[name](q, k, v, segments), by_loop(q, k, v, segments), atol=2e-6)


def test_implementations_have_the_same_gradient():
    q, k, v, segments = inputs(150)
    weights = np.random.default_rng(1).normal(size=q.shape).astype(np.float32)

    def gradient(name):
        return jax.grad(lambda *qkv: (attend[name](*qkv, segments) * weights).sum(), (0, 1, 2))(q, k, v)

    for expected, actual in zip(gradient("xla"), gradient("blocked")):
        np.testing.assert_allclose(actual, expected, atol=1e-5)


@hypothesis.given(
    segments=st.lists(st.integers(0, 2), min_size=12, max_size=12),
    place=st.integers(0, 11),
    garbage=st.sampled_from([-1e4, 0.0, 3.0, 1e4]),
)
def test_what_a_query_does_not_see_changes_nothing(segments, place, garbage):
    """Segments in any order: a key of another segment, or a later one, has weight exactly 0."""
    q, k, v, _ = inputs(12, batch=1)
    segments = np.array([segments], np.int32)
    before = np.asarray(attend["xla"](q, k, v, segments))
    k[:, place], v[:, place] = garbage, garbage
    after = np.asarray(attend["xla"](q, k, v, segments))
    blind = (np.arange(12) < place) | (segments[0] != segments[0, place])
    np.testing.assert_array_equal(after[0, blind], before[0, blind])
    if garbage:
        assert np.any(after[0, place] != before[0, place])


def test_cached_attention_is_the_last_row_of_the_whole():
    q, k, v, _ = inputs(12)
    valid = np.ones((2, 12), bool)
    valid[1, :4] = False  # left padding
    whole = attention.attend(q, k, v, valid.astype(np.int32))
    chunks = [np.split(x.swapaxes(1, 2), [5], axis=2) for x in (k, v)]  # a cache of two arrays
    cached = attention.attend_cached(q[:, -1], *chunks, np.split(valid, [5], axis=1))
    np.testing.assert_allclose(cached, whole[:, -1], atol=1e-6)


@pytest.mark.parametrize("batch", [4, 3])  # three rows do not divide over two devices
def test_splash_attention_and_its_gradient_equal_xla_on_a_mesh(batch):
    """The TPU kernel, interpreted; the mesh splits rows and heads, and the length is no multiple of its blocks."""
    q, k, v, segments = inputs(100, batch=batch)
    segments = np.where(segments == attention.PREFIX, 1, segments)
    weights = np.random.default_rng(1).normal(size=q.shape).astype(np.float32)

    def trained(function):
        def loss(*qkv):
            return (function(*qkv, segments) * weights).sum()

        return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(q, k, v)

    with jax.set_mesh(sharding.make_mesh(2, 1, 2, devices=jax.devices()[:4])):
        found = trained(functools.partial(attention._splash, interpret=True))
    expected = trained(attention.attend)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-4, rtol=1e-5), found, expected)


@pytest.mark.parametrize(
    "implementation, length, width, computed",
    [
        ("xla", 1024, 64, 1024**2),
        ("blocked", 1024, 64, 1024 * (1024 + 64) // 2),
        ("blocked", 70, 64, 64 * 64 + 6 * 70),
        ("splash", 1024, 64, 1024 * (1024 + 512) // 2),
        ("splash", 300, 64, 384 * (384 + 128) // 2),
        ("cudnn", 1024, 64, 1024 * (1024 + 128) // 2),
        ("cudnn", 1024, 256, 1024**2),
    ],
)
def test_the_scores_that_are_computed_are_those_of_whole_blocks(implementation, length, width, computed):
    assert attention.computed_scores(implementation, length, width) == computed


def test_auto_takes_the_fast_attention_of_the_platform():
    assert attention.choose("auto", "tpu", "bfloat16") == "splash"
    assert attention.choose("auto", "gpu", "bfloat16") == "cudnn"
    assert attention.choose("auto", "gpu", "float32") == attention.choose("auto", "cpu", "bfloat16") == "xla"
    assert attention.choose("blocked", "tpu", "float32") == "blocked"


@pytest.mark.parametrize(
    "name, platform, dtype, message",
    [
        ("splash", "gpu", "bfloat16", "attention='splash' needs a tpu, and this runs on a gpu"),
        ("cudnn", "cpu", "bfloat16", "attention='cudnn' needs a gpu, and this runs on a cpu"),
        ("cudnn", "gpu", "float32", "needs model.dtype='bfloat16'"),
    ],
)
def test_an_attention_that_cannot_be_is_refused(name, platform, dtype, message):
    with pytest.raises(InputError, match=message):
        attention.choose(name, platform, dtype)


def test_a_query_without_any_key_is_finite():
    q, k, v, _ = inputs(12)
    nothing = np.zeros((2, 12), bool)
    assert np.all(np.isfinite(attention.attend_cached(q[:, -1], [k.swapaxes(1, 2)], [v.swapaxes(1, 2)], [nothing])))
