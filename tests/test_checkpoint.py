"""Checkpoints: bitwise round trips, and every way they can be damaged."""

import errno
import json
import logging
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct

from rlhf_jax import checkpoint
from rlhf_jax.checkpoint import Checkpointer, load_params, save_params
from rlhf_jax.runtime.errors import InputError

ROOT = pathlib.Path(__file__).parent.parent


@struct.dataclass
class State:
    step: jax.Array
    params: dict
    opt_state: optax.OptState
    ema_params: dict | None


def make_state(seed=0, ema=True):
    keys = jax.random.split(jax.random.key(seed), 2)
    params = {
        "layers": {"w": jax.random.normal(keys[0], (3, 16, 24))},
        "head": {"w": jax.random.normal(keys[1], (24, 8)).astype(jnp.bfloat16)},
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    return State(jnp.int32(seed), params, optimizer.init(params), params if ema else None)


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def assert_bitwise(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second)):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def saved(directory, *steps, keep=10):
    with Checkpointer(directory, keep) as checkpointer:
        for step in steps:
            checkpointer.save(step, make_state(step))


@pytest.mark.parametrize("ema", [True, False])
def test_round_trip_is_bitwise(tmp_path, ema):
    state = make_state(3, ema)
    with Checkpointer(tmp_path / "a" / "checkpoints") as checkpointer:
        assert checkpointer.latest_step() is None
        assert checkpointer.restore(abstract(state)) is None
        checkpointer.save(3, state)
        step, restored = checkpointer.restore(abstract(state))  # waits for the save
    assert step == 3
    assert isinstance(restored, State)
    assert_bitwise(restored, state)


def test_donated_arrays_are_saved_as_they_were(tmp_path):
    @jax.jit
    def step(tree):
        return jax.tree.map(lambda x: x + 1, tree)

    step = jax.jit(step, donate_argnums=0)
    tree = {str(i): jnp.zeros((512, 512)) for i in range(8)}
    with Checkpointer(tmp_path, keep=10) as checkpointer:
        for number in range(5):
            checkpointer.save(number, tree)
            for _ in range(3):
                tree = step(tree)
        checkpointer.wait()
        for number in range(5):
            _, restored = checkpointer.restore(abstract(tree), step=number)
            assert_bitwise(restored, jax.tree.map(lambda x: jnp.full_like(x, 3 * number), tree))


def test_arrays_are_written_as_they_lie_in_memory_without_a_compressed_copy(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, {"x": jnp.zeros(1 << 20)})
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) > 4 << 20


@pytest.mark.parametrize("good", [True, False])
def test_what_a_checkpoint_replaces_is_deleted_before_it_is_read(tmp_path, monkeypatch, good):
    state, deleted, read = make_state(3), [], checkpoint._read

    def noted(*arguments):
        deleted.extend(leaf.is_deleted() for leaf in jax.tree.leaves(state))
        return read(*arguments)

    monkeypatch.setattr(checkpoint, "_read", noted)
    saved(tmp_path, *[3] * good)
    with Checkpointer(tmp_path) as checkpointer:
        restored = checkpointer.restore(abstract(state), replaced=state)
    if good:
        assert all(deleted) and deleted
        assert_bitwise(restored[1], make_state(3))
    else:
        assert restored is None
        assert_bitwise(state, make_state(3))


