"""The command line of programs that take a config: an error in it gives one sentence and exit status 2.

absl and ml_collections parse the flags. On an error they would exit with status 1 and a usage text or a traceback. A
job script takes that for a crash, and starts the program again.
"""

import ast
import contextlib
import functools
import importlib.util
import inspect
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

from rlhf_jax import config as config_lib
from rlhf_jax.fields import page
from rlhf_jax.fields.checks import field_of, nearest, partial_section_of
from rlhf_jax.rewards import functions
from rlhf_jax.runtime import shipped, terminal
from rlhf_jax.runtime.errors import EXIT_BAD_INPUT, InputError, as_command


class _OrNone(flags.ArgumentParser):
    """Parses the value of a field as `parser` does; `None` is None, which the table of fields may allow or refuse."""

    def __init__(self, parser: flags.ArgumentParser):
        self._parser = parser

    def parse(self, argument: Any) -> Any:
        return None if argument == "None" else self._parser.parse(argument)

    def flag_type(self) -> str:
        return self._parser.flag_type()


class _Several(flags.ArgumentParser):
    """Parses a tuple: names and numbers separated by commas, or a Python tuple, which can hold any text."""

    def parse(self, argument: Any) -> tuple:
        if not isinstance(argument, str):  # the default of the field
            return tuple(argument)
        try:
            value = ast.literal_eval(argument)
        except (ValueError, SyntaxError):
            if argument.startswith(("(", "[")):
                raise ValueError("this is no whole tuple") from None
            return tuple(name for part in argument.split(",") if (name := part.strip()))
        return tuple(value) if isinstance(value, (tuple, list)) else (value,)

    def flag_type(self) -> str:
        return "several"


class _Literal(flags.ArgumentParser):
    """Parses the value of a field that an experiment file has set to None, and that has no type of its own then."""

    def parse(self, argument: Any) -> Any:
        try:
            return ast.literal_eval(argument)
        except (ValueError, SyntaxError):
            return {"true": True, "false": False}.get(argument, argument)

    def flag_type(self) -> str:
        return "literal"


for _type, _parser in {
    bool: flags.BooleanParser(),
    int: flags.IntegerParser(),
    float: flags.FloatParser(),
    str: flags.ArgumentParser(),
    tuple: _Several(),
}.items():
    config_flags.register_flag_parser_for_type(_type, _OrNone(_parser))
config_flags.register_flag_parser_for_type(type(None), _Literal())


def run(name: str, main: Callable[[list[str]], int | None], fields: bool = True) -> None:
    """Parses the flags, `--config` among them, calls `main`, and exits with the status that it returns.

    Args:
      name: name of the command, which starts every message.
      main: function of the arguments that are no flags, the program's name first.
      fields: whether the config is that of a run; --help then lists its fields.
    """
    with terminal.guarded():
        app.run(as_command(name)(main), flags_parser=functools.partial(_parse, name, fields))


def load(path: str) -> ConfigDict:
    """Returns the config of an experiment file.

    Args:
      path: the path as in --config; the part after a colon is the argument of get_config.

    Raises:
      InputError: there is no such file, it raises an error, or its get_config does not return a ConfigDict.
    """
    file, colon, argument = _found(path).partition(":")
    if not os.path.isfile(file):
        like = nearest(file, shipped.experiments())
        raise InputError(f"--config={path}: there is no file {file or '(empty)'} in {os.getcwd()}{like}")
    with reading(file):
        module = module_of(file)
        if not hasattr(module, "get_config"):
            raise InputError(f"{file} has no function get_config; see experiments/ for examples")
        if colon and not inspect.signature(module.get_config).parameters:
            raise InputError(f"--config={path}: {file} takes no argument; leave out :{argument}")
        config = module.get_config(*[argument] * bool(colon))
    if not isinstance(config, ConfigDict):
        raise InputError(f"{file}: get_config returns {type(config).__name__}; it must return a ConfigDict")
    return config


def _found(path: str) -> str:
    """Returns the file that --config=PATH names; experiments/ of the checkout or the installation is searched, too."""
    file, colon, argument = path.partition(":")
    return f"{shipped.experiment(file) if file else file}{colon}{argument}"


