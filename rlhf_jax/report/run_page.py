"""The report of one run: report.md and figures/ in its directory.

Everything in it is read from the files of the run, and a part whose files are missing is left out.
"""

import rich.console
from rich.text import Text

from rlhf_jax.report import run_progress
from rlhf_jax.report.figures import of_run as figures
from rlhf_jax.report.figures import safety
from rlhf_jax.report.record import Record
from rlhf_jax.report.run_benchmarks import benchmark_sections
from rlhf_jax.report.run_origin import data_sections, origin_sections
from rlhf_jax.report.run_policies import (
    judge,
    policy_table,
    reference,
    reference_lines,
    sample_table,
    tax_lines,
    weights_lines,
)
from rlhf_jax.report.run_reward import NO_ACCURACY, reward_sections, reward_table
from rlhf_jax.report.run_training import noted_lines, noted_of, sample_sections, warning_sections
from rlhf_jax.runtime.files import write_text
from rlhf_jax.runtime.markdown import cell, image
from rlhf_jax.runtime.terminal import visible

_NO_POLICY = "No policy is evaluated yet."


def progress_of(path) -> run_progress.RunProgress:
    """Returns how far a run is; raises InputError if the path is no run."""
    return run_progress.progress_of(Record.load(path))


def write(path) -> rich.console.Group:
    """Writes report.md and figures/ into a run's directory.

    Returns:
      The part of the report that belongs on a terminal, for rich's `print`.

    Raises:
      InputError: the path is no run, or cannot be written.
    """
    record = Record.load(path)
    record.read_all()  # an error in a file must be raised before anything is written
    drawn = [*figures.draw_run(record, record.path / "figures"), *safety.draw_run(record, record.path / "figures")]
    policies, tax = policy_table(record), tax_lines(record)
    progress, noted = run_progress.progress_of(record), noted_lines(record)
    weights = [*weights_lines(record), *reference_lines(record)]
    sections = [
        f"# Report of {cell(record.path.name)}",
        *run_progress.unfinished_sections(
            progress, {stage: noted_of(record, stage) for stage in record.config["stages"]}
        ),
        *map(cell, noted),
        "± is half of a 95 % interval over prompts, and for skills over few-shot items. The interval is Student's t "
        "for means, and Wilson's for shares and for scores between 0 and 1. A mean without ± is a mean of equal "
        f"numbers. The win rate compares completions of the same prompts by {judge(record)}. KL is log π − log π of "
        f"{cell(reference(record))} for the sampled tokens, summed over the completion.",
        "## Policies",
        policies.markdown() if record.evaluations else _NO_POLICY,
    ]
    sections += map(cell, weights)
    if tax:
        sections += ["## Alignment tax", "\n".join(f"- {cell(line)}" for line in tax)]
    sections += benchmark_sections(record)
    if record.reward:
        sections += ["## Reward model", *reward_sections(record)]
    sections += warning_sections(record)
    if drawn:
        sections += [
            "## Figures",
            *(f"{image(name, f'figures/{name}')}\n\n*{cell(caption)}*" for name, caption in drawn),
        ]
    if samples := sample_table(record):
        sections += [
            "## Completions",
            "The completions were sampled at temperature "
            f"{next(iter(record.evaluations.values()))['temperature']:g}. The number in brackets is the gold score, "
            "or the reward score if there is no gold score.",
            samples.markdown(),
        ]
    sections += sample_sections(record)
    if record.data["stages"]:
        sections += ["## Data", *data_sections(record)]
    sections += ["## How it was made", *origin_sections(record)]
    write_text(record.path / "report.md", "\n\n".join(sections) + "\n")
    lines = [
        *run_progress.state_lines(progress),
        *noted,
        *weights,
        *tax,
        f"Figures and more: {record.path / 'report.md'}",
    ]
    if not record.evaluations and not record.reward_splits:
        lines.insert(0, NO_ACCURACY if record.reward else _NO_POLICY)
        return rich.console.Group(*(Text(visible(line)) for line in lines))
    shown = policies if record.evaluations else reward_table(record)  # the reward model is all there is
    return rich.console.Group(
        shown.rich(f"{record.path.name}, ± half of a 95 % interval"), *(Text(visible(line)) for line in lines)
    )
