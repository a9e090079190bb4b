"""What a stage writes while it trains, beside its metrics: samples and warnings, and what of them the trackers get."""

import json

from rlhf_jax import watching
from rlhf_jax.journal import Journal, read_rows


class Tracked:
    """Trackers that keep what they get."""

    def __init__(self):
        self.got = []

    def __getattr__(self, name):
        return lambda step, what: self.got.append((name, step, what))


def open_journal(path, resume_step=None):
    tracked = Tracked()
    return Journal(path, resume_step, lambda restored, logged: tracked), tracked


SICK = {"ppo/policy/clipfrac": 0.9}


def test_samples_and_warnings_are_kept_and_reach_the_trackers(tmp_path, capsys):
    journal, tracked = open_journal(tmp_path)
    with journal:
        journal.write(1, SICK, [{"of": "highest", "completion": "a"}])
        journal.write(2, SICK | {"valid/score": 1.0}, [{"of": "validation", "completion": "b"}])
        for step in range(3, 13):
            journal.write(step, SICK)
    assert read_rows(tmp_path / "training_samples.jsonl") == [
        {"step": 1, "of": "highest", "completion": "a"},
        {"step": 2, "of": "validation", "completion": "b"},
    ]
    assert [row["step"] for row in journal.validated] == [2]
    (warning,) = read_rows(tmp_path / "warnings.jsonl")  # once, however long it goes on
    assert warning["name"] == "clip_fraction" and f"warning: {warning['message']}" in capsys.readouterr().out
    tables = [step for name, step, _ in tracked.got if name == "samples"]
    assert tables == [2]  # the extremes of every step would be a table for each
    assert [what for name, _, what in tracked.got if name == "warning"] == [warning]
    assert [step for name, step, _ in tracked.got if name == "metrics"] == list(range(1, 13))


def test_a_resumed_stage_warns_again_only_of_what_it_forgot(tmp_path):
    with open_journal(tmp_path)[0] as journal:
        for step in range(1, 13):
            journal.write(step, SICK, [{"of": "highest"}])
    (first,) = read_rows(tmp_path / "warnings.jsonl")
    for resumed, kept in ((first["step"], 1), (first["step"] - 1, 0)):
        with open_journal(tmp_path, resumed)[0] as journal:
            assert len(read_rows(tmp_path / "warnings.jsonl")) == kept
            assert len(read_rows(tmp_path / "training_samples.jsonl")) == resumed
            for step in range(resumed + 1, 13):
                journal.write(step, SICK, [{"of": "highest"}])
        assert read_rows(tmp_path / "warnings.jsonl") == [first]
        assert len(read_rows(tmp_path / "training_samples.jsonl")) == 12
    with open_journal(tmp_path)[0]:  # begun anew
        assert read_rows(tmp_path / "warnings.jsonl") == []


def test_lines_that_are_not_rows_are_left_out(tmp_path):
    rows = [{"step": 1}, {"step": "x"}, {}, [1]]
    (tmp_path / "rows").write_text(
        "".join(json.dumps(row) + "\n" for row in rows) + 'not JSON\n{"step": 2}\n{"step": 3'
    )
    assert read_rows(tmp_path / "rows") == [{"step": 1}, {"step": 2}]
    assert watching.new_warnings([], set()) == []
