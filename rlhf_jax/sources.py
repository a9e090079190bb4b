"""Models that a config names and that are no stages of its run: released weights, and what other runs have trained.

    FOLDER                           a folder of released weights (config.json, safetensors)
    WORKDIR/STAGE                    a finished stage of another run
    WORKDIR/STAGE/checkpoints/STEP   a checkpoint that a stage has kept (config.checkpoints_every)
    ADAPTER                          a folder with an adapter that PEFT has written

Each name is a path, relative to data.files.dir or else to the current directory, or absolute. All kinds of sources
answer the same questions: which head the model has, which shape and which tokenizer, and what its parameters are. A
source may be adapters (see lora.py): it then has a base, which is another source, and its parameters are its own alone.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from rlhf_jax import checkpoint, hf, lora, model, sharding
from rlhf_jax.data.files import checksum
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.fields import noted, registry, rewards
from rlhf_jax.fields.checks import nearest
from rlhf_jax.fields.defaults import restored
from rlhf_jax.hf import adapters
from rlhf_jax.lora import Lora
from rlhf_jax.model import TransformerConfig
from rlhf_jax.released import Adapter, Released
from rlhf_jax.runtime import finished, hosts
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import write_json
from rlhf_jax.runtime.workdir import config_of

# The fields in which a stage names models, and what these must give (see registry.Stage.gives).
FIELDS = {"init": "policy", "models": "policy", "reward": "reward", "judges": "reward"}
HEADS = {"policy": "lm", "reward": "scalar"}  # what a stage gives -> head of its model
BASE = "base.json"  # the file of a stage that says to which base its adapters belong
_CHECKPOINTS = "checkpoints"


class Missing(InputError):
    """A name has nothing at any of the places where it is looked for."""


@dataclasses.dataclass(frozen=True)
class Trained:
    """A finished stage in a work directory, or a checkpoint that a stage has kept.

    Attributes:
      workdir: the work directory.
      stage: name of the stage.
      step: step of the checkpoint; None for what the finished stage hands on.
    """

    workdir: pathlib.Path
    stage: str
    step: int | None = None

    @property
    def folder(self) -> pathlib.Path:
        """The folder of the stage, or of the checkpoint."""
        stage = self.workdir / self.stage
        return stage if self.step is None else stage / _CHECKPOINTS / str(self.step)

    @property
    def name(self) -> str:
        """The name of the model in its run: STAGE, or STAGE/checkpoints/STEP."""
        return self.folder.relative_to(self.workdir).as_posix()

    @property
    def label(self) -> str:
        """The model's name in tables and metrics, such as "a/sft" for runs/a/sft."""
        return self.folder.relative_to(self.workdir.parent).as_posix()

    @functools.cached_property
    def config(self) -> ConfigDict:
        """The config of the run; raises InputError as `read_config` does."""
        return read_config(self.workdir)

    @property
    def head(self) -> str:
        """The model's head, "lm" or "scalar"; raises InputError for a stage that trains no model."""
        gives = registry.of(self.config, self.stage).gives
        if gives not in HEADS:
            raise InputError(
                f"{self.folder} has no model: '{self.stage}' is a {self.config[self.stage].kind} stage; name one that "
                "trains a policy or a reward model"
            )
        return HEADS[gives]

    @property
    def tokenizer_folder(self) -> pathlib.Path:
        """The folder with the model's tokenizer."""
        return self.workdir

    def shape(self, **program: Any) -> TransformerConfig:
        """Returns the model's shape; `program` replaces fields that are not part of its architecture."""
        sections = self.config.model.to_dict(), self.config[self.stage].to_dict().get("model", {})
        fields = {name: value for section in sections for name, value in section.items() if value is not None}
        fields = {name: value for name, value in fields.items() if name not in ("shape", "lora", *hf.PROGRAM_FIELDS)}
        vocab_size = Tokenizer.load(self.workdir).vocab_size
        return TransformerConfig(**{"vocab_size": vocab_size, "lora": self.lora} | fields | program)

    @property
    def lora(self) -> Lora | None:
        """The settings of the adapters that the stage has trained; None if it has trained whole weights."""
        if registry.of(self.config, self.stage).base:
            return None
        own = self.config[self.stage].to_dict().get("model", {}).get("lora", {})
        return lora.of_section(self.config.model.lora, own)

    @property
    def base(self) -> "Source":
        """What the stage's adapters belong to; the source itself, if it is whole weights.

        Raises:
          InputError: the base is not there, or is another one than when the stage was trained.
        """
        if self.lora is None:
            return self
        stage = self.workdir / self.stage
        noted = hosts.on_first(finished.read_json, stage / BASE)
        folder = pathlib.Path(self.workdir, noted["folder"])
        found = at(folder) if folder.is_dir() else None
        if found is None or found.checksum() != noted["checksum"]:
            raise InputError(
                f"{stage} is an adapter of the model in {folder}, which "
                f"{'is not there' if found is None else 'is another model now'}: put that model back"
            )
        return found

    def params(self, shape: TransformerConfig, shardings, head: str, dtype: str = "float32") -> dict:
        """Returns the parameters of a dtype, placed by `shardings`, for a `shape` of the model's architecture.

        If the stage has trained adapters, `shape` must have them, and these alone are returned, with the scalar head.
        """
        stored = dataclasses.replace(shape, vocab_multiple=self.config.model.vocab_multiple)
        if self.lora is not None or stored.padded_vocab == shape.padded_vocab:
            return self._read(lora.trained(_abstract(shape, head, shardings, dtype)))
        whole = jax.tree.map(lambda place: sharding.replicated(place.mesh), shardings)
        return _repadded(shape, head, self._read(_abstract(stored, head, whole, dtype)), shardings)

    def _read(self, abstract) -> dict:
        if self.step is None:
            return read_stage(self.folder, abstract)
        section = self.config[self.stage]
        return checkpoint.load_params(self.folder, abstract, registry.of(self.config, self.stage).state_part(section))

    def checksum(self) -> str:
        """Returns a SHA-256 of the manifest, which has a checksum of each file of the parameters."""
        folder = self.folder / "params" if self.step is None else self.folder
        return checksum(folder / "manifest.json")


