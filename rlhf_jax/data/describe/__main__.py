"""Prints statistics of a dataset: counts, lengths, categories, rankings, duplicates and leaks.

    python -m rlhf_jax.data.describe --data=FILE_OR_FOLDER [--kind=rankings] [--tokenizer=MODEL] [--out=DIR]

A file is given as in config.data.files, name[@rows][:theirs=ours;theirs=ours]; commas separate several files. For a
folder, all its files are described; a file's fields tell its kind of rows. For the work directory of a run, the data
are described as the run reads them, with its tokenizer, template and splits. Other data keep their published splits,
and are split by shares if they publish none. A model's folder as --tokenizer renders instructions and messages by the
model's chat template, if it has one. --out writes report.md, lengths.png and facts.json.
"""

import argparse
import pathlib
import sys

import rich.markdown
from ml_collections import ConfigDict

from rlhf_jax.config import data_config
from rlhf_jax.data import corpus as corpus_lib
from rlhf_jax.data import describe, files, prepared, rows
from rlhf_jax.data.chat_template import ChatTemplate
from rlhf_jax.data.describe import counts as tables
from rlhf_jax.data.describe import picture
from rlhf_jax.data.template import Template
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.fields import forms
from rlhf_jax.fields.defaults import restored
from rlhf_jax.runtime import terminal
from rlhf_jax.runtime.errors import InputError, as_command
from rlhf_jax.runtime.files import read_json, write_json, write_text


def open_data(
    data: str, kind: str | None = None, template: Template | ChatTemplate | None = None
) -> tuple[corpus_lib.FileCorpus, list[str]]:
    """Returns the corpus that `--data` names, and the kinds of rows that it has.

    Args:
      data: files separated by commas, a folder, or the work directory of a run.
      kind: the kind of rows; None finds it out from the fields of each file.
      template: renders rows with an instruction or messages; None takes that of the run, or the default.

    Raises:
      InputError: there is no such file, or its kind of rows cannot be told.
    """
    folder = pathlib.Path(data)
    if _is_run(folder):
        config = _run_config(folder).data
        if config.source != "files":
            raise InputError(
                f"--data={data}: this run reads no files, because it makes its data itself (data.source='{config.source}')"
            )
        section = data_config().files
        template = template or _template_of(folder, config)
        section.update(config.files)  # a run of an earlier version may lack fields
    else:
        section, template = data_config().files, template or Template()
        section.splits = "published"  # rows without a published split go by shares
        entries = (
            _files_of(folder) if folder.is_dir() else [entry.strip() for entry in data.split(",") if entry.strip()]
        )
        try:
            named = [forms.entry(entry) for entry in entries]
        except ValueError:
            raise InputError(
                f"--data={data}: write a file as name, name@rows or name:theirs=ours;theirs=ours, and a split of a "
                "folder as name:split"
            ) from None
        folders = {pathlib.Path(entry.name).parent for entry in named}
        if len(folders) == 1:  # then names are shown relative to the folder
            section.dir = str(folders.pop())
            entries = [entry.removeprefix(section.dir).lstrip("/") for entry in entries]
        for entry, parsed in zip(entries, named):
            own = kind or _kind_of(parsed)
            section[own] = ",".join(filter(None, [section[own], entry]))
    kinds = [name for name in corpus_lib.KINDS if section[name] and kind in (None, name)]
    if not kinds:
        raise InputError(f"--data={data} has no {kind or 'data files'}; name a file of rows, a folder of them or a run")
    return corpus_lib.FileCorpus(section, template, "skip"), kinds


def reader(tokenizer: str | None, template: str, data: str) -> tuple[Tokenizer | None, Template | ChatTemplate | None]:
    """Returns the tokenizer and the template that `--tokenizer` and `--template` name.

    Args:
      tokenizer: a tokenizer.json or its folder; None: that of the run in the folder `data`, if it is one.
      template: "chat", "plain" or a file, as config.data.template; "" takes the chat template of the tokenizer, if it has
        one, or else None: the template of the run, or the default.

    Raises:
      InputError: there is no such tokenizer or template.
    """
    if tokenizer is None:
        saved = pathlib.Path(data, "tokenizer.json")
        found = Tokenizer.load(saved) if saved.is_file() else None
        own = template or ("chat" if found and _chats(saved.parent) else "")
    else:
        found = Tokenizer.load(tokenizer)
        own = template or ("chat" if found.has_chat_template and not _is_run(pathlib.Path(data)) else "")
    if own == "chat":
        if found is None:
            raise InputError("--template=chat is the template of a released model: give its folder as --tokenizer")
        return found.for_chat(), found.chat_template() if tokenizer else None
    return found, {"": None, "plain": Template()}[own] if own in ("", "plain") else Template.load(own)


