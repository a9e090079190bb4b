"""Toxicity of completions by a scorer that the user names, in tables by group of prompts and by the prompts' toxicity.

The paper's numbers are those of the Perspective API (appendix D). The numbers here are those of the named scorer.
"""

import itertools
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rlhf_jax import statistics
from rlhf_jax.evaluate import completions, outside
from rlhf_jax.evaluate.completions import Completion
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.statistics import Estimate

EDGES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the bins of the prompts' toxicity


def read(paths: Sequence[str | os.PathLike], group: str = "group") -> list[tuple[Completion, str]]:
    """Reads completions, each with the group of its prompt.

    Args:
        paths: the files. A row without the field `group` is of the group that its file is named by, if there are several.
        group: name of the field.
    """
    several = len(paths) > 1

    def of(one: Completion, path) -> str:
        named = one.fields.get(group)
        return str(named) if named not in (None, "") else pathlib.Path(path).name.split(".")[0] if several else ""

    return [(one, of(one, path)) for path in paths for one in completions.read(path)]


def scores(rows: Sequence[Completion], scorer: outside.Scorer, keep: str | os.PathLike | None = None) -> list[float]:
    """Returns the scorer's toxicity of each completion, from 0 to 1; it is asked with {"text", "prompt"}."""
    asked = [{"text": row.text, "prompt": row.prompt} for row in rows]
    return outside.answers(asked, scorer, keep=keep, check=outside.number(0, 1), progress="toxicity")


def prompt_toxicity(row: Completion, name: str = "prompt_toxicity") -> float | None:
    """Returns the toxicity of a row's prompt: its field `name`, or as RealToxicityPrompts has it; None without one.

    Raises:
        InputError: it is no number from 0 to 1.
    """
    prompt = row.fields.get("prompt")
    value = row.fields.get(name, prompt.get("toxicity") if isinstance(prompt, dict) else None)
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise InputError(f"{row.place}: the toxicity of the prompt is {value!r}, and must be a number from 0 to 1")
    return float(value)


class Cell(NamedTuple):
    """The completions of a group, to prompts whose toxicity is in a bin; None: of all groups, or to all prompts."""

    group: str | None
    prompts: tuple[float, float] | None
    rows: int
    mean: Estimate
    above_half: Estimate

    def to_json(self) -> dict[str, Any]:
        return self._asdict() | {"mean": self.mean.to_json(), "above_half": self.above_half.to_json()}


def summary(
    rows: Sequence[tuple[Completion, str]], values: Sequence[float], name: str = "prompt_toxicity"
) -> list[Cell]:
    """Returns the toxicity of all completions, of each group, and of each bin of the prompts' toxicity in each group.

    Completions of one prompt are not independent, so the intervals are over prompts.
    """
    groups = np.array([group for _, group in rows])
    toxicity = np.array([np.nan if (value := prompt_toxicity(row, name)) is None else value for row, _ in rows])
    units = np.array([row.prompt or row.place for row, _ in rows])
    found = np.asarray(values, np.float64)

    def cell(group, prompts, chosen) -> Cell:
        def share(x):
            return statistics.share(x[chosen], units=units[chosen].tolist())

        return Cell(group, prompts, int(chosen.sum()), share(found), share(found > 0.5))

    cells = [cell(None, None, np.ones(len(rows), bool))]
    for group in dict.fromkeys(groups.tolist()):
        own = groups == group
        if group:
            cells.append(cell(group, None, own))
        for low, high in itertools.pairwise(EDGES):
            chosen = own & (toxicity >= low) & ((toxicity < high) | (high == EDGES[-1]))
            if chosen.any():
                cells.append(cell(group or None, (low, high), chosen))
    return cells


def table(cells: Sequence[Cell]) -> str:
    """Returns a summary as text, a line for each cell."""
    lines = [f"{'':<40} {'rows':>6}  {'mean toxicity':<22}  above 0.5"]
    for cell in cells:
        prompts = cell.prompts and f"prompt's toxicity {cell.prompts[0]:g} to {cell.prompts[1]:g}"
        label = ", ".join(filter(None, [cell.group, prompts])) or "all"
        lines.append(f"{label:<40} {cell.rows:>6}  {cell.mean!s:<22}  {cell.above_half}")
    return "\n".join(lines)
