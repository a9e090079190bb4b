"""What a run, a model or a file says reaches a terminal as text: no command prints an escape sequence of theirs."""

import contextlib
import io
import json
import sys
import types

import hypothesis
import hypothesis.strategies as st
from test_report import STAGES, write_run

from rlhf_jax import chat
from rlhf_jax.data.describe import __main__ as describe
from rlhf_jax.evaluate import policy
from rlhf_jax.report import __main__ as report_command
from rlhf_jax.runtime import progress, terminal
from rlhf_jax.runtime.errors import InputError, as_command
from rlhf_jax.runtime.files import write_json
from rlhf_jax.sweep import listing

EVIL = "\x1b]0;owned\x07\x1b[2Jred\x9b31m\rover\u202edesrever\x7f"
SHOWN = r"\u001b]0;owned\u0007\u001b[2Jred\u009b31m\u000dover\u202edesrever\u007f"


def harmless(text: str) -> bool:
    """Whether nothing in it steers a terminal, but rich's own colours and links."""
    return (
        not set("\x07\x08\x7f\x9b\u202e") & set(text)
        and "\x1b]0" not in text
        and "\x1b[2J" not in text
        and "\ro" not in text
    )


@contextlib.contextmanager
def a_terminal(monkeypatch):
    """A standard output that takes colours; yields what was written."""
    written = io.StringIO()
    written.isatty = lambda: True
    monkeypatch.setenv("TERM", "xterm-256color")
    with contextlib.redirect_stdout(written):
        yield written


def test_visible_text():
    assert terminal.visible(EVIL) == SHOWN
    kept = "tab\t, lines\n and\r\n, é, 한국어, \u200fعربي, \U0001f469\u200d\U0001f4bb, \u2028"
    assert terminal.visible(kept) == kept
    assert terminal.visible("\ud800") == r"\ud800"


@hypothesis.given(st.text())
def test_visible_text_is_the_same_json(text):
    line = terminal.visible(json.dumps({"completion": text}, ensure_ascii=False))
    assert json.loads(line) == {"completion": text} and terminal.visible(line) == line
    line.encode()  # lone surrogates too


def test_whatever_a_command_prints_is_visible(capsys):
    @as_command("x")
    def main():
        print(EVIL, end="")
        print(EVIL, end="", file=sys.stderr)
        raise InputError(f"the template has '{EVIL}'")

    assert main() == 2
    assert capsys.readouterr() == (SHOWN, f"{SHOWN}x: the template has '{SHOWN}'\n")
    assert not isinstance(sys.stdout, terminal.Visible)


def test_rich_has_its_colours_and_texts_are_visible(monkeypatch):
    with a_terminal(monkeypatch) as written, terminal.guarded():
        terminal.console().print("[red]mine[/]")
        with progress.Progress(EVIL, 3) as shown:
            shown.update(3, {"loss": 1.0})
    assert "\x1b[31mmine" in written.getvalue() and harmless(written.getvalue()) and "owned" in written.getvalue()


def test_generate(monkeypatch, capsys, tmp_path):
    """The text form, JSON lines on a terminal, and a file, which has the completion itself."""
    from rlhf_jax.generate import __main__ as command

    class Completer:
        batch_size = batches = 1

        def __call__(self, first=0):
            yield [{"prompt": "p", "completion": EVIL}]

    model = types.SimpleNamespace(mesh=None, folder=None, config=types.SimpleNamespace(max_length=9))
    monkeypatch.setattr(command, "open_model", lambda *_, **__: model)
    monkeypatch.setattr(command, "read_prompts", lambda *_: [types.SimpleNamespace(text="p")])
    monkeypatch.setattr(command, "Completer", lambda *_, **__: Completer())
    monkeypatch.setattr(command.jax, "set_mesh", lambda mesh: contextlib.nullcontext())
    assert command.main(["--model=m", "--prompt=p"]) == 0
    assert capsys.readouterr().out == f"{SHOWN}\n"
    assert command.main(["--model=m", "--prompts=f"]) == 0
    line = capsys.readouterr().out
    assert harmless(line) and json.loads(line)["completion"] == EVIL
    assert command.main(["--model=m", "--prompts=f", f"--out={tmp_path / 'out.jsonl'}"]) == 0
    assert json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8"))["completion"] == EVIL


def test_chat(monkeypatch):
    answers = [chat.Answer(f"ppo{EVIL}", f"[red]{EVIL}", True, 3, 0.5, None, None)]
    said = types.SimpleNamespace(answer=lambda *_, **__: answers, example=(EVIL, EVIL), unscored=EVIL)
    with a_terminal(monkeypatch) as written, terminal.guarded():
        chat.converse(said, [(EVIL, "")], terminal.console(width=200), 1.0)
        said.answer = lambda *_, **__: (_ for _ in ()).throw(InputError(EVIL))
        chat.show(said, terminal.console(width=200), "x", "", 1.0)
    assert harmless(written.getvalue()) and "[red]" in written.getvalue() and written.getvalue().count("owned") == 6


def test_report_of_a_run(monkeypatch, tmp_path):
    monkeypatch.setitem(STAGES, f"ppo{EVIL}", STAGES["ppo"])
    stages = "pretrain", "sft", f"ppo{EVIL}"
    path = write_run(tmp_path / f"run{EVIL}", stages=stages, prompts=8, items=2)
    write_json(path / "overrides.json", {EVIL: EVIL})
    for stage in stages:
        rows = policy.read_rows(path / stage / "samples.jsonl")
        policy.write_rows(path / stage / "samples.jsonl", [row | {"completion": EVIL, "prompt": EVIL} for row in rows])
    with a_terminal(monkeypatch) as written:
        assert report_command.main([str(path)]) == 0
    assert harmless(written.getvalue()) and "owned" in written.getvalue()
    assert harmless((path / "report.md").read_text()) and "owned" in (path / "report.md").read_text()


def test_listing_of_a_sweep(monkeypatch, tmp_path):
    (tmp_path / "arms" / "a").mkdir(parents=True)
    write_json(tmp_path / "arms" / "a" / "arm.json", {"status": "failed", "reason": f"[bold]{EVIL}"})
    with a_terminal(monkeypatch) as written, terminal.guarded():
        listing.show_arms([types.SimpleNamespace(number=0, name="a")], tmp_path)
    assert harmless(written.getvalue()) and "owned" in written.getvalue() and "[bold]" in written.getvalue()


def test_description_of_data(monkeypatch, tmp_path):
    rows = [
        {"prompt": f"{n} ?", "completion": EVIL, "category": f"![x](/etc/passwd) {n % 2} {EVIL}"} for n in range(30)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with a_terminal(monkeypatch) as written:
        assert describe.main([f"--data={tmp_path / 'rows.jsonl'}", f"--out={tmp_path / 'out'}"]) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert harmless(written.getvalue()) and "owned" in written.getvalue()
    assert harmless(text) and "owned" in text and "![x](" not in text
