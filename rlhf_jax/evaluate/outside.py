"""Outside scorers: a function or a command of the user's, which is asked for an answer to each of many rows.

A function gets a list of rows (JSON objects), and returns a list with the answer to each. A command gets each row as a
JSON line on its standard input, and writes the answer to each as a JSON line on its standard output, in the same order.

Answers are kept in a file as they come. Equal rows are asked once, so that a command that was stopped, or whose scorer
failed, goes on where it was, and a second run of it asks nothing. Nothing is imported or started but what the user named.
"""

import contextlib
import dataclasses
import hashlib
import importlib
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Generator, Sequence
from typing import Any

from rlhf_jax.runtime.errors import InputError, reason
from rlhf_jax.runtime.files import from_json, not_through_links, whole_lines
from rlhf_jax.runtime.progress import Progress

Row = dict[str, Any]
Check = Callable[[Any], Any]

_BATCH = 16  # rows that a function gets at once
_SECONDS_TO_END = 10.0  # that a command has after its last answer


class Miscount(InputError):
    """A scorer ended well and gave more or fewer answers than there are rows: nobody knows which answer is whose."""


@dataclasses.dataclass(frozen=True)
class Scorer:
    """What answers rows.

    Attributes:
        name: its name in messages and beside its kept answers.
        ask: generator of the answers to rows, in their order, each as soon as it is there; raises InputError where
            there is none.
        identity: what tells its kept answers from those of other scorers; "" is the name.
    """

    name: str
    ask: Callable[[Sequence[Row]], Generator[Any, None, None]]
    identity: str = ""


def answers(
    rows: Sequence[Row],
    scorer: Scorer,
    *,
    keep: str | os.PathLike | None = None,
    check: Check = lambda answer: answer,
    progress: str = "scoring",
) -> list[Any]:
    """Returns a scorer's answer to each row, as `check` returns it.

    Args:
        rows: JSON objects.
        scorer: what `function` or `command` returned, or one made by the caller.
        keep: file in which answers are kept; None keeps none.
        check: answer -> what it says; raises InputError for nonsense, with a phrase such as "is 7; it must be ...".
        progress: label of the progress display.

    Raises:
        InputError: the scorer fails, answers nonsense, or does not answer each row; answers that came before are kept.
    """
    keys = [_key(scorer, row) for row in rows]
    first = {key: place for place, key in reversed(list(enumerate(keys)))}  # of equal rows, the first is asked
    with _Kept(keep) as kept:
        places = sorted(place for key, place in first.items() if key not in kept.answers)
        done = len(first) - len(places)
        given = scorer.ask([rows[place] for place in places])
        try:
            with contextlib.closing(given), Progress(progress, len(first), done, unit="rows", stream=sys.stderr) as bar:
                for number, (place, answer) in enumerate(zip(places, given, strict=True), done + 1):
                    answer = _plain(answer, scorer, place)
                    _checked(check, answer, scorer, place)
                    kept.add(keys[place], scorer.name, answer)
                    bar.update(number)
        except Miscount:
            kept.forget()
            raise
        return [_checked(check, kept.answers[key], scorer, place) for place, key in enumerate(keys)]


def function(name: str, batch: int = _BATCH) -> Scorer:
    """Returns the scorer `module:function`, of a module in the current directory or in the environment.

    Args:
        name: the module and the function in it.
        batch: largest number of rows that the function gets at once.

    Raises:
        InputError: there is no such function, or its module cannot be imported.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise InputError(f"{name!r} is not of the form module:function, such as my_scorer:score")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` has it, and the installed commands do not
    try:
        found = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        which = (
            f"module {error.name}" if error.name == module_name else f"module {error.name}, which {module_name} imports"
        )
        raise InputError(f"{name}: there is no {which}, in this folder or in the environment") from error
    except (Exception, SystemExit) as error:
        raise InputError(f"{name}: {module_name} cannot be imported: {_said(error)}") from error
    score = getattr(found, attribute, None)
    if not callable(score):
        raise InputError(f"{name}: {module_name} has no function {attribute}")

    def ask(rows):
        for begin in range(0, len(rows), batch):
            part = list(rows[begin : begin + batch])
            try:
                given = list(score(part))
            except (Exception, SystemExit) as error:
                raise InputError(f"{name} failed in rows {begin + 1} to {begin + len(part)}: {_said(error)}") from error
            if len(given) != len(part):
                raise InputError(
                    f"{name} returned {len(given)} answers for {len(part)} rows; it must return one for each"
                )
            yield from given

    return Scorer(name, ask)


def command(text: str) -> Scorer:
    """Returns the scorer that a command line starts; it is split as a shell splits words, and no shell runs it.

    Raises:
        InputError: it is empty, or its quotation marks do not match.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InputError(f"the command {text!r} cannot be split into words: {error}") from None
    if not words:
        raise InputError("the command is empty; give a program that reads and writes JSON lines")

    def ask(rows):
        if rows:
            yield from _run(text, words, rows)

    return Scorer(text, ask)


def number(low: float, high: float) -> Check:
    """Returns the check of answers that are numbers from low to high, by themselves or as the "score" of an object."""

    def check(answer):
        value = answer.get("score") if isinstance(answer, dict) else answer
        if type(value) not in (int, float) or not low <= value <= high:
            raise InputError(
                f'is {json.dumps(answer)[:60]}; it must be a number from {low:g} to {high:g}, or {{"score": number}}'
            )
        return float(value)

    return check


