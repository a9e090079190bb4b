"""Rules: what a claim says, so that it can be wrong. How each is judged: report/verdicts.py."""

import dataclasses
from dataclasses import field

from rlhf_jax.report.spec.fields import listed, of_kind, one_of, tuple_of
from rlhf_jax.runtime.errors import InputError

LAWS = ("constant", "linear", "kl", "log_n", "best_of_n", "rl")  # evaluate/overoptimization.py has what they say


@dataclasses.dataclass(frozen=True)
class Path:
    """The settings of one stage, joined along a field (None: points alone)."""

    stage: str
    axis: str | None = None
    where: dict = field(default_factory=dict)
    label: str = ""


@dataclasses.dataclass(frozen=True)
class Pick:
    """For each seed the mean of a quantity over the settings chosen; `y` overrides the rule's quantity.

    With `tuned`, a field: at the value of it that is `best` in the first seed, which then judges nothing.
    """

    stage: str
    where: dict = field(default_factory=dict)
    y: str | None = None
    label: str = ""
    tuned: str | None = None
    best: str = "highest"  # or lowest

    def __post_init__(self):
        one_of(self, "best", ("highest", "lowest"))


@dataclasses.dataclass(frozen=True)
class Trend:
    """y rises, or falls, with the field: the slope of y over the rank of the field's values, of each seed."""

    y: str
    stage: str
    axis: str
    direction: str
    where: dict = field(default_factory=dict)

    def __post_init__(self):
        one_of(self, "direction", ("rises", "falls"))


@dataclasses.dataclass(frozen=True)
class Peak:
    """Inverted U: a value inside the axis is better than both ends; for each seed the *other* seeds choose it."""

    y: str
    stage: str
    axis: str
    where: dict = field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Greater:
    """a > factor * b + by, paired over seeds; `b` may be a number."""

    a: Pick
    b: Pick | float
    y: str
    by: float = 0.0
    factor: float = 1.0

    def __post_init__(self):
        of_kind(self, "a", Pick)
        of_kind(self, "b", (Pick, int, float))


@dataclasses.dataclass(frozen=True)
class Close:
    """|a - b - difference| < margin (equivalence), paired over seeds; `b` may be a number."""

    a: Pick
    b: Pick | float
    y: str
    margin: float
    difference: float = 0.0

    def __post_init__(self):
        of_kind(self, "a", Pick)
        of_kind(self, "b", (Pick, int, float))


@dataclasses.dataclass(frozen=True)
class Dominates:
    """The path a lies above the path b on a plane: mean gap of y at equal x over the range both cover, by seed.

    With `file` the points of a path are not its settings but the steps of their runs, x and y metrics of that file.
    """

    a: Path
    b: Path
    x: str
    y: str
    sqrt_x: bool = False
    file: str = ""  # "metrics.jsonl", or another file of JSON lines

    def __post_init__(self):
        of_kind(self, "a", Path)
        of_kind(self, "b", Path)


@dataclasses.dataclass(frozen=True)
class Coincides(Dominates):
    """The paths a and b lie together: the mean gap of Dominates is within +-margin (equivalence)."""

    margin: float = field(kw_only=True)


@dataclasses.dataclass(frozen=True)
class Turns:
    """A metric falls after its highest step (rises after its lowest): by more than `by` until the last tenth of the run.

    What chooses that step does not judge it: for each seed it is where the mean of the *other* seeds is highest, of
    every other step before the last tenth; what is judged is this seed's mean of the two steps beside it, less that of
    its last tenth. Of several settings each has a step of its own, and the mean over them is the seed's number.
    """

    y: str  # a metric of metrics.jsonl, without "history:"; steps that do not have it do not count
    stage: str
    direction: str
    by: float = 0.0
    where: dict = field(default_factory=dict)

    def __post_init__(self):
        one_of(self, "direction", ("falls", "rises"))


@dataclasses.dataclass(frozen=True)
class Law:
    """A law of what a distance gains predicts better than each law of `against` what neither was fitted to.

    Of training (over="steps"): y over the KL x of each step, start included, for each setting; fitted to every other
    step of the *other* seeds, judged at the steps between of this one. Of a best_of_n stage (over="prompts"): y
    ("gold", "score") gained over n = 1; fitted to every other n of three quarters of the prompts, judged at the n
    between of the other quarter, in turn. The number is the squared error saved, in units of y squared. A law that
    is a special case of the other loses to it only where the other's further coefficient is worth its noise.
    """

    y: str
    stage: str
    law: str  # of LAWS
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
    """Every rule holds; it does not hold as soon as one does not, at a level corrected for their number."""

    rules: tuple

    def __post_init__(self):
        tuple_of(self, "rules", RULES)


RULES = (Trend, Peak, Greater, Close, Dominates, Coincides, Turns, Law, All)
