"""Where PPO ends for each choice of the KL penalty: closed forms against the expected steps of the project's own loss.

The policy here is a table of logits, a number for every state and token, so that nothing but the choice decides where it
ends; expectations are sums over all completions.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from rlhf_jax import advantages as adv
from rlhf_jax import model, ppo
from rlhf_jax.generate import Rollout
from rlhf_jax.world import bandit
from rlhf_jax.world.fixed_points import NoFixedPoint, deviations, log_fixed_point

GAME = bandit.make_bandit(seed=3, num_prompts=2)
ROWS = Rollout(*GAME.enumerate(), np.zeros((2 * 57, 2), np.float32))
LENGTHS = ROWS.completion_mask.sum(1)[:57]


def logprobs_by_state(params, tokens):
    """From {"first": [X,V], "second": [X,V,V]}: the distributions [B, 2, V] that rows are drawn from."""
    prompt, first = tokens[:, bandit.PROMPT_LENGTH - 1] - bandit.FIRST_LETTER, tokens[:, bandit.PROMPT_LENGTH]
    return jax.nn.log_softmax(jnp.stack([params["first"][prompt], params["second"][prompt, first]], axis=1))


def token_logprobs(params):
    chosen = logprobs_by_state(params, ROWS.tokens)
    chosen = jnp.take_along_axis(chosen, ROWS.completions[..., None], axis=-1)[..., 0]
    return jnp.where(ROWS.completion_mask, chosen, 0.0)


def table_of(params):
    return np.asarray(token_logprobs(params), np.float64).sum(1).reshape(2, 57)


@pytest.fixture(scope="module")
def reference():
    rng = np.random.default_rng(0)
    return {
        "first": rng.normal(size=(2, 8)).astype(np.float32),
        "second": rng.normal(size=(2, 8, 8)).astype(np.float32),
    }


@pytest.fixture
def tabular(monkeypatch):
    """ppo.policy_loss of a policy that is a table."""
    monkeypatch.setattr(
        ppo.update, "completion_states", lambda config, params, rollout: logprobs_by_state(params, rollout.tokens)
    )

    def gather(config, params, states, tokens, divisor):
        return jnp.take_along_axis(states, tokens[..., None], axis=-1)[..., 0]

    monkeypatch.setattr(model, "target_logprobs", gather)


def expected_loss(config, kl_coef, reference, advantages, params):
    """The mean of ppo.policy_loss of one row each, as probable as the row is; advantages f32[X, 57] of completions."""
    new = jax.lax.stop_gradient(token_logprobs(params))
    per_token = jnp.where(ROWS.completion_mask, advantages.reshape(-1, 1), 0.0)
    zeros = jnp.zeros(len(new))
    experience = ppo.Experience(
        ROWS, new, token_logprobs(reference), None, per_token, per_token, None, zeros, zeros, {}
    )

    def one(row):
        return ppo.policy_loss(
            config, tiny.coefficients(temperature=1.0), kl_coef, params, jax.tree.map(lambda x: x[None], row)
        )

    return jnp.sum(jnp.exp(new.sum(1)) * jax.vmap(lambda row: one(row).total)(experience)) / 2


def config_of(kl_estimator, kl_in="loss"):
    return ppo.PPOConfig(tiny.CONFIG, None, bandit.EOS_ID, advantage="rloo", kl_in=kl_in, kl_estimator=kl_estimator)


def params_of(log_policy):
    """Logits of a policy by states, from its table [X,57]."""
    second = np.zeros((2, 8, 8))
    letters = [first for first in range(8) if first != bandit.EOS_ID]
    second[:, letters] = log_policy[:, 1:].reshape(2, 7, 8)
    first = np.logaddexp.reduce(second, axis=2)
    first[:, bandit.EOS_ID] = log_policy[:, 0]
    return jax.tree.map(np.float32, {"first": first, "second": second})


def centred(log_policy, scale):
    """What a completion is worth over its prompt's mean, over a scale [X]: the expected advantage."""
    rewards = jnp.asarray(GAME.reward_table)
    return (rewards - jnp.sum(jnp.exp(log_policy) * rewards, axis=1, keepdims=True)) / scale[:, None]


def kl(log_policy, other):
    return (np.exp(log_policy) * (log_policy - other)).sum(1).mean()


