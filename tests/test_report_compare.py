"""Runs side by side: what differs, paired differences, curves over one another, and runs with little in common."""

import json
import shutil

import numpy as np
import pytest
from matplotlib.axes import Axes
from test_report import cells, write_run, write_training_notes

from rlhf_jax import statistics
from rlhf_jax.evaluate import policy
from rlhf_jax.report import __main__ as command
from rlhf_jax.report import compared, compared_estimates, html_page
from rlhf_jax.report.record import Record
from rlhf_jax.runtime import files
from rlhf_jax.runtime.errors import InputError


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of one pretraining, which differ in PPO; the second has a stage more."""
    folder = tmp_path_factory.mktemp("compare")
    first = write_run(folder / "a", 0, ("pretrain", "sft", "reward_model", "ppo"), prompts=30, items=10)
    second = write_run(folder / "b", 1, ("pretrain", "sft", "reward_model", "ppo", "ppo_ptx"), prompts=30, items=10)
    for stage in ("pretrain", "sft", "reward_model"):
        shutil.rmtree(second / stage)
        shutil.copytree(first / stage, second / stage)
    for path, kl_coef in ((first, 0.1), (second, 0.3)):
        config = files.read_json(path / "config.json") | {"seed": 0}
        config["ppo"] |= {"kl_coef": kl_coef, "reward": "reward_model"}
        config["dpo"] = {"kind": "dpo", "beta": kl_coef}  # a section of a stage that is not run
        files.write_json(path / "config.json", config)
    write_training_notes(second / "ppo", (1, 20, 40))
    return first, second


@pytest.fixture(scope="module")
def text(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "page.md"
    compared.write(runs, out)
    html_page.write(out)  # its figures are where a page may have them
    return out.read_text()


def rows_of(path, stage="ppo"):
    return policy.read_rows(path / stage / "samples.jsonl")


def test_a_file_for_one_run_is_refused(runs, tmp_path, capsys):
    assert command.main([str(runs[0]), f"--out={tmp_path}/page.md"]) == 2
    assert "--out goes with several runs" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_only_what_differs_is_listed(text):
    section = text.split("## What differs in their configs")[1].split("## ")[0]
    fields = [line.split("|")[1].strip() for line in section.splitlines() if line.startswith("| ")][2:]
    assert fields == ["ppo.kl_coef", "stages"]  # neither dpo.beta nor ppo_ptx.ptx_coef, which not both have run
    assert cells(section, "ppo.kl_coef") == ["0.1", "0.3"]


def test_differences_are_paired_over_prompts(runs, text):
    section = text.split("### PPO")[1].split("##")[0]
    gold = [np.array([row["gold"]["total"] for row in rows_of(path)]) for path in runs]
    found = statistics.mean(gold[1] - gold[0])
    assert cells(section, "gold score")[2] == f"{found.value:+.3f} ± {found.high - found.value:.3f}"
    wins = np.mean(gold[1] > gold[0])
    assert cells(section, "wins against a (%)")[1].startswith(f"{100 * wins:.1f} ± ")
    scores = [np.array([row["score"] for row in policy.read_rows(path / "ppo" / "skills.jsonl")]) for path in runs]
    skill = 100 * np.mean(scores[1] - scores[0])  # tasks of one size
    assert cells(section, "retained skills, mean (%)")[2].startswith(f"{skill:+.1f} ± ")
    assert cells(section, "reward score")[2] != "–"  # one reward model has given both
    assert cells(section, "held-out loss (nats/token)")[2] == "–"  # there are no rows of it


def test_prompts_are_met_by_their_text_and_not_by_their_place(runs, tmp_path):
    first, second = (tmp_path / name for name in "ab")
    for path, copy in zip(runs, (first, second)):
        shutil.copytree(path, copy)
    rows = [row | {"finished": number % 5 > 0} for number, row in enumerate(rows_of(second))]
    policy.write_rows(second / "ppo" / "samples.jsonl", rows[:4:-1])  # in another order, and five are missing
    done = files.read_json(second / "ppo" / "done.json")
    files.write_json(second / "ppo" / "done.json", done | {"files": {}})
    compared.write([first, second], tmp_path / "page.md")
    gold = {row["prompt"]: row["gold"]["total"] for row in rows_of(first)}
    found = statistics.mean([row["gold"]["total"] - gold[row["prompt"]] for row in rows[5:]])
    section = (tmp_path / "page.md").read_text().split("### PPO")[1]
    assert cells(section, "gold score")[2] == f"{found.value:+.3f} ± {found.high - found.value:.3f}"
    assert cells(section, "ends by itself (%)")[2].startswith("-20.0 ± ")  # the second less the first


def test_rows_of_one_prompt_are_met_in_their_order():
    """As of a run with several completions of each prompt."""
    rows = [{"prompt": prompt, "n": n} for n, prompt in enumerate("aabab")]
    assert [row["n"] for row in compared_estimates._by_prompt(rows).values()] == [0, 1, 2, 3, 4]
    assert compared_estimates._by_prompt(rows)[None, "a", 3]["n"] == 3


def test_what_is_the_same_is_named_and_not_shown(text):
    assert "The same in all of them, and not shown: pretrain, sft, reward_model." in text
    assert "### base" not in text and "### SFT" not in text and "(page/figures/loss.png)" not in text
    assert "b has stages that not all have, and that are not shown: ppo_ptx." in text


def test_curves_warnings_and_completions(runs, text):
    assert "(page/figures/objective_kl.png)" in text and "- a: none." in text
    assert "b: PPO has 2 warnings: kl_and_gold (first at 20)" in text
    table = text.split("## Completions")[1].strip().splitlines()[4:]
    assert len(table) == 6 and all("ppo says" in line for line in table)
    rows = {row["prompt"].split("\n")[0].split("number ")[1]: row for row in rows_of(runs[1])}
    number = table[0].split("number ")[1].split("<br>")[0]
    assert table[0].endswith(f"({rows[number]['gold']['total']:.2f}) |")


def test_every_run_has_a_line_in_every_panel(runs, tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(Axes, "plot", lambda axis, *_, label=None, **__: lines.append(label) or [])
    monkeypatch.setattr("rlhf_jax.report.figures.of_compared.legend_above", lambda *_: None)
    records = {path.name: Record.load(path) for path in runs}
    drawn = compared.figures.draw(records, ["ppo"], tmp_path)
    assert len(drawn) == 4 and [lines.count(name) for name in "ab"] == [4, 4]


def test_runs_of_other_models_and_data_say_what_is_not_comparable(runs, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(runs[1], other)
    config = files.read_json(other / "config.json")
    files.write_json(other / "config.json", config | {"data": {"source": "files"}})
    for stage in ("sft", "reward_model"):
        file = other / stage / "metrics.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        files.write_json_lines(file, [row | {"loss": row["loss"] + 1} for row in rows])
    for stage in ("pretrain", "sft", "ppo", "ppo_ptx"):
        rows = [row | {"prompt": f"other {row['prompt']}"} for row in rows_of(other, stage)]
        policy.write_rows(other / stage / "samples.jsonl", rows)
        done = files.read_json(other / stage / "done.json")
        files.write_json(other / stage / "done.json", done | {"files": {}})
    compared.write([runs[0], other], tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert "The runs read other data" in text and "a and other have no test prompt in common" in text
    assert "Reward scores are of other reward models" in text and "its own reference, which is not the same" in text
    assert cells(text.split("### PPO")[1], "gold score")[2] == "–" and "## Completions" not in text


def test_runs_with_no_stage_in_common_are_shown_as_far_as_they_go(runs, tmp_path, capsys):
    other = write_run(tmp_path / "rm", stages=("collect",))
    assert command.main([str(runs[0]), str(other), "--compare", f"--out={tmp_path / 'page.md'}"]) == 0
    assert "No policy is evaluated in all of them yet." in (tmp_path / "page.md").read_text()
    assert "rm has stages that not all have" in capsys.readouterr().out


def test_unfinished_runs_are_compared_by_their_curves(runs, tmp_path):
    shutil.copytree(runs[1], tmp_path / "late")
    for name in ("done.json", "evaluation.json"):
        (tmp_path / "late" / "ppo" / name).unlink()
    compared.write([runs[0], tmp_path / "late"], tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert "late is unfinished: ppo is stopped, 40 iterations are done." in text
    assert "(page/figures/objective_scores.png)" in text and "### PPO" not in text


def test_several_runs_are_averaged_without_the_flag(runs, tmp_path):
    assert command.main([*map(str, runs), f"--out={tmp_path / 'page.md'}"]) == 0
    assert "Student t interval over 2 runs" in (tmp_path / "page.md").read_text()


def test_folders_of_one_name_are_told_apart(runs, tmp_path):
    shutil.copytree(runs[0], tmp_path / "a")
    assert list(compared._names([runs[0], tmp_path / "a"])) == [str(runs[0]), str(tmp_path / "a")]
    with pytest.raises(InputError, match="is given more than once"):
        compared.write([runs[0], runs[1], runs[0]], tmp_path / "page.md")
    with pytest.raises(InputError, match="9 runs are too many: 8 can be told apart"):
        compared.write([tmp_path / str(number) for number in range(9)], tmp_path / "page.md")
    assert not (tmp_path / "page.md").exists()
