"""The loop that drives every trained stage: resume, step, check, log, validate, save, stop."""

import contextlib
import dataclasses
import functools
import math
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator

import jax

from rlhf_jax import metrics as metrics_lib
from rlhf_jax.checkpoint import Checkpointer
from rlhf_jax.journal import Journal
from rlhf_jax.run import Run
from rlhf_jax.runtime import hosts
from rlhf_jax.runtime.clock import Clock
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import write_json
from rlhf_jax.runtime.progress import Progress, Stopped

AHEAD = 1.0  # seconds before the end of a step at which the next one is handed to the devices
STEPS = "steps.json"  # {"total": number of steps}, for readers of an unfinished stage, because data decide the number


class NonFinite(Exception):
    """Raised when a loss or gradient is not finite: training stops, and no saved file is overwritten."""


def each(run: Run, name: str, items: Iterable, total: int) -> Iterator:
    """Yields the items of work that is saved only as a whole, such as an evaluation, and shows its progress.

    Args:
      run: the run whose interrupt stops the work.
      name: label of the progress display.
      items: the items.
      total: number of items.

    Raises:
      Stopped: an interrupt was asked for before the last item. The work is lost, and is done again on resuming.
    """
    if not total:
        return
    stop = hosts.Stop(run.interrupt.asked)
    with Progress(name, total) as progress:
        for number, item in enumerate(items, 1):
            yield item
            progress.update(number)
            if number < total and (stopping := stop.agreed(wait=True)):
                raise Stopped(name, number, stopping)


@dataclasses.dataclass(frozen=True)
class Trial:
    """A trained stage of one run: its length, and what is checked, shown and written while it trains.

    Attributes:
      run: the run.
      stage: name of the stage.
      total: number of steps.
      rows: step -> rows of that step's batch, named in the error when a step is not finite.
      live: label -> metric, shown while the stage runs.
      validate: (state, steps done) -> metrics, called after the steps for which `validates` is True.
      validate_every: number of steps between validations; 0: at the end alone.
      due: steps done -> whether there is a validation; None: every `validate_every` steps and at the end.
      samples: steps done -> completions that were looked at in that step, as rows of training_samples.jsonl.
      stop: metrics of the validations so far -> why the stage ends now, in one sentence; "": it goes on.
      clock: what `advance` marks the parts of a step on, for the metrics "time/PART".
    """

    run: Run
    stage: str
    total: int
    rows: Callable[[int], list[int]]
    live: dict[str, str] = dataclasses.field(default_factory=dict)
    validate: Callable | None = None
    validate_every: int = 0
    due: Callable[[int], bool] | None = None
    samples: Callable[[int], list[dict]] = lambda done: []
    stop: Callable[[list[dict]], str] = lambda validated: ""
    clock: Clock = dataclasses.field(default_factory=Clock)

    @property
    def folder(self) -> pathlib.Path:
        """The folder of the stage's files."""
        return self.run.workdir.stage(self.stage)

    def validates(self, done: int) -> bool:
        """Whether there is a validation after `done` steps."""
        if self.due is not None:
            return self.validate is not None and self.due(done)
        regular = self.validate_every and done % self.validate_every == 0
        return self.validate is not None and bool(done == self.total or regular)


def fit(trial: Trial, state, advance: Callable, *, checkpoint_every: int):
    """Runs the steps of a stage, from its newest checkpoint if there is one.

    Args:
      trial: the stage to train.
      state: the initial state, on the mesh; donated.
      advance: (state, step) -> (state, metrics of scalars). Everything random or read must depend on (seed, step)
        alone, so that a resumed run is identical to one that was never interrupted. Before it changes the state, it may
        raise InputError, which ends the stage with the state saved.
      checkpoint_every: number of steps between checkpoints.

    Returns:
      The final state.

    Raises:
      Stopped: an interrupt was asked for; the state is saved.
      NonFinite: a metric is not finite; the message names the step, the rows and the last good checkpoint.
    """

    def failed(_, error):
        raise error

    return fit_all(
        {0: trial},
        state,
        lambda state, step, _: advance(state, step),
        folder=trial.folder / "checkpoints",
        checkpoint_every=checkpoint_every,
        state_of=lambda state, _: state,
        metrics_of=lambda metrics, _: metrics,
        failed=failed,
        clock=trial.clock,
    )


