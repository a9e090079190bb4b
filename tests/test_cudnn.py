"""What cuDNN is given in each of its forms, and what it would compute of that, against the mask and a plain loop."""

import dataclasses
import functools
import re
import types

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as fused
from test_attention import by_loop, inputs

from rlhf_jax.model import TransformerConfig, attention, cudnn, work
from rlhf_jax.plan import topology

pytestmark = pytest.mark.usefixtures("simply_compiled")
MOST = 3  # segments of a row
ROOM = 2 * MOST + 1  # with the padding before, between and after them
ROW = [2, 2, 0, 7, 7, 7, 0, 4, 0, 0]  # segments in no order, with padding between them
ROWS = np.array([ROW, [1] * 10, [0] * 10, [0] * 3 + [5] * 7], np.int32)


@st.composite
def packed_rows(draw):
    """Rows of up to MOST segments with any padding between them."""
    rows = []
    for _ in range(3):
        pieces = draw(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3)), max_size=MOST))
        row = [x for number, (gap, size) in enumerate(pieces) for x in [0] * gap + [9 - number] * size]
        rows.append(row + [0] * (15 - len(row)))
    return np.array(rows, np.int32)


visible = jax.jit(attention._visible)


def seen(segment_ids):
    """bool[B, T, T]: the mask, on real queries."""
    return np.asarray(visible(segment_ids, segment_ids)) & (segment_ids != 0)[..., None]


runs = jax.jit(cudnn.runs, static_argnums=1)
lengths = jax.jit(cudnn.lengths)


@hypothesis.given(packed_rows())
def test_the_segments_that_cudnn_is_told_of_are_those_of_the_mask(segment_ids):
    batch, length = segment_ids.shape
    sizes, starts, right = map(np.asarray, runs(segment_ids, ROOM))
    assert right and sizes.shape == (batch, ROOM) and starts.shape == (batch, ROOM + 1)
    whole = np.zeros((batch * length, batch * length), bool)
    for size, start in zip(sizes.ravel(), starts.ravel()):
        for query in range(start, start + size):
            whole[query, start : query + 1] = True
    for row in range(batch):
        own = np.s_[row * length : (row + 1) * length]
        np.testing.assert_array_equal(whole[own, own] & (segment_ids[row] != 0)[:, None], seen(segment_ids)[row])
        assert whole[own, own].diagonal().all() and not whole[own, : own.start].any()  # padding is computed as well
    count = np.count_nonzero(sizes)
    assert np.all(sizes.ravel()[count:] == 0) and np.all(starts.ravel()[count:] == batch * length)


@hypothesis.given(st.lists(st.integers(0, 9), min_size=3, max_size=3), st.integers(1, 5))
def test_the_lengths_that_cudnn_is_told_of_are_those_of_the_mask(sizes, segment):
    segment_ids = np.where(np.arange(9) < np.array(sizes)[:, None], segment, 0).astype(np.int32)
    found, right = map(np.asarray, lengths(segment_ids))
    place = np.arange(9)
    both = (place < found[:, None, None]) & (place[:, None] < found[:, None, None]) & (place <= place[:, None])
    assert right
    np.testing.assert_array_equal(both & (segment_ids != 0)[..., None], seen(segment_ids))
    assert np.all(found >= 1)


@pytest.mark.parametrize(
    "form, row",
    [
        ("lengths", [0, 1, 1]),  # padding on the left
        ("lengths", [1, 0, 1]),
        ("lengths", [1, 2, 0]),
        ("lengths", [cudnn.PREFIX, cudnn.PREFIX, 0]),
        ("packed", [cudnn.PREFIX, 1, 2]),
        ("packed", [1, 2, 3, 4, 5, 6, 7]),  # of two rows with room for three each
    ],
)
def test_rows_that_are_not_what_was_said_are_noticed(form, row):
    segment_ids = np.array([row, [1] * len(row)], np.int32)
    *_, right = cudnn.lengths(segment_ids) if form == "lengths" else cudnn.runs(segment_ids, MOST)
    assert not right


