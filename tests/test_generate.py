"""Sampling: the right distribution, the right end, and noise that differs wherever it must."""

import dataclasses
import functools
import types

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from rlhf_jax import generate, model, ppo, sharding
from rlhf_jax.data.batches import Prompts
from rlhf_jax.plan import hlo

P, C, ROWS = 6, 10, 16
CONFIGS = {"gpt": tiny.CONFIG, "llama": tiny.llama(scan_layers=True)}
configs = pytest.mark.parametrize("name", CONFIGS)


@functools.cache
def sampler_of(name, mesh="1x1x1", completion_length=C):
    return generate.Sampler(
        CONFIGS[name], tiny.mesh_of(mesh), completion_length=completion_length, eos_id=tiny.EOS, pad_id=tiny.PAD
    )


def draw(name="gpt", prompts=None, seed=0, temperature=1.0, mesh="1x1x1"):
    """A rollout in NumPy."""
    config, prompts = CONFIGS[name], tiny.prompts_of(ROWS, P) if prompts is None else prompts
    with jax.set_mesh(tiny.mesh_of(mesh)):
        params = tiny.place(tiny.params_of(config, 0), config, tiny.mesh_of(mesh))
        rollout = sampler_of(name, mesh)(params, prompts, jax.random.key(seed), temperature)
        return jax.tree.map(np.asarray, rollout)


@functools.partial(jax.jit, static_argnums=0)
def teacher_forced(config, params, rollout, temperature):
    """(log-probabilities of the sampled tokens, of all tokens)."""
    logits = model.lm_logits(config, params, ppo.completion_states(config, params, rollout))
    logits = logits / jnp.where(temperature <= 0, 1.0, temperature)
    return ppo.completion_logprobs(config, params, rollout, temperature), jax.nn.log_softmax(logits)


def one_prompt(rows=ROWS):
    """The same prompt in every row."""
    return jax.tree.map(lambda x: np.repeat(x[:1], rows, axis=0), tiny.prompts_of(ROWS, P))


# --- Log-probabilities and distribution -----------------------------------------------------------


@configs
@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])  # greedy: log-probabilities are at temperature 1
def test_sampled_logprobs_equal_teacher_forced_ones(name, temperature):
    rollout = draw(name, temperature=temperature)
    params = tiny.params_of(CONFIGS[name], 0)
    expected, _ = teacher_forced(CONFIGS[name], params, rollout, jnp.float32(temperature))
    np.testing.assert_allclose(rollout.logprobs, expected, atol=2e-5)
    assert np.all(rollout.logprobs[rollout.completion_mask] < 0)


def test_tokens_come_with_their_probabilities():
    """4096 first tokens of one prompt against the softmax, at two temperatures; one program."""
    config, rows = tiny.CONFIG, 4096
    params, prompts = tiny.params_of(config, 0), one_prompt(rows)
    sampler = sampler_of("gpt", completion_length=1)
    for temperature in (0.7, 2.0):
        _, logprobs = teacher_forced(config, params, draw(prompts=one_prompt()), temperature)
        probabilities = np.exp(logprobs[0, 0])
        rollout = sampler(params, prompts, jax.random.key(0), temperature)
        frequencies = np.bincount(rollout.completions[:, 0], minlength=64) / rows
        error = np.sqrt(probabilities * (1 - probabilities) / rows)
        assert np.all(np.abs(frequencies - probabilities) <= 4.5 * error + 1e-4)
        assert np.count_nonzero(frequencies) > 5


@configs
def test_temperature_zero_takes_the_most_likely_token(name):
    rollout = draw(name, temperature=0.0)
    _, logprobs = teacher_forced(CONFIGS[name], tiny.params_of(CONFIGS[name], 0), rollout, jnp.float32(0.0))
    best = np.argmax(logprobs, axis=-1)
    np.testing.assert_array_equal(rollout.completions[rollout.completion_mask], best[rollout.completion_mask])
    again = draw(name, temperature=0.0, seed=1)
    np.testing.assert_array_equal(rollout.tokens, again.tokens)


def test_the_padding_of_the_vocabulary_is_never_drawn():
    """At temperature 1e4 every token is as likely; masked logits of -1e9 still are not."""
    rollout = draw(temperature=1e4)
    assert rollout.tokens.max() < tiny.VOCAB
    assert len(np.unique(rollout.completions)) > tiny.VOCAB / 2


# --- The end of a completion ----------------------------------------------------------------------


