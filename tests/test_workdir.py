"""The work directory: config, lock, markers, atomic files; and how a person stops a run."""

import errno
import json
import os
import pathlib
import pty
import signal
import subprocess
import sys
import textwrap

import pytest

from rlhf_jax.runtime import files
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import read_json, write_json, write_text
from rlhf_jax.runtime.progress import Interrupt, Progress, Stopped
from rlhf_jax.runtime.workdir import Workdir, config_of

ROOT = pathlib.Path(__file__).parent.parent
CONFIG = {"seed": 0, "ppo": {"kl_coef": 0.02, "sizes": (4, 8), "whiten": None, "extra": {}}, "logging": {"every": 10}}


def start(program, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def test_first_and_second_run(tmp_path):
    path = tmp_path / "runs" / "a"
    with Workdir(path, CONFIG, {"seed": 0}) as first:
        assert first.stage("sft").is_dir() and first.done("sft") is None
        first.mark_done("sft", 1.23456, steps=10)
    assert read_json(path / "config.json") == json.loads(json.dumps(CONFIG))
    assert read_json(path / "overrides.json") == {"seed": 0}
    assert list(json.loads((path / "config.json").read_text())) == ["logging", "ppo", "seed"]
    with Workdir(path, CONFIG) as second:
        done = second.done("sft")
    assert done["seconds"] == 1.235 and done["steps"] == 10 and done["finished_at"]


def test_another_config_is_refused_naming_the_fields(tmp_path):
    Workdir(tmp_path, CONFIG).close()
    before = (tmp_path / "config.json").read_bytes()
    other = {
        "seed": 1,
        "ppo": {"kl_coef": 0.02, "sizes": (4, 9), "whiten": None, "extra": {}},
        "logging": {"every": 10},
        "name": "x",
    }
    with pytest.raises(InputError) as error:
        Workdir(tmp_path, other)
    assert str(error.value) == (
        f"the work directory {tmp_path} holds a run of another config (name was absent and is now "
        '"x", ppo.sizes was [4, 8] and is now [4, 9], seed was 0 and is now 1): give these fields '
        "their old values or another directory"
    )
    assert (tmp_path / "config.json").read_bytes() == before
    Workdir(tmp_path, CONFIG).close()  # the refusal released the lock
    with pytest.raises(InputError, match="and 12 more"):
        Workdir(tmp_path, CONFIG | {str(n): n for n in range(20)})


def test_a_start_before_any_stage_binds_nobody(tmp_path):
    other = {"seed": 1}
    Workdir(tmp_path, CONFIG, prepared=("template.txt",)).close()
    (tmp_path / "template.txt").write_text("a")
    (tmp_path / "notes.txt").write_text("theirs")
    with Workdir(tmp_path, other, prepared=("template.txt",)) as folder:
        assert read_json(tmp_path / "config.json") == other
        assert not (tmp_path / "template.txt").exists() and (tmp_path / "notes.txt").exists()
        folder.stage("sft")
    with pytest.raises(InputError, match="another config"):
        Workdir(tmp_path, CONFIG, prepared=("template.txt",))


def test_a_model_of_somebody_else_is_no_work_directory(tmp_path):
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text('{"model_type": "llama"}')
    with pytest.raises(InputError, match="another config"):
        Workdir(tmp_path, CONFIG, prepared=("tokenizer.json",))
    assert all((tmp_path / name).read_text() == '{"model_type": "llama"}' for name in ("config.json", "tokenizer.json"))


def test_a_sweep_is_no_work_directory(tmp_path):
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(InputError, match="holds a sweep: give the run another directory"):
        Workdir(tmp_path, CONFIG)
    with pytest.raises(InputError, match="it holds a sweep, whose runs are .*/arms/NAME"):
        config_of(tmp_path)


def test_a_reader_says_which_directory_it_needs(tmp_path):
    with Workdir(tmp_path / "run", CONFIG) as workdir:
        workdir.stage("sft")
    with pytest.raises(InputError, match="there is no folder .*/nowhere; give the work directory of a run"):
        config_of(tmp_path / "nowhere")
    with pytest.raises(InputError, match="it has no config.json; give .*/run, of which it is a part"):
        config_of(tmp_path / "run" / "sft")


def test_fields_that_may_change(tmp_path):
    Workdir(tmp_path, CONFIG).close()
    changed = CONFIG | {"logging": {"every": 1, "color": True}, "loggingx": 1}
    with pytest.raises(InputError, match=r"\(loggingx was absent and is now 1\)"):
        Workdir(tmp_path, changed, ignore=lambda *_: ("logging",))
    del changed["loggingx"]
    Workdir(tmp_path, changed, ignore=lambda *_: ("logging",)).close()
    assert read_json(tmp_path / "config.json")["logging"] == {"every": 1, "color": True}


def test_second_process_is_refused_while_the_first_lives(tmp_path):
    owner = start(
        """
        import sys
        from rlhf_jax.runtime.workdir import Workdir
        with Workdir(sys.argv[1], {}):
            print("locked", flush=True)
            sys.stdin.read()
    """,
        tmp_path,
    )
    assert owner.stdout.readline() == "locked\n"
    with pytest.raises(InputError, match=f"{tmp_path} is in use by process {owner.pid}:"):
        Workdir(tmp_path, {})
    owner.kill()
    owner.communicate()
    Workdir(tmp_path, {}).close()


def test_paths_that_cannot_be_a_work_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=f"{tmp_path / 'file'} is a file"):
        Workdir(tmp_path / "file", {})
    with pytest.raises(InputError, match="cannot make the work directory .*: Not a directory"):
        Workdir(tmp_path / "file" / "below", {})
    with pytest.raises(InputError, match="gs://bucket/run is a URL: mount the bucket"):
        Workdir("gs://bucket/run", {})
    with pytest.raises(InputError, match="the work directory .* is not writable"):
        Workdir("/proc/self", {})


