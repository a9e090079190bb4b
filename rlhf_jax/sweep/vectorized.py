"""Runs all arms side by side in one process: many arms train a stage as one program (see trials).

An arm's folder holds the same files as with the sequential runner. The policies of a stage also answer the questions
of their evaluation together. Collecting data and judging answers go one arm after another. If arms share a stage, the
first of them computes it and the others adopt it.
"""

import contextlib
import os
import pathlib
import time

from rlhf_jax import pipeline
from rlhf_jax import run as run_lib
from rlhf_jax.evaluate import policy
from rlhf_jax.fields import registry
from rlhf_jax.run import Run
from rlhf_jax.runtime import hosts, machine, progress
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.sweep import sequential, trials
from rlhf_jax.sweep.arms import Arm
from rlhf_jax.sweep.store import Store, identities
from rlhf_jax.sweep.trials import evaluation


def run(chosen: list[Arm], path: pathlib.Path, store: Store, retry: bool = False, at_once: int = 0) -> None:
    """Runs or resumes the unfinished ones of these arms, in path/arms/NAME.

    Args:
      chosen: the arms.
      path: folder of the sweep.
      store: the stages that arms share.
      retry: whether to run failed arms again.
      at_once: the largest number of arms in one program, to limit memory; 0 sets no limit.

    Raises:
      progress.Stopped: the process was asked to stop; the same call resumes.
    """
    missing = hosts.on_first(lambda: [sequential.missing(path / "arms" / arm.name, retry) for arm in chosen])
    todo = [arm for arm, to_do in zip(chosen, missing) if to_do]
    with contextlib.ExitStack() as stack:
        interrupt = stack.enter_context(progress.Interrupt())
        running = stack.enter_context(_Running(store, path, len(todo)))
        for arm in todo:
            running.start(arm, stack, interrupt)
        for stage in dict.fromkeys(stage for arm in todo for stage in arm.config.stages):
            running.run_stage(stage, at_once)
        for arm in list(running.runs):
            with running.failing(arm):
                policy.rescore(running.runs[arm])


class _Running:
    """The arms that have neither failed nor finished; use as a context manager.

    Args:
      store: the stages that arms share.
      path: folder of the sweep.
      count: number of arms; each is charged this fraction of the process's time.

    Attributes:
      runs: runs of the arms, by the arm's name.
    """

    def __init__(self, store: Store, path: pathlib.Path, count: int):
        self._store, self._path, self._count = store, path, count
        self._accounts: dict[str, sequential.Account] = {}
        self.runs: dict[str, Run] = {}

    def start(self, arm: Arm, stack: contextlib.ExitStack, interrupt: progress.Interrupt) -> None:
        """Opens an arm; its run stays open until `stack` is closed."""
        folder = self._path / "arms" / arm.name
        self._accounts[arm.name] = sequential.Account(folder, most_attempts=None, together=self._count)
        self._accounts[arm.name].__enter__()
        with self.failing(arm.name):
            with self._store.tokenizer(arm.config, folder):
                opened = run_lib.start(arm.config, os.fspath(folder), arm.overrides, self._store.corpora, interrupt)
                run = stack.enter_context(opened)
            pipeline.check(run)
            self.runs[arm.name] = run

    def run_stage(self, stage: str, at_once: int) -> None:
        """Runs and evaluates a stage of all arms that have it."""
        having = [name for name, run in self.runs.items() if stage in run.config.stages]
        alike = {}
        for name in having:
            alike.setdefault(identities(self.runs[name].config)[stage], []).append(name)
        with contextlib.ExitStack() as locks:
            # All processes take the locks in the same order; otherwise two could wait for each other's stages forever.
            for identity in sorted(alike):
                locks.enter_context(self._store.shared(self.runs[alike[identity][0]], stage))
            firsts = [names[0] for names in alike.values()]
            self._train(firsts, stage, at_once)
            answers = self._answers(firsts, stage, at_once)
            for first in firsts:
                with self.failing(first):
                    if first in self.runs:
                        _complete(self.runs[first], stage, *answers.get(first, ()))
        for first, *others in alike.values():
            for name in others:
                with self.failing(name):
                    if first not in self.runs:
                        raise InputError(f"stage '{stage}' failed in arm {first}, which computes it for this arm too")
                    with self._store.shared(self.runs[name], stage):
                        _complete(self.runs[name], stage)

        def done(name):
            return (self._path / "arms" / name / stage / "done.json").exists()

        hosts.on_first(trials.forget, self._path / "trials", stage, done)

    def _train(self, names: list[str], stage: str, at_once: int) -> None:
        """Trains a stage of the arms that have not finished it, if it is of a kind that can be batched over trials."""
        names = [name for name in names if not self.runs[name].done(stage)]
        names = [name for name in names if _stacks(self.runs[name].config, stage)]
        # Adapters share a base, of which a stack would hold a copy for each trial: they are trained one after another.
        names = [name for name in names if self.runs[name].trained_shape(stage).lora is None]
        if not names:
            return
        print(f"\n{stage}: {len(names)} arms", flush=True)
        started = time.monotonic()
        failures = trials.fit_stage([self.runs[name] for name in names], stage, self._path / "trials", at_once)
        seconds = (time.monotonic() - started) / len(names)
        for place, name in enumerate(names):
            with self.failing(name):
                if place in failures:
                    raise failures[place]
                self.runs[name].mark_done(stage, seconds, trials=len(names), **machine.described())

    def _answers(self, names: list[str], stage: str, at_once: int) -> dict[str, tuple]:
        """Returns the answers of policies that are evaluated together: arm -> (answers, seconds per arm).

        An arm without an entry is evaluated by itself (see evaluation.answers).
        """
        names = [name for name in names if name in self.runs and self.runs[name].done(stage)]
        names = [name for name in names if pipeline.to_evaluate(self.runs[name], stage)]
        names = [name for name in names if registry.of(self.runs[name].config, stage).gives == "policy"]
        found = evaluation.answers([self.runs[name] for name in names], stage, at_once)
        return {names[place]: answers for place, answers in found.items()}

    @contextlib.contextmanager
    def failing(self, name: str):
        """Context in which an error ends one arm and not the sweep; progress.Stopped passes through."""
        try:
            yield
        except progress.Stopped:
            raise
        except Exception as error:
            self._end(name, error)

    def _end(self, name: str, error: Exception) -> None:
        """Ends an arm and records its error; raises the error again if its account does not suppress it."""
        self.runs.pop(name, None)
        if not self._accounts.pop(name).__exit__(type(error), error, error.__traceback__):
            raise error

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        for name in list(self._accounts):
            self.runs.pop(name, None)
            self._accounts.pop(name).__exit__(kind, error, trace)
        return False


def _complete(run: Run, stage: str, *answers) -> None:
    """Evaluates a stage that is trained already, else trains and evaluates it by itself."""
    if run.done(stage):
        pipeline.evaluate(run, stage, *answers)
    else:
        pipeline.run_stage(run, stage)


def _stacks(config, stage: str) -> bool:
    """Whether a stage can be trained in one program with that of other arms."""
    kind = registry.of(config, stage)
    return kind.training is not None and not kind.alone(config[stage])
