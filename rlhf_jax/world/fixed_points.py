"""The fixed points of PPO on the bandit for each choice of the KL penalty; docs/kl.md derives them.

A state s is a prompt, or a prompt with a first token. For a policy that is unconstrained at s, the expected step of PPO
is zero if

    sum_a pi(a|s) (grad log pi(a|s)) Q(s, a)  =  kl_coef x the gradient of the chosen penalty

with Q(s, a) = E[advantage | s, a] when the KL is in the loss. The solution pi(.|s), and the value of the state, are:

    reward, k1    pi = ref exp(Q / kl_coef) / Z             value kl_coef log Z
    loss, k2      pi = ref exp(Q / kl_coef) / Z             value E_pi[Q]: later KL costs nothing
    loss, k3      pi = kl_coef ref / (c - Q), c: sum 1      value E_pi[Q]
    reward, k2    pi = ref exp(d), kl_coef d^2 / 2          = Q - c on the actions that survive, else pi = 0; value c
    reward, k3    pi = ref exp(d), kl_coef (e^-d - 1 + d)   = Q - c on the actions that survive, else pi = 0; value c

The Q of a first token is the value of the state that it leads to, so states are solved from the last token to the
first. Only the first line is the bandit's optimum.

Division of the advantages by their standard deviation does not change the fixed points with the KL in the reward,
because it divides the penalty too. With the KL in the loss, kl_coef then acts as kl_coef x the deviation at the fixed
point.

Tables have shape [X, Y] as in bandit.py.
"""

import numpy as np
import scipy  # its parts are imported when they are first used

from rlhf_jax.world.bandit import EOS_ID, VOCAB_SIZE, Bandit

DAMPING = 0.5  # weight of a new deviation in the fixed-point iteration over deviations, on a log scale
ROUNDS = 200  # largest number of iterations


class NoFixedPoint(ValueError):
    """There is no fixed point: the deviation of the advantages falls to 0, and the weight of the penalty with it.

    The deviation falls with the entropy of the policy, which ends at one completion.
    """


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
    """Returns the log-probabilities f64[X,Y] of the policy that PPO leaves unchanged in expectation.

    Args:
        game: the bandit.
        log_ref: log-probabilities f64[X,Y] of the reference.
        kl_coef: coefficient of the KL penalty.
        kl_in: "reward" or "loss", as in config.ppo.
        kl_estimator: "k1", "k2" or "k3", as in config.ppo.
        advantage: estimator of advantages, as in config.ppo.
        whitened: whether advantages are whitened, over the batch or over large minibatches.
        samples: number of samples per prompt. For "grpo" the result is the limit of large groups.
        lam: lambda of "gae", whose value model is assumed to be exact.

    Raises:
        ValueError: the KL penalty is not one of the five choices above.
        NoFixedPoint: PPO ends at a single completion, whatever the reference.
    """
    if (kl_in, kl_estimator) not in _STATES:
        raise ValueError(f"no penalty in the {kl_in} by {kl_estimator}")

    def solve(coefs):
        return _by_states(game, log_ref, coefs, _STATES[kl_in, kl_estimator])

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
    """Returns the standard deviation that divides the advantages of each prompt, f64[X], with the KL in the loss.

    docs/kl.md has the formulas.

    Args:
        game: the bandit.
        log_policy: log-probabilities f64[X,Y] of the policy.
        advantage: estimator of advantages, as in `log_fixed_point`.
        whitened: whether advantages are whitened.
        samples: number of samples per prompt.
        lam: lambda of "gae".
    """
    chances, rewards = np.exp(log_policy), game.reward_table.astype(np.float64)
    lengths = 2.0 - (game.completions[:, 0] == EOS_ID)
    means = (chances * rewards).sum(1, keepdims=True)
    variances = (chances * (rewards - means) ** 2).sum(1, keepdims=True)
    if advantage == "gae":
        first, second = _conditionals(log_policy)
        by_second = (
            np.exp(second) * (_second(rewards) - (np.exp(second) * _second(rewards)).sum(-1, keepdims=True)) ** 2
        )
        # The variance of the second token's advantage. The variance of the first token's contains it lambda^2 times.
        late = (np.exp(first)[:, _LETTERS] * by_second.sum(-1)).sum(1)
        total = (variances[:, 0] - late + lam**2 * late + late).mean()
        scale = np.sqrt(total / (chances * lengths).sum(1).mean()) if whitened else 1.0
        return np.full(len(means), scale)
    centre = means.mean() if advantage == "reinforce" else means
    scale = np.sqrt(variances) if advantage == "grpo" else np.ones_like(means)
    # The variance of RLOO's baseline, the mean of the other samples.
    noise = variances / (samples - 1) if advantage == "rloo" else 0.0
    if whitened:
        weights = chances * lengths / (chances * lengths).sum()
        centred = (rewards - centre) / scale
        square = (weights * (centred**2 + noise)).sum() - (weights * centred).sum() ** 2
        scale = scale * np.sqrt(square)
    return scale[:, 0]


