"""Imports and exports models as Hugging Face folders:

    python -m rlhf_jax.hf import SRC DST      a released model, checked, for a stage's `init` and config.model.shape
    python -m rlhf_jax.hf export SRC DST      a finished stage (WORKDIR/STAGE), or one of its kept checkpoints
                                              (WORKDIR/STAGE/checkpoints/STEP), for transformers; adapters for PEFT
    python -m rlhf_jax.hf push DIR REPO       a model folder, with its card, to the Hugging Face hub

SRC of an import is a folder, or with --hub a name on the Hugging Face hub, which is then downloaded. A stage can also
start from such a folder directly: import is for downloads, and for checking a whole model beforehand. SRC of an export
is a stage's folder in a work directory, such as runs/quickstart/ppo_ptx, or a model folder. DST must not exist; it
appears once it is complete. An exported stage has a card, README.md, with its data, config and evaluation; look at it
before you push. A push needs a token of the hub that may write (hf auth login).
"""

import argparse
import dataclasses
import os
import pathlib
import shutil
import sys

import jax

import rlhf_jax.stages  # noqa: F401  registers the kinds of stages
from rlhf_jax import hf, notes, sharding, sources, stages, weights  # noqa: F401  the stages register themselves
from rlhf_jax import run as run_lib
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.hf import adapters, hub
from rlhf_jax.model.work import parameters
from rlhf_jax.report import model_card
from rlhf_jax.runtime.errors import InputError, as_command
from rlhf_jax.runtime.files import new_folder, read_json, write_text

# Files of a model folder that are copied as they are, beside config.json and the tensors.
_BESIDE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "README.md",
)


@as_command("rlhf_jax.hf", stopped="stopped; nothing was written")
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m rlhf_jax.hf", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    incoming = commands.add_parser(
        "import", help="Checks a released model, and writes it into a folder that stages can start from."
    )
    incoming.add_argument("source", metavar="SRC", help="The folder of the released model, or its name on the hub.")
    incoming.add_argument("--hub", action="store_true", help="Download SRC from the Hugging Face hub.")
    incoming.add_argument(
        "--revision", help="The revision of the hub's repository. A commit is safest, because it cannot change."
    )
    outgoing = commands.add_parser("export", help="Writes the model of a finished stage as a Hugging Face folder.")
    outgoing.add_argument("source", metavar="SRC", help="The folder of the finished stage or the kept checkpoint.")
    outgoing.add_argument(
        "--merge", action="store_true", help="Write whole weights with the adapters of the stage merged into them."
    )
    outgoing.add_argument(
        "--base",
        help="What the adapter's files name as its base, a folder or a name on the hub. By default it is the "
        "folder of the released weights that the stage started from.",
    )
    pushed = commands.add_parser("push", help="Uploads a model folder to the Hugging Face hub.")
    pushed.add_argument("folder", metavar="DIR", help="The model folder, such as an export.")
    pushed.add_argument("repository", metavar="REPO", help="The repository of the hub, OWNER/NAME.")
    pushed.add_argument("--private", action="store_true", help="Make the repository private, if it is made now.")
    for command in (incoming, outgoing):
        command.add_argument("folder", metavar="DST", help="The folder to write.")
        command.add_argument(
            "--dtype",
            choices=("float32", "bfloat16", "float16"),
            help="The number format to write. By default it is kept.",
        )
        command.add_argument(
            "--shard_gb", type=float, default=5.0, help="The size of the largest file, in GB. The default is 5."
        )
    options = parser.parse_args(arguments)
    if options.command == "push":
        print(push_model(options))
        return
    if options.shard_gb <= 0:
        raise InputError(f"--shard_gb={options.shard_gb} must be positive")
    if options.command == "import":
        print(import_model(options))
    else:
        print(export_model(options))


def import_model(options) -> str:
    """Checks and copies a released model, after downloading it if asked to; returns a sentence to print."""
    source = options.source
    if options.hub:
        source = hub.download(source, options.revision)
    elif not pathlib.Path(source).is_dir():
        raise InputError(f"{source} is not a folder; if it is a name on the Hugging Face hub, add --hub to download it")
    return _copy(source, options)


def export_model(options) -> str:
    """Writes a finished stage, or a model folder, as transformers reads it; returns a sentence to print."""
    source = pathlib.Path(options.source)
    found = sources.at(pathlib.Path(os.path.abspath(source)))
    if isinstance(found, sources.Trained):
        return _export_trained(found, options)
    if found is None:
        what = "has no model" if source.is_dir() else "is not a folder"
        raise InputError(f"{source} {what}; give a finished stage, such as runs/quickstart/sft, or a model folder")
    return _copy(source, options)


def push_model(options) -> str:
    """Uploads a model folder to the hub; returns a sentence to print."""
    found = sources.at(pathlib.Path(os.path.abspath(options.folder)))
    if isinstance(found, sources.Trained):
        raise InputError(f"{options.folder} is a stage; export it first, and push the exported folder")
    if found is None:
        raise InputError(
            f"{options.folder} is no model folder: it has no config.json; export a stage first, and push that"
        )
    adapter = isinstance(found, sources.Adapter)
    said = f"an adapter of {found.settings.base}" if adapter else _describe(found.folder)
    where = hub.upload(found.folder, options.repository, options.private, f"{said.partition(';')[0]}, by rlhf_jax")
    return f"{where}: {said}"