Source = Released | Trained | Adapter


def find(name: str, *folders: str | os.PathLike, last: str = "") -> Source:
    """Returns the source of a name, from the first of the folders in which there is something at that path.

    Args:
      name: a path.
      folders: the folders that it may be relative to.
      last: what the stage gives that a whole work directory stands for, "policy" or "reward"; "": it is refused.

    Raises:
      Missing: there is nothing at this path, or something else.
      InputError: there is a work directory, a stage that is not finished, or a stage without such a checkpoint.
    """
    for folder in folders:
        path = pathlib.Path(os.path.abspath(pathlib.Path(folder, name)))
        if last and is_run(path):
            return last_of(path, last)
        if found := at(path):
            return found
    raise Missing(f"'{name}' is neither a folder of released weights nor a finished stage of a run")


def places(folder: str) -> str:
    """Returns the end of a sentence that says where a model was looked for; `folder` is data.files.dir."""
    return f"in '{folder}' (data.files.dir) or in the current directory" if folder else "in the current directory"


def at(path: pathlib.Path) -> Source | None:
    """Returns the source at an absolute path; None if there is something else or nothing.

    Raises:
      InputError: there is a work directory, a stage that is not finished, or a stage without such a checkpoint.
    """
    if is_run(path):
        config = read_config(path)
        stages = [stage for stage in config.stages if registry.of(config, stage).gives in ("policy", "reward")]
        stages = [stage for stage in stages if (path / stage / finished.DONE).is_file()]
        raise InputError(
            f"{path} is a work directory; give one of its stages: "
            f"{', '.join(str(path / stage) for stage in stages) or 'none is finished yet'}"
        )
    if is_run(path.parent) and not (path / "config.json").is_file():
        if (path / finished.DONE).is_file():
            return Trained(path.parent, path.name)
        stages = config_of(path.parent).get("stages", ())
        if path.name not in stages:
            raise InputError(
                f"{path.name} is no stage of {path.parent}, whose stages are {', '.join(stages)}{nearest(path.name, stages)}"
            )
        raise InputError(
            f"{path} is not a finished stage: it has no {finished.DONE}; start the run again to finish it{_kept(path)}"
        )
    stage = path.parent.parent if path.parent.name == _CHECKPOINTS else path.parent
    if _CHECKPOINTS in (path.name, path.parent.name) and is_run(stage.parent):
        if path.name.isdecimal() and (path / "manifest.json").is_file():
            return Trained(stage.parent, stage.name, int(path.name))
        raise InputError(f"{path} is no checkpoint{_kept(stage) or '; the stage has kept none (checkpoints_every)'}")
    if (path / adapters.CONFIG).is_file():
        return Adapter(path)
    return Released(path) if (path / "config.json").is_file() else None


def stage_of_checkpoint(name: str) -> str:
    """Returns the stage in the name STAGE/checkpoints/STEP; "" for another name."""
    stage, *rest = name.split("/")
    return stage if len(rest) == 2 and rest[0] == _CHECKPOINTS else ""


