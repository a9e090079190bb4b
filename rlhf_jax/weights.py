"""Parameters of a run's models: loading them, starting from them, initialising them, and checks of released models.

A model is named by a stage of the run, or by a folder of released weights (relative to data.files.dir).
"""

import dataclasses
import functools
import pathlib

import jax

from rlhf_jax import checkpoint, hf, model, sharding
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.fields import registry
from rlhf_jax.model import TransformerConfig
from rlhf_jax.run import Run, is_run
from rlhf_jax.runtime import finished, hosts
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import read_json


def load_params(run: Run, stage: str, head: str = "lm") -> dict:
    """Returns the parameters that a finished stage wrote, or those of a released model, on the mesh.

    Args:
      run: the run.
      stage: a stage of the run, or a folder of released weights (relative to data.files.dir).
      head: "lm" for a policy, "scalar" for a reward model.

    Raises:
      InputError: the stage is not in the run, or not finished; or the released model has another head or tokenizer.
    """
    if stage not in run.config:
        shape = run.shape(stage)
        _check_folder(run, stage, shape, head)
        return hf.load_params(run.released(stage), shape, param_shardings(run, shape, head), head)
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
    hosts.on_first(lambda: str(finished.checked(run.folder(stage) / "params" / "manifest.json")))
    return checkpoint.load_params(run.folder(stage) / "params", abstract)


def start_params(run: Run, stage: str) -> dict:
    """Returns the parameters that a stage starts from: those of config[stage].init, or random ones if it is empty.

    `init` is a stage, or a folder of released weights. The parameters are a language model's, except that a stage which
    trains a reward model also gets the head of a released reward model.

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
    head = _check_init(run, stage)
    return hf.load_params(run.released(init), shape, param_shardings(run, shape, head), head)


def init_params(run: Run, name: str, shape: TransformerConfig, *, head: str = "lm") -> dict:
    """Returns random parameters on the mesh; `name` separates their random numbers from those of other models."""
    return _initializer(shape, head, run.mesh, tuple(run.rules.items()))(run.key(name, "init"))


def with_scalar_head(run: Run, shape: TransformerConfig, params: dict, key: jax.Array) -> dict:
    """Makes a reward or value model on the mesh from a language model; see model.with_scalar_head."""
    return _head_changer(shape, run.mesh, tuple(run.rules.items()))(params, key)


def param_shardings(run: Run, shape: TransformerConfig, head: str):
    """Returns the shardings of a model's parameters on the run's mesh."""
    return _param_shardings(shape, head, run.mesh, run.rules)


def check_released(run: Run, stage: str) -> None:
    """Checks the released models that a stage names, without reading a tensor.

    Raises:
      InputError: a model is missing, or is not what the stage needs.
    """
    section = run.config[stage]
    if section.get("init") and section.init not in run.config.stages:
        _check_init(run, stage)
    # A stage that reads texts can also use another run's reward model, which is not a released folder.
    reads_text = registry.of(run.config, stage).reads_text
    for name in filter(None, [section.get("reward"), *section.get("judges", ())]):
        if name not in run.config and not (reads_text and is_run(name)):
            _check_folder(run, name, run.shape(name), "scalar")
            run.check_length("prompt_length + completion_length", run.whole_length, run.shape(name))


def _check_init(run: Run, stage: str) -> str:
    """Checks the released model that a stage starts from, and returns the head to load.

    The head is "lm"; it is "scalar" for a stage that trains a reward model and starts from one.

    Raises:
      InputError: the model has another shape, head or tokenizer than the stage needs.
    """
    init, shape = run.config[stage].init, run.shape(stage)
    folder = run.released(init)
    if differing := _differences(_as_released(folder, shape), hf.canonical(shape)):
        raise InputError(
            f"{folder} does not fit the model of '{stage}': {'; '.join(differing)}; model.shape={init} takes the "
            "shape from there"
        )
    head = hf.head_of(folder) if registry.of(run.config, stage).gives == "reward" else "lm"
    _check_folder(run, init, shape, head)
    return head


def _check_folder(run: Run, name: str, shape: TransformerConfig, head: str) -> None:
    """Checks the head and the tokenizer of a released model.

    Raises:
      InputError: the head is not `head`, or the token ids differ from the run's.
    """
    folder = run.released(name)
    if (found := hf.head_of(folder)) != head:
        kinds = {"lm": "a language model", "scalar": "a reward model"}
        raise InputError(f"{folder} is {kinds[found]}; {kinds[head]} is needed here")
    theirs, ours = folder / "tokenizer.json", run.path / "tokenizer.json"
    if theirs.is_file():
        same = _vocabulary(theirs) == _vocabulary(ours)
    else:  # a folder in GPT-2's format (vocab.json and merges.txt), or one without a tokenizer
        same = not (folder / "vocab.json").is_file() or Tokenizer.load(folder).same_ids(run.tokenizer)
    if not same:
        raise InputError(
            f"{folder} reads other tokens than this run, or gives them other ids: set tokenizer.path={name}"
        )
    if shape.vocab_size < run.tokenizer.vocab_size:
        raise InputError(
            f"{folder} has {shape.vocab_size} tokens and the tokenizer {run.tokenizer.vocab_size}: set tokenizer.path={name}"
        )


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


def _as_released(folder: pathlib.Path, shape: TransformerConfig) -> TransformerConfig:
    """Returns the architecture of a released model, to compare with `shape`.

    With rotary positions it takes over a shorter `max_length` of `shape`: without a table of positions, the model is
    the same.
    """
    found = hf.canonical(hf.load_config(folder))
    if found.positions == "rope" and shape.max_length < found.max_length:
        return dataclasses.replace(found, max_length=shape.max_length)
    return found
