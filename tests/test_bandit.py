"""The bandit's closed forms against brute force."""

import math

import jax
import numpy as np
import pytest

from rlhf_jax.runtime.errors import InputError
from rlhf_jax.world import bandit
from rlhf_jax.world.bandit import EOS_ID, PAD_ID, PROMPT_LENGTH, VOCAB_SIZE

KL_COEFS = (0.05, 0.2, 1.0)


@pytest.fixture(scope="module")
def game():
    return bandit.make_bandit(seed=1)


@pytest.fixture(scope="module")
def next_token():
    """A policy: P(token | last prompt token) and P(token | first token), f64[V,V]."""
    return np.random.default_rng(0).dirichlet(np.full(VOCAB_SIZE, 0.7), (2, VOCAB_SIZE))


def teacher_forced(next_token):
    def completion_logprobs(tokens, prompt_mask, completion_mask):
        last, first, second = tokens[:, PROMPT_LENGTH - 1 :].T
        return np.log(np.stack([next_token[0][last, first], next_token[1][first, second]], axis=1))

    return completion_logprobs


def loop(game, next_token):
    """(prompt, completion, probability, reward) of all, without any of the bandit's tables."""
    for x, prompt in enumerate(game.prompts):
        for first in range(VOCAB_SIZE):
            chance = next_token[0][prompt[-1], first]
            if first == EOS_ID:
                yield x, (first, PAD_ID), chance, game.reward_by_token[x, first, PAD_ID]
                continue
            for second in range(VOCAB_SIZE):
                yield (
                    x,
                    (first, second),
                    chance * next_token[1][first, second],
                    game.reward_by_token[x, first, second],
                )


def test_the_enumeration_is_everything_a_sampler_can_produce(game, next_token):
    rows = list(loop(game, next_token))
    tokens, prompt_mask, completion_mask = game.enumerate()
    assert tokens.dtype == np.int32 and tokens.shape == (4 * 57, PROMPT_LENGTH + 2)
    expected = {(x, completion) for x, completion, _, _ in rows}
    found = [
        (last - bandit.FIRST_LETTER, tuple(completion)) for last, *completion in tokens[:, PROMPT_LENGTH - 1 :].tolist()
    ]
    assert len(found) == len(set(found)) and set(found) == expected
    for row, mask in zip(tokens[:, PROMPT_LENGTH:], completion_mask):
        assert mask.tolist() == [True, row[0] != EOS_ID]
    assert (tokens[:, :PROMPT_LENGTH][~prompt_mask] == PAD_ID).all()
    assert set(prompt_mask.sum(1)) == {1, 2, 3} and prompt_mask[:, -1].all()
    assert not ((tokens[:, :PROMPT_LENGTH] == EOS_ID) & prompt_mask).any()


def test_policy_table_and_its_worth_equal_plain_sums(game, next_token):
    log_policy = game.log_policy(teacher_forced(next_token))
    reference = np.random.default_rng(5).dirichlet(np.ones(VOCAB_SIZE), (2, VOCAB_SIZE))
    log_ref = game.log_policy(teacher_forced(reference))
    np.testing.assert_allclose(np.exp(log_policy).sum(1), 1)
    reward = kl = 0.0
    for (_, _, p, r), (_, _, q, _) in zip(loop(game, next_token), loop(game, reference)):
        reward += p * r / 4
        kl += p * math.log(p / q) / 4
    worth = game.evaluate(log_policy, log_ref, 0.3)
    assert worth == pytest.approx((reward, kl, reward - 0.3 * kl))
    assert game.evaluate(log_ref, log_ref, 0.3).kl == 0


@pytest.mark.parametrize("kl_coef", KL_COEFS)
def test_the_optimum_is_kl_coef_log_z_and_nothing_beats_it(game, next_token, kl_coef):
    log_ref = game.log_policy(teacher_forced(next_token))
    log_z = np.zeros(4)
    for x, _, p, r in loop(game, next_token):
        log_z[x] += p * math.exp(float(r) / kl_coef)
    optimum = game.optimum(log_ref, kl_coef)
    assert optimum.objective == pytest.approx(kl_coef * np.log(log_z).mean())

    log_optimum = game.log_optimum(log_ref, kl_coef)
    rng = np.random.default_rng(0)
    for size in (1e-2, 0.1, 1.0):
        other = log_optimum + size * rng.standard_normal(log_optimum.shape)
        other -= np.logaddexp.reduce(other, axis=1, keepdims=True)
        worth = game.evaluate(other, log_ref, kl_coef)
        assert worth.objective < optimum.objective
        # The regret of any policy is kl_coef KL(pi || pi*).
        regret = kl_coef * (np.exp(other) * (other - log_optimum)).sum(1).mean()
        assert optimum.objective - worth.objective == pytest.approx(regret)


def test_gradient_ascent_finds_the_optimum(game, next_token):
    """Without the closed form: mirror ascent on the objective's own derivative."""
    log_ref = game.log_policy(teacher_forced(next_token))
    log_policy = log_ref
    for _ in range(200):
        derivative = game.reward_table - 0.5 * (log_policy - log_ref)
        log_policy = log_policy + 0.2 * derivative
        log_policy = log_policy - np.logaddexp.reduce(log_policy, axis=1, keepdims=True)
    np.testing.assert_allclose(log_policy, game.log_optimum(log_ref, 0.5), atol=1e-5)


