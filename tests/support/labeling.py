"""The labeling program in a thread, and a client of it: for several test files."""

import contextlib
import json
import threading
import time
import types
import urllib.error
import urllib.request

from rlhf_jax.label import items as items_lib
from rlhf_jax.label import server
from rlhf_jax.label.desk import Desk
from rlhf_jax.label.judgments import Judgments, beside

TOKEN = "a-token-of-tests"


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]] if path.exists() else []


def desk_of(out, source, gold=None, prompts=False, **options):
    """A desk of a file of completions, as the command makes it."""
    found, _ = items_lib.read_prompts(str(source)) if prompts else items_lib.read_comparisons([("", str(source))])
    known = items_lib.read_gold(str(gold)) if gold else []
    return Desk(found, known, Judgments(out), Judgments(beside(out, "screening")), **options)


@contextlib.contextmanager
def serving(desk, task="rankings", labeler="", port=0):
    """Yields the address (.url, .host, .port) of a desk's page."""
    with contextlib.closing(server.listen("127.0.0.1", port)) as listening:
        port = listening.getsockname()[1]
        site = server.Site(desk, task=task, token=TOKEN, host="127.0.0.1", port=port, labeler=labeler)
        running = server.answering(site.app())
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            while not running.started:
                time.sleep(0.01)
            yield types.SimpleNamespace(
                url=server.address("127.0.0.1", port, TOKEN), host=f"127.0.0.1:{port}", port=port
            )
        finally:
            running.should_exit = True
            thread.join()


class Client:
    """A labeler without a browser.

    Args:
        host: host and port.
        name: enters under this name; "" does not enter.
    """

    def __init__(self, host, name="", token=TOKEN):
        self.host, self.headers = host, {"cookie": f"rlhf_jax_label_{host.split(':')[1]}={token}"}
        self.session = self.post("enter", name=name)["session"] if name else ""

    def request(self, path, body=None, **headers):
        """Returns (status, headers, content); a header of None is not sent."""
        given = self.headers | ({"origin": f"http://{self.host}", "content-type": "application/json"} if body else {})
        given = {name: value for name, value in (given | headers).items() if value is not None}
        request = urllib.request.Request(f"http://{self.host}{path}", body, given)
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return response.status, response.headers, response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read()

    def post(self, action, **body):
        """The answer to an action; an AssertionError with the sentence if it is refused."""
        body = {"session": getattr(self, "session", "")} | body
        status, _, content = self.request(f"/api/{action}", json.dumps(body).encode())
        found = json.loads(content)
        assert status == 200, found["error"]
        return found

    def next(self):
        return self.post("next")["item"]

    def judge(self, item, rank=None, **answers):
        """Judges an item by a function of the texts, `rank`: text -> something to sort by, best first."""
        texts = item["completions"]
        values = sorted({rank(text) for text in texts}) if rank else []
        given = {"ranks": [values.index(rank(text)) + 1 for text in texts]} if rank else {}
        given |= {"ratings": [4] * len(texts), "flags": [[] for _ in texts]}
        return self.post("judge", key=item["key"], answers=given | answers)
