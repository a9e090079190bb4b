"""Stages that arms share: each is computed once, whichever arm comes first.

A stage's identity is a hash of what its result depends on: the common fields of the config, its own
section, and the identities of the stages it reads. An arm whose stage has the identity of a finished
one adopts it: the parameters are linked, the small files copied. What a policy is worth depends
besides on who judges it (the reward models that score, the SFT policy that KL and win rate refer to),
so of several equal stages the one with the same judges is taken, and otherwise judged anew.

    DIR/IDENTITY/JUDGES.json   {"folder": where that stage lies}, relative to DIR
    DIR/IDENTITY.lock          held by the arm that computes it
    DIR/tokenizer-HASH/        tokenizer and template of the arms that read the same data
    DIR/tokens/                documents as tokens
"""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import time

from ml_collections import ConfigDict

from rlhf_jax import shapes
from rlhf_jax.data.tokenizer_files import TOKENIZER
from rlhf_jax.ppo import options as ppo_options
from rlhf_jax.run import KEPT, Run
from rlhf_jax.runtime import finished, hosts
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import (
    copy,
    lock,
    new_folder,
    not_through_links,
    read_if_there,
    read_json_lines,
    remove_left_over,
    write_json,
    write_json_lines,
)
from rlhf_jax.runtime.progress import Stopped

# What every stage reads of a config; meshes and free fields change no result.
COMMON = ("prompt_length", "completion_length", "too_long", "data", "tokenizer", "model", "evaluate")


def identities(config: ConfigDict) -> dict[str, str]:
    """Stage -> identity, 16 hexadecimal digits, for every stage of a config."""
    found = {}
    config = ppo_options.filled(
        shapes.filled(config)
    )  # as a run's is: a sweep that has not begun finds what others have computed
    common = {name: config[name] for name in COMMON}
    for stage in config.stages:
        inputs = {name: found[name] for name in _inputs(config, stage)}
        own_seed = config[stage].get("seed")
        seed = config.seed if own_seed is None else own_seed
        section = config[stage].to_dict() | {"seed": seed}
        # What a stage's own model says is not read of the policy's: policies of all sizes share its reward model.
        common["model"] = config.model.to_dict() | section.get("model", {})
        found[stage] = _digest([stage, common, section, inputs])
    return found


def _inputs(config: ConfigDict, stage: str) -> list[str]:
    """The earlier stages that a stage names, and those that it reads unnamed."""
    earlier = config.stages[: list(config.stages).index(stage)]
    words = set()
    for field, value in config[stage].to_dict().items():
        if field == "kind":
            continue
        values = value if isinstance(value, (tuple, list)) else [value]
        words |= {word.partition("@")[0] for word in values if isinstance(word, str)}
    if config[stage].kind in ("reward_model", "dpo") and not config[stage].rankings:  # the first's, see rankings.load
        words |= set([name for name in earlier if config[name].kind == "collect"][:1])
    return [name for name in earlier if name in words]


def _judges(config: ConfigDict, found: dict[str, str]) -> str:
    """Of the reward models that score and the policy that KL and win rate refer to."""
    kinds = {stage: config[stage].kind for stage in config.stages}
    rewards = [(stage, found[stage]) for stage, kind in kinds.items() if kind == "reward_model"]
    references = [found[stage] for stage, kind in kinds.items() if kind == "sft"]
    return _digest([rewards, references[:1]])


def held(path: pathlib.Path, identity: str) -> bool:
    """Whether the store in `path` has a stage of this identity, by whomever it was judged."""
    return any((path / identity).glob("*.json"))


