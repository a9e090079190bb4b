"""The looks at a claim: which of them have been taken, at what seeds, and what they decide.

A look is taken when all arms that the claim needs are done or have diverged, for the first so many seeds. It judges by
these seeds alone, and the first look that decides is the last one. So the same files always give the same looks, and
seeds that are run later for another claim change nothing.

    DIR/looks.json   the numbers of the looks that `rlhf_jax.sweep --until-decided` has taken

A look that stands there is not taken again, even if the files of its arms have changed, as when a failed arm was run anew.
"""

import json
import pathlib
from typing import NamedTuple

from rlhf_jax.report import spec
from rlhf_jax.report.form import ANYTHING, NUMBER, TEXT, WHOLE, Maybe, Object, check, each
from rlhf_jax.report.sweep_report import ArmRecord, Sweep
from rlhf_jax.report.verdicts import measured
from rlhf_jax.report.verdicts.contrast import ALPHA, HOLDS, NEGLIGIBLE, NOT, UNDECIDED, Contrast
from rlhf_jax.report.verdicts.rules import contrasts_of
from rlhf_jax.runtime.files import read_if_there, write_json
from rlhf_jax.statistics.sequential import levels

FILE = "looks.json"
_TEST = Object(
    dict.fromkeys((name for name in Contrast._fields if name != "candidates"), ANYTHING)
    | {"what": TEXT, "by_seed": each(NUMBER), "unit": TEXT, "margin": Maybe(NUMBER), "matters": Maybe(NUMBER)}
    | dict.fromkeys(("threshold", "zero", "scale", "share"), NUMBER),
    {"candidates": [each(NUMBER)]},  # looks of earlier versions have none
)
_FORM = Object({"claims": each([Object({"seeds": WHOLE, "parts": [[_TEST]]})])})


class Look(NamedTuple):
    """One look at a claim.

    Attributes:
      seeds: the number of seeds of the look.
      parts: the tests of each simple rule of the claim.
    """

    seeds: int
    parts: list[list[Contrast]]

    @property
    def tests(self) -> list[Contrast]:
        """The tests of the claim."""
        return [test for part in self.parts for test in part]


def taken(sweep: Sweep, claim: spec.Claim) -> list[Look]:
    """Returns the looks at a claim that have been taken, up to the first that decides."""
    design = sweep.declared.design
    if design is None:
        return [Look(len(sweep.seeds), _parts(sweep, claim))]
    recorded, found = _recorded(sweep, claim), []
    for number, seeds in enumerate(design.looks):
        if number < len(recorded):
            found.append(recorded[number])
        elif not all(arm.settled for arm in needed(sweep, claim, seeds)):
            break
        else:
            found.append(Look(seeds, _parts(sweep.first(seeds), claim)))
        if decided(sweep, found) != UNDECIDED:
            break
    return found


def decided(sweep: Sweep, looks: list[Look], alpha: float = ALPHA) -> str:
    """Returns what the first of these looks that decides says, if all looks together are to err in `alpha` of cases."""
    for number in range(len(looks)):
        found = verdicts_of(sweep, looks, number, alpha)
        for verdict in (NOT, NEGLIGIBLE):
            if verdict in found:
                return verdict
        if found and all(verdict == HOLDS for verdict in found):
            return HOLDS
    return UNDECIDED


def verdicts_of(sweep: Sweep, looks: list[Look], number: int, alpha: float = ALPHA) -> list[str]:
    """Returns the verdict of each test of a look, by its number from 0; one of several suffices for NOT and NEGLIGIBLE."""
    tests = looks[number].tests
    corrected = level(sweep, number, alpha / max(1, len(tests)))
    return [test.verdict(level(sweep, number, alpha), corrected) for test in tests]


def level(sweep: Sweep, number: int, alpha: float = ALPHA) -> float:
    """Returns the level of the intervals of a look, by its number from 0."""
    design = sweep.declared.design
    return alpha if design is None else levels(design.looks, design.spending, alpha)[number]


