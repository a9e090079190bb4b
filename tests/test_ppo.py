"""PPO's programs: the invariants of every iteration, on every mesh and however the batch is split."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from rlhf_jax import config, model, optim, ppo, token_loss
from rlhf_jax.model import attention
from rlhf_jax.ppo import programs as ppo_programs
from rlhf_jax.stages import ppo as ppo_stage
from rlhf_jax.stages import ppo_models

P, C, ROWS = 5, 8, tiny.PPO.rows
FIRST, SECOND = tiny.minibatches_of(ROWS, tiny.PPO.minibatch)  # two minibatches
slow = pytest.mark.slow
CASES = [
    ("1x1x1", 1),
    ("2x2x2", 2),
    *(pytest.param(mesh, 1, marks=slow) for mesh in ("2x2x2", "8x1x1", "1x8x1", "1x1x8")),
    *(pytest.param(mesh, 2, marks=slow) for mesh in ("1x1x1", "8x1x1", "1x8x1")),
]
cases = pytest.mark.parametrize("mesh, microbatches", CASES, ids=lambda x: str(x))
others = pytest.mark.parametrize("mesh, microbatches", CASES[1:], ids=lambda x: str(x))
host = functools.partial(jax.tree.map, np.asarray)


cached_stage = functools.cache(lambda mesh, microbatches: tiny.PPO(mesh, microbatches=microbatches))


def stage(mesh="1x1x1", microbatches=1):
    """One for each mesh and split: its programs are compiled once for all tests."""
    return cached_stage(mesh, microbatches)


@functools.cache
def rollout():
    return tiny.rollout_of(ROWS, P, C)


@functools.cache
def ptx_batch():
    return tiny.documents_of(8, 12)


@dataclasses.dataclass
class Trial:
    """Two steps of an iteration at one temperature, in NumPy."""

    experience: ppo.Experience
    score_metrics: dict
    first: dict  # metrics of the first step
    second: dict  # of another step on the same rows
    state: ppo.PPOState  # after the first step


@functools.cache
def trial(mesh="1x1x1", microbatches=1, temperature=0.7):
    s, coefs = stage(mesh, microbatches), tiny.coefficients(temperature=temperature, learning_rate=0.3, ptx_coef=0.5)
    state = s.state()
    experience, score_metrics = s.score(state, rollout(), coefs)
    state, first = s.update(state, experience, FIRST, coefs, ptx_batch())
    kept = host(state)
    state, second = s.update(state, experience, FIRST, coefs, ptx_batch())
    return Trial(*host((experience, score_metrics, first, second)), kept)


# --- What ends a completion -----------------------------------------------------------------------


@pytest.mark.parametrize("ends", [(tiny.EOS,), (tiny.EOS, 7, 9)])
def test_whatever_ends_a_completion_counts_and_the_reward_model_reads_it_as_eos(ends):
    others = list(ends[1:])
    plain = rollout()
    tokens = np.where(np.isin(plain.tokens, others), 11, plain.tokens)
    plain = plain.replace(tokens=tokens)  # no other end within a completion
    drawn = np.where(plain.completions == tiny.EOS, np.resize(ends, plain.completions.shape), plain.completions)
    mixed = plain.replace(tokens=np.concatenate([plain.tokens[:, :P], drawn], axis=1))
    ended = np.asarray(ppo.has_eos(mixed, ends))
    assert 0 < ended.sum() < ROWS and len(ends) == len(set(drawn[np.isin(drawn, ends)]))
    np.testing.assert_array_equal(ended, ppo.has_eos(plain, tiny.EOS))
    config, reward = tiny.SCANNED, tiny.params_of(tiny.SCANNED, 3, "scalar")
    score = jax.jit(ppo.SequenceScore(config, ends))
    np.testing.assert_array_equal(score(reward, mixed), jax.jit(ppo.SequenceScore(config))(reward, plain))


# --- The first minibatch, and the ones after it ---------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@cases
def test_on_the_first_minibatch_the_ratio_is_exactly_one(mesh, microbatches, temperature):
    first = trial(mesh, microbatches, temperature).first
    assert first["ppo/policy/ratio"] == first["ppo/policy/ratio_max"] == 1.0
    assert first["ppo/policy/approxkl"] == first["ppo/policy/approxkl_k3"] == 0.0
    assert first["ppo/policy/clipfrac"] == first["ppo/val/clipfrac"] == 0.0


@cases
def test_after_a_step_on_the_same_rows_the_ratio_is_not_one(mesh, microbatches):
    second = trial(mesh, microbatches).second
    assert second["ppo/policy/ratio"] != 1.0 and second["ppo/policy/approxkl"] > 1e-4
    assert second["ppo/policy/clipfrac"] > 0.0


LARGE = """
import dataclasses, json, sys, numpy as np, tiny

