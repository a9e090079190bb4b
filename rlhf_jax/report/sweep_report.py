"""The directory of a sweep, read for its report: every arm, and every number of it in one long list.

    sweep.json   the experiment, its base config, the arms, and the declarations of the experiment file (see spec)
    arms/NAME/   the work directory of a run, with an arm.json that says how it ended

Arms that failed, stopped or never began are listed like the others, with a reason.
"""

import copy
import dataclasses
import functools
import itertools
import json
import math
import pathlib
import socket

import numpy as np

from rlhf_jax.report import spec
from rlhf_jax.report.form import (
    ANYTHING,
    FILE_NAME,
    NUMBER,
    TEXT,
    WHOLE,
    Maybe,
    Object,
    check,
    each,
    is_file_name,
    is_number,
)
from rlhf_jax.report.names import setting_name, short_names
from rlhf_jax.report.record import reference_label
from rlhf_jax.report.run_progress import at_work_on
from rlhf_jax.report.sweep_files import Files, numbers, summary
from rlhf_jax.report.tables import Quantity, quantity_of
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import read_if_there, read_json

MISSING = "missing"  # the status of an arm without arm.json

# Forms of the files that a report reads, but for done.json and evaluation.json: any number in them is read by its path.
_SWEEP = Object(
    {
        "config": Object(optional={"seed": WHOLE, "stages": [FILE_NAME]}),
        "arms": [
            Object(
                {
                    "number": WHOLE,
                    "name": FILE_NAME,
                    "overrides": Object(optional={"seed": WHOLE, "stages": [FILE_NAME]}),
                }
            )
        ],
    },
    {
        "experiment": TEXT,
        "overrides": Maybe(each(ANYTHING)),
        **dict.fromkeys(("argument", "about", "commit"), Maybe(TEXT)),
        "words": Maybe(each(TEXT)),
    },
)
_ARM = Object(optional={"status": TEXT, **dict.fromkeys(("reason", "commit"), Maybe(TEXT)), "seconds": Maybe(NUMBER)})

_LEFT_OUT = ("categories", "labelers", "other_weights")  # parts of evaluation.json that only "evaluation:PATH" asks for


@dataclasses.dataclass(frozen=True)
class SweepSetting:
    """The overrides of an arm without its seed, with a short name that no other setting of the sweep has."""

    name: str
    overrides: dict

    def __hash__(self):
        return hash(self.name)


@dataclasses.dataclass(frozen=True)
class ArmRecord:
    """One run of a sweep, begun or not; `facts` is its arm.json, or {}."""

    number: int
    name: str
    overrides: dict
    seed: int
    setting: SweepSetting
    path: pathlib.Path
    facts: dict

    @property
    def status(self) -> str:
        """How the arm ended, such as "done" or "failed"; MISSING if it has not begun."""
        return self.facts.get("status", MISSING)

    @property
    def ended(self) -> bool:
        """Whether the arm is done or has failed; a start of the sweep goes on with any other arm."""
        return self.status in ("done", "failed")

    @property
    def settled(self) -> bool:
        """Whether the arm is done or has diverged: other failures say nothing about a claim."""
        return self.status == "done" or self.status == "failed" and self.reason.startswith("diverged")

    @property
    def reason(self) -> str:
        """Why the arm is not done; "" if nobody said."""
        return self.facts.get("reason") or ("it has not begun" if self.status == MISSING else "")


@dataclasses.dataclass(frozen=True)
class Row:
    """A number of an arm; an arm without numbers has one row, which ends with its reason."""

    arm: str
    setting: str
    seed: int
    status: str
    reason: str
    stage: str = ""
    quantity: str = ""
    value: float | None = None