def fit_all(
    trials: dict[int, Trial],
    state,
    advance: Callable,
    *,
    folder: pathlib.Path,
    checkpoint_every: int,
    state_of: Callable,
    metrics_of: Callable,
    failed: Callable[[int, NonFinite], None],
    clock: Clock,
):
    """Runs `fit` for several trials that share one state: each has its own metrics, and all share one checkpoint.

    Args:
      trials: the trials by their place in the state; their runs share one interrupt.
      state: the initial state, on the mesh; donated.
      advance: (state, step, places still being trained) -> (state, metrics). It must leave the other places unchanged.
      folder: folder of the checkpoints.
      checkpoint_every: number of steps between checkpoints.
      state_of: (state, place) -> the state of one trial.
      metrics_of: (metrics as `metrics.compute` returns them, place) -> the metrics of one trial.
      failed: called with the place and the error of a trial that is not finite. Unless it raises, that trial is trained
        no further, and the others continue.
      clock: measures the parts of the steps, which all trials share.

    Returns:
      The final state, in which each trial's part is its state after its own `total` steps.

    Raises:
      Stopped: an interrupt was asked for; the state is saved.
    """
    run = next(iter(trials.values())).run
    total = max(trial.total for trial in trials.values())
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    on_cpu = all(device.platform == "cpu" for device in jax.tree.leaves(state)[0].devices())
    with contextlib.ExitStack() as stack:
        kept, kept_every = run.config.checkpoints_kept, run.config.checkpoints_every
        checkpointer = stack.enter_context(Checkpointer(folder, kept, kept_every))
        restored = checkpointer.restore(abstract, replaced=state)
        first = 0
        if restored:
            first, state = restored
        for trial in trials.values():
            hosts.on_first(write_json, trial.folder / STEPS, {"total": trial.total})
        journals = {
            place: stack.enter_context(
                Journal(
                    trial.folder,
                    min(first, trial.total) if restored else None,
                    functools.partial(trial.run.trackers.stage, trial.stage),
                )
            )
            for place, trial in trials.items()
        }
        name = trials[min(trials)].stage + (f" x {len(trials)}" if len(trials) > 1 else "")
        progress = stack.enter_context(Progress(name, total, first))
        alive = {place for place in trials if not trials[place].stop(journals[place].validated)}
        stack.enter_context(clock)

        def record(step, places, step_metrics, validated, seconds):
            """Fetches, checks and writes the metrics of a step.

            It is called one step late, so that the devices never wait for the host. Only before what is validated or
            saved, the step itself is waited for.
            """
            values, shown = metrics_lib.compute(step_metrics), []
            times = seconds()
            for place in sorted(alive.intersection(places)):
                trial, row = trials[place], {**metrics_of(values, place), **validated.get(place, {})}
                bad = [name for name, value in row.items() if not math.isfinite(value)]
                if bad:
                    alive.remove(place)
                    failed(place, _non_finite(trial, step, bad, checkpointer.latest_step(), folder))
                else:
                    journals[place].write(step, row | times, trial.samples(step))
                    shown.append({label: row[name] for label, name in trial.live.items() if name in row})
            if shown:
                progress.update(step, {label: sum(row[label] for row in shown) / len(shown) for label in shown[0]})

        def save(done, state):
            for journal in journals.values():
                journal.sync()
            checkpointer.save(done, state)
            if on_cpu:
                # While a CPU's arrays are written, they cannot be donated: the next step would copy the whole state.
                checkpointer.wait()

        stop = hosts.Stop(run.interrupt.asked)
        pending = None
        for step in range(first, total):
            places = sorted(place for place in alive if trials[place].total > step)
            if not places:
                break
            if stopping := stop.agreed():  # asked before the next step starts; steps already dispatched are finished
                if pending:
                    record(*pending)
                if step and alive:
                    save(step, state)
                    checkpointer.wait()
                raise Stopped(name, step, stopping)
            clock.begin()
            try:
                state, step_metrics = advance(state, step, places)
            except InputError:  # as of a reward function: the state is as it was, and the next start repeats the step
                if pending:
                    record(*pending)
                if step > first and alive:
                    save(step, state)
                    checkpointer.wait()
                raise
            seconds = clock.end(step_metrics)
            done = step + 1
            if pending:
                record(*pending)
            validates = [place for place in sorted(alive.intersection(places)) if trials[place].validates(done)]
            if validates:
                jax.block_until_ready(step_metrics)  # its time is not the validation's
            validating = time.monotonic()
            validated = {
                place: metrics_lib.compute(trials[place].validate(state_of(state, place), done)) for place in validates
            }
            if validated:
                seconds = _with(seconds, {"time/validation": round(time.monotonic() - validating, 4)})
            pending = (done, places, step_metrics, validated, seconds)
            saving = done == total or done % checkpoint_every == 0
            if validated or saving:
                record(*pending)
                pending = None
            else:
                clock.wait_nearly(AHEAD)
            ended = {place for place in alive.intersection(validated) if trials[place].stop(journals[place].validated)}
            if (saving or ended) and alive:
                save(done, state)
            alive -= ended
        if pending:
            record(*pending)
    return state


def _with(seconds: Callable[[], dict], others: dict) -> Callable[[], dict]:
    return lambda: seconds() | others


def _non_finite(trial: Trial, step: int, bad: list[str], saved: int | None, folder: pathlib.Path) -> NonFinite:
    """Returns the error that names a step's non-finite metrics, the rows of its batch and the last good checkpoint."""
    last = f"the last good checkpoint is step {saved}" if saved else "no checkpoint was saved yet"
    shown = ", ".join(str(row) for row in trial.rows(step - 1)[:16])
    return NonFinite(
        f"{trial.stage} step {step}: {', '.join(bad)} not finite; rows of its batch: {shown}; "
        f"{last} in {folder}; lower the learning rate or look at these rows"
    )
