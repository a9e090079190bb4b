"""DPO: the loss against loops and closed forms, its optimum on the bandit, and the same on every mesh."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from rlhf_jax import losses, model, sharding, train
from rlhf_jax.config import default_config
from rlhf_jax.model.attention import PREFIX
from rlhf_jax.runtime.progress import Interrupt
from rlhf_jax.stages import dpo, reward_model
from rlhf_jax.world import bandit

SHAPE = (4, 5, 12)  # B, K, T
loss_of = jax.jit(dpo.PreferenceLoss(tiny.CONFIG))
gradient = jax.jit(jax.grad(lambda params, batch: dpo.PreferenceLoss(tiny.CONFIG)(params, batch, None).total))


def preferences_of(seed: int, beta=0.3, label_smoothing=0.0, ref_logprobs=None) -> dpo.Preferences:
    """Random rankings: K of 2 to 5, ties, prompts of their own length; one prompt with nothing but ties."""
    rng = np.random.default_rng(seed)
    rows, k, length = SHAPE
    starts = rng.integers(1, 5, rows).astype(np.int32)
    valid = np.arange(k) < rng.integers(2, k + 1, rows)[:, None]
    lengths = np.where(valid, starts[:, None] + rng.integers(1, length - 4, (rows, k)), 0)
    mask = np.arange(length) < lengths[..., None]
    tokens = rng.integers(2, tiny.VOCAB, SHAPE)
    prompt = np.arange(length) < starts[:, None, None]
    tokens = np.where(mask, np.where(prompt, tokens[:, :1], tokens), tiny.PAD).astype(np.int32)
    ranks = np.where(valid, rng.integers(1, 4, (rows, k)), 0).astype(np.int32)
    ranks[-1] = valid[-1]
    ref = rng.normal(-8, 2, (rows, k)) if ref_logprobs is None else ref_logprobs

    def number(x):
        return np.full(rows, x, np.float32)

    return dpo.Preferences(
        tokens, mask, starts, ranks, valid, np.asarray(ref, np.float32), number(beta), number(label_smoothing)
    )


@functools.cache
def policy():
    return tiny.params_of(tiny.CONFIG, 0)


@functools.cache
def all_logprobs(config):
    """Jitted: (params, tokens, mask) -> log-probabilities of every token after every place f32[..., T, V]."""

    def table(params, tokens, mask):
        def flat(x):
            return x.reshape(-1, x.shape[-1])

        hidden = model.masked_hidden_states(config, params, flat(tokens), flat(mask))
        found = jax.nn.log_softmax(model.lm_logits(config, params, hidden))
        return found.reshape(*tokens.shape, -1)

    return jax.jit(table)


def logprobs_by_loop(params, batch: dpo.Preferences) -> np.ndarray:
    """Token by token of each completion, from the whole table of log-probabilities."""
    table = np.asarray(all_logprobs(tiny.CONFIG)(params, batch.tokens, batch.mask), np.float64)
    found = np.zeros(batch.ranks.shape)
    for b, k in zip(*np.nonzero(batch.valid)):
        places = range(batch.starts[b], int(batch.mask[b, k].sum()))
        found[b, k] = sum(table[b, k, t - 1, batch.tokens[b, k, t]] for t in places)
    return found


def loss_by_loop(log_ratios, batch: dpo.Preferences) -> tuple[float, dict]:
    """Rafailov et al. 2023, equation 7, over all pairs of a prompt; then over the prompts that have any."""
    prompts, pairs = [], []
    for b in range(len(batch.ranks)):
        own = []
        for i in np.flatnonzero(batch.valid[b]):
            for j in np.flatnonzero(batch.valid[b]):
                if batch.ranks[b, i] < batch.ranks[b, j]:
                    won, lost = batch.beta[b] * log_ratios[b, i], batch.beta[b] * log_ratios[b, j]
                    sigmoid, wrong = 1 / (1 + np.exp(lost - won)), batch.label_smoothing[b]
                    own.append(-(1 - wrong) * np.log(sigmoid) - wrong * np.log(1 - sigmoid))
                    pairs.append((won, lost))
        if own:
            prompts.append(np.mean(own))
    won, lost = np.array(pairs).T
    return np.mean(prompts), {
        "accuracy": np.mean(won > lost),
        "margin": np.mean(won - lost),
        "chosen_reward": won.mean(),
        "rejected_reward": lost.mean(),
        "log_ratio": log_ratios[batch.valid].mean(),
    }


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_the_loss_is_the_papers_by_a_plain_loop(label_smoothing):
    batch = preferences_of(1, label_smoothing=label_smoothing)
    logprobs = logprobs_by_loop(policy(), batch)
    found = dpo.logprobs(tiny.CONFIG, policy(), batch)
    np.testing.assert_allclose(np.where(batch.valid, found, 0), logprobs, rtol=1e-4, atol=1e-4)
    expected, statistics = loss_by_loop(logprobs - batch.ref_logprobs, batch)
    loss = train.loss_metrics(loss_of(policy(), batch, None))
    assert float(loss["loss"]) == pytest.approx(expected, rel=1e-4)
    assert {name: float(loss[name]) for name in statistics} == pytest.approx(statistics, rel=1e-3, abs=1e-4)


def test_at_the_reference_the_loss_is_log_2_and_the_gradient_its_closed_form():
    """d loss / d log pi(y) = -beta/2 for the better of a pair and +beta/2 for the worse."""
    batch = preferences_of(2)
    ref = np.asarray(dpo.logprobs(tiny.CONFIG, policy(), batch))
    batch = batch.replace(ref_logprobs=ref)
    loss = loss_of(policy(), batch, None)
    assert float(loss.total / loss.weight) == pytest.approx(np.log(2), abs=1e-6)

    def mean(log_ratios):
        loss = losses.direct_preference(log_ratios, batch.ranks, batch.valid, batch.beta, batch.label_smoothing)
        return loss.total / loss.weight

    expected = np.zeros(batch.ranks.shape)
    usable = [b for b in range(len(ref)) if len(set(batch.ranks[b][batch.valid[b]])) > 1]
    for b in usable:
        better = (batch.ranks[b][:, None] < batch.ranks[b]) & batch.valid[b][:, None] & batch.valid[b]
        expected[b] = 0.3 / 2 * (better.sum(0) - better.sum(1)) / better.sum() / len(usable)
    assert len(usable) < len(ref)
    np.testing.assert_allclose(jax.grad(mean)(np.zeros_like(ref)), expected, atol=1e-7)


def packed_of(batch: dpo.Preferences) -> dpo.PackedPreferences:
    """The same rankings, the completions of a prompt behind one another; invalid ones have no token."""
    rows, length = len(batch.ranks), 4 + SHAPE[1] * SHAPE[2]
    tokens, segments, positions = (np.full((rows, length), fill, np.int32) for fill in (tiny.PAD, 0, 0))
    for b, start in enumerate(batch.starts):
        parts = [(PREFIX, batch.tokens[b, 0, :start], 0)]
        for k in np.flatnonzero(batch.valid[b]):
            parts.append((k + 1, batch.tokens[b, k, start : batch.mask[b, k].sum()], start))
        place = 0
        for segment, own, position in parts:
            here = slice(place, place := place + len(own))
            tokens[b, here], segments[b, here], positions[b, here] = own, segment, position + np.arange(len(own))
    same = {name: getattr(batch, name) for name in ("ranks", "valid", "ref_logprobs", "beta", "label_smoothing")}
    return dpo.PackedPreferences(tokens, segments, positions, **same)


@pytest.mark.parametrize("seed", [5, 6, 7])
def test_packed_completions_have_the_log_probabilities_of_rows_of_their_own(seed):
    batch = preferences_of(seed)
    packed = packed_of(batch)
    expected = logprobs_by_loop(policy(), batch)
    found = np.asarray(dpo.logprobs(tiny.CONFIG, policy(), packed))
    np.testing.assert_allclose(np.where(batch.valid, found, 0), expected, rtol=1e-4, atol=1e-4)
    assert (found[~batch.valid] == 0).all()
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
    jax.tree.map(close, gradient(policy(), packed), gradient(policy(), batch))


def test_what_is_trained_on_has_the_references_log_probabilities(monkeypatch):
    """So that training and validation begin at log 2: the policy is its reference then."""
    config = default_config()
    config.dpo.update(batch_size=2, beta=0.3)
    config.lock()
    run = types.SimpleNamespace(
        config=config, mesh=tiny.mesh_of("1x1x1"), seed_of=lambda stage: 0, interrupt=Interrupt()
    )
    monkeypatch.setattr(dpo.weights, "start_params", lambda run, stage: policy())
    monkeypatch.setattr(dpo.inputs, "report_data", lambda *what: None)
    examples = preferences_of(8, ref_logprobs=np.zeros(SHAPE[:2]))
    monkeypatch.setattr(dpo.rankings, "check", lambda run, stage: None)
    monkeypatch.setattr(dpo, "prepare", lambda run, stage, rows: (examples, None))
    monkeypatch.setattr(dpo.rankings, "load", lambda run, stage, name: [types.SimpleNamespace(ranks=(1, 2))])
    monkeypatch.setattr(dpo.rankings, "training_shape", lambda run, stage: tiny.CONFIG)
    with jax.set_mesh(run.mesh):
        training = dpo.training_of(run, "dpo")
        held_out = training.validate(train.init_state(policy(), optax.identity()), 0)
    batch, rows = training.loader.batch(0), training.loader.rows(0)
    assert float(held_out["valid/loss"]) == pytest.approx(np.log(2), abs=1e-5)
    assert float(held_out["valid/log_ratio"]) == pytest.approx(0, abs=1e-5)
    expected = logprobs_by_loop(policy(), examples)[rows]
    np.testing.assert_allclose(np.where(batch.valid, batch.ref_logprobs, 0), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stage, module", [("reward_model", reward_model), ("dpo", dpo)])
def test_packed_rows_never_meet_splash_attention_which_would_hide_the_prompt_from_them(stage, module):
    config = default_config()
    on_tpu = dataclasses.replace(tiny.CONFIG, attention="splash")
    run = types.SimpleNamespace(config=config, shape=lambda stage: on_tpu)
    assert module.loss_of(run, stage).config.attention == "splash"
    config[stage].packed = True
    assert module.loss_of(run, stage).config.attention == "xla"


def test_neither_padding_nor_what_stands_in_it_matters():
    batch = preferences_of(3)

    def wide(x, fill):
        return np.concatenate([x, np.full((*x.shape[:2], 6), fill, x.dtype)], axis=2)

    padded = batch.replace(tokens=wide(batch.tokens, 9), mask=wide(batch.mask, False))

    def ranked(x):
        return np.concatenate([x, np.zeros_like(x[:, :2])], axis=1)

    taller = batch.replace(
        **{name: ranked(getattr(batch, name)) for name in ("tokens", "mask", "ranks", "valid", "ref_logprobs")}
    )
    expected = loss_of(policy(), batch, None)
    for other in (padded, taller):
        found = loss_of(policy(), other, None)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, expected)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_likelihood_of_the_best_learns_nothing_from_the_others(seed):
    """The loss by a loop; the gradient is on the best completions alone, while pairs push the worse ones down."""
    batch = preferences_of(seed)
    logprobs = logprobs_by_loop(policy(), batch)
    expected, gradient = [], np.zeros(batch.ranks.shape)
    for b in range(len(batch.ranks)):
        own = batch.ranks[b][batch.valid[b]]
        if len(set(own)) > 1:
            best = np.flatnonzero(batch.valid[b] & (batch.ranks[b] == own.min()))
            expected.append(-logprobs[b, best].mean())
            gradient[b, best] = -1 / len(best)
    loss_fn = dpo.PreferenceLoss(tiny.CONFIG, "best")
    loss, pairs = (jax.jit(one)(policy(), batch, None) for one in (loss_fn, dpo.PreferenceLoss(tiny.CONFIG)))
    assert 0 < len(expected) < len(batch.ranks) == len(gradient)
    assert float(loss.weight) == len(expected)
    assert float(loss.total / loss.weight) == pytest.approx(np.mean(expected), rel=1e-4)
    assert loss.sums == pairs.sums  # what is logged of the pairs is the same

    def total(logprobs):
        return losses.best_likelihood(logprobs, batch.ranks, batch.valid).total

    np.testing.assert_allclose(jax.grad(total)(logprobs.astype(np.float32)), gradient, atol=1e-7)


def test_nan_where_there_is_no_completion_reaches_neither_loss_nor_gradient():
    batch = preferences_of(4)

    def pairs(log_ratios):
        loss = losses.direct_preference(log_ratios, batch.ranks, batch.valid, batch.beta, batch.label_smoothing)
        return loss.total, loss

    def best(logprobs):
        loss = losses.best_likelihood(logprobs, batch.ranks, batch.valid)
        return loss.total, loss

    assert not batch.valid.all()
    for total in (pairs, best):
        found = [
            jax.grad(total, has_aux=True)(np.where(batch.valid, batch.ref_logprobs, hole))
            for hole in (np.float32("nan"), 0.0)
        ]
        jax.tree.map(np.testing.assert_array_equal, *found)


@pytest.mark.parametrize("mesh", [pytest.param("1x8x1", marks=pytest.mark.slow), "2x2x2"])
def test_a_step_is_the_same_on_every_mesh_and_for_every_beta_one_program(mesh):
    """Against one device without microbatches; the reference's log-probabilities too."""

    def stack(*parts):
        return jax.tree.map(lambda *x: np.concatenate(x), *parts)

    batch = stack(*(preferences_of(seed) for seed in range(4)))  # 16 prompts
    loss_fn, optimizer = dpo.PreferenceLoss(tiny.SCANNED), optax.identity()

    def step_on(name, microbatches, beta):
        places = tiny.mesh_of(name)
        params = tiny.place(tiny.params_of(tiny.SCANNED, 0), tiny.SCANNED, places)
        step = steps.setdefault(
            (name, microbatches), jax.jit(train.make_train_step(loss_fn, optimizer, lambda step: 1.0, microbatches))
        )
        with jax.set_mesh(places):
            rows = sharding.put_batch(batch.replace(beta=np.full(16, beta, np.float32)), places)
            state, metrics = step(train.init_state(params, optimizer), rows, jnp.float32(0.1), jax.random.key(0))
            return jax.device_get((dpo.logprobs(tiny.SCANNED, params, rows), state.params, metrics))

    steps = {}
    for beta in (0.1, 0.5):
        expected, found = step_on("1x1x1", 1, beta), step_on(mesh, 2, beta)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5), found, expected)
    assert all(step._cache_size() == 1 for step in steps.values())