class Stage(tiny.PPO):
    rows = minibatch = 1024

config = dataclasses.replace(tiny.CONFIG, num_layers=1, num_heads=2)
stage = Stage("1x1x1", config=config, advantage="reinforce")
coefs, state = tiny.coefficients(temperature=0.7), stage.state()
experience, _ = stage.score(state, tiny.rollout_of(1024, 4, 8), coefs)
_, metrics = stage.update(state, experience, stage.minibatches[0], coefs)
print(json.dumps({name: float(value) for name, value in metrics.items() if "policy" in name}))
"""


def test_on_a_large_first_minibatch_the_ratio_is_one_to_rounding_as_users_compile_it():
    """The other tests compile without optimizations, at which scoring and updating add up in the same order."""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", LARGE], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first = json.loads(done.stdout)
    assert abs(first["ppo/policy/ratio_max"] - 1) < 1e-5 and abs(first["ppo/policy/ratio"] - 1) < 1e-6
    assert 0 <= first["ppo/policy/approxkl"] < 1e-11 and first["ppo/policy/clipfrac"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_ratio_is_exactly_one_when_layers_are_unrolled(dtype):
    """What small machines run; bfloat16 too, where a compiler may keep more precision than asked."""
    s = tiny.PPO("1x1x1", config=dataclasses.replace(tiny.CONFIG, dtype=dtype))
    coefs, state = tiny.coefficients(temperature=0.7), s.state()
    experience, _ = s.score(state, rollout(), coefs)
    _, metrics = s.update(state, experience, FIRST, coefs)
    assert metrics["ppo/policy/ratio_max"] == 1.0 and metrics["ppo/policy/approxkl"] == 0.0


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.6])
@pytest.mark.parametrize("mesh, microbatches", [("1x1x1", 1), ("2x2x2", 2)])
def test_the_kl_to_the_reference_starts_at_exactly_zero(mesh, microbatches, temperature):
    s = stage(mesh, microbatches)
    experience, metrics = s.score(s.state(), rollout(), tiny.coefficients(temperature=temperature), ref=s.policy)
    np.testing.assert_array_equal(experience.logprobs, experience.ref_logprobs)
    assert metrics["objective/kl"] == metrics["objective/kl_k3"] == metrics["objective/kl_exact"] == 0.0
    # And is not zero for another reference.
    assert trial(mesh, microbatches).score_metrics["objective/kl_exact"] > 0.01


# --- The same on every mesh and for every split ---------------------------------------------------


@pytest.mark.slow
def test_nothing_depends_on_how_memory_is_saved():
    """Logits three places at a time, activations split along time, everything recomputed in the backward pass."""
    saving = dataclasses.replace(tiny.SCANNED, logits_chunk=3, sequence_axis="tensor", remat="full")
    s, coefs = tiny.PPO("2x2x2", config=saving), tiny.coefficients(temperature=0.7, learning_rate=0.3, ptx_coef=0.5)
    experience, metrics = s.score(s.state(), rollout(), coefs)
    state, first = s.update(s.state(), experience, FIRST, coefs, ptx_batch())
    assert first["ppo/policy/ratio_max"] == 1.0 and first["ppo/policy/approxkl"] == 0.0
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-5)
    jax.tree.map(close, host((experience, metrics, state)), (trial().experience, trial().score_metrics, trial().state))


@others
def test_nothing_depends_on_mesh_or_microbatches(mesh, microbatches):
    """Experience (with whitened advantages), metrics, and the parameters after a step, which show the gradient."""
    here, there = trial(), trial(mesh, microbatches)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-5)
    jax.tree.map(close, there.experience, here.experience)
    assert there.first.keys() == here.first.keys() and there.score_metrics.keys() == here.score_metrics.keys()
    for name, value in (here.score_metrics | here.first).items():
        close((there.score_metrics | there.first)[name], value, err_msg=name)
    jax.tree.map(close, there.state, here.state)


@cases
def test_explained_variance_is_of_all_returns_of_a_minibatch_about_their_own_mean(mesh, microbatches):
    """Far from 0, where float32 has nothing left of the mean of squares; on every mesh and for every split."""
    s, coefs = stage(mesh, microbatches), tiny.coefficients(learning_rate=0.3, temperature=0.7)
    experience, _ = s.score(s.state(), rollout(), coefs)
    experience = experience.replace(returns=100 + 0.05 * experience.returns)
    _, metrics = s.update(s.state(), experience, FIRST, coefs, ptx_batch())
    variance = np.float64(experience.returns)[FIRST][rollout().completion_mask[FIRST]].var()
    found, error = (float(metrics[f"ppo/val/{name}"]) for name in ("explained_variance", "error"))
    assert found == pytest.approx(1 - error / variance, rel=1e-4)


# --- Experience -----------------------------------------------------------------------------------


def test_rewards_are_the_score_on_the_last_token_and_the_kl_on_every_token():
    """Their sum is score - kl_coef x kl; the score is fractional, on EOS, or on the last token, never on padding."""
    s, coefs = stage(), tiny.coefficients(temperature=0.7)
    experience, metrics = host(s.score(s.state(), rollout(), coefs))
    mask = rollout().completion_mask
    lengths = mask.sum(1)
    kl = np.where(mask, experience.logprobs - experience.ref_logprobs, 0)
    np.testing.assert_allclose(experience.rewards.sum(1), experience.scores - 0.1 * kl.sum(1), atol=1e-5)
    bonus = experience.rewards + 0.1 * kl
    expected = np.where(np.arange(C) == lengths[:, None] - 1, experience.scores[:, None], 0)
    np.testing.assert_allclose(bonus, expected, atol=1e-6)
    assert np.all(experience.rewards[~mask] == 0)
    # The missing-EOS rule, here "replace" by -1; every other score is the reward model's, which is no integer.
    tokens = rollout().tokens[:, P:]
    ended = np.any((tokens == tiny.EOS) & mask, axis=1)
    assert 0 < np.sum(~ended) < ROWS
    raw = np.asarray(jax.jit(s.reward_fn)(s.reward, rollout()))
    np.testing.assert_allclose(experience.scores, np.where(ended, raw, -1.0), atol=1e-5)
    assert np.all(experience.scores[ended] % 1 != 0)
    # What is logged.
    for name, value in {
        "kl": kl.sum(1).mean(),
        "kl_k3": np.where(mask, np.exp(-kl) - 1 + kl, 0).sum(1).mean(),
        "kl_coef": 0.1,
        "scores": experience.scores.mean(),
        "scores_std": experience.scores.std(),
        "raw_scores": raw.mean(),
        "rewards": experience.rewards.sum(1).mean(),
        "completion_length": lengths.mean(),
        "eos": ended.mean(),
        "logprob_gap_max": np.abs(experience.logprobs - rollout().logprobs)[mask].max(),
    }.items():
        np.testing.assert_allclose(metrics[f"objective/{name}"], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_exact_kl_and_entropy_equal_the_sum_over_the_vocabulary():
    s, coefs = stage(), tiny.coefficients(temperature=0.7)
    _, metrics = s.score(s.state(), rollout(), coefs)
    logits = jax.jit(
        lambda params: model.lm_logits(s.config, params, ppo.completion_states(s.config, params, rollout()))
    )

    def log_softmax(params):
        return np.asarray(jax.nn.log_softmax(logits(params)[..., : tiny.VOCAB] / 0.7))

    policy, ref = log_softmax(s.policy), log_softmax(s.ref)
    mask = rollout().completion_mask
    kl = np.where(mask, (np.exp(policy) * (policy - ref)).sum(-1), 0).sum(1).mean()
    entropy = np.where(mask, -(np.exp(policy) * policy).sum(-1), 0).sum(1).mean()
    np.testing.assert_allclose(metrics["objective/kl_exact"], kl, rtol=1e-4)
    np.testing.assert_allclose(metrics["objective/entropy"], entropy, rtol=1e-4)


def test_the_temperature_divides_the_logits():
    s = stage()
    for temperature in (1.0, 0.7):
        experience, _ = s.score(s.state(), rollout(), tiny.coefficients(temperature=temperature))
        hidden = jax.jit(functools.partial(model.masked_hidden_states, s.config))(
            s.policy, rollout().tokens, rollout().mask
        )
        logprobs = jax.nn.log_softmax(hidden[:, P - 1 : -1] @ s.policy["embedding"][: tiny.VOCAB].T / temperature)
        expected = np.take_along_axis(np.asarray(logprobs), rollout().tokens[:, P:, None], axis=-1)[..., 0]
        expected = np.where(rollout().completion_mask, expected, 0)
        np.testing.assert_allclose(experience.logprobs, expected, atol=5e-5)


def test_the_value_model_starts_as_the_reward_model_and_gives_the_reward_after_the_last_token():
    s = stage()
    run = types.SimpleNamespace(
        config={"ppo": types.SimpleNamespace(advantage="gae", value="separate", value_init="reward")}
    )
    value = ppo_models.value_params(run, "ppo", s.reward, s.policy)
    assert value is s.reward
    scores = jax.jit(s.reward_fn)(s.reward, rollout())
    # A value stands before its token; so let every completion have one token more.
    longer = jax.tree.map(lambda x: np.pad(x, ((0, 0), (0, 1))), rollout()).replace(prompt_mask=rollout().prompt_mask)
    lengths = rollout().completion_mask.sum(1)
    longer = longer.replace(completion_mask=np.arange(C + 1) <= lengths[:, None])
    values = jax.jit(functools.partial(ppo.completion_values, s.config))(value, longer)
    np.testing.assert_allclose(values[np.arange(ROWS), lengths], scores, atol=1e-5)


# --- Padding --------------------------------------------------------------------------------------


def padded(rollout, left, right, seed=0):
    """The same episodes with more padding on both sides: random ids, EOS behind the completions, random log-probabilities."""
    rng = np.random.default_rng(seed)

    def widen(x):
        return np.pad(x, ((0, 0), (0, right)))

    prompt_mask = np.pad(rollout.prompt_mask, ((0, 0), (left, 0)))
    completion_mask = widen(rollout.completion_mask)
    tokens = np.pad(rollout.tokens, ((0, 0), (left, right)))
    noise = rng.integers(0, tiny.VOCAB, tokens.shape).astype(np.int32)
    noise[:, noise.shape[1] - right :] = tiny.EOS  # behind a completion that did not end by itself, too
    tokens = np.where(np.concatenate([prompt_mask, completion_mask], axis=1), tokens, noise)
    logprobs = np.where(completion_mask, widen(rollout.logprobs), rng.normal(size=completion_mask.shape))
    return rollout.replace(
        tokens=tokens, prompt_mask=prompt_mask, completion_mask=completion_mask, logprobs=logprobs.astype(np.float32)
    )


def test_padding_changes_nothing():
    """Amount, side, ids: neither experience nor metrics nor the step."""
    s, coefs = stage(), tiny.coefficients(temperature=0.7, learning_rate=0.3)
    results = []
    for episodes in (rollout(), padded(rollout(), left=3, right=2)):
        state = s.state()
        experience, metrics = s.score(state, episodes, coefs)
        state, step_metrics = s.update(state, experience, FIRST, coefs)
        results.append(host((experience.replace(rollout=None), metrics | step_metrics, state)))
    (experience, metrics, state), (wide, wide_metrics, wide_state) = results
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-5)
    jax.tree.map(lambda x, y: close(y[:, :C] if y.ndim == 2 else y, x), experience, wide)
    assert all(np.all(x[:, C:] == 0) for x in jax.tree.leaves(wide) if x.ndim == 2)
    for name, value in metrics.items():
        if not name.startswith("objective/padding"):  # which say how much there is
            close(wide_metrics[name], value, err_msg=name)
    jax.tree.map(close, wide_state, state)


def test_the_score_is_that_of_the_last_real_token_wherever_it_stands():
    s = stage()
    score = jax.jit(functools.partial(ppo.sequence_scores, s.config))
    whole = padded(rollout(), left=2, right=3)
    scores = np.asarray(score(s.reward, whole.tokens, whole.mask))
    for row in (0, 7, 15, ROWS - 1):
        alone = whole.tokens[row : row + 1, np.asarray(whole.mask)[row]]
        alone = np.pad(alone, ((0, 0), (P + C - alone.shape[1], 0)))  # one shape for all, all padding on the left
        mask = np.arange(P + C)[None] >= P + C - np.asarray(whole.mask)[row].sum()
        np.testing.assert_allclose(score(s.reward, alone, mask)[0], scores[row], atol=1e-5)


# --- The step -------------------------------------------------------------------------------------


def moved(before, after, rate):
    """The gradient that a step of plain gradient descent at this rate shows."""
    return jax.tree.map(lambda x, y: (np.float64(x) - np.float64(y)) / rate, before, after)


@functools.cache
def steps():
    """Gradients of PPO alone, of ptx alone (no advantage, no value), and of both; and their metrics."""
    s = stage()
    experience, _ = s.score(s.state(), rollout(), tiny.coefficients())
    idle = experience.replace(advantages=jnp.zeros_like(experience.advantages))
    results = {}
    for name, (what, coef, batch) in {
        "ppo": (experience, 0.0, None),
        "zero": (experience, 0.0, ptx_batch()),
        "ptx": (idle, 0.5, ptx_batch()),
        "both": (experience, 0.5, ptx_batch()),
    }.items():
        state, metrics = s.update(s.state(), what, FIRST, tiny.coefficients(ptx_coef=coef, learning_rate=1.0), batch)
        results[name] = host((state, moved(s.policy, state.policy.params, 1.0), metrics))
    return results


@pytest.mark.parametrize("mesh", ["1x1x1", pytest.param("2x2x2", marks=slow)])
def test_ptx_coef_zero_is_bit_equal_to_no_ptx(mesh):
    s, coefs = stage(mesh), tiny.coefficients(ptx_coef=0.0)
    experience, _ = s.score(s.state(), rollout(), coefs)
    without, _ = s.update(s.state(), experience, FIRST, coefs)
    with_zero, _ = s.update(s.state(), experience, FIRST, coefs, ptx_batch())
    jax.tree.map(np.testing.assert_array_equal, without, with_zero)


def test_the_gradient_of_both_is_the_sum_of_the_two_alone():
    (_, ppo_grad, _), (_, ptx_grad, _), (_, both, _) = (steps()[name] for name in ("ppo", "ptx", "both"))
    jax.tree.map(lambda a, b, c: np.testing.assert_allclose(c, a + b, atol=1e-6), ppo_grad, ptx_grad, both)
    assert optax.tree.norm(ppo_grad) > 0.01 and optax.tree.norm(ptx_grad) > 0.01


def test_ptx_is_half_the_gradient_of_the_token_mean_and_is_logged():
    (_, ppo_grad, _), (_, ptx_grad, _), (_, both, metrics) = (steps()[name] for name in ("ppo", "ptx", "both"))
    s = stage()

    def token_mean(params):
        loss = token_loss.token_loss(s.config, params, ptx_batch())
        return loss.total / loss.weight

    loss, gradient = jax.jit(jax.value_and_grad(token_mean))(host(s.policy))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, 0.5 * y, atol=1e-6), ptx_grad, gradient)
    np.testing.assert_allclose(metrics["ppo/ptx/loss"], loss, rtol=1e-5)
    flat = [np.concatenate([x.ravel() for x in jax.tree.leaves(tree)]) for tree in (ppo_grad, ptx_grad, both)]
    norms = [np.linalg.norm(x) for x in flat]
    np.testing.assert_allclose(metrics["ppo/ptx/ppo_grad_norm"], norms[0], rtol=1e-4)
    np.testing.assert_allclose(metrics["ppo/ptx/grad_norm"], norms[1], rtol=1e-4)
    np.testing.assert_allclose(metrics["ppo/policy/grad_norm"], norms[2], rtol=1e-4)
    np.testing.assert_allclose(metrics["ppo/ptx/cosine"], flat[0] @ flat[1] / norms[0] / norms[1], atol=1e-4)


@pytest.mark.parametrize("documents, told", [(16, 16), (20, 0)])
def test_attention_is_told_of_the_documents_of_a_row_only_what_is_so(documents, told, monkeypatch):
    """cuDNN would give NaN for rows of more segments than it is told of."""
    s, found, attend = stage(), set(), attention.attend

    def watched(q, *given, **rows):
        found.add((q.shape[1], rows["segments"]))
        return attend(q, *given, **rows)

    monkeypatch.setattr(attention, "attend", watched)
    known = dataclasses.replace(s.ppo_config, ptx_segments=s.config.of_rows(documents).segments)  # as the stage does
    update = ppo.make_update(known, s.optimizer, s.optimizer)
    minibatch = jax.tree.map(lambda x: x[FIRST], trial().experience)
    jax.eval_shape(update, s.state(), minibatch, ptx_batch(), tiny.coefficients())
    assert {segments for length, segments in found if length == ptx_batch().tokens.shape[1]} == {told}


def test_the_average_follows_the_policy_and_holds_nothing_of_its_start():
    """After the first step it is the parameters; after a second, which makes it 0.9 and 1 parts of both."""
    s, coefs = stage(), tiny.coefficients()
    experience, _ = s.score(s.state(), rollout(), coefs)
    state, _ = s.update(s.state(), experience, FIRST, coefs)
    first = host(state)
    jax.tree.map(np.testing.assert_array_equal, first.policy.ema_params, first.policy.params)
    assert first.value.ema_params is None
    second, _ = s.update(state, experience, FIRST, coefs)
    jax.tree.map(
        lambda average, old, new: np.testing.assert_allclose(average, (0.9 * old + new) / 1.9, atol=1e-6),
        second.policy.ema_params,
        first.policy.params,
        second.policy.params,
    )


@pytest.mark.parametrize(
    "output, decay, written, others",
    [
        ("ema", 0.9, "ema", ["params"]),
        ("params", 0.9, "params", ["ema"]),
        ("ema", 0.0, "params", []),
        ("best", 0.9, None, ["ema"]),  # the best were written when they were validated
        ("best", 0.0, None, ["params"]),
    ],
)
def test_a_stage_hands_on_the_weights_that_output_names_and_asks_the_others(
    output, decay, written, others, monkeypatch, tmp_path
):
    weights = {"ema": {"w": 1.0, "scalar_kernel": 0.0}, "params": {"w": 2.0, "scalar_kernel": 0.0}}
    average = weights["ema"] if decay else None
    state = types.SimpleNamespace(policy=types.SimpleNamespace(ema_params=average, params=weights["params"]))
    section = {"output": output, "ema_decay": decay}
    run = types.SimpleNamespace(config={"ppo": section}, folder=lambda stage: tmp_path / stage)
    did = []
    monkeypatch.setattr(ppo_stage.weights, "save_params", lambda *saved: did.append(saved))
    monkeypatch.setattr(ppo_stage.evaluation, "sample_others", lambda *asked: did.append(asked))
    ppo_stage.PPOTraining(run, "ppo", None, None, None, None, None).finish(state)
    assert did == [
        *((run, "ppo", {"w": weights[name]["w"]}) for name in [written] if name),
        *((run, "ppo", other, {"w": weights[other]["w"]}) for other in others),
    ]


def whitened(x, mask):
    return np.where(mask, (x - x[mask].mean()) / np.sqrt(x[mask].var() + 1e-8), 0)


def test_the_whole_update_equals_numpy():
    """From the models' outputs to the gradient: rewards, GAE, whitening, both losses, by loops in float64.

    The second step of an iteration on other rows, so that ratios are not 1 and clipping bites; the derivative of
    the losses is written by hand, and only the models' own derivative is JAX's.
    """
    s, mask = stage(), rollout().completion_mask
    coefs = tiny.coefficients(
        learning_rate=0.3, value_learning_rate=0.01, gamma=0.98, vf_coef=0.5, cliprange=0.2, cliprange_value=0.02
    )
    state = s.state()
    logprobs_of = functools.partial(ppo.completion_logprobs, s.config, rollout=rollout(), temperature=1.0)
    values_of = functools.partial(ppo.completion_values, s.config, rollout=rollout())

    @jax.jit
    def outputs(policy, value):
        return logprobs_of(policy), values_of(value)

    @jax.jit
    def pull_back(policy, value, policy_gradient, value_gradient):
        return jax.vjp(logprobs_of, policy)[1](policy_gradient)[0], jax.vjp(values_of, value)[1](value_gradient)[0]

    logprobs, values = np.float64(outputs(s.policy, s.value))
    ref_logprobs, _ = np.float64(outputs(s.ref, s.value))
    experience, _ = s.score(state, rollout(), coefs)
    state, _ = s.update(state, experience, FIRST, coefs)
    policy, value = host((state.policy.params, state.value.params))
    state, metrics = s.update(state, experience, SECOND, coefs)

    scores = np.float64(experience.scores)  # tested above
    advantages, returns = np.zeros((2, ROWS, C))
    for b in range(ROWS):
        advantage = next_value = 0.0
        for t in reversed(range(mask[b].sum())):
            reward = -0.1 * (logprobs[b, t] - ref_logprobs[b, t]) + (scores[b] if t == mask[b].sum() - 1 else 0)
            advantage = reward + 0.98 * next_value - values[b, t] + 0.98 * 0.95 * advantage
            next_value = values[b, t]
            advantages[b, t], returns[b, t] = advantage, advantage + values[b, t]
    advantages = whitened(advantages, mask)  # over the whole batch, not the minibatch

    new_logprobs, new_values = np.float64(outputs(policy, value))
    tokens = mask[SECOND].sum()
    policy_gradient, value_gradient = np.zeros((2, ROWS, C), np.float32)
    clipped = clipped_value = 0
    for b in SECOND:
        for t in range(mask[b].sum()):
            ratio, a = np.exp(new_logprobs[b, t] - logprobs[b, t]), advantages[b, t]
            if -a * np.clip(ratio, 0.8, 1.2) > -a * ratio:
                clipped += 1
            else:
                policy_gradient[b, t] = -a * ratio / tokens
            v, old, target = new_values[b, t], values[b, t], returns[b, t]
            if (np.clip(v, old - 0.02, old + 0.02) - target) ** 2 > (v - target) ** 2:
                clipped_value += 1
            else:
                value_gradient[b, t] = 0.5 * (v - target) / tokens  # 0.5 is vf_coef
    assert clipped > 3 and clipped_value > 3
    np.testing.assert_allclose(metrics["ppo/policy/clipfrac"], clipped / tokens, rtol=1e-5)
    np.testing.assert_allclose(metrics["ppo/val/clipfrac"], clipped_value / tokens, rtol=1e-5)
    expected = pull_back(policy, value, policy_gradient, value_gradient)
    actual = moved(policy, state.policy.params, 0.3), moved(value, state.value.params, 0.01)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=2e-5), actual, expected)


def test_other_coefficients_never_recompile():
    s, sizes = stage("2x2x2", 2), set()
    for number in range(3):
        changes = {name: value * (1 + number / 4) for name, value in tiny.COEFFICIENTS.items()}
        coefs, state = tiny.coefficients(**changes), s.state()
        for rows in (FIRST, SECOND):
            experience, _ = s.score(state, rollout(), coefs)
            state, _ = s.update(state, experience, rows, coefs, ptx_batch())
            sizes.add((s.programs.score._cache_size(), s.programs.update._cache_size(), s.programs.take._cache_size()))
    assert len(sizes) == 1, "compiled at the first coefficients alone"


# --- A whole iteration ----------------------------------------------------------------------------


def test_an_iteration_makes_epochs_times_minibatches_steps():
    """Two iterations: every row once an epoch in an order of its own, one ptx batch a step, nothing recompiled."""
    adam = optim.make_optimizer(optim.OptimizerConfig(max_grad_norm=1.0))
    s = tiny.PPO("2x2x2", optimizer=adam, warmup_steps=4)
    section = types.SimpleNamespace(batch_size=ROWS, minibatch_size=tiny.PPO.minibatch, ppo_epochs=2, temperature=0.7)
    coefs, state = tiny.coefficients(temperature=0.7, kl_target=3.0, kl_horizon=100.0), s.state()
    taken, asked = [], []
    take = s.programs.take
    s.programs.take = lambda tree, rows: taken.append(rows) or take(tree, rows)
    rates, compiled = [], []
    is_compiled = "/jax/core/compile/backend_compile_duration"

    def count(event, seconds, fun_name="", **_):
        return event == is_compiled and compiled.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(count)
    with jax.set_mesh(s.mesh):
        for iteration in range(2):
            before, compiled[:] = float(state.kl_coef), []
            state, metrics = ppo_programs.iterate(
                s.programs,
                state,
                (s.policy, s.reward),
                tiny.prompts_of(ROWS, P, iteration),
                asked.append,
                coefs,
                jax.random.key(iteration),
                section,
                fixed_kl=False,
            )
            assert metrics["ppo/policy/first_approxkl"] == 0.0
            assert metrics["ppo/policy/ratio_max"] > 1.0 and metrics["ppo/policy/approxkl"] > 0.0
            assert metrics["objective/logprob_gap_max"] < 5e-5
            error = np.clip(float(metrics["objective/kl"]) / 3.0 - 1, -0.2, 0.2)
            np.testing.assert_allclose(state.kl_coef, before * (1 + error * ROWS / 100), rtol=1e-5)
            assert (metrics["objective/kl"] == 0.0) == (iteration == 0)
            rates.append(float(metrics["ppo/learning_rate"]))
    assert state.policy.step == state.value.step == 2 * 2 * 2
    assert asked == [0, 1, 2, 3] * 2
    epochs = np.reshape(taken, (4, ROWS))
    for epoch in epochs:
        assert sorted(epoch) == list(range(ROWS))
    assert len(np.unique(epochs, axis=0)) == 4
    np.testing.assert_allclose(rates, [1e-2 * np.mean([0.1, 0.325, 0.55, 0.775]), 1e-2], rtol=1e-5)
    jax.monitoring.unregister_event_duration_listener(count)
    assert not {"jit(program)", "jit(score)", "jit(update)"} & set(compiled), "in the second iteration"
    assert [program._cache_size() for program in (s.programs.score, s.programs.update, take)] == [1, 1, 1]

    # The schedule is that of both learning rates: Adam's first step moves a parameter by the rate, here 0.1 of the peak.
    experience, _ = s.score(s.state(), rollout(), coefs)
    state, _ = s.update(s.state(), experience, FIRST, coefs, ptx_batch())
    for before, after in ((s.policy, state.policy.params), (s.value, state.value.params)):
        largest = max(jax.tree.leaves(jax.tree.map(lambda x, y: np.abs(x - y).max(), *host((before, after)))))
        np.testing.assert_allclose(largest, 0.1 * 1e-2, rtol=1e-2)


def test_metrics_of_an_iteration_are_means_over_its_steps_but_for_the_largest_ratio_and_the_first_approxkl():
    columns = {
        "ppo/policy/ratio_max": [2.0, 9.0, 4.0],
        "ppo/policy/approxkl": [1.0, 3.0, 5.0],
        "ppo/val/loss": [2, 3, 7],
    }
    steps = [{name: jnp.float32(values[step]) for name, values in columns.items()} for step in range(3)]
    assert {name: float(value) for name, value in ppo_programs.summarize(steps).items()} == {
        "ppo/policy/ratio_max": 9.0,
        "ppo/policy/approxkl": 3.0,
        "ppo/policy/first_approxkl": 1.0,
        "ppo/val/loss": 4.0,
    }


@pytest.mark.parametrize("epochs, minibatch", [(1, 64), (2, 64), (4, 32)])
def test_warm_up_is_counted_in_iterations_and_ptx_sequences_in_episodes(epochs, minibatch):
    """A schedule counts optimizer steps; ptx_ratio is for each episode, however often the episode is used (C.4)."""
    section = config.ppo_config()
    section.update(
        batch_size=128, minibatch_size=minibatch, ppo_epochs=epochs, warmup_iterations=3, iterations=50, ptx_ratio=8
    )
    programs, steps = ppo_programs.static_config(tiny.CONFIG, tiny.CONFIG, 0, section), epochs * 128 // minibatch
    assert (programs.warmup_steps, programs.total_steps) == (3 * steps, 50 * steps)
    assert ppo_programs.ptx_rows(section) * steps == 8 * 128


@pytest.mark.parametrize("value", ["separate", "shared"])
def test_a_value_head_that_starts_at_zero_is_zero(value, monkeypatch):
    """The trunk is the policy's; its head says 0 of every state."""
    s = stage()
    section = types.SimpleNamespace(advantage="gae", value=value, value_init="zero")
    run = types.SimpleNamespace(config={"ppo": section}, model=s.config, key=lambda *names: jax.random.key(7))

    def with_fresh_head(run, shape, params, key):
        return model.with_scalar_head(params, model.init_scalar_head(shape, key))

    monkeypatch.setattr(ppo_stage.weights, "with_scalar_head", with_fresh_head)
    found = ppo_models.value_params(run, "ppo", s.reward, host(s.policy))
    assert jax.tree.leaves(model.scalar_head_of(found)) and not any(
        np.any(x) for x in jax.tree.leaves(model.scalar_head_of(found))
    )
    if value == "separate":
        np.testing.assert_array_equal(found["embedding"], s.policy["embedding"])
