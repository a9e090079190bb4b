"""The card of an exported model, README.md of its folder: how it was trained, on what, and what it is worth.

A card is meant to be published with the model. So it names files and other models, but no folders of the machine.
"""

import json
import pathlib

from rlhf_jax import notes
from rlhf_jax.data.template import Template
from rlhf_jax.fields import noted, registry
from rlhf_jax.report.record import estimate_of, label, reference_label
from rlhf_jax.report.tables import QUANTITIES, REWARD_QUANTITIES, TextTable
from rlhf_jax.runtime import finished
from rlhf_jax.runtime.files import read_if_there
from rlhf_jax.runtime.markdown import cell, code
from rlhf_jax.sources import Trained

_FOLDERS = ("dir", "path")  # fields of a config that hold folders of the machine


def card(source: Trained) -> str:
    """Returns the card of a stage, or of one of its checkpoints, as Markdown with the hub's front matter."""
    config, kind = source.config.to_dict(), registry.of(source.config, source.stage)
    what = {"policy": "language model", "reward": "reward model"}[kind.gives]
    task = {"policy": "text-generation", "reward": "text-classification"}[kind.gives]
    front = ["---", "library_name: transformers", f"pipeline_tag: {task}", "tags:", "- rlhf", f"- {kind.kind}", "---"]
    step = "" if source.step is None else f", at the checkpoint of step {source.step}"
    sections = [
        "\n".join(front),
        f"# {cell(label(source.stage))}",
        f"This {what} was trained with rlhf_jax, by the stage {cell(source.stage)} (of the kind {kind.kind}){step}.",
        "## Data",
        _data(source.workdir, config),
        *_prompts(source.workdir),
        *_models(source),
        *_evaluation(source),
        "## Config",
        code(json.dumps(_public(noted.note(config, source.stage)), indent=2, ensure_ascii=False)),
    ]
    return "\n\n".join(sections) + "\n"


def _data(workdir: pathlib.Path, config: dict) -> str:
    """Returns what is known about the data: the embedded world, or the files with their rows and checksums."""
    if config["data"]["source"] == "world":
        return f"The data are those of the embedded world of rlhf_jax, made by a program (seed {config['data']['world']['seed']})."
    report = read_if_there(workdir / notes.REPORT) or {}
    checksums, read = report.get("checksums") or {}, report.get("files") or {}
    names = dict.fromkeys([*read, *checksums])
    rows = [
        [pathlib.PurePath(name).name, str(read.get(name, {}).get("kept", "–")), checksums.get(name, "–")[:16]]
        for name in names
    ]
    return TextTable(["file", "rows", "SHA-256"], rows, words=1).markdown()


def _prompts(workdir: pathlib.Path) -> list[str]:
    """Returns the form of the run's prompts; [] for a chat template, which an export has beside its tokenizer."""
    path = workdir / "template.txt"
    if not path.is_file():
        return []
    template = Template.load(path)
    said = "An instruction is written in one of these forms, with and without an input. The completion takes the place of `{output}`."
    return ["## Prompts", said, code(template.with_input), code(template.without_input)]


def _models(source: Trained) -> list[str]:
    """Returns a table of the models that the stage has used and its run has not trained; [] if there are none."""
    used = (finished.facts(source.workdir / source.stage) or {}).get("models") or {}
    rows = [[pathlib.PurePath(name).name, found["checksum"][:16]] for name, found in used.items()]
    return ["## Models that it was trained with", TextTable(["model", "checksum (SHA-256)"], rows).markdown()] * bool(
        rows
    )


def _evaluation(source: Trained) -> list[str]:
    """Returns the table of a finished stage's evaluation; [] where there is none, as for a checkpoint."""
    path = source.workdir / source.stage / "evaluation.json"
    found = finished.read_if_there(path) if source.step is None else None
    if not found:
        return []
    if "estimates" in found:
        reference = reference_label([found.get("reference")])
        rows = [
            [quantity.against(reference).title, quantity.show(estimate)]
            for quantity in QUANTITIES
            if (estimate := estimate_of(found["estimates"], quantity.name))
        ]
    else:
        rows = [
            [quantity.title, quantity.show(estimate)]
            for quantity in REWARD_QUANTITIES
            if (estimate := _of_split(found, quantity.name))
        ]
    said = "± is half of a 95 % interval over prompts, and for skills over few-shot items."
    return ["## Evaluation", TextTable(["", label(source.stage)], rows).markdown(), said] * bool(rows)


def _of_split(found: dict, name: str) -> dict | None:
    """Returns the estimate of a reward model's evaluation under the name SPLIT/QUANTITY."""
    split, quantity = name.split("/")
    value = (found.get(split) or {}).get(quantity)
    return value if isinstance(value, dict) or value is None else {"value": value, "low": None, "high": None}


def _public(values):
    """Returns a config without the folders of the machine."""
    if not isinstance(values, dict):
        return values
    return {
        name: pathlib.PurePath(value).name if name in _FOLDERS and isinstance(value, str) else _public(value)
        for name, value in values.items()
    }
