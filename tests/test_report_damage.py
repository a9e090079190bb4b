"""Whatever stands in the files that a report reads, it reports it, or says in a sentence which file is damaged where.

Every value of every file is replaced by a string, null, a list, an object and a number, and taken away. What the reader does not
refuse is reported: values all at once, lists and objects one by one.
"""

import contextlib
import copy
import json

import fake_sweep
import pytest
import test_report_sweep
from test_report import write_run, write_training_notes

from rlhf_jax.report import pages, reproduction, run_page, spec
from rlhf_jax.report.record import Record
from rlhf_jax.report.sweep_report import Sweep
from rlhf_jax.runtime import figures, files
from rlhf_jax.runtime.errors import InputError

MISSING = object()
# Files with many lists and objects, or with the form of another that is damaged as well.
LONG = (
    "data_report.json",
    "sft/evaluation.json",
    "reward_model/evaluation.json",
    "ppo/samples.jsonl",
    "sft/metrics.jsonl",
)
STRANGE = ("x", None, [], {}, -7, MISSING)
PTX, KL = test_report_sweep.PTX, test_report_sweep.KL


def places(value, at=()):
    """Where the values of a JSON value stand; of a list, and of objects of one form beside one another, only the first."""
    yield at
    parts = value.items() if isinstance(value, dict) else list(enumerate(value))[:1] if isinstance(value, list) else ()
    seen = set()
    for name, inner in parts:
        alike = form_of(inner) if isinstance(inner, dict) else name
        if alike not in seen:
            seen.add(alike)
            yield from places(inner, (*at, name))


def form_of(value):
    return tuple((name, form_of(inner)) for name, inner in value.items()) if isinstance(value, dict) else type(value)


def at(value, where):
    for name in where:
        value = value[name]
    return value


def replaced(value, wheres, strange):
    """A copy of a JSON value with something strange at some places."""
    value = copy.deepcopy(value)
    for where in wheres:
        if not where:
            return {} if strange is MISSING else strange
        if strange is MISSING:
            del at(value, where[:-1])[where[-1]]
        else:
            at(value, where[:-1])[where[-1]] = strange
    return value


def survives(file, read, write):
    """Checks that what `read` and `write` make of any damage to a file (of JSON lines: to its first) is no other error."""
    text = file.read_text(encoding="utf-8")
    first, rest = text.split("\n", 1) if file.suffix == ".jsonl" else (text, "")
    whole = json.loads(first)

    def fine(function, wheres, strange) -> bool:
        file.write_text(f"{json.dumps(replaced(whole, wheres, strange))}\n{rest}", encoding="utf-8")
        try:
            function()
        except InputError as error:
            assert str(file) in str(error) and "\n" not in str(error)
            return False
        return True

    for strange in STRANGE:
        taken = [where for where in places(whole) if fine(read, [where], strange)]
        values = [where for where in taken if not isinstance(at(whole, where), (dict, list))]
        if values:
            fine(write, values, strange)
        for where in taken:
            if where not in values:
                fine(write, [where], strange)
    file.write_text(text, encoding="utf-8")


@pytest.fixture
def unsaved(monkeypatch):
    """Figures are drawn and not written, which takes most of the time."""
    monkeypatch.setattr(figures, "_save", lambda *_: None)


