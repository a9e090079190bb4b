"""PPO's options for ablations: estimators of advantages, KL estimators, a shared trunk, the entropy bonus.

The invariants of test_ppo.py hold for each; what an option changes is computed again by NumPy loops, from the exact
expectation on the bandit, or from the two models that a shared trunk replaces.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from rlhf_jax import advantages, config, generate, model, ppo, sharding, train
from rlhf_jax.data.batches import Prompts
from rlhf_jax.data.loader import Loader
from rlhf_jax.fields import defaults
from rlhf_jax.ppo import options as ppo_options
from rlhf_jax.ppo import programs as ppo_programs
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.world import bandit

P, C, ROWS = 5, 8, tiny.PPO.rows
FIRST, SECOND = tiny.minibatches_of(ROWS, tiny.PPO.minibatch)  # two minibatches, which split the groups
SMALL = dataclasses.replace(tiny.CONFIG, num_layers=1)
OPTIONS = {
    "rloo": dict(advantage="rloo", samples_per_prompt=4, kl_estimator="k2", whiten_advantages="minibatch"),
    "grpo": dict(advantage="grpo", samples_per_prompt=4, kl_in="loss", kl_estimator="k3", whiten_advantages="none"),
    "reinforce": dict(advantage="reinforce", kl_estimator="k3"),
    "shared": dict(shared=True, entropy_bonus=True),
}
slow = pytest.mark.slow
host = functools.partial(jax.tree.map, np.asarray)
late = [pytest.param(name, marks=slow) for name in ("grpo", "reinforce")]  # each is a program to compile
stepping = pytest.mark.parametrize("name", ["rloo", "shared", *late])
scoring = pytest.mark.parametrize("name", ["rloo", "shared", "grpo", *late[1:]])
COEFS = functools.partial(tiny.coefficients, temperature=0.7, learning_rate=0.3, entropy_coef=0.2)


@functools.cache
def stage(name, mesh="1x1x1", microbatches=1):
    return tiny.PPO(mesh, config=SMALL, microbatches=microbatches, **OPTIONS[name])


@functools.cache
def rollout():
    return tiny.rollout_of(ROWS, P, C)


@functools.cache
def scored(name, mesh="1x1x1", microbatches=1):
    """(experience, metrics) in NumPy."""
    s = stage(name, mesh, microbatches)
    return host(s.score(s.state(), rollout(), COEFS()))


@functools.cache
def stepped(name, mesh="1x1x1", microbatches=1):
    """(state after a step, its metrics, those of another step on the same rows) in NumPy."""
    s, coefs = stage(name, mesh, microbatches), COEFS()
    experience = scored(name, mesh, microbatches)[0]
    state, first = s.update(s.state(), experience, FIRST, coefs)
    kept = host(state)
    _, second = s.update(state, experience, FIRST, coefs)
    return kept, host(first), host(second)


# --- The invariants of every iteration ------------------------------------------------------------


@stepping
def test_the_ratio_is_exactly_one_at_first_and_not_after(name):
    _, first, second = stepped(name)
    assert first["ppo/policy/ratio"] == first["ppo/policy/ratio_max"] == 1.0
    assert first["ppo/policy/approxkl"] == first["ppo/policy/clipfrac"] == 0.0
    assert second["ppo/policy/approxkl"] > 1e-4 and second["ppo/policy/clipfrac"] > 0.0


@scoring
def test_the_kl_starts_at_exactly_zero_and_is_k1_whatever_the_penalty(name):
    s = stage(name)
    _, metrics = s.score(s.state(), rollout(), COEFS(), ref=s.policy)
    assert metrics["objective/kl"] == metrics["objective/kl_k3"] == metrics["objective/kl_exact"] == 0.0
    experience, metrics = scored(name)
    d = np.where(rollout().completion_mask, np.float64(experience.logprobs) - experience.ref_logprobs, 0)
    np.testing.assert_allclose(metrics["objective/kl"], d.sum(1).mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name, mesh, microbatches",
    [("rloo", "2x2x2", 2)] + [pytest.param(name, "2x2x2", 2, marks=slow) for name in ("grpo", "reinforce", "shared")],
)
def test_nothing_depends_on_mesh_or_microbatches(name, mesh, microbatches):
    """Groups of 4 rows straddle devices and parts of score."""
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=3e-5)
    jax.tree.map(close, scored(name, mesh, microbatches), scored(name))
    jax.tree.map(close, stepped(name, mesh, microbatches)[:2], stepped(name)[:2])


@slow
@pytest.mark.parametrize("name", OPTIONS)
def test_ptx_coef_zero_is_bit_equal_to_no_ptx(name):
    s, experience, batch = stage(name), scored(name)[0], tiny.documents_of(8, 12)
    results = [s.update(s.state(), experience, FIRST, COEFS(ptx_coef=0.0), ptx)[0] for ptx in (None, batch)]
    jax.tree.map(np.testing.assert_array_equal, *results)


@slow
@pytest.mark.parametrize("name", OPTIONS)
def test_a_trial_axis_changes_nothing(name):
    """Two trials of other coefficients under vmap, each as it is alone."""
    s, coefs = stage(name), [COEFS(), COEFS(learning_rate=0.1, cliprange=0.1, lam=0.9)]
    score = ppo.make_score(s.ppo_config, s.reward_fn)
    update = ppo.make_update(s.ppo_config, s.optimizer, s.optimizer)

    def both(state, coefs):
        experience, metrics = score(
            state.policy.params, state.value_params, s.ref, s.reward, rollout(), state.kl_coef, coefs, [FIRST, SECOND]
        )
        state, more = update(state, jax.tree.map(lambda x: x[FIRST], experience), None, coefs)
        return experience, metrics | more, state

    def stack(*trees):
        return jax.tree.map(lambda *x: jnp.stack(x), *trees)

    found = jax.jit(jax.vmap(both))(stack(s.state(), s.state()), stack(*coefs))
    for number, one in enumerate(coefs):
        alone = jax.jit(both)(s.state(), one)
        close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
        jax.tree.map(lambda x, y: close(x[number], y), found, alone)


# --- Experience -----------------------------------------------------------------------------------


@scoring
def test_rewards_sum_to_the_score_less_the_penalty(name):
    experience, mask = scored(name)[0], rollout().completion_mask
    fields = OPTIONS[name]
    d = np.where(mask, np.float64(experience.logprobs) - experience.ref_logprobs, 0)
    penalty = {"k1": d, "k2": d**2 / 2, "k3": np.exp(-d) - 1 + d}[fields.get("kl_estimator", "k1")].sum(1)
    coef = 0.0 if fields.get("kl_in") == "loss" else 0.1
    np.testing.assert_allclose(experience.rewards.sum(1), experience.scores - coef * penalty, atol=1e-5)
    assert np.all(experience.rewards[~mask] == 0) and penalty.std() > 0.1


@pytest.mark.parametrize("name", ["rloo", "grpo", pytest.param("reinforce", marks=slow)])
def test_advantages_without_values_equal_loops(name):
    experience, mask = scored(name)[0], rollout().completion_mask
    totals = [math.fsum(row[real]) for row, real in zip(np.float64(experience.rewards), mask)]
    expected = []
    for i, total in enumerate(totals):
        group = totals[i // 4 * 4 : i // 4 * 4 + 4]
        others = [x for j, x in enumerate(group) if j != i % 4]
        if name == "rloo":
            expected.append(total - sum(others) / 3)
        elif name == "grpo":
            expected.append((total - np.mean(group)) / np.sqrt(np.var(group) + 1e-8))
        else:
            expected.append(total - np.mean(totals))
    expected = np.where(mask, np.array(expected)[:, None], 0)
    if name == "reinforce":  # whitened over the batch
        expected = np.where(mask, (expected - expected[mask].mean()) / np.sqrt(expected[mask].var() + 1e-8), 0)
    np.testing.assert_allclose(experience.advantages, expected, rtol=1e-4, atol=1e-5)
    assert experience.values is None and experience.returns is None and stage(name).state().value is None


def test_whitening_a_minibatch_is_by_its_own_tokens():
    """Of the step on two microbatches, whose policy loss is -mean(A) at the first step, and so 0."""
    assert abs(stepped("rloo")[1]["ppo/policy/loss"]) < 1e-6
    experience = scored("rloo")[0]
    mask = rollout().completion_mask[FIRST]
    assert abs(experience.advantages[FIRST][mask].mean()) > 0.01  # not so before


# --- The loss -------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=0)
def gradient(config, params, part, coefs):
    """Of the policy's parameters, at another policy than the one that sampled, and the loss; kl_coef is 0.1."""
    return train.gradients(lambda p, x, _: ppo.policy_loss(config, coefs, 0.1, p, x), params, part, jax.random.key(0))


