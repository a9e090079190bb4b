"""Ready-made reward functions that ask another program: a command, or an HTTP server on this machine.

Both get one JSON object for a batch, and answer with another one:

    {"texts": [...], "prompts": [...], "rows": [...]}    ->    {"scores": [...]}
"""

import http.client
import json
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

Rows = Sequence[dict[str, Any]]

_LOCAL = ("localhost", "127.0.0.1", "::1")
_LARGEST = 2**28  # bytes of an answer


def command(
    texts: Sequence[str], prompts: Sequence[str], rows: Rows, *, command: str | Sequence[str], seconds: float = 600.0
) -> list[float]:
    """Returns the scores that a command writes: it is started for each batch, reads one JSON object and writes one.

    Args:
      texts, prompts, rows: as for every reward function.
      command: the program and its arguments, as a list or as one text. No shell reads it.
      seconds: the time that it may take for a batch.

    Raises:
      ValueError: the command ends with an error, takes too long, or writes something else.
    """
    words = _words(command)
    try:
        done = subprocess.run(
            words,
            input=_question(texts, prompts, rows),
            capture_output=True,
            timeout=seconds,
            start_new_session=True,  # Ctrl-C asks this process to stop; the command may finish its batch
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"the command {words[0]} took more than {seconds:g} seconds for a batch") from None
    except OSError as error:
        raise ValueError(f"the command {words[0]} cannot be started: {error.strerror}") from None
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise ValueError(f"the command {words[0]} ended with status {done.returncode}: {''.join(last) or 'no message'}")
    return _scores(done.stdout, f"the command {words[0]}")


def server(
    texts: Sequence[str],
    prompts: Sequence[str],
    rows: Rows,
    *,
    port: int,
    path: str = "/",
    host: str = "localhost",
    https: bool = False,
    seconds: float = 600.0,
) -> list[float]:
    """Returns the scores that an HTTP server answers to a POST with one JSON object.

    The server is on this machine, unless `host` names another one, to which all texts are then sent. No proxy is used,
    and no redirection is followed.

    Args:
      texts, prompts, rows: as for every reward function.
      port: the port of the server.
      path: the path of the request.
      host: the name or address of another machine.
      https: whether the connection is encrypted.
      seconds: the time that the server may be silent.

    Raises:
      ValueError: the server cannot be reached, answers with another status than 200, or with something else.
    """
    place = f"the server at {host}:{port}"
    kind = http.client.HTTPSConnection if https else http.client.HTTPConnection
    connection = kind(host, port, timeout=seconds)
    try:
        connection.request("POST", path, _question(texts, prompts, rows), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        said = answer.read(_LARGEST)
    except (OSError, http.client.HTTPException) as error:
        raise ValueError(f"{place} cannot be asked: {str(error) or type(error).__name__}") from None
    finally:
        connection.close()
    if answer.status != 200:
        raise ValueError(f"{place} answered with status {answer.status} ({answer.reason}), and must answer with 200")
    return _scores(said, place)


def _check_command(command: str | Sequence[str], seconds: float = 600.0) -> None:
    words = _words(command)
    if not words or not all(isinstance(word, str) for word in words):
        raise ValueError("command must be a program with its arguments, as a text or a list of texts")
    if shutil.which(words[0]) is None:
        raise ValueError(f"there is no command {words[0]}")
    _check_seconds(seconds)


def _check_server(
    port: int, path: str = "/", host: str = "localhost", https: bool = False, seconds: float = 600.0
) -> None:
    if isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 2**16:
        raise ValueError(f"port={port!r} must be a whole number from 1 to 65535")
    if not isinstance(host, str) or not host or "/" in host:
        raise ValueError(f"host={host!r} must be the name or the address of a machine, without http://")
    if not isinstance(path, str) or not path.startswith("/"):
        raise ValueError(f"path={path!r} must begin with /")
    _check_seconds(seconds)
    if host not in _LOCAL:
        print(f"rewards: prompts and completions are sent to {host}:{port}")


def _check_seconds(seconds: float) -> None:
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0:
        raise ValueError(f"seconds={seconds!r} must be a number above 0")


def _words(command: str | Sequence[str]) -> list[str]:
    return shlex.split(command) if isinstance(command, str) else list(command)


def _question(texts: Sequence[str], prompts: Sequence[str], rows: Rows) -> bytes:
    asked = {"texts": list(texts), "prompts": list(prompts), "rows": list(rows)}
    return json.dumps(asked, ensure_ascii=False, default=str).encode()


def _scores(said: bytes, who: str) -> list[float]:
    try:
        return [float(score) for score in json.loads(said)["scores"]]
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        begin = said[:80].decode(errors="replace")
        raise ValueError(f'{who} answered {begin!r}, and must answer {{"scores": [a number for each text]}}') from None


command.check = _check_command  # type: ignore[attr-defined]
server.check = _check_server  # type: ignore[attr-defined]
