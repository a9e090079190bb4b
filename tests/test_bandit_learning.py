"""PPO's real programs reach the bandit's optimum, known in closed form (invariant 15)."""

import functools
import importlib.util
import pathlib

import jax
import pytest

from rlhf_jax import optimum, sharding
from rlhf_jax.world import bandit

_CONFIG = pathlib.Path(__file__).resolve().parent.parent / "experiments" / "bandit.py"


@pytest.fixture
def config(monkeypatch):
    """The experiment's config, on a mesh of one device."""
    monkeypatch.setattr(sharding, "make_mesh", functools.partial(sharding.make_mesh, devices=jax.devices()[:1]))
    spec = importlib.util.spec_from_file_location("bandit_experiment", _CONFIG)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def assert_optimal(row: optimum.Comparison):
    """98 % of the objective, also of what there is to gain over the reference; KL within 10 %."""
    assert row.reference.kl == 0 and row.reference.objective < 0.5 * row.optimum.objective  # there is much to learn
    assert 0.98 <= row.objective_ratio <= 1, row
    assert 0.98 <= row.gain_ratio <= 1, row
    assert 0.9 <= row.kl_ratio <= 1.1, row


def test_ppo_reaches_the_optimum(config):
    config.seeds, config.kl_coefs = (0,), (0.2,)
    config.ppo.iterations = 50  # enough for this one
    (row,) = optimum.compare(config, bandit.make_bandit(config.bandit_seed))
    assert_optimal(row)


@pytest.mark.slow
@pytest.mark.parametrize("options", [dict(advantage="rloo", samples_per_prompt=8), dict(value="shared")])
def test_other_kinds_of_ppo_come_near_the_optimum(config, options):
    config.seeds, config.kl_coefs = (0,), (0.2,)
    config.ppo.update(iterations=50, **options)
    (row,) = optimum.compare(config, bandit.make_bandit(config.bandit_seed))
    assert 0.9 <= row.gain_ratio <= 1, row


@pytest.mark.slow
def test_ppo_reaches_the_optimum_at_all_kl_coefs_and_seeds_with_one_compilation(config, monkeypatch):
    made, programs = [], optimum._programs
    monkeypatch.setattr(optimum, "_programs", lambda *arguments: made.append(programs(*arguments)) or made[-1])
    rows = list(optimum.compare(config, bandit.make_bandit(config.bandit_seed)))
    assert len(rows) == len(config.seeds) * len(config.kl_coefs) == 15
    for row in rows:
        assert_optimal(row)
    (only,) = made
    assert only.score._cache_size() == only.update._cache_size() == 1
