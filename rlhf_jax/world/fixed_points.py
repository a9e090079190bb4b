"""Where PPO ends on the bandit for each choice of the KL penalty; docs/kl.md derives it.

The expected step of PPO is, at every state s (a prompt, or a prompt and a first token) and for a
policy that is free there, zero where

    sum_a pi(a|s) (grad log pi(a|s)) Q(s, a)  =  kl_coef x the gradient of the choice's penalty

with Q(s, a) = E[advantage | s, a] when the KL is in the loss. What that says of pi(.|s):

    reward, k1    pi = ref exp(Q / kl_coef) / Z           the state is worth kl_coef log Z
    loss, k2      pi = ref exp(Q / kl_coef) / Z           it is worth E_pi[Q]: later KL costs nothing
    loss, k3      pi = kl_coef ref / (c - Q), c: sum 1    it is worth E_pi[Q]
    reward, k2    pi = ref exp(d), kl_coef d^2 / 2          = Q - c on the actions that survive, else 0
    reward, k3    pi = ref exp(d), kl_coef (e^-d - 1 + d)   = Q - c likewise; it is worth c

The second to last token is chosen for what the last is worth, so states are solved from the end.
Only the first line is the bandit's optimum. Advantages that are divided by their deviation leave the
two lines of "reward, k1" and its likes as they are, because the penalty is among what is divided; with
the KL in the loss they make kl_coef act as kl_coef x that deviation, at the policy where PPO ends.

Tables have shape [X, Y] as in bandit.py.
"""

import numpy as np
from scipy import optimize, special

from rlhf_jax.world.bandit import EOS_ID, VOCAB_SIZE, Bandit

DAMPING = 0.5  # of the search for a deviation that agrees with itself
ROUNDS = 200


class NoFixedPoint(ValueError):
    """The deviation of the advantages goes to 0 with the policy's entropy, and the penalty's weight with it."""


def log_fixed_point(
    game: Bandit,
    log_ref: np.ndarray,
    kl_coef: float,
    kl_in: str = "reward",
    kl_estimator: str = "k1",
    advantage: str = "rloo",
    whitened: bool = False,
    samples: int = 1,
    lam: float = 1.0,
) -> np.ndarray:
    """The policy f64[X,Y], as log-probabilities, that PPO of these fields of config.ppo leaves as it is.

    Args:
        log_ref: f64[X,Y] of the reference.
        whitened: advantages, over the batch or over large minibatches.
        samples: of a prompt. With "grpo" the result is that of large groups.
        lam: of "gae", whose values are taken to be right.

    Raises:
        ValueError: another choice.
        NoFixedPoint: PPO ends at one completion, whatever the reference.
    """
    if (kl_in, kl_estimator) not in _STATES:
        raise ValueError(f"no penalty in the {kl_in} by {kl_estimator}")
    solve = lambda coefs: _by_states(game, log_ref, coefs, _STATES[kl_in, kl_estimator])
    scales = np.ones(len(game.prompts))
    if kl_in == "reward" or not (whitened or advantage == "grpo"):
        return solve(kl_coef * scales)
    scales = deviations(game, log_ref, advantage, whitened, samples, lam)
    for _ in range(ROUNDS):
        log_policy = solve(kl_coef * scales)
        found = deviations(game, log_policy, advantage, whitened, samples, lam)
        if np.allclose(found, scales, rtol=1e-9):
            return log_policy
        scales = scales ** (1 - DAMPING) * found**DAMPING
        if scales.min() < 1e-4:
            break
    raise NoFixedPoint(f"at kl_coef {kl_coef} PPO of these fields ends at one completion")


def deviations(
    game: Bandit, log_policy: np.ndarray, advantage: str, whitened: bool, samples: int = 1, lam: float = 1.0
) -> np.ndarray:
    """By what the advantages of each prompt are divided, f64[X], where the KL is not among the rewards."""
    chances, rewards = np.exp(log_policy), game.reward_table.astype(np.float64)
    lengths = 2.0 - (game.completions[:, 0] == EOS_ID)
    means = (chances * rewards).sum(1, keepdims=True)
    variances = (chances * (rewards - means) ** 2).sum(1, keepdims=True)
    if advantage == "gae":
        first, second = _conditionals(log_policy)
        by_second = (
            np.exp(second) * (_second(rewards) - (np.exp(second) * _second(rewards)).sum(-1, keepdims=True)) ** 2
        )
        late = (np.exp(first)[:, _LETTERS] * by_second.sum(-1)).sum(
            1
        )  # of the second token, and of the first by lambda
        total = (variances[:, 0] - late + lam**2 * late + late).mean()
        scale = np.sqrt(total / (chances * lengths).sum(1).mean()) if whitened else 1.0
        return np.full(len(means), scale)
    centre = means.mean() if advantage == "reinforce" else means
    scale = np.sqrt(variances) if advantage == "grpo" else np.ones_like(means)
    noise = variances / (samples - 1) if advantage == "rloo" else 0.0  # of the mean of the others
    if whitened:
        weights = chances * lengths / (chances * lengths).sum()
        centred = (rewards - centre) / scale
        square = (weights * (centred**2 + noise)).sum() - (weights * centred).sum() ** 2
        scale = scale * np.sqrt(square)
    return scale[:, 0]


