"""The page and its requests, for one browser address that holds a secret.

The page is three fixed files; all texts reach it as JSON, and its script writes them as text, never as markup. Every
answer forbids scripts, styles, frames and connections from elsewhere. A request needs the secret, as the address has it
or as the cookie that the address leaves, a Host that is ours, and, where it changes something, an Origin that is ours:
another page that is open in the same browser has neither.
"""

import contextlib
import errno
import importlib
import json
import pathlib
import secrets
import signal
import socket
from typing import Any

from rlhf_jax.label import questions
from rlhf_jax.label.desk import Desk, Refused
from rlhf_jax.runtime.errors import InputError, reason

MOST_BYTES = 4 * 2**20  # of a request
_PAGE = pathlib.Path(__file__).parent / "page"
_FILES = {f"/{name}.js": "text/javascript" for name in ("label", "ranking", "text")} | {
    "/label.css": "text/css",
    "/icon.svg": "image/svg+xml",
}
_EVERYWHERE = ("0.0.0.0", "::", "")
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


def package(name: str) -> Any:
    """Returns a module of the extra `label`; raises InputError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise InputError(
            "rlhf_jax.label needs starlette and uvicorn: pip install 'rlhf_jax[label]', or in a checkout EXTRAS=label"
        ) from None


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens; port 0 takes a free one.

    Raises:
        InputError: the port is in use, or the host is none of this machine.
    """
    try:
        family = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        if isinstance(error, PermissionError) or error.errno == errno.EADDRINUSE:
            raise InputError(
                f"--port={port} is in use or not allowed ({reason(error)}); name another, or --port=0 for a free one"
            ) from None
        raise InputError(f"--host={host} cannot be listened on: {reason(error)}") from None


def address(host: str, port: int, token: str) -> str:
    """Returns the address that opens the page."""
    name = socket.gethostname() if host in _EVERYWHERE else f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/?token={token}"


def answering(app) -> Any:
    """Returns a uvicorn.Server for an application; its own settings of logging would close streams that others use."""
    uvicorn = package("uvicorn")
    return uvicorn.Server(
        uvicorn.Config(
            app,
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=2,
        )
    )


def serve(app, listening: socket.socket) -> None:
    """Answers requests until Ctrl-C or SIGTERM."""

    def stop(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)  # uvicorn ends cleanly, and then raises the signal once more
    try:
        with contextlib.suppress(KeyboardInterrupt):
            answering(app).run(sockets=[listening])
    finally:
        signal.signal(signal.SIGTERM, before)