@functools.cache
def moved_on():
    """(policy, a minibatch): clipping bites, values and returns are there."""
    s = stage("shared")
    part = jax.tree.map(lambda x: x[FIRST], scored("shared")[0])
    policy = jax.tree.map(lambda x, noise: x + 0.05 * noise, host(s.policy), tiny.params_of(SMALL, 9))
    return policy, part


def test_kl_and_entropy_are_added_to_the_loss_as_token_means():
    policy, part = moved_on()
    plain = dataclasses.replace(stage("grpo").ppo_config, kl_in="reward")
    both = dataclasses.replace(plain, kl_in="loss", entropy_bonus=True)
    mask = part.rollout.completion_mask

    @jax.jit
    @jax.value_and_grad
    def added(params):
        """From the whole softmax, without the project's losses."""
        logits = model.lm_logits(SMALL, params, ppo.completion_states(SMALL, params, part.rollout)) / 0.7
        logprobs = jax.nn.log_softmax(logits[..., : tiny.VOCAB])
        chosen = jnp.take_along_axis(logprobs, part.rollout.completions[..., None], axis=-1)[..., 0]
        d = chosen - part.ref_logprobs
        entropy = -jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1)
        return jnp.sum(jnp.where(mask, 0.1 * (jnp.exp(-d) - 1 + d) - 0.2 * entropy, 0)) / mask.sum()

    without, loss = gradient(plain, policy, part, COEFS())
    with_both, more = gradient(both, policy, part, COEFS())
    value, expected = added(policy)
    np.testing.assert_allclose((more.total - loss.total) / more.weight, value, rtol=1e-4)
    np.testing.assert_allclose(*(x.sums["policy/loss"][0] for x in (loss, more)), rtol=1e-4)
    jax.tree.map(lambda a, b, e: np.testing.assert_allclose(b - a, e, atol=2e-5), without, with_both, expected)
    assert {"policy/kl", "policy/entropy"} == more.sums.keys() - loss.sums.keys()
    _, none = gradient(both, policy, part, COEFS(entropy_coef=0.0))
    assert none.total != more.total