def test_resumed_run_equals_uninterrupted_run(tmp_path):
    optimizer = optax.adam(1e-2)

    @jax.jit
    def train_step(state):
        key = jax.random.fold_in(jax.random.key(7), state.step)
        grads = jax.tree.map(lambda p: p + jax.random.normal(key, p.shape, p.dtype), state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        return State(state.step + 1, optax.apply_updates(state.params, updates), opt_state, None)

    def run(start, stop, checkpointer=None):
        state = start
        while int(state.step) < stop:
            state = train_step(state)
            if checkpointer and int(state.step) % 4 == 0:
                checkpointer.save(int(state.step), state)
        return state

    params = {"w": jnp.linspace(-1, 1, 12).reshape(3, 4)}
    start = State(jnp.int32(0), params, optimizer.init(params), None)
    with Checkpointer(tmp_path) as checkpointer:
        run(start, 10, checkpointer)  # killed at step 10: two steps after the last checkpoint
    with Checkpointer(tmp_path) as checkpointer:
        step, state = checkpointer.restore(abstract(start))
    assert step == int(state.step) == 8
    assert_bitwise(run(state, 13), run(start, 13))


def test_keeps_the_newest_and_saves_a_step_once(tmp_path):
    with Checkpointer(tmp_path, keep=2) as checkpointer:
        for step in (5, 10, 15, 100):
            checkpointer.save(step, make_state(step))
        checkpointer.wait()
        assert checkpointer.steps() == [15, 100]
        written = (tmp_path / "100" / "manifest.json").stat().st_mtime_ns
        checkpointer.save(100, make_state(100))
        checkpointer.wait()
        assert (tmp_path / "100" / "manifest.json").stat().st_mtime_ns == written
        step, restored = checkpointer.restore(abstract(make_state()), step=15)
    assert step == 15
    assert_bitwise(restored, make_state(15))


def test_keeps_every_so_many_steps_for_good(tmp_path):
    with Checkpointer(tmp_path, keep=1, keep_every=10) as checkpointer:
        for step in (5, 10, 15, 20, 25, 26):
            checkpointer.save(step, make_state(step))
        checkpointer.wait()
        assert checkpointer.steps() == [10, 20, 26]


@pytest.mark.parametrize("keep, keep_every, left", [(2, 0, [25, 26]), (1, 10, [10, 20, 26])])
def test_what_a_killed_process_could_not_remove_is_removed_at_the_next_start(tmp_path, keep, keep_every, left):
    saved(tmp_path, 5, 10, 20, 25, 26)
    (tmp_path / "27.orbax-checkpoint-tmp").mkdir()
    with Checkpointer(tmp_path, keep, keep_every) as checkpointer:
        step, _ = checkpointer.restore(abstract(make_state()))
    assert step == 26
    assert sorted(path.name for path in tmp_path.iterdir()) == [str(step) for step in left]


def test_a_start_removes_no_good_checkpoint_for_a_damaged_one_and_its_step_is_saved_anew(tmp_path):
    """Also where only the contents of a file show the damage, and not its size."""
    saved(tmp_path, 1, 2, 3)
    [file] = (tmp_path / "3").rglob("manifest.json")
    name = max(json.loads(file.read_text())["files"].items(), key=lambda item: item[1][0])[0]
    break_file(tmp_path / "3" / name, "flipped")
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        step, _ = checkpointer.restore(abstract(make_state()))
        assert (step, checkpointer.steps()) == (2, [2])
        checkpointer.save(3, make_state(3))
        checkpointer.wait()
        assert checkpointer.steps() == [3]
        step, restored = checkpointer.restore(abstract(make_state()))
    assert step == 3
    assert_bitwise(restored, make_state(3))


def break_file(path, how):
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])


@pytest.mark.parametrize("how", ["missing", "truncated", "flipped"])
def test_any_damaged_file_leads_to_the_older_checkpoint(tmp_path, how, caplog, capfd):
    saved(tmp_path / "good", 1, 2)
    files = [path.relative_to(tmp_path / "good") for path in (tmp_path / "good" / "2").rglob("*") if path.is_file()]
    assert len(files) > 5
    for number, file in enumerate(files):
        directory = tmp_path / str(number)
        shutil.copytree(tmp_path / "good", directory)
        break_file(directory / file, how)
        caplog.clear()
        checkpointer = Checkpointer(directory)
        step, restored = checkpointer.restore(abstract(make_state()))
        assert_bitwise(restored, make_state(step))
        if step == 1:
            assert str(directory / "2") in caplog.text and file.name in caplog.text
        else:
            assert file.name in ("_CHECKPOINT_METADATA", "commit_success.txt")  # not needed
        if how != "flipped" and step == 1:
            assert checkpointer.latest_step() == 1
        checkpointer.close()
    assert capfd.readouterr().err == ""


