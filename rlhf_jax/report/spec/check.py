"""Refuses declarations that name a stage, field, value or quantity which the sweep does not have, before it runs."""

import dataclasses
import difflib

from rlhf_jax.fields import registry
from rlhf_jax.report import spec
from rlhf_jax.report.tables import QUANTITIES
from rlhf_jax.runtime.errors import InputError

_OF_DONE = ("seconds", "evaluation_seconds", "peak_memory_gib")
_OF_SPLITS = ("accuracy", "log_loss", "ece", "bag_of_words_accuracy", "above_bag_of_words", "pairs", "prompts")
_EXTREMES = ("min", "max")  # summaries of a metric that are refused


def check(declared: spec.Declared, config: dict, arms: list[dict]) -> None:
    """Checks the declarations of a sweep.

    Args:
      declared: the declarations.
      config: the base config, nested.
      arms: the overrides of every arm.

    Raises:
      InputError: the sweep lacks a stage, field, value or quantity; the sentence names it.
    """
    sweep = _Words(config, arms)
    sweep.where("BASELINE", declared.baseline or {})
    for item in (*declared.figures, *declared.tables, *declared.claims):
        _check(item, sweep, (type(item).__name__,))
    names = [item.name for item in (*declared.figures, *declared.tables) if item.name]
    for name in names:
        if names.count(name) > 1 or not name.replace("_", "").replace("-", "").isalnum():
            raise InputError(
                f"name='{name}': each figure and table needs a name of its own, of letters, digits, - and _"
            )
    drawn = [figure.name for figure in declared.figures if figure.name]
    if declared.design and declared.design.looks[-1] != sweep.seeds:
        raise InputError(
            f"DESIGN: its last look has {declared.design.looks[-1]} seeds and the sweep {sweep.seeds}: write "
            'h.sweep("seed", DESIGN.seeds)'
        )
    for name, words in declared.words.items():
        if not isinstance(words, str) or not words.strip():
            raise InputError(f"WORDS: the words for '{name}' must be text, not {words!r}")
    for claim in declared.claims:
        if claim.figure and claim.figure not in drawn:
            known = spec.listed(drawn)
            raise InputError(f"Claim '{claim.text}': figure='{claim.figure}' is no figure's name; there are {known}")


class _Words:
    """The stages, fields and quantities of a sweep; each method refuses what the sweep does not have."""

    def __init__(self, config, arms):
        self.config, self.arms = config, arms
        self.stages = list(config["stages"])
        for arm in arms:
            self.stages += [stage for stage in arm.get("stages", ()) if stage not in self.stages]
        self.seeds = len({arm.get("seed", config.get("seed", 0)) for arm in arms})
        self.swept = spec.swept(arms, config.get("seed", 0))

    def stage(self, at, name):
        """Raises InputError if no arm has the stage; `at` is the place where it is named."""
        if name not in self.stages:
            raise InputError(f"{at}='{name}' is no stage of the sweep{_instead(name, self.stages)}")

    def axis(self, at, name, where, least):
        """Raises InputError if the arms that `where` chooses have fewer than `least` values of a field."""
        if name not in self.swept:
            raise InputError(f"{at}='{name}' is no field that the sweep varies{_instead(name, self.swept)}")
        values = {spec.key(arm[name]) for arm in self._matching(where) if name in arm}
        if len(values) < least:
            among = f" among those with {where}" if where else ""
            raise InputError(f"{at}='{name}': the arms{among} have {len(values)} of its values; {least} are needed")

    def where(self, at, fields):
        """Raises InputError if no arm has the wanted values of the fields."""
        for name, wanted in fields.items():
            if name == "seed":
                raise InputError(f"{at}: 'seed' chooses no setting: arms of a setting differ in it and are averaged")
            values = [arm[name] for arm in self.arms if name in arm]
            try:
                values.append(spec.lookup(self.config, name))
            except KeyError:
                if not values:
                    raise InputError(f"{at}: '{name}' is no field of the config{_instead(name, self.swept)}") from None
            values = list({spec.key(value): value for value in values}.values())
            for value in wanted if isinstance(wanted, (tuple, list)) else (wanted,):
                if not any(spec.chosen(known, choice) for known in values for choice in (value, wanted)):
                    raise InputError(f"{at}: no arm has {name}={value!r}; there are {spec.listed(values)}")
        if not self._matching(fields):
            raise InputError(f"{at}: no arm has all of {fields}")

    def _matching(self, where) -> list[dict]:
        """Returns the overrides of the arms that `where` chooses."""
        return [
            arm
            for arm in self.arms
            if all(spec.chosen(spec.level(self.config, arm, name), wanted) for name, wanted in where.items())
        ]

    def has(self, stage, quantity) -> bool:
        """Whether a stage can have a quantity."""
        kind = self._kind(stage)
        return kind is None or known_quantity(quantity, kind)

    def quantity(self, at, name, stages):
        """Raises InputError if one of the stages cannot have a quantity."""
        if name.startswith("history:") and name.rpartition("@")[2] in _EXTREMES:
            metric = name.removeprefix("history:").rpartition("@")[0]
            raise InputError(
                f"{at}='{name}': the extreme of a noisy course is biased; claim a turn instead, as in "
                f"Turns('{metric}', stage, 'falls', by), where other seeds choose the step"
            )
        for stage in stages:
            if not self.has(stage, name):
                kind = self._kind(stage)
                known = [quantity.name for quantity in QUANTITIES]
                if not registry.KINDS[kind].judged:
                    known = [f"{split}/{part}" for split in ("valid", "heldout") for part in _OF_SPLITS]
                raise InputError(
                    f"{at}='{name}' is no quantity of {stage} (kind {kind}){_instead(name, known)}; "
                    "'evaluation:PATH' is any number of its evaluation.json, 'history:NAME@last' one of a metric"
                )

    def _kind(self, stage) -> str | None:
        """Returns the kind of a stage, or None for a stage that only some arms define."""
        try:
            return spec.lookup(self.config, f"{stage}.kind")
        except KeyError:
            return None


