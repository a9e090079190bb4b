"""The store of stages that arms share: each stage is computed once, by the arm that reaches it first.

The identity of a stage is a hash of everything that its result depends on: the common fields of the config, the
stage's own section, the identities of the stages it reads, and the checksums of the models that it names and its run
has not trained. An arm adopts a finished stage of the same identity: it
links the parameters and copies the small files. The evaluation of a policy also depends on its judges, which are the
reward models that score it and the policy that KL and win rate refer to. So an arm prefers a stage with the same
judges; if there is none, it adopts another one and evaluates it anew.

    DIR/IDENTITY/JUDGES.json   {"folder": the folder of the stage, relative to DIR}
    DIR/IDENTITY.lock          held by the arm that computes the stage
    DIR/tokenizer-HASH/        tokenizer and template of the arms that read the same data
    DIR/tokens/                token ids of documents
"""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import time

from ml_collections import ConfigDict

from rlhf_jax import settled, sources
from rlhf_jax.data.tokenizer_files import TOKENIZER
from rlhf_jax.fields import noted, registry, rewards
from rlhf_jax.fields.run import COMMON as RUN
from rlhf_jax.notes import KEPT
from rlhf_jax.run import Run
from rlhf_jax.runtime import finished, hosts
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import (
    copy,
    lock,
    make_folder,
    new_folder,
    not_through_links,
    read_if_there,
    read_json_lines,
    remove_left_over,
    write_json,
    write_json_lines,
)
from rlhf_jax.runtime.progress import Stopped

# The fields of a config that a stage or its evaluation reads. Meshes and free fields do not change results.
COMMON = (*noted.COMMON, "evaluate")


def identities(config: ConfigDict) -> dict[str, str]:
    """Returns the identity of every stage of a config: stage -> 16 hexadecimal digits.

    Raises:
      InputError: the config leaves a length to the data.
    """
    found = {}
    settled.check_lengths(config)  # a run would measure them, and then have another identity than before its start
    config = settled.by_model(config)  # as a run does, so that a config has one identity before and after a start
    common = {name: config[name] for name in COMMON} | {"data": _data(config)}
    for stage in config.stages:
        inputs = {name: found[name] for name in _inputs(config, stage)} | _checksums_of_sources(config, stage)
        own_seed = config[stage].get("seed")
        seed = config.seed if own_seed is None else own_seed
        section = registry.of(config, stage).fields.told(config[stage]) | {"seed": seed}
        # Fields of a stage's own model replace those of the policy's model. So sweeps over the policy's size share a
        # reward model that sets its own.
        common["model"] = config.model.to_dict() | section.get("model", {})
        found[stage] = _digest([stage, common, section, inputs])
    return found


def _data(config: ConfigDict) -> dict:
    """Returns what the identity of a stage, and of a tokenizer, says of the data."""
    return RUN.parts["data"].told(config.data)


def _inputs(config: ConfigDict, stage: str) -> list[str]:
    """Returns the earlier stages that a stage reads: those that its section names, and the rankings read by default."""
    earlier = config.stages[: list(config.stages).index(stage)]
    words = set()
    for field, value in config[stage].to_dict().items():
        if field == "kind":
            continue
        values = value if isinstance(value, (tuple, list)) else [value]
        words |= {word.partition("@")[0] for word in values if isinstance(word, str)}
        if field == "reward":
            words.update(rewards.models(value))
    reads_rankings = "rankings" in config[stage] and registry.of(config, stage).gives != "rankings"
    if reads_rankings and not config[stage].rankings:  # then the first stage with rankings is read, see rankings.load
        words |= set([name for name in earlier if registry.of(config, name).gives == "rankings"][:1])
    return [name for name in earlier if name in words]


def _checksums_of_sources(config: ConfigDict, stage: str) -> dict[str, str]:
    """Returns the checksums of the models that a stage names and that its run has not trained (see sources.py).

    One that is not there has none: the stage itself will say that it is missing.
    """
    found = {}
    for field, name in sources.named(config[stage]):
        if name not in config:
            with contextlib.suppress(InputError):
                found[name] = sources.find(name, config.data.files.dir, ".", last=sources.FIELDS[field]).checksum()
    return found