def test_stray_directories_are_named_and_never_cost_a_good_checkpoint(tmp_path, caplog):
    saved(tmp_path, 1, 2)
    (tmp_path / "9").mkdir()
    (tmp_path / "7").write_text("a file")
    (tmp_path / "notes").mkdir()
    (tmp_path / "4.orbax-checkpoint-tmp").mkdir()
    with Checkpointer(tmp_path, keep=2) as checkpointer:
        assert checkpointer.latest_step() == 2
        step, _ = checkpointer.restore(abstract(make_state()))
        assert step == 2
        assert str(tmp_path / "9") in caplog.text and "manifest.json is missing" in caplog.text
        with pytest.raises(InputError, match="manifest.json is missing"):
            checkpointer.restore(abstract(make_state()), step=9)
        checkpointer.save(3, make_state(3))
        checkpointer.wait()
        assert checkpointer.steps() == [2, 3]
        checkpointer.save(9, make_state(9))  # takes the stray directory's place
        checkpointer.wait()
        assert checkpointer.steps() == [3, 9]
    assert not (tmp_path / "4.orbax-checkpoint-tmp").exists()
    assert (tmp_path / "notes").exists()


def test_killed_while_saving(tmp_path):
    """kill -9 at moments of a save: what is restored is always a whole, older or newer state."""
    program = textwrap.dedent("""
        import sys, jax, jax.numpy as jnp
        from rlhf_jax.checkpoint import Checkpointer
        checkpointer = Checkpointer(sys.argv[1])
        for step in range(1, 10_000):
            checkpointer.save(step, {"w": jnp.full((200, 200), step, jnp.float32)})
            if step == 1:
                checkpointer.wait()
                print("saved", flush=True)
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        cwd=ROOT,
    )
    assert process.stdout.readline() == "saved\n"
    target = {"w": jax.ShapeDtypeStruct((200, 200), jnp.float32)}
    steps = []
    for delay in (0.1, 0.13, 0.17, 0.21):  # a copy of a moment is what kill -9 leaves behind
        time.sleep(delay)
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)  # its threads stop when they are next scheduled
        shutil.copytree(tmp_path, copy := tmp_path.with_name(f"copy{delay}"))
        process.send_signal(signal.SIGCONT)
        with Checkpointer(copy) as checkpointer:
            step, tree = checkpointer.restore(target)
            assert (np.asarray(tree["w"]) == step).all()
            checkpointer.save(step + 1, tree)
        assert not list(copy.glob("*tmp*"))
        steps.append(step)
    process.kill()
    process.communicate()
    with Checkpointer(tmp_path) as checkpointer:
        step, tree = checkpointer.restore(target)
    assert (np.asarray(tree["w"]) == step).all()
    assert 1 <= steps[0] <= steps[-1] <= step


def test_another_config_is_refused_naming_the_array(tmp_path):
    saved(tmp_path, 1)
    with Checkpointer(tmp_path) as checkpointer:
        other = make_state()
        other.params["head"]["w"] = jnp.zeros((24, 9))
        with pytest.raises(
            InputError,
            match=r"params/head/w is of shape \[24, 8\] in the "
            r"checkpoint and of shape \[24, 9\] in the model",
        ):
            checkpointer.restore(abstract(other))
        with pytest.raises(InputError, match=r"ema_params/head/w is of shape .* and absent in the model"):
            checkpointer.restore(abstract(make_state(ema=False)))
        other = make_state()
        other.params["bias"] = jnp.zeros(3)
        with pytest.raises(InputError, match=r"params/bias is absent in .* of shape \[3\] in the model"):
            checkpointer.restore(abstract(other))


def test_full_disk_keeps_the_older_checkpoint(tmp_path, monkeypatch, capfd):
    """Simulated: the manifest, written last and in the background, does not fit."""
    saved(tmp_path, 1)

    def no_space(path, value):
        raise OSError(errno.ENOSPC, "No space left on device")

    checkpointer = Checkpointer(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_json", no_space)
        checkpointer.save(2, make_state(2))
        with pytest.raises(InputError, match=f"{tmp_path / '2'}: the disk is full"):
            checkpointer.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    assert_bitwise(checkpointer.restore(abstract(make_state()))[1], make_state(1))
    checkpointer.save(3, make_state(3))  # goes on when there is space again
    checkpointer.close()
    assert checkpointer.steps() == [1, 3]
    assert capfd.readouterr().err == ""


def test_really_full_disk(disk_of, capfd):
    small_disk = disk_of("3m")
    tree = {"w": jax.random.normal(jax.random.key(0), (600, 600))}  # 1.3 MB compressed
    checkpointer = Checkpointer(small_disk / "checkpoints", keep=5)
    checkpointer.save(1, tree)
    checkpointer.save(2, tree)
    with pytest.raises(InputError, match="checkpoints/3: the disk is full"):
        checkpointer.save(3, tree)
        checkpointer.wait()
    assert checkpointer.steps() == [1, 2]
    assert not (small_disk / "checkpoints" / "3.orbax-checkpoint-tmp").exists()
    assert_bitwise(checkpointer.restore(abstract(tree))[1], tree)

    with pytest.raises(InputError, match="disk is full"):
        save_params(small_disk / "params", tree)
    shutil.rmtree(small_disk / "checkpoints" / "1")
    save_params(small_disk / "params", tree)
    with pytest.raises(InputError, match="disk is full"):
        save_params(small_disk / "params", jax.tree.map(lambda x: x + 1, tree))
    assert_bitwise(load_params(small_disk / "params", abstract(tree)), tree)
    checkpointer.close()
    assert capfd.readouterr().err == ""


def test_params_are_replaced_and_restored_in_another_dtype(tmp_path):
    params = make_state(1).params
    save_params(tmp_path / "params", make_state(0).params)
    save_params(tmp_path / "params", params)
    assert [path.name for path in tmp_path.iterdir()] == ["params"]
    assert_bitwise(load_params(tmp_path / "params", abstract(params)), params)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    without_sharding = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), half)
    assert_bitwise(load_params(tmp_path / "params", without_sharding), half)


def test_what_a_kill_left_of_saving_params_is_removed(tmp_path):
    save_params(tmp_path / "params", make_state(0).params)
    for name in ("params.old", "params.new", "params.new.orbax-checkpoint-tmp", "params.notes"):
        (tmp_path / name / "below").mkdir(parents=True)
    checkpoint.remove_left_over(tmp_path / "params")
    assert {path.name for path in tmp_path.iterdir()} == {"params", "params.notes"}


def test_params_that_are_not_there(tmp_path):
    with pytest.raises(InputError, match=f"from {tmp_path / 'params'}: manifest.json is missing"):
        load_params(tmp_path / "params", {})


def test_restored_onto_other_devices(tmp_path):
    """Saved from one device, restored onto a mesh of 8 and, from there, onto a part of it."""
    program = textwrap.dedent("""
        import sys, jax, jax.numpy as jnp, numpy as np
        from jax.sharding import NamedSharding, PartitionSpec as P
        from rlhf_jax.checkpoint import load_params, save_params
        expected = np.arange(64 * 32, dtype=np.float32).reshape(64, 32)
        def onto(shape, spec):
            mesh = jax.make_mesh(shape, ("data", "fsdp", "tensor"),
                                 axis_types=(jax.sharding.AxisType.Auto,) * 3,
                                 devices=jax.devices()[:np.prod(shape)])
            sharding = NamedSharding(mesh, spec)
            tree = load_params(sys.argv[1], {"w": jax.ShapeDtypeStruct(
                (64, 32), jnp.float32, sharding=sharding)})
            assert tree["w"].sharding == sharding
            assert (np.asarray(tree["w"]) == expected).all()
            save_params(sys.argv[1], tree)
        onto((2, 2, 2), P("fsdp", "tensor"))
        onto((1, 4, 1), P(None, "fsdp"))
    """)
    expected = np.arange(64 * 32, dtype=np.float32).reshape(64, 32)
    save_params(tmp_path / "params", {"w": jnp.asarray(expected)})
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "params")], check=True, env=environment, cwd=ROOT)
    restored = load_params(tmp_path / "params", {"w": jax.ShapeDtypeStruct((64, 32), jnp.float32)})
    assert (np.asarray(restored["w"]) == expected).all()


def test_quiet(tmp_path, capfd, caplog):
    with caplog.at_level(logging.DEBUG, logger="absl"):
        saved(tmp_path, 1, 2)
        with Checkpointer(tmp_path) as checkpointer:
            checkpointer.restore(abstract(make_state()))
    captured = capfd.readouterr()
    assert captured.out == captured.err == "" and not caplog.records


@pytest.mark.parametrize("keep", [0, -1])
def test_no_number_of_kept_checkpoints_deletes_all(tmp_path, keep):
    saved(tmp_path, 1, 2)
    with pytest.raises(InputError, match=f"checkpoints_kept={keep} must be 1 or more"):
        Checkpointer(tmp_path, keep)
    with Checkpointer(tmp_path, 1, keep_every=-1) as checkpointer:
        checkpointer.save(3, make_state(3))
        checkpointer.wait()
        assert 3 in checkpointer.steps()


def test_a_longer_file_is_damage_without_reading_it(tmp_path):
    saved(tmp_path, 1, 2)
    longer = max((path for path in (tmp_path / "2").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    with open(longer, "ab") as file:
        file.write(b"x")
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.steps() == [1]


NAMES = ["a*b", "a?b", "a b", "한국어 ü", "a{b}", "a%20b", "a#b", "a'b\"c", "a:b", "~x", "a\nb", "a[b", "a]b[", "$HOME"]


@pytest.mark.parametrize("name", ["[a]", "a[1-3]b", "a\\b", "a\udcff", "x/[a]/y", "gs:"])
def test_a_folder_that_could_not_be_read_back_is_refused(tmp_path, name):
    for refuse in (Checkpointer, lambda path: save_params(path, {}), checkpoint.check_path):
        with pytest.raises(InputError, match="checkpoints cannot be kept in a folder with .* in its path"):
            refuse(tmp_path / name / "checkpoints")
    assert not list(tmp_path.iterdir())


def test_a_folder_of_any_other_name_is_read_back(tmp_path):
    """All in one path: what is written there is there."""
    path = tmp_path.joinpath(*NAMES)
    saved(path, 1)
    with Checkpointer(path) as checkpointer:
        step, restored = checkpointer.restore(abstract(make_state()))
    assert_bitwise(restored, make_state(1))
    save_params(path / "params", make_state(2).params)
    assert_bitwise(load_params(path / "params", abstract(make_state().params)), make_state(2).params)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EFBIG, os.strerror(errno.EFBIG)),
        OSError(errno.EROFS, os.strerror(errno.EROFS), "x"),
        PermissionError(errno.EACCES, os.strerror(errno.EACCES), "x"),
        ValueError(f"UNKNOWN: Error writing local file: {os.strerror(errno.EFBIG)}"),
        ValueError(f"FAILED_PRECONDITION: {os.strerror(errno.EROFS)} [os_error='30']"),
    ],
)
def test_a_disk_that_refuses_is_a_sentence(tmp_path, monkeypatch, error):
    saved(tmp_path, 1)
    checkpointer = Checkpointer(tmp_path)

    def refuse(*_):
        raise error

    monkeypatch.setattr(checkpoint, "write_json", refuse)
    checkpointer.save(2, make_state(2))
    with pytest.raises(
        InputError, match=f"2: {'|'.join(map(os.strerror, (errno.EFBIG, errno.EROFS, errno.EACCES)))}; what"
    ):
        checkpointer.wait()
    checkpointer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_a_folder_that_is_removed_while_it_is_written_is_a_sentence(tmp_path, monkeypatch):
    checkpointer = Checkpointer(tmp_path / "checkpoints")

    def remove(*_):
        shutil.rmtree(tmp_path / "checkpoints")
        raise ValueError("NOT_FOUND")

    monkeypatch.setattr(checkpoint, "write_json", remove)
    checkpointer.save(1, make_state(1))
    with pytest.raises(InputError, match="its folder was removed"):
        checkpointer.close()


def test_a_second_ctrl_c_does_not_wait_for_what_is_being_saved(tmp_path, monkeypatch):
    """Nor does it clean up beside a thread that still writes."""
    closed = []
    with pytest.raises(KeyboardInterrupt), Checkpointer(tmp_path) as checkpointer:
        monkeypatch.setattr(checkpointer._writer, "finish", lambda: closed.append("waited"))
        monkeypatch.setattr(checkpointer._writer, "close", lambda: closed.append("closed"))
        raise KeyboardInterrupt
    monkeypatch.setattr(checkpoint._Writer, "close", lambda self: closed.append("closed"))
    monkeypatch.setattr(checkpoint._Writer, "start", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        save_params(tmp_path / "params", {})
    assert not closed
