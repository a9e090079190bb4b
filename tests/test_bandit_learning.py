"""PPO's real programs reach the bandit's optimum, known in closed form (invariant 15)."""

import functools
import importlib.util
import pathlib

import jax
import numpy as np
import pytest

from rlhf_jax import model, optimum, ppo, sharding
from rlhf_jax.model import TransformerConfig
from rlhf_jax.runtime import keys
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.world import bandit

pytestmark = pytest.mark.usefixtures("simply_compiled")
_CONFIG = pathlib.Path(__file__).resolve().parent.parent / "experiments" / "bandit.py"


def config_of(form="normal"):
    spec = importlib.util.spec_from_file_location("bandit_experiment", _CONFIG)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(form)


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setattr(sharding, "make_mesh", functools.partial(sharding.make_mesh, devices=jax.devices()[:1]))


@pytest.fixture
def config():
    """The experiment's."""
    return config_of()


def assert_optimal(row: optimum.Comparison):
    """98 % of the objective, also of what there is to gain over the reference; KL within 10 %."""
    assert row.reference.kl == 0 and row.reference.objective < 0.5 * row.optimum.objective  # there is much to learn
    assert 0.98 <= row.objective_ratio <= 1, row
    assert 0.98 <= row.gain_ratio <= 1, row
    assert 0.9 <= row.kl_ratio <= 1.1, row


@pytest.mark.slow
def test_ppo_reaches_the_optimum(config):
    config.seeds, config.kl_coefs = (0,), (0.2,)
    (row,) = optimum.compare(config)
    assert_optimal(row)
    assert row.sought == pytest.approx(row.optimum) and row.nats_from_sought < 0.1


@pytest.mark.parametrize(
    "rewards", ["offsets", *(pytest.param(name, marks=pytest.mark.slow) for name in ("heavy", "binary"))]
)
def test_other_rewards_in_little_time(config, rewards):
    """Two prompts, a sharp reference, RLOO, another bandit for each; against the best that the model reaches."""
    config.update(
        num_prompts=2, rewards=rewards, seeds=({"heavy": 1, "binary": 2, "offsets": 3}[rewards],), kl_coefs=(0.5,)
    )
    config.model.init_std = 0.2
    config.ppo.update(advantage="rloo", samples_per_prompt=256, iterations=30, batch_size=512)
    (row,) = optimum.compare(config)
    assert 0.999 <= row.share_of_gain(row.reachable) <= 1.00001
    assert 0.95 <= row.gain_ratio / row.share_of_gain(row.reachable) <= 1, row


def test_a_batch_that_does_not_hold_whole_groups_is_refused(config):
    config.num_prompts = 3
    with pytest.raises(
        InputError, match="ppo.batch_size=1024 must be a multiple of num_prompts=3 times ppo.samples_per_prompt=1"
    ):
        next(optimum.compare(config))


def test_the_best_of_a_model_is_short_of_the_optimum_where_prompts_clash(monkeypatch):
    """Prompt 0 and the letter 3 are prompt 1, as make_bandit no longer has it."""
    monkeypatch.setattr(bandit, "_clash", lambda *_: None)
    prompts, mask = np.array([[0, 0, 2], [0, 2, 3]], np.int32), np.array([[0, 0, 1], [0, 1, 1]], bool)
    game = bandit.Bandit(prompts, mask, bandit.make_bandit(1, 2).reward_by_token)
    shape = TransformerConfig(
        vocab_size=8,
        vocab_multiple=8,
        num_layers=1,
        embed_dim=32,
        num_heads=2,
        max_length=8,
        init_std=0.2,
        scan_layers=False,
    )
    params = model.init_params(shape, keys.named_key(1, "policy"))
    log_policy = functools.partial(
        optimum._log_policy, game, jax.jit(functools.partial(ppo.completion_logprobs, shape))
    )
    log_ref = log_policy(params)
    found = game.evaluate(log_policy(optimum.best_of_model(shape, game, params, 0.2)), log_ref, 0.2)
    assert found.objective < 0.99 * game.optimum(log_ref, 0.2).objective


@pytest.mark.slow
@pytest.mark.parametrize("form", ["heavy", "binary", "sharp"])
def test_ppo_comes_to_the_best_of_the_model_on_other_bandits(form):
    config = config_of(form)
    config.kl_coefs = (0.15, 0.7)
    for row in optimum.compare(config):
        assert row.share_of_gain(row.reachable) >= 0.999 and 0.95 <= row.gain_ratio <= 1, row


@pytest.mark.slow
@pytest.mark.parametrize("options", [dict(advantage="rloo", samples_per_prompt=8), dict(value="shared")])
def test_other_kinds_of_ppo_come_near_the_optimum(config, options):
    config.seeds, config.kl_coefs = (0,), (0.2,)
    config.ppo.update(iterations=50, **options)
    (row,) = optimum.compare(config)
    assert 0.9 <= row.gain_ratio <= 1, row


LOSS = dict(kl_in="loss", samples_per_prompt=256, iterations=60)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [dict(advantage="rloo", kl_estimator="k3"), dict(advantage="rloo", kl_estimator="k2"), dict(advantage="grpo")],
)
def test_with_the_kl_in_the_loss_ppo_ends_at_the_fixed_point_of_its_choice(config, options):
    """Within 0.05 nats, and what it gains over the reference within 5 % of the optimum's gain."""
    config.seeds, config.kl_coefs = (0, 1), (0.7,)
    config.ppo.update(LOSS | options)
    for row in optimum.compare(config):
        assert row.nats_from_sought < 0.05, row
        assert abs(row.gain_ratio - row.share_of_gain(row.sought)) < 0.05 and row.share_of_gain(row.sought) < 0.93, row


@pytest.mark.slow
def test_ppo_reaches_the_optimum_at_all_kl_coefs_and_seeds_with_one_compilation(config, monkeypatch):
    made, programs = [], optimum._programs
    monkeypatch.setattr(optimum, "_programs", lambda *arguments: made.append(programs(*arguments)) or made[-1])
    rows = list(optimum.compare(config))
    assert len(rows) == len(config.seeds) * len(config.kl_coefs) == 15
    for row in rows:
        assert_optimal(row)
    ((_, only),) = made
    assert only.score._cache_size() == only.update._cache_size() == 1
