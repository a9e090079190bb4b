"""The table of the kinds of stages: the name of each kind, its fields, what it needs, what it does and what it gives.

A kind is a file of `rlhf_jax/stages/` that ends in `register(Stage(...))`, and a line of `stages/__init__.py` that
imports the file. The pipeline, the checks of a config, the planner, sweeps and reports all read this table.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rlhf_jax.fields.field import Section


def _consistent(name: str, section: Mapping) -> Iterator[str]:
    """The default of `inconsistent`: no combination of values is inconsistent."""
    return iter(())


def _filled(section: Mapping) -> None:
    """The default of `fill`: no field that is None stands for another value."""
    return None


@dataclasses.dataclass(frozen=True)
class Stage:
    """A kind of stage.

    The functions check, run, evaluate and training take (run, stage): the `run.Run`, and the name of a section of its
    config.

    Attributes:
      kind: value of the field `kind` of its sections.
      fields: the fields of its sections, with their defaults.
      check: raises InputError if the stage lacks something it needs, or sizes do not fit; computes nothing.
      run: does the work, and writes the results into the stage's folder; resumes where an earlier call was stopped. What it
        returns, if anything, are facts for the stage's done.json.
      gives: what later stages find in its folder: "policy", "reward" (a reward model), "rankings" or "completions".
      label: name of the policy in tables and figures.
      evaluate: writes the stage's evaluation.json; None if `run` does so itself, or if there is nothing to evaluate.
      judged: whether its completions of the test prompts are judged and compared with those of other stages.
      reference: whether it gives the policy that win rates and KL refer to (the first such stage of a run does).
      base: whether it gives the policy that nobody has taught anything yet; a chat shows the first such stage of a run.
      kl_by_formula: section -> KL of its completions to the policy `init`, in nats, for a policy that has no weights.
      rows_read: (run, stage) -> rows that the training reads, over all its epochs; None: nothing is trained.
      training: returns what `run` trains, ready to be trained alone or together with other trials; None: nothing is
        trained.
      alone: section -> whether the stage is trained by itself, although `training` is there, because it looks at its
        policy while it trains.
      programs: (run, stage, abstract.Data) -> list of abstract.Program; None: nothing is trained.
      planned_last: whether a plan has the last stage of the kind, and not the first, unless it is asked for others.
      paper_compute: petaflop/s-days that the stage took at 175B parameters in the InstructGPT paper.
      parts: section -> {field that splits a batch to save memory: number of rows that it splits}.
      batch_field: name of the field with the number of rows of an optimizer step.
      loss_unit: unit of its metric "loss", for the figure of losses; "": the figure does not show it.
      weight_bytes: section -> bytes of memory per trained weight, its optimizer state included, for a first estimate.
      state_part: section -> the place of the weights that it hands on in its checkpoints, such as "params".
      reads_text: whether it reads the texts of completions, so that another run's reward model can score them.
      inconsistent: (name, section) -> sentences about values that are possible alone but not together.
      fill: replaces the section's fields that are None by the values they stand for.
    """

    kind: str
    fields: Section
    check: Callable[[Any, str], None]
    run: Callable[[Any, str], dict | None]
    gives: str
    label: str = ""
    evaluate: Callable[..., None] | None = None
    judged: bool = False
    reference: bool = False
    base: bool = False
    kl_by_formula: Callable[[Mapping], float] | None = None
    rows_read: Callable[[Any, str], float] | None = None
    training: Callable[[Any, str], Any] | None = None
    alone: Callable[[Mapping], bool] = lambda section: False
    programs: Callable[[Any, str, Any], list] | None = None
    planned_last: bool = False
    paper_compute: float | None = None
    parts: Callable[[Mapping], dict[str, int]] = lambda section: {"microbatches": section["batch_size"]}
    batch_field: str = "batch_size"
    loss_unit: str = ""
    weight_bytes: Callable[[Mapping], int] = lambda section: 12  # float32: the weight and Adam's two moving averages
    state_part: Callable[[Mapping], str] = lambda section: "params"
    reads_text: bool = False
    inconsistent: Callable[[str, Mapping], Iterator[str]] = _consistent
    fill: Callable[[Mapping], None] = _filled

    @property
    def refers(self) -> bool:
        """Whether evaluations depend on the stage, by its scores or as the reference.

        When such a stage ends, the evaluations of earlier stages are completed.
        """
        return self.reference or self.gives == "reward"


KINDS: dict[str, Stage] = {}


def register(stage: Stage) -> Stage:
    """Adds a kind to the table, and returns it.

    Raises:
      ValueError: there is already a kind of that name.
    """
    if stage.kind in KINDS:
        raise ValueError(f"there is already a kind of stage called {stage.kind}")
    KINDS[stage.kind] = stage
    return stage


def of(config: Mapping, stage: str) -> Stage:
    """Returns the kind of config[stage]."""
    return KINDS[config[stage]["kind"]]


def find(section: Any) -> Stage | None:
    """Returns the kind of a section, or None if the section is not a stage."""
    return KINDS.get(section.get("kind")) if isinstance(section, Mapping) or hasattr(section, "items") else None


def giving(*what: str) -> tuple[str, ...]:
    """Returns the names of the kinds that give one of `what` (see Stage.gives)."""
    return tuple(kind for kind, stage in KINDS.items() if stage.gives in what)
