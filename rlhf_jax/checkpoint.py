"""Checkpoints: the only file that knows Orbax.

Orbax writes a directory under a temporary name and renames it when it is complete. Just before the
rename we add `manifest.json`: shape and dtype of every array, size and CRC-32 of every file. A
checkpoint is good exactly when its files match its manifest, so that a stray directory, a missing
or truncated file and a flipped bit (which Orbax restores without a word) are found before anything
is read. Nothing is deleted until a newer good checkpoint exists.

All processes of a job call everything here together, on a folder that all of them see. Each writes
its part of the arrays; the manifest, and whether a checkpoint is good, are the first one's business.
"""

import concurrent.futures
import contextlib
import errno
import logging
import os
import pathlib
import re
import shutil
import sys
import zlib

import jax
import orbax.checkpoint as ocp

from rlhf_jax.runtime import hosts
from rlhf_jax.runtime.errors import InputError, reason, refused
from rlhf_jax.runtime.files import from_json, read_json, write_json

_MANIFEST = "manifest.json"
_UNLISTED = (_MANIFEST, "_CHECKPOINT_METADATA")  # Orbax changes the latter after the manifest
_TEMPORARY = ".orbax-checkpoint-tmp"  # Orbax's suffix of a directory that is being written
_log = logging.getLogger(__name__)


class Checkpointer:
    """Saves and restores the state of a stage in `directory/<step>`, in the background.

    Only one process may save to a directory at a time (`workdir.Workdir` sees to it).

    Args:
      directory: made by the first save.
      keep: how many of the newest good checkpoints stay, 1 or more.
      keep_every: besides, those of every so many steps stay for good; 0: none.

    Raises:
      InputError: none would stay, or the directory has a name that `check_path` refuses.
    """

    def __init__(self, directory, keep: int = 2, keep_every: int = 0):
        if keep < 1:
            raise InputError(f"checkpoints_kept={keep} must be 1 or more: a run is resumed from the newest checkpoint")
        check_path(directory)
        self._directory = pathlib.Path(directory).absolute()
        self._keep, self._keep_every = keep, keep_every
        self._broken: set[int] = set()  # steps whose files have the right sizes, but not the right contents
        self._writer = _Writer()

    def save(self, step: int, tree) -> None:
        """Starts saving a pytree of arrays as the checkpoint of `step`.

        Returns when the arrays are copied, so they may be donated. An error in the background is
        raised by the next `save`, `wait` or `close`. A step that is saved already is left as it
        is: a step determines its state.

        Raises:
          InputError: the disk is full, or not writable; older checkpoints are untouched.
        """
        self.wait()
        if step not in self.steps():
            self._broken.discard(step)
            self._writer.start(self._directory / str(step), tree)

    def steps(self) -> list[int]:
        """The steps of the checkpoints whose files are all there, in ascending order."""
        return hosts.on_first(self._good)

    def latest_step(self) -> int | None:
        """The newest of `steps`, None when there is none."""
        return max(self.steps(), default=None)

    def restore(self, abstract, step: int | None = None, *, replaced=None):
        """Restores the newest good checkpoint, or that of `step`.

        A newer one that is damaged is named in a warning and passed over; `save` replaces it. Checkpoints that need not
        be kept are removed when the newest is restored: a process that was killed after a save has left them behind.

        Args:
          abstract: a tree of `jax.ShapeDtypeStruct` with shardings: where and as what the arrays
            are wanted, however they were saved. Without a sharding: on the default device.
          step: the step to restore; None: the newest.
          replaced: a tree of arrays whose place the restored ones take; they are deleted before anything is read, so
            that memory never holds both. Without a good checkpoint they stay.

        Returns:
          (step, tree), or None when there is no good checkpoint.

        Raises:
          InputError: an array is missing, superfluous or of another shape; or `step` is not good.
        """
        self._writer.finish()
        chosen = hosts.on_first(self._choose, step)
        if chosen is None:
            return None
        if step is None:
            hosts.on_first(self._clean)
        for leaf in jax.tree.leaves(replaced):
            leaf.delete()
        return chosen, _read(self._directory / str(chosen), abstract)

    def wait(self) -> None:
        """Waits for the save in progress, if any, and then removes what need not be kept."""
        if self._writer.finish():
            hosts.on_first(self._clean)

    def close(self) -> None:
        """Waits for the save in progress and frees the threads."""
        try:
            self.wait()
        finally:
            self._writer.close()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if not _at_once(kind):
            self.close()

    def _choose(self, step):
        for candidate in reversed(self._found()) if step is None else [step]:
            path = self._directory / str(candidate)
            damage = _damage(path, contents=True)
            if not damage:
                return candidate
            if step is not None:
                raise InputError(f"cannot restore the checkpoint {path}: {damage}")
            self._broken.add(candidate)
            _log.warning("the checkpoint %s is damaged, an older one is used: %s", path, damage)
        return None

    def _clean(self):
        outdated = [
            str(step) for step in self._good()[: -self._keep] if not self._keep_every or step % self._keep_every
        ]
        for path in self._directory.iterdir():
            if path.name in outdated or path.name.endswith(_TEMPORARY):
                shutil.rmtree(path)

    def _good(self):
        return [step for step in self._found() if step not in self._broken and not _damage(self._directory / str(step))]

    def _found(self):
        """Every directory named like a step, good or not, ascending."""
        if not self._directory.is_dir():
            return []
        return sorted(int(path.name) for path in self._directory.iterdir() if path.name.isdecimal() and path.is_dir())


