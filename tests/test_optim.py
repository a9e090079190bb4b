"""Adam in both forms against NumPy and PyTorch; clipping, weight decay, schedules."""

import dataclasses
import math

import jax
import numpy as np
import optax
import pytest

from rlhf_jax import optim

STEPS = 12
LR = 0.01


def problem(seed=0, scale=1.0):
    """Parameters, and the gradients of STEPS steps."""
    rng = np.random.default_rng(seed)
    shapes = {"kernel": (3, 2), "bias": (2,)}
    params = {name: rng.normal(size=s).astype(np.float32) for name, s in shapes.items()}
    gradients = [
        {name: (scale * rng.normal(size=s)).astype(np.float32) for name, s in shapes.items()} for _ in range(STEPS)
    ]
    return params, gradients


def train(config, params, gradients, learning_rate=LR):
    """Parameters after each step, and the gradient norms reported."""
    optimizer = optim.make_optimizer(config)
    step = jax.jit(lambda *args: optim.apply_gradients(optimizer, *args))
    state, path, norms = optimizer.init(params), [], []
    for gradient in gradients:
        params, state, norm = step(gradient, state, params, learning_rate)
        path.append(params)
        norms.append(float(norm))
    return path, norms


def assert_close(a, b, rtol=1e-4, atol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


# --- Adam -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps_placement", optim.EPS_PLACEMENTS)
@pytest.mark.parametrize("b2, eps", [(0.95, 1e-8), (0.999, 1e-5), (0.95, 0.1)])
def test_adam_equals_loop(eps_placement, b2, eps):
    params, gradients = problem(scale=1e-3)
    config = optim.OptimizerConfig(b2=b2, eps=eps, eps_placement=eps_placement)
    path, _ = train(config, params, gradients)
    for name, x in params.items():
        x = x.astype(np.float64)
        m, v = np.zeros_like(x), np.zeros_like(x)
        for t in range(1, STEPS + 1):
            g = gradients[t - 1][name].astype(np.float64)
            m = 0.9 * m + 0.1 * g
            v = b2 * v + (1 - b2) * g * g
            if eps_placement == "torch":
                update = m / (1 - 0.9**t) / (np.sqrt(v / (1 - b2**t)) + eps)
            else:
                update = math.sqrt(1 - b2**t) / (1 - 0.9**t) * m / (np.sqrt(v) + eps)
            x = x - LR * update
            np.testing.assert_allclose(path[t - 1][name], x, rtol=1e-4, atol=1e-6)


def torch_adam(torch, params, gradients, optimizer_class, eps_at=None, clip=None, **settings):
    """Parameters after each step of a PyTorch optimizer; `eps_at(t)` sets the eps of step t."""
    tensors = {name: torch.nn.Parameter(torch.tensor(x)) for name, x in params.items()}
    optimizer = optimizer_class(tensors.values(), lr=LR, **settings)
    path, norms = [], []
    for t, gradient in enumerate(gradients, start=1):
        for name, tensor in tensors.items():
            tensor.grad = torch.tensor(gradient[name])
        if eps_at is not None:
            optimizer.param_groups[0]["eps"] = eps_at(t)
        if clip is not None:
            norms.append(float(torch.nn.utils.clip_grad_norm_(tensors.values(), clip)))
        optimizer.step()
        path.append({name: x.detach().numpy().copy() for name, x in tensors.items()})
    return path, norms


@pytest.mark.parametrize("weight_decay, clip", [(0.0, None), (0.1, None), (0.1, 2.5)])
def test_adam_equals_torch(weight_decay, clip):
    torch = pytest.importorskip("torch", reason="PyTorch is the second opinion")
    params, gradients = problem()
    config = optim.OptimizerConfig(weight_decay=weight_decay, max_grad_norm=clip)
    path, norms = train(config, params, gradients)
    expected, expected_norms = torch_adam(
        torch, params, gradients, torch.optim.AdamW, clip=clip, betas=(0.9, 0.95), eps=1e-8, weight_decay=weight_decay
    )
    assert_close(path, expected)
    if clip:
        np.testing.assert_allclose(norms, expected_norms, rtol=1e-5)
        assert min(norms) < clip < max(norms)


def test_tf1_is_torch_with_a_larger_eps_at_first():
    torch = pytest.importorskip("torch", reason="PyTorch is the second opinion")
    params, gradients = problem(scale=1e-3)
    config = optim.OptimizerConfig(b2=0.999, eps=1e-5, eps_placement="tf1")
    path, _ = train(config, params, gradients)

    def eps_at(t):
        return 1e-5 / math.sqrt(1 - 0.999**t)

    settings = {"betas": (0.9, 0.999), "eps_at": eps_at}
    expected, _ = torch_adam(torch, params, gradients, torch.optim.Adam, **settings)
    assert_close(path, expected)


def test_tf1_takes_a_smaller_first_step():
    gradients = [{"x": np.float32(1e-4)}]
    steps = {}
    for eps_placement in optim.EPS_PLACEMENTS:
        config = optim.OptimizerConfig(b2=0.999, eps=1e-5, eps_placement=eps_placement)
        (after,), _ = train(config, {"x": np.float32(0)}, gradients, learning_rate=1.0)
        steps[eps_placement] = -float(after["x"])
    np.testing.assert_allclose(steps["torch"], 1 / (1 + 0.1), rtol=1e-4)
    np.testing.assert_allclose(steps["tf1"], 1 / (1 + 0.1 / math.sqrt(0.001)), rtol=1e-4)


def test_without_eps_both_forms_agree():
    params, gradients = problem()
    forms = [optim.OptimizerConfig(eps=1e-12, eps_placement=p) for p in optim.EPS_PLACEMENTS]
    assert_close(*(train(config, params, gradients)[0] for config in forms), rtol=1e-5)


# --- Clipping, weight decay, learning rate --------------------------------------------------------


@pytest.mark.parametrize("off", [None, 0, 0.0])
def test_no_max_grad_norm_means_no_clipping(off):
    params, gradients = problem(scale=100)
    config = optim.OptimizerConfig(eps=1.0, max_grad_norm=off)
    path, norms = train(config, params, gradients)
    unclipped, _ = train(optim.OptimizerConfig(eps=1.0), params, gradients)
    clipped, _ = train(dataclasses.replace(config, max_grad_norm=1.0), params, gradients)
    assert_close(path, unclipped, rtol=0, atol=0)
    assert np.max(np.abs(path[-1]["kernel"] - clipped[-1]["kernel"])) > 1e-3
    expected = [math.sqrt(sum(np.sum(x.astype(float) ** 2) for x in g.values())) for g in gradients]
    np.testing.assert_allclose(norms, expected, rtol=1e-5)


def test_the_reported_norm_is_that_before_clipping():
    params, gradients = problem(scale=100)
    _, norms = train(optim.OptimizerConfig(max_grad_norm=1.0), params, gradients)
    _, unclipped_norms = train(optim.OptimizerConfig(), params, gradients)
    assert norms == unclipped_norms and min(norms) > 1


def test_clipping_keeps_the_direction():
    gradients = {"a": np.array([3.0], np.float32), "b": np.array([4.0], np.float32)}
    zeros = {"a": np.zeros(1, np.float32), "b": np.zeros(1, np.float32)}
    config = optim.OptimizerConfig(eps=1e6, max_grad_norm=1.0)
    (after,), norms = train(config, zeros, [gradients], learning_rate=1e6)
    assert norms == [5]
    assert_close(after, {"a": np.array([-0.6]), "b": np.array([-0.8])})


def test_weight_decay_is_decoupled_and_multiplied_by_the_learning_rate():
    params = {"x": np.array([2.0, -4.0], np.float32)}
    zeros = {"x": np.zeros(2, np.float32)}
    (after,), _ = train(optim.OptimizerConfig(weight_decay=0.1), params, [zeros], 0.5)
    np.testing.assert_allclose(after["x"], params["x"] * (1 - 0.5 * 0.1), rtol=1e-6)


def test_learning_rate_zero_changes_nothing_and_another_does_not_recompile():
    params, gradients = problem()
    optimizer = optim.make_optimizer(optim.OptimizerConfig(weight_decay=0.1, max_grad_norm=1.0))
    traces = []

    @jax.jit
    def step(gradients, state, params, learning_rate):
        traces.append(1)
        return optim.apply_gradients(optimizer, gradients, state, params, learning_rate)

    after, state, _ = step(gradients[0], optimizer.init(params), params, 0.0)
    assert_close(after, params, rtol=0, atol=0)
    moved, _, _ = step(gradients[0], state, params, 1e-3)
    assert np.any(np.asarray(moved["bias"]) != params["bias"])
    assert len(traces) == 1


def test_both_forms_keep_the_same_state():
    params, _ = problem()
    states = [
        optim.make_optimizer(optim.OptimizerConfig(eps_placement=placement)).init(params)
        for placement in optim.EPS_PLACEMENTS
    ]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])


