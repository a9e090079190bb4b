"""Declarations of an experiment file: the figures and tables of its sweep, and the claims that it tests.

    BASELINE = {"ppo_ptx.ptx_coef": 0.0}
    FIGURES = (spec.Curve(y="gold/total", stage="ppo_ptx", axis="ppo_ptx.ptx_coef", scale="log"),)
    TABLES = (spec.Table(stages=("ppo", "ppo_ptx"), quantities=("gold/total", "skills/mean")),)
    CLAIMS = (spec.Claim(source="Ouyang et al. 2022, Fig. 33", text="reward falls as gamma grows",
                         rule=spec.Trend(y="score", stage="ppo_ptx", axis="ppo_ptx.ptx_coef", direction="falls"),
                         matters=0.02, because="a tenth of what PPO gains"),)
    DESIGN = spec.Design(looks=(3, 5, 8, 12))
    WORDS = {"ppo_ptx.ptx_coef": "gamma"}

A *setting* is the overrides of an arm without its seed, and without what follows from the seed. Fields have the names that
overrides use, such as
"ppo_ptx.ptx_coef". `where` chooses settings by the values of fields, and an empty `where` chooses all. A value is one
value or a tuple of several, and it counts whether a setting overrides the field or leaves the config's value.

A *quantity* is one of these:

    "gold/total", "score", "kl", "skills/mean", "valid_loss", ...    an estimate in a policy's evaluation.json
    "lm_eval/hellaswag/acc"                                          a benchmark of evaluate.tasks: task and metric
    "valid/accuracy", "heldout/log_loss", "valid/by_group/detail"    a number in a reward model's evaluation.json
    "evaluation:categories/chat/gold"                                any other number there, by its path
    "history:objective/kl@last"                                      a metric in the stage's metrics.jsonl: @last,
                                                                     @first or @mean_last_10%; for extremes see Turns
    "seconds", "evaluation_seconds", "peak_memory_gib"               a number in the stage's done.json
    "failed"                                                         1 for an arm that failed, 0 for one that is done

Nothing in this folder needs JAX. Every declaration can be written as JSON and read again. Unknown names are refused
when the sweep is defined (see check.py).
"""

import dataclasses
import json
from dataclasses import field
from typing import Any

from rlhf_jax.report.spec.design import Design
from rlhf_jax.report.spec.fields import listed, of_kind, of_types, one_of, tuple_of
from rlhf_jax.report.spec.rules import (
    RULES,
    All,
    Close,
    Coincides,
    Difference,
    Dominates,
    Greater,
    Law,
    Path,
    Peak,
    Pick,
    Trend,
    Turns,
    compared,
    has_own_border,
    simple,
)
from rlhf_jax.report.spec.settings import swept
from rlhf_jax.runtime.errors import InputError

SUMMARIES = ("last", "first", "mean_last_10%")
SCALES = ("auto", "linear", "log", "symlog", "category")


# --- figures and tables ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Curve:
    """A figure of a quantity over a swept field: means with intervals, seeds as small points, a line for each `by`."""

    y: str
    stage: str
    axis: str
    by: str | None = None
    where: dict = field(default_factory=dict)
    scale: str = "auto"  # scale of the axis, one of SCALES; "auto" is log if values span more than a factor of 20
    baseline: dict | None = None  # the setting drawn as a dashed level; None: BASELINE of the experiment file
    name: str = ""  # name of the file; "": one made of the fields
    title: str = ""
    x_title: str = ""
    y_title: str = ""

    def __post_init__(self):
        one_of(self, "scale", SCALES)


@dataclasses.dataclass(frozen=True)
class Plane:
    """A figure of one quantity against another: a point for each setting, both intervals, seeds as small points."""

    x: str
    y: str
    paths: tuple[Path, ...]
    sqrt_x: bool = False
    name: str = ""
    title: str = ""
    x_title: str = ""
    y_title: str = ""

    def __post_init__(self):
        tuple_of(self, "paths", Path)


