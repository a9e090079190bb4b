"""The benchmarks of a run: asked of every policy at its end, once, and shown side by side."""

import json
import re

import pytest
from toy import get_config as toy_config

from rlhf_jax import pipeline
from rlhf_jax.evaluate import harness
from rlhf_jax.evaluate.harness import tasks
from rlhf_jax.report import pages
from rlhf_jax.runtime.errors import InputError

pytest.importorskip("lm_eval", reason="lm-eval is not installed: EXTRAS=test")
pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with one task of one's own, toy_mc, of 8 questions."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [{"question": f"what is {n}", "choices": [" one", " two", " three"], "label": n % 3} for n in range(8)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "mc.yaml").write_text(
        f"task: toy_mc\ndataset_path: json\ndataset_kwargs:\n  data_files: {folder}/rows.jsonl\ntest_split: train\n"
        'output_type: multiple_choice\ndoc_to_text: "{{question}}"\ndoc_to_choice: choices\ndoc_to_target: label\n'
        "metric_list:\n  - metric: acc\n"
    )
    return folder


def config_of(folder, *tasks):
    config = toy_config("sft")
    config.mesh.update(data=-1, fsdp=1)
    config.evaluate.update(tasks=tasks, task_folders=(str(folder),), task_limit=6)
    return config


@pytest.fixture(scope="module")
def path(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    pipeline.run_stages(config_of(folder, "toy_mc"), path)
    return path


def estimates(path, stage):
    return json.loads((path / stage / "evaluation.json").read_text())["estimates"]


def test_every_policy_has_the_benchmarks_among_its_estimates(path):
    for stage in ("pretrain", "sft"):
        entry = json.loads((path / stage / "lm_eval.json").read_text())["toy_mc"]
        assert entry["items"] == 6 and entry["options"] == {"limit": 6}
        assert estimates(path, stage)["lm_eval/toy_mc/acc"] == entry["estimates"]["acc"]
        assert estimates(path, stage)["valid_loss"] is not None  # the run's own evaluation is still there
    assert estimates(path, "pretrain")["kl"] is not None  # it was completed after SFT, and kept the benchmarks


def test_the_report_has_them_side_by_side_with_paired_differences(path):
    text = (path / "report.md").read_text()
    [base, sft] = re.search(r"\| toy_mc acc \| (\S+)[^|]*\| (\S+)[^|]*\|\n", text).groups()
    for stage, said in (("pretrain", base), ("sft", sft)):
        assert float(said) == pytest.approx(estimates(path, stage)["lm_eval/toy_mc/acc"]["value"], abs=1e-4)
    rows = {
        stage: [json.loads(line)["acc"] for line in (path / stage / "lm_eval.toy_mc.jsonl").read_text().splitlines()]
        for stage in ("pretrain", "sft")
    }
    paired = sum(x - y for x, y in zip(rows["pretrain"], rows["sft"])) / 6
    difference = text.split("Differences from SFT")[1]
    assert float(re.search(r"\| toy_mc acc \| (\S+)", difference)[1]) == pytest.approx(paired, abs=1e-4)


def test_a_finished_run_is_not_asked_again_and_is_asked_what_is_new(path, folder, monkeypatch, capsys):
    asked = []
    evaluate = harness.evaluate
    monkeypatch.setattr(
        harness, "evaluate", lambda *given, **options: asked.append(given[1].name) or evaluate(*given, **options)
    )
    pipeline.run_stages(config_of(folder, "toy_mc"), path)
    assert asked == []
    config = config_of(folder, "toy_mc")
    config.evaluate.task_limit = 0
    pipeline.run_stages(config, path)
    assert asked == ["pretrain", "sft"]
    assert json.loads((path / "sft" / "lm_eval.json").read_text())["toy_mc"]["items"] == 8


def test_a_task_that_is_not_there_is_said_before_anything_is_trained(folder, tmp_path, monkeypatch):
    """The files of lm-eval's own tasks, which take many seconds, are read in test_harness.py."""
    manager = tasks._manager
    monkeypatch.setattr(tasks, "_manager", lambda folders, about, all_tasks: manager(folders, about, False))
    with pytest.raises(InputError, match="toy_other is no task of lm-eval"):
        pipeline.run_stages(config_of(folder, "toy_other"), tmp_path / "run")
    assert not (tmp_path / "run" / "pretrain" / "metrics.jsonl").exists()


def test_a_changed_file_of_items_is_said(path):
    file = path / "sft" / "lm_eval.toy_mc.jsonl"
    before = file.read_text()
    file.write_text(before.replace("1.0", "0.0"))
    with pytest.raises(InputError, match="lm_eval.toy_mc.jsonl is damaged"):
        pages.write(path)
    file.write_text(before)