class Emulator:
    """cuDNN's packed segments by a loop over them: numbers are read and written where the offsets say."""

    def __init__(self, monkeypatch):
        self.forward, self.operands = jax.jit(self._forward, static_argnums=5), []
        monkeypatch.setattr(fused._dot_product_attention_fwd_p, "bind", self._bind_forward)
        monkeypatch.setattr(fused._dot_product_attention_bwd_p, "bind", self._bind_backward)

    def _forward(self, q, k, v, sizes, starts, width):
        """[B, T, H, Dh] of arrays that are read as one long row of numbers; NaN where nothing is written."""
        heads, groups = q.shape[2], k.shape[2]
        place, numbers = jnp.arange(q.shape[1]), jnp.arange(q[0].size)

        def compute(out, segment):
            size, q_start, k_start = segment
            own = place < size

            def read(x, start, count):
                index = start + jnp.arange(x[0].size)
                return x.ravel().at[index].get(mode="fill", fill_value=0.0).reshape(-1, count, width)

            queries = read(q, q_start, heads)
            keys, values = (jnp.repeat(read(x, k_start, groups), heads // groups, axis=1) for x in (k, v))
            scores = jnp.einsum("thd,shd->hts", queries, keys) * width**-0.5
            scores = jnp.where((place <= place[:, None]) & own, scores, -1e30)
            found = jnp.einsum("hts,shd->thd", jax.nn.softmax(scores), jnp.where(own[:, None, None], values, 0))
            index = jnp.where(numbers < size * heads * width, q_start + numbers, q.size)
            return out.at[index].set(found.ravel().astype(out.dtype), mode="drop"), None

        segments = tuple(x.ravel()[: sizes.size] for x in (sizes, *starts))
        return jax.lax.scan(compute, jnp.full(q.size, jnp.nan, q.dtype), segments)[0].reshape(q.shape)

    def _bind_forward(self, q, k, v, bias, sizes, key_sizes, starts, key_starts, *tables, **form):
        assert bias.size == 0 and all(table.size == 0 for table in tables) and sizes is key_sizes
        assert form["scale"] == q.shape[-1] ** -0.5 and form["mask_type"] == fused.MaskType.PADDING_CAUSAL
        out = self.forward(q, k, v, sizes, (starts, key_starts), q.shape[-1])
        return [out, jnp.zeros((sizes.size, q.shape[2], q.shape[1]))]

    def _bind_backward(self, q, k, v, bias, sizes, key_sizes, starts, key_starts, *rest, **form):
        *_, out, gradient = rest
        found, back = jax.vjp(lambda *x: self._forward(*x, sizes, (starts, key_starts), q.shape[-1]), q, k, v)
        same = jnp.where(jnp.isnan(found), 0, found)
        written = jnp.isnan(out - same) | (jnp.abs(out - same) < 1e-5)
        return [jnp.where(jnp.all(written), x, jnp.nan) for x in back(gradient)]


def test_packed_segments_give_what_the_mask_gives_forward_and_backward(monkeypatch):
    """Fewer keys than queries share a head, so that places in the two are not the same."""
    Emulator(monkeypatch)
    q, k, v, _ = inputs(10, batch=4)
    real = (ROWS != 0)[..., None, None]
    weights = np.where(real, np.random.default_rng(1).normal(size=q.shape), 0).astype(np.float32)

    @functools.cache
    def attend(implementation):
        return jax.jit(functools.partial(attention.attend, implementation=implementation, segments=MOST))

    def gradient(name):
        return jax.jit(jax.grad(lambda *qkv: (attend(name)(*qkv, ROWS) * weights).sum(), (0, 1, 2)))(q, k, v)

    found = attend("cudnn")(q, k, v, ROWS)
    np.testing.assert_allclose(np.where(real, found, 0), np.where(real, by_loop(q, k, v, ROWS), 0), atol=2e-6)
    assert np.all(np.isfinite(found))  # padding too: every place is written
    for expected, actual in zip(gradient("xla"), gradient("cudnn")):
        np.testing.assert_allclose(actual, expected, atol=2e-6)
    trials = jax.jit(jax.vmap(attend("cudnn")))(*(np.stack([x, x[::-1]]) for x in (q, k, v, ROWS)))
    np.testing.assert_allclose(trials, np.stack([found, found[::-1]]), atol=2e-6)
    too_many = np.tile(np.arange(1, 11, dtype=np.int32), (4, 1))
    assert np.all(np.isnan(attend("cudnn")(q, k, v, too_many)))


def in_its_place(calls, theirs=jax.nn.dot_product_attention):
    """jax.nn.dot_product_attention with XLA in the place of cuDNN; keeps the lengths of rows, and whether there is a mask."""

    def attend(q, k, v, mask=None, is_causal=False, implementation=None, **lengths):
        assert implementation == "cudnn" and is_causal
        calls.append((q.shape[1], mask is not None))
        return theirs(q, k, v, mask=mask, is_causal=is_causal, implementation="xla", **lengths)

    return attend


@pytest.mark.parametrize("length", [12, 37])
def test_a_mask_has_an_even_length_and_the_result_is_the_same(length, monkeypatch):
    """The backward pass with a mask needs it; here XLA computes it in cuDNN's place."""
    calls = []
    monkeypatch.setattr(jax.nn, "dot_product_attention", in_its_place(calls))
    q, k, v, segments = inputs(length)
    found = attention.attend(q, k, v, segments, implementation="cudnn")
    assert calls == [(length + length % 2, True)]
    np.testing.assert_allclose(found, by_loop(q, k, v, segments), atol=2e-6)
    wide = [np.tile(x, 17) for x in (q, k, v)]  # heads of 136, which no kernel computes
    np.testing.assert_array_equal(
        attention.attend(*wide, segments, implementation="cudnn"), attention.attend(*wide, segments)
    )
    assert len(calls) == 1


def test_rows_of_one_segment_have_lengths_and_no_mask(monkeypatch):
    calls = []
    monkeypatch.setattr(jax.nn, "dot_product_attention", in_its_place(calls))
    q, k, v, _ = inputs(12, batch=3)
    segments = np.where(np.arange(12) < np.array([[12], [5], [0]]), 1, 0).astype(np.int32)
    found = attention.attend(q, k, v, segments, implementation="cudnn", segments=1)
    assert calls == [(12, False)] and np.all(np.isfinite(found))
    np.testing.assert_allclose(found[:2][segments[:2] > 0], by_loop(q, k, v, segments)[:2][segments[:2] > 0], atol=2e-6)
    left = attention.attend(q, k, v, segments[:, ::-1], implementation="cudnn", segments=1)
    assert np.all(np.isnan(left))


@pytest.mark.parametrize("segments, form", [(0, "CAUSAL"), (1, "PADDING_CAUSAL"), (MOST, "PADDING_CAUSAL")])
def test_the_compiled_program_has_no_mask_where_the_rows_need_none(segments, form):
    """Only the compiled program says whether scores above the diagonal are computed, and whether a mask is read."""
    pytest.importorskip("jax_plugins.xla_cuda13", reason="the extra plan_gpu is not installed")
    (device,) = topology.parse("h100:1").devices()
    where = jax.sharding.SingleDeviceSharding(device)
    heads = jax.ShapeDtypeStruct((2, 256, 4, 64), "bfloat16", sharding=where)
    ids = jax.ShapeDtypeStruct((2, 256), "int32", sharding=where)

    def total(q, k, v, ids):
        return attention.attend(q, k, v, ids, implementation="cudnn", segments=segments).astype("float32").sum()

    text = jax.jit(jax.grad(total, (0, 1, 2))).lower(heads, heads, heads, ids).compile().as_text()
    calls = re.findall(
        r'custom-call\(.*custom_call_target="__cudnn\$fmha(\w*)".*operand_layout_constraints=(\{.*?\}\}).*'
        r'"mask_type": *"(\w+)".*"max_seg_per_batch": *(\d+)',
        text,
    )
    bias = "ScaleBias" if segments == 0 else ""
    assert [name for name, *_ in calls] == [f"{bias}Softmax", f"{bias}SoftmaxBackward"]
    for _, operands, mask, most in calls:
        assert ("256,256]" in operands) == (segments == 0)
        assert mask == form and int(most) == (segments + 1 if segments > 1 else 1)


def test_packed_segments_are_lowered_for_gpus_without_a_mask():
    """JAX's primitives take what is given, in every version; this needs neither a GPU nor its compiler."""
    q, k, v = (jax.ShapeDtypeStruct((2, 256, heads, 64), "bfloat16") for heads in (4, 2, 2))
    ids = jax.ShapeDtypeStruct((2, 256), "int32")

    def total(q, k, v, ids):
        return attention.attend(q, k, v, ids, implementation="cudnn", segments=MOST).astype("float32").sum()

    text = jax.jit(jax.grad(total, (0, 1, 2))).trace(q, k, v, ids).lower(lowering_platforms=("cuda",)).as_text()
    calls = re.findall(r"custom_call @(__cudnn\$fmha\w*)\((.*?)\).* : \((.*?)\) ->", text)
    assert [name for name, *_ in calls] == ["__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"]
    segments = ["tensor<2x4xi32>"] * 2 + ["tensor<2x5xi32>"] * 2  # lengths and places, of queries and of keys
    own, shared = "tensor<2x256x4x64xbf16>", "tensor<2x256x2x64xbf16>"
    forward, backward = ([kind.strip() for kind in kinds.split(",")] for *_, kinds in calls)
    assert forward == [own, shared, shared, *segments]
    assert backward == [own, shared, shared, "tensor<8x4x256xf32>", own, own, *segments]


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="no GPU")
@pytest.mark.parametrize("segments", [0, 1, MOST])
def test_on_a_gpu_every_form_gives_what_xla_gives(segments):
    rng = np.random.default_rng(0)
    q, k, v, weights = (jnp.asarray(rng.normal(size=(4, 192, h, 64)), jnp.bfloat16) for h in (4, 2, 2, 4))
    ids = np.repeat(ROWS, 20, axis=1)[:, :192] if segments != 1 else np.arange(192) < np.array([[192], [70], [1], [0]])
    ids = ids.astype(np.int32)
    real = (ids != 0)[..., None, None]

    @functools.partial(jax.jit, static_argnums=0)
    def trained(name, *qkv):
        def total(*qkv):
            out = attention.attend(*qkv, ids, implementation=name, segments=segments)
            return jnp.sum(jnp.where(real, out * weights, 0).astype(jnp.float32)), jnp.where(real, out, 0)

        return jax.grad(total, (0, 1, 2), has_aux=True)(*qkv)

    found, expected = trained("cudnn", q, k, v), trained("xla", q, k, v)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=0.05, rtol=0.05), *jax.device_get((found, expected))
    )


