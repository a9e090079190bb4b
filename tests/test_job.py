"""How a command ends: real signals, a terminal that closes, a disk that refuses; each a status and one sentence."""

import errno
import os
import pathlib
import pty
import signal
import subprocess
import sys
import textwrap

import pytest

from rlhf_jax.runtime.errors import refused

ROOT = pathlib.Path(__file__).parent.parent
# A command whose work is given, with what it needs of the program.
PROGRAM = """
import atexit, errno, os, pathlib, sys, threading, time
from rlhf_jax import checkpoint, job
from rlhf_jax.runtime import files, progress
from rlhf_jax.runtime.progress import Interrupt, Stopped

def slow(self):  # a checkpoint that is being written for as long as somebody looks
    print("saving", flush=True)
    time.sleep(30)
    write(self)

write, checkpoint._Writer._write_manifest = checkpoint._Writer._write_manifest, slow
path = pathlib.Path(sys.argv[-1].partition("=")[2])
tree = {"w": __import__("numpy").zeros(3, "float32")}

def work(given):
%s

job.main("command", work)
"""
AT_ONCE = "command: stopped without saving; run the same command to go on"


def start(work, path, under=(), **streams):
    program = PROGRAM % textwrap.indent(textwrap.dedent(work), "    ")
    streams = {name: subprocess.PIPE for name in ("stdout", "stderr")} | streams
    return subprocess.Popen(
        [*under, sys.executable, "-c", program, "--config=tests/support/toy.py", f"--workdir={path}"],
        cwd=ROOT,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'support'}"},
        **streams,
    )


def test_a_second_ctrl_c_while_a_checkpoint_is_awaited_is_one_sentence_and_130(tmp_path):
    process = start(
        """
        with Interrupt() as interrupt, checkpoint.Checkpointer(path / "checkpoints") as checkpointer:
            checkpointer.save(1, tree)
            checkpointer.wait()
        """,
        tmp_path,
    )
    assert process.stdout.readline() == "saving\n"
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == "\n" and "stopping after this step" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, AT_ONCE + "\n")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1.orbax-checkpoint-tmp"]


def test_ctrl_c_in_the_last_cleaning_is_one_sentence_and_130(tmp_path):
    process = start("atexit.register(lambda: (print('last', flush=True), time.sleep(30))); sys.exit(0)", tmp_path)
    assert process.stdout.readline() == "last\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, "\ncommand: stopped; run the same command to go on\n")


def test_the_end_of_a_terminal_saves_and_may_come_twice(tmp_path):
    """What is printed then has nowhere to go, and ends nothing."""
    parent, child = pty.openpty()
    process = start(
        """
        os.open(os.ttyname(0), os.O_RDWR)  # the first that a session's leader opens is its terminal
        with Interrupt() as interrupt, progress.Progress("sft", 100) as shown:
            (path / "begun").touch()
            while not interrupt.requested:
                time.sleep(0.01)
            os.kill(os.getpid(), 1)
            print("saves")
            shown.update(1)
            (path / "saved").touch()
            raise Stopped("sft", 1, interrupt.asked())
        """,
        tmp_path,
        stdin=child,
        stdout=child,
        stderr=child,
        start_new_session=True,
    )
    os.close(child)
    while not (tmp_path / "begun").exists():
        assert process.poll() is None, os.read(parent, 10_000)
    os.close(parent)
    assert process.wait(20) == 75 and (tmp_path / "saved").exists()


def test_under_nohup_the_end_of_a_terminal_is_nothing(tmp_path):
    process = start("with Interrupt(): os.kill(os.getpid(), 1); print('goes on')", tmp_path, under=["nohup"])
    assert process.communicate(timeout=60) == ("goes on\n", "") and process.returncode == 0


@pytest.mark.parametrize(
    "work, status, sentence",
    [
        (
            "threading.Thread(target=lambda: time.sleep(300)).start()\nopen('/nowhere/file')",
            2,  # it does not wait for the thread
            "command: /nowhere/file: No such file or directory\n",
        ),
        ("[][0]", 1, "IndexError: list index out of range\n"),
    ],
)
def test_what_ends_a_job_has_its_status(tmp_path, work, status, sentence):
    process = start(work, tmp_path)
    _, err = process.communicate(timeout=30)
    assert process.returncode == status and err.endswith(sentence) and ("Traceback" in err) == (status == 1), err


def test_what_a_person_can_mend_is_told_from_errors_of_the_program():
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
        assert refused(OSError(number, os.strerror(number))) == os.strerror(number)
        assert refused(ValueError(f"UNKNOWN: {os.strerror(number)} [os_error]")) == os.strerror(number)
    assert refused(PermissionError(errno.EACCES, "Permission denied", "a")) == "a: Permission denied"
    for error in (
        KeyError("a"),
        ConnectionResetError(errno.ECONNRESET, "reset"),
        OSError(errno.EPIPE, "pipe"),
        OSError("no"),
    ):
        assert refused(error) is None
