"""The lengths of prompts and completions in a batch, for the work and the traffic of a program: all full, or drawn.

Real lengths are far below what a config allows: InstructGPT's prompts of PPO have 166 tokens in the mean and 62 in the
median (Table 9). Drawn lengths are log-normal, always the same for the same means, and cut at the config's lengths. The
mean is that before the cut. The spread of prompts is that of the paper's mean and median; the paper does not publish the
spread of completions, for which the standard deviation of the logarithm is 1.
"""

import dataclasses
import math
import re

import numpy as np

from rlhf_jax.runtime.errors import InputError

_PROMPTS = math.sqrt(2 * math.log(166 / 62))  # standard deviation of the logarithm of a prompt's length
_COMPLETIONS = 1.0  # of a completion's


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Mean lengths in tokens, before they are cut at the config's lengths.

    Attributes:
      prompt: mean length of prompts.
      completion: mean length of completions, the end token included.
    """

    prompt: float
    completion: float

    def drawn(self, rows: int, prompt_length: int, completion_length: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the lengths of the prompts and completions of a batch, i64[B] each.

        Args:
          rows: B.
          prompt_length: the longest prompt.
          completion_length: the longest completion.
        """
        rng = np.random.default_rng(0)

        def draw(mean, spread, most):
            lengths = rng.lognormal(math.log(mean) - spread**2 / 2, spread, rows)
            return np.clip(np.rint(lengths), 1, most).astype(np.int64)

        return draw(self.prompt, _PROMPTS, prompt_length), draw(self.completion, _COMPLETIONS, completion_length)


def parse(flag: str, text: str) -> Lengths:
    """Returns the lengths of a text such as prompt:166,completion:130.

    Args:
      flag: the flag whose value the text is, for the error message.
      text: the text.

    Raises:
      InputError: the text has another form, or a mean below 1.
    """
    means = dict(re.findall(r"(prompt|completion):(\d+(?:\.\d+)?)(?:,|$)", text))
    if len(means) != 2 or len(text.split(",")) != 2 or min(map(float, means.values())) < 1:
        raise InputError(f"{flag}='{text}' must be two means of at least 1 token, as in prompt:166,completion:130")
    return Lengths(**{name: float(mean) for name, mean in means.items()})


def full(rows: int, prompt_length: int, completion_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns lengths as `Lengths.drawn` does, of which each is the longest."""
    return np.full(rows, prompt_length), np.full(rows, completion_length)
