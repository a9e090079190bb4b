"""A run: its config, work directory, mesh, tokenizer, corpus and model, as every stage gets them."""

import contextlib
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Mapping

import jax
from ml_collections import ConfigDict

from rlhf_jax import checkpoint, chosen, hf, lora, notes, settled, shapes, sharding, sources
from rlhf_jax.data.chat_template import ChatTemplate
from rlhf_jax.data.corpus import FileCorpus
from rlhf_jax.data.template import Template
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.fields import forms, noted, registry
from rlhf_jax.fields.checks import check as check_config
from rlhf_jax.fields.checks import nearest
from rlhf_jax.fields.defaults import defaults_like, filled
from rlhf_jax.model import TransformerConfig, attention
from rlhf_jax.runtime import hosts, keys, progress, shipped
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import read_if_there
from rlhf_jax.runtime.workdir import Workdir, has_begun
from rlhf_jax.sources import read_config
from rlhf_jax.trackers import Trackers
from rlhf_jax.trackers import check as check_trackers
from rlhf_jax.world.corpus import WorldCorpus

_PREPARED = (notes.REPORT, chosen.FILE, *notes.KEPT)  # by `start`, before any stage


@dataclasses.dataclass
class Run:
    """What the stages share. Made by `start` (locked, writes), `open_run` (reads a run) or `without_data` (builds)."""

    config: ConfigDict
    mesh: jax.sharding.Mesh
    rules: dict
    tokenizer: Tokenizer
    model: TransformerConfig  # the policy's
    path: pathlib.Path | None = None  # from here on None in a run without data
    template: Template | ChatTemplate | None = None
    corpus: FileCorpus | WorldCorpus | None = None
    interrupt: progress.Interrupt | None = None
    workdir: Workdir | None = None  # None: opened for reading
    trackers: Trackers = dataclasses.field(default_factory=Trackers)
    bases: dict = dataclasses.field(default_factory=dict)  # the frozen weights that adapters share; see weights.py
    chosen: dict = dataclasses.field(default_factory=dict)  # dotted field that the config leaves open -> its value

    @property
    def seed(self) -> int:
        return self.config.seed

    def seed_of(self, stage: str) -> int:
        """config[stage].seed where there is one, else the run's."""
        own = self.config[stage].get("seed") if stage in self.config else None
        return self.seed if own is None else own

    def key(self, *names: str | int) -> jax.Array:
        """The random key of one use, e.g. key("ppo", "sample", iteration); a stage's own begin with its name."""
        return keys.named_key(self.seed_of(names[0]), *names)

    def folder(self, stage: str) -> pathlib.Path:
        return self.path / stage

    def done(self, stage: str) -> bool:
        return hosts.on_first((self.folder(stage) / "done.json").exists)

    def mark_done(self, stage: str, seconds: float, **details) -> None:
        """Marks a stage as finished, with the config and the models that it was made with; see Workdir.mark_done."""
        named = {name for _, name in sources.named(self.config[stage])}
        used = {name: found for name, found in hosts.on_first(notes.models_used, self.path).items() if name in named}
        if used:
            details["models"] = used
        self.workdir.mark_done(stage, seconds, config=noted.note(self.config.to_dict(), stage), **details)

    def note_models(self, used: dict[str, sources.Source]) -> None:
        """Notes the models of these names, or checks that they are those that the run has noted; see notes.note_models."""
        if used and self.workdir:
            hosts.on_first(notes.note_models, self.path, used)

    def evaluated(self, stage: str) -> bool:
        return hosts.on_first((self.folder(stage) / "evaluation.json").exists)

    def stages(self, chosen: Callable[[registry.Stage], bool]) -> list[str]:
        """Returns the finished stages whose kind is chosen, in the order of the pipeline."""
        return [name for name in self.config.stages if chosen(registry.of(self.config, name)) and self.done(name)]

    def giving(self, what: str) -> list[str]:
        """Returns the finished stages that give `what` (see `registry.Stage.gives`), in order."""
        return self.stages(lambda kind: kind.gives == what)

    def judged(self) -> list[str]:
        """Returns the finished stages whose completions of the test prompts are judged, in order."""
        return self.stages(lambda kind: kind.judged)

    def check_length(self, field: str, tokens: int, shape: TransformerConfig) -> None:
        """Raises InputError where rows of so many tokens have places that a model's table of positions does not."""
        if shape.positions == "learned" and tokens > shape.max_length:
            raise InputError(
                f"{field}={tokens} is more than the {shape.max_length} places of the model's table of learned positions "
                "(max_length): lower it, or train a model with a longer table"
            )

    @property
    def whole_length(self) -> int:
        """Tokens of a prompt and its completion."""
        return self.config.prompt_length + self.config.completion_length

    def shape(self, stage: str) -> TransformerConfig:
        """Returns the shape of a stage's model: the policy's with the changes of config[stage].model.

        A name that is no stage is that of a source (see sources.py), whose shape is returned.
        """
        if stage not in self.config:
            source = self.source(stage)
            shape = source.shape(**{name: getattr(self.model, name) for name in hf.PROGRAM_FIELDS})
            # A language model of whole weights is used as the base of adapters that are new, as the policy's shape has them.
            whole = source.head == "lm" and source.lora is None
            return dataclasses.replace(shape, lora=self.model.lora) if whole else shape
        own = chosen.closed(self.config[stage].get("model", {}))
        differing = {name: value for name, value in own.items() if name != "shape"}
        if {"attention", "dtype"} & differing.keys():
            # What the run has chosen for the policy may be for another dtype.
            named, dtype = (
                differing.get("attention", self.config.model.attention),
                differing.get("dtype", self.model.dtype),
            )
            platform = self.mesh.devices.flat[0].platform
            differing["attention"] = attention.choose(named, platform, dtype)
        if "lora" in differing:
            differing["lora"] = lora.of_section(self.config.model.lora, differing["lora"])
        return dataclasses.replace(chosen.in_model(self.model, self.chosen, stage), **differing)

    def trained_shape(self, stage: str) -> TransformerConfig:
        """Returns the shape of what a stage trains: it has no adapters where the stage gives the base of others."""
        shape = self.shape(stage)
        return dataclasses.replace(shape, lora=None) if registry.of(self.config, stage).base else shape

    def parts(self, stage: str) -> dict[str, int]:
        """Returns in how many parts a stage computes its batches, for each of its fields that say so."""
        return chosen.parts(self.config, stage, self.chosen)

    def adopt(self, values: Mapping) -> None:
        """Computes with these values of fields that the config leaves open, by dotted name, from now on."""
        self.chosen, self.model = dict(values), chosen.in_model(self.model, values)

    def adopting(self, values: Mapping) -> "Run":
        """Returns a copy of the run that has adopted these values."""
        other = dataclasses.replace(self)
        other.adopt(values)
        return other

    def source(self, name: str, last: str = "") -> sources.Source:
        """Returns where the model of a name comes from that is no stage of this run.

        Args:
          name: a path, see sources.py; STAGE/checkpoints/STEP is a checkpoint of this run.
          last: what the stage gives that a whole work directory stands for; "": it is refused.

        Raises:
          InputError: there is no such model.
        """
        own = self.path is not None and name.partition("/")[0] in self.config.stages
        folder = self.config.data.files.dir
        try:
            return sources.find(name, *[self.path] * own, folder, ".", last=last)
        except sources.Missing:
            pass
        fields = [
            f"{stage}.{field}"
            for stage in self.config.stages
            for field, other in sources.named(self.config[stage])
            if other == name
        ]
        raise InputError(
            f"{' and '.join(fields) or 'the config'} {'name' if len(fields) > 1 else 'names'} '{name}', which is neither a "
            f"stage of this config, nor a folder of released weights or a finished stage of another run "
            f"{sources.places(folder)}{nearest(name, self.config.stages)}"
        )


