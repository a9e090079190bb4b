"""Parameters of a run's models: loading them, starting from them, initialising them, and checks of other runs' models.

A model is named by a stage of the run, or is a source (see sources.py): released weights, or a stage of another run.
"""

import dataclasses
import functools
import pathlib

import jax

from rlhf_jax import hf, model, sharding, sources
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.fields import registry
from rlhf_jax.model import TransformerConfig
from rlhf_jax.run import Run, note_models
from rlhf_jax.runtime import hosts
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import read_json


def load_params(run: Run, stage: str, head: str = "lm") -> dict:
    """Returns the parameters that a finished stage wrote, or those of a source, on the mesh.

    Args:
      run: the run.
      stage: a stage of the run, or the name of a source.
      head: "lm" for a policy, "scalar" for a reward model.

    Raises:
      InputError: the stage is not in the run, or not finished; or the source has another head or tokenizer.
    """
    if stage not in run.config:
        source, shape = run.source(stage), run.shape(stage)
        _check_source(run, source, shape, head)
        return source.params(shape, param_shardings(run, shape, head), head)
    if not run.done(stage):
        if not hosts.on_first((run.path / "config.json").is_file):
            raise InputError(f"{run.path} was moved or removed while this command used it: config.json is not there")
        known = stage in run.config.stages
        raise InputError(
            f"{run.path}: stage '{stage}' is needed and not finished"
            + (f": {stage}/done.json is not there" if known else "; config.stages must name it")
        )
    shape = run.shape(stage)
    abstract = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        model.param_shapes(shape, head),
        param_shardings(run, shape, head),
    )
    return sources.read_stage(run.folder(stage), abstract)


def start_params(run: Run, stage: str) -> dict:
    """Returns the parameters that a stage starts from: those of config[stage].init, or random ones if it is empty.

    `init` is a stage or a source. The parameters are a language model's, except that a stage which trains a reward model
    also gets the head of a source that is one.

    Raises:
      InputError: the shape of `init` differs from that of the stage's model.
    """
    init, shape = run.config[stage].init, run.shape(stage)
    if not init:
        return init_params(run, stage, shape)
    if init in run.config.stages:
        if differing := _differences(run.shape(init), shape):
            raise InputError(
                f"{stage}.init='{init}' does not fit {stage}.model: {'; '.join(differing)}; "
                f"start from a folder of weights of that shape, or leave {stage}.model empty"
            )
        return load_params(run, init)
    head = _check_start(run, stage, init)
    return run.source(init).params(shape, param_shardings(run, shape, head), head)


def init_params(run: Run, name: str, shape: TransformerConfig, *, head: str = "lm") -> dict:
    """Returns random parameters on the mesh; `name` separates their random numbers from those of other models."""
    return _initializer(shape, head, run.mesh, tuple(run.rules.items()))(run.key(name, "init"))


def with_scalar_head(run: Run, shape: TransformerConfig, params: dict, key: jax.Array) -> dict:
    """Makes a reward or value model on the mesh from a language model; see model.with_scalar_head."""
    return _head_changer(shape, run.mesh, tuple(run.rules.items()))(params, key)


def param_shardings(run: Run, shape: TransformerConfig, head: str):
    """Returns the shardings of a model's parameters on the run's mesh."""
    return _param_shardings(shape, head, run.mesh, run.rules)


def check_sources(run: Run, stage: str) -> None:
    """Checks the sources that a stage names, without reading a tensor, and notes where they are and their checksums.

    Raises:
      InputError: a model is missing, is not what the stage needs, or has changed since the run began to use it.
    """
    used = {}
    for field, name in sources.named(run.config[stage]):
        if name in run.config:
            continue
        gives = sources.FIELDS[field]
        # A reward model that reads texts may have other tokens than the run, and a whole work directory stands for its last.
        reads_text = gives == "reward" and registry.of(run.config, stage).reads_text
        used[name] = source = run.source(name, last=gives if reads_text else "")
        if gives == "policy":
            _check_start(run, stage, name)
        elif reads_text and isinstance(source, sources.Trained):
            _check_head(source, "scalar")
        else:
            _check_source(run, source, run.shape(name), "scalar")
            run.check_length("prompt_length + completion_length", run.whole_length, run.shape(name))
    note_models(run, used)