def _is_run(folder: pathlib.Path) -> bool:
    """Whether a folder is the work directory of a run."""
    return (folder / "config.json").is_file() and ((folder / "template.txt").is_file() or _chats(folder))


def _chats(folder: pathlib.Path) -> bool:
    """Whether a folder is that of a run which uses a released model's chat template."""
    return (folder / "overrides.json").is_file() and not (folder / "template.txt").is_file()


def _template_of(folder: pathlib.Path, config: ConfigDict) -> Template | ChatTemplate:
    """Returns the template of the run in a folder; `config` is its section `data`."""
    if _chats(folder):
        return Tokenizer.load(folder).chat_template(forms.date(config.chat_date))
    return Template.load(folder / "template.txt")


def _run_config(folder: pathlib.Path) -> ConfigDict:
    """Returns the config of the run in a folder."""
    return restored(read_json(folder / "config.json"), str(folder / "config.json"))


def _files_of(folder: pathlib.Path) -> list[str]:
    """Returns the entries to describe: a dataset's folder itself, or each file of rows in any other folder."""
    if prepared.find(folder) or any((folder / name).exists() for name in _DATASETS):
        return [str(folder)]
    found = [path for path in sorted(folder.iterdir()) if files.file_type(path) in (*_ROWS, ".txt") and path.is_file()]
    return [str(path) for path in found] or [str(folder)]


_ROWS = set(rows.SUFFIXES) - {".json"}  # a .json file often holds no rows, so one that does must be named
_DATASETS = ("dataset_dict.json", "state.json")  # files that datasets.save_to_disk writes


def _kind_of(entry: forms.Entry) -> str:
    """Returns the kind of rows of an entry, by the fields of its first good row."""
    path = entry.name
    if files.file_type(path) == ".txt":
        return "documents"
    row = next((row for _, row in rows.read(path, splits=entry.splits) if not isinstance(row, InputError)), {})
    names = {entry.fields.get(name, name) for name in row}
    if {"completion", "score"} <= names or {"completion", "label"} <= names and isinstance(row.get("label"), bool):
        return "rankings"
    for kind, telling in (
        ("rankings", {"chosen", "completions", "preferred_output"}),
        ("demonstrations", {"completion", "output", "messages", "conversations"}),
        ("documents", {"text"}),
        ("prompts", {"prompt", "instruction"}),
    ):
        if names & telling:
            return kind
    raise InputError(
        f"{path}: the fields {', '.join(sorted(names))} do not tell the kind of the rows; "
        "give --kind, or name the fields as in --data=FILE:question=prompt;answer=completion"
    )


@as_command("rlhf_jax.data.describe", stopped="stopped; nothing was left half written")
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m rlhf_jax.data.describe",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data", required=True, help="The files, separated by commas, or a folder, or the work directory of a run."
    )
    parser.add_argument(
        "--kind", choices=corpus_lib.KINDS, help="The kind of the rows. By default their fields decide."
    )
    parser.add_argument(
        "--tokenizer",
        help="A tokenizer.json, or the folder of a model, whose chat template is then used. Without one, lengths are in "
        "characters.",
    )
    parser.add_argument(
        "--template",
        default="",
        help="What renders instructions and messages: 'chat' for the model's chat template, 'plain' for the default one, or "
        "a file of a template. Without it, the chat template of --tokenizer is used if there is one.",
    )
    parser.add_argument(
        "--categories", help="The fields whose values divide the rows into categories, separated by commas."
    )
    parser.add_argument(
        "--prompt_length",
        type=int,
        help="The length above which prompts are counted as too long. The default is the run's.",
    )
    parser.add_argument(
        "--out", help="The folder for report.md, lengths.png and facts.json. Without one, the report is only printed."
    )
    options = parser.parse_args(arguments)
    tokenizer, template = reader(options.tokenizer, options.template, options.data)
    corpus, kinds = open_data(options.data, options.kind, template)
    if isinstance(template, ChatTemplate):
        print(f"instructions and messages are rendered by the chat template of {options.tokenizer}")
    names = options.categories.split(",") if options.categories else describe.CATEGORY_FIELDS
    limit = options.prompt_length
    if limit is None and _is_run(pathlib.Path(options.data)):
        limit = _run_config(pathlib.Path(options.data)).prompt_length
    facts, lengths = describe.describe(corpus, kinds, tokenizer, names, limit)
    text = tables.markdown(facts, options.data)
    terminal.console().print(rich.markdown.Markdown(text))
    if options.out:
        folder = pathlib.Path(options.out)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "facts.json", facts)
        picture.draw(lengths, facts["unit"], folder / "lengths.png")
        write_text(folder / "report.md", text + "\n![length distributions](lengths.png)\n")


if __name__ == "__main__":
    sys.exit(main())
