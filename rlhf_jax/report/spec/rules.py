"""Rules: statements about a sweep that its numbers can prove wrong. report/verdicts/ judges them."""

import dataclasses
from dataclasses import field

from rlhf_jax.report.spec.fields import listed, of_kind, one_of, tuple_of
from rlhf_jax.runtime.errors import InputError

LAWS = ("constant", "linear", "kl", "log_n", "best_of_n", "rl")  # evaluate/overoptimization.py has their formulas


@dataclasses.dataclass(frozen=True)
class Path:
    """The settings of one stage, joined by a line in the order of a field.

    Attributes:
      stage: the stage.
      axis: the field; None draws points without a line.
      where: the choice of settings.
      label: name in figures and sentences; "" names the stage and the field.
    """

    stage: str
    axis: str | None = None
    where: dict = field(default_factory=dict)
    label: str = ""


@dataclasses.dataclass(frozen=True)
class Pick:
    """For each seed, the mean of a quantity over chosen settings.

    Attributes:
      stage: the stage.
      where: the choice of settings.
      y: the quantity; None takes that of the rule.
      label: name in sentences; "" names the stage and `where`.
      tuned: a field whose value the first seed chooses; the other seeds then give the numbers, and need no other value of it.
        None: no such choice.
      best: what the first seed takes for the best value of the tuned field, "highest" or "lowest" quantity.
    """

    stage: str
    where: dict = field(default_factory=dict)
    y: str | None = None
    label: str = ""
    tuned: str | None = None
    best: str = "highest"

    def __post_init__(self):
        one_of(self, "best", ("highest", "lowest"))


@dataclasses.dataclass(frozen=True)
class Difference:
    """For each seed, the quantity of the pick a less that of b: what a claim about two gains compares."""

    a: Pick
    b: Pick

    def __post_init__(self):
        of_kind(self, "a", Pick)
        of_kind(self, "b", Pick)
        if self.a.y != self.b.y:
            raise InputError(f"Difference: both picks must have one quantity, not {self.a.y} and {self.b.y}")

    @property
    def y(self) -> str | None:
        """The quantity of both picks; None takes that of the rule."""
        return self.a.y


@dataclasses.dataclass(frozen=True)
class Trend:
    """The claim that a quantity `y` rises or falls with a field `axis`.

    The number of a seed is the slope of y over the rank of the field's values.
    """

    y: str
    stage: str
    axis: str
    direction: str
    where: dict = field(default_factory=dict)

    def __post_init__(self):
        one_of(self, "direction", ("rises", "falls"))


@dataclasses.dataclass(frozen=True)
class Peak:
    """The claim that y has a peak: some inner value of the field `axis` gives more than both of its ends.

    For each seed, the *other* seeds choose the inner value.
    """

    y: str
    stage: str
    axis: str
    where: dict = field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Greater:
    """The claim that a > factor * b + by, with differences taken within each seed; `b` may be a number."""

    a: Pick | Difference
    b: Pick | Difference | float
    y: str
    by: float = 0.0
    factor: float = 1.0

    def __post_init__(self):
        of_kind(self, "a", (Pick, Difference))
        of_kind(self, "b", (Pick, Difference, int, float))


@dataclasses.dataclass(frozen=True)
class Close:
    """The claim that |a - b - difference| < margin: a test of equivalence, with differences taken within each seed.

    `b` may be a number.
    """

    a: Pick | Difference
    b: Pick | Difference | float
    y: str
    margin: float
    difference: float = 0.0

    def __post_init__(self):
        of_kind(self, "a", (Pick, Difference))
        of_kind(self, "b", (Pick, Difference, int, float))