_LETTERS = np.array([first for first in range(VOCAB_SIZE) if first != EOS_ID])  # after which a second token comes


def _second(table: np.ndarray) -> np.ndarray:
    """[X,Y] -> [X,7,V]: the completions with a second token."""
    return table[:, 1:].reshape(len(table), len(_LETTERS), VOCAB_SIZE)


def _conditionals(log_policy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log pi(first | x) f64[X,V] and log pi(second | x, first) f64[X,7,V]; uniform after a token of probability 0."""
    second = _second(log_policy)
    letters = np.logaddexp.reduce(second, axis=-1)
    first = np.empty((len(log_policy), VOCAB_SIZE))
    first[:, EOS_ID], first[:, _LETTERS] = log_policy[:, 0], letters
    with np.errstate(invalid="ignore"):
        second = second - letters[..., None]
    return first, np.where(np.isnan(second), -np.log(VOCAB_SIZE), second)


def _by_states(game: Bandit, log_ref: np.ndarray, coefs: np.ndarray, state) -> np.ndarray:
    """From the last token to the first; coefs f64[X]; state: (Q, log ref, coef) of one state -> (log pi, its worth)."""
    first_ref, second_ref = _conditionals(log_ref)
    rewards = game.reward_table.astype(np.float64)
    table = np.empty_like(rewards)
    for x, coef in enumerate(coefs):
        after = [state(q, ref, coef) for q, ref in zip(_second(rewards)[x], second_ref[x])]
        worths = np.empty(VOCAB_SIZE)
        worths[EOS_ID], worths[_LETTERS] = rewards[x, 0], [worth for _, worth in after]
        first, _ = state(worths, first_ref[x], coef)
        table[x, 0] = first[EOS_ID]
        table[x, 1:] = (first[_LETTERS, None] + np.stack([policy for policy, _ in after])).ravel()
    return table


def _tilted(q, log_ref, coef):
    logits = log_ref + q / coef
    log_z = special.logsumexp(logits)
    return logits - log_z, coef * log_z


def _loss_k2(q, log_ref, coef):
    policy, _ = _tilted(q, log_ref, coef)
    return policy, np.exp(policy) @ q


def _loss_k3(q, log_ref, coef):
    """pi = coef ref / (c - Q); the gap c - max Q is sought by its logarithm, for it can be as small as the reference."""
    below = np.log(np.maximum(q.max() - q, 1e-300))
    log_policy = lambda log_gap: np.log(coef) + log_ref - np.logaddexp(log_gap, below)
    low = np.log(coef) + log_ref[np.argmax(q)] - 1  # the best action alone has more than 1 there
    log_gap = optimize.brentq(lambda gap: special.logsumexp(log_policy(gap)), low, np.log(coef) + 1e-9, xtol=1e-13)
    policy = log_policy(log_gap)
    return policy, np.exp(policy) @ q


def _surviving(rise):
    """rise: z = (Q - c) / kl_coef >= 0 -> the d >= 0 whose penalty is z."""

    def state(q, log_ref, coef):
        order = np.argsort(-q)
        mass = lambda c, kept: special.logsumexp(log_ref[kept] + rise(np.maximum(q[kept] - c, 0) / coef))
        # As many of the best as can all lie above the reference; what lies below is pushed further down.
        number = max(n for n in range(1, len(q) + 1) if n == 1 or mass(q[order[n - 1]], order[:n]) <= 0)
        kept = order[:number]
        highest, gap = q[kept[-1]], coef
        while mass(highest - gap, kept) < 0:
            gap *= 2
        worth = (
            optimize.brentq(mass, highest - gap, highest, args=(kept,), xtol=1e-13)
            if mass(highest, kept) < 0
            else highest
        )
        policy = np.full(len(q), -np.inf)
        policy[kept] = log_ref[kept] + rise(np.maximum(q[kept] - worth, 0) / coef)
        return policy, worth

    return state


def _rise_k3(z):
    """d >= 0 where e^-d - 1 + d = z; near 0 by its series, where Lambert's function branches."""
    return np.where(z < 1e-8, np.sqrt(2 * z), 1 + z + special.lambertw(-np.exp(-1 - np.maximum(z, 1e-8))).real)


_STATES = {
    ("reward", "k1"): _tilted,
    ("reward", "k2"): _surviving(lambda z: np.sqrt(2 * z)),
    ("reward", "k3"): _surviving(_rise_k3),
    ("loss", "k2"): _loss_k2,
    ("loss", "k3"): _loss_k3,
}