def _let_import_neighbours(file: str) -> None:
    """Adds to the import path the folder above the file's experiments/, so that experiments can import each other.

    The file's own folder and the current one come last: reward functions lie there.
    """
    above = [folder.parent for folder in pathlib.Path(file).resolve().parents if folder.name == "experiments"]
    sys.path += [os.fspath(folder) for folder in above if os.fspath(folder) not in sys.path]
    functions.let_import(os.path.dirname(os.path.abspath(file)), os.getcwd())


def module_of(file: str):
    """Executes an experiment file and returns its module."""
    _let_import_neighbours(file)
    spec = importlib.util.spec_from_file_location("rlhf_jax_experiment", file)
    if spec is None:
        raise InputError(f"{file} is not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def reading(file: str):
    """Context that turns any error of an experiment file into an InputError that names the file and line."""
    try:
        yield
    except InputError:
        raise
    except SyntaxError as error:
        raise InputError(f"{error.filename}, line {error.lineno}: {error.msg}") from error
    except Exception as error:
        raise InputError(f"{_place(error, file)}: {type(error).__name__}: {_one_line(error)}") from error


def _parse(name: str, fields: bool, argv: Sequence[str]) -> list[str]:
    """Parses the flags and returns the other arguments; exits with a sentence on an error, and after --help."""
    if {"--help", "-help", "-h"}.intersection(argv[1:]):
        print(_help(fields))
        sys.exit(0)
    logging.set_verbosity(logging.ERROR)  # ml_collections would also warn about errors that are reported below
    if path := value_of(argv, "config"):
        found = _found(path)
        argv = [
            argument.replace(path, found) if argument in (path, f"--config={path}", f"-config={path}") else argument
            for argument in argv
        ]
        _let_import_neighbours(found.partition(":")[0])
    try:
        rest = flags.FLAGS(argv)
        if not isinstance(
            flags.FLAGS["config"].value, ConfigDict
        ):  # the file could not be read, which ml_collections reports only when the value is used
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
    """Returns the text of --help: the docstring of the program, its flags, and the fields of a config."""
    parts = [sys.modules["__main__"].__doc__ or "", flags.FLAGS.main_module_help()]
    return "\n".join([*parts, page.text(config_lib.table())] if fields else parts)


def _why(error: Exception, argv: Sequence[str]) -> str | None:
    """Returns what is wrong with a command line that could not be parsed; None if no cause is known."""
    if isinstance(error, flags.UnrecognizedFlagError):
        return f"there is no flag --{error.flagname}{nearest(error.flagname, flags.FLAGS, '--')}"
    path = value_of(argv, "config")
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


def value_of(argv: Sequence[str], flag: str) -> str | None:
    """Returns the value of a flag that is given as --flag=value or --flag value, the last one if repeated, or None."""
    value = None
    for place, argument in enumerate(argv[1:], 1):
        if found := re.fullmatch(rf"--?{flag}(?:=(.*))?", argument, re.DOTALL):
            value = found[1] if found[1] is not None else (*argv, None)[place + 1]
    return value


def _overridden(argv: Sequence[str]) -> list[str]:
    """Returns the names of the fields that are set with --config.FIELD."""
    found = (re.match(r"--?(?:no)?config\.([^=]*)", argument) for argument in argv[1:])
    return [match[1] for match in found if match]


def _unknown(config: ConfigDict, field: str) -> str | None:
    """Returns an error message about a field that the config does not have; None if it has the field."""
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
    """Returns the value of a dotted field that the config has."""
    for part in field.split("."):
        config = config[part]
    return config


def _place(error: Exception, file: str) -> str:
    """Returns the file and line of an error that was raised in an experiment file, or in code that it calls."""
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if os.path.abspath(frame.filename) == os.path.abspath(file)
    ]
    return f"{file}, line {own[-1].lineno}" if own else file


def _one_line(error: Exception) -> str:
    """Returns the message of an error on one line."""
    return " ".join(str(error).split())