CASES = [  # estimator of advantages, whitened, of the KL, kl_coef
    ("rloo", False, "k2", 0.7),
    ("rloo", False, "k3", 0.7),
    ("rloo", True, "k3", 0.7),
    ("grpo", False, "k3", 0.7),
    ("reinforce", True, "k3", 0.3),
    ("gae", True, "k2", 2.0),
]


@pytest.mark.parametrize("advantage, whitened, kl_estimator, kl_coef", CASES)
def test_the_expected_gradient_is_zero_at_the_fixed_point_and_not_at_the_optimum(
    tabular, reference, advantage, whitened, kl_estimator, kl_coef
):
    log_ref = table_of(reference)
    fixed = log_fixed_point(GAME, log_ref, kl_coef, "loss", kl_estimator, advantage, whitened, samples=4)
    optimum = GAME.log_optimum(log_ref, kl_coef)
    assert np.allclose(np.exp(fixed).sum(1), 1) and kl(fixed, optimum) > 0.003

    def gradient(log_policy):
        scale = deviations(GAME, log_policy, advantage, whitened, samples=4)
        loss = functools.partial(expected_loss, config_of(kl_estimator), kl_coef, reference, centred(log_policy, scale))
        return max(float(jnp.abs(x).max()) for x in jax.tree.leaves(jax.grad(loss)(params_of(log_policy))))

    assert gradient(fixed) < 2e-6 and gradient(optimum) > 1e-3


def test_with_k1_in_the_reward_it_is_the_optimum(tabular, reference):
    log_ref = table_of(reference)
    optimum = GAME.log_optimum(log_ref, 0.4)
    for advantage, whitened in (("gae", True), ("rloo", False), ("grpo", False), ("reinforce", True)):
        np.testing.assert_allclose(
            log_fixed_point(GAME, log_ref, 0.4, advantage=advantage, whitened=whitened), optimum, atol=1e-9
        )
    worth = GAME.reward_table - 0.4 * (
        optimum - log_ref
    )  # the same for all completions of a prompt: no advantage is left
    np.testing.assert_allclose(worth, worth[:, :1] + np.zeros(57), atol=1e-5)


@pytest.mark.parametrize("advantage, kl_estimator", [("rloo", "k2"), ("rloo", "k3"), ("grpo", "k3")])
def test_expected_steps_from_the_reference_end_there(tabular, reference, advantage, kl_estimator):
    """Within 0.001 nats, and far from the optimum of the same kl_coef."""
    kl_coef, steps = 0.7, 1500
    optimizer = optax.adam(optax.cosine_decay_schedule(0.03, steps))

    def step(carry, _):
        params, state = carry
        log_policy = jnp.sum(token_logprobs(params), axis=1).reshape(2, 57)
        advantages = centred(log_policy, jnp.ones(2))
        if advantage == "grpo":  # of large groups
            advantages /= jnp.sqrt(jnp.sum(jnp.exp(log_policy) * advantages**2, axis=1, keepdims=True))
        loss = functools.partial(expected_loss, config_of(kl_estimator), kl_coef, reference, advantages)
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, updates), state), None

    start = jax.tree.map(jnp.asarray, reference)
    (params, _), _ = jax.jit(lambda start: jax.lax.scan(step, (start, optimizer.init(start)), length=steps))(start)
    found, log_ref = table_of(params), table_of(reference)
    assert kl(found, log_fixed_point(GAME, log_ref, kl_coef, "loss", kl_estimator, advantage)) < 1e-3
    assert kl(found, GAME.log_optimum(log_ref, kl_coef)) > (0.02 if kl_estimator == "k2" else 0.2)


