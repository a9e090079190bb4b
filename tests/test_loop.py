"""The loop of a stage, without a model: how many steps are made after a signal, and what is saved then."""

import contextlib
import sys
import threading
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import checkpoint, loop
from rlhf_jax.checkpoint import Checkpointer
from rlhf_jax.metrics import read_metrics
from rlhf_jax.runtime import clock as clock_lib
from rlhf_jax.runtime.files import read_json
from rlhf_jax.runtime.progress import Interrupt, Stopped
from rlhf_jax.trackers import Trackers

STEPS = 6


def run_in(
    path,
    monkeypatch,
    *,
    long=False,
    at: tuple | None = None,
    checkpoint_every=100,
    validate=None,
    device=lambda step: step,
):
    """Runs the loop; `at` = ("advance" or "record", step): during that the signal comes. The order of what happened.

    With `long`, every step is waited for to its end. `device` makes the metric of a step, "on_device".
    """
    monkeypatch.setattr(loop, "AHEAD", -float("inf") if long else float("inf"))
    interrupt, happened = Interrupt(), []
    config = types.SimpleNamespace(checkpoints_kept=2, checkpoints_every=0)
    workdir = types.SimpleNamespace(stage=lambda _: path)
    run = types.SimpleNamespace(config=config, interrupt=interrupt, workdir=workdir, trackers=Trackers())

    def note(what, step):
        happened.append((what, step))
        interrupt.requested |= at == (what, step)

    def advance(state, step):
        note("advance", step + 1)
        return {"x": state["x"] + 1}, {"loss": state["x"], "on_device": device(step + 1)}

    write = loop.metrics_lib.MetricsWriter.write
    monkeypatch.setattr(
        loop.metrics_lib.MetricsWriter, "write", lambda self, step, row: (note("record", step), write(self, step, row))
    )
    path.mkdir(exist_ok=True)
    trial = loop.Trial(run, "sft", STEPS, rows=lambda step: [step], validate=validate, validate_every=2)
    with pytest.raises(Stopped, match="stopped at sft") if at else contextlib.nullcontext():
        loop.fit(trial, {"x": jnp.float32(0)}, advance, checkpoint_every=checkpoint_every)
    return happened


def state_of(path):
    with Checkpointer(path / "checkpoints") as checkpointer:
        return checkpointer.restore({"x": jax.ShapeDtypeStruct((), jnp.float32)})


def test_an_unfinished_stage_says_how_many_steps_it_has(tmp_path, monkeypatch):
    run_in(tmp_path, monkeypatch, long=True, at=("advance", 3))
    assert read_json(tmp_path / loop.STEPS) == {"total": STEPS}


@pytest.mark.parametrize("long", [True, False])
@pytest.mark.parametrize("what", ["advance", "record"])
def test_no_step_is_begun_after_a_signal(tmp_path, monkeypatch, what, long):
    happened = run_in(tmp_path, monkeypatch, long=long, at=(what, 3))
    begun = [step for kind, step in happened if kind == "advance"]
    last = 4 if what == "record" else 3  # the devices have one step more than the host knows of
    assert begun == list(range(1, last + 1))
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == begun
    step, state = state_of(tmp_path)
    assert (step, float(state["x"])) == (last, last)


@pytest.mark.parametrize("long", [True, False])
def test_the_metrics_of_a_step_are_read_when_the_devices_have_the_next_one(tmp_path, monkeypatch, long):
    happened = run_in(tmp_path, monkeypatch, long=long)
    one_late = [(what, step + (what == "advance")) for step in range(1, STEPS) for what in ("advance", "record")]
    assert happened == [("advance", 1), *one_late, ("record", STEPS)]


def test_devices_are_given_the_next_step_before_they_are_done(tmp_path, monkeypatch):
    """A device that never gets done with a step, from the third on, before it has the next one."""
    given = [threading.Event() for _ in range(STEPS + 2)]

    class OnDevice:
        def __init__(self, step):
            given[step].set()
            self._next = given[step + 1] if 2 < step < STEPS else given[step]

        def block_until_ready(self):
            assert self._next.wait(10), "the host waits for a step before it gives the next one"
            return self

        def __array__(self, *_, **__):
            return np.asarray(self.block_until_ready() is self)

    begin = clock_lib.Clock.begin
    monkeypatch.setattr(clock_lib.Clock, "begin", lambda self: (begin(self), setattr(self, "_took", 1.5)))
    happened = run_in(tmp_path, monkeypatch, device=OnDevice)
    assert len(happened) == 2 * STEPS


@pytest.mark.parametrize("step", range(1, STEPS))
def test_stopped_anywhere_is_the_run_never_stopped(tmp_path, monkeypatch, step):
    with monkeypatch.context() as patch:
        run_in(tmp_path / "whole", patch, long=False)
    with monkeypatch.context() as patch:
        run_in(tmp_path / "stopped", patch, long=False, at=("advance", step))
    with monkeypatch.context() as patch:
        happened = run_in(tmp_path / "stopped", patch, long=False)
    assert happened[0] == ("advance", step + 1)
    rows = [[row["loss"] for row in read_metrics(tmp_path / name / "metrics.jsonl")] for name in ("whole", "stopped")]
    assert rows[0] == rows[1] == list(range(STEPS))


def test_on_a_cpu_a_checkpoint_is_written_before_the_next_step_which_would_copy_the_state(tmp_path, monkeypatch):
    write = checkpoint._Writer._write_manifest
    monkeypatch.setattr(checkpoint._Writer, "_write_manifest", lambda self: (time.sleep(0.2), write(self)))
    complete = []

    def validate(state, done):
        complete.append((tmp_path / "checkpoints" / str(done - 1)).is_dir())
        return {}

    run_in(tmp_path, monkeypatch, long=False, checkpoint_every=1, validate=validate)
    assert complete == [True] * 3  # before the checkpoints of steps 2, 4 and 6


