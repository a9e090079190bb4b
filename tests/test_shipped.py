"""What an installation has beside the package: commands, and experiments that are found from any directory."""

import configparser
import pathlib

import pytest

from rlhf_jax import command_line, scripts
from rlhf_jax.runtime import shipped
from rlhf_jax.runtime.errors import InputError

PROJECT = pathlib.Path(__file__).resolve().parent.parent


def test_every_command_that_pip_installs_runs_a_module():
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(PROJECT / "setup.cfg")
    lines = setup["options.entry_points"]["console_scripts"].split("\n")
    commands = dict(line.split(" = ") for line in lines if line)
    assert commands.keys() >= {"rlhf-train", "rlhf-sweep", "rlhf-report", "rlhf-chat"}
    for name, target in commands.items():
        module, _, function = target.partition(":")
        assert module == "rlhf_jax.scripts" and name == f"rlhf-{function}" and callable(getattr(scripts, function))


def test_experiments_are_found_by_name_from_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped.experiment("quickstart") == PROJECT / "experiments" / "quickstart.py"
    assert shipped.experiment("figures/rm_pairs") == PROJECT / "experiments" / "figures" / "rm_pairs.py"
    assert command_line.load("instructgpt:1.3b").model.shape == "gpt3_1.3b"
    (tmp_path / "quickstart").write_text("")  # a file that is here comes first
    assert shipped.experiment("quickstart") == pathlib.Path("quickstart")


def test_an_experiment_that_there_is_not_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="^--config=nothing: there is no file nothing in "):
        command_line.load("nothing")
    with pytest.raises(InputError, match="; did you mean experiments/quickstart.py[?]$"):
        command_line.load("experiments/quikstart.py")


def test_the_template_of_an_experiment_is_found_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    template = command_line.load("quickstart").data.template
    assert not pathlib.Path(template).exists() and shipped.find(template).is_file()
