"""A bandit whose KL-regularised optimum is known exactly: does PPO reach it?

A few prompts, completions of at most two tokens, a fixed reward for every completion. No prompt and
a first token together are another prompt, so a causal model can have any policy. Of

    objective(pi) = E_pi[r] - kl_coef KL(pi || pi_ref)

the optimum is pi*(y|x) = pi_ref(y|x) exp(r(x, y) / kl_coef) / Z(x), worth kl_coef log Z(x).
All completions can be enumerated, so that a policy's expected reward, KL and objective are sums and
not estimates.

A completion is at most `COMPLETION_LENGTH` = 2 tokens over the whole vocabulary: EOS at once; a
token, then EOS; or two tokens, the second not EOS, where the length ends it. All are complete, so
switch the missing-EOS rule off. If a sampler never draws the padding id, those have probability 0.

Tables have shape [X, Y]: X prompts, Y completions in the order of `Bandit.completions`. Means over
prompts are uniform.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from rlhf_jax.runtime.errors import InputError

PAD_ID = 0
EOS_ID = 1
FIRST_LETTER = 2  # ids from here on are the letters that prompts are made of
VOCAB_SIZE = 8
PROMPT_LENGTH = 3
COMPLETION_LENGTH = 2
REWARDS = ("normal", "heavy", "binary", "offsets")  # see make_bandit


class Outcome(NamedTuple):
    """What a policy is worth, exactly, averaged over prompts."""

    reward: float  # E_pi[r]
    kl: float  # KL(pi || pi_ref), nats per completion
    objective: float  # reward - kl_coef * kl


class Enumeration(NamedTuple):
    """Every completion of every prompt; N = X * Y rows, prompt by prompt."""

    tokens: np.ndarray  # i32[N,P+C]
    prompt_mask: np.ndarray  # bool[N,P]
    completion_mask: np.ndarray  # bool[N,C], True up to and including EOS


@dataclasses.dataclass(frozen=True)
class Bandit:
    """Prompts and a reward table. Made by `make_bandit`.

    Raises:
        ValueError: a prompt and a first token are another prompt. What follows the two has to be the
            same then, and no causal model has the optimum.
    """

    prompts: np.ndarray  # i32[X,P], left-padded; prompt x ends with FIRST_LETTER + x
    prompt_mask: np.ndarray  # bool[X,P]
    reward_by_token: np.ndarray  # f32[X,V,V], by first and second token

    def __post_init__(self):
        if clash := _clash(self.prompts, self.prompt_mask):
            raise ValueError(f"prompt {clash[0]} and a first token are prompt {clash[1]}")

    @property
    def completions(self) -> np.ndarray:
        """i32[Y,C]: all completions, EOS at once first."""
        return np.array(
            [(EOS_ID, PAD_ID)]
            + [(first, second) for first in range(VOCAB_SIZE) if first != EOS_ID for second in range(VOCAB_SIZE)],
            np.int32,
        )

    @property
    def reward_table(self) -> np.ndarray:
        """f32[X,Y]."""
        first, second = self.completions.T
        return self.reward_by_token[:, first, second]

    def score(self, tokens):
        """Rewards f32[B] of tokens i32[B,P+C]; see `look_up`."""
        return look_up(self.reward_by_token, tokens)

    def enumerate(self) -> Enumeration:
        """All completions of all prompts as rows that a model can read."""
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
        """Log-probability of every completion, f64[X,Y], by teacher forcing.

        Args:
            completion_logprobs: called with the fields of `enumerate`, returns f32[N,C], the
                log-probability of each completion token given what precedes it.

        Raises:
            ValueError: the probabilities of a prompt's completions do not sum to 1, within 1e-3.
        """
        rows = self.enumerate()
        logprobs = np.asarray(completion_logprobs(*rows), np.float64)
        table = np.where(rows.completion_mask, logprobs, 0).sum(1).reshape(len(self.prompts), -1)
        totals = np.exp(table).sum(1)
        if not np.allclose(totals, 1, atol=1e-3):
            raise ValueError(f"completion probabilities should sum to 1, got {totals}")
        return table

    def evaluate(self, log_policy, log_ref, kl_coef: float) -> Outcome:
        """Exact worth of a policy, both tables f64[X,Y] of log-probabilities."""
        probabilities = np.exp(log_policy)
        with np.errstate(invalid="ignore"):
            log_ratio = np.where(probabilities > 0, np.subtract(log_policy, log_ref), 0)
        reward = float((probabilities * self.reward_table).sum(1).mean())
        kl = float((probabilities * log_ratio).sum(1).mean())
        return Outcome(reward, kl, reward - kl_coef * kl)

    def log_optimum(self, log_ref, kl_coef: float) -> np.ndarray:
        """log pi*, f64[X,Y], for kl_coef > 0."""
        logits = log_ref + self.reward_table.astype(np.float64) / kl_coef
        return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)

    def optimum(self, log_ref, kl_coef: float) -> Outcome:
        """Exact worth of pi*; its objective is kl_coef * log Z, averaged over prompts."""
        return self.evaluate(self.log_optimum(log_ref, kl_coef), log_ref, kl_coef)


def look_up(reward_by_token, tokens):
    """Rewards f32[B] of tokens i32[B,P+C] in a bandit's table, which may be traced as they may."""
    import jax.numpy as jnp

    prompt, first, second = (tokens[:, i] for i in range(PROMPT_LENGTH - 1, tokens.shape[1]))
    return jnp.asarray(reward_by_token)[prompt - FIRST_LETTER, first, second]


def make_bandit(seed: int = 0, num_prompts: int = 4, rewards: str = "normal") -> Bandit:
    """A bandit of prompts of one to three letters.

    Args:
        seed: of the prompts' letters and the rewards.
        num_prompts: 1 to VOCAB_SIZE - FIRST_LETTER; each ends with a letter of its own.
        rewards: of a completion, independent: "normal" is standard normal; "heavy" is Student's t with
            3 degrees of freedom, of variance 1; "binary" is 1 with probability 0.3, else 0; "offsets"
            is standard normal and, the same for all completions of a prompt, 10 times another.

    Raises:
        InputError: another number of prompts or kind of rewards.
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
    table[:, EOS_ID, :] = table[:, EOS_ID, :1]  # nothing follows EOS
    return Bandit(np.where(mask, prompts, PAD_ID), mask, table)


def _letters(rng, num_prompts):
    """Of all places i32[X,P], padding too; the last letter says which prompt it is."""
    prompts = rng.integers(FIRST_LETTER, VOCAB_SIZE, (num_prompts, PROMPT_LENGTH), dtype=np.int32)
    prompts[:, -1] = FIRST_LETTER + np.arange(num_prompts)
    return prompts


def _clash(prompts, mask):
    """The first (shorter, longer) where the longer prompt is the shorter and one letter more, or None."""
    words = [tuple(letters[real].tolist()) for letters, real in zip(prompts, mask)]
    pairs = ((i, j) for i, word in enumerate(words) for j, other in enumerate(words) if other[:-1] == word)
    return next(pairs, None)
