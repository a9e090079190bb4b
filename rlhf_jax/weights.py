"""Parameters of a run's models: loading them, starting from them, initialising them, and checks of other runs' models.

A model is named by a stage of the run, or is a source (see sources.py): released weights, or a stage of another run.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import jax

from rlhf_jax import checkpoint, hf, lora, model, sharding, sources
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.fields import registry
from rlhf_jax.lora import SCALAR_HEAD, Lora
from rlhf_jax.model import TransformerConfig
from rlhf_jax.run import Run
from rlhf_jax.runtime import hosts
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.runtime.files import read_json


def load_params(run: Run, stage: str, head: str = "lm", *, merge: bool = False) -> dict:
    """Returns the parameters that a finished stage wrote, or those of a source, on the mesh.

    Args:
      run: the run.
      stage: a stage of the run, or the name of a source.
      head: "lm" for a policy, "scalar" for a reward model.
      merge: whether adapters are merged into float32 weights, for `run.shape(stage)` without adapters.

    Raises:
      InputError: the stage is not in the run, or not finished; or the source has another head or tokenizer.
    """
    if stage not in run.config:
        source, shape = run.source(stage), run.shape(stage)
        _check_source(run, source, shape, head)
        run.note_models({stage: source})
        shape = dataclasses.replace(shape, lora=None) if merge else shape
        return _params_of(run, stage, source, shape, head)
    if not run.done(stage):
        if not hosts.on_first((run.path / "config.json").is_file):
            raise InputError(f"{run.path} was moved or removed while this command used it: config.json is not there")
        known = stage in run.config.stages
        raise InputError(
            f"{run.path}: stage '{stage}' is needed and not finished"
            + (f": {stage}/done.json is not there" if known else "; config.stages must name it")
        )
    shape = dataclasses.replace(run.shape(stage), lora=None) if merge else run.shape(stage)
    return _params_of(run, stage, sources.Trained(run.path, stage), shape, head)


def start_params(run: Run, stage: str) -> dict:
    """Returns the parameters that a stage starts from: those of config[stage].init, or random ones if it is empty.

    `init` is a stage or a source. The parameters are a language model's, except that a stage which trains a reward model
    also gets the head of a source that is one. If the stage trains adapters, they are those of `init`, or new ones.

    Raises:
      InputError: the shape of `init` differs from that of the stage's model.
    """
    init, shape = run.config[stage].init, run.trained_shape(stage)
    if not init:
        return init_params(run, stage, shape)
    if init in run.config.stages:
        if differing := _differences(*_alike(run.trained_shape(init), shape)):
            raise InputError(
                f"{stage}.init='{init}' does not fit {stage}.model: {'; '.join(differing)}; "
                f"start from a folder of weights of that shape, or leave {stage}.model empty"
            )
        if not run.done(init):
            return load_params(run, init)  # raises
        return _params_of(run, stage, sources.Trained(run.path, init), shape, "lm")
    head = _check_start(run, stage, init)
    return _params_of(run, stage, run.source(init), shape, head)


def _alike(*shapes: TransformerConfig) -> list[TransformerConfig]:
    """Returns shapes to compare: without adapters where one has none, as whole weights can become or take adapters."""
    if all(shape.lora for shape in shapes):
        return list(shapes)
    return [dataclasses.replace(shape, lora=None) for shape in shapes]


def _params_of(run: Run, name: str, source: sources.Source, shape: TransformerConfig, head: str) -> dict:
    """Returns the parameters of a source for a shape, on the mesh.

    If the shape has adapters, their base is in the compute dtype, and lies on the mesh once for all models of the run.
    A source of whole weights then gets new adapters, which change nothing; adapters for a shape without are merged.

    Args:
      run: the run.
      name: separates the random numbers of new adapters from those of other models.
      source: where the parameters come from.
      shape: shape of the model.
      head: "lm", or "scalar" for a reward model.
    """
    if shape.lora is None:
        return whole_params(source, shape, functools.partial(param_shardings, run), head)
    if source.lora is None:
        base = _without_lm_head(_base(run, source, shape), head)
        adapters = _adapter_maker(shape, run.mesh, tuple(run.rules.items()))(run.key(name, "adapters"))
        own = {part: base[part].astype("float32") for part in SCALAR_HEAD if head == "scalar"}
        return lora.joined(base, adapters | own)
    adapted = dataclasses.replace(shape, lora=source.lora)
    trained = source.params(adapted, param_shardings(run, adapted, head), head)
    return lora.joined(_without_lm_head(_base(run, source.base, shape), head), trained)


def whole_params(source: sources.Source, shape: TransformerConfig, place: Callable, head: str) -> dict:
    """Returns float32 whole weights of a source, into which its adapters are merged if it has any.

    Args:
      source: where the parameters come from.
      shape: shape of the model, without adapters.
      place: function from a shape and a head to the shardings of the parameters.
      head: "lm", or "scalar" for a reward model.
    """
    if source.lora is None:
        return source.params(shape, place(shape, head), head)
    adapted, base = dataclasses.replace(shape, lora=source.lora), source.base
    trained = source.params(adapted, place(adapted, head), head)
    found = base.params(shape, place(shape, base.head), base.head)
    return lora.merged(source.lora, lora.joined(_without_lm_head(found, head), trained))


def _without_lm_head(params: dict, head: str) -> dict:
    return {name: value for name, value in params.items() if head == "lm" or name != "lm_head"}


def _base(run: Run, source: sources.Source, shape: TransformerConfig) -> dict:
    """Returns whole weights as the base of adapters: in the compute dtype, on the mesh once for all models of the run."""
    shape = dataclasses.replace(shape, lora=None)
    key = str(source.folder), shape
    if key not in run.bases:
        run.bases[key] = source.params(shape, param_shardings(run, shape, source.head), source.head, shape.dtype)
    return run.bases[key]


def save_params(run: Run, stage: str, params: dict) -> None:
    """Writes the parameters that a stage hands on; of adapters, only they and the scalar head, and what their base is."""
    checkpoint.save_params(run.folder(stage) / "params", lora.trained(params))
    if run.trained_shape(stage).lora:
        hosts.on_first(sources.note_base, run.folder(stage), base_of(run, run.config[stage].init))


def base_of(run: Run, name: str) -> sources.Source:
    """Returns the base of a finished stage's adapters, or of a source's; whole weights are their own base."""
    return (sources.Trained(run.path, name) if name in run.config.stages else run.source(name)).base


def base_name(run: Run, name: str) -> str:
    """Returns the name of the base of a stage's adapters, or of a source's, before anything is trained.

    It is the stage of the run at which the chain of `init` ends, or else the folder of a source.
    """
    while name in run.config.stages and run.trained_shape(name).lora:
        name = run.config[name].init
    return name if name in run.config.stages or not name else str(run.source(name).base.folder)


def init_params(run: Run, name: str, shape: TransformerConfig, *, head: str = "lm") -> dict:
    """Returns random parameters on the mesh; `name` separates their random numbers from those of other models."""
    return _initializer(shape, head, run.mesh, tuple(run.rules.items()))(run.key(name, "init"))


def with_scalar_head(run: Run, shape: TransformerConfig, params: dict, key: jax.Array) -> dict:
    """Makes a reward or value model on the mesh from a language model; see model.with_scalar_head."""
    return model.with_scalar_head(params, _head_maker(shape, run.mesh, tuple(run.rules.items()))(key))


def param_shardings(run: Run, shape: TransformerConfig, head: str):
    """Returns the shardings of a model's parameters on the run's mesh."""
    return _param_shardings(shape, head, run.mesh, run.rules)


def check_sources(run: Run, stage: str) -> None:
    """Checks the sources that a stage names, without reading a tensor, and notes where they are and their checksums.

    Raises:
      InputError: a model is missing, is not what the stage needs, or has changed since the run began to use it.
    """
    if "init" in (section := run.config[stage]) and not section.init and run.trained_shape(stage).lora:
        raise InputError(
            f"{stage}.init='' has random weights, and model.lora.rank={run.trained_shape(stage).lora.rank} trains only the "
            f"adapters of weights that are there: name a folder of released weights or a pretrain stage in {stage}.init"
        )
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
    run.note_models(used)


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
    theirs, ours = source.shape().lora, run.trained_shape(stage).lora
    if theirs and ours and dataclasses.replace(theirs, dropout=ours.dropout) != ours:
        raise InputError(
            f"{source.folder} has adapters with {_settings(theirs)}, and '{stage}' has {_settings(ours)}: set "
            "config.model.lora to the same"
        )
    head = source.head if registry.of(run.config, stage).gives == "reward" else "lm"
    _check_source(run, source, shape, head)
    return head


def _settings(lora: Lora) -> str:
    return f"rank={lora.rank}, alpha={lora.alpha:g}, matrices={lora.matrices}"


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
def _adapter_maker(shape: TransformerConfig, mesh, rules: tuple):
    """Returns a jitted function from a key to new adapters on the mesh, compiled once per process."""
    places = lora.trained(_param_shardings(shape, "lm", mesh, dict(rules)))
    return jax.jit(lambda key: lora.trained(model.init_params(shape, key)), out_shardings=places)


@functools.lru_cache(maxsize=32)
def _head_maker(shape: TransformerConfig, mesh, rules: tuple):
    """Returns `model.init_scalar_head` jitted for a shape and mesh, compiled once per process."""
    places = model.scalar_head_of(_param_shardings(shape, "scalar", mesh, dict(rules)))
    return jax.jit(functools.partial(model.init_scalar_head, shape), out_shardings=places)


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
