"""A bandit whose KL-regularised optimum is known exactly, to test whether PPO reaches it.

The bandit has a few prompts, completions of at most two tokens, and a fixed reward for every completion. A prompt plus
a first token is never another prompt, so a causal model can represent any policy. The optimum of

    objective(pi) = E_pi[r] - kl_coef KL(pi || pi_ref)

is pi*(y|x) = pi_ref(y|x) exp(r(x, y) / kl_coef) / Z(x), and its objective is kl_coef log Z(x). All completions can be
enumerated, so a policy's expected reward, KL and objective are sums, not estimates.

A completion has at most `COMPLETION_LENGTH` = 2 tokens of the whole vocabulary. It is EOS alone; a token, then EOS; or
two tokens of which the second is not EOS, and which the length limit ends. All of these count as complete, so the rule
for a missing EOS must be switched off. If a sampler never draws the padding id, completions with it have probability 0.

Tables have shape [X, Y]: X prompts, and Y completions in the order of `Bandit.completions`. Means over prompts are
uniform.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from rlhf_jax.runtime.errors import InputError

PAD_ID = 0
EOS_ID = 1
FIRST_LETTER = 2  # the ids from here on are letters, of which prompts are made
VOCAB_SIZE = 8
PROMPT_LENGTH = 3
COMPLETION_LENGTH = 2
REWARDS = ("normal", "heavy", "binary", "offsets")  # see make_bandit


class Outcome(NamedTuple):
    """The exact expected reward, KL and objective of a policy, averaged over prompts."""

    reward: float  # E_pi[r]
    kl: float  # KL(pi || pi_ref), nats per completion
    objective: float  # reward - kl_coef * kl


class Enumeration(NamedTuple):
    """All completions of all prompts, as N = X * Y rows, prompt by prompt."""

    tokens: np.ndarray  # i32[N,P+C]
    prompt_mask: np.ndarray  # bool[N,P]
    completion_mask: np.ndarray  # bool[N,C], True up to and including EOS


@dataclasses.dataclass(frozen=True)
class Bandit:
    """Prompts and a reward table; `make_bandit` makes one.

    Raises:
        ValueError: a prompt plus a first token is another prompt. A causal model has the same distribution after both,
            so it cannot represent the optimum.
    """

    prompts: np.ndarray  # i32[X,P], left-padded; prompt x ends with FIRST_LETTER + x
    prompt_mask: np.ndarray  # bool[X,P]
    reward_by_token: np.ndarray  # f32[X,V,V], indexed by the first and the second token

    def __post_init__(self):
        if clash := _clash(self.prompts, self.prompt_mask):
            raise ValueError(f"prompt {clash[0]} and a first token are prompt {clash[1]}")

    @property
    def completions(self) -> np.ndarray:
        """All completions, i32[Y,C]; the first one is EOS alone."""
        return np.array(
            [(EOS_ID, PAD_ID)]
            + [(first, second) for first in range(VOCAB_SIZE) if first != EOS_ID for second in range(VOCAB_SIZE)],
            np.int32,
        )

    @property
    def reward_table(self) -> np.ndarray:
        """The reward of every completion of every prompt, f32[X,Y]."""
        first, second = self.completions.T
        return self.reward_by_token[:, first, second]

    def score(self, tokens):
        """Returns the rewards f32[B] of prompts with completions, i32[B,P+C]; see `look_up`."""
        return look_up(self.reward_by_token, tokens)

    def enumerate(self) -> Enumeration:
        """Returns all completions of all prompts, as rows that a model can read."""
        completions = self.completions
        prompts = np.repeat(self.prompts, len(completions), axis=0)
        completions = np.tile(completions, (len(self.prompts), 1))
        mask = np.ones_like(completions, bool)
        mask[:, 1] = completions[:, 0] != EOS_ID
        return Enumeration(
            np.concatenate([prompts, completions], axis=1),
            np.repeat(self.prompt_mask, len(self.completions), axis=0),
            mask,
        )

    def log_policy(self, completion_logprobs) -> np.ndarray:
        """Returns the log-probability of every completion, f64[X,Y], by teacher forcing.

        Args:
            completion_logprobs: a function that is called with the fields of `enumerate` and returns f32[N,C]: the
                log-probability of each completion token given the tokens before it.

        Raises:
            ValueError: the probabilities of a prompt's completions do not sum to 1 within 1e-3.
        """
        rows = self.enumerate()
        logprobs = np.asarray(completion_logprobs(*rows), np.float64)
        table = np.where(rows.completion_mask, logprobs, 0).sum(1).reshape(len(self.prompts), -1)
        totals = np.exp(table).sum(1)
        if not np.allclose(totals, 1, atol=1e-3):
            raise ValueError(f"completion probabilities should sum to 1, got {totals}")
        return table

    def evaluate(self, log_policy, log_ref, kl_coef: float) -> Outcome:
        """Returns the exact outcome of a policy.

        Args:
            log_policy: log-probabilities f64[X,Y] of the policy.
            log_ref: log-probabilities f64[X,Y] of the reference.
            kl_coef: coefficient of the KL penalty.
        """
        probabilities = np.exp(log_policy)
        with np.errstate(invalid="ignore"):
            log_ratio = np.where(probabilities > 0, np.subtract(log_policy, log_ref), 0)
        reward = float((probabilities * self.reward_table).sum(1).mean())
        kl = float((probabilities * log_ratio).sum(1).mean())
        return Outcome(reward, kl, reward - kl_coef * kl)

    def log_optimum(self, log_ref, kl_coef: float) -> np.ndarray:
        """Returns log pi*, f64[X,Y], for kl_coef > 0; `log_ref` f64[X,Y] is the reference's."""
        logits = log_ref + self.reward_table.astype(np.float64) / kl_coef
        return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)

    def optimum(self, log_ref, kl_coef: float) -> Outcome:
        """Returns the exact outcome of pi*; its objective is kl_coef * log Z, averaged over prompts."""
        return self.evaluate(self.log_optimum(log_ref, kl_coef), log_ref, kl_coef)


