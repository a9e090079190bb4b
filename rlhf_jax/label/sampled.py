"""Completions of models for people to judge, sampled by `rlhf_jax.generate` and kept beside the file of judgments.

A process of its own samples, and gives back the memory of the model when it ends: people judge for hours.
"""

import pathlib
import subprocess
import sys
from collections.abc import Sequence

from rlhf_jax.data.files import checksum
from rlhf_jax.runtime import files
from rlhf_jax.runtime.errors import InputError


class Failed(Exception):
    """The sampling has ended with a sentence of its own, and this exit status."""

    def __init__(self, status: int):
        super().__init__()
        self.status = status


def completions(out, models: Sequence[str], prompts: str, flags: Sequence[str]) -> list[tuple[str, str]]:
    """Samples completions of each model, or finds those that an earlier start has sampled.

    Args:
        out: the file of judgments; the completions lie beside it, in NAME.completions/.
        models: folders of models, as `rlhf_jax.generate --model` takes them.
        prompts: the file of prompts.
        flags: further flags of `rlhf_jax.generate`.

    Returns:
        The name of each model, which is its folder as given, and the file of its completions.

    Raises:
        InputError: the folder has completions of other models, prompts or flags.
        Failed: a model cannot complete the prompts, or Ctrl-C was pressed.
    """
    out = pathlib.Path(out)
    folder = files.own_folder(out.with_name(f"{out.stem}.completions"))
    asked = {"models": list(models), "prompts": checksum(prompts), "flags": list(flags)}
    if any(folder.glob("*.jsonl")) and files.read_if_there(folder / "asked.json") != asked:
        raise InputError(
            f"{folder} has completions of other --models, --prompts or flags of sampling; give the same ones, or another --out"
        )
    files.write_json(folder / "asked.json", asked)
    found = []
    for number, model in enumerate(models, start=1):
        path = folder / f"{number}.jsonl"
        if not path.exists():
            if status := _generate([f"--model={model}", f"--prompts={prompts}", f"--out={path}", *flags]):
                raise Failed(status)
        found.append((model, str(path)))
    return found


def _generate(flags: Sequence[str]) -> int:
    """Runs the command, which finishes its batch at Ctrl-C and says its own sentences; returns its exit status."""
    with subprocess.Popen([sys.executable, "-m", "rlhf_jax.generate", *flags]) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:  # the command has got it, too
                continue