def _check_start(run: Run, stage: str, name: str) -> str:
    """Checks the source that a stage starts from or samples from, and returns the head to load.

    The head is "lm"; it is "scalar" for a stage that trains a reward model and starts from one.

    Raises:
      InputError: the model has another shape, head or tokenizer than the stage needs.
    """
    source, shape = run.source(name), run.shape(stage)
    if differing := _differences(_as_given(source, shape), hf.canonical(shape)):
        raise InputError(
            f"{source.folder} does not fit the model of '{stage}': {'; '.join(differing)}; model.shape={name} takes the "
            "shape from there"
        )
    head = source.head if registry.of(run.config, stage).gives == "reward" else "lm"
    _check_source(run, source, shape, head)
    return head


def _check_source(run: Run, source: sources.Source, shape: TransformerConfig, head: str) -> None:
    """Checks the head and the tokenizer of a source.

    Raises:
      InputError: the head is not `head`, or the token ids differ from the run's.
    """
    _check_head(source, head)
    folder = source.tokenizer_folder
    theirs, ours = folder / "tokenizer.json", run.path / "tokenizer.json"
    if theirs.is_file():
        same = _vocabulary(theirs) == _vocabulary(ours)
    else:  # a folder in GPT-2's format (vocab.json and merges.txt), or one without a tokenizer
        same = not (folder / "vocab.json").is_file() or Tokenizer.load(folder).same_ids(run.tokenizer)
    if not same:
        raise InputError(
            f"{source.folder} reads other tokens than this run, or gives them other ids: set tokenizer.path={folder}"
        )
    if shape.vocab_size < run.tokenizer.vocab_size:
        raise InputError(
            f"{source.folder} has {shape.vocab_size} tokens and the tokenizer {run.tokenizer.vocab_size}: set "
            f"tokenizer.path={folder}"
        )


def _check_head(source: sources.Source, head: str) -> None:
    if source.head != head:
        kinds = {"lm": "a language model", "scalar": "a reward model"}
        raise InputError(f"{source.folder} is {kinds[source.head]}; {kinds[head]} is needed here")


@functools.lru_cache(maxsize=32)
def _initializer(shape: TransformerConfig, head: str, mesh, rules: tuple):
    """Returns a jitted function from a key to random parameters on the mesh, compiled once per process."""
    make = functools.partial(model.init_params, shape, head=head)
    return jax.jit(make, out_shardings=_param_shardings(shape, head, mesh, dict(rules)))


@functools.lru_cache(maxsize=32)
def _head_changer(shape: TransformerConfig, mesh, rules: tuple):
    """Returns `model.with_scalar_head` jitted for a shape and mesh, compiled once per process."""
    make = functools.partial(model.with_scalar_head, shape)
    return jax.jit(make, out_shardings=_param_shardings(shape, "scalar", mesh, dict(rules)))


def _param_shardings(shape: TransformerConfig, head: str, mesh, rules: dict):
    axes, shapes = model.logical_axes(shape, head), model.param_shapes(shape, head)
    return sharding.param_shardings(axes, shapes, mesh, rules)


def _vocabulary(path: pathlib.Path) -> tuple:
    """Returns the parts of a tokenizer.json that decide which ids a text gets."""
    tokenizer = read_json(path)
    added = tokenizer.get("added_tokens") or ()
    return tokenizer.get("model"), [(token.get("id"), token.get("content")) for token in added]


def _differences(found: TransformerConfig, wanted: TransformerConfig) -> list[str]:
    """Returns a phrase for each field in which two architectures differ."""
    found, wanted = dataclasses.asdict(found), dataclasses.asdict(wanted)
    return [f"{name}={found[name]!r}, not {wanted[name]!r}" for name in wanted if found[name] != wanted[name]]


def _as_given(source: sources.Source, shape: TransformerConfig) -> TransformerConfig:
    """Returns the architecture of a source, to compare with `shape`.

    With rotary positions it takes over a shorter `max_length` of `shape`: without a table of positions, the model is
    the same.
    """
    found = hf.canonical(source.shape())
    if found.positions == "rope" and shape.max_length < found.max_length:
        return dataclasses.replace(found, max_length=shape.max_length)
    return found