def last_of(workdir: pathlib.Path, gives: str) -> Trained:
    """Returns the last finished stage in a work directory that gives "policy" or "reward".

    Raises:
      InputError: there is none.
    """
    workdir = pathlib.Path(os.path.abspath(workdir))
    config = read_config(workdir)
    stages = [stage for stage in config.stages if registry.of(config, stage).gives == gives]
    stages = [stage for stage in stages if (workdir / stage / finished.DONE).is_file()]
    if not stages:
        what = {"policy": "policy", "reward": "reward model"}[gives]
        raise InputError(f"{workdir} has no finished {what}; finish a stage that makes one first")
    return Trained(workdir, stages[-1])


def is_run(path) -> bool:
    """Whether a folder is the work directory of a run (a released model's has a config.json too)."""
    return (pathlib.Path(path) / "overrides.json").is_file()


def read_config(folder: pathlib.Path) -> ConfigDict:
    """Returns the config of the run in a folder.

    Raises:
      InputError: the folder is no run, or its config.json is damaged or not the one that its stages were made with.
    """
    config = restored(config_of(folder), str(folder / "config.json"))
    hosts.on_first(noted.check, config.to_dict(), folder)
    return config


def named(section: Mapping) -> Iterator[tuple[str, str]]:
    """Yields the fields of a stage that name models, with each name, without the temperature that may follow it.

    Reward functions are no models (see fields/rewards.py).
    """
    for field in FIELDS:
        value = section.get(field) or ()
        for text in [value] if isinstance(value, str) else value:
            if FIELDS[field] == "reward":
                yield from ((field, name) for name in rewards.models(text))
            else:
                yield field, text.partition("@")[0] if field == "models" else text


def check_names(config: ConfigDict, stage: str) -> None:
    """Raises InputError if a stage names one that does not come before it, or that gives something else."""
    section, stages = config[stage], list(config.stages)
    earlier = stages[: stages.index(stage)]
    asked = [(field, name, FIELDS[field]) for field, name in named(section)]
    for field, name, gives in asked + [("pool", section.get("pool"), "completions")] * bool(section.get("pool")):
        fitting = [other for other in earlier if registry.of(config, other).gives == gives]
        if registry.find(config.get(name)) and name not in fitting:  # a name that is no stage of the config is a source
            kinds = " or ".join(kind for kind in registry.KINDS if registry.KINDS[kind].gives == gives)
            raise InputError(
                f"{stage}.{field} names '{name}', which is no {kinds} stage before '{stage}' in "
                f"config.stages; there {'is' if len(fitting) == 1 else 'are'} {', '.join(fitting) or 'none'}"
            )


def read_stage(folder: pathlib.Path, abstract) -> dict:
    """Returns the parameters that a finished stage has written, as `abstract` wants them.

    Raises:
      InputError: the files are not as the stage has left them.
    """
    hosts.on_first(lambda: str(finished.checked(folder / "params" / "manifest.json")))
    return checkpoint.load_params(folder / "params", abstract)


def _kept(stage: pathlib.Path) -> str:
    """Returns the end of a sentence that lists the checkpoints of a stage; "" if it has none."""
    folder = stage / _CHECKPOINTS
    paths = folder.iterdir() if folder.is_dir() else ()
    steps = sorted(int(path.name) for path in paths if path.name.isdecimal() and (path / "manifest.json").is_file())
    return f"; its checkpoints are {folder}/STEP, with STEP {', '.join(map(str, steps))}" if steps else ""


def note_base(folder: pathlib.Path, base: Source) -> None:
    """Writes into the folder of a stage to which base its adapters belong.

    A base in the same work directory is noted by its name there, so that the directory may be moved.
    """
    place = base.folder.relative_to(folder.parent) if base.folder.is_relative_to(folder.parent) else base.folder
    write_json(folder / BASE, {"folder": str(place), "checksum": base.checksum()})


def _abstract(shape: TransformerConfig, head: str, shardings, dtype: str):
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, jax.numpy.dtype(dtype), sharding=place),
        model.param_shapes(shape, head),
        shardings,
    )


def _repadded(shape: TransformerConfig, head: str, params: dict, shardings) -> dict:
    """Returns parameters whose vocabulary is padded as `shape` pads it; the rows of the padding are 0."""

    def pad(leaf, wanted):
        if leaf.shape == wanted.shape:
            return leaf
        rows = leaf[: shape.vocab_size]
        return jax.numpy.pad(rows, ((0, wanted.shape[0] - len(rows)), (0, 0)))

    change = jax.jit(lambda tree: jax.tree.map(pad, tree, model.param_shapes(shape, head)), out_shardings=shardings)
    return change(params)
