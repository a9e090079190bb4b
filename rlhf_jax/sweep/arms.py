"""Arms of a sweep: the config of an experiment file, with the overrides that its grid gives each arm."""

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

from rlhf_jax import checkpoint, command_line, sources
from rlhf_jax.config import check as check_config
from rlhf_jax.config import defaults_like
from rlhf_jax.fields import noted
from rlhf_jax.fields.checks import nearest, partial_section_of
from rlhf_jax.report.spec import Declared, check
from rlhf_jax.runtime import workdir
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import make_folder, read_if_there, read_json, remove_left_over, write_json
from rlhf_jax.sweep import grid

_LONGEST_NAME = 120  # characters
_DESCRIBED = ("experiment", "config", "arms")  # the keys of sweep.json that this module reads


@dataclasses.dataclass(frozen=True)
class Arm:
    """One run of a sweep.

    Attributes:
      number: the arm's place in the sweep, from 0.
      name: name of the arm's directory; it lists the overrides.
      overrides: dotted field -> value, the fields that set this arm apart.
      config: the whole config, overrides included.
    """

    number: int
    name: str
    overrides: dict[str, Any]
    config: ConfigDict


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What an experiment file declares beside its config.

    Attributes:
      path: path of the file, as in --config.
      about: docstring of the file.
      arms: the arms of its sweep.
      declared: its figures, tables and claims, for the report.
    """

    path: str
    about: str
    arms: list[Arm]
    declared: Declared


def load(path: str, config: ConfigDict) -> Experiment:
    """Reads the sweep of an experiment file.

    Args:
      path: the path as in --config; the part after a colon is the argument of get_config and ignored here.
      config: the config that get_config returned, with the overrides of the command line.

    Raises:
      InputError: the file has no sweep, or the sweep does not fit the config; a field of an arm does not allow its
        value; or the file declares a figure, table or claim that the sweep cannot show.
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
            for stage in arm.config.stages:
                sources.check_names(arm.config, stage)
        except InputError as error:
            raise InputError(f"{file}: arm {arm.number} ({arm.name}): {error}") from None
    try:
        check.check(declared, config.to_dict(), [arm.overrides for arm in arms])
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    return Experiment(path, module.__doc__ or "", arms, declared)


def expand(config: ConfigDict, settings: grid.Grid, source: str = "sweep") -> list[Arm]:
    """Returns the arms of a grid over a base config, numbered in the order of the grid.

    Args:
      config: the base config.
      settings: the overrides of each arm.
      source: name of the experiment file, for error messages.

    Raises:
      InputError: the grid is empty; an arm has no seed, an unknown field or a value of another type than the config's;
        or two arms have the same name.
    """
    if not settings:
        raise InputError(f"{source}: the sweep has no arms; sweep(h) must return at least one")
    titles = _titles({field for arm in settings for field in arm})
    arms, numbers = [], {}
    for number, overrides in enumerate(settings):
        if "seed" not in overrides:
            raise InputError(f'{source}: arm {number} has no seed: add h.sweep("seed", range(3)) to the product')
        arm = Arm(number, _name(overrides, titles), overrides, _overridden(config, overrides, source))
        if arm.name in numbers:
            raise InputError(f"{source}: arms {numbers[arm.name]} and {number} are the same, {arm.name}; remove one")
        numbers[arm.name] = number
        arms.append(arm)
    return arms


def choose(arms: Sequence[Arm], chosen: str) -> list[Arm]:
    """Returns the arms that --arms selects: "3:7" selects 3 to 6, "5" one arm, "0,4,8:" a list, and "" all arms.

    Raises:
      InputError: the text has another form, or selects no arm.
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
    """Returns the content of sweep.json: what a reader of the results needs to know about how they were made."""
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
    """Writes path/sweep.json, with the content that `describe` returned.

    An existing sweep.json is replaced. Arms may have been added, but arms that have begun may only be left out if the
    experiment file has the same name.

    Raises:
      InputError: the file cannot be written, the directory is that of a run, or the existing arms have another config
        or belong to another experiment.
    """
    checkpoint.check_path(path)
    if sources.is_run(path):
        raise InputError(f"{path} is the work directory of a run; give the sweep a directory of its own")
    file = path / "sweep.json"
    if before := read_if_there(file, needs=_DESCRIBED):
        _check_left_out(path, before, described)
        defaults = json.loads(json.dumps(defaults_like(ConfigDict(described["config"])).to_dict()))
        workdir.refuse_other_config(path, before["config"], described["config"], noted.FREE_OF_RUN, defaults)
    make_folder(path, parents=True)
    remove_left_over(path)
    write_json(file, described)


def _check_left_out(path: pathlib.Path, before: dict, described: dict) -> None:
    """Looks for arms that have begun but are no longer part of the sweep, and would thus be missing from the report.

    If the sweep is of the same experiment file, their names are printed.

    Raises:
      InputError: the sweep is of another experiment file.
    """
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
    """Checks that these arms are those of path/sweep.json, which was written when they were submitted.

    Raises:
      InputError: the experiment file or the command line has changed since.
    """
    known = read_json(path / "sweep.json", needs=_DESCRIBED)
    now = describe(experiment, config, {})
    arms = {arm["number"]: arm for arm in known["arms"]}
    for arm in chosen:
        if now["config"] != known["config"] or arms.get(arm.number) != now["arms"][arm.number]:
            raise InputError(
                f"arm {arm.number} differs from {path / 'sweep.json'}, because {experiment.path} was changed after the "
                "sweep was submitted; submit it again"
            )


@functools.cache
def commit() -> str | None:
    """Returns the git commit of this code at the first call, 12 hexadecimal digits; None outside a repository.

    A "+" at its end says that tracked files differ from the commit.
    """
    folder = pathlib.Path(__file__).parent
    try:

        def git(*words):
            return subprocess.run(
                ["git", "-C", folder, *words], capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()

        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _overridden(config: ConfigDict, overrides: dict[str, Any], source: str) -> ConfigDict:
    """Returns a copy of a config with the overrides set; raises InputError for an unknown field or a wrong type."""
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
            raise InputError(
                f"{source}: {field}={value!r} must have the type of the field in the config: {error}"
            ) from None
    return config


def _titles(fields: set[str]) -> dict[str, str]:
    """Returns, for each dotted name, its shortest ending that no other name has."""
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
    """Returns the name of an arm's directory, with the seed last, e.g. "ptx_coef=0.5,seed=1".

    A name that is too long is cut, and gets a hash of the whole name, so that names stay distinct.
    """
    fields = sorted(overrides, key=lambda field: field == "seed")
    name = ",".join(f"{titles[field]}={_text(overrides[field])}" for field in fields)
    if len(name) > _LONGEST_NAME:
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        name = f"{name[: _LONGEST_NAME - 9 - 8]}-{digest},seed={overrides['seed']}"
    return name


def _text(value) -> str:
    """Returns a value as text that is safe in a file name."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", str(value)).strip("_") or "none"