def _run(name: str, words: list[str], rows: Sequence[Row]) -> Generator[Any, None, None]:
    """Yields the answers of a command, which gets all rows at once and may answer before it has read them all."""
    with tempfile.TemporaryFile() as complaints:
        try:
            process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints, start_new_session=True
            )
        except OSError as error:
            raise InputError(f"{name}: cannot be started: {reason(error)}") from None
        try:
            threading.Thread(target=_write, args=(process.stdin, rows), daemon=True).start()
            count = 0
            for line in process.stdout:
                if line.strip():
                    count += 1
                    yield _parsed(name, line, count)
                if count == len(rows):
                    break
            _end(name, process, count, len(rows), complaints)
        finally:
            _kill(process)
            process.stdout.close()


def _write(stream, rows: Sequence[Row]) -> None:
    """Writes the rows to a command, which may end before it has read them."""
    with contextlib.suppress(OSError), stream:  # its answers show how far it came
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            stream.flush()


def _parsed(name: str, line: bytes, number: int) -> Any:
    """Returns the answer of a line."""
    try:
        return from_json(line)
    except (ValueError, RecursionError):
        shown = line.decode(errors="replace").strip()[:60]
        raise InputError(f"{name}: line {number} of its answers is {shown!r}, and no JSON") from None


def _end(name: str, process: subprocess.Popen, count: int, wanted: int, complaints) -> None:
    """Waits until a command ends; raises InputError unless it answered each row once."""
    try:
        status = process.wait(_SECONDS_TO_END)
    except subprocess.TimeoutExpired:  # it waits for more rows than there are, or for whatever else
        _kill(process)
        status = process.returncode
    count += sum(bool(line.strip()) for line in process.stdout)
    complaints.seek(0)
    last = complaints.read().decode(errors="replace").strip().rpartition("\n")[2][:200]
    said = f"{name}: it ended with status {status} after {count} answers to {wanted} rows{last and f' ({last})'}"
    if count < wanted and status:
        raise InputError(said)
    if count != wanted:
        raise Miscount(f"{said}; it must write one line for each row, and its answers of this time are not kept")


def _kill(process: subprocess.Popen) -> None:
    """Ends a command and what it has started, and frees its pipes."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class _Kept:
    """Answers by their keys, in a file of JSON lines unless there is no path; use as a context manager."""

    def __init__(self, path: str | os.PathLike | None):
        self._path = None if path is None else pathlib.Path(path)
        self.answers: dict[str, Any] = {}
        self._file, self._before = None, (0, set())
        if self._path is not None:
            self._open()

    def _open(self) -> None:
        lines = whole_lines(self._path) if self._path.exists() else []
        for number, line in enumerate(lines, 1):
            try:
                row = from_json(line)
                self.answers[row["key"]] = row["answer"]
            except (ValueError, RecursionError, KeyError, TypeError):
                raise InputError(
                    f"{self._path}, line {number}: no answer that this command kept; remove the line, or give another file"
                ) from None
        size = sum(len(line) + 1 for line in lines)
        try:
            self._file = open(self._path, "ab", opener=not_through_links)
            self._file.truncate(size)  # a process that was killed as it wrote leaves half a line
        except OSError as error:
            raise InputError(f"{self._path} cannot be written: {reason(error)}") from None
        self._before = size, set(self.answers)

    def add(self, key: str, scorer: str, answer: Any) -> None:
        self.answers[key] = answer
        if self._file is not None:
            line = json.dumps({"key": key, "scorer": scorer, "answer": answer}, ensure_ascii=False)
            try:
                self._file.write(line.encode() + b"\n")
                self._file.flush()
            except OSError as error:
                raise InputError(f"{self._path} cannot be written: {reason(error)}") from None

    def forget(self) -> None:
        """Removes the answers that were added since the file was opened."""
        size, keys = self._before
        self.answers = {key: answer for key, answer in self.answers.items() if key in keys}
        if self._file is not None:
            self._file.truncate(size)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._file is not None:
            self._file.close()


def _key(scorer: Scorer, row: Row) -> str:
    """Returns the checksum of a row and of who is asked."""
    return hashlib.sha256(json.dumps([scorer.identity or scorer.name, row], sort_keys=True).encode()).hexdigest()


def _checked(check: Check, answer: Any, scorer: Scorer, place: int) -> Any:
    try:
        return check(answer)
    except InputError as error:
        raise InputError(f"{scorer.name}: its answer to row {place + 1} {error}") from None


def _plain(answer: Any, scorer: Scorer, place: int) -> Any:
    """Returns an answer as JSON has it: a NumPy number, an array or a tensor as Python's."""
    try:
        return from_json(json.dumps(answer.tolist() if hasattr(answer, "tolist") else answer))
    except (TypeError, ValueError, RecursionError):
        said = f"{scorer.name}: its answer to row {place + 1} is {repr(answer)[:60]}, which JSON does not have"
        raise InputError(said) from None


def _said(error: BaseException) -> str:
    """Returns what an error of the user's code says, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"
