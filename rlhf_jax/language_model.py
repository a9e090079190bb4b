"""A language model, ready for use: of a Hugging Face directory, a stage, a checkpoint or a work directory."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping

import jax

from rlhf_jax import generate, model, sharding, sources, weights
from rlhf_jax import run as run_lib
from rlhf_jax.data.chat_template import ChatTemplate
from rlhf_jax.data.template import Template
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.fields import registry
from rlhf_jax.model import TransformerConfig, attention
from rlhf_jax.runtime.errors import InputError


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A language model with what its use needs.

    Attributes:
        config: shape of the model.
        params: parameters, on the mesh.
        tokenizer: its tokenizer.
        template: template that renders messages; None if the model was not trained to chat.
        mesh: the device mesh.
        rules: logical axis -> mesh axes.
        folder: the Hugging Face directory; None for a model of a run.
    """

    config: TransformerConfig
    params: dict
    tokenizer: Tokenizer
    template: Template | ChatTemplate | None
    mesh: jax.sharding.Mesh
    rules: Mapping
    folder: pathlib.Path | None = None


def model_at(directory: str) -> sources.Source:
    """Returns what a directory that is no work directory holds: a finished stage, or the files of a released model.

    Raises:
        InputError: it holds neither.
    """
    found = sources.at(pathlib.Path(os.path.abspath(directory)))
    if found is None:
        raise InputError(
            f"--model={directory} has no config.json: it is neither a Hugging Face directory, nor a work "
            "directory, nor a finished stage of one"
        )
    return found


def open_model(directory: str, *, tensor: int = 1, dtype: str = "", training: bool = False) -> LanguageModel:
    """Reads the model of a Hugging Face directory, a finished stage, a kept checkpoint, or a work directory's last policy.

    A directory of PEFT is the model that its adapter makes of its base.

    Args:
        directory: path of the directory.
        tensor: number of devices that the model is split over; the rows of a batch are split over the others.
        dtype: dtype of the computation; "" is that of the run, or for a Hugging Face directory float32 on CPUs and
          bfloat16 elsewhere.
        training: whether the parameters are split over all devices, as the state of an optimizer must be; else each
          part of `tensor` devices has them whole.

    Raises:
        InputError: the directory is neither a Hugging Face directory nor a policy that a run has trained.
    """
    folder = pathlib.Path(directory)
    data, fsdp = (1, -1) if training else (-1, 1)
    mesh = sharding.make_mesh(data=data, fsdp=fsdp, tensor=tensor)
    if sources.is_run(folder):
        return _open_trained(sources.last_of(folder, "policy"), mesh, dtype, training)
    found = model_at(directory)
    if isinstance(found, sources.Trained):
        return _open_trained(found, mesh, dtype, training)
    platform = mesh.devices.flat[0].platform
    dtype = dtype or ("float32" if platform == "cpu" else "bfloat16")
    shape = found.shape(dtype=dtype, attention=attention.choose("auto", platform, dtype), lora=None)
    tokenizer = Tokenizer.load(found.tokenizer_folder)
    tokenizer.check_fits(shape.vocab_size)
    shape = dataclasses.replace(shape, absent_ids=tokenizer.absent_ids(shape.vocab_size))
    template = tokenizer.chat_template() if tokenizer.has_chat_template else None

    # Loaded in the layout of its use, so that each device gets its part and the host never holds the whole model.
    def layout(shape: TransformerConfig, head: str):
        if training or head != "lm":
            return sharding.param_shardings(model.logical_axes(shape, head), model.param_shapes(shape, head), mesh)
        return generate.decode_shardings(shape, mesh)

    params = weights.whole_params(found, shape, layout, "lm")
    return LanguageModel(shape, params, tokenizer, template, mesh, sharding.DEFAULT_RULES, found.base.folder)


def _open_trained(source: sources.Trained, mesh, dtype: str, merge: bool) -> LanguageModel:
    """Reads a policy that a run has trained. With `merge`, adapters become part of the weights.

    Raises:
        InputError: the stage gives something else.
    """
    run = run_lib.open_run(str(source.workdir), mesh)
    if registry.of(run.config, source.stage).gives != "policy":
        raise InputError(
            f"{source.folder} is not a policy; the finished policies of {source.workdir}: "
            f"{', '.join(run.giving('policy')) or 'none'}"
        )
    shape, params = run.shape(source.name), weights.load_params(run, source.name, merge=merge)
    shape = dataclasses.replace(shape, dtype=dtype or shape.dtype, lora=None if merge else shape.lora)
    return LanguageModel(shape, params, Tokenizer.load(source.workdir), run.template, mesh, run.rules)