@pytest.mark.parametrize("segments, known", [(0, 0), (1, 1), (2, 16), (16, 16), (17, 0)])
def test_what_is_known_of_rows_stays_known_however_often_it_is_said(segments, known):
    told = TransformerConfig(vocab_size=64, num_layers=2, embed_dim=64, num_heads=2).of_rows(segments)
    assert told.segments == known and told.of_rows(told.segments) == told


@pytest.mark.parametrize("of, times", [(work.forward, 1), (work.training, 3)])
def test_packed_episodes_are_counted_one_by_one(of, times, monkeypatch):
    """Tile by tile: a loop over the tiles that have a score below the diagonal of an episode's own square."""
    monkeypatch.setattr(jax.nn, "dot_product_attention", in_its_place([]))  # counting traces the model
    config = TransformerConfig(vocab_size=64, num_layers=2, embed_dim=64, num_heads=2, attention="cudnn")
    prompts, completions = np.array([200, 5, 130]), np.array([60, 4, 126])
    tiles = 0
    padding = (2 * 1024 - (prompts + completions).sum()) // 2
    for size in [*(prompts + completions), padding, padding]:
        for i, j in np.ndindex(-(-size // 128), -(-size // 128)):
            if j <= i:
                tiles += (min(size, 128 * (i + 1)) - 128 * i) * (min(size, 128 * (j + 1)) - 128 * j)
    found = work.in_rows(of, config, prompts, completions, rows=2, room=(512, 512))
    products = of(dataclasses.replace(config, attention="xla"), 2, 1024, 2 * 512, scores=0).executed
    assert found.executed == products + times * 4 * 2 * 64 * tiles
    masked = work.in_rows(of, dataclasses.replace(config, attention="xla"), prompts, completions, 2, (512, 512))
    assert masked.executed == products + times * 4 * 2 * 64 * 2 * 1024**2
    assert masked.flops == found.flops


def by_places(q, k, v, sizes, starts):
    """Attention of packed segments as `runs` tells of them, by a loop over segments."""
    flat = [x.reshape(-1, *x.shape[2:]) for x in (q, k, v)]
    out = jnp.zeros_like(flat[0])
    for size, start in zip(np.ravel(sizes), np.ravel(starts)):
        own = np.s_[start : start + size]
        if size:
            segment = jax.nn.dot_product_attention(*(x[None, own] for x in flat), is_causal=True)
            out = out.at[own].set(segment[0])
    return out.reshape(q.shape)


FAULTS = {
    "a place too far": lambda q, k, v, sizes, starts: by_places(q, k, v, sizes, starts + 1),
    "not causal": lambda q, k, v, *rest: by_places(q, k[:, ::-1], v[:, ::-1], *rest),
    "not a number": lambda q, *rest: by_places(q * jnp.nan, *rest),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_gpu_whose_packed_segments_are_wrong_is_not_trusted_with_them(monkeypatch, fault):
    """The check of the machine, with a loop in the place of cuDNN."""
    gpu = types.SimpleNamespace(platform="gpu", compute_capability="9.0")
    monkeypatch.setattr(cudnn.jax, "local_devices", lambda: [gpu])
    monkeypatch.setattr(cudnn, "_packed", FAULTS[fault])
    cudnn.packs.cache_clear()
    try:
        with pytest.warns(UserWarning, match="packed segments differ from XLA's"):
            assert not cudnn.packs()
    finally:
        cudnn.packs.cache_clear()


def test_a_gpu_that_computes_what_it_is_told_is_trusted(monkeypatch):
    """With the loop in the place of the primitives alone, so that the check itself is known to run."""
    Emulator(monkeypatch)
    gpu = types.SimpleNamespace(platform="gpu", compute_capability="9.0")
    monkeypatch.setattr(cudnn.jax, "local_devices", lambda: [gpu])
    cudnn.packs.cache_clear()
    try:
        assert cudnn.packs()
    finally:
        cudnn.packs.cache_clear()


def test_without_cudnn_the_check_says_so_and_the_mask_is_kept(monkeypatch):
    gpu = types.SimpleNamespace(platform="gpu", compute_capability="9.0")
    monkeypatch.setattr(cudnn.jax, "local_devices", lambda: [gpu])
    cudnn.packs.cache_clear()
    try:
        with pytest.warns(UserWarning, match="cannot be computed here"):
            assert not cudnn.packs()
    finally:
        cudnn.packs.cache_clear()