# First tokens after which a second one comes.
_LETTERS = np.array([first for first in range(VOCAB_SIZE) if first != EOS_ID])


def _second(table: np.ndarray) -> np.ndarray:
    """Returns the entries [X,7,V] of a table [X,Y] for the completions with a second token."""
    return table[:, 1:].reshape(len(table), len(_LETTERS), VOCAB_SIZE)


def _conditionals(log_policy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns log pi(first | x) f64[X,V] and log pi(second | x, first) f64[X,7,V] of a policy f64[X,Y].

    After a first token of probability 0, the second is uniform.
    """
    second = _second(log_policy)
    letters = np.logaddexp.reduce(second, axis=-1)
    first = np.empty((len(log_policy), VOCAB_SIZE))
    first[:, EOS_ID], first[:, _LETTERS] = log_policy[:, 0], letters
    with np.errstate(invalid="ignore"):
        second = second - letters[..., None]
    return first, np.where(np.isnan(second), -np.log(VOCAB_SIZE), second)


def _by_states(game: Bandit, log_ref: np.ndarray, coefs: np.ndarray, state) -> np.ndarray:
    """Returns the policy f64[X,Y], as log-probabilities, solved from the last token to the first.

    Args:
        game: the bandit.
        log_ref: log-probabilities f64[X,Y] of the reference.
        coefs: coefficient of the KL penalty of each prompt, f64[X].
        state: a solver (Q, log ref, coef) of one state -> (log pi, value of the state).
    """
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
    """Solves a state for k1 in the reward."""
    logits = log_ref + q / coef
    log_z = scipy.special.logsumexp(logits)
    return logits - log_z, coef * log_z


def _loss_k2(q, log_ref, coef):
    """Solves a state for k2 in the loss."""
    policy, _ = _tilted(q, log_ref, coef)
    return policy, np.exp(policy) @ q


def _loss_k3(q, log_ref, coef):
    """Solves a state for k3 in the loss: pi = coef ref / (c - Q).

    The root is found in the logarithm of the gap c - max Q, because the gap can be as small as the reference.
    """
    below = np.log(np.maximum(q.max() - q, 1e-300))

    def log_policy(log_gap):
        return np.log(coef) + log_ref - np.logaddexp(log_gap, below)

    low = np.log(coef) + log_ref[np.argmax(q)] - 1  # here the best action alone has probability > 1
    log_gap = scipy.optimize.brentq(
        lambda gap: scipy.special.logsumexp(log_policy(gap)), low, np.log(coef) + 1e-9, xtol=1e-13
    )
    policy = log_policy(log_gap)
    return policy, np.exp(policy) @ q


def _surviving(rise):
    """Returns the solver of a state for k2 or k3 in the reward.

    Args:
        rise: z = (Q - c) / kl_coef >= 0 -> the log-ratio d >= 0 at which the penalty is z.
    """

    def state(q, log_ref, coef):
        order = np.argsort(-q)

        def mass(c, kept):
            return scipy.special.logsumexp(log_ref[kept] + rise(np.maximum(q[kept] - c, 0) / coef))

        # The best actions survive, as many as can all be more likely than in the reference. The penalty pushes an
        # action that is less likely than in the reference further down.
        number = max(n for n in range(1, len(q) + 1) if n == 1 or mass(q[order[n - 1]], order[:n]) <= 0)
        kept = order[:number]
        highest, gap = q[kept[-1]], coef
        while mass(highest - gap, kept) < 0:
            gap *= 2
        worth = (
            scipy.optimize.brentq(mass, highest - gap, highest, args=(kept,), xtol=1e-13)
            if mass(highest, kept) < 0
            else highest
        )
        policy = np.full(len(q), -np.inf)
        policy[kept] = log_ref[kept] + rise(np.maximum(q[kept] - worth, 0) / coef)
        return policy, worth

    return state


def _rise_k3(z):
    """Returns the d >= 0 with e^-d - 1 + d = z; near 0, where Lambert's W has its branch point, by a series."""
    return np.where(z < 1e-8, np.sqrt(2 * z), 1 + z + scipy.special.lambertw(-np.exp(-1 - np.maximum(z, 1e-8))).real)


_STATES = {
    ("reward", "k1"): _tilted,
    ("reward", "k2"): _surviving(lambda z: np.sqrt(2 * z)),
    ("reward", "k3"): _surviving(_rise_k3),
    ("loss", "k2"): _loss_k2,
    ("loss", "k3"): _loss_k3,
}
