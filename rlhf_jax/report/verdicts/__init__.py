"""Verdicts: whether a sweep agrees with what a paper says, by one rule of decision for every claim.

A rule (see spec) becomes one number for each seed, or several if it says several things. A number is positive if the
seed agrees with the claim. Arms of one seed share data and initial weights, so differences are taken within a seed
first.

A Student t interval of the mean over seeds decides. It is of 95 % if a claim is judged once. If the sweep has a design of
several looks, the intervals of all looks together contain the truth in 95 % of cases (see looks.py):

- The claim holds if the intervals of all its numbers are entirely above 0.
- It does not hold if the interval of one number is entirely below 0.
- It is negligible if the interval of one number is within what the claim calls the smallest difference that matters.
- Otherwise it is undecided. It is also undecided with fewer than two seeds, and if a number is the same in all seeds:
  such a number does not show how much seeds differ.

With m numbers, the intervals against the claim have the level 1 - 5 %/m. So if all numbers are truly 0, one of them is that
low in 2.5 % of cases, and not in m times that.

Each claim is judged by itself, and then again with Holm's correction (1979, Scand. J. Stat. 6, 65-70) for the number of claims
of its family. The data that judge a claim choose nothing in it. docs/sweeps.md says how often each rule is wrong if nothing is
there.
"""

import dataclasses
import math

from rlhf_jax.report import spec
from rlhf_jax.report.sweep_report import Sweep
from rlhf_jax.report.verdicts import looks as looks_lib
from rlhf_jax.report.verdicts.contrast import ALPHA, HOLDS, NEGLIGIBLE, NOT, POWER, UNDECIDED, Contrast, seeds_to_decide
from rlhf_jax.report.verdicts.looks import Look
from rlhf_jax.statistics.sequential import MOST_SEEDS

WITHDRAWN = "withdrawn"  # verdict on a published claim whose rule has changed, and which no run has judged anew
__all__ = ["HOLDS", "NEGLIGIBLE", "NOT", "UNDECIDED", "WITHDRAWN", "Verdict", "judge", "judge_all"]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The verdict on a claim.

    Attributes:
      verdict: HOLDS, NOT, NEGLIGIBLE or UNDECIDED.
      corrected: the verdict with Holm's correction for the claims of the family.
      sentence: the numbers behind it, in one sentence.
      tests: the tests behind it, of the last look.
      looks: the number of seeds of each look that was taken.
      level: 1 - the confidence of the intervals of the last look.
      ahead: the number of seeds of the next look, or None.
      seeds_to_decide: how many seeds would decide an undecided claim; nan if unknown, inf for very many.
    """

    verdict: str
    corrected: str
    sentence: str
    tests: tuple[Contrast, ...]
    looks: tuple[int, ...] = ()
    level: float = ALPHA
    ahead: int | None = None
    seeds_to_decide: float = math.nan

    def to_json(self) -> dict:
        """Returns the verdict as plain values; a number that is not finite becomes None."""

        def finite(value: float) -> float | None:
            return value if math.isfinite(value) else None

        return {
            "verdict": self.verdict,
            "corrected": self.corrected,
            "looks": list(self.looks),
            "level": self.level,
            "ahead": self.ahead,
            "seeds_to_decide": finite(self.seeds_to_decide),
            "sentence": self.sentence,
            "tests": [
                {
                    "what": test.what,
                    "effect": test.effect(self.level),
                    "verdict": test.verdict(self.level),
                    "by_seed": test.by_seed,
                    "seeds": len(test.by_seed),
                    "df": max(0, len(test.by_seed) - 1),
                    "t": finite(test.t),
                    "threshold": test.threshold,
                    "margin": test.margin,
                    "matters": test.matters,
                    "unit": test.unit,
                    **(estimate.to_json() if (estimate := test.interval(self.level)) else {}),
                }
                for test in self.tests
            ],
        }


def judge(sweep: Sweep, rule, matters=None) -> Verdict:
    """Returns the verdict on one rule by the numbers of a sweep; missing numbers make it undecided."""
    return judge_all(sweep, [spec.Claim("", "", rule, matters=matters)])[0]


def judge_all(sweep: Sweep, claims=None) -> list[Verdict]:
    """Returns the verdicts on claims, by default those that the sweep declares."""
    claims = sweep.declared.claims if claims is None else claims
    taken = [looks_lib.taken(sweep, claim) for claim in claims]
    corrected = holm(sweep, [claim.family for claim in claims], taken)
    return [_verdict(sweep, claim, looks, word) for claim, looks, word in zip(claims, taken, corrected)]


def holm(sweep: Sweep, families: list[str], taken: list[list[Look]]) -> list[str]:
    """Returns the verdicts on claims with Holm's correction among the claims of each family.

    Of m claims, those that are decided with an error of 5 %/m are decided. If there are r of them, the others are judged with
    an error of 5 %/(m - r), and so on, until none is decided any more.

    Args:
      sweep: the sweep.
      families: the family of each claim.
      taken: the looks at each claim.
    """
    found = [UNDECIDED] * len(families)
    for family in dict.fromkeys(families):
        left = [place for place, name in enumerate(families) if name == family]
        still = []
        while len(still) != len(left):
            left, alpha = still or left, ALPHA / len(still or left)
            for place in left:
                # A wider interval that no longer lies within what matters may lie above 0: that is not the plain verdict.
                verdict = looks_lib.decided(sweep, taken[place], alpha)
                found[place] = verdict if verdict == looks_lib.decided(sweep, taken[place]) else UNDECIDED
            still = [place for place in left if found[place] == UNDECIDED]
            if not still:
                break
    return found


def _verdict(sweep: Sweep, claim: spec.Claim, looks: list[Look], corrected: str) -> Verdict:
    """Returns the verdict on a claim from the looks at it."""
    ahead = looks_lib.ahead(sweep, looks)
    if not looks:
        sentence = f"not judged yet: the first look is at {ahead} seeds"
        return Verdict(UNDECIDED, UNDECIDED, sentence, (), ahead=ahead)
    verdict, level, last = looks_lib.decided(sweep, looks), looks_lib.level(sweep, len(looks) - 1), looks[-1]
    said = ["; ".join(test.sentence(level) for test in part) for part in last.parts]
    sentence = said[0] if len(said) == 1 else "; ".join(f"({n}) {part}" for n, part in enumerate(said, 1))
    lacking = [seed for seed in sweep.every_seed[: last.seeds] if any(seed not in test.by_seed for test in last.tests)]
    if lacking and last.seeds > 1:
        sentence += f"; without seed {', '.join(map(str, lacking))}, which lacks a number or made the choice"
    design = sweep.declared.design
    if design and len(design.looks) > 1:
        sentence += f"; look {len(looks)} of {len(design.looks)}"
    wanted = math.nan
    if ahead:
        sentence += f", the next at {ahead} seeds"
    elif verdict == UNDECIDED:
        wanted = seeds_to_decide(last.tests)
    if not math.isnan(wanted):
        count = f"more than {MOST_SEEDS:,}" if math.isinf(wanted) else f"{wanted}"
        sentence += (
            f"; {count} seeds, judged once, would decide it with a power of {100 * POWER:.0f} % if nothing else changed"
        )
    return Verdict(
        verdict, corrected, sentence, tuple(last.tests), tuple(look.seeds for look in looks), level, ahead, wanted
    )
