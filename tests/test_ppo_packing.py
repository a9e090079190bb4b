"""Episodes packed into rows: the same experience, losses, gradients and metrics as those of padded rows."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from rlhf_jax import lora, model, ppo, sharding, train
from rlhf_jax.lora import Lora
from rlhf_jax.model import cudnn
from rlhf_jax.ppo import packing
from rlhf_jax.ppo import score as score_lib

pytestmark = pytest.mark.usefixtures("simply_compiled")
P, C, ROWS = 9, 12, 32
SMALL = dataclasses.replace(tiny.SCANNED, num_layers=1)
host = functools.partial(jax.tree.map, np.asarray)
close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-5)


def rollout_of(seed: int, rows: int = ROWS, mean: float = 3.0):
    """Mostly short episodes; a completion is empty, an episode fills its row, and some do not end."""
    rng = np.random.default_rng(seed)
    rollout = tiny.rollout_of(rows, P, C, seed)
    prompts = np.clip(rng.geometric(1 / mean, rows), 1, P)
    completions = np.clip(rng.geometric(1 / mean, rows), 1, C)
    completions[rng.integers(rows)], full = 0, rng.integers(rows)
    prompts[full], completions[full] = P, C
    prompt_mask = np.arange(P)[::-1] < prompts[:, None]
    mask = np.arange(C) < completions[:, None]
    tokens = rng.integers(2, tiny.VOCAB, rollout.tokens.shape).astype(np.int32)  # on the padding, too
    ended = (np.arange(C) == completions[:, None] - 1) & (rng.random((rows, 1)) < 0.7)
    tokens[:, P:][ended] = tiny.EOS
    return rollout.replace(tokens=tokens, prompt_mask=prompt_mask, completion_mask=mask, logprobs=mask * -1.0)


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of as few rows as the mesh allows."""
    monkeypatch.setitem(packing.PLACES, "cpu", 1)


