"""The work directory of a run: its config, its lock, and its finished stages.

The directory holds `config.json`, `overrides.json` and a folder for each stage. A stage writes its `done.json` last. A
stage without `done.json` is run or resumed; a stage with it is not repeated (see finished.py).

All processes of a job must call the methods of `Workdir`, which act on the first process.
"""

import datetime
import json
import os
import pathlib
from collections.abc import Callable, Mapping

from rlhf_jax.runtime import finished, hosts
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import lock as lock_file
from rlhf_jax.runtime.files import make_folder, not_through_links, read_json, remove_left_over, write_json

_SHOWN_DIFFERENCES = 8


class InUse(InputError):
    """Another live process holds the lock of the work directory."""


class Workdir:
    """A locked work directory. Use as a context manager; the lock ends with it or with the process.

    The first process holds the lock for the whole job.

    Args:
      path: the directory, which is made with its parents if it does not exist.
      config: the run's whole config, nested mappings of JSON values (`ConfigDict.to_dict()`).
      overrides: fields given on the command line, which are kept for readers of the directory.
      ignore: the stored config and the new one -> dotted prefixes of the fields that may differ between them.
      defaults: the config's defaults. A field that the stored config of an older version lacks is no difference if it
        has its default now.
      prepared: names of files that a start writes before the first stage has its folder. If there is no stage's folder
        yet, nothing depends on these files. They are then removed with the config, so that a start that was refused can
        be repeated with a corrected config.

    Raises:
      InputError: the path is a file, a URL or not writable; another live process holds the lock; the directory holds
        another config, and the message names the fields that differ, with both values; or not all processes of the job
        see the same directory.
    """

    def __init__(
        self,
        path,
        config,
        overrides=None,
        *,
        ignore: Callable[[Mapping, Mapping], tuple[str, ...]] = lambda old, new: (),
        defaults=None,
        prepared: tuple[str, ...] = (),
    ):
        if "://" in str(path):
            raise InputError(
                f"the work directory {path} is a URL: mount the bucket (gcsfuse for "
                "gs://) and give the folder where it is mounted"
            )
        self.path = pathlib.Path(path)
        self._lock = None
        hosts.on_first(self._open, config, overrides or {}, ignore, defaults or {}, prepared)
        if not (self.path / "config.json").exists():
            raise InputError(
                f"the work directory {self.path} is not the same folder on every host "
                f"({hosts.describe()} does not find its config.json): give a shared one"
            )

    def _open(self, config, overrides, ignore, defaults, prepared):
        """Makes and locks the directory, removes what a killed process left, and checks and writes the config."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise InputError(f"the work directory {self.path} is a file: give a directory") from error
        except OSError as error:
            raise InputError(f"cannot make the work directory {self.path}: {error.strerror}") from error
        if (self.path / "sweep.json").is_file():
            raise InputError(f"the work directory {self.path} holds a sweep: give the run another directory")
        self._lock = _lock(self.path)
        try:
            for folder, folders, _ in os.walk(self.path):
                folders[:] = [
                    name for name in folders if name not in ("checkpoints", "params")
                ]  # these belong to Orbax
                remove_left_over(folder)
            if (self.path / "overrides.json").is_file() and not has_begun(self.path):
                for name in prepared and ("config.json", *prepared):
                    (self.path / name).unlink(missing_ok=True)
            self._adopt(config, overrides, ignore, defaults)
        except BaseException:
            self.close()
            raise

    def _adopt(self, config, overrides, ignore, defaults):
        """Writes config and overrides; raises InputError if the directory holds another config."""
        config, defaults = json.loads(json.dumps([config, defaults]))  # turns tuples into lists, as in the file
        file = self.path / "config.json"
        if file.exists():
            stored = read_json(file)
            refuse_other_config(self.path, stored, config, ignore(stored, config), defaults)
        write_json(self.path / "overrides.json", overrides)
        write_json(file, config)

    def stage(self, name: str) -> pathlib.Path:
        """Returns the folder of a stage, which is made if needed."""
        folder = self.path / name
        hosts.on_first(_make_folder, folder)
        return folder

    def done(self, name: str) -> dict | None:
        """Returns the facts that `mark_done` wrote for a stage; None if the stage is not finished."""
        return hosts.on_first(finished.facts, self.path / name)

    def mark_done(self, name: str, seconds: float, **details) -> None:
        """Marks a stage as finished, with the time it took in seconds and any other JSON values."""
        finished_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        hosts.on_first(
            finished.mark, self.stage(name), {"finished_at": finished_at, "seconds": round(seconds, 3), **details}
        )

    def mark_evaluated(self, name: str, seconds: float) -> None:
        """Adds to the mark of a finished stage how long its evaluation took, in seconds."""
        hosts.on_first(finished.add, self.stage(name), {"evaluation_seconds": round(seconds, 3)})

    def close(self) -> None:
        """Releases the lock."""
        if self._lock:
            self._lock.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def has_begun(path: pathlib.Path) -> bool:
    """Whether the folder of a stage is in a work directory; before that, nothing depends on its config."""
    return path.is_dir() and any(entry.is_dir() for entry in path.iterdir())


def config_of(path) -> dict:
    """Returns the content of config.json in the directory of a run; raises InputError if it cannot be read."""
    folder = pathlib.Path(path)
    if (folder / "config.json").is_file():
        return read_json(folder / "config.json")
    if not folder.is_dir():
        raise InputError(f"there is no folder {path}; give the work directory of a run")
    instead = ""
    if (folder / "sweep.json").is_file():
        instead = f"; it holds a sweep, whose runs are {folder}/arms/NAME"
    elif (folder.absolute().parent / "overrides.json").is_file():
        instead = f"; give {folder.parent}, of which it is a part"
    raise InputError(f"{path} is not the work directory of a run: it has no config.json{instead}")


def in_use(path) -> bool:
    """Whether a process has the work directory `path` open.

    The check takes the lock for a moment, so a process that opens the directory at this moment may be refused.
    """
    try:
        with open(pathlib.Path(path) / ".lock", "r+", encoding="utf-8") as lock:
            return not lock_file(lock)
    except FileNotFoundError:
        return False


def _make_folder(path):
    """`make_folder` without a result, because on_first takes JSON values only."""
    make_folder(path)


def _lock(path):
    """Opens and locks `path/.lock`; the operating system releases it when the process dies."""
    try:
        lock = open(path / ".lock", "a+", encoding="utf-8", opener=not_through_links)
    except OSError as error:
        raise InputError(f"the work directory {path} is not writable: {error.strerror}") from error
    if not lock_file(lock):
        lock.seek(0)
        owner = lock.read().strip()
        lock.close()
        raise InUse(
            f"the work directory {path} is in use by process {owner or '(unknown)'}: wait until "
            "it ends, stop it, or give another directory"
        )
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def refuse_other_config(path, old, new, ignore, defaults) -> None:
    """Raises InputError if two configs differ in a field that is not to be ignored; the message lists the fields.

    Args:
      path: the work directory, for the message.
      old: the stored config, as in config.json.
      new: the new config, in the same form.
      ignore: dotted prefixes of fields that may differ.
      defaults: value of each field that the stored config lacks.
    """
    new_names, old_names = dict(flatten(new)), dict(flatten(old))
    added = {name: value for name, value in flatten(defaults) if name in new_names and name not in old_names}
    if listed := differences(old_names | added, new_names, ignore):
        raise InputError(
            f"the work directory {path} holds a run of another config ({listed}): "
            "give these fields their old values or another directory"
        )


def differences(old, new, ignore: tuple[str, ...] = (), *, common: bool = False) -> str:
    """Returns a list of the fields in which two configs differ, with both values; "" if there are none.

    Args:
      old: a config, or a flat mapping from the dotted names of its fields.
      new: another config, in one of these forms.
      ignore: dotted prefixes of fields that may differ.
      common: whether to compare only the fields that both have.
    """
    old, new = dict(flatten(old)), dict(flatten(new))
    found = [
        f"{name} was {_show(old, name)} and is now {_show(new, name)}"
        for name in sorted(old.keys() & new.keys() if common else old.keys() | new.keys())
        if (name not in old or name not in new or old[name] != new[name])
        and not any(name == prefix or name.startswith(prefix + ".") for prefix in ignore)
    ]
    more = f" and {len(found) - _SHOWN_DIFFERENCES} more" if len(found) > _SHOWN_DIFFERENCES else ""
    return ", ".join(found[:_SHOWN_DIFFERENCES]) + more


def flatten(config, prefix=""):
    """Yields (dotted name, value) of every leaf; an empty mapping is a leaf."""
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _show(config, name):
    """Returns the value of a field as JSON, or "absent"."""
    return json.dumps(config[name], ensure_ascii=False) if name in config else "absent"