@dataclasses.dataclass(frozen=True)
class History:
    """A figure of a metric during training: thin lines for seeds, a thick line for their mean, colours for settings."""

    y: str  # a metric of metrics.jsonl, without "history:"
    stage: str
    x: str = "step"  # "step" or a metric
    sqrt_x: bool = False
    where: dict = field(default_factory=dict)
    file: str = "metrics.jsonl"  # a file of JSON lines in the stage's folder; a line without "step" has its number
    name: str = ""
    title: str = ""
    x_title: str = ""
    y_title: str = ""


@dataclasses.dataclass(frozen=True)
class Dots:
    """A figure of a quantity by stage (the preference ladder): means with intervals, seeds, a colour for each `by`."""

    y: str
    stages: tuple[str, ...]
    by: str | None = None
    where: dict = field(default_factory=dict)
    level: float | None = None  # height of a horizontal line, such as 0.5 for a win rate
    name: str = ""
    title: str = ""
    y_title: str = ""

    def __post_init__(self):
        tuple_of(self, "stages", str)


@dataclasses.dataclass(frozen=True)
class Table:
    """A table with a row for each setting and stage and a column for each quantity, and one of paired differences.

    A difference is that of a setting to the baseline, taken within each seed.
    """

    stages: tuple[str, ...]
    quantities: tuple[str, ...]
    where: dict = field(default_factory=dict)
    baseline: dict | None = None  # chooses the setting to compare with; None: BASELINE of the experiment file
    name: str = ""
    title: str = ""

    def __post_init__(self):
        tuple_of(self, "stages", str)
        tuple_of(self, "quantities", str)


@dataclasses.dataclass(frozen=True)
class Claim:
    """A statement of a paper, and the rule that decides whether this sweep agrees with it.

    Attributes:
      source: the place in the paper, such as "Ouyang et al. 2022, Fig. 33, E.6".
      text: the claim in our words.
      rule: the rule, of spec/rules.py.
      figure: name of the figure that shows the claim; "": the first figure.
      note: the known reasons why the claim holds or does not.
      matters: the smallest difference that matters, in the unit of the rule's number: one number, or one for each rule of an
        `All`. Rules with a margin or a `by` have it already, and take None. None: every difference matters.
      because: the reason for `matters`, as the end of a sentence.
      family: name of the claims among which Holm's correction is made, where a paper makes one statement of several claims;
        "": the claims of the sweep that name no family.
    """

    source: str
    text: str
    rule: Any
    figure: str = ""
    note: str = ""
    matters: float | tuple[float | None, ...] | None = None
    because: str = ""
    family: str = ""

    def __post_init__(self):
        of_kind(self, "rule", RULES)
        self.smallest()

    def smallest(self) -> list[float | None]:
        """Returns the smallest difference that matters, for each simple rule of the claim.

        Raises:
          InputError: there are not as many as rules, one is not above 0, or a rule has a border of its own.
        """
        rules = simple(self.rule)
        free = [not has_own_border(rule) for rule in rules]
        given = self.matters
        if not isinstance(given, (tuple, list)):
            given = [given if own else None for own in free]
        if len(given) != len(rules) or any(value is not None and not value > 0 for value in given):
            raise InputError(
                f"Claim '{self.text}': matters={self.matters} must be a number above 0, or one for each rule"
            )
        if any(value is not None and not own for value, own in zip(given, free)) or (self.matters and not any(free)):
            raise InputError(
                f"Claim '{self.text}': a rule with a margin or a `by` says what matters; leave matters out"
            )
        return list(given)