@dataclasses.dataclass(frozen=True)
class Dominates:
    """The claim that the path a lies above the path b on the plane of x and y.

    The number of a seed is the mean gap of y at equal x, over the range of x that both paths cover.

    Attributes:
      a: the upper path.
      b: the lower path.
      x: a quantity, or a metric in `file`.
      y: a quantity, or a metric in `file`.
      sqrt_x: whether paths are compared over the root of x.
      file: "" for paths through settings. The name of a file of JSON lines, such as "metrics.jsonl", for paths through
        the steps of the settings' runs.
    """

    a: Path
    b: Path
    x: str
    y: str
    sqrt_x: bool = False
    file: str = ""

    def __post_init__(self):
        of_kind(self, "a", Path)
        of_kind(self, "b", Path)


@dataclasses.dataclass(frozen=True)
class Coincides(Dominates):
    """The claim that the paths a and b lie together: the mean gap of Dominates is within +-margin."""

    margin: float = field(kw_only=True)


@dataclasses.dataclass(frozen=True)
class Turns:
    """The claim that a metric falls by more than `by` from its highest step to the last tenth of the run.

    With the direction "rises", the metric rises from its lowest step instead.

    The numbers that choose the step do not judge it. For each seed, the step is where the mean of the *other* seeds is
    highest; only every other step before the last tenth is a candidate. The number of the seed is its own mean of the
    two steps beside that one, less its mean of the last tenth. With several settings, each has a step of its own, and
    the seed's number is the mean over the settings.
    """

    y: str  # a metric of metrics.jsonl, without "history:"; steps without the metric do not count
    stage: str
    direction: str
    by: float = 0.0
    where: dict = field(default_factory=dict)

    def __post_init__(self):
        one_of(self, "direction", ("falls", "rises"))


@dataclasses.dataclass(frozen=True)
class Law:
    """The claim that a law of the gain at a distance predicts unseen points better than each law of `against`.

    With over="steps", the points are the steps of training, the start included: y at the KL `x`, for each setting. Laws
    are fitted to every other step of the *other* seeds, and judged at the remaining steps of this seed.

    With over="prompts", the points are the n of a best_of_n stage: the gain of y ("gold" or "score") over n = 1. Laws
    are fitted to every other n of three quarters of the prompts, and judged at the remaining n of the last quarter;
    each quarter is judged in turn.

    The number of a seed is the squared error that the law saves, in units of y squared. A law that is a special case of
    another loses to it only if the other's further coefficient is worth its noise.
    """

    y: str
    stage: str
    law: str  # one of LAWS
    against: tuple[str, ...]
    x: str = "objective/kl_exact"
    over: str = "steps"
    where: dict = field(default_factory=dict)

    def __post_init__(self):
        one_of(self, "over", ("steps", "prompts"))
        one_of(self, "law", LAWS)
        tuple_of(self, "against", str)
        if not self.against or self.law in self.against or not set(self.against) <= set(LAWS):
            raise InputError(f"Law: against={self.against} must name other laws than {self.law}, of {listed(LAWS)}")


@dataclasses.dataclass(frozen=True)
class All:
    """The claim that every one of several rules holds.

    It does not hold as soon as one rule does not hold, at a level corrected for the number of rules.
    """

    rules: tuple

    def __post_init__(self):
        tuple_of(self, "rules", RULES)


RULES = (Trend, Peak, Greater, Close, Dominates, Coincides, Turns, Law, All)


def simple(rule) -> list:
    """Returns the rules that a rule consists of: those within an `All`, or itself."""
    return [part for inner in rule.rules for part in simple(inner)] if isinstance(rule, All) else [rule]


def compared(rule) -> list:
    """Returns the picks or paths that a simple rule compares: both picks of a Difference, and a number not at all."""
    found: list[Pick | Path] = []
    for part in (getattr(rule, "a", None), getattr(rule, "b", None)):
        found += compared(part) if isinstance(part, Difference) else [part] if isinstance(part, (Pick, Path)) else []
    return found


def has_own_border(rule) -> bool:
    """Whether a simple rule itself says how large a difference must be, by a margin or a `by`."""
    return hasattr(rule, "margin") or bool(getattr(rule, "by", 0.0))