# --- a run -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with all that a report can show, whose stages note no checksums."""
    path = write_run(tmp_path_factory.mktemp("damage") / "run", prompts=6, items=2)
    fate = {"given": 9, "dropped": 1, "cut": 2, "longest": 30, "prompts_cut": 3, "repeats": 4}
    splits = {
        "rows": {"train": 7},
        "left_out": {"they repeat another row": 4},
        "near_duplicates": {"in_clusters": 2, "largest": 2},
    }
    padding = {"rows_before": 32, "rows_after": 13, "padding_before": 0.788, "padding_after": 0.479}
    files.write_json(
        path / "data_report.json",
        {
            "files": {"a.txt": {"kept": 1, "skipped": [["a.txt:1", "it is empty"]], "all_tied": 0}},
            "stages": {"sft": {"demonstrations": fate}},
            "splits": {"demonstrations": splits},
            "epochs": {"sft": {"documents": {"a.txt": 0.1}}},
            "packing": {"sft": {"demonstrations": padding}},
        },
    )
    facts = files.read_json(path / "ppo" / "evaluation.json")
    facts["other_weights"] = {"weights": "ema", "estimates": {"kl": {"value": 1.0, "low": 0.0, "high": 2.0}}}
    files.write_json(path / "ppo" / "evaluation.json", facts)
    facts = files.read_json(path / "reward_model" / "evaluation.json")
    facts["labeler_gap"] = {"value": 0.1, "low": None, "high": None, "planted": 0.03}
    files.write_json(path / "reward_model" / "evaluation.json", facts)
    files.write_json(path / "ppo" / "steps.json", {"total": 40})
    write_training_notes(path / "ppo", steps=(1, 20, 40))
    files.write_json(path / "ppo" / "done.json", files.read_json(path / "ppo" / "done.json") | {"stopped": "KL over 9"})
    for done in path.glob("*/done.json"):
        files.write_json(done, {name: value for name, value in files.read_json(done).items() if name != "files"})
    return path


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "overrides.json",
        "sft/done.json",
        "ppo/evaluation.json",
        "ppo/skills.jsonl",
        "ppo/metrics.jsonl",
        *(pytest.param(name, marks=pytest.mark.slow) for name in LONG),
    ],
)
def test_any_damage_to_a_file_of_a_run_is_reported_or_a_sentence(run, name, unsaved):
    survives(run / name, lambda: Record.load(run).read_all(), lambda: pages.write(run))


@pytest.mark.parametrize(
    "name", ["ppo/training_samples.jsonl", "ppo/warnings.jsonl", "ppo/steps.json", "ppo/done.json"]
)
def test_any_damage_to_a_file_that_no_figure_shows_is_reported_or_a_sentence(run, name, monkeypatch):
    for module in (run_page.figures, run_page.safety):
        monkeypatch.setattr(module, "draw_run", lambda *_: [])
    survives(run / name, lambda: Record.load(run).read_all(), lambda: pages.write(run))


@pytest.mark.parametrize(
    "name, where, strange, said",
    [
        ("sft/evaluation.json", ["categories"], MISSING, "it has no 'categories'"),
        (
            "sft/evaluation.json",
            ["estimates", "kl", "value"],
            "0.3",
            "its 'estimates.kl.value' is \"0.3\" and not a number",
        ),
        (
            "sft/evaluation.json",
            ["estimates", "kl", "value"],
            True,
            "its 'estimates.kl.value' is true and not a number",
        ),
        (
            "ppo/evaluation.json",
            ["other_weights", "weights"],
            "x",
            "its 'other_weights.weights' is \"x\" and not 'ema' or 'params'",
        ),
        (
            "reward_model/evaluation.json",
            ["valid", "reliability", 0, "interval"],
            [1],
            "'valid.reliability[0].interval' is [1] and not two",
        ),
        ("config.json", ["stages", 1], "../sft", "its 'stages[1]' is \"../sft\" and not the name of a folder"),
        ("config.json", ["stages", 1], "rlhf", "it has no 'rlhf'"),
        ("config.json", ["ppo", "ptx_coef"], None, "its 'ppo.ptx_coef' is null and not a number"),
        ("sft/done.json", ["finished_at"], 3, "its 'finished_at' is 3 and not a string"),
        ("data_report.json", ["stages"], [], "its 'stages' is [] and not an object"),
        ("ppo/skills.jsonl", ["score"], 1.5, ", line 1, is damaged: its 'score' is 1.5 and not a number from 0 to 1"),
        ("ppo/skills.jsonl", ["task"], "x", "has other few-shot items than"),
        ("ppo/training_samples.jsonl", ["step"], 1.5, ", line 1, is damaged: its 'step' is 1.5 and not a whole number"),
        ("ppo/warnings.jsonl", ["name"], MISSING, ", line 1, is damaged: it has no 'name'"),
        ("ppo/steps.json", ["total"], "9", "its 'total' is \"9\" and not a whole number"),
    ],
)
def test_a_sentence_names_the_place_and_nothing_is_written(run, name, where, strange, said, unsaved):
    file = run / name
    (run / "report.md").unlink(missing_ok=True)
    text = file.read_text()
    first, *rest = text.splitlines() if file.suffix == ".jsonl" else [text]
    file.write_text("\n".join([json.dumps(replaced(json.loads(first), [where], strange)), *rest]))
    with contextlib.ExitStack() as stack:
        stack.callback(file.write_text, text)
        with pytest.raises(InputError) as error:
            pages.write(run)
    assert str(error.value).startswith(str(file)) and said in str(error.value)
    assert not (run / "report.md").exists()


