"""The command line of the programs that take a config: what is wrong in it is one sentence, and exit status 2.

absl and ml_collections read it. Their own end is exit status 1, with a usage or a traceback; a job script takes that
for a crash and starts the program again.
"""

import argparse
import contextlib
import functools
import importlib.util
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict

from rlhf_jax.fields import page
from rlhf_jax.fields.checks import field_of, nearest, partial_section_of
from rlhf_jax.fields.ranges import Range
from rlhf_jax.runtime import terminal
from rlhf_jax.runtime.errors import EXIT_BAD_INPUT, InputError, as_command


def run(name: str, main: Callable[[list[str]], int | None], fields: bool = True) -> None:
    """Reads the flags, `--config` among them, calls main with the other arguments and exits with what it returns.

    Args:
      name: of the command, before every sentence.
      main: gets sys.argv as flags leave it.
      fields: whether its config is that of a run, whose fields --help then lists.
    """
    with terminal.guarded():
        app.run(as_command(name)(main), flags_parser=functools.partial(_parse, name, fields))


def option(allowed: Range) -> Callable[[str], Any]:
    """The `type` of an argparse option that takes what a range allows."""

    def read(text: str) -> Any:
        try:
            value = allowed.type(text)
        except ValueError:
            value = text
        if not allowed.holds(value):
            raise argparse.ArgumentTypeError(f"{text!r} is given, and it must be {allowed.says}")
        return value

    return read


def folder(text: str) -> pathlib.Path:
    """The `type` of an argparse option that names a folder; an empty one is an unset variable, and no folder."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty: name a folder")
    return pathlib.Path(text)


def load(path: str) -> ConfigDict:
    """The config of an experiment file.

    Args:
      path: as in --config; what follows a colon is get_config's argument.

    Raises:
      InputError: there is no such file, or it does not give a config.
    """
    file, colon, argument = path.partition(":")
    if not os.path.isfile(file):
        raise InputError(f"--config={path}: there is no file {file or '(empty)'} in {os.getcwd()}")
    with reading(file):
        module = module_of(file)
        if not hasattr(module, "get_config"):
            raise InputError(f"{file} has no function get_config; see experiments/ for examples")
        config = module.get_config(*[argument] * bool(colon))
    if not isinstance(config, ConfigDict):
        raise InputError(f"{file}: get_config returns {type(config).__name__}, and no ConfigDict")
    return config


def module_of(file: str):
    """The module of an experiment file, executed anew."""
    spec = importlib.util.spec_from_file_location("rlhf_jax_experiment", file)
    if spec is None:
        raise InputError(f"{file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def reading(file: str):
    """Makes an InputError, which names the line, of whatever an experiment file raises while it is executed."""
    try:
        yield
    except InputError:
        raise
    except SyntaxError as error:
        raise InputError(f"{error.filename}, line {error.lineno}: {error.msg}") from error
    except Exception as error:
        raise InputError(f"{_place(error, file)}: {type(error).__name__}: {_one_line(error)}") from error


def _parse(name: str, fields: bool, argv: Sequence[str]) -> list[str]:
    if {"--help", "-help", "-h"}.intersection(argv[1:]):
        print(_help(fields))
        sys.exit(0)
    logging.set_verbosity(logging.ERROR)  # ml_collections warns of what is said below
    try:
        rest = flags.FLAGS(argv)
        if not isinstance(
            flags.FLAGS["config"].value, ConfigDict
        ):  # it could not be read, which is said when it is used
            raise flags.Error("--config")
        return rest
    except Exception as error:
        try:
            said = _why(error, argv)
        except InputError as found:
            said = str(found)
        if said is None:
            raise
        print(f"{name}: {said}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)


def _help(fields: bool) -> str:
    parts = [sys.modules["__main__"].__doc__ or "", flags.FLAGS.main_module_help()]
    return "\n".join([*parts, page.text()] if fields else parts)


def _why(error: Exception, argv: Sequence[str]) -> str | None:
    """What is wrong with a command line that could not be read; None where nothing is known to be."""
    if isinstance(error, flags.UnrecognizedFlagError):
        return f"there is no flag --{error.flagname}{nearest(error.flagname, flags.FLAGS, '--')}"
    path = _value(argv, "config")
    config = None if path is None else load(path)
    if config is not None:
        for field in _overridden(argv):
            if said := _unknown(config, field):
                return said
    if not isinstance(error, flags.Error):
        return None
    if found := re.match(r"flag --(\w+)=None: Flag --\w+ must have a value", str(error)):
        return f"--{found[1]} is missing: {flags.FLAGS[found[1]].help}"
    found = re.match(r"flag --config\.([\w.]+)=(.*?): ", str(error), re.DOTALL)
    if found and config is not None and isinstance(_at(config, found[1]), ConfigDict):
        return f"--config.{found[1]}={found[2]}: {found[1]} is a section; set its fields, as --config.{found[1]}.FIELD=VALUE"
    allowed = found and config is not None and field_of(config, found[1])
    if allowed:
        return f"--config.{found[1]}={found[2]}: it must be {allowed.says}"
    return _one_line(error)


def _value(argv: Sequence[str], flag: str) -> str | None:
    """That of a flag, which is given as --flag=value or --flag value; the last holds."""
    value = None
    for place, argument in enumerate(argv[1:], 1):
        if found := re.fullmatch(rf"--?{flag}(?:=(.*))?", argument, re.DOTALL):
            value = found[1] if found[1] is not None else (*argv, None)[place + 1]
    return value


def _overridden(argv: Sequence[str]) -> list[str]:
    """The fields that are set with --config.FIELD."""
    found = (re.match(r"--?(?:no)?config\.([^=]*)", argument) for argument in argv[1:])
    return [match[1] for match in found if match]


def _unknown(config: ConfigDict, field: str) -> str | None:
    """The sentence for a field that the config does not have."""
    section, known = config, ""
    for part in field.split("."):
        if not isinstance(section, ConfigDict) or part not in section:
            if partial_section_of(config, known):
                return f"--config.{field}: {known} holds only what differs from config.model; set it in the experiment file"
            names = section.keys() if isinstance(section, ConfigDict) else ()
            return f"the config has no field {field}{nearest(part, names, known and known + '.')}"
        section, known = section[part], f"{known}.{part}".lstrip(".")
    return None


def _at(config: ConfigDict, field: str) -> Any:
    """The value of a dotted name that the config has."""
    for part in field.split("."):
        config = config[part]
    return config


def _place(error: Exception, file: str) -> str:
    """Where in a file an exception was raised, or in what the file calls."""
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if os.path.abspath(frame.filename) == os.path.abspath(file)
    ]
    return f"{file}, line {own[-1].lineno}" if own else file


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
