"""What an experiment file wants to see of its sweep, and what it claims:

    BASELINE = {"ppo_ptx.ptx_coef": 0.0}
    FIGURES = (spec.Curve(y="gold/total", stage="ppo_ptx", axis="ppo_ptx.ptx_coef", scale="log"),)
    TABLES = (spec.Table(stages=("ppo", "ppo_ptx"), quantities=("gold/total", "skills/mean")),)
    CLAIMS = (spec.Claim(source="Ouyang et al. 2022, Fig. 33", text="reward falls as gamma grows",
                         rule=spec.Trend(y="score", stage="ppo_ptx", axis="ppo_ptx.ptx_coef", direction="falls")),)

A *setting* is the overrides of an arm without its seed. Fields are named as in overrides, "ppo_ptx.ptx_coef".
`where` chooses settings by the values of fields, one value or a tuple of them, whether a setting overrides the
field or has the config's value; an empty one chooses all. A *quantity* is

    "gold/total", "score", "kl", "skills/mean", "valid_loss", ...    an estimate of a policy's evaluation.json
    "valid/accuracy", "heldout/log_loss", "valid/by_group/detail"    of a reward model's
    "evaluation:categories/chat/gold"                                any other number there, by its path
    "history:objective/kl@last"                                      of the stage's metrics.jsonl; or @first,
                                                                     @mean_last_10%; no extremes, see Turns
    "seconds", "evaluation_seconds", "peak_memory_gib"               of the stage's done.json
    "failed"                                                         1 where the arm failed, 0 where it is done

Nothing here needs JAX. Everything is JSON both ways, and wrong words are refused when the sweep is defined.
"""

import dataclasses
import json
from dataclasses import field
from typing import Any

from rlhf_jax.report.spec.fields import listed, of_kind, of_types, one_of, tuple_of
from rlhf_jax.report.spec.rules import (
    RULES,
    All,
    Close,
    Coincides,
    Dominates,
    Greater,
    Law,
    Path,
    Peak,
    Pick,
    Trend,
    Turns,
)
from rlhf_jax.runtime.errors import InputError

SUMMARIES = ("last", "first", "mean_last_10%")
SCALES = ("auto", "linear", "log", "symlog", "category")


# --- figures and tables ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Curve:
    """A quantity over a swept field: means with intervals, seeds as small points, a line for each value of `by`."""

    y: str
    stage: str
    axis: str
    by: str | None = None
    where: dict = field(default_factory=dict)
    scale: str = "auto"  # of the axis, see SCALES; auto: log where values span more than a factor of 20
    baseline: dict | None = None  # drawn as a dashed level; None: BASELINE of the experiment file
    name: str = ""  # of the file; empty: made of the fields
    title: str = ""
    x_title: str = ""
    y_title: str = ""

    def __post_init__(self):
        one_of(self, "scale", SCALES)


@dataclasses.dataclass(frozen=True)
class Plane:
    """One quantity against another: a point for each setting with both intervals, seeds as small points."""

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
    """A metric during training: thin lines for seeds, a thick one for their mean, a colour for each setting."""

    y: str  # a metric of metrics.jsonl, without "history:"
    stage: str
    x: str = "step"  # or another metric
    sqrt_x: bool = False
    where: dict = field(default_factory=dict)
    file: str = (
        "metrics.jsonl"  # or another JSON-lines file of the stage's folder; its "step" is the line, if it has none
    )
    name: str = ""
    title: str = ""
    x_title: str = ""
    y_title: str = ""


