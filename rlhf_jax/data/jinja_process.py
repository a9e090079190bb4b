"""Renders Jinja templates in a separate process with limits on time and memory.

A chat template is a third party's program. Jinja's sandbox denies it access to the machine, but does not stop an
endless loop or a value that fills the memory, even within a single Python operation. So this file has two sides: the
function `render`, and the program of the other process, which imports only the standard library and Jinja. The
operating system enforces the limits, so they hold whichever thread calls the function.
"""

import atexit
import datetime
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from typing import Any

SECONDS = 5  # largest CPU time for one text
MEGABYTES = 512  # largest address space beyond what the interpreter uses before it renders
CHARACTERS = 10_000_000  # largest length of a rendered text


class TemplateError(Exception):
    """A template cannot be rendered; the message says why in a few words.

    Attributes:
        invalid: whether the template is no valid Jinja; otherwise it failed while it was rendered.
    """

    def __init__(self, reason: str, invalid: bool = False):
        super().__init__(reason)
        self.invalid = invalid


def render(source: str, now: datetime.datetime | None, values: dict[str, Any]) -> str:
    """Returns the text that a template renders.

    Args:
        source: Jinja source of the template.
        now: the time that strftime_now gives the template; None gives the current time.
        values: values of the template's variables, of JSON's types.

    Raises:
        TemplateError: the template is no valid Jinja, refuses the values, fails, or exceeds a limit.
    """
    global _process
    with _lock:
        if _process is None or _process.owner != os.getpid():
            _process = _Process()
        try:
            found = _process.ask(source, now.isoformat() if now else None, values)
        except BaseException:  # an answer left unread would be taken for that of the next call
            _process.end()
            _process = None
            raise
    if "text" in found:
        return found["text"]
    raise TemplateError(found["reason"], found["invalid"])


class _Process:
    """The other process, from this side: starts it, and remembers which templates it has compiled."""

    def __init__(self):
        self.owner = os.getpid()
        self._known: dict[tuple, int] = {}
        self._process = subprocess.Popen(
            # -P keeps this file's folder off the import path, where modules may hide those of the standard library.
            [sys.executable, "-P", __file__, str(SECONDS), str(MEGABYTES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C does not reach it; it ends at the end of its input
        )

    def ask(self, source: str, now: str | None, values: dict[str, Any]) -> dict[str, Any]:
        """Returns the answer of the other process; raises TemplateError if it has died, as it does at a limit."""
        number = self._known.get((source, now))
        question = (
            {"number": number, "values": values}
            if number is not None
            else {"source": source, "now": now, "values": values}
        )
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = b""
        if not answer.endswith(b"\n"):
            status = self._process.wait()
            if status == -signal.SIGPROF:
                raise TemplateError(f"it computes for more than {SECONDS} seconds")
            raise TemplateError(f"it needs more memory than a template may have ({MEGABYTES} MB), or nests too deep")
        found = json.loads(answer)
        if "number" in found:
            self._known[source, now] = found["number"]
        return found

    def end(self) -> None:
        """Kills the process and closes its pipes."""
        self._process.kill()
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


_process: _Process | None = None
_lock = threading.Lock()


@atexit.register
def _end() -> None:
    """Ends the other process when this process exits."""
    if _process and _process.owner == os.getpid():
        _process.end()


# ---------------------------------------------------------------------------- the other process


def _environment(now: str | None):
    """Returns a sandboxed Jinja environment with the helper functions that chat templates expect."""
    import jinja2
    import jinja2.ext
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        """Accepts {% generation %}...{% endgeneration %} around the assistant's text, and renders what is inside."""

        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body).set_lineno(line)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, Generation]
    )

    def raise_exception(message: str):
        raise jinja2.TemplateError(message)

    def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    told = datetime.datetime.fromisoformat(now) if now else None
    environment.filters["tojson"] = to_json
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": lambda form: (told or datetime.datetime.now()).strftime(form),
    }
    return environment


def _address_space() -> int:
    """Returns the address space that the interpreter and its libraries use, in bytes.

    It differs between machines by hundreds of megabytes, so the limit is set relative to it.
    """
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except FileNotFoundError:  # only Linux has this file
        return 2**28


def _serve(seconds: float, megabytes: int) -> None:
    """Answers questions from standard input, each a line of JSON, until the input ends or a limit is exceeded."""
    _environment(None).from_string("").render()  # so that Jinja's modules are loaded before memory is limited
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + megabytes * 2**20,) * 2)
    templates: list = []
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, seconds)  # its signal ends the process, even inside a single operation
        answer = json.dumps(_answer(json.loads(line), templates)).encode()
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.buffer.write(answer + b"\n")
        sys.stdout.buffer.flush()


def _answer(question: dict[str, Any], templates: list) -> dict[str, Any]:
    """Returns the text of a template, or the reason why there is none; adds a new template to `templates`."""
    found, valid = {}, "number" in question
    try:
        if not valid:
            templates.append(_environment(question["now"]).from_string(question["source"]))
            found, valid = {"number": len(templates) - 1}, True
        parts, size = [], 0
        for part in templates[question.get("number", -1)].generate(question["values"]):
            parts.append(part)
            size += len(part)
            if size > CHARACTERS:
                return found | {"reason": f"it writes more than {CHARACTERS:,} characters", "invalid": False}
        return found | {"text": "".join(parts)}
    except MemoryError:
        reason = "it needs more memory than a template may have"
    except RecursionError:
        reason = "it nests too deep"
    except Exception as error:  # a template may raise anything
        line = getattr(error, "lineno", None)
        reason = (str(error) or type(error).__name__) + (f", line {line}" if line else "")
    return found | {"reason": reason, "invalid": not valid}


if __name__ == "__main__":
    _serve(float(sys.argv[1]), int(sys.argv[2]))
