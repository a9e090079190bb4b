"""A config.json that was edited after a stage was finished is refused; one of another version of the program is not."""

import pytest

from rlhf_jax import run as run_lib
from rlhf_jax.fields import noted
from rlhf_jax.report.record import Record
from rlhf_jax.runtime import files, finished
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.sweep import arms, grid
from tests.support.toy import get_config as toy_config


@pytest.fixture
def run(tmp_path):
    """The directory of a run whose first stage is finished."""
    config = toy_config()
    with run_lib.start(config, tmp_path / "run") as opened:
        opened.workdir.stage("pretrain")
        opened.mark_done("pretrain", 1.0)
    return tmp_path / "run"


def edit(path, field, value):
    """Writes a file of JSON again, with another value of a dotted field; ... removes it."""
    content = files.read_json(path)
    *above, name = field.split(".")
    section = content
    for part in above:
        section = section[part]
    if value is ...:
        del section[name]
    else:
        section[name] = value
    files.write_json(path, content)


def readers(run):
    return [lambda: run_lib.open_run(str(run)), lambda: run_lib.read_config(run), lambda: Record.load(run)]


EDITS = {
    "pretrain.learning_rate": (5.0, "pretrain.learning_rate was .* and is now 5.0"),
    "pretrain.batch_size": (64, "pretrain.batch_size was .* and is now 64"),
    "model.num_heads": (1, "model.num_heads was .* and is now 1"),
    "seed": (12345, "seed was 0 and is now 12345"),
    "prompt_length": (7, "prompt_length was .* and is now 7"),
    "data.source": ("files", "data.source was .* and is now"),
}


@pytest.mark.parametrize("field", EDITS)
def test_an_edited_field_is_named_with_both_values(run, field):
    value, said = EDITS[field]
    edit(run / "config.json", field, value)
    for read in readers(run):
        with pytest.raises(InputError, match=f"config.json was changed after stage 'pretrain' was finished .*{said}"):
            read()


def test_what_no_finished_stage_depends_on_may_change(run):
    for field, value in {"sft.learning_rate": 5.0, "evaluate.temperature": 0.5, "checkpoints_kept": 9}.items():
        edit(run / "config.json", field, value)
    for read in readers(run):
        read()


def test_a_field_of_another_version_and_a_mark_without_a_config_are_passed_over(run):
    edit(run / "pretrain" / "done.json", "config.pretrain.field_of_an_older_version", 3)
    edit(run / "pretrain" / "done.json", "config.pretrain.learning_rate", ...)
    for read in readers(run):
        read()
    edit(run / "config.json", "pretrain.batch_size", 64)
    edit(run / "pretrain" / "done.json", "config", ...)
    for read in readers(run):
        read()


def test_a_stage_that_arms_share_has_one_note():
    """Whatever the seed of the run and the size of its policy are, where the stage has its own."""
    config = toy_config()
    config.pretrain.seed, config.pretrain.model.num_layers = 7, 1
    settings = grid.product([grid.sweep("seed", range(2)), grid.sweep("model.num_layers", [1, 2])])
    notes = [noted.note(arm.config.to_dict(), "pretrain") for arm in arms.expand(config, settings)]
    assert notes[0]["seed"] == 7 and all(note == notes[0] for note in notes)
    others = [noted.note(arm.config.to_dict(), "sft") for arm in arms.expand(config, settings)]
    assert len({str(note) for note in others}) == 4


def test_a_damaged_mark_is_named_before_its_config_is_compared(run):
    for text in ("", "{}", '{"seconds": 1.0, "config": 3}'):
        (run / "pretrain" / finished.DONE).write_text(text)
        for read in readers(run):
            with pytest.raises(InputError, match="pretrain/done.json is damaged: delete it and start the run again"):
                read()