def test_the_optimum_goes_from_greed_to_the_reference_as_kl_coef_grows(game, next_token):
    log_ref = game.log_policy(teacher_forced(next_token))
    outcomes = [game.optimum(log_ref, kl_coef) for kl_coef in (1e-3, *KL_COEFS, 1e3)]
    assert outcomes[0].reward == pytest.approx(game.reward_table.max(1).mean(), abs=1e-3)
    assert outcomes[-1].kl < 1e-5
    assert all(a.kl > b.kl and a.reward > b.reward for a, b in zip(outcomes, outcomes[1:]))


def test_a_token_that_is_never_sampled_costs_nothing(game, next_token):
    no_padding = next_token.copy()
    no_padding[:, :, PAD_ID] = 0
    no_padding /= no_padding.sum(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        log_ref = game.log_policy(teacher_forced(no_padding))
    optimum = game.optimum(log_ref, 0.2)
    assert np.isfinite(optimum).all()
    assert not np.exp(game.log_optimum(log_ref, 0.2))[np.isneginf(log_ref)].any()
    assert game.evaluate(log_ref, log_ref, 0.2).kl == 0


def test_score_reads_the_table_inside_jit(game):
    tokens, _, _ = game.enumerate()
    scores = jax.jit(game.score)(tokens)
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scores, game.reward_table.ravel())
    ended = tokens[tokens[:, PROMPT_LENGTH] == EOS_ID]
    for padding in range(VOCAB_SIZE):  # whatever a sampler writes there
        ended[:, -1] = padding
        np.testing.assert_array_equal(game.score(ended), game.reward_table[:, 0])


def test_rewards_differ_by_prompt_and_length_and_come_from_the_seed(game):
    table = game.reward_table
    assert table.dtype == np.float32 and len(np.unique(table)) == table.size
    again = bandit.make_bandit(seed=1)
    np.testing.assert_array_equal(again.reward_table, table)
    np.testing.assert_array_equal(again.prompts, game.prompts)
    assert not np.array_equal(bandit.make_bandit(seed=2).reward_table, table)


def test_logprobs_that_are_not_a_policys_are_refused(game):
    with pytest.raises(ValueError, match="sum to 1"):
        game.log_policy(lambda tokens, *_: np.full((len(tokens), 2), -1.0))


def test_no_prompt_and_a_first_token_are_another_prompt():
    """Two hundred seeds: every distribution that a policy has is after a context of its own."""
    for seed in range(200):
        for num_prompts in (2, 4, 6):
            tokens, prompt_mask, completion_mask = bandit.make_bandit(seed, num_prompts).enumerate()
            contexts = {}
            for row, real, chosen in zip(tokens.tolist(), prompt_mask, completion_mask):
                for length in range(chosen.sum()):
                    context = tuple(np.array(row)[:PROMPT_LENGTH][real]) + tuple(row[PROMPT_LENGTH:][:length])
                    contexts.setdefault(context, set()).add((row[PROMPT_LENGTH - 1], *row[PROMPT_LENGTH:][:length]))
            assert len(contexts) == num_prompts * 8 and all(len(states) == 1 for states in contexts.values()), seed


def test_prompts_that_clash_are_refused(game):
    prompts, mask = np.array([[0, 0, 2], [0, 2, 3]], np.int32), np.array([[0, 0, 1], [0, 1, 1]], bool)
    with pytest.raises(ValueError, match="prompt 0 and a first token are prompt 1"):
        bandit.Bandit(prompts, mask, game.reward_by_token[:2])


def test_the_kinds_of_rewards():
    tables = {
        kind: [bandit.make_bandit(seed, rewards=kind).reward_table for seed in range(20)] for kind in bandit.REWARDS
    }
    deviations = {kind: np.mean([table.std(axis=1) for table in found]) for kind, found in tables.items()}
    assert deviations["normal"] == pytest.approx(1, abs=0.05) and deviations["heavy"] == pytest.approx(0.9, abs=0.15)
    largest = {kind: np.max([np.abs(table).max() for table in tables[kind]]) for kind in ("normal", "heavy")}
    assert largest["heavy"] > 2 * largest["normal"]
    assert set(np.unique(tables["binary"])) == {0, 1} and 0.27 < np.mean(tables["binary"]) < 0.33
    offsets = [table - bandit.make_bandit(seed).reward_table for seed, table in enumerate(tables["offsets"])]
    assert np.ptp(offsets, axis=2).max() < 1e-5 and 8 < np.std(offsets) < 12
    with pytest.raises(InputError, match="'gaussian'"):
        bandit.make_bandit(rewards="gaussian")


@pytest.mark.parametrize("num_prompts", [0, 7])
def test_the_number_of_prompts_is_checked(num_prompts):
    with pytest.raises(InputError, match="1 to 6"):
        bandit.make_bandit(num_prompts=num_prompts)