@contextlib.contextmanager
def start(
    config: ConfigDict,
    path: str,
    overrides: dict | None = None,
    corpora: dict | None = None,
    interrupt: progress.Interrupt | None = None,
):
    """Opens or makes the work directory of a run, locked, and yields the Run.

    Args:
      corpora: where runs of one process that read the same data share them; filled here.
      interrupt: that of runs that are open at the same time, entered by the caller; by default the run has its own.

    Raises:
      InputError: a field that cannot have its value, or a work directory that cannot be this run's.
    """
    check_config(config)
    checkpoint.check_path(path)
    hosts.on_first(check_trackers, config.trackers, pathlib.Path(path))
    corpora = {} if corpora is None else corpora
    config = _settled(config, pathlib.Path(path), corpora)
    plain = config.to_dict()
    defaults = filled(defaults_like(config)).to_dict()
    with Workdir(path, plain, overrides, ignore=noted.free_between, defaults=defaults, prepared=_PREPARED) as folder:
        with contextlib.nullcontext(interrupt) if interrupt else progress.Interrupt() as interrupt:
            run = _assemble(config, folder.path, interrupt, save=True, corpora=corpora)
            run.workdir = folder
            for stage in config.stages:
                hosts.on_first(checkpoint.remove_left_over, run.folder(stage) / "params")
            run.trackers = Trackers(config.trackers, config.tracker_project, folder.path, plain)
            with run.trackers, jax.set_mesh(run.mesh):
                yield run