# --- The layout -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_items_go_into_the_first_row_with_room_the_largest_first(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, 12, (20, 2)).astype(np.int32)
    row, before = host(jax.jit(packing.first_fit)(sizes, np.array([20, 11])))
    used = np.zeros((20, 2), int)
    for item in sorted(range(20), key=lambda item: -sizes[item, 0]):
        place = next(n for n in range(20) if all(used[n] + sizes[item] <= [20, 11]))
        assert row[item] == place and (before[item] == used[place]).all()
        used[place] += sizes[item]
    assert packing.rows_needed(sizes, (20, 11)) == row.max() + 1
    assert packing.filled_parts(sizes[:, 0] - sizes[:, 1], sizes[:, 1], 10, 2, (9, 11)) == sum(
        -(-packing.rows_needed(half, (20, 11)) // 2) for half in (sizes[:10], sizes[10:])
    )


@pytest.mark.parametrize("seed", range(3))
def test_every_token_stands_once_in_the_rows_with_what_belongs_to_it(seed):
    rollout = rollout_of(seed)
    layout = host(jax.jit(packing.pack)(rollout))
    rows, found = layout.rollout, {}
    for row in range(ROWS):
        for segment in set(rows.segment_ids[row]) - {0}:
            own = np.flatnonzero(rows.segment_ids[row] == segment)
            assert (rows.positions[row, own] == np.arange(len(own))).all()
            assert segment not in found and (np.diff(own) == 1).all()  # one episode after another
            found[segment] = rows.tokens[row, own], rows.generated[row, own]
    for episode in range(ROWS):
        tokens, generated = found[episode + 1]
        np.testing.assert_array_equal(tokens, rollout.tokens[episode][np.asarray(rollout.mask)[episode]])
        assert (
            generated.sum() == rollout.completion_mask[episode].sum()
            and not generated[: -generated.sum() or None].any()
        )
    # What predicts a token of a completion is the token before it, of the same episode.
    for row, column in np.argwhere(rows.completion_mask):
        place = rows.before[row, column]
        assert rows.segment_ids[row, place] == rows.segment_ids[row, place + 1] and rows.generated[row, place + 1]
        assert rows.tokens[row, place + 1] == rows.completions[row, column]
    used = np.flatnonzero((rows.segment_ids > 0).any(axis=1))
    assert layout.rows == len(used) == used[-1] + 1 < ROWS / 2
    # Numbers of tokens go there and back.
    numbers = np.random.default_rng(1).normal(size=(ROWS, C)).astype(np.float32)
    there = jax.jit(lambda layout, x: layout.packed(x))(layout, numbers)
    back = jax.jit(lambda layout, x: layout.unpacked(x))(layout, there)
    np.testing.assert_array_equal(back, np.where(rollout.completion_mask, numbers, 0))
    ends = jax.jit(lambda layout, x: layout.at_ends(x))(layout, rows.tokens)
    last = [rollout.tokens[n][np.flatnonzero(np.asarray(rollout.mask)[n])[-1]] for n in range(ROWS)]
    np.testing.assert_array_equal(ends, last)


def test_a_row_has_no_more_episodes_than_programs_count_on():
    """40 episodes of two tokens would all fit into one row."""
    mask = np.arange(40) < 1
    rollout = ppo.packing.Rollout(*(np.tile(x, (40, 1)) for x in (np.ones(80, np.int32), mask[::-1], mask)), None)
    segment_ids = np.asarray(
        jax.jit(packing.pack, static_argnums=1)(rollout, packing.most_of("cudnn")).rollout.segment_ids
    )
    assert [len(set(row) - {0}) for row in segment_ids[:4]] == [16, 16, 8, 0]
    one = np.ones(40, np.int64)
    assert packing.filled_parts(one, one, 40, 1, (40, 40), 16) == 3
    assert packing.filled_parts(one, one, 40, 1, (40, 40), packing.most_of("xla")) == 1


def test_score_and_update_count_the_same_number_of_episodes_for_a_row(monkeypatch):
    """That of the policy's attention: other rows would round other log-probabilities, and the first ratio not be 1."""
    s, coefs, counted, pack = tiny.PPO("1x1x1", config=SMALL), tiny.coefficients(), [], packing.pack
    for module in (packing, score_lib):
        monkeypatch.setattr(module, "most_of", {"xla": 3}.get)
        monkeypatch.setattr(module, "pack", lambda rollout, most=None: counted.append(most) or pack(rollout, most))
    state = s.state()
    experience, _ = s.score(state, rollout_of(0), coefs)
    s.update(state, experience, s.minibatches[0], coefs)
    assert counted == [3, 3]


@pytest.mark.parametrize("policy, told", [("cudnn", 16), ("xla", 0)])
def test_a_model_is_told_how_many_episodes_a_row_can_have(policy, told, monkeypatch):
    """A reward model that attends by cuDNN reads the rows of a policy that does not: they may have any number."""
    shape = dataclasses.replace(SMALL, num_heads=4)  # of a width that cuDNN computes
    params, config, found = model.param_shapes(shape, "scalar"), dataclasses.replace(shape, attention="cudnn"), []
    monkeypatch.setattr(cudnn, "attend", lambda q, k, v, ids, segments, visible: found.append(segments) or q)
    layout = packing.pack(rollout_of(0), packing.most_of(policy))
    jax.eval_shape(ppo.SequenceScore(config).at_places, params, layout.rollout)
    jax.eval_shape(functools.partial(ppo.completion_values, config), params, layout.rollout)
    assert set(found) == {told} and len(found) >= 2


def test_a_part_is_as_small_as_keeps_the_devices_busy():
    mesh = tiny.mesh_of("2x2x2")
    assert packing.rows_of_part(64, 256, 1) == packing.rows_of_part(64, 2048, 1) == 1
    assert packing.rows_of_part(64, 256, 1, mesh) == 4
    assert packing.rows_of_part(64, 64, 1, mesh) == 16
    assert packing.rows_of_part(64, 37, 1) == packing.rows_of_part(24, 37, 1) == 8
    assert packing.rows_of_part(64, 3, 1) == 64  # nothing to gain
    assert packing.rows_of_part(64, 3, 4) == 16  # asked for


# --- The update, against padded rows --------------------------------------------------------------

ADAPTED = dataclasses.replace(SMALL, lora=Lora(rank=2, alpha=4.0))
OPTIONS = {
    "gae": {},
    "shared": dict(shared=True, entropy_bonus=True),
    "grpo": dict(advantage="grpo", samples_per_prompt=4, kl_in="loss", kl_estimator="k3", whiten_advantages="none"),
    "adapters": dict(config=ADAPTED),
}


@functools.cache
def experience_of(name: str, seed: int):
    """(the stage, its state, experience of other policies)."""
    s = tiny.PPO("1x1x1", **{"config": SMALL} | OPTIONS[name])
    rollout, rng = rollout_of(seed), np.random.default_rng(seed)
    mask = rollout.completion_mask
    drawn = [np.where(mask, rng.normal(scale=0.5, size=mask.shape), 0).astype(np.float32) for _ in range(5)]
    logprobs, ref, values, advantages, returns = drawn
    reads = s.ppo_config.estimator.reads_values
    values, returns = (values, returns) if reads else (None, None)
    scores = np.zeros(ROWS, np.float32)
    return s, ppo.Experience(
        rollout, logprobs - 4, ref - 4, values, advantages, advantages, returns, scores, scores, {}
    )


@pytest.mark.parametrize(
    "name, seed",
    [
        ("gae", 0),
        ("grpo", 2),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("shared", 1), ("adapters", 3))),
    ],
)
def test_losses_gradients_and_metrics_equal_those_of_padded_rows(name, seed, small_parts):
    s, experience = experience_of(name, seed)
    coefs, config = tiny.coefficients(entropy_coef=0.2, temperature=0.7), s.ppo_config
    losses_of = {"policy": (s.policy, lambda params, part: ppo.policy_loss(config, coefs, 0.1, params, part))}
    if config.value:
        losses_of["value"] = (s.value, lambda params, part: ppo.value_loss(config, coefs, params, part))
    elif s.value:
        losses_of["policy"] = ((s.policy | s.value), losses_of["policy"][1])
    for params, loss_fn in losses_of.values():

        def whole(trained, part):
            return loss_fn(lora.joined(s.base, trained), part)

        @jax.jit
        def packed(params, experience):
            parts = ppo.update._parts(config, experience, None)
            return *parts.gradients(whole, params, "parts"), parts.filled

        @jax.jit
        def padded(params, experience):
            return train.gradients(lambda p, part, _: whole(p, part), params, experience, jax.random.key(0))

        grads, loss, filled = packed(params, experience)
        wanted, wanted_loss = padded(params, experience)
        jax.tree.map(close, grads, wanted)
        jax.tree.map(close, loss, wanted_loss)
        assert filled < ROWS / 2 and max(np.abs(x).max() for x in jax.tree.leaves(host(wanted))) > 0.01
        other = experience.replace(rollout=rollout_of(seed + 10, mean=5.0))
        assert packed(params, other)[2] > filled and packed._cache_size() == 1  # other lengths compile nothing