def test_a_curve_that_is_not_finite_everywhere_is_drawn_where_it_is(run, unsaved):
    rows = [{"step": step, "loss": "nan" if step > 5 else 1 / step, "valid/loss": "inf"} for step in range(1, 9)]
    text = (run / "sft" / "metrics.jsonl").read_text()
    for kept in (rows, rows[5:]):
        (run / "sft" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
        pages.write(run)
    (run / "sft" / "metrics.jsonl").write_text(text)


# --- a sweep -----------------------------------------------------------------------------------------------------


def pick(value):
    return spec.Pick("ppo_ptx", {PTX: value})


RULES = (
    spec.All(
        (spec.Trend("skills/mean", "ppo_ptx", PTX, "rises", {KL: 0.08}), spec.Peak("skills/mean", "ppo_ptx", PTX))
    ),
    spec.Greater(pick(0.5), pick(0.0), "gold/total", by=0.1),
    spec.Close(pick(0.5), 1.0, "gold/total", 0.1),
    spec.Dominates(spec.Path("ppo_ptx", PTX), spec.Path("ppo_ptx", PTX), "skills/mean", "gold/total"),
    spec.Turns("objective/kl", "ppo_ptx", "falls"),
    spec.Law("objective/scores", "ppo_ptx", "linear", ("constant",), x="objective/kl"),
    spec.Greater(spec.Pick("ppo_ptx", tuned=PTX), pick(0.0), "gold/total"),
)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    arms = fake_sweep.product(seed=(0, 1), ppo_ptx__ptx_coef=(0.0, 0.5, 2.0), ppo_ptx__kl_coef=(0.08,))
    declared = spec.Declared(
        figures=(
            spec.Curve("gold/total", "ppo_ptx", PTX, by=KL, name="plane", title="x"),
            spec.Plane("skills/mean", "gold/total", (spec.Path("ppo_ptx", PTX),)),
            spec.History("objective/scores", "ppo_ptx", x="objective/kl"),
            spec.Dots("win_rate", ("sft", "ppo_ptx"), by=PTX),
        ),
        tables=(spec.Table(("sft", "ppo_ptx"), ("gold/total", "history:objective/kl@last"), baseline={PTX: 0.0}),),
        claims=tuple(spec.Claim("a paper", "a claim", rule) for rule in RULES),
        baseline={PTX: 0.0},
    )
    return fake_sweep.write(
        tmp_path_factory.mktemp("damage") / "sweep",
        arms,
        test_report_sweep.measure,
        declared,
        history=test_report_sweep.history,
        steps=12,
    )


@pytest.mark.parametrize(
    "name",
    [
        "sweep.json",
        "arm.json",
        "ppo_ptx/evaluation.json",
        "ppo_ptx/metrics.jsonl",
        pytest.param("ppo_ptx/done.json", marks=pytest.mark.slow),
        pytest.param("reward_model/evaluation.json", marks=pytest.mark.slow),
    ],
)
def test_any_damage_to_a_file_of_a_sweep_is_reported_or_a_sentence(sweep, name, unsaved):
    arm = min((sweep / "arms").iterdir())
    file = sweep / name if name == "sweep.json" else arm / name
    survives(file, lambda: Sweep(sweep), lambda: pages.write(sweep))


@pytest.mark.parametrize(
    "where, strange, said",
    [
        (["arms", 0, "name"], "../../x", "its 'arms[0].name' is \"../../x\" and not the name of a folder"),
        (["arms", 0, "overrides", "seed"], "0", "its 'arms[0].overrides.seed' is \"0\" and not a whole number"),
        (["figures", 0, "y"], 3, "Curve: y must be str, not 3"),
        (["figures", 0, "where"], [], "Curve: where must be dict, not ()"),
        (["tables", 0, "stages"], "sft", "Table: stages must be a tuple of str, not 'sft'"),
        (["claims", 2, "rule", "margin"], None, "Close: margin must be float, not None"),
        (
            ["claims", 1, "rule", "is"],
            "Bigger",
            "this version cannot report a Bigger with the fields a, b, by, factor, y",
        ),
        (["baseline"], 3, "Declared: baseline must be dict | None, not 3"),
    ],
)
def test_a_sentence_names_the_place_in_a_sweep(sweep, where, strange, said):
    facts = files.read_json(sweep / "sweep.json")
    with contextlib.ExitStack() as stack:
        stack.callback(files.write_json, sweep / "sweep.json", facts)
        files.write_json(sweep / "sweep.json", replaced(facts, [where], strange))
        with pytest.raises(InputError) as error:
            pages.write(sweep)
    assert str(error.value).startswith(str(sweep / "sweep.json")) and said in str(error.value)


@pytest.mark.parametrize("kind", [spec.History, spec.Dots])
def test_a_sweep_that_names_files_elsewhere_is_given_none(sweep, tmp_path, kind, unsaved):
    """A stage's files are in its folder: what a declaration names outside it is not there."""
    facts = files.read_json(sweep / "sweep.json")
    arm = min((sweep / "arms").iterdir())
    files.write_json(tmp_path / "done.json", {"seconds": 1.0})
    files.write_json(tmp_path / "evaluation.json", {"estimates": {"win_rate": 0.5}})
    (tmp_path / "theirs.jsonl").write_text('{"step": 1, "win_rate": 0.5}\n' * 9)
    up = "../" * len(arm.parts)
    elsewhere = {
        spec.History: spec.History("win_rate", "ppo_ptx", file=f"{up}{tmp_path}/theirs.jsonl"),
        spec.Dots: spec.Dots("win_rate", (f"{up}{tmp_path}",)),
    }[kind]
    with contextlib.ExitStack() as stack:
        stack.callback(files.write_json, sweep / "sweep.json", facts)
        files.write_json(sweep / "sweep.json", facts | {"figures": spec.to_json([elsewhere])})
        pages.write(sweep)
    assert files.read_json(sweep / "verdicts.json")["figures"] == []


@pytest.mark.parametrize("folder", ["tables", "figures"])
def test_nothing_of_a_sweep_is_written_through_a_link_out_of_it(sweep, tmp_path, folder):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "sweep").mkdir()
    for name in ("sweep.json", "arms"):
        (tmp_path / "sweep" / name).symlink_to(sweep / name)
    (tmp_path / "sweep" / folder).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(
        InputError, match=f"{tmp_path / 'sweep' / folder} is a link; remove it, because its files must lie in"
    ):
        pages.write(tmp_path / "sweep")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_any_damage_to_the_verdicts_of_a_sweep_is_reported_or_a_sentence(sweep, unsaved):
    pages.write(sweep)

    def page():
        return reproduction.page_of(sweep.parent)

    survives(sweep / "verdicts.json", page, page)