def look_up(reward_by_token, tokens):
    """Returns the rewards f32[B] of prompts with completions; both arguments may be traced by JAX.

    Args:
        reward_by_token: f32[X,V,V], see Bandit.
        tokens: i32[B,P+C]; the last token of a prompt says which prompt it is.
    """
    import jax.numpy as jnp

    prompt, first, second = (tokens[:, i] for i in range(PROMPT_LENGTH - 1, tokens.shape[1]))
    return jnp.asarray(reward_by_token)[prompt - FIRST_LETTER, first, second]


def make_bandit(seed: int = 0, num_prompts: int = 4, rewards: str = "normal") -> Bandit:
    """Returns a bandit whose prompts have one to three letters.

    Args:
        seed: seed of the prompts' letters and of the rewards.
        num_prompts: number of prompts, 1 to VOCAB_SIZE - FIRST_LETTER; each prompt ends with a different letter.
        rewards: distribution of the rewards, which are independent. "normal" is standard normal; "heavy" is Student's t
            with 3 degrees of freedom, scaled to variance 1; "binary" is 1 with probability 0.3, else 0. "offsets" is
            standard normal plus an offset of standard deviation 10 that all completions of a prompt share.

    Raises:
        InputError: the number of prompts or the distribution is not one of these.
    """
    letters = VOCAB_SIZE - FIRST_LETTER
    if not 1 <= num_prompts <= letters:
        raise InputError(f"num_prompts={num_prompts}: a bandit has 1 to {letters} prompts")
    if rewards not in REWARDS:
        raise InputError(f"rewards={rewards!r} is unknown; it can be {', '.join(REWARDS)}")
    rng = np.random.default_rng(seed)
    lengths = 1 + np.arange(num_prompts) % PROMPT_LENGTH
    mask = np.arange(PROMPT_LENGTH) >= PROMPT_LENGTH - lengths[:, None]
    prompts = _letters(rng, num_prompts)
    while _clash(prompts, mask):
        prompts = _letters(rng, num_prompts)
    shape = num_prompts, VOCAB_SIZE, VOCAB_SIZE
    if rewards == "heavy":
        table = rng.standard_t(3, shape) / np.sqrt(3)
    elif rewards == "binary":
        table = rng.random(shape) < 0.3
    else:
        table = rng.standard_normal(shape)
    if rewards == "offsets":
        table = table + 10 * rng.standard_normal((num_prompts, 1, 1))
    table = table.astype(np.float32)
    table[:, EOS_ID, :] = table[:, EOS_ID, :1]  # nothing follows EOS, so the second token must not matter
    return Bandit(np.where(mask, prompts, PAD_ID), mask, table)


def _letters(rng, num_prompts):
    """Returns random letters for all positions, i32[X,P], padding included; the last letter identifies the prompt."""
    prompts = rng.integers(FIRST_LETTER, VOCAB_SIZE, (num_prompts, PROMPT_LENGTH), dtype=np.int32)
    prompts[:, -1] = FIRST_LETTER + np.arange(num_prompts)
    return prompts


def _clash(prompts, mask):
    """Returns the indices of the first two prompts of which the second is the first plus one letter, or None."""
    words = [tuple(letters[real].tolist()) for letters, real in zip(prompts, mask)]
    pairs = ((i, j) for i, word in enumerate(words) for j, other in enumerate(words) if other[:-1] == word)
    return next(pairs, None)