@pytest.mark.parametrize(
    "mesh", ["2x2x2", *(pytest.param(mesh, marks=pytest.mark.slow) for mesh in ("1x1x1", "8x1x1"))]
)
def test_an_iteration_in_small_parts_is_that_of_whole_minibatches(mesh, monkeypatch):
    """The score and two steps; the first ratio is exactly 1."""
    coefs = tiny.coefficients(temperature=0.7, learning_rate=0.3)
    found = {}
    for places in (1, 10**9):
        monkeypatch.setitem(packing.PLACES, "cpu", places)
        s = tiny.PPO(mesh if places == 1 else "1x1x1", config=SMALL)
        experience, metrics = s.score(s.state(), rollout_of(0), coefs)
        experience, metrics = host((experience, metrics))
        state, first = s.update(s.state(), experience, s.minibatches[0], coefs)
        state, second = s.update(state, experience, s.minibatches[1], coefs)
        assert first["ppo/policy/ratio"] == first["ppo/policy/ratio_max"] == 1.0
        assert first["ppo/policy/approxkl"] == 0.0 != second["ppo/policy/approxkl"]
        found[places] = experience, metrics, *host((state, first, second))
    small, whole = found.values()
    real = np.mean(np.asarray(rollout_of(0).mask))
    for one in (small, whole):
        np.testing.assert_allclose(one[1].pop("objective/padding"), 1 - real, rtol=1e-5)
    np.testing.assert_allclose(whole[1].pop("objective/padding_packed"), 1 - real, rtol=1e-5)
    assert small[1].pop("objective/padding_packed") < 0.5 < 0.7 < 1 - real
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=5e-5), small, whole)


def test_reward_models_read_packed_rows_as_padded_ones():
    """With another token that ends a completion."""
    score, params = ppo.SequenceScore(SMALL, (tiny.EOS, 7)), tiny.params_of(SMALL, 3, "scalar")
    rollout = rollout_of(0)
    ends = np.arange(C) == rollout.completion_mask.sum(1, keepdims=True) - 1
    tokens = np.concatenate([rollout.tokens[:, :P], np.where(ends, 7, rollout.completions)], axis=1)
    rollout = rollout.replace(tokens=tokens)

    @jax.jit
    def packed(params, rollout):
        layout = packing.pack(rollout)
        return layout.at_ends(score.at_places(params, layout.rollout))

    close(packed(params, rollout), jax.jit(score)(params, rollout))