@pytest.mark.slow
def test_infinitely_many_comparisons_of_the_bandit_lead_to_the_optimum_in_closed_form():
    """Every pair of completions once, a label reversed with Bradley-Terry's probability: the loss in expectation.

    Its minimum is pi* proportional to pi_ref exp(r / beta), as PPO's with kl_coef = beta.
    """
    game, beta = bandit.make_bandit(0, num_prompts=2), 1.0
    config = dataclasses.replace(tiny.CONFIG, vocab_size=bandit.VOCAB_SIZE, max_length=8)
    reference = tiny.params_of(config, 0)
    rows, rewards = game.enumerate(), game.reward_table.astype(np.float64)
    count = rewards.shape[1]
    mask = np.concatenate([rows.prompt_mask, rows.completion_mask], axis=1)
    start = bandit.PROMPT_LENGTH
    all_of_them = dpo.Preferences(  # the completions of a prompt as one row, to be compared in every way
        *(x.reshape(len(rewards), count, -1) for x in (rows.tokens, mask)),
        np.full(len(rewards), start),
        *(np.zeros(rewards.shape, kind) for kind in (np.int32, bool, np.float32)),
        *np.zeros((2, len(rewards))),
    )
    pairs = [
        (x, i, j)
        for x in range(len(rewards))
        for i in range(count)
        for j in range(count)
        if rewards[x, i] > rewards[x, j]
    ]
    x, better, worse = np.array(pairs).T
    wrong = 1 / (1 + np.exp(rewards[x, better] - rewards[x, worse]))
    both, one = np.ones((len(x), 2)), np.ones(len(x), np.float32)

    @jax.jit
    def log_policy(params):
        return dpo.completion_logprobs(config, params, all_of_them)

    @jax.jit
    def step(params, state, rate):
        def loss(params):
            ratios = log_policy(params) - log_ref
            chosen = jnp.stack([ratios[x, better], ratios[x, worse]], axis=1)
            loss = losses.direct_preference(chosen, both.cumsum(1), both > 0, beta * one, wrong)
            return loss.total / loss.weight

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, jax.tree.map(lambda u: rate * u, updates)), state, value

    log_ref = log_policy(reference)
    optimizer, params = optax.scale_by_adam(b2=0.95), reference
    state, steps = optimizer.init(params), 400
    for number in range(steps):
        params, state, value = step(params, state, -0.02 * (1 - number / steps))
    optimum = game.optimum(log_ref, beta)
    start, found = (
        game.evaluate(np.asarray(table, np.float64), log_ref, beta) for table in (log_ref, log_policy(params))
    )
    assert start.objective < 0.6 * optimum.objective, (start, optimum)
    assert found.objective > 0.99 * optimum.objective and found.kl == pytest.approx(optimum.kl, rel=0.05), (
        found,
        optimum,
    )
    least = np.mean(-wrong * np.log(wrong) - (1 - wrong) * np.log(1 - wrong))
    assert float(value) == pytest.approx(least, abs=2e-3)
