"""Reports of runs that are not finished: how far they are, at any instant, and --follow."""

import contextlib
import fcntl
import shutil
import socket

import fake_sweep
import pytest
from test_report import cells, write_run, write_training_notes

from rlhf_jax import metrics
from rlhf_jax.report import __main__ as command
from rlhf_jax.report import follow, pages, run_page
from rlhf_jax.report.figures import of_training
from rlhf_jax.report.record import Record
from rlhf_jax.runtime import figures, files
from rlhf_jax.runtime.errors import InputError


@pytest.fixture
def unsaved(monkeypatch):
    """Figures are drawn and not written, which takes most of the time."""
    monkeypatch.setattr(figures, "_save", lambda *_: None)


@contextlib.contextmanager
def at_work(path):
    """Holds the lock of a run, as the process that runs it does."""
    with open(path / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = write_run(tmp_path_factory.mktemp("progress") / "run", prompts=6, items=2)
    write_training_notes(path / "ppo", (1, 20, 40))
    for stage, total in {"pretrain": 300, "sft": 300, "reward_model": 300, "ppo": 40, "ppo_ptx": 40}.items():
        files.write_json(path / stage / "steps.json", {"total": total})
    return path


def stopped_in(whole, path, stage, steps=12):
    """A copy of a run that has done some steps of a stage, and nothing after it."""
    shutil.copytree(whole, path)
    stages = files.read_json(path / "config.json")["stages"]
    for later in stages[stages.index(stage) + 1 :]:
        shutil.rmtree(path / later)
    for name in ("done.json", "evaluation.json", "samples.jsonl", "skills.jsonl"):
        (path / stage / name).unlink(missing_ok=True)
    rows = (path / stage / "metrics.jsonl").read_text().splitlines(keepends=True)[:steps]
    (path / stage / "metrics.jsonl").write_text("".join(rows))
    return path


def page(path):
    pages.write(path)
    return (path / "report.md").read_text()


def test_a_run_that_was_stopped_says_where_and_what_is_missing(whole, tmp_path, unsaved, capsys):
    path = stopped_in(whole, tmp_path / "run", "ppo")
    (path / "ppo" / "checkpoints" / "10").mkdir(parents=True)
    text = page(path)
    assert "**Unfinished**: ppo is stopped, 12 of 40 iterations are done; the same command goes on from its" in text
    assert "checkpoint after 10" in text and "Still missing: the rest of ppo, ppo_ptx." in text
    assert cells(text, "sft")[:2] == ["finished", "300 of 300 steps"] and cells(text, "ppo")[0] == "stopped"
    assert cells(text, "ppo_ptx")[0] == "not begun"
    assert "| gold score |" in text and "figures/learning.png" in text  # what there is
    assert command.main([str(path)]) == 0
    assert "Unfinished: ppo is stopped, 12 of 40 iterations are done" in capsys.readouterr().out


def test_a_run_at_work_says_how_long_it_takes(whole, tmp_path, unsaved):
    path = stopped_in(whole, tmp_path / "run", "ppo")
    rows = [
        row | {"time": 1e9 + 60.0 * row["step"] + 9e5 * (row["step"] > 3)}
        for row in metrics.read_metrics(path / "ppo" / "metrics.jsonl")
    ]
    files.write_json_lines(path / "ppo" / "metrics.jsonl", rows)
    with at_work(path):
        text = page(path)
    assert cells(text, "ppo")[:3] == [
        "running",
        "12 of 40 iterations",
        "about 28 min",
    ]  # a night between two steps is not counted
    with at_work(path):
        shutil.rmtree(path / "ppo")
        assert "ppo is about to begin" in page(path)
        (path / "sft" / "evaluation.json").unlink()
        files.write_json(path / "sft" / "done.json", {"seconds": 1.0, "finished_at": "today"})
        assert "sft is being evaluated" in page(path)
    text = page(path)
    assert "sft is finished, but not evaluated" in text and "Still missing: the evaluation of sft, ppo," in text


def test_a_finished_run_is_not_marked(whole, unsaved):
    text = page(whole)
    assert "Unfinished" not in text and "Still missing" not in text
    with at_work(whole):  # the pipeline writes its last report itself
        assert "Unfinished" not in page(whole)


def test_steps_of_an_older_run_are_those_of_its_config_and_its_checkpoints(whole, tmp_path, unsaved):
    path = stopped_in(whole, tmp_path / "run", "ppo")
    (path / "ppo" / "steps.json").unlink()
    assert "ppo is stopped, 12 iterations are done" in page(path)
    facts = files.read_json(path / "config.json")
    facts["ppo"]["iterations"] = 50
    files.write_json(path / "config.json", facts)
    shutil.rmtree(path / "ppo")
    for name in ("8", "9.orbax-checkpoint-tmp-3", "10"):
        (path / "ppo" / "checkpoints" / name).mkdir(parents=True)
    assert "ppo is stopped, 10 of 50 iterations are done" in page(path)


@pytest.mark.parametrize("name", ["metrics.jsonl", "training_samples.jsonl", "warnings.jsonl"])
def test_a_report_can_be_written_while_a_line_is(whole, tmp_path, name, unsaved, monkeypatch):
    path = stopped_in(whole, tmp_path / "run", "ppo")
    if name != "metrics.jsonl":
        monkeypatch.setattr(run_page.figures, "draw_run", lambda *_: [])
    file = path / "ppo" / name
    content = file.read_bytes()
    ends = [place + 1 for place, byte in enumerate(content) if byte == ord("\n")]
    for end in [0, 1, ends[0] - 1, ends[0], ends[0] + 1, ends[-1] - 2]:
        file.write_bytes(content[:end])
        assert "Unfinished" in page(path)


def test_a_report_can_be_written_whatever_is_there_yet(tmp_path, unsaved):
    """Files come one after another: after each, the run is reported."""
    whole = write_run(tmp_path / "whole", stages=("sft", "ppo"), prompts=3, items=1)
    write_training_notes(whole / "ppo", (1, 20, 40))
    files.write_json(whole / "ppo" / "steps.json", {"total": 40})
    order = ["config.json", "overrides.json"]
    for stage in files.read_json(whole / "config.json")["stages"]:
        names = ["steps.json", "metrics.jsonl", "training_samples.jsonl", "warnings.jsonl", "done.json"]
        names += ["skills.jsonl", "samples.jsonl", "evaluation.json"]
        order += [f"{stage}/", *(f"{stage}/{name}" for name in names if (whole / stage / name).exists())]
    path, said = tmp_path / "run", []
    path.mkdir()
    with at_work(path):
        for name in order:
            if name.endswith("/"):
                (path / name).mkdir()
            elif name.endswith("done.json"):
                facts = files.read_json(whole / name)
                files.write_json(path / name, {key: value for key, value in facts.items() if key != "files"})
            else:
                shutil.copy(whole / name, path / name)
            if name != "config.json":
                page(path)
                said.append(pages.progress_of(path).line)
    assert said[0] == "sft is about to begin" and "ppo is running, 40 of 40 iterations are done" in said
    assert "sft is being evaluated" in said and said[-1].startswith("all stages are finished")


def test_a_file_of_a_finished_stage_that_was_cut_is_damaged(whole, tmp_path):
    """In a finished stage nobody is writing a line."""
    shutil.copytree(whole, tmp_path / "run")
    file = tmp_path / "run" / "ppo" / "warnings.jsonl"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(InputError, match="warnings.jsonl, line 2: not a JSON object"):
        pages.write(tmp_path / "run")


# --- what stages note while they train ---------------------------------------------------------------------------


def test_warnings_and_early_ends_stand_in_the_summary_and_in_their_section(whole, tmp_path, unsaved, capsys):
    path = tmp_path / "run"
    shutil.copytree(whole, path)
    done = files.read_json(path / "ppo" / "done.json")
    files.write_json(path / "ppo" / "done.json", done | {"stopped": "the KL was over 9 nats at iteration 40"})
    text = page(path)
    head, section = text.split("## Policies")[0], text.split("## Warnings")[1].split("##")[0]
    assert "PPO ended early: the KL was over 9 nats at iteration 40." in head
    assert "PPO has 2 warnings: kl_and_gold (first at 20); see Warnings." in head
    assert "| PPO | 20 | kl_and_gold | KL rises: so it is | objective/kl | 5 |" in section
    assert cells(text, "ppo")[-1] == "ended early, 2 warnings"
    assert command.main([str(path)]) == 0
    assert "PPO has 2 warnings" in capsys.readouterr().out


def test_completions_are_shown_over_iterations_with_the_best_and_worst(whole, unsaved):
    section = page(whole).split("## Completions in training")[1].split("## ")[0]
    assert "| prompt | after 1 | after 20 | after 40 |" in section
    row = cells(section, "prompt 1 of validation")
    assert row[0] == "so it is, validation 1 at 1 … (1.10, reward_model 1.10, held_out -0.50, KL 0.25)"
    assert row[2].startswith("so it is, validation 1 at 40")
    best = [line for line in section.splitlines() if "| highest |" in line or "| lowest |" in line]
    assert [line.split("|")[1].strip() for line in best] == ["40", "40", "20", "20", "1", "1"]  # the last one first
    assert "| 40 | highest | prompt 2 of highest | so it is, highest 2 at 40 | 6 | 10 | 7 |" in best


def test_validation_stands_beside_training(whole, tmp_path, monkeypatch):
    drawn = {}

    def curve(axis, rows, panel, drawn_as, name, *_, **__):
        found = {name: of_training._points(rows, name) for name in (panel.training, panel.validation)}
        drawn[panel.title.split("\n(")[0]] = {name: len(points) for name, points in found.items() if points}

    path = stopped_in(whole, tmp_path / "run", "ppo", 40)
    names = ("score", "kl", "completion_length", "eos", "gold", "ptx_loss", "scores/held", "scores/reward_model")
    rows = [
        row
        | {"objective/eos": 0.5, "objective/gold": 0.1, "ppo/ptx/loss": 2.0}
        | ({f"valid/{name}": 0.2 + 0.3 * (name != "scores/held") for name in names} if row["step"] % 10 == 0 else {})
        for row in metrics.read_metrics(path / "ppo" / "metrics.jsonl")
    ]
    files.write_json_lines(path / "ppo" / "metrics.jsonl", rows)
    monkeypatch.setattr(of_training, "curve", curve)
    assert of_training.draw_learning(Record.load(path), tmp_path / "learning.png")
    pairs = {"reward score": ("objective/scores", "valid/score"), "KL to the reference": ("objective/kl", "valid/kl")}
    pairs |= {"gold score": ("objective/gold", "valid/gold"), "ends by itself": ("objective/eos", "valid/eos")}
    pairs |= {"completion length (tokens)": ("objective/completion_length", "valid/completion_length")}
    pairs |= {"loss on pretraining text": ("ppo/ptx/loss", "valid/ptx_loss")}
    for title, (training, validation) in pairs.items():
        assert drawn[title] == {training: 40, validation: 4}
    assert drawn["entropy"] == {"objective/entropy": 40} and drawn["score of\nheld"] == {"valid/scores/held": 4}
    assert "score of\nreward_model" not in drawn  # it is the score itself


# --- following ---------------------------------------------------------------------------------------------------


def test_following_writes_at_changes_alone_and_ends_with_the_run(whole, tmp_path, monkeypatch, capsys):
    path = stopped_in(whole, tmp_path / "run", "ppo_ptx")
    file, rows = path / "ppo_ptx" / "metrics.jsonl", (whole / "ppo_ptx" / "metrics.jsonl").read_text().splitlines()
    written, looks = [], []
    monkeypatch.setattr(run_page, "write", lambda path: written.append(len(looks)))
    monkeypatch.setattr(follow.os, "nice", lambda _: None)
    stack = contextlib.ExitStack()
    stack.enter_context(at_work(path))

    def sleep(seconds):
        assert seconds == 7
        looks.append(seconds)
        match len(looks):
            case 2:
                file.write_text("\n".join(rows[:20]) + "\n")
            case 4:
                for name in ("done.json", "skills.jsonl", "samples.jsonl", "evaluation.json", "metrics.jsonl"):
                    shutil.copy(whole / "ppo_ptx" / name, path / "ppo_ptx" / name)
            case 6:
                stack.close()

    follow.follow(path, 7, sleep=sleep)
    assert written == [0, 2, 4, 6] and len(looks) == 6
    assert capsys.readouterr().out.splitlines() == [
        "ppo_ptx is running, 12 of 40 iterations are done",
        "ppo_ptx is running, 20 of 40 iterations are done",
        "all stages are finished; the run is at its end",
        "all stages are finished",
    ]


def test_following_a_finished_run_writes_once_and_ends(whole, monkeypatch, capsys, unsaved):
    monkeypatch.setattr(follow.os, "nice", lambda _: None)
    assert command.main([str(whole), "--follow"]) == 0
    assert "all stages are finished" in capsys.readouterr().out


def test_a_file_that_cannot_be_read_is_tried_once_more(whole, tmp_path, monkeypatch, unsaved, capsys):
    path = tmp_path / "run"
    shutil.copytree(whole, path)
    content, waited = (path / "data_report.json"), []
    content.write_text("{")
    monkeypatch.setattr(follow.os, "nice", lambda _: None)

    def sleep(seconds):
        waited.append(seconds)
        content.unlink()

    follow.follow(path, 5, sleep=sleep)
    assert waited == [1.0]
    content.write_text("{")
    with pytest.raises(InputError, match="data_report.json"):
        follow.follow(path, 5, sleep=lambda _: None)


@pytest.mark.parametrize(
    "flags, said",
    [
        (["a", "b", "--follow"], "--follow takes one directory"),
        (["a", "--every=3"], "--every goes with --follow"),
        (["a", "--compare"], "--compare takes two or more"),
        (["a", "b", "--compare", "--follow"], "--follow takes one directory"),
        (["nowhere", "--follow"], "there is no folder nowhere"),
    ],
)
def test_flags_that_do_not_go_together_are_a_sentence(flags, said, capsys, monkeypatch):
    monkeypatch.setattr(follow, "_PATIENCE", 0)
    monkeypatch.setattr(follow.os, "nice", lambda _: None)
    assert command.main(flags) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


@pytest.mark.parametrize("every", ["0", "-1", "nan", "x"])
def test_a_time_between_looks_is_above_zero(every, capsys):
    with pytest.raises(SystemExit):
        command.main(["a", "--follow", f"--every={every}"])
    assert "--every" in capsys.readouterr().err


# --- sweeps ------------------------------------------------------------------------------------------------------


def test_a_sweep_says_how_far_its_arms_are(tmp_path, unsaved):
    fates = {0: "done", 1: "running", 2: "missing", 3: ("failed", "no memory")}
    config = fake_sweep.CONFIG | {name: fake_sweep.CONFIG[name] | {"iterations": 90} for name in ("ppo", "ppo_ptx")}
    path = fake_sweep.write(
        tmp_path / "sweep",
        fake_sweep.product(seed=tuple(fates)),
        lambda overrides, stage: {"valid/rankings": 9} if stage == "reward_model" else {"gold/total": 0.5},
        fate=lambda overrides: fates[overrides["seed"]],
        history=lambda overrides, stage, step: {"objective/kl": 0.1},
        config=config,
    )
    text = page(path)
    assert "**Unfinished**: 2 of 4 arms have not ended." in text
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| 00")}
    assert "| running | ppo_ptx is stopped, 40 of 90 iterations are done |" in rows["001,seed=1"]
    assert "| missing |  | it has not begun |" in rows["002,seed=2"]
    assert "| failed |  | no memory |" in rows["003,seed=3"]
    progress = pages.progress_of(path)
    assert not progress.finished and progress.at_work and "001,seed=1: ppo_ptx is" in progress.line
    arm = path / "arms" / "001,seed=1" / "arm.json"
    files.write_json(arm, files.read_json(arm) | {"host": socket.gethostname()})
    assert "| stopped | ppo_ptx is stopped" in page(path)  # its process is gone
    for name in ("001,seed=1", "002,seed=2"):
        (path / "arms" / name).mkdir(exist_ok=True)
        files.write_json(path / "arms" / name / "arm.json", {"status": "done"})
    assert "Unfinished" not in page(path) and pages.progress_of(path).finished
