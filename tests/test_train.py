"""The train step: one gradient whatever the split of the batch and the mesh, one division, one optimizer step."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from rlhf_jax import generate, losses, model, optim, sharding, token_loss, train

ROWS, T = 16, 14


# --- A linear loss, by hand -----------------------------------------------------------------------


def linear_loss(params, batch, keys):
    """Squared error, each row with its own weight; the keys of the rows add noise when there is `noise`."""
    x, y, weight = batch
    noise = params["noise"] * jax.vmap(jax.random.normal)(keys)
    errors = weight * (x @ params["w"] + noise - y) ** 2
    return losses.Loss(
        errors.sum(), weight.sum(), {"x": (x.sum(), jnp.float32(x.size))}, {"largest": jnp.max(jnp.abs(y))}
    )


def linear_batch():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 3)).astype(np.float32), rng.normal(size=12).astype(np.float32)
    return x, y, np.array([3, 0, 0, 1, 7, 0, 0, 0, 2, 1, 0, 1], np.float32)


LINEAR = {"w": np.array([0.5, -1.0, 2.0], np.float32), "noise": np.float32(0.0)}


@pytest.mark.parametrize("microbatches", [1, 2, 3, 6, 12])
def test_gradient_and_statistics_are_divided_once(microbatches):
    """Rows of unequal weight, some parts without any: means of means would be wrong."""
    x, y, weight = linear_batch()
    grads, loss = train.gradients(linear_loss, LINEAR, (x, y, weight), jax.random.key(0), microbatches)
    errors = x @ LINEAR["w"] - y
    np.testing.assert_allclose(grads["w"], 2 * (weight * errors) @ x / weight.sum(), rtol=1e-5)
    metrics = train.loss_metrics(loss)
    np.testing.assert_allclose(metrics["loss"], (weight * errors**2).sum() / weight.sum(), rtol=1e-5)
    np.testing.assert_allclose(metrics["x"], x.mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["largest"], np.abs(y).max(), rtol=1e-6)


@pytest.mark.parametrize("microbatches", [1, 3, 6])
def test_every_row_has_its_own_key_whatever_the_microbatches(microbatches):
    x, y, weight = linear_batch()
    seen = {}

    def loss_fn(params, batch, keys):
        def see(rows, keys):
            seen.update({row: tuple(key) for row, key in zip(rows.tolist(), keys.tolist())})

        jax.debug.callback(see, batch[3], jax.random.key_data(keys))
        return linear_loss(params, batch[:3], keys)

    key, rows = jax.random.key(5), np.arange(len(y))
    train.gradients(loss_fn, LINEAR, (x, y, weight, rows), key, microbatches)
    jax.effects_barrier()
    assert seen == {row: tuple(jax.random.key_data(jax.random.fold_in(key, row)).tolist()) for row in rows.tolist()}
    assert len(set(seen.values())) == len(rows)


def test_a_batch_without_any_target_moves_nothing():
    x, y, weight = linear_batch()
    grads, loss = train.gradients(linear_loss, LINEAR, (x, y, 0 * weight), jax.random.key(0), 2)
    np.testing.assert_array_equal(grads["w"], 0.0)
    assert train.loss_metrics(loss)["loss"] == 0.0


def test_steps_average_and_learning_rate():
    """Three steps of plain gradient descent by a loop, with a schedule and a moving average."""
    optimizer, batch = optax.identity(), linear_batch()
    state = train.init_state(LINEAR, optimizer, ema=True)
    assert state.step == 0 and state.ema_params is not state.params

    def schedule(step):
        return 1.0 / (1.0 + step)

    w, seen = LINEAR["w"], []
    for step in range(3):
        grads, _ = train.gradients(linear_loss, state.params, batch, jax.random.key(0))
        grads["noise"] = jnp.float32(0.0)
        rate = 0.1 * schedule(step)
        expected = 2 * (batch[2] * (batch[0] @ w - batch[1])) @ batch[0] / batch[2].sum()
        state, norm = train.apply_gradients(state, grads, optimizer, rate, ema_decay=0.75)
        w = w - rate * expected
        seen.append(w)
        weights = 0.75 ** np.arange(len(seen))[::-1]  # the start, LINEAR, has none
        average = np.average(seen, axis=0, weights=weights)
        np.testing.assert_allclose(state.params["w"], w, rtol=1e-5)
        np.testing.assert_allclose(state.ema_params["w"], average, rtol=1e-5)
        np.testing.assert_allclose(norm, np.linalg.norm(expected), rtol=1e-5)
        assert state.step == step + 1
    assert train.init_state(LINEAR, optimizer).ema_params is None


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.992, 1.0])
def test_an_average_is_adams_of_the_steps_made_and_knows_nothing_of_the_start(decay):
    """Against an average that starts at zero and is divided by 1 - decay^t, in float64; decay 1 is the plain mean."""
    seen = np.random.default_rng(0).normal(1.0, 1.0, (400, 3))
    step = jax.jit(train.averaged)
    average, raw = {"w": jnp.full(3, 1e6)}, np.zeros(3)
    for t, w in enumerate(seen, 1):
        average = step(average, {"w": jnp.asarray(w, jnp.float32)}, jnp.float32(decay), jnp.int32(t))
        raw = decay * raw + (1 - decay) * w
        expected = raw / (1 - decay**t) if decay < 1 else seen[:t].mean(axis=0)
        np.testing.assert_allclose(average["w"], expected, rtol=1e-4, atol=1e-5, err_msg=f"step {t}")
        if t == 1 or decay == 0.0:
            np.testing.assert_array_equal(average["w"], np.float32(w))


def test_a_train_step_uses_the_schedule_at_its_own_step_and_never_recompiles():
    optimizer = optim.make_optimizer(optim.OptimizerConfig())
    step = jax.jit(train.make_train_step(linear_loss, optimizer, lambda step: 1.0 / (1.0 + step)))
    state = jax.jit(train.init_state, static_argnums=1)(LINEAR, optimizer)
    for number, rate in enumerate((0.1, 0.2, 0.4)):
        state, metrics = step(state, linear_batch(), jnp.float32(rate), jax.random.key(number))
        np.testing.assert_allclose(metrics["learning_rate"], rate / (1 + number), rtol=1e-6)
    assert step._cache_size() == 1 and state.step == 3


# --- The language model on every mesh -------------------------------------------------------------

slow = pytest.mark.slow
CASES = [
    ("1x1x1", 2),
    ("2x2x2", 2),
    pytest.param("8x1x1", 1, marks=slow),
    pytest.param("1x8x1", 1, marks=slow),
    pytest.param("2x2x2", 1, marks=slow),
]
DROPOUT = 0.1


@functools.cache
def trained(mesh_name, microbatches, dropout_rate=0.0):
    """(parameters after one step of plain gradient descent at rate 1, metrics), in NumPy."""
    config, mesh, optimizer = tiny.SCANNED, tiny.mesh_of(mesh_name), optax.identity()
    loss_fn = functools.partial(token_loss.token_loss, config, dropout_rate=dropout_rate)
    with jax.set_mesh(mesh):
        params = tiny.place(tiny.params_of(config, 0), config, mesh)
        state = train.init_state(params, optimizer)
        shardings = train.state_shardings(state, optimizer, model.logical_axes(config), mesh)
        step = jax.jit(
            train.make_train_step(loss_fn, optimizer, lambda step: 1.0, microbatches),
            in_shardings=(shardings, sharding.over_batch(mesh), None, None),
            out_shardings=(shardings, sharding.replicated(mesh)),
        )
        batch = sharding.put_batch(tiny.documents_of(ROWS, T), mesh)
        state, metrics = step(state, batch, jnp.float32(1.0), jax.random.key(0))
        assert jax.tree.map(lambda x: x.sharding, state.params) == shardings.params
        return jax.tree.map(np.asarray, (state.params, metrics))


@pytest.mark.parametrize("mesh, microbatches", CASES, ids=lambda x: str(x))
def test_loss_and_gradient_do_not_depend_on_mesh_or_microbatches(mesh, microbatches):
    params, metrics = trained(mesh, microbatches)
    expected_params, expected_metrics = trained("1x1x1", 1)
    for name, expected in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], expected, rtol=2e-6, err_msg=name)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=3e-6), params, expected_params)


@pytest.mark.parametrize("scanned", [True, False])
def test_a_program_of_scanned_layers_does_not_grow_with_them(scanned):
    """Training and sampling; unrolled ones do, which shows that the test can see it."""

    def size(layers):
        config = dataclasses.replace(tiny.CONFIG, num_layers=layers, scan_layers=scanned)
        params, batch = model.param_shapes(config), tiny.documents_of(ROWS, T)

        def loss_fn(params):
            return token_loss.token_loss(config, params, batch, None).total

        draw = functools.partial(generate.sample, config, sizes=generate.Sizes(4, tiny.EOS, tiny.PAD))
        prompts = tiny.prompts_of(ROWS, 5)
        trained = jax.jit(jax.grad(loss_fn)).lower(params)
        sampled = jax.jit(draw).lower(params, prompts.tokens, prompts.mask, jax.random.key(0), jnp.float32(1))
        return [len(program.as_text().splitlines()) for program in (trained, sampled)]

    for small, large in zip(size(2), size(6)):
        assert large == small if scanned else large > 1.2 * small


def test_a_chunked_loss_never_holds_the_logits_of_the_batch():
    """Nor does its gradient; the loss without chunks shows that the test can see them. Both are the same."""
    batch, params = tiny.documents_of(ROWS, T), tiny.params_of(tiny.SCANNED, 0)

    def compiled(chunk):
        loss_fn = functools.partial(token_loss.token_loss, dataclasses.replace(tiny.SCANNED, logits_chunk=chunk))
        program = jax.jit(jax.grad(lambda params: loss_fn(params, batch, None).total)).lower(params).compile()
        shapes = re.findall(r"f32\[([\d,]+)\]", program.as_text())
        sizes = {math.prod(map(int, shape.split(","))) for shape in shapes}
        return program(params), sizes

    (expected, whole), (found, chunked) = compiled(0), compiled(4)
    logits = ROWS * (T - 1) * tiny.SCANNED.padded_vocab
    assert logits in whole and ROWS * 4 * tiny.SCANNED.padded_vocab in chunked
    assert not {logits, ROWS * 16 * tiny.SCANNED.padded_vocab} & chunked  # 16: T - 1 places in whole chunks
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found, expected)


@pytest.mark.parametrize(
    "mesh, dtype, tolerance, tied",
    [
        ("1x1x1", "bfloat16", 2e-2, False),
        ("2x2x2", "float32", 1e-5, True),
        pytest.param("2x2x2", "bfloat16", 2e-2, True, marks=pytest.mark.slow),
    ],
)
def test_a_sum_by_chunks_and_its_gradient_are_those_of_all_logits(mesh, dtype, tolerance, tied):
    """The head is split over `tensor`, the last chunk is padded, some places are no targets, and the sum is scaled."""
    config = dataclasses.replace(tiny.SCANNED, dtype=dtype, tie_embeddings=tied)
    batch, params = tiny.documents_of(8, T), tiny.params_of(config, 0)
    assert 0 < batch.loss_mask.mean() < 1 and (T - 1) % 4

    def scaled(chunk, params, batch):
        return 3 * token_loss.token_loss(dataclasses.replace(config, logits_chunk=chunk), params, batch).total

    with jax.set_mesh(mesh := tiny.mesh_of(mesh)):
        placed = tiny.place(params, config, mesh)
        rows = sharding.put_batch(batch, mesh)
        found, expected = (jax.jit(jax.value_and_grad(functools.partial(scaled, n)))(placed, rows) for n in (4, 0))
    size = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected[1]))
    np.testing.assert_allclose(found[0], expected[0], rtol=tolerance)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance * size), found[1], expected[1]
    )


def test_a_sum_by_chunks_computes_no_logits_twice():
    """Three products with the head: the logits, and the gradients of both factors; log-probabilities take a fourth."""
    config = dataclasses.replace(tiny.SCANNED, logits_chunk=4, vocab_size=1000, vocab_multiple=1000)
    batch, params = tiny.documents_of(ROWS, T), tiny.params_of(config, 0)

    def logprobs(params):
        hidden = model.hidden_states(config, params, batch.tokens, batch.positions, batch.segment_ids)
        return model.target_logprobs(config, params, hidden[:, :-1], batch.tokens[:, 1:]).sum()

    def products(function):
        text = str(jax.make_jaxpr(jax.grad(function))(params))
        shapes = [math.prod(map(int, shape.split(","))) for shape in re.findall(r"\[([\d,]+)\] = dot_general", text)]
        return [shapes.count(1000 * ROWS * 4), shapes.count(1000 * config.embed_dim)]  # logits; gradients of the head

    assert products(logprobs) == [2, 1]
    assert products(lambda params: token_loss.token_loss(config, params, batch).total) == [1, 1]


def test_the_token_loss_is_the_mean_over_the_tokens_of_the_whole_batch():
    """Rows of few targets do not weigh more; nothing but the targets of loss_mask counts."""
    batch, params = tiny.documents_of(ROWS, T), tiny.params_of(tiny.SCANNED, 0)
    loss = jax.jit(functools.partial(token_loss.token_loss, tiny.SCANNED))(params, batch, None)
    hidden = jax.jit(functools.partial(model.hidden_states, tiny.SCANNED))(
        params, batch.tokens, batch.positions, batch.segment_ids
    )
    logprobs = np.asarray(jax.nn.log_softmax(hidden @ params["embedding"][: tiny.VOCAB].T))
    targets = [(b, t) for b in range(ROWS) for t in range(1, T) if batch.loss_mask[b, t]]
    expected = -np.mean([logprobs[b, t - 1, batch.tokens[b, t]] for b, t in targets])
    assert loss.weight == len(targets)
    np.testing.assert_allclose(loss.total / loss.weight, expected, rtol=1e-5)


def test_padding_of_a_batch_changes_no_loss():
    """More padding on the right, other ids and positions in it."""
    batch, params = tiny.documents_of(ROWS, T), tiny.params_of(tiny.SCANNED, 0)
    wide = jax.tree.map(lambda x: np.pad(x, ((0, 0), (0, 3))), batch)
    noise = np.random.default_rng(0).integers(0, tiny.VOCAB, wide.tokens.shape).astype(np.int32)
    padding = wide.segment_ids == 0
    wide = wide.replace(
        tokens=np.where(padding, noise, wide.tokens), positions=np.where(padding, noise % T, wide.positions)
    )
    loss_fn = jax.jit(functools.partial(token_loss.token_loss, tiny.SCANNED))
    expected, loss = loss_fn(params, batch, None), loss_fn(params, wide, None)
    assert loss.weight == expected.weight
    np.testing.assert_allclose(loss.total, expected.total, rtol=1e-6)


@pytest.mark.parametrize(
    "mesh, microbatches",
    [("2x2x2", 2), *(pytest.param(*case, marks=pytest.mark.slow) for case in (("8x1x1", 1), ("1x1x1", 4)))],
    ids=lambda x: str(x),
)
def test_dropout_in_training_depends_on_the_key_and_not_on_mesh_or_microbatches(mesh, microbatches):
    (params, metrics), (_, plain) = trained("1x1x1", 1, DROPOUT), trained("1x1x1", 1)
    assert metrics["loss"] != plain["loss"]
    there, there_metrics = trained(mesh, microbatches, DROPOUT)
    np.testing.assert_allclose(there_metrics["loss"], metrics["loss"], rtol=2e-6)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=3e-6), there, params)