def _copy(source: str | os.PathLike, options) -> str:
    """Checks and copies a model folder; returns a sentence to print."""
    if isinstance(sources.at(pathlib.Path(os.path.abspath(source))), sources.Adapter):
        raise InputError(
            f"{source} is an adapter in the files of PEFT: use it as it is, wherever a model folder is named, or merge it "
            "into whole weights with PEFT's merge_and_unload"
        )
    with new_folder(options.folder) as folder:
        hf.copy(source, folder, dtype=options.dtype, shard_bytes=int(options.shard_gb * 1e9))
        _copy_beside(source, folder)
        said = _describe(folder)
        if not (folder / "tokenizer.json").is_file():
            said += "; it has no tokenizer.json: make one with AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
    return f"{options.folder}: {said}"


def _describe(folder: pathlib.Path) -> str:
    """Returns a description of the model in a folder: its family, its kind and its number of parameters."""
    config, head = hf.load_config(folder), hf.head_of(folder)
    settings = read_json(folder / "config.json")
    kind = "reward model" if head == "scalar" else "language model"
    said = f"{settings['model_type']} {kind} of {parameters(config, head):,} parameters"
    if isinstance(bias := settings.get("score_bias"), int | float) and bias:
        said += f"; its scores in transformers lack the bias, which has no place there: add {bias:.6g}, score_bias of config.json"
    if head == "scalar":
        said += _padding(settings)
    return said


def _padding(settings: dict) -> str:
    """Returns what to say of a reward model whose scores in a padded batch are not right in transformers; "" if they are."""
    pad, ends = settings.get("pad_token_id"), settings.get("eos_token_id")
    if pad is None:
        return (
            "; no token is left for padding, so transformers scores one row at a time: for a batch, give the tokenizer "
            "a pad_token, call resize_token_embeddings, and set config.pad_token_id"
        )
    if pad in (ends if isinstance(ends, list) else [ends]):
        return (
            "; its padding token ends a text too, so transformers reads the score of a text before that token: give "
            "it another pad_token_id"
        )
    return ""


def _export_trained(source: sources.Trained, options) -> str:
    """Exports what a finished stage hands on, or a kept checkpoint; returns a sentence to print.

    Everything happens on the host: its memory must hold the whole model, and one file of exported tensors beside it.
    """
    config, head, path = source.config, source.head, source.workdir
    config.model.attention = "xla"
    mesh = sharding.make_mesh(devices=jax.devices("cpu")[:1])
    notes.check_kept(path)
    tokenizer = Tokenizer.load(path / "tokenizer.json")
    run = run_lib.without_data(config, tokenizer, mesh)
    run.path = path
    shape = dataclasses.replace(run.shape(source.name), lora=source.lora)
    hf.family_of(shape)  # raises for a model that transformers does not have, before the weights are read
    if shape.lora and not options.merge:
        return _export_adapter(run, source, shape, head, options)
    shape = dataclasses.replace(shape, lora=None)
    params = weights.load_params(run, source.name, head, merge=True)
    with new_folder(options.folder) as folder:
        ids = tokenizer.special_ids
        if head == "scalar":
            # A reward model was trained to give its score at the end of a completion, in chats at the end of a turn.
            read = tokenizer.for_chat() if config.data.template == "chat" else tokenizer
            ids |= {"eos_token_id": read.eos_id, "pad_token_id": read.save_for_scores(folder)}
        else:
            tokenizer.save_to(folder)
        hf.save(
            folder,
            shape,
            params,
            head=head,
            dtype=options.dtype or "float32",
            settings=ids,
            shard_bytes=int(options.shard_gb * 1e9),
        )
        write_text(folder / "README.md", model_card.card(source))
        said = _describe(folder)
    return f"{options.folder}: {said}"


def _export_adapter(run: run_lib.Run, source: sources.Trained, shape, head: str, options) -> str:
    """Exports the adapters of a stage or checkpoint in the files of PEFT; returns a sentence to print."""
    base = options.base
    if not base:
        found = source.base
        if not isinstance(found, sources.Released):
            raise InputError(
                f"{source.folder} is an adapter of {found.folder}, a stage: export that one and name its folder with "
                "--base=DIR, or give --merge for whole weights"
            )
        base = str(found.folder)
    params = source.params(shape, weights.param_shardings(run, shape, head), head)
    with new_folder(options.folder) as folder:
        model_type = adapters.save(folder, shape, params, base, head=head, dtype=options.dtype or "float32")
        if head == "scalar":
            run.tokenizer.save_for_scores(folder)
        else:
            run.tokenizer.save_to(folder)
        write_text(folder / "README.md", model_card.card(source))
    kind = "reward model" if head == "scalar" else "language model"
    said = (
        f"{model_type} {kind}, adapters of rank {shape.lora.rank} of {', '.join(shape.adapted)}; their base is {base}"
    )
    if head == "scalar" and (bias := float(params["scalar_bias"])):
        said += f"; scores in PEFT lack the bias, which has no place there: add {bias:.6g}, the tensor score.bias"
    return f"{options.folder}: {said}"


def _copy_beside(source: str | os.PathLike, folder: pathlib.Path) -> None:
    """Copies the tokenizer and the other files of _BESIDE that a model folder has."""
    for name in _BESIDE:
        if pathlib.Path(source, name).is_file():
            shutil.copyfile(pathlib.Path(source, name), folder / name)


if __name__ == "__main__":
    sys.exit(main())