class Sweep:
    """A sweep, finished or not.

    Attributes:
      path: its directory.
      experiment, argument, about, commit, config, overrides: the values in sweep.json.
      declared: the declarations of the experiment file.
      arms: the arms, in the order of sweep.json, but for `later`.
      later: the arms that have not begun and that only a later look of the design may need.
      settings: the settings, in the same order.
      every_seed: the seeds of all arms, in ascending order.
      seeds: those of `arms`.
      swept: the fields that differ between settings.
      short: field -> its WORDS or its short name.
      notes: a sentence for each file that could not be read.
      files_read: the files of arms that were read so far, or looked for, but for each arm.json.

    Raises:
      InputError: there is no sweep.json, or it is damaged.
    """

    def __init__(self, path):
        self.path = pathlib.Path(path)
        file = self.path / "sweep.json"
        if not file.is_file():
            raise InputError(f"{path} is no directory of a sweep: it has no sweep.json")
        facts = check(file, read_json(file), _SWEEP)
        self._files = Files()
        self.notes, self.files_read = self._files.notes, self._files.read
        self.config, arms = facts["config"], facts["arms"]
        self.experiment, self.argument = facts.get("experiment", ""), facts.get("argument") or ""
        self.about, self.commit = facts.get("about") or "", facts.get("commit")
        self.overrides = facts.get("overrides") or {}
        names = short_names(arms) | (facts.get("words") or {})
        swept = spec.swept([arm["overrides"] for arm in arms], self.config.get("seed", 0))
        settings = {}
        for arm in arms:
            fields = {name: arm["overrides"][name] for name in swept if name in arm["overrides"]}
            settings.setdefault(json.dumps(fields, sort_keys=True), SweepSetting(setting_name(fields, names), fields))
        every = [self._arm(arm, settings, swept) for arm in arms]
        try:
            self.declared = spec.Declared.from_json(facts)
        except InputError as error:
            raise InputError(f"{file}: {error}") from None
        self.swept, self.short, self.settings = swept, names, list(settings.values())
        self.every_seed = sorted({arm.seed for arm in every})
        first = self.every_seed[: self.declared.design.looks[0]] if self.declared.design else self.every_seed
        self.arms = [arm for arm in every if arm.status != MISSING or arm.seed in first]
        self.later = [arm for arm in every if arm.status == MISSING and arm.seed not in first]
        self.seeds = sorted({arm.seed for arm in self.arms})
        self._by_setting = {(arm.setting, arm.seed): arm for arm in every}

    def _arm(self, facts, settings, swept) -> ArmRecord:
        """Returns the arm that `facts` of sweep.json describe."""
        fields = {name: facts["overrides"][name] for name in swept if name in facts["overrides"]}
        path = self.path / "arms" / facts["name"]
        try:
            found = check(path / "arm.json", read_if_there(path / "arm.json") or {}, _ARM)
        except InputError as error:
            self.notes.append(f"{error}.")
            found = {"status": "running", "reason": "its arm.json cannot be read"}
        here = found.get("status") == "running" and found.get("host") == socket.gethostname()
        if here and at_work_on(path) is False:  # a process that is killed cannot say that it was stopped
            found = found | {"status": "stopped", "reason": "its process has ended"}
        seed = facts["overrides"].get("seed", self.config.get("seed", 0))
        setting = settings[json.dumps(fields, sort_keys=True)]
        return ArmRecord(facts["number"], facts["name"], facts["overrides"], seed, setting, path, found)

    def first(self, count: int) -> "Sweep":
        """Returns the sweep as it is to a reader who knows its first `count` seeds alone."""
        view = copy.copy(self)
        view.seeds = self.every_seed[:count]
        return view

    # --- settings ---

    def level(self, setting: SweepSetting, name: str):
        """Returns the value of a field in a setting: its override or the config's value, or None without either."""
        return spec.level(self.config, setting.overrides, name)

    def select(self, where: dict | None = None, axis: str | None = None) -> list[SweepSetting]:
        """Returns the settings that `where` chooses; with `axis`, only those of them that override this field."""
        found = [
            setting
            for setting in self.settings
            if all(spec.chosen(self.level(setting, name), wanted) for name, wanted in (where or {}).items())
        ]
        return found if axis is None else [setting for setting in found if axis in setting.overrides]

    def names(self, settings) -> dict[SweepSetting, str]:
        """Returns short names for settings that are shown beside one another.

        A name omits fields in which all of them agree. Of several fields whose values go together, it keeps one: the
        field that BASELINE names, or else the first.
        """
        told = []
        for name in sorted(self.swept, key=lambda name: name not in (self.declared.baseline or {})):
            if len({spec.key(self.level(setting, name)) for setting in settings}) > 1:
                told += [name] * (not any(self._together(name, other) for other in told))
        names = {}
        for setting in settings:
            names[setting] = setting_name(
                {name: setting.overrides[name] for name in setting.overrides if name in told}, self.short
            )
        return names if len(set(names.values())) == len(names) > 1 else {setting: setting.name for setting in settings}

    def _together(self, name, other) -> bool:
        """Whether each value of one field always goes with the same value of the other, as in a zip."""
        keys = [tuple(spec.key(self.level(setting, field)) for field in (name, other)) for setting in self.settings]
        return len(set(keys)) == len({a for a, _ in keys}) == len({b for _, b in keys})

    def levels(self, settings, axis: str) -> list:
        """Returns the values of a field among settings: numbers in ascending order, others in that of the settings."""
        levels = [self.level(setting, axis) for setting in settings]
        values = list({spec.key(level): level for level in levels}.values())
        return sorted(values) if all(map(is_number, values)) else values

    def baseline(self, where: dict | None = None) -> SweepSetting | None:
        """Returns the setting that others are compared with, or None if there is not exactly one.

        It is the setting that `where` chooses, or BASELINE if `where` is None. Without both, it is the setting whose
        values are the config's own.
        """
        where = self.declared.baseline if where is None else where
        if where is not None:
            found = self.select(where)
            if len(found) > 1:  # the setting that changes no other field is preferred
                rest = [s for s in found if all(name in where or self._own(s, name) for name in s.overrides)]
                found = rest or found
        else:
            found = [s for s in self.settings if all(self._own(s, name) for name in s.overrides)]
        return found[0] if len(found) == 1 else None

    def _own(self, setting, name) -> bool:
        """Whether a setting overrides a field with the config's own value."""
        return spec.same(setting.overrides[name], spec.level(self.config, {}, name))

    # --- numbers ---

    def arm(self, setting: SweepSetting, seed: int) -> ArmRecord | None:
        """Returns the arm of a setting and seed, or None."""
        return self._by_setting.get((setting, seed))

    def value(self, arm: ArmRecord, stage: str, quantity: str) -> float | None:
        """Returns a quantity (see spec) of a finished stage of an arm, or None if it is missing or not finite."""
        if quantity == "failed":
            return {"done": 0.0, "failed": 1.0}.get(arm.status)
        if not self.finished(arm, stage):
            return None
        done = self._json(arm, stage, "done.json")
        if quantity.startswith("history:"):
            name, _, how = quantity.removeprefix("history:").partition("@")
            values = [row[name] for row in self.history(arm, stage) if is_number(row.get(name))]
            value = summary(values, how) if values else None
        elif quantity in done:
            value = done[quantity]
        else:
            value = self.numbers(arm, stage).get(quantity.removeprefix("evaluation:"))
        return float(value) if is_number(value) and math.isfinite(value) else None

    def finished(self, arm: ArmRecord, stage: str) -> bool:
        """Whether an arm has finished a stage: the numbers of an unfinished stage are no results."""
        return self._json(arm, stage, "done.json") is not None

    def by_seed(self, stage: str, settings, quantity: str) -> dict[int, float]:
        """Returns the mean of a quantity over settings, by seed; omits a seed that lacks one of the settings."""
        found = {}
        for seed in self.seeds:
            arms = [self.arm(setting, seed) for setting in settings]
            values = [arm and self.value(arm, stage, quantity) for arm in arms]
            if values and None not in values:
                found[seed] = float(np.mean(values))
        return found

    def numbers(self, arm: ArmRecord, stage: str) -> dict[str, float]:
        """Returns every number of a stage's evaluation.json by its path; an interval counts as its value.

        The estimates of a policy are called by their names alone.
        """
        return numbers(self._json(arm, stage, "evaluation.json") or {})

    def history(self, arm: ArmRecord, stage: str, file: str = "metrics.jsonl") -> list[dict]:
        """Returns the rows of a file of JSON lines of a stage, finished or not; none if it is missing or damaged."""
        known = stage in self.stages and is_file_name(file)
        return self._files.rows(str(arm.path / stage / file)) if known else []

    def _json(self, arm, stage, name):
        """Returns a JSON file of a stage of an arm, or None."""
        return self._files.json(str(arm.path / stage / name)) if stage in self.stages else None

    # --- the long list ---

    @functools.cached_property
    def stages(self) -> list[str]:
        """Every stage of every arm, in the order of the pipeline."""
        found = dict.fromkeys(self.config.get("stages", ()))
        for arm in self.arms:
            found |= dict.fromkeys(arm.overrides.get("stages", ()))
        return list(found)

    def quantity(self, name: str) -> Quantity:
        """Returns how a quantity (see spec) is called and printed; WORDS of the experiment file come first."""
        found = quantity_of(name).against(self._reference)
        return dataclasses.replace(found, title=self.declared.words[name]) if name in self.declared.words else found

    def called(self, field: str) -> str:
        """Returns the name of a field in a sentence: its WORDS, or its short name with spaces."""
        return self.short.get(field, field).replace("_", " ")

    @functools.cached_property
    def _reference(self) -> str:
        """What KL and win rates refer to: of a policy the reference of its evaluation, in training where PPO starts."""
        names = []  # what a damaged file has in place of a name may be of any type
        for arm, stage in itertools.product(self.arms, self.stages):
            evaluation = self._json(arm, stage, "evaluation.json")
            names.append(evaluation.get("reference") if isinstance(evaluation, dict) else None)
            if self.history(arm, stage) and "objective/kl" in self.history(arm, stage)[0]:
                names.append(self.level(arm.setting, f"{stage}.init"))
        return reference_label(name for name in names if isinstance(name, str))

    def policies(self) -> list[str]:
        """Returns the stages whose policy is evaluated in some arm."""
        return [
            stage
            for stage in self.stages
            if any("estimates" in (self._json(arm, stage, "evaluation.json") or ()) for arm in self.arms)
        ]

    def rows(self, quantities=()) -> list[Row]:
        """Returns a row for every number of every finished stage of every arm.

        Args:
          quantities: quantities to add to the estimates, such as histories and paths (see spec).
        """
        rows = []
        for arm in self.arms:
            known = arm.name, arm.setting.name, arm.seed, arm.status, arm.reason
            before = len(rows)
            for stage in self.stages:
                if not self.finished(arm, stage):
                    continue
                names = [name for name in self.numbers(arm, stage) if name.split("/")[0] not in _LEFT_OUT]
                for name in dict.fromkeys([*names, "seconds", *(q for q in quantities if q != "failed")]):
                    if (value := self.value(arm, stage, name)) is not None:
                        rows.append(Row(*known, stage, name, value))
            if len(rows) == before:
                rows.append(Row(*known))
        return rows