class Site:
    """The requests of the page, answered by a desk.

    Args:
        desk: who judges what.
        task: "rankings" or "demonstrations".
        token: the secret.
        host, port: where it listens.
        labeler: the name under which the page enters by itself; "" asks for it.
    """

    def __init__(self, desk: Desk, *, task: str, token: str, host: str, port: int, labeler: str = ""):
        self._desk, self._token = desk, token
        self._cookie = f"rlhf_jax_label_{port}"  # browsers do not tell ports apart
        self._hosts = None if host in _EVERYWHERE else _names(host, port)
        self._setup = {
            "task": task,
            "asked": list(desk.asked),
            "flags": list(questions.FLAGS.items()),
            "labeler": labeler,
        }
        self._responses = package("starlette.responses")

    def app(self):
        """Returns the ASGI application."""
        Route = package("starlette.routing").Route
        actions = {
            "enter": self._enter,
            "next": self._shown,
            "judge": self._judge,
            "undo": self._undo,
            "alive": self._alive,
            "leave": self._leave,
        }
        routes = [Route("/", self._page), *(Route(path, self._file) for path in _FILES)]
        routes += [Route("/api/setup", self._labeler), Route("/api/summary", self._summary)]
        routes += [Route(f"/api/{name}", self._answering(action), methods=["POST"]) for name, action in actions.items()]
        return _Guard(package("starlette.applications").Starlette(routes=routes), self._refusal)

    def _refusal(self, request) -> str:
        """Returns why a request is refused; "" if it is not."""
        host = request.headers.get("host", "")
        if self._hosts is not None and host not in self._hosts:
            return "this address is not the one that the program printed"
        given = request.cookies.get(self._cookie) or ""
        if request.url.path == "/" and "token" in request.query_params:
            given = request.query_params["token"]
        if not secrets.compare_digest(given.encode(), self._token.encode()):
            return "open the address that the program printed; it holds the key to this page"
        if request.method not in ("GET", "HEAD"):
            if request.headers.get("origin") != f"http://{host}":
                return "this request comes from another page"
            if request.headers.get("content-type", "").split(";")[0] != "application/json":
                return "a request is JSON"
        return ""

    async def _page(self, request):
        response = self._responses.FileResponse(_PAGE / "label.html", media_type="text/html")
        response.set_cookie(self._cookie, self._token, httponly=True, samesite="strict")
        return response

    async def _file(self, request):
        path = request.url.path
        return self._responses.FileResponse(_PAGE / path[1:], media_type=_FILES[path])

    async def _labeler(self, request):
        return self._responses.JSONResponse({"labeler": self._setup["labeler"]})

    async def _summary(self, request):
        return self._responses.JSONResponse(self._desk.summary())

    def _answering(self, action):
        """Returns the endpoint of an action: JSON in, JSON out, and bad input as a sentence."""

        async def endpoint(request):
            try:
                return self._responses.JSONResponse(action(await _body(request)))
            except Refused as error:
                return self._responses.JSONResponse({"error": str(error), "code": error.code}, 409)
            except InputError as error:
                return self._responses.JSONResponse({"error": str(error), "code": ""}, 400)

        return endpoint

    def _enter(self, body: dict) -> dict:
        name, session = self._desk.enter(body.get("name"), _text(body, "session"))
        return self._setup | {"name": name, "session": session}

    def _shown(self, body: dict) -> dict:
        session = _text(body, "session")
        return {"item": self._desk.next(session), "progress": self._desk.progress(session)}

    def _judge(self, body: dict) -> dict:
        answers = body.get("answers")
        self._desk.judge(_text(body, "session"), _text(body, "key"), answers if isinstance(answers, dict) else {})
        return self._shown(body)

    def _undo(self, body: dict) -> dict:
        self._desk.undo(_text(body, "session"))
        return self._shown(body)

    def _alive(self, body: dict) -> dict:
        self._desk.alive(_text(body, "session"))
        return {}

    def _leave(self, body: dict) -> dict:
        self._desk.leave(_text(body, "session"))
        return {}


class _Guard:
    """Lets no request pass that `refusal` refuses, and adds the headers to every answer."""

    def __init__(self, app, refusal):
        self._app, self._refusal = app, refusal
        self._requests, self._responses = package("starlette.requests"), package("starlette.responses")

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return

        async def send_guarded(message):
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message = message | {"headers": [*message.get("headers", ()), *own]}
            await send(message)

        app = self._app
        if why := self._refusal(self._requests.Request(scope)):
            app = self._responses.JSONResponse({"error": why, "code": "key"}, 403)
        await app(scope, receive, send_guarded)


def _names(host: str, port: int) -> set[str]:
    """Returns what a browser may call a host that listens on one address."""
    own = f"[{host}]" if ":" in host else host
    local = {"127.0.0.1", "localhost", "[::1]"} if own in ("127.0.0.1", "localhost", "[::1]") else set()
    return {f"{name}:{port}" for name in {own, *local}} | ({own, *local} if port == 80 else set())


async def _body(request) -> dict:
    """Returns the JSON object of a request; raises InputError if it is another thing, or too long."""
    content = b""
    async for part in request.stream():
        content += part
        if len(content) > MOST_BYTES:
            raise InputError(f"the request is longer than {MOST_BYTES >> 20} MiB; write less")
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InputError("the request is no JSON object")
    return found


def _text(body: dict, name: str) -> str:
    value = body.get(name)
    return value if isinstance(value, str) and value.isascii() else ""


def new_token(given: str | None) -> str:
    """Returns the secret of the address: the given one, or a random one.

    Raises:
        InputError: the given one is shorter than 8 characters, or would not stand in an address as it is.
    """
    if given is None:
        return secrets.token_urlsafe(18)
    if len(given) < 8 or not all(letter.isascii() and (letter.isalnum() or letter in "-_") for letter in given):
        raise InputError("--token must have at least 8 letters, digits, - or _; without it a random one is made")
    return given
