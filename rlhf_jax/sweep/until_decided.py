"""Runs the arms that the open claims of a sweep need, look by look, until each claim is decided or has had its last look.

The first look takes all settings, because figures and tables show them. A later look takes the settings that an open claim
reads, for the seeds that this look adds: of a tuned field, the value that was chosen. A look is taken once: what it saw stands in
the sweep's looks.json, and a start after an interruption goes on with the arms that the next look lacks.
"""

import pathlib
from collections.abc import Callable

from rlhf_jax.report.sweep_report import Sweep
from rlhf_jax.report.verdicts import UNDECIDED, judge_all, looks
from rlhf_jax.runtime import hosts
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.sweep.arms import Arm, Experiment


def check(experiment: Experiment, path: pathlib.Path) -> None:
    """Raises InputError for an experiment without claims or design, or of another design than the looks that were taken."""
    file, design = experiment.path.partition(":")[0], experiment.declared.design
    if design is None or not experiment.declared.claims:
        raise InputError(
            f"--until-decided needs claims and their looks: give {file} CLAIMS, DESIGN = spec.Design() and "
            'h.sweep("seed", DESIGN.seeds)'
        )
    if looks.other_design(path, design):
        raise InputError(
            f"{path / looks.FILE} has looks of another DESIGN than {file}: a look is not taken twice, so put the DESIGN back or "
            "give another --workdir"
        )


def run(
    experiment: Experiment, path: pathlib.Path, run_arms: Callable[[list[Arm], bool], dict | None], retry: bool
) -> dict:
    """Runs arms until no claim is open.

    Args:
      experiment: the experiment; path/sweep.json has its arms.
      path: folder of the sweep.
      run_arms: runs these arms, and failed ones among them only if the flag is set; returns what went wrong, if anything.
      retry: whether to run failed arms again.

    Returns:
      What `run_arms` returned last: a loop in which something goes wrong ends.
    """
    before = None
    while True:
        left = hosts.on_first(to_run, path)
        arms = [arm for arm in experiment.arms if arm.number in left]
        if not left or left == before:
            if left:
                waits = (
                    "its arms have failed, or other processes are at work on them; correct what failed and add --retry"
                )
                hosts.on_first(lambda: print(f"the next look is not taken: {len(left)} of {waits}", flush=True))
            return {}
        if wrong := run_arms(arms, retry):
            return wrong
        before, retry = left, False


def first_look(experiment: Experiment) -> list[int]:
    """Returns the numbers of the arms of the first look."""
    seeds = sorted({arm.config.seed for arm in experiment.arms})[: experiment.declared.design.looks[0]]
    return [arm.number for arm in experiment.arms if arm.config.seed in seeds]


def to_run(path: pathlib.Path, take: bool = True) -> list[int]:
    """Takes the looks whose arms have ended, says which claims are open, and returns the arms of their next look.

    Args:
      path: folder of the sweep.
      take: whether the looks are written to looks.json, and the claims are named.

    Returns:
      The numbers of the arms that are not there yet; none if no claim is open.
    """
    sweep = Sweep(path)
    if take:
        looks.record(sweep)
    verdicts = judge_all(sweep)
    wanted = [
        arm
        for claim, verdict in zip(sweep.declared.claims, verdicts)
        if verdict.ahead
        for arm in looks.needed(sweep, claim, verdict.ahead)
    ]
    if wanted:  # the settings of the first look that no claim reads
        wanted += [arm for arm in sweep.arms if arm.seed in sweep.every_seed[: sweep.declared.design.looks[0]]]
    numbers = sorted({arm.number for arm in wanted if not arm.settled})
    if take:
        _say(sweep, verdicts, numbers)
    return numbers


def _say(sweep: Sweep, verdicts: list, numbers: list[int]) -> None:
    """Prints the claims that are decided and those that are open, and how many arms the next look needs."""
    ahead = sorted({verdict.ahead for verdict in verdicts if verdict.ahead})
    open_ = sum(verdict.ahead is not None for verdict in verdicts)
    print(f"\n{len(verdicts) - open_} of {len(verdicts)} claims have their verdict:", flush=True)
    for claim, verdict in zip(sweep.declared.claims, verdicts):
        looked = f" at {verdict.looks[-1]} seeds" if verdict.looks else ""
        word = (
            f"open, {UNDECIDED}{looked}"
            if verdict.ahead and looked
            else "open"
            if verdict.ahead
            else verdict.verdict + looked
        )
        print(f"  {word}: {claim.text}", flush=True)
    if numbers:
        print(f"the next look is at {' or '.join(map(str, ahead))} seeds: {len(numbers)} arms to run", flush=True)