def _judges(config: ConfigDict, found: dict[str, str]) -> str:
    """Returns a hash of a config's judges: the reward models, and the policy that KL and win rate refer to."""
    rewards = [(stage, found[stage]) for stage in config.stages if registry.of(config, stage).gives == "reward"]
    references = [found[stage] for stage in config.stages if registry.of(config, stage).reference]
    others = [_checksums_of_sources(config, stage) for stage in config.stages]
    return _digest([rewards, references[:1], *filter(None, others)])


def held(path: pathlib.Path, identity: str) -> bool:
    """Whether the store in `path` has a stage of this identity, whatever its judges."""
    return any((path / identity).glob("*.json"))


class Store:
    """A directory of finished stages.

    Args:
      path: the directory, which is made if needed; several sweeps may share it.

    Attributes:
      corpora: corpora that arms of this process have read, by the config fields that determine them (see run.start).
    """

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.corpora = {}
        hosts.on_first(self._make)

    def _make(self):
        """Makes the folders of the store, and removes what killed processes left in them."""
        make_folder(self.path / "tokens", parents=True)
        for folder in (self.path, *(path for path in self.path.iterdir() if path.is_dir())):
            remove_left_over(folder)

    @contextlib.contextmanager
    def tokenizer(self, config: ConfigDict, path: pathlib.Path):
        """Copies the tokenizer of arms that read the same data into an arm's directory, before its run starts.

        At the end of the context, a tokenizer that the arm had to make itself is kept for the next arms.
        """
        ours = self.path / f"tokenizer-{_digest([_data(config), config.tokenizer])}"
        hosts.on_first(self._lend_tokenizer, ours, path)
        yield
        hosts.on_first(self._keep_tokenizer, ours, path)

    def _lend_tokenizer(self, ours, path):
        """Links the tokens of documents into the folder of an arm, and copies the tokenizer if the arm has none."""
        path.mkdir(parents=True, exist_ok=True)
        if not (path / "tokens").exists():
            (path / "tokens").symlink_to(os.path.relpath(self.path / "tokens", path))
        if ours.is_dir() and not (path / "tokenizer.json").exists():
            for name in sorted(
                KEPT, key=TOKENIZER.__eq__
            ):  # tokenizer.json comes last, because it marks the copy as complete
                if (ours / name).exists():
                    copy(ours / name, path)

    def _keep_tokenizer(self, ours, path):
        """Copies the tokenizer of an arm into the store, if the store has none."""
        if not ours.is_dir() and (path / "tokenizer.json").exists():
            try:
                with new_folder(ours) as new:
                    for name in KEPT:
                        if (path / name).exists():
                            shutil.copy(path / name, new)
            except InputError:
                if not ours.is_dir():  # otherwise another arm was faster, which is no error
                    raise

    @contextlib.contextmanager
    def shared(self, run: Run, stage: str):
        """Context in which a run computes a stage: adopts the stage at its start if possible, publishes it at its end.

        If another process is computing a stage of the same identity, this process waits for it first.

        Raises:
          Stopped: the run was asked to stop while it waited.
        """
        found = identities(run.config)
        identity, judges = found[stage], _judges(run.config, found)
        with self._alone(identity, run, stage):
            hosts.on_first(self.adopt, run.path, stage, identity, judges)
            yield
            hosts.on_first(self._publish, run.path, stage, identity, judges)

    def adopt(self, path: pathlib.Path, stage: str, identity: str, judges: str) -> bool:
        """Gives the run in `path` a finished stage of this identity, if one exists that read the same data files.

        Returns:
          Whether the run has adopted a stage.
        """
        folder = path / stage
        source, same_judges = self._holder(identity, judges, path)
        if (folder / "done.json").exists() or source is None or source == folder.resolve():
            return False
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("params", "candidates"):  # large folders are linked, not copied
            if (source / name).exists():
                ours = folder / name
                shutil.rmtree(ours, ignore_errors=True) if not ours.is_symlink() else ours.unlink()
                ours.symlink_to(os.path.relpath((source / name).resolve(), folder.resolve()))
        done = finished.facts(source)
        # Where the large folders lie: in the stage from which `source` has adopted them, if it has.
        home = source.parent / done["shared_from"] if "shared_from" in done else source
        names = {file.name for file in source.iterdir() if file.suffix in (".json", ".jsonl", ".txt")}
        for name in names.union(name for name in done.get("files", ()) if "/" not in name) - {finished.DONE}:
            copy(finished.checked(source / name), folder)
        if not same_judges:
            _forget_judges(folder)
        # The mark comes last, when the stage is complete.
        finished.mark(folder, done | {"shared_from": os.path.relpath(home.resolve(), path.resolve())})
        return True

    def _publish(self, path, stage, identity, judges):
        """Records where a finished stage lies, unless a stage with the same judges is recorded already."""
        entry = self.path / identity / f"{judges}.json"
        if (path / stage / "done.json").exists() and self._folder(entry, path) is None:
            entry.parent.mkdir(exist_ok=True)
            folder = os.path.relpath((path / stage).resolve(), self.path.resolve())
            write_json(entry, {"folder": folder, "stage": stage})

    def _holder(self, identity: str, judges: str, path: pathlib.Path) -> tuple[pathlib.Path | None, bool]:
        """Returns the folder of a finished stage that the run in `path` may adopt, or None.

        Also returns whether the stage was evaluated by the same judges.
        """
        own = self.path / identity / f"{judges}.json"
        if folder := self._folder(own, path):
            return folder, True
        others = (self._folder(entry, path) for entry in sorted((self.path / identity).glob("*.json")))
        return next(filter(None, others), None), False

    def _folder(self, entry: pathlib.Path, path: pathlib.Path) -> pathlib.Path | None:
        """Returns the folder that an entry names, or None if the run in `path` cannot adopt it.

        The folder must still hold the finished stage, with all that it links to. Its run must have read the same data
        files, as far as it kept their checksums.
        """
        named = read_if_there(entry, needs=["folder"])
        folder = named and (self.path / named["folder"]).resolve()
        if not folder or not (folder / "done.json").exists() or not all(file.exists() for file in folder.iterdir()):
            return None
        return folder if _checksums(folder.parent) in (_checksums(path), None) else None

    @contextlib.contextmanager
    def _alone(self, identity: str, run: Run, stage: str):
        """Holds the lock of an identity, after waiting for it if needed; raises Stopped if asked to stop meanwhile."""
        with contextlib.ExitStack() as stack:
            files = []

            def take() -> bool:
                if not files:
                    files.append(
                        stack.enter_context(open(self.path / f"{identity}.lock", "w", opener=not_through_links))
                    )
                return lock(files[0])

            stop, told = hosts.Stop(run.interrupt.asked), False
            while not hosts.on_first(take):  # polls, because the other processes' wait in one long call would time out
                if not told:
                    print(f"{stage}: waits for the arm that is computing it", flush=True)
                    told = True
                if signal := stop.agreed(wait=True):
                    raise Stopped(stage, 0, signal)
                time.sleep(1.0)
            yield