def known_quantity(name: str, kind: str) -> bool:
    """Whether a stage of a kind can have a quantity."""
    if name in (*_OF_DONE, "failed") or name.startswith("evaluation:"):
        return True
    if name.startswith("history:"):
        return name.partition("@")[2] in spec.SUMMARIES
    parts = name.split("/")
    if not registry.KINDS[kind].judged:
        splits = parts[0] in ("valid", "heldout") and len(parts) > 1
        return splits and (parts[1] in _OF_SPLITS or parts[1] == "by_group" and len(parts) > 2)
    # A run with several reward models has a score/NAME of each, and one with benchmarks an lm_eval/TASK/METRIC.
    if parts[0] == "lm_eval":
        return len(parts) > 2
    if parts[0] == "score":  # the name of a model of another run has slashes
        return True
    return name in {quantity.name for quantity in QUANTITIES} or parts[0] == "skills" and len(parts) == 2


def _check(item, sweep: _Words, at: tuple) -> None:
    """Checks a spec, which stands at the place `at`, and the specs inside it, each field by its name."""
    for field in sorted(
        dataclasses.fields(item), key=lambda field: field.name != "where"
    ):  # `where` chooses the arms of axes
        name, value = field.name, getattr(item, field.name)
        here = ".".join((*at, name))
        if name in ("stage", "stages"):
            for stage in (value,) if name == "stage" else value:
                sweep.stage(here, stage)
        elif name in ("axis", "by", "tuned") and isinstance(value, str):  # the `by` of Greater is a number
            sweep.axis(here, value, item.where, 3 if isinstance(item, spec.Peak) else 2)
        elif name in ("where", "baseline") and value:
            sweep.where(here, value)
        elif name == "quantities":
            for quantity in value:  # at least one of the stages must have it
                if not any(sweep.has(stage, quantity) for stage in item.stages):
                    sweep.quantity(here, quantity, item.stages)
        elif name in ("x", "y") and value and not spec.of_metrics(item):
            sweep.quantity(here, value, _stages(item))
        for part in value if isinstance(value, tuple) else (value,):
            if dataclasses.is_dataclass(part):
                _check(part, sweep, (*at, type(part).__name__))


def _stages(item) -> list[str]:
    """Returns the stages whose quantities are the x and y of a spec."""
    parts = [item]
    if isinstance(item, spec.Plane):
        parts = item.paths
    elif isinstance(item, (spec.Greater, spec.Close, spec.Dominates)):
        parts = [part for part in spec.compared(item) if not getattr(part, "y", None)]
    return [stage for part in parts for stage in (part.stages if hasattr(part, "stages") else (part.stage,))]


def _instead(name, known) -> str:
    """Returns the end of a sentence about an unknown name: names like it, or all known names."""
    close = difflib.get_close_matches(name, known, 3)
    return f"; did you mean {' or '.join(close)}?" if close else f": there are {spec.listed(known)}"