def test_a_shared_trunk_has_the_gradients_of_two_models_on_it():
    """Policy and value that start from one trunk: their gradients, the value's times vf_coef, add up on it."""
    policy, part = moved_on()
    shared = dataclasses.replace(stage("shared").ppo_config, entropy_bonus=False)
    separate = dataclasses.replace(shared, value=SMALL)
    head = host(stage("shared").value)
    coefs = COEFS(vf_coef=0.5)
    policy_gradient, loss = gradient(separate, policy, part, coefs)
    value_gradient, v_loss = jax.jit(train.gradients, static_argnums=0)(
        lambda p, x, _: ppo.value_loss(separate, coefs, p, x), policy | head, part, jax.random.key(0)
    )
    found, both = gradient(shared, policy | head, part, coefs)
    expected = jax.tree.map(lambda g: 0.5 * g, value_gradient)
    expected = jax.tree.map(jnp.add, expected, policy_gradient | jax.tree.map(jnp.zeros_like, head))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, expected)
    np.testing.assert_allclose(both.total, loss.total + 0.5 * v_loss.total, rtol=1e-4)
    for name, sums in (loss.sums | v_loss.sums).items():
        np.testing.assert_allclose(both.sums[name], sums, rtol=1e-5, err_msg=name)
    # And with vf_coef = 0 it is the policy's alone.
    found, _ = gradient(shared, policy | head, part, COEFS(vf_coef=0.0))
    alone = policy_gradient | jax.tree.map(jnp.zeros_like, head)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, alone)


def test_the_values_of_a_shared_trunk_are_its_head_on_the_policys_states():
    s, experience = stage("shared"), scored("shared")[0]
    values = jax.jit(functools.partial(ppo.completion_values, SMALL))(host(s.policy) | host(s.value), rollout())
    np.testing.assert_allclose(experience.values, values, atol=1e-5)
    state, first, _ = stepped("shared")
    assert state.value is None and first["ppo/val/clipfrac"] == 0.0 and first["ppo/val/loss"] > 0
    assert np.any(state.policy.params["scalar_kernel"] != s.value["scalar_kernel"])
    assert jax.tree.structure(state.language_model) == jax.tree.structure(s.policy)