def open_run(path: str, mesh: jax.sharding.Mesh | None = None) -> Run:
    """A run to read from, without its lock.

    Args:
      mesh: where to compute; by default as the config has it.

    Raises:
      InputError: as `sources.read_config` does.
    """
    folder = pathlib.Path(path)
    return _assemble(read_config(folder), folder, progress.Interrupt(), mesh)


def _assemble(
    config: ConfigDict, path: pathlib.Path, interrupt: progress.Interrupt, mesh=None, save=False, corpora=None
) -> Run:
    """Returns a Run with everything that its directory and its data give.

    `save` is for the start of a job: the first process makes template and tokenizer, and all processes read its files.
    """
    chat = config.data.template == "chat"
    if chat and not config.tokenizer.path:
        raise InputError(
            "data.template='chat' is the template of a released model: set tokenizer.path to the model's folder"
        )
    if save:
        hosts.on_first(_keep_tokenizer if chat else _keep_template, path, config)
    hosts.on_first(notes.check_kept, path)
    template = (
        Tokenizer.load(path).chat_template(forms.date(config.data.chat_date))
        if chat
        else Template.load(path / "template.txt")
    )
    if chat:
        template.check_ends()
    corpora = {} if corpora is None else corpora
    corpus = _corpus(config, template, corpora)
    if save:
        hosts.on_first(notes.check_data, path, corpus)
        hosts.on_first(_keep_tokenizer, path, config, corpus)
        hosts.on_first(notes.note_kept, path)
    tokenizer = Tokenizer.load(path)
    if chat:
        tokenizer = tokenizer.for_chat()
    run = without_data(config, tokenizer, mesh or sharding.make_mesh(**config.mesh))
    run.path, run.template, run.corpus, run.interrupt = path, template, corpus, interrupt
    run.adopt(hosts.on_first(chosen.kept, path, config))
    return run


def _settled(config: ConfigDict, path: pathlib.Path, corpora: dict) -> ConfigDict:
    """Returns the config with a value for every field that it leaves to the model, to the data, or to the run's first start."""
    config = settled.by_model(config, say=print)
    stored = hosts.on_first(_stored, path)
    config = chosen.as_stored(config, stored)
    return settled.by_data(config, stored, functools.partial(_texts, config, corpora))


def _stored(path: pathlib.Path) -> dict | None:
    """Returns the config of a run that has begun; None of another, whose config a start replaces."""
    return read_if_there(path / "config.json") if has_begun(path) else None


def _texts(config: ConfigDict, corpora: dict) -> tuple[FileCorpus, Tokenizer]:
    """Returns the corpus and the tokenizer of a run that has not begun, to measure lengths.

    Raises:
      InputError: there are no files, or no tokenizer yet.
    """
    missing = " and ".join(settled.open_lengths(config))
    if config.data.source != "files":
        raise InputError(f"{missing}=None needs data.source='files', whose texts are measured: give a number of tokens")
    if not config.tokenizer.path:
        raise InputError(f"{missing}=None needs tokenizer.path, because a tokenizer that is trained comes later")
    tokenizer = Tokenizer.load(pathlib.Path(config.data.files.dir, config.tokenizer.path))
    if config.data.template == "chat":
        tokenizer = tokenizer.for_chat()
        template = tokenizer.chat_template(forms.date(config.data.chat_date))
    else:
        template = Template.load(shipped.find(config.data.template)) if config.data.template else Template()
    return _corpus(config, template, corpora), tokenizer