def test_damaged_config_file(tmp_path):
    (tmp_path / "config.json").write_text('{\n"seed": 0,\n')
    with pytest.raises(InputError, match=r"config.json, line 3: not valid JSON"):
        Workdir(tmp_path, CONFIG)


def test_a_reader_never_sees_half_a_file(tmp_path):
    write_text(tmp_path / "a", "old")
    with open(tmp_path / "a", encoding="utf-8") as reader:
        write_text(tmp_path / "a", "new")
        assert reader.read() == "old"
    assert (tmp_path / "a").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_json(tmp_path / "a.json", {"b": "한국어", "a": 1})
    assert (tmp_path / "a.json").read_text() == '{\n  "a": 1,\n  "b": "한국어"\n}\n'

    def no_space(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", no_space)
    with pytest.raises(InputError, match=f"{tmp_path / 'a.json'}: No space left on device"):
        write_text(tmp_path / "a.json", "new")
    assert read_json(tmp_path / "a.json") == {"a": 1, "b": "한국어"}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


LOOP = """
    import time
    from rlhf_jax.runtime.progress import Interrupt, Stopped
    try:
        with Interrupt() as interrupt:
            print("started", flush=True)
            for step in range(1, 1000):
                time.sleep(0.01)
                if interrupt.requested and not {stubborn}:
                    raise Stopped("ppo", step)
    except Stopped as stopped:
        print(stopped)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_first_signal_ends_the_step(number):
    process = start(LOOP.format(stubborn=False))
    assert process.stdout.readline() == "started\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=10)
    assert process.returncode == 0
    assert out.startswith("stopped at ppo step ")
    assert out.endswith("; run the same command to go on\n")
    assert "stopping after this step" in err


def test_second_signal_stops_at_once():
    process = start(LOOP.format(stubborn=True))
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == "\n"
    assert "stopping after this step" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert process.returncode != 0 and "KeyboardInterrupt" in err


def test_handlers_are_restored():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="stopped at sft step 3; run the same command to go on"):
        with Interrupt():
            raise Stopped("sft", 3)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_plain_progress(capsys, monkeypatch):
    clock = iter([100.0, 104.0, 112.0, 113.0, 114.0])
    monkeypatch.setattr("rlhf_jax.runtime.progress.time.monotonic", lambda: next(clock))
    with Progress("ppo", total=10_000, step=50, seconds=10) as progress:
        progress.update(51, {"kl": 0.123456})
        progress.update(53)  # too soon for a line
        progress.update(57, {"kl": 12.0})
        progress.update(58)
        progress.update(10_000)
    assert capsys.readouterr().out.splitlines() == [
        "ppo 50/10000",
        "ppo 51/10000  kl 0.1235",
        "ppo 57/10000  0.5 steps/s  5h31m left  kl 12",
        "ppo 10000/10000  711 steps/s  0m00s left",
    ]


def test_progress_within_progress_writes_lines_only_if_it_takes_long(capsys, monkeypatch):
    clock = iter([100.0, 105.0, 106.0, 107.0, 107.0, 118.0, 119.0, 120.0])
    monkeypatch.setattr("rlhf_jax.runtime.progress.time.monotonic", lambda: next(clock))
    with Progress("sft", total=2, seconds=10) as outer:
        for step in (1, 2):
            with Progress("validation", total=2, seconds=10) as inner:  # the second takes more than 10 seconds
                inner.update(1)
                inner.update(2)
            outer.update(step)
    assert capsys.readouterr().out.splitlines() == [
        "sft 0/2",
        "sft 1/2",
        "validation 1/2",
        "sft 2/2  0.0769 steps/s  0m00s left",
    ]


def test_live_progress_on_a_terminal():
    program = """
        from rlhf_jax.runtime.progress import Progress
        with Progress("sft", total=3) as progress:
            for step in (1, 2, 3):
                progress.update(step, {"loss": 1.5})
    """
    parent, child = pty.openpty()
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdout=child,
        check=True,
        cwd=ROOT,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(child)
    shown = b""
    try:
        while block := os.read(parent, 4096):
            shown += block
    except OSError:  # how Linux says that the terminal's other side is closed
        pass
    os.close(parent)
    assert b"sft" in shown and b"3/3" in shown and b"loss 1.5" in shown
