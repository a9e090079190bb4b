"""How far a sweep is: its arms by how they ended, and the stages of those that are at work."""

import dataclasses

from rlhf_jax.report.record import Record
from rlhf_jax.report.run_progress import progress_of
from rlhf_jax.report.sweep_report import MISSING, ArmRecord, Sweep
from rlhf_jax.report.verdicts import judge_all
from rlhf_jax.runtime.errors import InputError

_MOST_RUNNING = 4  # running arms of which a line says how far they are


@dataclasses.dataclass(frozen=True)
class SweepProgress:
    """How far a sweep is.

    Attributes:
      finished: whether every arm is done or has failed, and no claim waits for another look.
      at_work: whether a process runs an arm.
      line: the progress as one line.
    """

    finished: bool
    at_work: bool
    line: str

    @classmethod
    def of(cls, sweep: Sweep) -> "SweepProgress":
        """Returns how far a sweep is, by its files and the locks of its arms."""
        running = [arm for arm in sweep.arms if arm.status == "running"]
        line = state(sweep) + "".join(f"; {arm.name}: {how_far(arm) or 'running'}" for arm in running[:_MOST_RUNNING])
        finished = all(arm.ended for arm in sweep.arms) and not any(found.ahead for found in judge_all(sweep))
        return cls(finished, bool(running), line)


def state(sweep: Sweep) -> str:
    """Returns the number of arms by how they ended, in words."""
    counts = {}
    for arm in sweep.arms:
        counts[arm.status] = counts.get(arm.status, 0) + 1
    parts = ", ".join(f"{count} {status}" for status, count in counts.items())
    seeds = {sum(arm.setting == setting for arm in sweep.arms) for setting in sweep.settings}
    several = f"{min(seeds)} to {max(seeds)}" if len(seeds) > 1 and sweep.declared.design else f"{len(sweep.seeds)}"
    return f"{len(sweep.arms)} arms ({parts}): {len(sweep.settings)} settings x {several} seeds"


def how_far(arm: ArmRecord) -> str:
    """Returns how far an unfinished arm is, in words; "" if it has not begun or has ended, or if its files do not tell."""
    if arm.ended or arm.status == MISSING:
        return ""
    try:
        return progress_of(Record.load(arm.path)).line
    except InputError:
        return ""


def unfinished_sections(sweep: Sweep, verdicts) -> list[str]:
    """Returns a sentence on a sweep that a start would go on with; none if every arm has ended and no claim is open."""
    left = sum(not arm.ended for arm in sweep.arms)
    ahead = [found.ahead for found in verdicts if found.ahead]
    if not left and ahead:
        seeds = " or ".join(map(str, sorted(set(ahead))))
        return [f"**Unfinished**: {len(ahead)} claims wait for their look at {seeds} seeds; see `--until-decided`."]
    if not left:
        return []
    return [
        f"**Unfinished**: {left} of {len(sweep.arms)} arms have not ended. Figures, tables and verdicts are of what there "
        "was when this was written."
    ]