def _corpus(config: ConfigDict, template: Template | ChatTemplate, corpora: dict) -> FileCorpus | WorldCorpus:
    """Returns the corpus of a config, from `corpora` if it is there already."""
    data = json.dumps([config.data.to_dict(), config.evaluate.skill_items]), template
    if data not in corpora:
        corpora[data] = _new_corpus(config, template)
    return corpora[data]


def _new_corpus(config: ConfigDict, template: Template | ChatTemplate) -> FileCorpus | WorldCorpus:
    if config.data.source == "world":
        return WorldCorpus(config.data.world, template, config.evaluate.skill_items)
    return FileCorpus(config.data.files, template, config.data.on_bad_row)


def without_data(config: ConfigDict, tokenizer: Tokenizer, mesh: jax.sharding.Mesh) -> Run:
    """A run whose programs can be built, and no more: it has no work directory, no template and no corpus.

    Args:
      tokenizer: or anything with its vocab_size, absent_ids, end_ids and pad_id.

    Raises:
      InputError: prompts and completions that are longer than the model's context.
    """
    settled.check_lengths(config)
    config = settled.by_model(config)
    shape = model_shape(config, tokenizer.vocab_size, mesh.devices.flat[0].platform)
    longest = config.prompt_length + config.completion_length
    if longest > shape.max_length:
        raise InputError(
            f"prompt_length + completion_length = {longest} is more than model.max_length = {shape.max_length}; "
            "lower one of the lengths"
        )
    shape = dataclasses.replace(shape, absent_ids=tokenizer.absent_ids(shape.vocab_size))
    return Run(config, mesh, sharding_rules(config), tokenizer, shape)


def model_shape(config: ConfigDict, vocab_size: int, platform: str) -> TransformerConfig:
    """The policy of a config on a platform, "cpu", "gpu" or "tpu".

    Args:
      vocab_size: size of the tokenizer's vocabulary; a released model may have more rows than that.

    Raises:
      InputError: the model has fewer rows.
    """
    section = shapes.filled(config).model
    fields = {name: value for name, value in section.items() if value is not None and name != "shape"}
    fields = {"remat": "full"} | chosen.closed(fields)
    fields["attention"] = attention.choose(fields["attention"], platform, fields["dtype"])
    fields["lora"] = lora.of_section(fields.pop("lora", None))
    shape = TransformerConfig(**{"vocab_size": vocab_size} | fields)
    if section.scan_layers is None:
        shape = dataclasses.replace(shape, scan_layers=chosen.loops(platform, shape.num_layers))
    if shape.vocab_size < vocab_size:
        raise InputError(
            f"the tokenizer has {vocab_size} tokens and model.shape={config.model.get('shape')} only {shape.vocab_size}: "
            "set tokenizer.path to the model's own tokenizer"
        )
    return shape


def sharding_rules(config: ConfigDict) -> dict:
    """Logical axis -> mesh axes, as config.sharding has them."""
    return {axis: tuple(axes.split(",")) if axes else None for axis, axes in config.sharding.items()}


def _keep_template(path: pathlib.Path, config: ConfigDict) -> None:
    if not (path / "template.txt").exists():
        template = Template.load(shipped.find(config.data.template)) if config.data.template else Template()
        template.save(path / "template.txt")


def _keep_tokenizer(path: pathlib.Path, config: ConfigDict, corpus: FileCorpus | WorldCorpus | None = None) -> None:
    if not (path / "tokenizer.json").exists():
        if config.tokenizer.path:
            tokenizer = Tokenizer.load(pathlib.Path(config.data.files.dir, config.tokenizer.path))
        else:
            tokenizer = Tokenizer.train(corpus.tokenizer_texts(), config.tokenizer.vocab_size)
        # generation_config.json then says that the token which ends a turn ends a text.
        (tokenizer.for_chat() if config.data.template == "chat" else tokenizer).save_to(path)