def test_a_signal_before_the_first_step_saves_nothing_and_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(Interrupt, "asked", lambda self: 15)
    assert run_in(tmp_path, monkeypatch, long=True, at=("never", 0)) == []
    assert state_of(tmp_path) is None


def test_the_parts_of_a_step_add_up_to_it(monkeypatch):
    """The host hands over everything at once; the devices are done with a part when `mark` is told they are."""
    now = 0.0
    monkeypatch.setattr(clock_lib.time, "monotonic", lambda: now)
    monkeypatch.setattr(clock_lib, "_ready", lambda arrays: arrays[0])
    with clock_lib.Clock() as clock:
        found = []
        for step in range(2):  # the second is handed over at 1.0, while the first is being computed
            now = 1.0 * step
            clock.begin()
            clock.mark("sample", 20.0 * step + 4.0)
            clock.mark("update", 20.0 * step + 5.5)
            now += 0.5  # the host took half a second for the second update, and the devices did not wait
            clock.mark("update", 20.0 * step + 6.0)
            found.append(clock.end(20.0 * step + 6.0))
        assert found[0]() == {"time/sample": 4.0, "time/update": 2.0}
        assert found[1]() == {"time/sample": 18.0, "time/update": 2.0}
        now = 50.0  # the devices had nothing to do since 26.0, which is no part of a step
        clock.begin()
        assert clock.end(51.5)() == {"time/step": 1.5}


def test_the_next_step_is_prepared_shortly_before_the_end_of_a_long_one(monkeypatch):
    now, waited = 0.0, []
    monkeypatch.setattr(clock_lib.time, "monotonic", lambda: now)
    monkeypatch.setattr(clock_lib, "_ready", lambda arrays: arrays[0])
    monkeypatch.setattr(clock_lib, "wait", lambda futures, timeout: waited.append(timeout))
    with clock_lib.Clock() as clock:
        ends = []
        for ended in (10.0, 16.0, 22.0):
            clock.begin()
            ends.append(clock.end(ended))
            if len(ends) > 1:
                ends[-2]()
            clock.wait_nearly(1.0)
            now = ended - 0.5  # the host was half a second late
        ends[-1]()
        now = 100.0  # after a save
        clock.begin()
        clock.end(106.0)
        clock.wait_nearly(1.0)
        clock.wait_nearly(7.0)  # the step is short
    # The first step has none before it; the second is taken for 10 s from 10.0 on, the third for 6 s from 16.0 on.
    assert waited == [None, 20.0 - 1.0 - 9.5, 22.0 - 1.0 - 15.5, 5.0]


def test_a_part_does_not_wait_for_what_is_added_to_its_metrics_later(monkeypatch):
    handed_over, waited_for = threading.Event(), []

    def ready(arrays):
        handed_over.wait(10)
        waited_for.append(arrays)
        return 0.0

    monkeypatch.setattr(clock_lib, "_ready", ready)
    with clock_lib.Clock() as clock:
        clock.begin()
        clock.mark("sample", 1.0)
        metrics = {"score": 2.0}
        clock.mark("score", metrics)
        metrics["update"] = 3.0  # as an iteration of PPO does
        clock.mark("update", metrics["update"])
        handed_over.set()
        clock.end(metrics)()
    assert waited_for == [[1.0], [2.0], [3.0]]


def test_a_clock_waits_for_what_a_part_computes():
    with clock_lib.Clock() as clock:
        clock.begin()
        result = jax.jit(lambda x: jax.lax.fori_loop(0, 200_000, lambda _, y: jnp.sin(y), x))(jnp.ones(8))
        seconds = clock.end(result)
        assert seconds()["time/step"] > 0 and result.is_ready()


def test_every_step_and_every_validation_of_a_stage_has_its_seconds(tmp_path, monkeypatch):
    run_in(tmp_path, monkeypatch, long=False, validate=lambda state, done: {"valid/loss": 1.0})
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [("time/step" in row, "time/validation" in row) for row in rows] == [
        (True, bool(n % 2)) for n in range(STEPS)
    ]


def test_trackers_get_the_rows_of_metrics_jsonl_and_where_a_stage_goes_on(tmp_path, monkeypatch):
    """Also those of the last step before a signal, and of steps with a validation."""
    begun, logged = [], {}

    class Recorded(Trackers):
        def stage(self, *arguments):
            begun.append(arguments)
            return types.SimpleNamespace(metrics=lambda step, row: logged.setdefault(step, row))

    monkeypatch.setattr(sys.modules[__name__], "Trackers", Recorded)

    def validate(state, done):
        return {"valid/loss": state["x"]}

    with monkeypatch.context() as patch:
        run_in(tmp_path, patch, long=True, at=("record", 3), checkpoint_every=2, validate=validate)
    with open(tmp_path / "metrics.jsonl", "a", encoding="utf-8") as file:  # a kill after a step without a checkpoint
        file.write('{"step": 5, "loss": 4.0}\n')
    with monkeypatch.context() as patch:
        run_in(tmp_path, patch, long=True, validate=validate)
    assert begun == [("sft", 0, 0), ("sft", 4, 5)]
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert {row.pop("step"): {name: row[name] for name in row if name != "time"} for row in rows} == logged
    assert [step for step in sorted(logged) if "valid/loss" in logged[step]] == [2, 4, 6]