def check_path(path) -> None:
    """Raises InputError for a folder in which Orbax would write what it cannot read: it takes some names for patterns."""
    text = str(pathlib.Path(path).absolute())
    unreadable = re.search(r"\\|\[[^/]*\]|(?<=/)(?:gs|s3):(?=/)", text)
    if unreadable or text != text.encode(errors="replace").decode():
        what = f"'{unreadable[0]}'" if unreadable else "bytes that are no UTF-8"
        raise InputError(
            f"{text!r}: checkpoints cannot be kept in a folder with {what} in its path; give a folder of another name"
        )


def save_params(path, params) -> None:
    """Writes a pytree of arrays to the directory `path`: all of it, or what was there stays.

    Raises:
      InputError: the disk is full, or not writable.
    """
    check_path(path)
    path = pathlib.Path(path).absolute()
    new, old = (path.with_name(path.name + suffix) for suffix in (".new", ".old"))
    with _Writer() as writer:
        writer.start(new, params)
        writer.finish()
    hosts.on_first(_replace, path, new, old)


def load_params(path, abstract, part: str = ""):
    """Reads what `save_params` wrote, with the dtypes and shardings of `abstract` (see `restore`).

    Args:
      path: the directory.
      abstract: a tree of dictionaries.
      part: the place of these arrays in a checkpoint of a whole state, such as "policy/params"; the other arrays are not
        read. "": there are no others.

    Raises:
      InputError: the files are damaged, or an array is missing, superfluous or of another shape.
    """
    path = pathlib.Path(path).absolute()
    if damage := hosts.on_first(_damage, path, True):
        raise _unusable(path, damage)
    return _read_part(path, abstract, part) if part else _read(path, abstract)


def check_params(path) -> None:
    """Raises InputError where a file of parameters is missing or has another size; what is in them is not read."""
    path = pathlib.Path(path).absolute()
    if (path / _MANIFEST).is_file() and (damage := _damage(path)):
        raise _unusable(path, damage)


def _unusable(path: pathlib.Path, damage: str) -> InputError:
    # The parameters that arms share lie in the folder of one of them.
    return InputError(
        f"cannot load parameters from {path}: {damage}; put it back as it was, or delete the folder "
        f"{path.resolve().parent} and start its run again, which makes the stage anew"
    )


def remove_left_over(path) -> None:
    """Removes what a killed process has left beside `path`, at which it was saving parameters: its resume saves them anew."""
    path = pathlib.Path(path)
    for suffix in (".old", ".new", ".new" + _TEMPORARY):
        shutil.rmtree(path.with_name(path.name + suffix), ignore_errors=True)


def _replace(path, new, old):
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    new.rename(path)
    shutil.rmtree(old, ignore_errors=True)