@dataclasses.dataclass(frozen=True)
class Dots:
    """A quantity by stage (the preference ladder): means with intervals, seeds, a colour for each value of `by`."""

    y: str
    stages: tuple[str, ...]
    by: str | None = None
    where: dict = field(default_factory=dict)
    level: float | None = None  # a line across, such as the 0.5 of a win rate
    name: str = ""
    title: str = ""
    y_title: str = ""

    def __post_init__(self):
        tuple_of(self, "stages", str)


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows are settings (with several stages: settings and stages), columns quantities; then the paired differences."""

    stages: tuple[str, ...]
    quantities: tuple[str, ...]
    where: dict = field(default_factory=dict)
    baseline: dict | None = None  # None: BASELINE of the experiment file
    name: str = ""
    title: str = ""

    def __post_init__(self):
        tuple_of(self, "stages", str)
        tuple_of(self, "quantities", str)


@dataclasses.dataclass(frozen=True)
class Claim:
    """What a paper says, and the rule that decides whether this sweep says so too."""

    source: str  # "Ouyang et al. 2022, Fig. 33, E.6"
    text: str  # the claim in our words
    rule: Any
    figure: str = ""  # name of the figure that shows it; empty: the first
    note: str = ""  # what is known of why it holds or does not

    def __post_init__(self):
        of_kind(self, "rule", RULES)


# --- the declarations of one experiment file ---------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Declared:
    """FIGURES, TABLES, CLAIMS, BASELINE and LOOKS of an experiment file; all may be absent."""

    figures: tuple = ()
    tables: tuple = ()
    claims: tuple = ()
    baseline: dict | None = None  # chooses the setting that others are compared with; None: the config's own values
    looks: tuple = ()  # numbers of seeds at which the claims were judged, (3, 5) where undecided ones asked for more

    def __post_init__(self):
        tuple_of(self, "figures", FIGURES)
        tuple_of(self, "tables", Table)
        tuple_of(self, "claims", Claim)
        tuple_of(self, "looks", int)

    @classmethod
    def of(cls, module) -> "Declared":
        """Those of an imported experiment file.

        Raises:
            InputError: one is of the wrong kind.
        """
        return cls(
            getattr(module, "FIGURES", ()),
            getattr(module, "TABLES", ()),
            getattr(module, "CLAIMS", ()),
            getattr(module, "BASELINE", None),
            getattr(module, "LOOKS", ()),
        )

    def to_json(self) -> dict:
        """{"figures": [...], "tables": [...], "claims": [...], "baseline": ..., "looks": [...]}, for sweep.json."""
        return {item.name: to_json(getattr(self, item.name)) for item in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, value: dict) -> "Declared":
        """What `to_json` gave; other keys of `value` do not matter, missing ones are empty."""
        read = {name: from_json(value.get(name) or []) for name in ("figures", "tables", "claims", "looks")}
        declared = cls(**read, baseline=from_json(value.get("baseline")))
        of_types(declared)
        return declared


FIGURES = (Curve, Plane, History, Dots)
_CLASSES = {kind.__name__: kind for kind in (*FIGURES, Table, Path, Pick, *RULES, Claim)}


def to_json(value):
    """JSON of specs: a dataclass becomes its fields and "is", its name."""
    if dataclasses.is_dataclass(value):
        return {"is": type(value).__name__} | {
            item.name: to_json(getattr(value, item.name)) for item in dataclasses.fields(value)
        }
    if isinstance(value, (tuple, list)):
        return [to_json(item) for item in value]
    return {key: to_json(item) for key, item in value.items()} if isinstance(value, dict) else value


def from_json(value):
    """Specs of JSON; lists become tuples.

    Raises:
        InputError: an unknown name or field, as of another version's file.
    """
    if isinstance(value, dict):
        fields = {key: from_json(item) for key, item in value.items() if key != "is"}
        if "is" not in value:
            return fields
        try:
            made = _CLASSES[value["is"]](**fields)
        except (KeyError, TypeError) as error:
            what = f"{value['is']} with {listed(fields)}"
            raise InputError(f"{what} is nothing that this version can report: {error}") from None
        of_types(made)
        return made
    return tuple(map(from_json, value)) if isinstance(value, list) else value


def of_metrics(item) -> bool:
    """Whether the x and y of a spec are metrics of each step, not quantities."""
    if isinstance(item, (Dominates, Coincides)):
        return bool(item.file)
    return isinstance(item, (History, Turns, Law))


def lookup(config: dict, name: str):
    """The value of a dotted field in nested dicts; KeyError where there is none."""
    for part in name.split("."):
        if not isinstance(config, dict):
            raise KeyError(name)
        config = config[part]
    return config


def level(config: dict, overrides: dict, name: str):
    """The value that a field has with some overrides: theirs, or the config's; None where it has none."""
    if name in overrides:
        return overrides[name]
    try:
        return lookup(config, name)
    except KeyError:
        return None


def same(first, second) -> bool:
    """Equal as JSON: 1 is 1.0, a tuple is a list."""
    return key(first) == key(second)


def chosen(value, wanted) -> bool:
    """Whether `where` with `wanted` for a field takes a setting that has `value` there."""
    several = wanted if isinstance(wanted, (tuple, list)) else ()
    return same(value, wanted) or any(same(value, item) for item in several)


def key(value) -> str:
    """What is the same for values that are the same."""
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(key, value))}]"
    return json.dumps(float(value) if type(value) is int else value)
