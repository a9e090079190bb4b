"""The arms of a sweep: an experiment file's config with the overrides of its grid."""

import dataclasses
import functools
import hashlib
import json
import pathlib
import re
import subprocess
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from rlhf_jax import checkpoint, run
from rlhf_jax.config import check as check_config
from rlhf_jax.config import defaults_like
from rlhf_jax.fields.checks import nearest, partial_section_of
from rlhf_jax.report.spec import Declared
from rlhf_jax.runtime import command_line, workdir
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import read_if_there, read_json, remove_left_over, write_json
from rlhf_jax.sweep import grid

_LONGEST_NAME = 120
_DESCRIBED = ("experiment", "config", "arms")  # of sweep.json, what it is read for


@dataclasses.dataclass(frozen=True)
class Arm:
    """One run of a sweep.

    Attributes:
      number: its place in the sweep, from 0.
      name: of its directory; says what it overrides.
      overrides: dotted field -> value, what sets it apart.
      config: the whole config.
    """

    number: int
    name: str
    overrides: dict[str, Any]
    config: ConfigDict


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What an experiment file declares beside its config.

    Attributes:
      path: of the file.
      about: its docstring.
      arms: of its sweep.
      declared: its figures, tables and claims, for the report.
    """

    path: str
    about: str
    arms: list[Arm]
    declared: Declared


def load(path: str, config: ConfigDict) -> Experiment:
    """Reads the sweep of an experiment file.

    Args:
      path: as in --config; what follows a colon is for get_config alone.
      config: what get_config gave, with the overrides of the command line.

    Raises:
      InputError: the file has no sweep, or one that does not fit the config, or declares what the sweep cannot show; or a
        field of an arm cannot have its value.
    """
    file = path.partition(":")[0]
    with command_line.reading(file):
        module = command_line.module_of(file)
        if not hasattr(module, "sweep"):
            raise InputError(f"{file} has no function sweep(h); see experiments/figures/ for examples")
        settings, declared = module.sweep(grid), Declared.of(module)
    arms = expand(config, settings, file)
    for arm in arms:
        try:
            check_config(arm.config)
        except InputError as error:
            raise InputError(f"{file}: arm {arm.number} ({arm.name}): {error}") from None
    try:
        declared.check(config.to_dict(), [arm.overrides for arm in arms])
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    return Experiment(path, module.__doc__ or "", arms, declared)


def expand(config: ConfigDict, settings: grid.Grid, source: str = "sweep") -> list[Arm]:
    """The arms of a grid over a base config.

    Raises:
      InputError: an arm without a seed, an unknown field, a value of another type, two equal arms.
    """
    if not settings:
        raise InputError(f"{source}: the sweep has no arms")
    titles = _titles({field for arm in settings for field in arm})
    arms, numbers = [], {}
    for number, overrides in enumerate(settings):
        if "seed" not in overrides:
            raise InputError(f'{source}: arm {number} has no seed: add h.sweep("seed", range(3)) to the product')
        arm = Arm(number, _name(overrides, titles), overrides, _overridden(config, overrides, source))
        if arm.name in numbers:
            raise InputError(f"{source}: arms {numbers[arm.name]} and {number} are the same, {arm.name}")
        numbers[arm.name] = number
        arms.append(arm)
    return arms


def choose(arms: Sequence[Arm], chosen: str) -> list[Arm]:
    """The arms of "3:7" (3 to 6), "5" or "0,4,8:"; all of them for "".

    Raises:
      InputError: not written so, or no arm has such a number.
    """
    if not chosen:
        return list(arms)
    numbers = []
    for part in chosen.split(","):
        match = re.fullmatch(r"(\d*)(:?)(\d*)", part.strip())
        if not match or part.strip() in ("", ":") or (match[3] and not match[2]):
            raise InputError(f"--arms={chosen}: give numbers and ranges, as in --arms=3:7 (3 to 6) or --arms=0,4,8:")
        first = int(match[1] or 0)
        after = (int(match[3]) if match[3] else len(arms)) if match[2] else first + 1
        numbers += range(first, min(after, len(arms)))
    if not numbers:
        raise InputError(f"--arms={chosen}: the sweep has the arms 0 to {len(arms) - 1}")
    return [arms[number] for number in sorted(set(numbers))]


def describe(experiment: Experiment, config: ConfigDict, overrides: dict) -> dict:
    """sweep.json: what a reader of the results must know of how they were made."""
    return {
        "experiment": experiment.path,
        "about": experiment.about,
        "commit": commit(),
        "overrides": overrides,
        "config": json.loads(json.dumps(config.to_dict())),
        "arms": json.loads(
            json.dumps(
                [{"number": arm.number, "name": arm.name, "overrides": arm.overrides} for arm in experiment.arms]
            )
        ),
        **experiment.declared.to_json(),
    }


def write(path: pathlib.Path, described: dict) -> None:
    """Writes path/sweep.json, what `describe` gave. There may be more arms than before, or less of the same experiment.

    Raises:
      InputError: it cannot be written, or the arms that are there have another config or are another experiment's.
    """
    checkpoint.check_path(path)
    file = path / "sweep.json"
    if before := read_if_there(file, needs=_DESCRIBED):
        _check_left_out(path, before, described)
        defaults = json.loads(json.dumps(defaults_like(ConfigDict(described["config"])).to_dict()))
        workdir.refuse_other_config(path, before["config"], described["config"], run.FREE_FIELDS, defaults)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {path}: {error.strerror}") from error
    remove_left_over(path)
    write_json(file, described)


def _check_left_out(path: pathlib.Path, before: dict, described: dict) -> None:
    """What has begun and is no arm any more would be in no report: of the same file that is said, of another refused."""
    names = {arm["name"] for arm in described.get("arms", ())}
    left_out = [arm["name"] for arm in before.get("arms", ()) if arm["name"] not in names]
    left_out = [name for name in left_out if (path / "arms" / name).exists()]
    if not left_out:
        return
    shown = " ".join(left_out[:3]) + f" and {len(left_out) - 3} more" * (len(left_out) > 3)
    then, now = before["experiment"], described["experiment"]
    if pathlib.Path(then.partition(":")[0]).name != pathlib.Path(now.partition(":")[0]).name:
        raise InputError(
            f"{path} holds the sweep of {then}, whose arms {now} does not have ({shown}): give another directory"
        )
    print(f"arms that are there, but no longer in {now}, are left out of the report: {shown}")


def check_submitted(path: pathlib.Path, experiment: Experiment, config: ConfigDict, chosen: Sequence[Arm]) -> None:
    """That these arms are still those of path/sweep.json, which was written when they were submitted.

    Raises:
      InputError: the experiment file or the command line has changed since.
    """
    known = read_json(path / "sweep.json", needs=_DESCRIBED)
    now = describe(experiment, config, {})
    arms = {arm["number"]: arm for arm in known["arms"]}
    for arm in chosen:
        if now["config"] != known["config"] or arms.get(arm.number) != now["arms"][arm.number]:
            raise InputError(
                f"arm {arm.number} is another one than when {path / 'sweep.json'} was written: {experiment.path} has "
                "changed since; submit the sweep again"
            )


@functools.cache
def commit() -> str | None:
    """The commit of this code when it was first asked, with a + where files have changed since; None outside a repository."""
    folder = pathlib.Path(__file__).parent
    try:
        git = lambda *words: subprocess.run(
            ["git", "-C", folder, *words], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _overridden(config: ConfigDict, overrides: dict[str, Any], source: str) -> ConfigDict:
    config = config.copy_and_resolve_references()
    for field, value in overrides.items():
        *parents, name = field.split(".")
        section = config
        for parent in parents:
            section = section.get(parent) if isinstance(section, ConfigDict) else None
        if not isinstance(section, ConfigDict) or not (
            name in section or partial_section_of(config, ".".join(parents))
        ):
            known = section.keys() if isinstance(section, ConfigDict) else ()
            hint = nearest(name, known, "".join(f"{parent}." for parent in parents))
            raise InputError(f"{source}: the config has no field {field}{hint}")
        try:
            with section.unlocked():
                section[name] = value
        except TypeError as error:
            raise InputError(f"{source}: {field}={value!r} is of another type than in the config: {error}") from None
    return config


def _titles(fields: set[str]) -> dict[str, str]:
    """The shortest ends of dotted names that tell them apart."""
    titles = {}
    for field in fields:
        parts = field.split(".")
        for length in range(1, len(parts) + 1):
            title = ".".join(parts[-length:])
            if not any(other != field and f".{other}".endswith(f".{title}") for other in fields):
                break
        titles[field] = title
    return titles


def _name(overrides: dict[str, Any], titles: dict[str, str]) -> str:
    """A directory's name, the seed last: "ptx_coef=0.5,seed=1"."""
    fields = sorted(overrides, key=lambda field: field == "seed")
    name = ",".join(f"{titles[field]}={_text(overrides[field])}" for field in fields)
    if len(name) > _LONGEST_NAME:
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        name = f"{name[: _LONGEST_NAME - 9 - 8]}-{digest},seed={overrides['seed']}"
    return name


def _text(value) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", str(value)).strip("_") or "none"
