"""Jinja templates rendered in a process of their own, which may use so much time and memory and no more.

A chat template is somebody else's program. Jinja's sandbox keeps it from the machine, but not from a loop that never
ends, or a value that fills the memory, within one operation of Python's as much as in many. So this file is both sides:
a function for us, and the program that the other process runs, which imports the standard library and Jinja alone. The
limits are the system's, and hold in whichever thread the function is called.
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

SECONDS = 5  # of computing, for one text
MEGABYTES = 512  # of memory, beside the interpreter's own
CHARACTERS = 10_000_000  # of a text


class TemplateError(Exception):
    """What is wrong with a template, in a few words.

    Attributes:
        invalid: it is no Jinja; else it was refused while it was rendered.
    """

    def __init__(self, reason: str, invalid: bool = False):
        super().__init__(reason)
        self.invalid = invalid


def render(source: str, now: datetime.datetime | None, values: dict[str, Any]) -> str:
    """The text of a template.

    Args:
        now: what strftime_now tells it; None: the time.
        values: of its variables, as JSON has them.

    Raises:
        TemplateError: the template is no Jinja, refuses the values, fails, or exceeds a limit.
    """
    global _process
    with _lock:
        if _process is None or _process.owner != os.getpid():
            _process = _Process()
        try:
            found = _process.ask(source, now.isoformat() if now else None, values)
        except BaseException:  # an answer that nobody reads would be the next one's
            _process.end()
            _process = None
            raise
    if "text" in found:
        return found["text"]
    raise TemplateError(found["reason"], found["invalid"])


class _Process:
    """Our end: starts the other process, and knows which templates it has seen."""

    def __init__(self):
        self.owner = os.getpid()
        self._known: dict[tuple, int] = {}
        self._process = subprocess.Popen(
            # -P: the modules beside this file are not the standard library's.
            [sys.executable, "-P", __file__, str(SECONDS), str(MEGABYTES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for us; it ends when its input does
        )

    def ask(self, source: str, now: str | None, values: dict[str, Any]) -> dict[str, Any]:
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
        self._process.kill()
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


_process: _Process | None = None
_lock = threading.Lock()


@atexit.register
def _end() -> None:
    if _process and _process.owner == os.getpid():
        _process.end()


# ---------------------------------------------------------------------------- the other process


def _environment(now: str | None):
    """With the helpers that chat templates expect of every program that renders them."""
    import jinja2
    import jinja2.ext
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        """{% generation %}...{% endgeneration %} marks what the assistant wrote; it is written as it is."""

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
    """Bytes that the interpreter and its libraries have mapped, which differ between machines by hundreds of megabytes."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except FileNotFoundError:  # not Linux
        return 2**28


def _serve(seconds: float, megabytes: int) -> None:
    """Answers questions, each a line of JSON, until the input ends or a limit is exceeded."""
    _environment(None).from_string(
        ""
    ).render()  # whatever is imported for a template is loaded before memory is limited
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + megabytes * 2**20,) * 2)
    templates: list = []
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, seconds)  # whose signal ends the process, whatever it is doing
        answer = json.dumps(_answer(json.loads(line), templates)).encode()
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.buffer.write(answer + b"\n")
        sys.stdout.buffer.flush()


def _answer(question: dict[str, Any], templates: list) -> dict[str, Any]:
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
    except Exception as error:  # whatever a template does wrong
        line = getattr(error, "lineno", None)
        reason = (str(error) or type(error).__name__) + (f", line {line}" if line else "")
    return found | {"reason": reason, "invalid": not valid}


if __name__ == "__main__":
    _serve(float(sys.argv[1]), int(sys.argv[2]))
