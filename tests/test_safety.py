"""Safety against usefulness: outcomes at their edges, and the figure of a run that has gold scores, HHH groups or neither."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from test_report import write_run

from rlhf_jax.evaluate import safety
from rlhf_jax.report import run_page
from rlhf_jax.report.figures import safety as figure
from rlhf_jax.report.record import Record
from rlhf_jax.runtime import files, finished
from rlhf_jax.runtime.errors import InputError


def row(helpful, honest, harmless):
    return {"gold": {"helpful": helpful, "honest": honest, "harmless": harmless}, "category": "x"}


@pytest.mark.parametrize(
    "parts, outcome",
    [
        ((1, 1, 1), "helps, safe"),
        ((0.11, 1, 1), "helps, safe"),
        ((0.1, 1, 1), "no help, safe"),
        ((0.5, 0.6, 1), "helps, unsafe"),
        ((0.5, 1, 0.4), "helps, unsafe"),
        ((0, 0, 1), "no help, unsafe"),
        ((0, 1, 0.4), "no help, unsafe"),
    ],
)
def test_outcomes_at_their_edges(parts, outcome):
    assert safety.outcome(row(*parts)) == outcome


def test_outcomes_add_up_and_safe_is_both_that_are_safe():
    rng = np.random.default_rng(0)
    rows = [row(*(rng.choice([0, 0.5, 1], 3))) for _ in range(200)]
    found = safety.outcomes(rows)
    assert sum(estimate.value for estimate in found.values()) == pytest.approx(1)
    assert safety.safe(rows).value == pytest.approx(found["helps, safe"].value + found["no help, safe"].value)
    assert safety.part(rows, "honest").value == pytest.approx(np.mean([found["gold"]["honest"] for found in rows]))


def test_rows_without_the_parts_are_not_judged():
    assert safety.is_judged([row(1, 1, 1)])
    assert not any(map(safety.is_judged, ([], [{"gold": None}], [{"gold": {"total": 1.0}}])))


@pytest.fixture
def axes(monkeypatch):
    """The titles and labels of what is drawn."""
    drawn = []
    save = Figure.savefig

    def keep(self, *given, **named):
        drawn.extend(self.axes)
        return save(self, *given, **named)

    monkeypatch.setattr(Figure, "savefig", keep)
    return drawn


def test_the_report_shows_the_figure_and_the_groups_of_hhh_on_the_same_axes(tmp_path, axes):
    run = write_run(tmp_path / "run")
    for stage, value in (("sft", 0.7), ("ppo", 0.4)):
        found = files.read_json(run / stage / "evaluation.json")
        found["estimates"]["lm_eval/hhh_alignment_honest/acc"] = {"value": value, "low": value - 0.1, "high": None}
        finished.write_json(run / stage / "evaluation.json", found)
    run_page.write(run)
    report = (run / "report.md").read_text()
    assert "figures/safety.png" in report and "HHH alignment" in report
    titles = {axis.get_title(): axis for axis in axes}
    names = [text.get_text() for text in titles["helpful (%)"].get_yticklabels()]
    assert names[0] == "all prompts (60)" and names[-1] == "HHH alignment" and len(names) > 4
    points = {
        round(x)
        for line in titles["honest (%)"].lines
        for x, y in zip(*line.get_data())
        if len(names) - 1.5 < y < len(names)
    }
    assert {70, 40} <= points
    for axis in (titles["helpful (%)"], titles["harmless (%)"]):
        assert all(y < len(names) - 1.5 for line in axis.lines if len(line.get_xdata()) > 2 for y in line.get_ydata())


def test_other_weights_are_shown_hollow(tmp_path, axes):
    run = write_run(tmp_path / "run", stages=("sft", "ppo"))
    rows = files.read_json_lines(run / "ppo" / "samples.jsonl")
    found = files.read_json(run / "ppo" / "evaluation.json")
    found["other_weights"] = {"weights": "params", "estimates": found["estimates"]}
    finished.write_json(run / "ppo" / "evaluation.json", found)
    finished.write_json_lines(
        run / "ppo" / "samples.params.jsonl", [row | {"gold": row["gold"] | {"helpful": 1.0}} for row in rows]
    )
    figure.draw_run(Record.load(run), run / "figures")
    (plane,) = [axis for axis in axes if axis.get_title() == "to the right and up is better"]
    hollow = [line.get_xdata()[0] for line in plane.lines if line.get_markerfacecolor() == "white"]
    assert hollow == [pytest.approx(100)]
    rows[1]["gold"]["honest"] = -1
    finished.write_json_lines(run / "ppo" / "samples.params.jsonl", rows)
    with pytest.raises(InputError, match=r"samples.params.jsonl, line 2.*honest"):
        figure.draw_run(Record.load(run), run / "figures")


def test_a_run_without_gold_scores_or_with_one_policy_has_no_such_figure(tmp_path):
    for name, stages, gold in (("plain", ("sft", "ppo"), False), ("one", ("sft",), True)):
        run = write_run(tmp_path / name, stages=stages, gold=gold)
        assert figure.draw_run(Record.load(run), run / "figures") == []


def test_a_damaged_part_is_one_sentence(tmp_path):
    run = write_run(tmp_path / "run", stages=("sft", "ppo"))
    rows = files.read_json_lines(run / "ppo" / "samples.jsonl")
    rows[2]["gold"]["honest"] = "very"
    finished.write_json_lines(run / "ppo" / "samples.jsonl", rows)
    with pytest.raises(InputError, match=r"ppo/samples.jsonl, line 3.*honest.*not a number from 0 to 1"):
        run_page.write(run)
    assert not (run / "figures").exists()
