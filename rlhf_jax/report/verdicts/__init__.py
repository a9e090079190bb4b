"""Verdicts: whether a sweep agrees with what a paper says, by one rule of decision for every claim.

A rule (see spec) becomes one number for each seed, or several if it says several things. A number is positive if the
seed agrees with the claim. Arms of one seed share data and initial weights, so differences are taken within a seed
first.

The 95 % Student t interval of the mean over seeds decides:

- The claim holds if the intervals of all its numbers are entirely above 0.
- It does not hold if the interval of one number is entirely below 0. With m numbers, this interval has the level
  1 - 5 %/m. So if all numbers are truly 0, one of them is that low in 2.5 % of cases, and not in m times that.
- Otherwise it is undecided. It is also undecided with fewer than two seeds, and if a number is the same in all seeds:
  such a number does not show how much seeds differ.

Claims are judged one by one, without correction for their number. The data that judge a claim choose nothing in it.
docs/sweeps.md says how often each rule is wrong if nothing is there.
"""

import dataclasses
import math

from rlhf_jax.report import spec
from rlhf_jax.report.sweep_report import Sweep
from rlhf_jax.report.verdicts.contrast import HOLDS, NOT, UNDECIDED, Contrast
from rlhf_jax.report.verdicts.rules import contrasts_of

WITHDRAWN = "withdrawn"  # verdict on a published claim whose rule has changed, and which no run has judged anew
# Numbers of seeds at each look -> how often, in %, a claim of which nothing is true holds at one of the looks. Looks
# end with the first that decides. The first rate is that of one t test. The second is that of a Peak of which an end is
# as good as the best inner value.
ERRORS_OF_LOOKS = {(3, 4): (4.0, 6.5), (3, 5): (4.3, 7.3), (3, 4, 5): (5.1, 9.4)}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The verdict on a rule.

    Attributes:
      verdict: HOLDS, NOT or UNDECIDED.
      sentence: the numbers behind it, in one sentence.
      tests: the tests behind it.
      looks: the number of seeds at each look, if there were several.
    """

    verdict: str
    sentence: str
    tests: tuple[Contrast, ...]
    looks: tuple[int, ...] = ()

    def to_json(self) -> dict:
        """Returns the verdict as plain values; a number that is not finite becomes None."""

        def finite(value: float) -> float | None:
            return value if math.isfinite(value) else None

        return {
            "verdict": self.verdict,
            "looks": list(self.looks),
            "sentence": self.sentence,
            "tests": [
                {
                    "what": test.what,
                    "verdict": test.verdict(),
                    "by_seed": test.by_seed,
                    "seeds": len(test.by_seed),
                    "df": max(0, len(test.by_seed) - 1),
                    "t": finite(test.t),
                    "threshold": test.threshold,
                    "margin": test.margin,
                    **({} if test.estimate is None else test.estimate.to_json()),
                }
                for test in self.tests
            ],
        }


def judge(sweep: Sweep, rule) -> Verdict:
    """Returns the verdict on the rule of a claim by the numbers of a sweep; missing numbers make it undecided."""
    parts = contrasts_of(sweep, rule)
    tests = [test for part in parts for test in part]
    said = ["; ".join(test.sentence() for test in part) for part in parts]
    sentence = said[0] if len(said) == 1 else "; ".join(f"({n}) {part}" for n, part in enumerate(said, 1))
    lacking = [seed for seed in sweep.seeds if any(seed not in test.by_seed for test in tests)]
    if lacking and len(sweep.seeds) > 1:
        sentence += f"; without seed {', '.join(map(str, lacking))}, which lacks a number or made the choice"
    looks = sweep.declared.looks
    if len(looks) > 1:
        sentence += f"; {_of_looks(looks, rule)}"
    return Verdict(decide(tests), sentence, tuple(tests), looks)


def decide(tests: list[Contrast]) -> str:
    """Returns the verdict on a claim that consists of all these tests."""
    found = [test.verdict(len(tests)) for test in tests]
    return NOT if NOT in found else UNDECIDED if UNDECIDED in found or not found else HOLDS


def _of_looks(looks, rule) -> str:
    """Returns the words on a verdict after several looks, and on how often such a verdict is wrong."""
    plain, peak = ERRORS_OF_LOOKS.get(looks, (None, None))
    error = peak if isinstance(rule, spec.Peak) else plain
    rate = (
        f"wrong on a side in up to {error} % of cases, not 2.5 %"
        if error
        else "at a rate of error that was not measured"
    )
    return f"look {len(looks)} of {len(looks)}: judged with {', then '.join(map(str, looks))} seeds, {rate}"
