"""Named warnings about a run while it trains: a table of rules, which read the rows of metrics.jsonl.

docs/watching.md has the rules with their numbers, what to do about each, and how often each fired on healthy runs.
"""

import dataclasses

from rlhf_jax.watching import signs
from rlhf_jax.watching.windows import Rows, metric, quotient


@dataclasses.dataclass(frozen=True)
class RunWarning:
    """What one rule has seen.

    Attributes:
      step: the step of the newest row.
      name: name of the rule.
      metric: the metric behind it, by its name in metrics.jsonl.
      value: what was compared with the rule's bound.
      message: a sentence that says what was seen, with its numbers.
    """

    step: int
    name: str
    metric: str
    value: float
    message: str


@dataclasses.dataclass(frozen=True)
class Rule:
    """A named rule.

    Attributes:
      name: its name.
      metrics: the metrics that it reads; a warning names the first, unless there was a choice.
      bound: the number that decides; `look` says how.
      look: looks for the sign in the rows so far.
      sentence: what is said when it is seen, with {bound} and the names of `Seen.numbers` as places.
    """

    name: str
    metrics: tuple[str, ...]
    bound: float
    look: signs.Look
    sentence: str

    def warning(self, rows: Rows) -> RunWarning | None:
        """Returns the warning of the rows so far; None while all is well."""
        seen = self.look(self.bound, rows)
        if seen is None:
            return None
        numbers = {name: x if isinstance(x, str) else f"{x:.3g}" for name, x in seen.numbers.items()}
        said = self.sentence.format(bound=f"{self.bound:g}", **numbers)
        step = rows[-1]["step"]
        message = f"step {step}: {said} ({self.name} in docs/watching.md)"
        return RunWarning(step, self.name, seen.metric or self.metrics[0], seen.value, message)


def new_warnings(rows: Rows, fired: set[str]) -> list[RunWarning]:
    """Returns the warnings that the newest row gives rise to; each rule warns once in a stage.

    A call takes about 0.1 ms, however many rows there are.

    Args:
      rows: all rows of the stage so far, in the order of the steps, as metrics.read_metrics returns them. Each has
        "step"; any metric may be missing.
      fired: names of the rules that have warned before; the caller adds the names of what is returned.
    """
    warnings = [rule.warning(rows) for rule in WARNINGS if rule.name not in fired] if rows else []
    return [warning for warning in warnings if warning]


LENGTH, SCORE, ENTROPY = "objective/completion_length", "objective/scores", "objective/entropy"
CORRELATION = "watch/length_score_correlation"
PTX_NORM, PPO_NORM = "ppo/ptx/grad_norm", "ppo/ptx/ppo_grad_norm"

WARNINGS = (
    Rule(
        "kl_up_reward_down",
        ("valid/gold", "objective/gold", "valid/scores/NAME", "valid/score", "valid/kl", "objective/kl"),
        0.2,
        signs.reward_falls,
        "{metric} fell from {then} to {now} while the KL to the reference rose from {kl_then} to {kl} nats: the policy may "
        "be exploiting its reward",
    ),
    Rule(
        "clip_fraction",
        ("ppo/policy/clipfrac",),
        0.2,
        signs.above(metric("ppo/policy/clipfrac")),
        "PPO clipped a share of {now} of the tokens in the last iterations, above {bound}: its updates are too large",
    ),
    Rule(
        "length_with_reward",
        (LENGTH, SCORE, CORRELATION),
        1.5,
        signs.longer_with_reward(metric(LENGTH), metric(SCORE), metric(CORRELATION)),
        "completions grew from {then} to {now} tokens while the score rose from {score_then} to {score}: the reward may "
        "prefer long completions",
    ),
    Rule(
        "eos_lost",
        ("objective/eos",),
        0.5,
        signs.fallen(metric("objective/eos")),
        "a share of {now} of the completions ends with EOS, where {then} did at first: the policy forgets to stop",
    ),
    Rule(
        "explained_variance",
        ("ppo/val/explained_variance",),
        0.0,
        signs.below(metric("ppo/val/explained_variance"), from_row=10),
        "the values explain {now} of the variance of the returns, and a constant would explain 0: the advantages are noise",
    ),
    Rule(
        "ptx_dwarfs_ppo",
        (PTX_NORM, PPO_NORM),
        10.0,
        signs.above(quotient(PTX_NORM, PPO_NORM)),
        "the pretraining gradient is {now} times as large as PPO's, above {bound}: the reward hardly moves the policy",
    ),
    Rule(
        "entropy_collapse",
        (ENTROPY, LENGTH),
        0.25,
        signs.fallen(quotient(ENTROPY, LENGTH)),
        "the entropy fell from {then} to {now} nats per token: the policy hardly explores any more",
    ),
    Rule(
        "repeated_completion",
        ("watch/most_common",),
        0.5,
        signs.risen(metric("watch/most_common"), by=0.3),
        "a share of {now} of the completions of a batch are one and the same, where {then} were at first",
    ),
    Rule(
        "ratio_off_one",
        ("ppo/policy/first_approxkl",),
        1e-3,
        signs.above(metric("ppo/policy/first_approxkl")),
        "the approximate KL of the first minibatch is {now}, where 0 is right: the policy that is updated is not the one "
        "that was scored",
    ),
    Rule(
        "sampler_off",
        ("objective/logprob_gap_max",),
        1.0,
        signs.above(metric("objective/logprob_gap_max")),
        "the log-probabilities of the sampler and of the policy differ by up to {now} nats, above {bound}: they are not "
        "the same model",
    ),
    Rule(
        "overfitting",
        ("valid/loss", "loss"),
        1.02,
        signs.overfits(metric("valid/loss"), metric("loss")),
        "the held-out loss rose from {then} to {now} over three validations while the training loss fell from {loss_then} "
        "to {loss}",
    ),
)