# --- On the bandit --------------------------------------------------------------------------------


@pytest.mark.slow
def test_rloo_is_unbiased():
    """The gradient of the loss over all pairs of completions, each as probable as it is: that of the objective."""
    game, kl_coef = bandit.make_bandit(seed=1), 0.3
    shape = dataclasses.replace(SMALL, vocab_size=bandit.VOCAB_SIZE, vocab_multiple=8, embed_dim=16, num_heads=2)
    policy, ref = tiny.params_of(shape, 1), tiny.params_of(shape, 2)
    everything = generate.Rollout(*game.enumerate(), np.zeros((4 * 57, 2), np.float32))
    rewards = jnp.asarray(game.reward_table).ravel()

    def logprob(params):
        return jnp.sum(ppo.completion_logprobs(shape, params, everything, 1.0), axis=1)

    @jax.jit
    @jax.grad
    def exact(params):
        mine = logprob(params)
        worth = rewards - kl_coef * (mine - logprob(ref))
        return jnp.sum(jnp.exp(mine) * worth) / 4

    options = dict(missing_eos="none", advantage="rloo", samples_per_prompt=2, whiten_advantages="none")
    config = ppo.PPOConfig(shape, None, bandit.EOS_ID, **options)
    score = jax.jit(ppo.make_score(config, lambda _, rollout: game.score(rollout.tokens)))
    first, second = np.indices((57, 57)).reshape(2, -1)
    rows = (57 * np.arange(4)[:, None, None] + np.stack([first, second], axis=1)).reshape(-1)  # pairs are neighbours
    pairs = jax.tree.map(lambda x: x[rows], everything)
    coefs = tiny.coefficients(temperature=1.0)
    experience, _ = score(policy, None, ref, {}, pairs, kl_coef, coefs, [np.arange(len(rows))])
    chances = jnp.exp(logprob(policy))[rows].reshape(-1, 2).prod(axis=1)
    weighted = experience.replace(advantages=experience.advantages * jnp.repeat(chances, 2)[:, None])

    @jax.jit
    @jax.grad
    def estimate(params):
        return -ppo.policy_loss(config, coefs, kl_coef, params, weighted).total / (2 * 4)

    found, expected = estimate(policy), exact(policy)
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected)) > 0.01
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), found, expected)


# --- Prompts, and what is refused -----------------------------------------------------------------