def test_trials_of_other_lengths_are_what_each_is_alone(small_parts):
    s, experience = experience_of("gae", 0)
    update = ppo.make_update(s.ppo_config, s.optimizer, s.optimizer, trials="trials")
    score = ppo.make_score(s.ppo_config, s.reward_fn, trials="trials")
    coefs = tiny.coefficients(temperature=0.7, learning_rate=0.3)

    @functools.partial(jax.jit, static_argnums=1)
    @functools.partial(jax.vmap, axis_name="trials", in_axes=(0, None))
    def step(rollout, rows):
        state = s._init(s.policy, s.value, jnp.float32(0.1))
        given = state.policy.params, state.value.params, s.ref, s.reward
        minibatches = list(np.arange(ROWS).reshape(2, -1))
        experience, metrics = score(*given, rollout, state.kl_coef, coefs, minibatches)
        state, more = update(state, jax.tree.map(lambda x: x[:rows], experience), None, coefs)
        return experience, metrics, more, state

    rollouts = rollout_of(0), rollout_of(1, mean=6.0)
    together = step(jax.tree.map(lambda *x: np.stack(x), *rollouts), 16)
    for number, rollout in enumerate(rollouts):
        alone = step(jax.tree.map(lambda x: x[None], rollout), 16)
        for one, all in zip(alone[1:3], together[1:3]):
            one.pop("objective/padding_packed", None), all.pop("objective/padding_packed", None)
        jax.tree.map(lambda x, y: close(x[number], y[0]), together, alone)


@pytest.mark.parametrize("gather_once", [True, False])
def test_the_weights_of_each_model_are_gathered_once_for_all_parts(gather_once, small_parts):
    s = tiny.PPO("2x2x2", config=SMALL, gather_once=gather_once)
    with jax.set_mesh(s.mesh):
        state, rollout = s.state(), sharding.put_batch(rollout_of(0), s.mesh)
        models = state.policy.params, state.value_params, s.ref, s.reward
        text = s.programs.score.lower(
            *models, rollout, state.kl_coef, tiny.coefficients(), list(s.minibatches), s.base
        ).compile()
        gathers = [line for line in text.as_text().splitlines() if " all-gather(" in line and "f32[" in line]
    assert len(gathers) > 20
    assert any("while/body" in line for line in gathers) != gather_once


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gathering_once_changes_no_bit(dtype, small_parts):
    config, found = dataclasses.replace(SMALL, dtype=dtype), []
    for gather_once in (True, False):
        s = tiny.PPO("2x2x2", config=config, gather_once=gather_once)
        found.append(host(s.score(s.state(), rollout_of(0), tiny.coefficients(temperature=0.7))))
    jax.tree.map(np.testing.assert_array_equal, *found)


# --- What it saves --------------------------------------------------------------------------------


def paper_masks(seed: int, episodes: int = 64, prompt: int = 1024, completion: int = 1024):
    """Prompts of 166 tokens in the mean and 62 in the median (Table 9), completions of 130; log-normal, cut at the caps."""
    rng = np.random.default_rng(seed)
    prompts = rng.lognormal(np.log(62), np.sqrt(2 * np.log(166 / 62)), episodes)
    completions = rng.lognormal(np.log(130) - 0.5, 1.0, episodes)
    prompts, completions = (np.clip(np.ceil(x), 1, prompt) for x in (prompts, completions))
    return np.arange(prompt)[::-1] < prompts[:, None], np.arange(completion) < completions[:, None]


def test_with_the_papers_lengths_a_quarter_of_the_places_is_computed():
    """Of minibatches of 64 episodes on 1, 4 and 8 devices."""

    @functools.partial(jax.jit)
    def rows(prompt_mask, completion_mask):
        tokens = jnp.zeros((64, 2048), jnp.int32)
        return packing.pack(ppo.packing.Rollout(tokens, prompt_mask, completion_mask, None)).rows

    needed = np.array([int(rows(*paper_masks(seed))) for seed in range(20)])
    for devices, least in ((1, 6.0), (4, 5.0), (8, 4.0)):
        computed = -(-needed // devices) * devices
        assert 64 / computed.mean() >= least, (devices, computed)
