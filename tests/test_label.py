"""The labeling program without a browser: what is asked of whom, what stands in the file, and what is refused."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys

import pytest
import tiny
from labeling import TOKEN, Client, desk_of, read, serving, write

from rlhf_jax import hf
from rlhf_jax.data.record_files import read_rows
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.label import __main__ as command
from rlhf_jax.label import items, judgments
from rlhf_jax.label.desk import LEFT, Refused
from rlhf_jax.runtime.errors import InputError

pytest.importorskip("starlette", reason="starlette is not installed: EXTRAS=label")
pytest.importorskip("uvicorn", reason="uvicorn is not installed: EXTRAS=label")

CHAT = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "안녕?"}]
ROWS = [
    {
        "prompt": "say hello",
        "completions": ["hi", "hello there", "good morning to you"],
        "models": ["m-a", "m-b", "m-c"],
    },
    {"prompt": CHAT, "completions": ["네", "안녕하세요"], "models": ["m-a", "m-b"], "group": "g1"},
    {
        "instruction": "sum up",
        "input": "long text",
        "completions": ["short", "a longer one"],
        "finished": [True, False],
    },
]


def many(count, size=2):
    return [{"prompt": f"prompt {n}", "completions": [f"{n} {'x' * k}" for k in range(size)]} for n in range(count)]


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture(autouse=True)
def serves_nothing(monkeypatch):
    """A command that should have been refused fails instead of waiting for people."""
    monkeypatch.setattr(command.server, "serve", lambda app, listening: pytest.fail("the command has begun to serve"))


@pytest.fixture
def out(tmp_path):
    return tmp_path / "labels.jsonl"


def sat(desk, name):
    """(session, what the page shows) of a labeler."""
    _, session = desk.enter(name)
    return session, desk.next(session)


def answers(shown, rank=len):
    values = [rank(text) for text in shown["completions"]]
    levels = sorted(set(values))
    return {
        "ranks": [levels.index(value) + 1 for value in values],
        "ratings": [4] * len(values),
        "flags": [["opinion"] if value == levels[0] else [] for value in values],
    }


def judge_all(desk, name, rank=len):
    session, shown = sat(desk, name)
    while shown:
        desk.judge(session, shown["key"], answers(shown, rank))
        shown = desk.next(session)
    desk.leave(session)


# --- The file of judgments ------------------------------------------------------------------------


def test_what_is_judged_in_a_blind_order_is_read_by_training_in_its_own(tmp_path, out):
    judge_all(desk_of(out, write(tmp_path / "c.jsonl", ROWS)), "ann")
    rows = {json.dumps(row.get("prompt", row.get("instruction"))): row for row in read(out)}
    records, report = read_rows(out, "rankings")
    assert report.kept == 3 and {record.labeler for record in records} == {"ann"}
    for source in ROWS:
        row = rows[json.dumps(source.get("prompt", source.get("instruction")))]
        lengths = [len(text) for text in source["completions"]]
        assert row["completions"] == source["completions"]  # a chat stays a chat
        assert row["ranks"] == [1 + sorted(lengths).index(length) for length in lengths]
        assert row["flags"] == [["opinion"] if length == min(lengths) else [] for length in lengths]
        assert row["ratings"] == [4] * len(lengths)
        assert all(row[name] == source[name] for name in ("models", "finished", "group", "input") if name in source)
    assert records[[r.group for r in records].index("g1")].prompt.startswith("be kind")


def test_orders_differ_between_labelers_and_items_and_not_between_starts(tmp_path, out):
    source = write(tmp_path / "c.jsonl", many(6, size=5))
    shown = {name: sat(desk_of(out, source, shared=1.0), name)[1] for name in ("ann", "bob", "cho")}
    assert len({item["key"] for item in shown.values()}) > 1
    for name in shown:
        assert sat(desk_of(out, source, shared=1.0), name)[1] == shown[name]
        assert sat(desk_of(out, source, shared=1.0, seed=1), name)[1] != shown[name]
    desk = desk_of(out, source, shared=1.0)
    for name in ("ann", "bob"):
        judge_all(desk, name)
    orders = [tuple(row["order"]) for row in read(out)]
    assert len(set(orders)) > 8 and all(sorted(order) == list(range(5)) for order in orders)


def test_ties_and_skipped_ranks_become_ranks_without_gaps(tmp_path, out):
    desk = desk_of(out, write(tmp_path / "c.jsonl", many(1, size=4)))
    session, shown = sat(desk, "ann")
    desk.judge(session, shown["key"], answers(shown) | {"ranks": [4, 2, 2, 3]})
    (row,) = read(out)
    assert [row["ranks"][place] for place in row["order"]] == [3, 1, 1, 2]


@pytest.mark.parametrize(
    "wrong",
    [
        {"ranks": [1, None]},
        {"ranks": [1]},
        {"ranks": [1, 3]},
        {"ranks": [True, 1]},
        {"ratings": [0, 4]},
        {"ratings": None},
        {"flags": [["unknown"], []]},
        {"flags": [[], [["x"]]]},
    ],
)
def test_an_answer_that_is_missing_or_wrong_is_not_recorded(wrong, tmp_path, out):
    desk = desk_of(out, write(tmp_path / "c.jsonl", many(1)))
    session, shown = sat(desk, "ann")
    with pytest.raises(InputError, match="not complete"):
        desk.judge(session, shown["key"], answers(shown) | wrong)
    assert not out.exists() and desk.next(session) == shown


def test_what_is_not_asked_is_not_in_the_file(tmp_path, out):
    desk = desk_of(out, write(tmp_path / "c.jsonl", many(1)), asked=("ranks",))
    judge_all(desk, "ann")
    assert not {"ratings", "flags"} & read(out)[0].keys()


def test_undo_brings_the_item_back_with_its_answers_and_loses_nothing(tmp_path, out):
    desk = desk_of(out, write(tmp_path / "c.jsonl", many(3)))
    session, first = sat(desk, "ann")
    desk.judge(session, first["key"], answers(first))
    second = desk.next(session)
    desk.judge(session, second["key"], answers(second))
    before = read(out)
    desk.undo(session)
    again = desk.next(session)
    assert again["key"] == second["key"] and again["filled"] == answers(second)
    assert read(out) == before[:1] and read(judgments.beside(out, "retracted")) == before[1:]
    desk.judge(session, again["key"], answers(again) | {"ranks": [1, 1]})
    assert [row["ranks"] for row in read(out)] == [before[0]["ranks"], [1, 1]]
    desk.undo(session), desk.undo(session)
    assert read(out) == []
    with pytest.raises(Refused, match="no judgment of yours"):
        desk.undo(session)


def test_a_restart_goes_on_where_each_labeler_was(tmp_path, out):
    source = write(tmp_path / "c.jsonl", many(6))
    desk = desk_of(out, source)
    for name in ("ann", "bob"):
        session, shown = sat(desk, name)
        desk.judge(session, shown["key"], answers(shown))
    again = desk_of(out, source)
    _, session = again.enter("ann")
    again.next(session)
    assert again.progress(session) == {"done": 1, "left": 4, "in_file": 2}
    judge_all(again, "cho")
    assert len({row["item"] for row in read(out)}) == len(read(out))


def test_half_a_line_of_a_killed_process_is_removed_and_others_are_refused(tmp_path, out):
    source = write(tmp_path / "c.jsonl", many(2))
    judge_all(desk_of(out, source), "ann")
    whole = out.read_bytes()
    lines = whole.split(b"\n")
    out.write_bytes(whole + lines[0][:40])
    desk = desk_of(out, source)
    assert desk.labels.torn and out.read_bytes() == whole
    out.write_bytes(whole[:-1])  # whole, but for its end: an editor
    assert len(desk_of(out, source).labels.rows) == 2 and out.read_bytes() == whole
    out.write_bytes(lines[0][:40] + b"\n" + whole)
    with pytest.raises(InputError, match=r"labels\.jsonl:1: not a judgment"):
        desk_of(out, source)


def test_a_disk_that_refuses_leaves_the_file_as_it_was(tmp_path, out, monkeypatch):
    desk = desk_of(out, write(tmp_path / "c.jsonl", many(2)))
    session, shown = sat(desk, "ann")
    desk.judge(session, shown["key"], answers(shown))
    before, shown = out.read_bytes(), desk.next(session)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(judgments.os, "fsync", full)
    with pytest.raises(InputError, match="No space left"):
        desk.judge(session, shown["key"], answers(shown))
    assert out.read_bytes() == before and desk.next(session) == shown


# --- Who gets what --------------------------------------------------------------------------------


def test_each_item_has_one_labeler_but_for_the_shared_ones(tmp_path, out):
    desk = desk_of(out, write(tmp_path / "c.jsonl", many(40)), shared=0.25)
    seats = [sat(desk, name)[0] for name in ("ann", "bob", "cho")]
    dice = random.Random(0)
    while open_seats := [session for session in seats if desk.next(session)]:
        session = dice.choice(open_seats)
        shown = desk.next(session)
        desk.judge(session, shown["key"], answers(shown))
    judged = {}
    for row in read(out):
        judged.setdefault(row["item"], []).append(row["labeler"])
    assert sorted(map(len, judged.values())) == [1] * 30 + [3] * 10
    assert all(len(set(names)) == len(names) for names in judged.values())
    assert all(sum(name in names for names in judged.values()) > 12 for name in ("ann", "bob", "cho"))


def test_a_name_at_work_is_refused_until_it_is_left(tmp_path, out):
    clock = Clock()
    desk = desk_of(out, write(tmp_path / "c.jsonl", many(2)), clock=clock)
    session, shown = sat(desk, "ann")
    with pytest.raises(Refused, match="ann is at work in another window"):
        desk.enter(" ann ")
    assert desk.enter("ann", session) == ("ann", session)  # a page that is loaded again
    other, other_item = sat(desk, "bob")
    assert other_item["key"] != shown["key"]
    clock.now += LEFT - 1
    desk.alive(other)
    clock.now += 2
    _, new = desk.enter("ann")
    assert new != session and desk.next(new) == shown  # nothing was recorded, and the item comes again
    with pytest.raises(Refused, match="not at work any more"):
        desk.next(session)
    desk.leave(other)
    assert desk.enter("bob")[1] != other
    for name in ("", " ", "a" * 61, "a\nb", "a\u202eb", None, 7, "\ud800"):
        with pytest.raises(InputError, match="a labeler's name"):
            desk.enter(name)


def test_an_item_that_is_left_half_way_goes_to_the_next_labeler(tmp_path, out):
    clock = Clock()
    desk = desk_of(out, write(tmp_path / "c.jsonl", many(1)), shared=0.0, clock=clock)
    session, shown = sat(desk, "ann")
    bob, nothing = sat(desk, "bob")
    assert nothing is None
    clock.now += LEFT
    assert desk.next(bob)["key"] == shown["key"]
    desk.judge(bob, shown["key"], answers(desk.next(bob)))
    assert desk.next(desk.enter("ann", session)[1]) is None
    with pytest.raises(Refused, match="not yours any more"):
        desk.judge(session, shown["key"], answers(shown))
    assert len(read(out)) == 1


# --- Agreement and screening ----------------------------------------------------------------------


def test_agreement_is_that_of_a_loop_over_the_pairs_that_both_rank(tmp_path, out):
    dice = random.Random(1)
    desk = desk_of(out, write(tmp_path / "c.jsonl", many(12, size=4)), shared=1.0)
    for name in ("ann", "bob", "cho"):
        judge_all(desk, name, rank=lambda text: dice.choice([1, 2, 3]) + len(text))
    agree = differ = 0
    rows = read(out)
    for first in rows:
        for second in rows:
            if first["item"] == second["item"] and first["labeler"] < second["labeler"]:
                for i in range(4):
                    for j in range(i):
                        sides = [
                            (r["ranks"][i] > r["ranks"][j]) - (r["ranks"][i] < r["ranks"][j]) for r in (first, second)
                        ]
                        agree += sides[0] * sides[1] > 0
                        differ += sides[0] * sides[1] < 0
    found = desk.summary()
    assert found["agreement"]["value"] == pytest.approx(agree / (agree + differ))
    assert found["agreement"]["comparisons"] == agree + differ and found["agreement"]["prompts"] == 12
    assert found["agreement"]["low"] < found["agreement"]["value"] < found["agreement"]["high"]
    assert found["judgments"] == 36 and found["items"] == 12


def test_screening_against_known_rankings_and_the_rule_of_75_percent(tmp_path, out, capsys):
    gold = [{"prompt": f"gold {n}", "chosen": "short", "rejected": "quite a bit longer"} for n in range(20)]
    gold.append({"prompt": "three", "completions": ["a", "bb", "ccc"], "ranks": [1, 1, 2]})
    gold = write(tmp_path / "gold.jsonl", gold)
    desk = desk_of(out, write(tmp_path / "c.jsonl", many(4)), gold)
    judge_all(desk, "ann")
    judge_all(desk, "bob", rank=lambda text: -len(text))
    judge_all(desk, "cho", rank=lambda text: 1)
    found = {labeler["name"]: labeler["gold"] for labeler in desk.summary()["labelers"]}
    assert [found[name]["value"] for name in ("ann", "bob", "cho")] == [1.0, 0.0, 0.5]
    assert found["ann"]["pairs"] == 22 and found["ann"]["items"] == 21
    assert [found[name]["verdict"] for name in ("ann", "bob", "cho")] == ["passes", "fails", "fails"]
    assert found["ann"]["certain"] and found["ann"]["low"] > 0.75
    assert len(read(out)) == 4 and all("gold" not in json.dumps(row) for row in read(out))
    assert command.main([f"--summary={out}"]) == 0
    said = capsys.readouterr().out
    assert "ann: 4 judgments" in said and "passes the 75 % rule" in said and "fails the 75 % rule" in said


def test_the_summary_has_ratings_and_flags_by_model(tmp_path, out, capsys):
    judge_all(desk_of(out, write(tmp_path / "c.jsonl", ROWS)), "ann")
    assert command.main([f"--summary={out}"]) == 0
    said = capsys.readouterr().out
    assert (
        "m-a: 2 completions, rated 4.00; expresses an opinion 100 %" in said
        and "m-c: 1 completions, rated 4.00\n" in said
    )
    assert command.main([f"--summary={tmp_path / 'none.jsonl'}"]) == 2
    assert "there is no such file; give the file that --out has named" in capsys.readouterr().err
    (tmp_path / "none.jsonl").write_text("")
    assert command.main([f"--summary={tmp_path / 'none.jsonl'}"]) == 2
    assert "there are no judgments in this file" in capsys.readouterr().err


# --- What is read ---------------------------------------------------------------------------------


def test_completions_of_generate_are_put_together_with_the_prompt_that_was_given(tmp_path):
    def generated(text, completion, **more):
        return {
            "prompt": text,
            "completion": completion,
            "sample": 0,
            "finished": True,
            "tokens": 3,
            "logprob": -1.0,
        } | more

    first = [
        generated("plain", " one", id=7),
        generated("<user>hi<assistant>", "hello", messages=[{"role": "user", "content": "hi"}]),
        generated("<user>hm<assistant>", "so", given={"prompt": [{"role": "user", "content": "hm"}]}),
        generated("<user>ask<assistant>", "so", given={"prompt": "ask"}),
        generated("do it\nanswer:", " done", instruction="do it"),
        generated("alone", " x"),
    ]
    second = [
        generated(row["prompt"], f"{row['completion'][:1]}B", finished=False, **({k: row[k] for k in row if k not in
        ("prompt", "completion", "finished", "sample", "tokens", "logprob")})) for row in first[:5]
    ]  # fmt: skip
    second += [generated("plain", " one"), generated("plain", "  "), generated("alone", " x")]
    sources = [("A", str(write(tmp_path / "a.jsonl", first))), ("B", str(write(tmp_path / "b.jsonl", second)))]
    found, left_out = items.read_comparisons(sources)
    assert [item.prompt for item in found] == [
        {"prompt": "plain"},
        {"prompt": [{"role": "user", "content": "hi"}]},
        {"prompt": [{"role": "user", "content": "hm"}]},
        {"prompt": [{"role": "user", "content": "ask"}]},
        {"instruction": "do it"},
    ]
    assert found[0].completions == (" one", " B") and found[0].others == {"id": 7}
    assert found[1].completions == ("hello", "hB") and found[4].completions == ("done", "B")
    assert all(item.models == ("A", "B") and item.finished == (True, False) for item in found)
    assert (left_out.repeated_completions, left_out.empty_completions, left_out.too_few) == (2, 1, 1)


def save_model(folder, seed):
    tokenizer = Tokenizer.train([], 258)
    config = tiny.llama(max_length=40, vocab_size=tokenizer.vocab_size)
    folder.mkdir()
    hf.save(folder, config, tiny.params_of(config, seed), head="lm")
    tokenizer.save_to(folder)
    return folder


def test_completions_of_a_model_are_sampled_once_and_judged(tmp_path, out, monkeypatch, capsys):
    model = save_model(tmp_path / "m", 0)
    prompts = write(tmp_path / "p.jsonl", [{"prompt": "what? ", "id": 1}, {"prompt": "안녕", "id": 2}])
    served = []
    monkeypatch.setattr(command.server, "serve", lambda app, listening: served.append(app))
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")  # one device: compiled sooner
    flags = [f"--prompts={prompts}", f"--models={model}", f"--out={out}", "--port=0", "--max_new_tokens=4"]
    assert command.main(flags) == 0, capsys.readouterr().err
    files = sorted(path.name for path in (tmp_path / "labels.completions").iterdir())
    assert files == ["1.jsonl", "asked.json"] and "2 items, 0 judgments" in capsys.readouterr().out
    shutil.rmtree(model)
    assert command.main(flags) == 0 and len(served) == 2  # as before, without the model
    found, _ = items.read_comparisons([(str(model), str(tmp_path / "labels.completions" / "1.jsonl"))])
    assert [(item.models, item.others["id"]) for item in found] == [((str(model),) * 2, 1), ((str(model),) * 2, 2)]
    capsys.readouterr()
    assert command.main([*flags, "--per_model=3"]) == 2
    assert "labels.completions has completions of other --models" in capsys.readouterr().err


BAD = {
    '{"prompt": "a", "completions": ["one"]}': "has 1 entries; a person ranks 2 to 9",
    '{"prompt": "a", "completions": ["one", "one"]}': "the same text twice",
    '{"prompt": "a", "completions": ["one", " "]}': "is empty",
    '{"prompt": "a", "completions": ["one", 2]}': "must be a string",
    '{"completions": ["one", "two"]}': "needs one of the fields prompt",
    '{"prompt": "a"}': "needs one of the fields completions, completion, chosen",
    '{"prompt": [{"role": "king", "content": "x"}], "completions": ["one", "two"]}': "roles are",
    '{"prompt": "a", "completions": ["one", "two"], "models": ["x"]}': "needs one for each",
    "{nonsense": "not valid JSON",
    '{"prompt": "a", "completions": ["one", "\\ud800"]}': "half a character",
}


@pytest.mark.parametrize("line", BAD)
def test_a_bad_row_is_a_sentence_with_file_and_line(line, tmp_path, capsys):
    path = tmp_path / "c.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n" + line + "\n")
    assert command.main([f"--completions={path}", f"--out={tmp_path / 'l.jsonl'}"]) == 2
    said = capsys.readouterr().err
    assert "c.jsonl:2: " in said and BAD[line] in said and said.count("\n") == 1
    assert not (tmp_path / "l.jsonl").exists()


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["--completions=c.jsonl"], "--out is missing"),
        (["--out=l.jsonl"], "give either --completions=FILE, or --prompts=FILE and --models"),
        (["--out=l.jsonl", "--prompts=c.jsonl"], "give either"),
        (["--out=l.jsonl", "--prompts=c.jsonl", "--models=m", "--completions=c.jsonl"], "give either"),
        (["--out=l.jsonl", "--completions=c.jsonl", "--prompts=c.jsonl"], "leave out --prompts"),
        (["--out=l.jsonl", "--task=demonstrations"], "needs --prompts"),
        (["--out=l.txt", "--completions=c.jsonl"], "no .jsonl file"),
        (["--out=l.jsonl", "--completions=none.jsonl"], "none.jsonl"),
        (["--out=l.jsonl", "--completions=c.jsonl", "--ask=ratings"], "give ranks"),
        (["--out=l.jsonl", "--completions=c.jsonl", "--token=short"], "--token must have at least 8"),
        (["--out=l.jsonl", "--completions=c.jsonl", "--labeler=a\nb"], "a labeler's name"),
        (
            ["--out=l.jsonl", "--completions=c.jsonl", "--host=no.such.host.invalid"],
            "--host=no.such.host.invalid cannot",
        ),
        (
            ["--out=l.jsonl", "--completions=c.jsonl", "--gold=c.jsonl"],
            "c.jsonl:1: needs one of the fields ranks, scores",
        ),
    ],
)
def test_flags_that_do_not_go_together_are_a_sentence(flags, sentence, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "c.jsonl", ROWS)
    assert command.main(flags) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1, said


def test_a_missing_library_is_a_sentence_before_anything_is_read(tmp_path, out, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert command.main(["--prompts=none.jsonl", "--models=none", f"--out={out}"]) == 2
    said = capsys.readouterr().err
    assert "needs starlette and uvicorn: pip install 'rlhf_jax[label]'" in said and not list(tmp_path.iterdir())


def test_a_port_in_use_and_a_file_of_other_items_and_one_at_work_are_sentences(tmp_path, out, capsys):
    source = write(tmp_path / "c.jsonl", ROWS)
    desk = desk_of(out, source)
    with serving(desk) as site:
        assert command.main([f"--completions={source}", f"--out={out}", f"--port={site.port}"]) == 2
        assert f"--port={site.port} is in use" in capsys.readouterr().err
    judge_all(desk, "ann")
    other = write(tmp_path / "other.jsonl", many(3))
    assert command.main([f"--completions={other}", f"--out={out}"]) == 2
    assert (
        f"{out}:1: this judgment is about a prompt or completions that are not in the files" in capsys.readouterr().err
    )
    with judgments.locked(out):
        assert command.main([f"--completions={source}", f"--out={out}"]) == 2
        assert "another process labels into this file" in capsys.readouterr().err


# --- Requests -------------------------------------------------------------------------------------


def test_what_another_page_or_address_asks_is_refused(tmp_path, out):
    with serving(desk_of(out, write(tmp_path / "c.jsonl", ROWS))) as site:
        client, body = Client(site.host), json.dumps({"name": "ann"}).encode()
        enter = lambda **headers: client.request("/api/enter", body, **headers)[0]  # noqa: E731
        assert enter(origin="http://evil.example") == 403
        assert enter(origin=None) == 403
        assert enter(origin="null") == 403
        assert enter(host="evil.example:80", origin="http://evil.example:80") == 403  # DNS rebinding
        assert enter(cookie=None) == 403
        assert enter(cookie=client.headers["cookie"] + "x") == 403
        assert enter(**{"content-type": "text/plain"}) == 403
        assert client.request("/api/summary", cookie=None)[0] == 403
        assert client.request("/", cookie=None)[0] == client.request("/label.js", cookie=None)[0] == 403
        assert client.request("/?token=wrong-token")[0] == 403
        assert client.request("/api/enter")[0] == 405 and client.request("/../items.py")[0] == 404
        assert enter() == 200
        status, headers, page = client.request(f"/?token={TOKEN}", cookie=None)
        assert status == 200 and b"<h1>Who are you?" in page
        assert "HttpOnly" in headers["set-cookie"] and "SameSite=strict" in headers["set-cookie"]
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
        for path in ("/label.js", "/ranking.js", "/text.js", "/label.css", "/icon.svg"):
            assert client.request(path)[0] == 200
            assert b"http://" not in client.request(path)[2].replace(b"http://www.w3.org", b"")
        assert client.request("/api/enter", b"x" * (5 << 20))[0] == 400
        assert client.request("/api/enter", b"[1]")[0] == client.request("/api/enter", b"[" * 9999)[0] == 400


def test_no_answer_names_a_model_and_a_labeler_can_work_by_requests(tmp_path, out):
    with serving(desk_of(out, write(tmp_path / "c.jsonl", ROWS))) as site:
        ann, seen = Client(site.host, "ann"), []
        while item := ann.next():
            seen.append(json.dumps(item))
            ann.judge(item, len)
        ann.post("undo")
        seen += [json.dumps(ann.post("next")), ann.request("/api/summary")[2].decode(), ann.request("/")[2].decode()]
        assert not any("m-a" in text or "m-b" in text for text in seen)
        with pytest.raises(AssertionError, match="enter your name again"):
            ann.post("next", session="another é")
    assert len(read(out)) == 2


def test_demonstrations_are_rows_that_training_reads(tmp_path, out):
    prompts = [{"prompt": "q1"}, {"messages": CHAT + [{"role": "assistant", "content": "old"}]}, {"instruction": "do"}]
    desk = desk_of(out, write(tmp_path / "p.jsonl", prompts), prompts=True)
    with serving(desk, task="demonstrations") as site:
        ann = Client(site.host, "ann")
        while item := ann.next():
            with pytest.raises(AssertionError, match="is empty"):
                ann.post("judge", key=item["key"], answers={"completion": " \n"})
            ann.post("judge", key=item["key"], answers={"completion": f" to {item['turns'][-1]['text']}"})
        ann.post("undo")
        assert ann.next()["filled"]["completion"].startswith(" to ")
        ann.post("judge", key=ann.next()["key"], answers={"completion": " anew"})
    records, _ = read_rows(out, "demonstrations")
    assert len(records) == 3 and {record.row["labeler"] for record in records} == {"ann"}
    assert any("안녕?" in record.prompt and "old" not in record.prompt for record in records)


def start(*flags):
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "rlhf_jax.label", *map(str, flags)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    said = []
    while not (said and said[-1].startswith("open ")):
        line = process.stdout.readline()
        assert line, "".join(said)
        said.append(line)
    return process, said[-1].split("http://")[1].split("/")[0], "".join(said)


def test_a_kill_loses_no_judgment_that_was_confirmed_and_ctrl_c_says_how_many_there_are(tmp_path, out):
    source = write(tmp_path / "c.jsonl", many(30))
    flags = [f"--completions={source}", f"--out={out}", "--port=0", f"--token={TOKEN}", "--labeler=ann"]
    process, host, _ = start(*flags)
    ann, confirmed = Client(host, "ann"), []
    for _ in range(7):
        item = ann.next()
        ann.judge(item, len)
        confirmed.append(item["key"])
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [row["item"] for row in read(out)] == confirmed
    with open(out, "ab") as file:
        file.write(b'{"prompt": "half a li')
    process, host, said = start(*flags)
    assert "removed half a line" in said and "7 judgments" in said
    ann = Client(host, "ann")
    assert ann.post("next")["progress"] == {"done": 7, "left": 23, "in_file": 7}
    ann.judge(ann.next(), len)
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 0
    assert f"{out} has 8 judgments" in process.stdout.read()