class Store:
    """The finished stages below a directory.

    Args:
      path: of it; several sweeps may share one.

    Attributes:
      corpora: of the arms of this process, by what they read (see run.start).
    """

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.corpora = {}
        hosts.on_first(self._make)

    def _make(self):
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / "tokens").mkdir(exist_ok=True)
            for folder in (self.path, *(path for path in self.path.iterdir() if path.is_dir())):
                remove_left_over(folder)
        except OSError as error:
            raise InputError(f"cannot make the folder {self.path}: {error.strerror}") from error

    @contextlib.contextmanager
    def tokenizer(self, config: ConfigDict, path: pathlib.Path):
        """Lends an arm's directory the tokenizer of the arms that read the same data, before its run starts.

        Leave the context when it has one: if it had to make its own, the next arms get that.
        """
        ours = self.path / f"tokenizer-{_digest([config.data, config.tokenizer])}"
        hosts.on_first(self._lend_tokenizer, ours, path)
        yield
        hosts.on_first(self._keep_tokenizer, ours, path)

    def _lend_tokenizer(self, ours, path):
        path.mkdir(parents=True, exist_ok=True)
        if not (path / "tokens").exists():
            (path / "tokens").symlink_to(os.path.relpath(self.path / "tokens", path))
        if ours.is_dir() and not (path / "tokenizer.json").exists():
            for name in sorted(KEPT, key=TOKENIZER.__eq__):  # tokenizer.json last: now it has one
                if (ours / name).exists():
                    copy(ours / name, path)

    def _keep_tokenizer(self, ours, path):
        if not ours.is_dir() and (path / "tokenizer.json").exists():
            try:
                with new_folder(ours) as new:
                    for name in KEPT:
                        if (path / name).exists():
                            shutil.copy(path / name, new)
            except InputError:
                if not ours.is_dir():  # else another arm was faster
                    raise

    @contextlib.contextmanager
    def shared(self, run: Run, stage: str):
        """While a stage of a run is computed: before, it is adopted where it can be; afterwards, others may adopt it.

        Where another process is computing the very same stage, this one waits for it.
        """
        found = identities(run.config)
        identity, judges = found[stage], _judges(run.config, found)
        with self._alone(identity, run, stage):
            hosts.on_first(self.adopt, run.path, stage, identity, judges)
            yield
            hosts.on_first(self._publish, run.path, stage, identity, judges)

    def adopt(self, path: pathlib.Path, stage: str, identity: str, judges: str) -> bool:
        """Gives the run in `path` a finished stage of this identity, if there is one that saw the same data files."""
        folder = path / stage
        source, same_judges = self._holder(identity, judges, path)
        if (folder / "done.json").exists() or source is None or source == folder.resolve():
            return False
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("params", "candidates"):  # what is large
            if (source / name).exists():
                ours = folder / name
                shutil.rmtree(ours, ignore_errors=True) if not ours.is_symlink() else ours.unlink()
                ours.symlink_to(os.path.relpath((source / name).resolve(), folder.resolve()))
        done = finished.facts(source)
        names = {file.name for file in source.iterdir() if file.suffix in (".json", ".jsonl", ".txt")}
        for name in names.union(name for name in done.get("files", ()) if "/" not in name) - {finished.DONE}:
            copy(finished.checked(source / name), folder)
        if not same_judges:
            _forget_judges(folder)
        finished.mark(folder, {"shared_from": os.path.relpath(source, path), **done})  # last: now it is done
        return True

    def _publish(self, path, stage, identity, judges):
        entry = self.path / identity / f"{judges}.json"
        if (path / stage / "done.json").exists() and self._folder(entry, path) is None:
            entry.parent.mkdir(exist_ok=True)
            folder = os.path.relpath((path / stage).resolve(), self.path.resolve())
            write_json(entry, {"folder": folder, "stage": stage})

    def _holder(self, identity: str, judges: str, path: pathlib.Path) -> tuple[pathlib.Path | None, bool]:
        """Where a finished stage of this identity lies, for the run in `path`, and whether it was judged by the same."""
        own = self.path / identity / f"{judges}.json"
        if folder := self._folder(own, path):
            return folder, True
        others = (self._folder(entry, path) for entry in sorted((self.path / identity).glob("*.json")))
        return next(filter(None, others), None), False

    def _folder(self, entry: pathlib.Path, path: pathlib.Path) -> pathlib.Path | None:
        """The folder that an entry names, if it still holds the finished stage and saw the data files of the run in `path`."""
        named = read_if_there(entry, needs=["folder"])
        folder = named and (self.path / named["folder"]).resolve()
        found = folder and (folder / "done.json").exists() and _checksums(folder.parent) in (_checksums(path), None)
        return folder if found else None

    @contextlib.contextmanager
    def _alone(self, identity: str, run: Run, stage: str):
        with contextlib.ExitStack() as stack:
            files = []

            def take() -> bool:
                if not files:
                    files.append(
                        stack.enter_context(open(self.path / f"{identity}.lock", "w", opener=not_through_links))
                    )
                return lock(files[0])

            stop, told = hosts.Stop(run.interrupt.asked), False
            while not hosts.on_first(take):  # the others do not wait in one long call, which would time out
                if not told:
                    print(f"{stage}: waits for the arm that is computing it", flush=True)
                    told = True
                if signal := stop.agreed(wait=True):
                    raise Stopped(stage, 0, signal)
                time.sleep(1.0)
            yield


def _checksums(path: pathlib.Path) -> dict | None:
    """Of the data files of a run; None where it reads none, or is of a version that kept none."""
    return (read_if_there(path / "data_report.json") or {}).get("checksums")


def _forget_judges(folder: pathlib.Path) -> None:
    """Leaves samples and evaluation as they are before there is a reward model or a reference (see policy.rescore)."""
    evaluation = folder / "evaluation.json"
    for samples in folder.glob("samples*.jsonl"):
        rows = read_json_lines(samples)
        write_json_lines(samples, [row | {"score": None, "scores": {}, "kl": None} for row in rows])
    found = read_if_there(evaluation)
    if found and "estimates" in found:
        found.pop("other_weights", None)
        known = {name: value for name, value in found["estimates"].items() if not name.startswith("score/")}
        found["estimates"] = known | dict.fromkeys(("score", "kl", "win_rate"))
        write_json(evaluation, found)


def _digest(value) -> str:
    plain = json.dumps(value, sort_keys=True, default=lambda x: x.to_dict() if isinstance(x, ConfigDict) else list(x))
    return hashlib.sha256(plain.encode()).hexdigest()[:16]