def _checksums(path: pathlib.Path) -> dict | None:
    """Returns the checksums of a run's data files; None if it reads no files, or an older version did not keep them."""
    return (read_if_there(path / "data_report.json") or {}).get("checksums")


def _forget_judges(folder: pathlib.Path) -> None:
    """Removes scores, KL and win rate from a policy's samples and evaluation; policy.rescore computes them anew."""
    evaluation = folder / "evaluation.json"
    for samples in folder.glob("samples*.jsonl"):
        rows = read_json_lines(samples)
        write_json_lines(samples, [row | {"score": None, "scores": {}, "kl": None} for row in rows])
    found = read_if_there(evaluation)
    if found and "estimates" in found:
        found.pop("other_weights", None)
        found.pop("reference_estimates", None)
        known = {name: value for name, value in found["estimates"].items() if not name.startswith("score/")}
        found["estimates"] = known | dict.fromkeys(("score", "kl", "win_rate"))
        write_json(evaluation, found)


def _digest(value) -> str:
    """Returns a hash of a JSON-like value, 16 hexadecimal digits; configs and tuples are allowed in it."""
    plain = json.dumps(value, sort_keys=True, default=lambda x: x.to_dict() if isinstance(x, ConfigDict) else list(x))
    return hashlib.sha256(plain.encode()).hexdigest()[:16]