@configs
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_completion_ends_with_its_first_eos(name, temperature):
    prompts = tiny.prompts_of(ROWS, P)
    rollout = draw(name, prompts, temperature=temperature)
    np.testing.assert_array_equal(rollout.tokens[:, :P], prompts.tokens)
    np.testing.assert_array_equal(rollout.prompt_mask, prompts.mask)
    lengths = []
    for tokens, mask, logprobs in zip(rollout.completions, rollout.completion_mask, rollout.logprobs):
        ends = np.flatnonzero(tokens == tiny.EOS)
        length = ends[0] + 1 if len(ends) else C
        np.testing.assert_array_equal(mask, np.arange(C) < length)
        assert np.all(tokens[length:] == tiny.PAD) and np.all(logprobs[length:] == 0)
        lengths.append(length)
    assert min(lengths) < C == max(lengths), "the test needs completions that end and that do not"


def test_texts_are_without_special_tokens():
    rollout = draw()

    def decode(rows, continues):
        return [" ".join(map(str, row)) for row in rows]

    def decode_cut(row):
        return " ".join(map(str, row)) + " …"

    tokenizer = types.SimpleNamespace(end_ids=(tiny.EOS,), decode_batch=decode, decode_cut=decode_cut)
    texts, finished = generate.texts(rollout, tokenizer)
    assert [text.endswith(" …") for text in texts] == [not end for end in finished]
    texts = [text.removesuffix(" …") for text in texts]
    for text, end, tokens, mask in zip(texts, finished, rollout.completions, rollout.completion_mask):
        assert end == (tokens[mask][-1] == tiny.EOS)
        assert text.split() == [str(token) for token in tokens[mask] if token != tiny.EOS]


# --- Noise ----------------------------------------------------------------------------------------


def test_the_same_key_gives_the_same_tokens_and_another_key_others():
    first, again, other = draw(seed=0), draw(seed=0), draw(seed=1)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert np.mean(np.any(first.completions != other.completions, axis=1)) > 0.8


@pytest.mark.parametrize(
    "mesh", ["2x2x2", *(pytest.param(mesh, marks=pytest.mark.slow) for mesh in ("1x1x1", "8x1x1", "1x8x1", "1x1x8"))]
)
def test_every_row_has_its_own_noise_on_every_device(mesh):
    """Of 16 rows with one prompt, 2 on each of 8 devices; some two may agree by chance after an early end."""
    rollout = draw(prompts=one_prompt(), mesh=mesh)
    assert len(np.unique(rollout.completions, axis=0)) >= 14


@pytest.mark.parametrize("mesh", ["1x1x1", "2x2x2"])
def test_sampling_in_parts_draws_the_same_tokens(mesh):
    parts = generate.Sampler(
        tiny.CONFIG, tiny.mesh_of(mesh), completion_length=C, eos_id=tiny.EOS, pad_id=tiny.PAD, slots=8
    )
    with jax.set_mesh(tiny.mesh_of(mesh)):
        params = tiny.place(tiny.params_of(tiny.CONFIG, 0), tiny.CONFIG, tiny.mesh_of(mesh))
        found = jax.tree.map(np.asarray, parts(params, tiny.prompts_of(ROWS, P), jax.random.key(0), 1.0))
    np.testing.assert_array_equal(found.tokens, draw().tokens)
    np.testing.assert_array_equal(found.completion_mask, draw().completion_mask)
    np.testing.assert_allclose(found.logprobs, draw().logprobs, atol=2e-5)


@pytest.mark.parametrize("mesh", [name for name in tiny.MESHES if name != "1x1x1"])
def test_every_mesh_draws_the_same_tokens(mesh):
    here, there = draw(), draw(mesh=mesh)
    np.testing.assert_array_equal(here.tokens, there.tokens)
    np.testing.assert_array_equal(here.completion_mask, there.completion_mask)
    np.testing.assert_allclose(here.logprobs, there.logprobs, atol=2e-5)