@pytest.mark.parametrize("mesh", ["1x1x1", "2x2x2"])
def test_the_samples_of_a_prompt_are_neighbours(mesh):
    """And every prompt comes once an epoch; the batch is the same whichever devices hold it."""
    arrays = Prompts(np.arange(20)[:, None], np.ones((20, 1), bool), np.arange(20))
    loader = Loader(arrays, 16, 0, name="ppo", copies=4)

    def put(step):
        return sharding.put_rows(functools.partial(loader.batch, step), 16, tiny.mesh_of(mesh))

    for step in range(5):
        found, alone = put(step), Loader(arrays, 4, 0, name="ppo").rows(step)
        np.testing.assert_array_equal(found.index, np.repeat(alone, 4))
        np.testing.assert_array_equal(found.tokens[:, 0], found.index)
    assert loader.steps(1.0) == 5
    assert sorted(set(np.concatenate([loader.rows(step) for step in range(5)]))) == list(range(20))


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            dict(advantage="rloo"),
            "ppo.advantage='rloo' compares the completions of a prompt: set ppo.samples_per_prompt to 2",
        ),
        (dict(samples_per_prompt=3), "ppo.batch_size=512 must be a multiple of ppo.samples_per_prompt=3"),
        (dict(kl_in="loss", kl_estimator="k1"), "ppo.kl_in='loss' needs ppo.kl_estimator='k2' or 'k3'"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_sentence(changes, message):
    section = config.ppo_config()
    with section.ignore_type():
        section.update(changes)
    with pytest.raises(InputError) as refused:
        ppo_programs.static_config(SMALL, SMALL, 0, section, "ppo2")
    assert message.replace("ppo.", "ppo2.") in str(refused.value) and "\n" not in str(refused.value)


def programs_of(**fields):
    section = config.ppo_config()
    section.update(samples_per_prompt=2, **fields)
    return ppo_programs.static_config(SMALL, SMALL, 0, section)


@pytest.mark.parametrize(
    "fields, expected",
    [  # InstructGPT 3.5, and OpenAI's code; Ahmadian et al. 2024; Shao et al. 2024
        (dict(advantage="gae"), ("reward", "k1", "batch")),
        (dict(advantage="rloo"), ("reward", "k1", "none")),
        (dict(advantage="grpo"), ("loss", "k3", "none")),
        (dict(advantage="reinforce"), ("reward", "k1", "none")),
        (dict(advantage="rloo", kl_in="loss"), ("loss", "k3", "none")),
        (dict(advantage="grpo", kl_in="reward", whiten_advantages="batch"), ("reward", "k1", "batch")),
        (dict(advantage="grpo", kl_estimator="k2"), ("loss", "k2", "none")),
    ],
)
def test_what_is_not_given_is_as_the_estimators_paper_has_it(fields, expected):
    found = programs_of(**fields)
    assert (found.kl_in, found.kl_estimator, found.whiten_advantages) == expected
    whole = config.default_config()
    whole.ppo.update(samples_per_prompt=2, **fields)
    section = defaults.filled(whole).ppo  # as config.json will have it
    assert (section.kl_in, section.kl_estimator, section.whiten_advantages) == expected
    assert ppo_options.described(found)[0].endswith(f"KL in the {expected[0]} by {expected[1]}")


@pytest.mark.parametrize(
    "fields, said",
    [
        (dict(), []),
        (dict(advantage="rloo"), []),
        (dict(advantage="reinforce", whiten_advantages="minibatch"), []),
        (
            dict(advantage="grpo"),
            ["k3 in the loss has the gradient of KL(reference || policy)", "standard deviation and the KL is not"],
        ),
        (dict(advantage="grpo", kl_in="reward"), ["the KL is part of what GRPO divides"]),
        (dict(advantage="rloo", kl_in="loss", kl_estimator="k2"), ["k2 in the loss leaves out"]),
        (dict(kl_in="loss", kl_estimator="k2"), ["k2 in the loss leaves out", "standard deviation and the KL is not"]),
        (dict(kl_estimator="k3"), ["k3 in the reward also punishes"]),
        (dict(whiten_rewards=True), ["a reward for length"]),
        (
            dict(advantage="rloo", kl_in="loss", whiten_rewards=True),
            ["k3 in the loss", "rewards are divided by their", "for length"],
        ),
        (
            dict(advantage="grpo", whiten_rewards=True),
            ["k3 in the loss", "advantages are divided by their", "for length"],
        ),
        (dict(gamma=0.9), ["gamma=0.9 counts the score, and the KL of later tokens, for less"]),
        (dict(advantage="rloo", gamma=0.9), []),
    ],
)
def test_a_run_says_where_kl_coef_is_not_that_of_the_optimum(fields, said):
    found = ppo_options.caution(programs_of(**fields), fields.get("gamma", 1.0))
    assert found.count(";") == max(len(said) - 1, 0) and all(reason in found for reason in said) and "\n" not in found
    assert bool(found) == bool(said) and ("docs/kl.md" in found) == bool(said)
    assert ppo_options.described(programs_of(**fields), penalized=False)[1:] == []


def test_grpo_of_its_paper_learns_nothing_from_equal_scores():
    """With the KL in the reward, however little it costs, its noise is divided by its own deviation: advantages of 1."""
    logprobs, ref_logprobs = np.random.default_rng(0).normal(size=(2, ROWS, C))
    mask = rollout().completion_mask
    for kl_in, size in (("reward", 1.0), (programs_of(advantage="grpo").kl_in, 0.0)):
        rewards = advantages.shaped_rewards(
            np.ones(ROWS), logprobs, ref_logprobs, mask, 1e-2 if kl_in == "reward" else 0.0
        )
        found = advantages.of_completions(rewards, mask, advantages.ESTIMATORS["grpo"].of_totals, samples=4)
        np.testing.assert_allclose(np.sqrt(np.mean(np.square(found[:, 0]))), size, atol=1e-3)


def test_no_estimator_without_values_has_a_value_model():
    for estimator in advantages.ESTIMATORS:
        section = config.ppo_config()
        section.update(advantage=estimator, samples_per_prompt=2)
        programs = ppo_programs.static_config(SMALL, SMALL, 0, section)
        assert (programs.value is None) == (estimator != "gae") and not programs.shared_value
