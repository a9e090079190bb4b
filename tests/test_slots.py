"""The slot sampler: completions are those of a plain loop, whatever the slots, stages, chunks, copies and the mesh."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from rlhf_jax import generate, model, ppo
from rlhf_jax.data.batches import Prompts
from rlhf_jax.generate import sizes as sizes_lib
from rlhf_jax.generate import slots as slots_lib
from rlhf_jax.generate.truncation import Truncation, keep_likely, penalized
from rlhf_jax.generate.turns import turns
from rlhf_jax.model import decode

pytestmark = pytest.mark.usefixtures("simply_compiled")
slow = pytest.mark.slow
P, C, ROWS = 7, 20, 16
CONFIGS = {"gpt": tiny.CONFIG, "llama": tiny.llama(scan_layers=True)}


@pytest.fixture(autouse=True)
def many_chunks(monkeypatch):
    """Pages of 5 tokens, chunks of 10 places and a stage of half the slots, so that a small batch has several of them."""
    monkeypatch.setattr(sizes_lib, "_PAGE", 5)
    monkeypatch.setattr(slots_lib, "_STAGES", 2)
    monkeypatch.setattr(slots_lib, "_PAGES", 1)
    monkeypatch.setattr(slots_lib, "_NARROWER", 2)
    monkeypatch.setattr(slots_lib, "_LEAST", 1)
    monkeypatch.setattr(sizes_lib, "_SHARED", 1)
    monkeypatch.setattr(decode, "_CHUNK", 10)


def prompts_of(rows=ROWS, copies=1):
    found = tiny.prompts_of(rows // copies, P)
    return Prompts(*(np.repeat(x, copies, axis=0) for x in (found.tokens, found.mask, found.index)))


@functools.lru_cache
def next_logits(config):
    @jax.jit
    def logits(params, tokens, length):
        """The logits after the first `length` tokens of one row, by a whole forward pass."""
        mask = jnp.arange(tokens.shape[1]) < length
        hidden = model.masked_hidden_states(config, params, tokens, mask[None])
        return model.lm_logits(config, params, hidden[:, length - 1])

    return logits


def by_a_plain_loop(name, prompts, key, temperature=1.0, truncation=None, limits=None):
    """(tokens, lengths) row by row and token by token, without a cache."""
    config, params = CONFIGS[name], tiny.params_of(CONFIGS[name], 0)
    tokens, lengths = np.full((len(prompts.tokens), C), tiny.PAD), []
    uniform = np.stack(
        [jax.random.uniform(jax.random.fold_in(key, step), (len(prompts.tokens),)) for step in range(C)], axis=1
    )
    for row, (prompt, mask) in enumerate(zip(prompts.tokens, prompts.mask)):
        text = prompt[mask].tolist()
        limit = C if limits is None else limits[row]
        for step in range(limit):
            padded = np.zeros((1, P + C), np.int32)
            padded[0, : len(text)] = text
            logits = next_logits(config)(params, padded, len(text)) / (temperature or 1.0)
            if truncation is not None and truncation.repetition_penalty is not None:
                seen = np.isin(np.arange(config.padded_vocab), text)[None]
                logits = penalized(logits, seen, truncation.repetition_penalty)
            logprobs = jax.nn.log_softmax(logits)
            if truncation is not None:
                logprobs = keep_likely(logprobs, truncation)
            drawn = generate.inverse_cdf(jnp.exp(logprobs), uniform[row, step][None, None])
            token = int(drawn[0]) if temperature else int(np.argmax(logprobs))
            tokens[row, step] = token
            text.append(token)
            if token == tiny.EOS:
                break
        lengths.append(len(text) - mask.sum())
    return tokens, np.array(lengths)


def draw(name="gpt", prompts=None, mesh="1x1x1", temperature=1.0, truncation=None, limits=None, key=0, **options):
    config, mesh = CONFIGS[name], tiny.mesh_of(mesh)
    sampler = generate.Sampler(config, mesh, completion_length=C, eos_id=tiny.EOS, pad_id=tiny.PAD, **options)
    with jax.set_mesh(mesh):
        params = tiny.place(tiny.params_of(config, 0), config, mesh)
        found = sampler(params, prompts or prompts_of(), jax.random.key(key), temperature, truncation, limits)
        return jax.tree.map(np.asarray, found)


@functools.cache
def expected(name="gpt", copies=1, key=0):
    return by_a_plain_loop(name, prompts_of(copies=copies), jax.random.key(key))


def assert_same(rollout, plain):
    tokens, lengths = plain
    np.testing.assert_array_equal(rollout.completions, tokens)
    np.testing.assert_array_equal(rollout.completion_mask, np.arange(C) < lengths[:, None])


@pytest.mark.parametrize("slots", [0, 3, pytest.param(15, marks=slow)])
def test_completions_are_those_of_a_plain_loop(slots):
    assert_same(draw(slots=slots), expected())
    lengths = expected()[1]
    assert lengths.min() < C / 2 and lengths.max() == C, (
        "the test needs completions that end early, and some that do not"
    )


@pytest.mark.parametrize("key", [1, 2])
def test_other_noise_and_scanned_layers(key):
    assert_same(draw("llama", slots=5, key=key), expected("llama", key=key))


@pytest.mark.parametrize(
    "mesh, slots", [("2x2x2", 8), *(pytest.param(*case, marks=slow) for case in (("8x1x1", 8), ("2x2x2", 0)))]
)
def test_every_mesh_draws_the_same_tokens(mesh, slots):
    assert_same(draw(mesh=mesh, slots=slots), expected())


@pytest.mark.parametrize(
    "copies, mesh, slots",
    [
        (8, "1x1x1", 4),
        pytest.param(4, "1x1x1", 10, marks=slow),
        pytest.param(2, "1x1x1", 0, marks=slow),
        pytest.param(2, "2x2x2", 8, marks=slow),  # of a mesh: the test below
    ],
)
def test_a_prompt_is_read_once_for_all_its_completions(copies, mesh, slots):
    """Their noise differs. There may be more of them than slots, and then fewer share a reading."""
    rollout = draw(prompts=prompts_of(copies=copies), mesh=mesh, slots=slots, copies=copies)
    assert_same(rollout, expected(copies=copies))
    assert len(np.unique(rollout.completions[:copies], axis=0)) == copies


def test_copies_on_several_devices_are_read_on_each():
    """Of 8 devices each has 2 rows, and a prompt 4 completions."""
    assert_same(draw(prompts=prompts_of(copies=4), mesh="8x1x1", copies=4), expected(copies=4))


@pytest.mark.parametrize(
    "copies, rows, slots, ways, shared",
    [
        (8, 256, 32, 1, 8),  # a quarter of the slots
        (64, 256, 32, 1, 8),
        (12, 240, 32, 1, 6),  # parts of 12 are 1, 2, 3, 4, 6 and 12
        (64, 256, 3, 1, 1),
        (64, 256, 0, 1, 64),  # no slot waits for others
        (64, 256, 256, 4, 64),  # each device has 64 slots for 64 rows
        (64, 256, 128, 4, 8),
        (4, 16, 0, 8, 2),  # each device has two rows
        (5, 16, 0, 1, 1),  # no prompt's rows end where the batch does
    ],
)
def test_how_many_completions_share_the_reading_of_their_prompt(copies, rows, slots, ways, shared, monkeypatch):
    monkeypatch.undo()
    sizes = generate.Sizes(C, tiny.EOS, tiny.PAD, slots, copies).of_device(rows, ways)
    assert (sizes.copies, sizes.slots) == (shared, slots // ways)


@pytest.mark.parametrize(
    "mesh, ways, slots",
    [("1x1x1", 1, 4), pytest.param("1x1x1", 1, 0, marks=slow), pytest.param("2x2x2", 4, 0, marks=slow)],
)
def test_a_row_may_have_its_own_limit(mesh, ways, slots, monkeypatch):
    """The rows end one after another, so that the slots become fewer several times."""
    monkeypatch.setattr(slots_lib, "_STAGES", 3)
    limits = np.random.default_rng(0).permutation(np.arange(C - ROWS, C) + 1).astype(np.int32)
    plain = by_a_plain_loop("gpt", prompts_of(), jax.random.key(0), limits=limits)
    sizes = generate.Sizes(C, tiny.EOS, tiny.PAD, slots)
    runs = turns(prompts_of().mask.sum(1), plain[1], P, sizes, ways)
    assert sum(part.startswith("pages_") and number > 0 for part, number in runs.items()) > 1
    assert_same(draw(slots=slots, limits=limits, mesh=mesh), plain)


@pytest.mark.parametrize("slots", [3, pytest.param(0, marks=slow)])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_truncation_and_penalty_see_the_row_and_no_other(slots, temperature):
    truncation, prompts = Truncation(jnp.int32(12), jnp.float32(0.9), jnp.float32(1.7)), prompts_of()
    garbage = np.random.default_rng(0).integers(0, tiny.VOCAB, prompts.tokens.shape, np.int32)  # is on no row's text
    prompts = Prompts(np.where(prompts.mask, prompts.tokens, garbage), prompts.mask, prompts.index)
    plain = by_a_plain_loop("gpt", prompts, jax.random.key(0), temperature, truncation)
    found = draw(prompts=prompts, slots=slots, temperature=temperature, truncation=truncation)
    assert_same(found, plain)
    forced = jax.jit(ppo.completion_logprobs, static_argnums=0)
    model_says = forced(CONFIGS["gpt"], tiny.params_of(CONFIGS["gpt"], 0), found, jnp.float32(temperature))
    np.testing.assert_allclose(found.logprobs, model_says, atol=2e-5)  # whatever the truncation and the penalty


@pytest.mark.parametrize("mesh", ["2x2x2", pytest.param("1x1x1", marks=slow)])
def test_layers_that_are_separate_arrays_draw_the_same(mesh, monkeypatch):
    """As on a GPU, for a model whose layers are stacked in training."""
    monkeypatch.setattr(decode, "unrolls", lambda platform: True)
    assert_same(draw("llama", slots=8, mesh=mesh), expected("llama", key=0))


def test_the_layout_of_separate_layers_is_recognised(monkeypatch):
    monkeypatch.setattr(decode, "unrolls", lambda platform: True)
    config, mesh = dataclasses.replace(CONFIGS["llama"], dtype="bfloat16"), tiny.mesh_of("2x2x2")
    layout = generate.Layout(config, mesh)
    params = tiny.place(tiny.params_of(config, 0), config, mesh)
    assert not layout.holds(params)
    laid_out = layout(params)
    assert layout.holds(laid_out) and layout(laid_out) is laid_out
    assert len(laid_out["layers"]) == config.num_layers
    for number, layer in enumerate(laid_out["layers"]):
        for name, x in layer.items():
            stacked = params["layers"][name]
            for leaf, whole in zip(jax.tree.leaves(x), jax.tree.leaves(stacked)):
                np.testing.assert_array_equal(leaf, whole[number].astype(jnp.bfloat16))
                assert {axis for axis in leaf.sharding.spec if axis} <= {"tensor"}


def steps_of(lengths, slots):
    """(slots -> the pages that so many of them decode, prefills) of a batch with completions of these lengths."""
    limits = np.asarray(lengths, np.int32)
    config, rows = tiny.CONFIG, len(limits)
    params = jax.tree.map(jnp.asarray, tiny.params_of(config, 0))
    prompts = tiny.prompts_of(rows, P)
    uniform = generate.noise(jax.random.key(0), rows, C)
    sizes = generate.Sizes(C, eos_id=-1, pad_id=tiny.PAD, slots=slots)
    given = jnp.asarray(prompts.tokens), jnp.asarray(prompts.mask), uniform, jnp.float32(1), None, sizes
    decoder = generate.Decoder.of(config, params, *given, jnp.asarray(limits))
    page, read = jax.jit(decoder.decode_page), jax.jit(decoder.read_group)
    slots, pages, reads = decoder.start(), collections.Counter(), 0

    def decode_pages(slots):
        while decoder.goes_on(slots):
            slots = page(slots)
            pages[len(slots.live)] += 1
        return slots

    while decoder.waits(slots):
        slots, reads = decode_pages(read(slots)), reads + 1
    for width in decoder.widths[1:-1]:
        slots = decode_pages(slots_lib.narrowed(slots, width))
    np.testing.assert_array_equal(slots.lengths, limits)
    return dict(pages), reads


def test_a_slot_that_is_free_takes_the_next_prompt():
    """Of 64 completions one is long: 8 slots need little more than their share, and not 8 times the longest."""
    pages, reads = steps_of([C] + [6] * 63, slots=8)
    assert sum(pages.values()) <= 4 + 8 + 2  # the long one; 7 of 8 rounds of one page; a few for the ends
    assert reads == 64  # a group is one prompt here
    pages, reads = steps_of([C] + [6] * 63, slots=0)
    assert (sum(pages.values()), reads) == (4, 1)


def test_slots_that_stay_free_are_given_up(monkeypatch):
    """Two pages leave 3 of 16 completions: 10 did not fit into 8 slots after the first, and 3 need no more than 4."""
    monkeypatch.setattr(slots_lib, "_STAGES", 4)
    assert steps_of([6] * 6 + [C] * 3 + [11] * 7, slots=0) == ({16: 2, 4: 2}, 1)


@pytest.mark.parametrize("pages, stages", [(1, 1), (3, 1), (4, 2), (7, 2), (8, 3), (64, 3)])
def test_short_completions_have_fewer_stages(pages, stages, monkeypatch):
    monkeypatch.undo()
    prompts, sizes = tiny.prompts_of(256, P), generate.Sizes(1 + 16 * pages, tiny.EOS, tiny.PAD)
    given = jnp.asarray(prompts.tokens), jnp.asarray(prompts.mask), None, jnp.float32(1), None, sizes
    widths = generate.Decoder.of(tiny.CONFIG, tiny.params_of(tiny.CONFIG, 0), *given).widths
    assert widths == (*(256, 64, 16)[:stages], 0)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_fewer_slots_are_all_that_are_live(scan_layers):
    """Their numbers, their keys and their values, which lie in fewer chunks."""
    config, rng = dataclasses.replace(tiny.CONFIG, scan_layers=scan_layers), np.random.default_rng(0)
    rows, bounds = 12, (0, 10, 20, 30, 40, 45)
    cache = jax.tree.map(
        lambda x: rng.integers(1, 1000, x.shape).astype(x.dtype), decode.empty_cache(config, rows, bounds)
    )
    numbers = {name: rng.integers(0, 100, rows) for name in ("row", "prompt", "count", "token")}
    batch = dict.fromkeys(("read", "tokens", "logprobs", "lengths"), jnp.int32(0))
    live, seen = np.isin(np.arange(rows), (1, 7, 8, 11)), rng.random((rows, 5)) < 0.5
    found = slots_lib.narrowed(slots_lib.Slots(cache=cache, live=live, seen=seen, **numbers, **batch), 5)
    kept = [1, 7, 8, 11]
    np.testing.assert_array_equal(found.live, [True] * 4 + [False])
    for name, x in {**numbers, "seen": seen}.items():
        np.testing.assert_array_equal(getattr(found, name)[:4], x[kept])
    np.testing.assert_array_equal(found.cache.first[:4], cache.first[kept])
    np.testing.assert_array_equal(found.cache.end[:4], cache.end[kept])

    def whole(chunks):  # [L, rows, G, places, Dh]
        return np.concatenate([np.stack(chunk) for chunk in chunks], axis=-2)

    assert decode.joined(bounds) == (0, 30, 45)
    for new, old in ((found.cache.keys, cache.keys), (found.cache.values, cache.values)):
        assert [np.stack(chunk).shape[-2] for chunk in new] == [30, 15]
        np.testing.assert_array_equal(whole(new)[:, :4], whole(old)[:, kept])


@pytest.mark.parametrize("layers, most", [(2, 8), (24, 8), (32, 6), (96, 2), (200, 2)])
def test_deep_unrolled_models_have_fewer_chunks(layers, most):
    config = dataclasses.replace(tiny.CONFIG, num_layers=layers, scan_layers=False)
    assert decode.most_chunks(config) == most and decode.most_chunks(dataclasses.replace(config, scan_layers=True)) == 8
    bounds = decode.chunks(2048, 16, most)
    assert len(bounds) == most + 1 and bounds[-1] == 2048 and all(bound % 16 == 0 for bound in bounds)
