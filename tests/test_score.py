"""Scoring: episodes at the edges of their room, several tokens that end one, and whitened rewards, against NumPy loops."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from rlhf_jax import generate, ppo

P, C, ENDS = 4, 5, (tiny.EOS, 7)
SMALL = dataclasses.replace(tiny.SCANNED, num_layers=1)
# Length of the prompt, length of the completion, and the token that ends it: 0 where it was cut at its full length.
EPISODES = [(1, 1, tiny.EOS), (P, 1, 7), (P, C, 0), (1, C, 0), (P, C, tiny.EOS), (1, C, 7), (2, 2, 7), (3, 4, tiny.EOS)]


def rollout():
    """There are ends in prompts and on the padding, which are not those of completions."""
    prompts, completions, ends = np.array(EPISODES).T[:, :, None]
    rng = np.random.default_rng(0)
    tokens = rng.integers(8, tiny.VOCAB, (len(EPISODES), P + C)).astype(np.int32)
    tokens[:, :P] = np.where(rng.random((len(EPISODES), P)) < 0.5, 7, tokens[:, :P])
    place = np.arange(C) - completions
    tokens[:, P:] = np.where((place == -1) & (ends > 0), ends, np.where(place >= 0, tiny.EOS, tokens[:, P:]))
    mask = place < 0
    return generate.Rollout(tokens, np.arange(P)[::-1] < prompts, mask, np.float32(-1.0 * mask))


@pytest.mark.parametrize("whiten", [False, True])
def test_the_experience_of_episodes_at_the_edges_is_that_of_loops(whiten):
    """A completion that ends with any of the end tokens keeps its score, and the reward model reads it as the first."""
    config = ppo.PPOConfig(SMALL, SMALL, ENDS, whiten_rewards=whiten, whiten_advantages="none")
    score = jax.jit(ppo.make_score(config, ppo.SequenceScore(SMALL, ENDS)))
    policy, ref = tiny.params_of(SMALL, 1), tiny.params_of(SMALL, 2)
    reward, value = (tiny.params_of(SMALL, seed, "scalar") for seed in (3, 4))
    coefs, minibatches = tiny.coefficients(gamma=0.9), list(np.array([[5, 0, 3, 6], [7, 2, 1, 4]]))
    experience, metrics = score(policy, value, ref, reward, rollout(), 0.1, coefs, minibatches)

    found, mask = rollout(), rollout().completion_mask
    completions = np.where(mask & (found.completions == 7), tiny.EOS, found.completions)
    tokens = np.concatenate([found.tokens[:, :P], completions], axis=1)
    raw = jax.jit(ppo.sequence_scores, static_argnums=0)(SMALL, reward, tokens, found.mask)
    ended = np.array([end > 0 for *_, end in EPISODES])
    scores = np.where(ended, raw, -1.0)
    np.testing.assert_allclose(experience.raw_scores, raw, atol=1e-5)
    np.testing.assert_allclose(experience.scores, scores, atol=1e-5)
    for name, expected in {"raw_scores": raw, "scores": scores, "eos": ended}.items():
        np.testing.assert_allclose(metrics[f"objective/{name}"], np.mean(expected), atol=1e-5)

    kl = np.float64(experience.logprobs) - experience.ref_logprobs
    rewards = np.zeros((len(EPISODES), C))
    for row, (_, length, _) in enumerate(EPISODES):
        rewards[row, :length] = -0.1 * kl[row, :length]
        rewards[row, length - 1] += scores[row]
    if whiten:  # to variance 1 over the tokens of the batch; the mean stays
        mean, deviation = rewards[mask].mean(), rewards[mask].std()
        rewards = np.where(mask, (rewards - mean) / deviation + mean, 0)
    np.testing.assert_allclose(experience.rewards, rewards, rtol=1e-4, atol=1e-5)
    for row, (_, length, _) in enumerate(EPISODES):
        advantage = following = 0.0
        for place in reversed(range(length)):
            now = float(experience.values[row, place])
            advantage = rewards[row, place] + 0.9 * following - now + 0.9 * 0.95 * advantage
            np.testing.assert_allclose(experience.advantages[row, place], advantage, rtol=1e-4, atol=1e-4)
            following = now