@pytest.mark.parametrize("kl_estimator", ["k2", "k3"])
def test_with_k2_or_k3_in_the_reward_some_survive_with_equal_worth_and_more_kl(reference, kl_estimator):
    log_ref = table_of(reference)
    fixed, optimum = log_fixed_point(GAME, log_ref, 0.7, "reward", kl_estimator), GAME.log_optimum(log_ref, 0.7)
    np.testing.assert_allclose(np.exp(fixed).sum(1), 1)
    ref, policy = params_of(log_ref), params_of(np.maximum(fixed, -200))
    penalty = {"k2": lambda d: d**2 / 2, "k3": lambda d: np.exp(-d) - 1 + d}[kl_estimator]
    for x in range(2):
        worths = np.full(8, -np.inf)
        worths[bandit.EOS_ID] = GAME.reward_by_token[x, bandit.EOS_ID, 0]
        for first in np.flatnonzero(policy["first"][x] > -20):  # the second token of each that survives, then the first
            if first != bandit.EOS_ID:
                after = policy["second"][x, first], ref["second"][x, first], GAME.reward_by_token[x, first]
                worths[first] = common_worth(*after, penalty)
        common_worth(policy["first"][x], ref["first"][x], worths, penalty)
    assert GAME.evaluate(fixed, log_ref, 0.7).kl > 1.2 * GAME.evaluate(optimum, log_ref, 0.7).kl


def common_worth(logits, ref_logits, q, penalty):
    """What all actions that survive are worth, each more probable than in the reference."""
    log_policy, log_ref = (np.float64(x) - np.logaddexp.reduce(np.float64(x)) for x in (logits, ref_logits))
    alive = log_policy > -20
    d = (log_policy - log_ref)[alive]
    worth = q[alive] - 0.7 * penalty(d)
    assert np.all(d > -1e-4) and np.ptp(worth) < 1e-3, (d, worth)
    return worth.mean()


@pytest.mark.parametrize("advantage, samples", [("rloo", 2), ("grpo", 1000), ("reinforce", 1), ("gae", 1)])
@pytest.mark.parametrize("whitened", [True, False])
def test_deviations_are_what_the_programs_divide_by(reference, advantage, samples, whitened):
    """The advantages of 200,000 sampled completions, by the project's own functions, on their expectation times the deviation."""
    log_policy, rng = table_of(reference), np.random.default_rng(1)
    log_policy -= np.logaddexp.reduce(log_policy, axis=1, keepdims=True)
    prompts = np.repeat(np.arange(200) % 2, 1000)  # neighbours are of one prompt
    chosen = np.where(prompts == 0, *(rng.choice(57, len(prompts), p=np.exp(log_policy[x])) for x in range(2)))
    mask = np.arange(2) < LENGTHS[chosen][:, None]
    scores = GAME.reward_table[prompts, chosen]
    rewards = np.where(adv.last_token(jnp.asarray(mask)), scores[:, None], 0)
    if advantage == "gae":
        chances = np.exp(log_policy) * GAME.reward_table
        after = chances[:, 1:].reshape(2, 7, 8).sum(2) / np.exp(log_policy[:, 1:]).reshape(2, 7, 8).sum(2)
        second = after[prompts, np.maximum(chosen - 1, 0) // 8]
        values = np.stack([chances.sum(1)[prompts], np.where(mask[:, 1], second, 0)], axis=1)
        found, _ = adv.gae(rewards, values, mask, 1.0, 0.9)
    else:
        found = adv.of_completions(rewards, mask, adv.ESTIMATORS[advantage].of_totals, samples)
    if whitened:
        found = adv.whiten(found, mask)
    scale = deviations(GAME, log_policy, advantage, whitened, samples, lam=0.9)
    means = (np.exp(log_policy) * GAME.reward_table).sum(1)
    if advantage == "gae":  # the last token's advantage is its reward less its value, whatever lambda is
        last = np.asarray(adv.last_token(jnp.asarray(mask)))
        expected, found = scores - values[last], np.asarray(found)[last]
    else:
        expected, found = scores - means[prompts], np.asarray(found)[:, 0]
        if advantage == "reinforce":
            expected = scores - means.mean()
    for x in range(2):
        rows = prompts == x
        e, f = expected[rows] - expected[rows].mean(), found[rows] - found[rows].mean()
        assert (e @ e) / (e @ f) == pytest.approx(scale[x], rel=0.02)


def test_where_the_deviation_vanishes_there_is_no_fixed_point(reference):
    with pytest.raises(NoFixedPoint):
        log_fixed_point(GAME, table_of(reference), 0.1, "loss", "k2", "grpo")
    with pytest.raises(ValueError, match="k1"):
        log_fixed_point(GAME, table_of(reference), 0.1, "loss", "k1")
