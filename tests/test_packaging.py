"""What is installed is what is imported, and the launch scripts find a Python that works."""

import ast
import configparser
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

PROJECT = pathlib.Path(__file__).resolve().parent.parent
PACKAGES = {
    "google": "protobuf",
    "orbax": "orbax-checkpoint",
    "absl": "absl-py",
    "markdown_it": "markdown-it-py",
}  # import name -> distribution


def requirements(section, key):
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(PROJECT / "setup.cfg")
    lines = setup[section][key].split()
    return {re.split(r"[<>=%]", line)[0].lower().replace("-", "_") for line in lines}


SIDES = (
    "torch_side.py",
    "trl_side.py",
    "tunix_side.py",
)  # modules of processes of their own, which peers of the bench start


def imported(sides=False):
    """Top-level names of what the package imports when its modules are imported; with `sides`, of these alone."""
    for path in (PROJECT / "rlhf_jax").rglob("*.py"):
        if (path.name in SIDES) != sides:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield node.module.split(".")[0]


def test_every_import_is_installed_and_everything_installed_is_imported():
    names = set(imported()) - set(sys.stdlib_module_names) - {"rlhf_jax"}
    needed = {PACKAGES.get(name, name).lower().replace("-", "_") for name in names}
    assert needed == requirements("options", "install_requires")
    beside = set(imported(sides=True)) - set(sys.stdlib_module_names) - {"rlhf_jax"} - needed
    extra = requirements("options.extras_require", "bench") | requirements("options.extras_require", "hf")
    assert beside <= extra | {"trl", "tunix"}  # they are compared with where they are there


def test_files_that_are_no_modules_are_installed_with_the_package():
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(PROJECT / "setup.cfg")
    shipped = {
        path
        for package, patterns in setup["options.package_data"].items()
        for pattern in patterns.split()
        for path in PROJECT.joinpath(*package.split(".")).glob(pattern)
    }
    files = {path for path in (PROJECT / "rlhf_jax").rglob("*.*") if path.is_file() and "__pycache__" not in path.parts}
    assert {path for path in files if path.suffix != ".py"} == shipped


def run_python(project, path, **environment):
    return subprocess.run(
        ["bash", str(project / "launch" / "python.sh"), "-c", "print('ran')"],
        env={"PATH": path, **environment},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture
def project(tmp_path):
    """The launch scripts and setup.cfg alone."""
    shutil.copytree(PROJECT / "launch", tmp_path / "launch")
    shutil.copy(PROJECT / "setup.cfg", tmp_path)
    return tmp_path


def script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


# Stands for a Python: is new enough, makes a virtual environment that holds itself, says what it is asked to do.
STUB = """
case "$1 $2" in
  "-m venv") mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;
  "-m pip") [ "$3" = --version ] || echo "pip $*" >> "$LOG" ;;
  "--version "*) echo Python 3.11.0 ;;
  "-c print"*) echo "ran with $GLIBC_TUNABLES" ;;
esac
"""


def test_a_shim_that_fails_is_skipped_and_the_second_run_installs_nothing(project, tmp_path):
    script(tmp_path / "shims" / "python3.11", "exit 127")
    script(tmp_path / "good" / "python3.11", STUB)
    path, log = f"{tmp_path}/shims:{tmp_path}/good:/usr/bin:/bin", tmp_path / "log"
    for _ in range(2):
        result = run_python(project, path, LOG=str(log))
        assert result.returncode == 0 and result.stdout.startswith("ran with glibc.malloc"), result.stderr
    assert len(log.read_text().splitlines()) == 1

    with open(project / "setup.cfg", "a") as file:
        file.write("\n")
    run_python(project, path, LOG=str(log))
    run_python(project, path, LOG=str(log), EXTRAS="test")
    assert [line.endswith("[test]") for line in log.read_text().splitlines()] == [False, False, True]


def test_the_allocator_settings_give_way_to_the_users(project, tmp_path):
    script(tmp_path / "good" / "python3.11", STUB)
    result = run_python(project, f"{tmp_path}/good:/usr/bin:/bin", LOG="/dev/null", GLIBC_TUNABLES="")
    assert result.stdout == "ran with \n"


def test_a_python_that_is_too_old_is_one_clear_sentence(project, tmp_path):
    script(tmp_path / "old" / "python", "exit 1")
    result = run_python(project, os.environ["PATH"], PYTHON=str(tmp_path / "old" / "python"))
    assert result.returncode == 1
    assert result.stderr.startswith("no Python 3.11 to 3.13 with venv among: ") and result.stderr.count("\n") == 1


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_the_scripts_pass_shellcheck():
    scripts = [*map(str, (PROJECT / "launch").glob("*.sh")), str(PROJECT / ".ci" / "run")]
    subprocess.run(["shellcheck", *scripts], check=True)
