"""A kind of stage is one file and its registration: a toy kind is checked, run, evaluated, planned, swept and reported."""

import dataclasses
import functools

import jax
import pytest
import toy

from rlhf_jax import abstract, checkpoint, config, inputs, pipeline, weights
from rlhf_jax import run as run_lib
from rlhf_jax.data.loader import Loader
from rlhf_jax.evaluate import policy
from rlhf_jax.fields import page, registry
from rlhf_jax.fields.field import Field, kind
from rlhf_jax.fields.ranges import COUNT, NOT_NEGATIVE
from rlhf_jax.fields.training import trained
from rlhf_jax.plan import planner, topology
from rlhf_jax.report import run_page
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.stages import supervised
from rlhf_jax.sweep.store import identities
from rlhf_jax.token_loss import TokenLoss

# --- The file that somebody would add to rlhf_jax/stages/ --------------------------------------------------------------

FIELDS = trained(
    "More training on documents, from a finished policy.",
    kind=kind("anneal"),
    init="pretrain",
    batch_size=Field(8, COUNT, "rows"),
    steps=Field(2, COUNT, "optimizer steps"),
    learning_rate=Field(1e-4, NOT_NEGATIVE, "at its peak, 0: nothing is learned"),
)


def check(run, stage):
    supervised.check(run, stage)
    inputs.need(run, stage, "documents", "train")


def training_of(run, stage):
    section = run.config[stage]
    examples, report, _ = inputs.packed_documents(run, "train", run.whole_length)
    inputs.report_data(run, stage, "documents", report)
    return supervised.SupervisedTraining(
        run,
        stage,
        functools.partial(weights.start_params, run, stage),
        TokenLoss(run.shape(stage)),
        Loader(examples, section.batch_size, run.seed_of(stage), name=stage),
        section.steps,
        finish=lambda state: checkpoint.save_params(run.folder(stage) / "params", state.params),
    )


def run_stage(run, stage):
    supervised.fit(training_of(run, stage))


def programs_of(run, stage, data):
    section = run.config[stage]
    batch = abstract.batch(run, section.batch_size, run.whole_length)
    return [supervised.train_program(run, stage, TokenLoss(run.shape(stage)), batch, section.steps)]


ANNEAL = registry.Stage(
    "anneal",
    FIELDS,
    check,
    run_stage,
    gives="policy",
    label="annealed",
    evaluate=policy.evaluate_policy,
    judged=True,
    training=training_of,
    programs=programs_of,
    loss_unit="nats per token",
)

# -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def anneal():
    registry.register(ANNEAL)
    yield ANNEAL
    del registry.KINDS["anneal"]


def config_with_anneal():
    found = toy.get_config("pretrain")
    found.stages = ("pretrain", "anneal")
    found.anneal = FIELDS.build()
    return found


def test_a_kind_has_one_name(anneal):
    with pytest.raises(ValueError, match="already a kind of stage called anneal"):
        registry.register(dataclasses.replace(ANNEAL))


def test_its_fields_are_in_the_config_on_the_page_and_checked(anneal):
    assert config.default_config().anneal.steps == 2
    assert "| `steps` | `2` |" in page.markdown(config.table())
    wrong = config_with_anneal()
    wrong.anneal.steps = 0
    with pytest.raises(InputError, match="^anneal.steps=0 must be "):
        config.check(wrong)


def test_it_runs_is_evaluated_and_stands_in_the_report(anneal, tmp_path, one_device):
    pipeline.run_stages(config_with_anneal(), str(tmp_path / "run"))
    found = run_lib.open_run(str(tmp_path / "run"))
    assert found.done("anneal") and found.evaluated("anneal") and found.giving("policy") == ["pretrain", "anneal"]
    before, after = (weights.load_params(found, stage) for stage in ("pretrain", "anneal"))
    assert any(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), before, after)))
    run_page.write(tmp_path / "run")
    assert "| base | annealed |" in (tmp_path / "run" / "report.md").read_text()


def test_what_it_names_and_needs_is_checked(anneal, tmp_path):
    wrong = config_with_anneal()
    wrong.anneal.init = "collect"
    with pytest.raises(InputError, match="anneal.init names 'collect', which is no .*anneal stage before 'anneal'"):
        pipeline.run_stages(wrong, str(tmp_path / "run"))


def test_it_is_planned_and_has_an_identity_in_sweeps(anneal):
    given = config_with_anneal()
    data = abstract.Data(demonstrations=64, rankings=16, completions=4, vocab_size=384)
    assert planner.chosen_stages(given) == ["pretrain", "anneal"]
    planned = planner.plan(given, topology.parse(f"cpu:{jax.device_count()}"), data, stages="anneal")
    assert [row["stage"] for row in planned["programs"]] == ["anneal"]
    before = identities(given)
    given.anneal.learning_rate = 1.0
    after = identities(given)
    assert before["pretrain"] == after["pretrain"] and before["anneal"] != after["anneal"]


@pytest.mark.parametrize("last, stage", [(False, "anneal"), (True, "again")])
def test_a_plan_has_the_first_or_the_last_of_several_stages(anneal, monkeypatch, last, stage):
    monkeypatch.setitem(registry.KINDS, "anneal", dataclasses.replace(anneal, planned_last=last))
    given = config_with_anneal()
    given.again, given.stages = given.anneal, (*given.stages, "again")
    assert planner.chosen_stages(given) == ["pretrain", stage]