# --- the declarations of one experiment file ---------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Declared:
    """The names FIGURES, TABLES, CLAIMS, BASELINE, DESIGN and WORDS of an experiment file; each may be absent."""

    figures: tuple = ()
    tables: tuple = ()
    claims: tuple = ()
    baseline: dict | None = None  # chooses the setting that others are compared with; None: the config's own values
    design: Design | None = None  # the looks at the claims; None: one look, with the seeds that the sweep has
    words: dict = field(default_factory=dict)  # field or quantity -> its name for readers

    def __post_init__(self):
        tuple_of(self, "figures", FIGURES)
        tuple_of(self, "tables", Table)
        tuple_of(self, "claims", Claim)
        of_kind(self, "design", (Design, type(None)))

    @classmethod
    def of(cls, module) -> "Declared":
        """Returns the declarations of an imported experiment file.

        Raises:
          InputError: a declaration has the wrong type.
        """
        return cls(
            getattr(module, "FIGURES", ()),
            getattr(module, "TABLES", ()),
            getattr(module, "CLAIMS", ()),
            getattr(module, "BASELINE", None),
            getattr(module, "DESIGN", None),
            getattr(module, "WORDS", {}),
        )

    def to_json(self) -> dict:
        """Returns the declarations as JSON for sweep.json, each under the name of its attribute."""
        return {item.name: to_json(getattr(self, item.name)) for item in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, value: dict) -> "Declared":
        """Returns the declarations that `to_json` wrote; ignores other names, and takes missing ones as empty."""
        read = {name: from_json(value.get(name) or []) for name in ("figures", "tables", "claims")}
        read |= {name: from_json(value.get(name)) for name in ("baseline", "design")}
        declared = cls(**read, words=value.get("words") or {})
        of_types(declared)
        return declared


FIGURES = (Curve, Plane, History, Dots)
_CLASSES = {kind.__name__: kind for kind in (*FIGURES, Table, Path, Pick, Difference, *RULES, Claim, Design)}


def to_json(value):
    """Returns a spec as JSON: a dataclass becomes an object of its fields, with its name under "is"."""
    if dataclasses.is_dataclass(value):
        return {"is": type(value).__name__} | {
            item.name: to_json(getattr(value, item.name)) for item in dataclasses.fields(value)
        }
    if isinstance(value, (tuple, list)):
        return [to_json(item) for item in value]
    return {key: to_json(item) for key, item in value.items()} if isinstance(value, dict) else value


def from_json(value):
    """Returns the spec that `to_json` wrote; lists become tuples.

    Raises:
      InputError: a name or field is unknown, as in the file of another version.
    """
    if isinstance(value, dict):
        fields = {key: from_json(item) for key, item in value.items() if key != "is"}
        if "is" not in value:
            return fields
        try:
            made = _CLASSES[value["is"]](**fields)
        except (KeyError, TypeError) as error:
            what = f"a {value['is']} with the fields {listed(fields)}"
            raise InputError(f"this version cannot report {what}: {error}") from None
        of_types(made)
        return made
    return tuple(map(from_json, value)) if isinstance(value, list) else value


def of_metrics(item) -> bool:
    """Whether the x and y of a spec are metrics of steps, and no quantities."""
    if isinstance(item, (Dominates, Coincides)):
        return bool(item.file)
    return isinstance(item, (History, Turns, Law))


def lookup(config: dict, name: str):
    """Returns the value of a dotted field in nested dicts; raises KeyError if there is no such field."""
    for part in name.split("."):
        if not isinstance(config, dict):
            raise KeyError(name)
        config = config[part]
    return config


def level(config: dict, overrides: dict, name: str):
    """Returns the value that a field has under overrides: theirs or the config's, or None if neither has the field."""
    if name in overrides:
        return overrides[name]
    try:
        return lookup(config, name)
    except KeyError:
        return None


def same(first, second) -> bool:
    """Whether two values are equal as JSON, where 1 is 1.0 and a tuple is a list."""
    return key(first) == key(second)


def chosen(value, wanted) -> bool:
    """Whether a `where` that wants `wanted` of a field chooses a setting that has `value` in it."""
    several = wanted if isinstance(wanted, (tuple, list)) else ()
    return same(value, wanted) or any(same(value, item) for item in several)


def key(value) -> str:
    """Returns a text that is equal for values that are the same, and different for others."""
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(key, value))}]"
    return json.dumps(float(value) if type(value) is int else value)