@pytest.mark.parametrize("scanned", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_no_weight_is_gathered_while_decoding(scanned):
    """Nor before, in the compiled program; from the training layout, split over fsdp, they would be: the test can see it."""
    config, mesh = dataclasses.replace(tiny.CONFIG, scan_layers=scanned), sharding.make_mesh(1, 4, 2)
    sampler = generate.Sampler(config, mesh, completion_length=C, eos_id=tiny.EOS, pad_id=tiny.PAD)
    prompts = tiny.prompts_of(ROWS, P)
    with jax.set_mesh(mesh):
        params = tiny.place(tiny.params_of(config, 0), config, mesh)
        tokens, mask = sharding.put_batch((prompts.tokens, prompts.mask), mesh)
        rest = tokens, mask, jax.random.key(0), jnp.float32(1.0)

        def gathered(params):
            facts = hlo.read(sampler.program.lower(params, *rest).compile().as_text(), mesh)
            return sum(found.bytes for found in facts.collectives if found.kind == "all-gather")

        smallest, largest = (4 * config.embed_dim * width for width in (config.embed_dim, config.hidden_dim))
        assert gathered(sampler.layout(params)) < smallest  # in all: some activations, over tensor
        assert gathered(params) > largest * config.num_layers


def test_the_decode_layout_is_in_the_compute_dtype_and_left_alone_where_it_is_that_already():
    config, mesh = dataclasses.replace(tiny.CONFIG, dtype="bfloat16"), tiny.mesh_of("2x2x2")
    sampler = generate.Sampler(config, mesh, completion_length=C, eos_id=tiny.EOS, pad_id=tiny.PAD)
    params = tiny.place(tiny.params_of(config, 0), config, mesh)
    assert not sampler.layout.holds(params)
    laid_out = sampler.layout(params)
    assert sampler.layout.holds(laid_out)
    for path, x in jax.tree_util.tree_leaves_with_path(laid_out):
        split = {axis for axis in x.sharding.spec if axis}
        assert x.dtype == jnp.bfloat16 and split <= {"tensor"}, path
        assert split or not path[-1].key.startswith("w"), path
    given = []
    sampler.program = lambda params, *rest: given.append(params)
    sampler(params, tiny.prompts_of(ROWS, P), jax.random.key(0), 1.0)
    assert sampler.layout.holds(given[0])


def test_steps_have_their_own_noise():
    """At a temperature where all tokens are as likely, a row does not repeat one token."""
    rollout = draw(temperature=1e4)
    long = rollout.completions[rollout.completion_mask.all(axis=1)]
    assert len(long) >= 8
    assert np.all([len(np.unique(row)) > 5 for row in long])


# --- What must not matter -------------------------------------------------------------------------


@configs
def test_left_padding_changes_nothing(name):
    extra, prompts = 5, tiny.prompts_of(ROWS, P)
    garbage = np.random.default_rng(extra).integers(0, tiny.VOCAB, (ROWS, extra)).astype(np.int32)
    longer = Prompts(
        np.concatenate([garbage, np.where(prompts.mask, prompts.tokens, 7)], axis=1),
        np.pad(prompts.mask, ((0, 0), (extra, 0))),
        prompts.index,
    )
    short, long = draw(name, prompts), draw(name, longer)
    np.testing.assert_array_equal(short.completions, long.completions)
    np.testing.assert_allclose(short.logprobs, long.logprobs, atol=2e-5)


def test_one_program_for_every_temperature_and_key():
    for seed, temperature in enumerate((0.0, 0.3, 1)):
        draw(temperature=temperature, seed=seed, mesh="2x2x2", prompts=tiny.prompts_of(ROWS, P, seed))
    assert sampler_of("gpt", "2x2x2").program._cache_size() == 1


@pytest.mark.parametrize("vocab", [1, 2, 61, 1000])
def test_inverse_cdf_is_that_of_a_plain_loop(vocab):
    rng = np.random.default_rng(vocab)
    probabilities = rng.dirichlet(np.full(vocab, 0.3), 500).astype(np.float32)
    uniform = rng.random((500, 1)).astype(np.float32)
    drawn = np.asarray(generate.inverse_cdf(probabilities, uniform))
    for row, threshold, token in zip(probabilities.astype(np.float64), uniform[:, 0], drawn):
        before = row[:token].sum()
        assert before - 1e-5 <= threshold * row.sum() <= before + row[token] + 1e-5


@hypothesis.given(
    weights=st.lists(st.sampled_from([0.0, 1e-30, 0.1, 1.0, 3.0]), min_size=1, max_size=40).filter(any),
    uniform=st.floats(0, 1, exclude_max=True, width=32),
)
def test_inverse_cdf_never_draws_what_has_no_probability(weights, uniform):
    padded = np.zeros(40, np.float32)
    padded[: len(weights)] = weights
    drawn = np.asarray(draw_row(padded[None], np.array([[uniform]], np.float32)))
    assert padded[drawn[0]] > 0


draw_row = jax.jit(generate.inverse_cdf)
