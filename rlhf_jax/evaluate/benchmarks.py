"""The benchmarks of a run: what config.evaluate.tasks names, asked of every policy after its own evaluation."""

import functools
import time

from rlhf_jax.evaluate import harness
from rlhf_jax.evaluate.harness import results
from rlhf_jax.evaluate.harness.tasks import Options, Tasks
from rlhf_jax.fields import registry
from rlhf_jax.language_model import LanguageModel
from rlhf_jax.run import Run
from rlhf_jax.runtime import hosts, shipped
from rlhf_jax.weights import load_params


def wanted(run: Run, stage: str) -> bool:
    """Whether a stage gives a policy of the run's own shape, which the benchmarks of the config are asked of."""
    kind = registry.of(run.config, stage)
    return bool(run.config.evaluate.tasks) and kind.gives == "policy" and run.shape(stage) == run.model


def tasks_of(run: Run) -> Tasks:
    """Returns the tasks of a run's config.

    Raises:
        InputError: lm-eval is missing, a task is unknown, or its data cannot be read.
    """
    config = run.config.evaluate
    return _tasks(tuple(config.tasks), tuple(config.task_folders), config.task_data, config.task_download)


@functools.lru_cache(maxsize=4)
def _tasks(names: tuple[str, ...], folders: tuple[str, ...], data: str, download: bool) -> Tasks:
    """Loads tasks once for all policies, and for all runs of a sweep."""
    own = map(str, shipped.folders("experiments/evals"))
    return Tasks(names, [*folders, *own], {"data": data} if data else {}, download)


def evaluate(run: Run, stage: str) -> None:
    """Asks a finished stage the tasks that it has not been asked in the same way; `wanted` says of which stages.

    Raises:
        Stopped: the run was asked to stop. Answers are kept.
    """
    config = run.config.evaluate
    options = Options(limit=config.task_limit or None, apply_chat_template=config.task_chat)
    tasks = tasks_of(run)
    folder = run.folder(stage)
    if hosts.on_first(_is_done, folder, tasks, options):
        return
    started = time.monotonic()
    policy = LanguageModel(run.shape(stage), load_params(run, stage), run.tokenizer, run.template, run.mesh, run.rules)
    harness.evaluate(policy, folder, folder, tasks, options, asked=run.interrupt.asked, seed=run.seed)
    print(f"{stage}: {', '.join(tasks.names)} in {time.monotonic() - started:.1f} s", flush=True)


def _is_done(folder, tasks: Tasks, options: Options) -> bool:
    entries = results.read(folder)
    asked = results.as_asked(options)
    return all(name in entries and entries[name]["options"] == asked for name in tasks.names)
