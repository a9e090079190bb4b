"""Sides of a comparison: processes that are kept alive, and that do a work once whenever they are told to.

A side reads lines from its standard input and answers each with a line of JSON. Here is what both ends need of this;
it imports neither JAX nor torch, because each side must pay only for what it uses itself.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import NamedTuple

from rlhf_jax.runtime.errors import InputError


class Work(NamedTuple):
    """What a side does.

    Attributes:
      run: does the work once; returns the seconds of each part by name.
      found: returns what the runs computed, by name.
      peak: returns the peak memory in bytes.
    """

    run: Callable[[], dict[str, float]]
    found: Callable[[], dict[str, list]]
    peak: Callable[[], int] = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def serve(make: Callable[[dict], Work]) -> None:
    """Is a side: makes its work of the first line, which is JSON, and answers the lines "run" and "end"."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer

    def answer(**said):
        print(json.dumps(said), file=channel, flush=True)

    work = make(json.loads(sys.stdin.readline()))
    answer(ready=True)
    for line in sys.stdin:
        if line == "run\n":
            answer(seconds=work.run())
        else:
            peak = work.peak()  # before what is computed for the comparison alone
            answer(found=work.found(), peak=peak)
            break
    channel.close()
    os._exit(0)  # libraries may have threads that wait


class Side:
    """The other end: starts a side, and tells it what to do.

    Args:
      module: the module that calls `serve`.
      given: what its `make` is given.
      environment: variables that it gets beside those of this process.

    Raises:
      InputError: the side ended by itself; the message has the last lines that it wrote.
    """

    def __init__(self, module: str, given: dict, environment: dict[str, str]):
        self._module, self._errors = module, tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ | environment,
        )
        self._ask(json.dumps(given))

    def run(self) -> dict[str, float]:
        """Returns the seconds of each part of one run."""
        return self._ask("run")["seconds"]

    def end(self) -> dict:
        """Ends the side; returns what it "found" and the "peak" of its memory in bytes."""
        answer = self._ask("end")
        self._process.wait(60)
        return answer

    def kill(self) -> None:
        """Ends the side whatever it does."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def _ask(self, line: str) -> dict:
        try:
            print(line, file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self._process.wait()
            self._errors.seek(0)
            last = " | ".join(self._errors.read().strip().splitlines()[-3:])
            raise InputError(f"{self._module} ended with status {self._process.returncode}: {last}")
        return json.loads(answer)
