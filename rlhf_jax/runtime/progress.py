"""Shows the progress of a long stage, and lets a person stop it."""

import contextlib
import errno
import os
import signal
import sys
import termios
import time
from collections.abc import Iterable, Iterator

import rich.markup
import rich.progress

from rlhf_jax.runtime import terminal


class Progress:
    """Shows the stage, step, rate, time left and a few metrics; use as a context manager.

    On a terminal this is a live bar. Elsewhere it is a plain line at the start, at the first step, every `seconds`, and
    at the last step, so that a log reads well. The line at the start says what the machine is busy with while the first
    step compiles. A bar within a bar, such as a validation's within a stage's, takes its place for the time; lines within
    lines are only written every `seconds`, so that short work is not reported twice.

    Args:
      stage: the name to show.
      total: number of steps of the whole stage.
      step: number of steps done before; they do not count in the rate.
      seconds: smallest time between two plain lines.
      unit: name of what is counted.
      stream: stream to write to; by default standard output.
    """

    _live: list = []  # the bars that are on the terminal, the innermost last
    _lines = 0  # displays that are written as lines at this time

    def __init__(self, stage: str, total: int, step: int = 0, seconds: float = 10.0, unit: str = "steps", stream=None):
        self._stream = stream or sys.stdout
        self._stage, self._total, self._seconds, self._unit = stage, total, seconds, unit
        self._first: tuple[int, float] | None = (
            None  # (step, time) of the first update, from which the rate counts, without the compilation before it
        )
        self._next_line = 0.0
        self._start = f"{step}/{total}"
        self._inner = False
        self._bar = None
        if self._stream.isatty():
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("{task.description}"),
                rich.progress.BarColumn(bar_width=24),
                rich.progress.TextColumn("{task.fields[status]}"),
                console=terminal.console(self._stream),
            )
            self._task = self._bar.add_task(
                rich.markup.escape(terminal.visible(stage)), total=total, completed=step, status=self._start
            )

    def update(self, step: int, metrics: dict[str, float] | None = None) -> None:
        """Shows that `step` steps are done, and two or three metrics by their labels."""
        now = time.monotonic()
        self._first = self._first or (step, now)
        status = self._status(step, now, metrics or {})
        with contextlib.suppress(OSError):  # a stream that is gone must not end the stage
            if self._bar:
                self._bar.update(self._task, completed=step, status=status)
            elif now >= self._next_line or (step == self._total and not self._inner):
                self._next_line = now + self._seconds
                print(f"{self._stage} {status}", file=self._stream, flush=True)

    def _status(self, step, now, metrics):
        """Returns the step, rate, time left and metrics as text."""
        parts = [f"{step}/{self._total}"]
        first_step, first_time = self._first
        if step > first_step and now > first_time:
            rate = (step - first_step) / (now - first_time)
            parts += [f"{rate:.3g} {self._unit}/s", f"{_duration((self._total - step) / rate)} left"]
        return "  ".join(parts + [f"{name} {value:.4g}" for name, value in metrics.items()])

    def __enter__(self):
        with contextlib.suppress(OSError):
            if self._bar:
                for outer in self._live[-1:]:
                    outer.stop()
                self._bar.start()
                self._live.append(self._bar)
            elif Progress._lines:
                self._inner, self._next_line = True, time.monotonic() + self._seconds
            else:
                print(f"{self._stage} {self._start}", file=self._stream, flush=True)
        Progress._lines += self._bar is None
        return self

    def __exit__(self, *_):
        Progress._lines -= self._bar is None
        if self._bar in self._live:
            self._live.remove(self._bar)
            with contextlib.suppress(OSError):
                self._bar.stop()
                for outer in self._live[-1:]:
                    outer.start()


def shown(name: str, items: Iterable, total: int) -> Iterator:
    """Yields the items of work and shows its progress; `loop.each` also stops at an interrupt."""
    with Progress(name, total) as progress:
        for number, item in enumerate(items, 1):
            yield item
            progress.update(number)


class Stopped(Exception):
    """The run was asked to stop and has saved its state; the message says how to resume.

    Attributes:
      signal: number of the signal that asked to stop.
    """

    def __init__(self, stage: str, step: int | None, number: int = signal.SIGTERM):
        place = stage if step is None else f"{stage} step {step}"
        super().__init__(f"stopped at {place}; run the same command to go on")
        self.signal = number


class Interrupt:
    """Turns the first SIGINT, SIGTERM or SIGHUP into a flag; a second signal raises KeyboardInterrupt at once.

    The end of a terminal sends SIGHUP, possibly twice, so a second SIGHUP does not stop at once. Under nohup, SIGHUP is
    ignored.

    Use this as a context manager around a loop, in the main thread. Check `requested` before every step; if it is set,
    save and raise `Stopped`. With several processes use `hosts.Stop` instead, because the signal may have reached
    another process.

    Attributes:
      requested: whether a signal has come.
    """

    def __init__(self):
        self.requested = False
        self._signal = signal.SIGTERM

    def asked(self) -> int:
        """Returns the signal that asked to stop, or 0."""
        return int(self._signal) if self.requested else 0

    def _handle(self, number, frame):
        """Handles a signal: sets the flag, or raises KeyboardInterrupt at the second one."""
        if number == signal.SIGHUP:
            _leave_terminal()
        if self.requested and number != signal.SIGHUP:
            raise KeyboardInterrupt
        if not self.requested:
            self.requested, self._signal = True, number
            # A signal may interrupt a print, which cannot be entered again; os.write can.
            with contextlib.suppress(OSError):
                os.write(2, b"\nstopping after this step; once more to stop at once, without saving\n")

    def __enter__(self):
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        self._previous = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        outer = getattr(self._previous[signal.SIGINT], "__self__", None)
        if self.requested and isinstance(outer, Interrupt):  # tells a sweep's Interrupt of a signal that an arm's got
            outer.requested, outer._signal = True, self._signal


def _leave_terminal() -> None:
    """Redirects standard output and error to os.devnull if their terminal is gone, where every write would fail."""
    for descriptor in (1, 2):
        try:
            termios.tcgetattr(descriptor)
        except termios.error as error:
            if error.args[0] == errno.EIO:  # a file or a pipe gives ENOTTY, and is kept
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)


def _duration(seconds):
    """Returns a number of seconds as text, e.g. "1h05m" or "3m20s"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds:02}s"
