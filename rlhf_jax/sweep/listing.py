"""Lists a sweep before and while it runs: its arms, their status, and the work that is left."""

import collections
import json
import pathlib
import socket

import rich.box
import rich.table
from rich.text import Text

from rlhf_jax.runtime import terminal, workdir
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import read_if_there
from rlhf_jax.sweep.arms import Arm
from rlhf_jax.sweep.store import held, identities


def show_arms(arms: list[Arm], path: pathlib.Path) -> None:
    """Prints a table of the arms: number, name, status and minutes spent."""
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD)
    for column, justify in {"arm": "right", "name": "left", "status": "left", "time": "right"}.items():
        table.add_column(column, justify=justify, overflow="fold")
    for arm in arms:
        record = record_of(arm, path)
        status = record.get("status", "–") + (f": {record['reason']}" if record.get("reason") else "")
        seconds = record.get("seconds")
        shown = (Text(terminal.visible(text)) for text in (arm.name, status))
        table.add_row(str(arm.number), *shown, "" if seconds is None else f"{seconds / 60:.1f} min")
    terminal.console(soft_wrap=True).print(table)


def show_work(arms: list[Arm], path: pathlib.Path, stages: pathlib.Path, hours: dict[str, float] | None = None) -> None:
    """Prints how often each stage would be computed, with a stage that several arms share counted once.

    With `hours`, by stage (see `chip_hours`), it also prints what the stages to compute would take at the scale of a plan.
    """
    wanted, finished, arms_of = collections.defaultdict(set), set(), collections.Counter()
    for arm in arms:
        for stage, identity in identities(arm.config).items():
            wanted[stage].add(identity)
            arms_of[stage] += 1
            if held(stages, identity) or (path / "arms" / arm.name / stage / "done.json").exists():
                finished.add(identity)
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD)
    for column in ("stage", "arms", "to compute", "finished before", *(["chip-hours, at least"] if hours else [])):
        table.add_column(column, justify="left" if column == "stage" else "right")
    taken = {stage: len(found - finished) * hours[stage] for stage, found in wanted.items() if stage in (hours or {})}
    for stage, found in wanted.items():
        numbers = [arms_of[stage], len(found - finished), len(found & finished)]
        planned = [f"{taken[stage]:,.1f}" if stage in taken else "–"] if hours else []
        table.add_row(Text(terminal.visible(stage)), *map(str, numbers), *planned)
    if hours:
        table.add_row("all planned stages", "", "", "", f"{sum(taken.values()):,.1f}")
    terminal.console().print(table)


def chip_hours(path: str) -> dict[str, float]:
    """Returns the least chip-hours of each stage of a plan, whose JSON file `rlhf_jax.plan --out` wrote.

    Raises:
      InputError: the file is missing, or is not such a plan.
    """
    try:
        plan = json.loads(pathlib.Path(path).read_text())
        return {stage["stage"]: float(stage["chip_hours"]) for stage in plan["stages"]}
    except OSError as error:
        raise InputError(f"--plan: {path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"--plan: {path} is not a plan: name a JSON file that rlhf_jax.plan --out wrote") from None


def failures(arms: list[Arm], path: pathlib.Path) -> dict[str, str]:
    """Returns the failed arms: name of the arm -> reason."""
    records = {arm.name: record_of(arm, path) for arm in arms}
    return {name: record["reason"] for name, record in records.items() if record.get("status") == "failed"}


def unfinished(arms: list[Arm], path: pathlib.Path, begun: bool) -> list[Arm]:
    """Returns the arms that are neither done nor failed; with `begun`, only those that a process is running."""
    if not begun:
        return [arm for arm in arms if record_of(arm, path).get("status") not in ("done", "failed")]
    return [arm for arm in arms if _at_work(record_of(arm, path), path / "arms" / arm.name)]


def _at_work(record: dict, folder: pathlib.Path) -> bool:
    """Whether a process is running an arm.

    An arm that was killed is still marked as running. If the process was on this host, the lock of the arm's folder
    tells; for another host the record is trusted.
    """
    here = record.get("host") == socket.gethostname()
    return record.get("status") == "running" and (not here or workdir.in_use(folder))


def record_of(arm: Arm, path: pathlib.Path) -> dict:
    """Returns the content of an arm's arm.json (see sequential); {} before the arm has begun."""
    return read_if_there(path / "arms" / arm.name / "arm.json") or {}