def ahead(sweep: Sweep, looks: list[Look]) -> int | None:
    """Returns the number of seeds of the next look at a claim; None if it is decided or there is no further look."""
    design = sweep.declared.design
    if design is None or len(looks) == len(design.looks) or decided(sweep, looks) != UNDECIDED:
        return None
    return design.looks[len(looks)]


def needed(sweep: Sweep, claim: spec.Claim, seeds: int) -> list[ArmRecord]:
    """Returns the arms that a claim reads at a look with so many seeds.

    A seed of the first look has all values of a tuned field, and one of these seeds chooses. Later seeds judge its choice.
    """
    first = sweep.declared.design.looks[0]
    early, late = (
        dict.fromkeys(setting for rule in spec.simple(claim.rule) for setting in _settings(sweep, rule, later))
        for later in (False, True)
    )
    arms = [
        sweep.arm(setting, seed)
        for place, seed in enumerate(sweep.every_seed[:seeds])
        for setting in (early if place < first else late)
    ]
    return [arm for arm in arms if arm is not None]


def _settings(sweep: Sweep, rule, later: bool) -> list:
    """Returns the settings whose numbers a simple rule reads, of the seeds of the first look or of later ones."""
    first, found = sweep.first(sweep.declared.design.looks[0]), []
    for part in spec.compared(rule) or [rule]:
        tuned = getattr(part, "tuned", None)
        settings = sweep.select(part.where, tuned or getattr(part, "axis", None))
        level, chooser = measured.chosen(first, part, rule.y) if tuned and later else (None, None)
        found += settings if chooser is None else measured.settings_at(sweep, settings, tuned, level)
    return found


def _parts(sweep: Sweep, claim: spec.Claim) -> list[list[Contrast]]:
    """Returns the tests of each simple rule of a claim, with the smallest differences that matter."""
    return [
        [test._replace(matters=matters) for test in tests]
        for tests, matters in zip(contrasts_of(sweep, claim.rule), claim.smallest())
    ]


def record(sweep: Sweep) -> None:
    """Writes the looks that have been taken at the claims of a sweep to its looks.json."""
    claims = {_name(claim): [_plain(look) for look in taken(sweep, claim)] for claim in sweep.declared.claims}
    write_json(sweep.path / FILE, {"design": spec.to_json(sweep.declared.design), "claims": claims})


def other_design(path: pathlib.Path, design: spec.Design | None) -> bool:
    """Whether the looks.json of a sweep is of another design."""
    return (read_if_there(path / FILE) or {}).get("design", spec.to_json(design)) != spec.to_json(design)


def _recorded(sweep: Sweep, claim: spec.Claim) -> list[Look]:
    """Returns the looks at a claim in looks.json; none if it was of another design, or if the claim had another rule."""
    if other_design(sweep.path, sweep.declared.design):
        return []
    claims = check(sweep.path / FILE, read_if_there(sweep.path / FILE) or {"claims": {}}, _FORM)["claims"]
    return [
        Look(
            look["seeds"],
            [
                [
                    Contrast(
                        **test
                        | {"by_seed": _by_seed(test["by_seed"])}
                        | {"candidates": tuple(map(_by_seed, test.get("candidates", ())))}
                    )
                    for test in part
                ]
                for part in look["parts"]
            ],
        )
        for look in claims.get(_name(claim), ())
    ]


def _by_seed(found: dict) -> dict[int, float]:
    """Returns numbers by seed as JSON has them."""
    return {int(seed): value for seed, value in found.items()}


def _plain(look: Look) -> dict:
    """Returns a look as plain values."""
    return {"seeds": look.seeds, "parts": [[test._asdict() for test in part] for part in look.parts]}


def _name(claim: spec.Claim) -> str:
    """Returns a text that tells a claim from those with another rule or other differences that matter."""
    return json.dumps([spec.to_json(claim.rule), claim.matters], sort_keys=True)