# --- Schedules ------------------------------------------------------------------------------------


def curve(kind, total_steps, **settings):
    at = jax.jit(jax.vmap(lambda step: optim.schedule(kind, step, total_steps, **settings)))
    return np.asarray(at(np.arange(total_steps + 3)))


def test_cosine_to_a_tenth_is_the_papers_sft():
    expected = [0.1 + 0.9 * (1 + math.cos(math.pi * s / 100)) / 2 for s in range(101)] + [0.1] * 2
    multipliers = curve("cosine", 100)
    np.testing.assert_allclose(multipliers, expected, rtol=1e-5)
    theirs = optax.cosine_decay_schedule(1.0, 100, alpha=0.1)(np.arange(103))
    np.testing.assert_allclose(multipliers, theirs, rtol=1e-5)


def test_constant_after_ten_iterations_from_a_tenth_is_the_papers_ppo():
    multipliers = curve("constant", 50, warmup_steps=10, warmup_from=0.1)
    expected = [0.1 + 0.09 * i for i in range(10)] + [1.0] * 43
    np.testing.assert_allclose(multipliers, expected, rtol=1e-6)


def test_linear_to_zero():
    np.testing.assert_allclose(curve("linear", 4, final=0.0), [1, 0.75, 0.5, 0.25, 0, 0, 0])


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_the_decay_begins_at_the_peak_where_the_warmup_ends(kind):
    multipliers = curve(kind, 20, warmup_steps=5, final=0.2)
    np.testing.assert_allclose(multipliers[:6], [0, 0.2, 0.4, 0.6, 0.8, 1.0], rtol=1e-6)
    assert np.all(np.diff(multipliers[5:21]) < 0)
    np.testing.assert_allclose(multipliers[20:], 0.2, rtol=1e-5)
    np.testing.assert_allclose(multipliers[5:21], curve(kind, 15, final=0.2)[:16], rtol=1e-5)


@pytest.mark.parametrize("kind", optim.SCHEDULES)
def test_degenerate_lengths_are_finite(kind):
    for total_steps in (0, 1, 3):
        multipliers = curve(kind, total_steps, warmup_steps=3, warmup_from=0.1)
        assert multipliers.dtype == np.float32 and np.all(np.isfinite(multipliers))


def test_unknown_schedule_is_an_error():
    with pytest.raises(ValueError, match="there is no schedule 'step'"):
        optim.schedule("step", 0, 10)
