"""Benchmarks by EleutherAI's lm-eval, with our models as its backend."""

import hashlib
import pathlib
from collections.abc import Callable

import jax

from rlhf_jax.evaluate.harness import results
from rlhf_jax.evaluate.harness.answers import Answers
from rlhf_jax.evaluate.harness.backend import Backend
from rlhf_jax.evaluate.harness.tasks import Options, Tasks
from rlhf_jax.language_model import LanguageModel
from rlhf_jax.runtime import hosts

_CACHE = "lm_eval.cache"  # the folder of the answers; a name with a dot is no part of a finished stage
_HASHED = 1 << 20  # bytes at each end of a large file that its fingerprint takes into account


def batch_tokens(platform: str) -> int:
    """Returns about how many tokens a batch has on a device, where nobody says it."""
    return 2048 if platform == "cpu" else 65536


def evaluate(
    language_model: LanguageModel,
    source: pathlib.Path,
    folder: pathlib.Path,
    tasks: Tasks,
    options: Options,
    *,
    asked: Callable[[], int],
    tokens: int = 0,
    seed: int = 0,
    stream=None,
) -> dict[str, dict]:
    """Evaluates a model on tasks, and writes what was found.

    All processes of a job must call this. Answers are kept as they come, so that the same call goes on after a stop.

    Args:
        language_model: the model.
        source: the folder that the model came from: that of a stage, or of released weights.
        folder: the folder for the results.
        tasks: the tasks.
        options: how they are asked.
        asked: function that returns the signal that asked to stop, or 0.
        tokens: about how many tokens a batch has on each device; 0: what suits the platform.
        seed: seed of the random numbers of completions that are drawn.
        stream: where progress is shown; None: standard output.

    Returns:
        The entries of lm_eval.json for these tasks.

    Raises:
        Stopped: it was asked to stop.
    """
    hosts.on_first(lambda: folder.mkdir(parents=True, exist_ok=True))
    config = language_model.config
    identity = f"{hosts.on_first(fingerprint, source)} {config.dtype}"
    backend = Backend(
        language_model,
        Answers(folder / _CACHE / "answers.jsonl", identity),
        hosts.Stop(asked),
        batch_tokens=tokens or batch_tokens(language_model.mesh.devices.flat[0].platform),
        seed=seed,
        stream=stream,
    )
    with jax.set_mesh(language_model.mesh):
        found = tasks.run(backend, options)
    entries = results.summarize(found, tasks, options, backend.cut)
    hosts.on_first(results.write, folder, found, entries)
    return entries


def fingerprint(folder: pathlib.Path) -> str:
    """Returns a hash of a model's files, which tells whether answers are those of the model as it is now.

    Of a file of more than 2 MiB, the size and both ends count.
    """
    parameters = folder / "params" / "manifest.json"
    files = [parameters] if parameters.is_file() else sorted(path for path in folder.iterdir() if path.is_file())
    files += sorted(folder.glob("*/params/manifest.json"))  # a work directory stands for one of its stages
    if parameters.is_file():  # a stage reads with its run's tokenizer
        files += [path for path in (folder.parent / "tokenizer.json", folder.parent / "template.txt") if path.is_file()]
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with open(path, "rb") as file:
            digest.update(file.read(_HASHED))
            file.seek(max(0, size - _HASHED))
            digest.update(file.read(_HASHED))
    return digest.hexdigest()
