"""PPO of adapters on one base: the invariants of PPO, on meshes too, and the gradients of whole models."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from rlhf_jax import generate, lora, model
from rlhf_jax.lora import Lora
from rlhf_jax.runtime import hosts

CONFIG = dataclasses.replace(tiny.SCANNED, lora=Lora(rank=2, alpha=4.0))
P, C = 6, 8
FIRST = tiny.minibatches_of(32, 16)[0]
meshes = pytest.mark.parametrize("mesh", ["1x1x1", "2x2x2"])


@functools.cache
def stage(mesh):
    return tiny.PPO(mesh, config=CONFIG)


def rollout():
    return tiny.rollout_of(32, P, C)


@functools.cache
def trial(mesh):
    """(experience, metrics of the score, those of a step, those of a second step on the same rows, state after one)."""
    s, coefs = stage(mesh), tiny.coefficients(temperature=0.7, learning_rate=0.3, ptx_coef=0.5)
    state = s.state()
    experience, scored = s.score(state, rollout(), coefs)
    state, first = s.update(state, experience, FIRST, coefs, tiny.documents_of(8, 12))
    kept = hosts.fetch(state)
    _, second = s.update(state, experience, FIRST, coefs, tiny.documents_of(8, 12))
    return *hosts.fetch((experience, scored, first, second)), kept


@meshes
def test_the_first_ratio_is_exactly_one_and_the_next_is_not(mesh):
    *_, first, second, _ = trial(mesh)
    assert first["ppo/policy/ratio"] == first["ppo/policy/ratio_max"] == 1.0
    assert first["ppo/policy/approxkl"] == 0.0 and second["ppo/policy/approxkl"] > 1e-5


@meshes
def test_the_first_kl_is_exactly_zero(mesh):
    s = stage(mesh)
    _, metrics = s.score(s.state(), rollout(), tiny.coefficients(temperature=0.7), ref=s.policy)
    assert metrics["objective/kl"] == metrics["objective/kl_exact"] == 0.0
    assert trial(mesh)[1]["objective/kl_exact"] > 0.001


def test_a_state_holds_adapters_and_heads_alone_and_the_base_stays_as_it_is():
    state, s = trial("1x1x1")[-1], stage("1x1x1")
    names = {f"{name}_{part}" for name in CONFIG.adapted for part in "ab"}
    assert set(state.policy.params) == {"layers"} and set(state.policy.params["layers"]) == names
    assert set(state.value.params) == {"layers", "scalar_kernel", "scalar_bias"}
    for tree in (state.policy.ema_params, state.value.params):
        assert set(tree["layers"]) == names
    wanted = lora.split(tiny.params_of(CONFIG, 1))[0]
    jax.tree.map(np.testing.assert_array_equal, hosts.fetch(s.base), wanted)  # it is not donated


def test_nothing_depends_on_the_mesh():
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-5)
    jax.tree.map(close, trial("2x2x2"), trial("1x1x1"))


def test_everything_is_that_of_the_merged_models():
    """Scores, values, log-probabilities; tiny.PPO with whole models whose matrices are those of the adapters."""
    s, (experience, metrics, *_) = stage("1x1x1"), trial("1x1x1")
    whole = tiny.PPO("1x1x1", config=dataclasses.replace(CONFIG, lora=None))

    def merged(trained):
        return lora.merged(CONFIG.lora, lora.joined(hosts.fetch(s.base), hosts.fetch(trained)))

    whole.policy, whole.ref, whole.reward, whole.value = map(merged, (s.policy, s.ref, s.reward, s.value))
    found, scored = whole.score(whole.state(), rollout(), tiny.coefficients(temperature=0.7))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=5e-4)
    jax.tree.map(close, found, experience)
    for name, value in metrics.items():
        close(scored[name], value, err_msg=name)


def test_sampling_reads_the_base_where_it_lies_and_casts_the_adapters_alone():
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    sampler = generate.Sampler(config, tiny.mesh_of("1x1x1"), completion_length=C, eos_id=tiny.EOS, pad_id=tiny.PAD)
    base, trained = lora.split(tiny.place(tiny.params_of(config, 0), config, tiny.mesh_of("1x1x1")))
    base = jax.tree.map(lambda x: x.astype(jnp.bfloat16), base)
    laid_out = sampler.layout(lora.joined(base, trained))
    assert all(x is y for x, y in zip(jax.tree.leaves(lora.split(laid_out)[0]), jax.tree.leaves(base), strict=True))
    assert {x.dtype for x in jax.tree.leaves(laid_out)} == {jnp.dtype(jnp.bfloat16)}
    assert sampler.layout.holds(laid_out) and jax.tree.structure(laid_out) == jax.tree.structure(
        model.param_shapes(config)
    )