class _Writer:
    """Writes one directory at a time: Orbax's files, then the manifest, then the rename."""

    def __init__(self):
        # What Orbax logs, it also raises; the filter is added once however often we come here.
        logging.getLogger("absl").addFilter(_not_from_orbax)
        if sys.unraisablehook is not _unraisablehook:
            _unraisablehook.shown, sys.unraisablehook = sys.unraisablehook, _unraisablehook
        self._path = self._arrays = None
        # Compressing takes twice the time and up to half the state's memory, and makes weights only a tenth smaller.
        self._orbax = ocp.AsyncCheckpointer(
            ocp.PyTreeCheckpointHandler(use_compression=False),
            async_options=ocp.options.AsyncOptions(post_finalization_callback=self._write_manifest),
        )

    def start(self, path, tree):
        self._path, self._arrays = path, _arrays(tree)
        with self._explaining_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._orbax.save(path, args=ocp.args.PyTreeSave(tree), force=True)

    def finish(self) -> bool:
        """Waits for what was started; whether there was anything."""
        if self._path is None:
            return False
        with self._explaining_errors():
            self._orbax.wait_until_finished()
        self._path = None
        return True

    def close(self):
        self._orbax.close()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if not _at_once(kind):
            self.close()

    def _write_manifest(self):
        folder = self._temporary
        paths = [path for path in folder.rglob("*") if path.is_file() and path.name not in _UNLISTED]
        files = {
            path.relative_to(folder).as_posix(): [path.stat().st_size, crc32]
            for path, crc32 in zip(paths, _crc32s(paths))
        }
        write_json(folder / _MANIFEST, {"arrays": self._arrays, "files": files})

    @property
    def _temporary(self):
        return self._path.with_name(self._path.name + _TEMPORARY)

    @contextlib.contextmanager
    def _explaining_errors(self):
        try:
            yield
        except Exception as error:
            path, temporary, self._path = self._path, self._temporary, None
            if hosts.is_first():
                shutil.rmtree(temporary, ignore_errors=True)  # it would only fill the disk
            full = any(os.strerror(code) in str(error) for code in (errno.ENOSPC, errno.EDQUOT))
            said = "the disk is full" if full else reason(error) if isinstance(error, OSError) else refused(error)
            if not said and not path.parent.is_dir():
                said = "its folder was removed"
            if not said:
                raise
            raise InputError(
                f"cannot save the checkpoint {path}: {said}; what was saved before is untouched"
            ) from error


def _at_once(kind: type | None) -> bool:
    """Whether an exception is a second Ctrl-C: what is being saved stays incomplete, and the process ends."""
    return kind is not None and not issubclass(kind, Exception)


def _damage(path, contents: bool = False) -> str | None:
    """What is wrong with a checkpoint's files (their sizes, or also their `contents`), or None."""
    try:
        files = from_json((path / _MANIFEST).read_bytes())["files"]
        for name, (size, _) in files.items():
            found = (path / name).stat().st_size
            if found != size:
                return f"{name} has {found} bytes instead of {size}"
        found = _crc32s([path / name for name in files]) if contents else []
        for (name, (_, crc32)), there in zip(files.items(), found):
            if there != crc32:
                return f"{name} does not have the contents that were written"
    except FileNotFoundError as error:
        return f"{pathlib.Path(error.filename).relative_to(path)} is missing"
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        return f"{_MANIFEST} cannot be read: {reason(error)}"
    return None


def _read_part(path, abstract, part: str):
    nested = abstract
    for name in reversed(part.split("/")):
        nested = {name: nested}
    restored = _read(path, nested, others=True)
    for name in part.split("/"):
        restored = restored[name]
    return restored


def _read(path, abstract, others: bool = False):
    """Reads the arrays of `abstract`; `others` in the checkpoint are passed over, or refused."""
    saved = hosts.on_first(read_json, path / _MANIFEST)["arrays"]
    wanted = _arrays(abstract)
    if others:
        saved = {name: array for name, array in saved.items() if name in wanted}
    for name in sorted(saved.keys() | wanted.keys()):
        there, here = (
            f"of shape {arrays[name]['shape']}" if name in arrays else "absent" for arrays in (saved, wanted)
        )
        if there != here:
            raise InputError(
                f"{path} does not fit this config: the array {name} is {there} in the checkpoint and {here} in the model; "
                "give the config that it was written with"
            )
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or device),
        abstract,
    )
    if others:
        arguments = ocp.checkpoint_utils.construct_restore_args(abstract)
        with ocp.PyTreeCheckpointer() as reader:
            return reader.restore(path, args=ocp.args.PyTreeRestore(abstract, arguments, partial_restore=True))
    with ocp.StandardCheckpointer() as reader:
        return reader.restore(path, abstract)


def _arrays(tree) -> dict[str, dict]:
    """Shape and dtype of every array by its path in the tree, such as "params/layers/w"."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def _crc32s(paths) -> list[int]:
    """Of every file; in threads, because a large checkpoint is read as fast as its disk allows."""
    with concurrent.futures.ThreadPoolExecutor(32) as threads:
        return list(threads.map(_crc32, paths))


def _crc32(path) -> int:
    checksum = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _unraisablehook(unraisable) -> None:
    """Passes over what TensorStore says of each write under way when another one has failed."""
    if str(unraisable.exc_value) != "Event loop is closed":
        _unraisablehook.shown(unraisable)


def _not_from_orbax(record) -> bool:
    return "/orbax/" not in record.pathname
