"""Runs the stages of a config in order, with their evaluations and the report; finished stages are skipped."""

import contextlib
import time

from rlhf_jax import checkpoint, fitted, forecast, sharding, sources, weights
from rlhf_jax import run as run_lib
from rlhf_jax.evaluate import answers as answers_lib
from rlhf_jax.evaluate import benchmarks, policy
from rlhf_jax.fields import noted, registry
from rlhf_jax.report import pages
from rlhf_jax.rewards import functions
from rlhf_jax.runtime import finished, hosts, machine


def run_stages(config, path: str, overrides: dict | None = None, store=None) -> None:
    """Runs or resumes a config in a work directory.

    Args:
      config: the config.
      path: the work directory.
      overrides: fields given on the command line, which are kept for readers of the directory.
      store: the stages that arms of a sweep share (sweep.store.Store); with a store, no report is written.

    Raises:
      InputError: the config or the data have an error; it is raised before the first stage where possible.
    """
    with run_lib.start(config, path, overrides, store and store.corpora) as run:
        check(run)
        for stage in config.stages:
            with store.shared(run, stage) if store else contextlib.nullcontext():
                run_stage(run, stage)
        policy.rescore(run)
        if not store:
            hosts.on_first(lambda: pages.show(pages.write(run.path)))


def run_stage(run: run_lib.Run, stage: str) -> None:
    """Runs one stage and then its evaluation; either is skipped if it is finished."""
    if run.done(stage):
        print(f"{stage}: finished before")
    else:
        forecast.tell(run, stage)
        started = time.monotonic()
        told = registry.of(run.config, stage).run(run, stage)
        run.mark_done(stage, time.monotonic() - started, **machine.described(), **(told or {}))
    evaluate(run, stage)


def to_evaluate(run: run_lib.Run, stage: str) -> bool:
    """Whether a finished stage is to be evaluated and has not been."""
    kind = registry.of(run.config, stage)
    # A policy of another shape serves only to initialize a reward model of that shape, so it is not evaluated.
    wanted = kind.evaluate is not None and (kind.gives != "policy" or run.shape(stage) == run.model)
    return wanted and not run.evaluated(stage)


def evaluate(run: run_lib.Run, stage: str, answers: answers_lib.Answers | None = None, seconds: float = 0.0) -> None:
    """Evaluates a finished stage, unless its evaluation is finished, too.

    Args:
      run: the run.
      stage: name of the stage.
      answers: the policy's answers, if they have been sampled already.
      seconds: the time that they took.
    """
    kind = registry.of(run.config, stage)
    if to_evaluate(run, stage):
        started = time.monotonic() - seconds
        kind.evaluate(run, stage, answers)
        run.workdir.mark_evaluated(stage, time.monotonic() - started)
        print(f"{stage}: evaluated in {time.monotonic() - started:.1f} s", flush=True)
    if benchmarks.wanted(run, stage):
        benchmarks.evaluate(run, stage)
    if kind.refers:
        policy.rescore(run)


def check(run: run_lib.Run) -> None:
    """Reads all inputs of the stages, so that errors of later stages are reported before hours of computation.

    Then the run's program is chosen, where the config leaves that open (see fitted.py).

    Finished stages are checked for damage, too.

    Raises:
      InputError: a stage or its evaluation lacks an input, or a file of a finished stage has changed.
    """
    hosts.on_first(noted.check, run.config.to_dict(), run.path)
    if not all(map(run.done, run.config.stages)):
        run.corpus.read()
    for stage in run.config.stages:
        kind = registry.of(run.config, stage)
        if run.done(stage):
            hosts.on_first(finished.check, run.folder(stage))
            hosts.on_first(checkpoint.check_params, run.folder(stage) / "params")
        else:
            sources.check_names(run.config, stage)
            functions.check(run.config[stage], stage)
            kind.check(run, stage)
            weights.check_sources(run, stage)
        asks_policy = kind.judged and (to_evaluate(run, stage) or kind.evaluate is None and not run.done(stage))
        if asks_policy:
            policy.check(run, stage)
    if any(benchmarks.wanted(run, stage) for stage in run.config.stages):
        hosts.on_first(lambda: benchmarks.tasks_of(run).names)
    sharding.check_parts("evaluate.batch_size", run.config.evaluate.batch_size, 1, run.mesh)
    fitted.settle(run)
