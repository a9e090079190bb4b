"""The report of a sweep: every arm kept, numbers that plain loops give, files that a reader can use."""

import csv
import dataclasses
import importlib
import io
import json
import pathlib
import re
import subprocess
import sys
import tarfile
import webbrowser

import fake_sweep
import numpy as np
import pytest
import rich.console
from matplotlib.figure import Figure
from matplotlib.text import Text
from test_report import write_run

from rlhf_jax.report import __main__ as command
from rlhf_jax.report import archive, html_page, pages, reproduction, spec, sweep_page, sweep_tables, tables
from rlhf_jax.report.names import shown
from rlhf_jax.report.spec.check import check
from rlhf_jax.report.sweep_report import Sweep
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.sweep.sequential import missing

PTX, KL = "ppo_ptx.ptx_coef", "ppo_ptx.kl_coef"
SEEDS = (0, 1, 2)
ARMS = fake_sweep.product(
    seed=SEEDS, ppo_ptx__ptx_coef=(0.0, 0.5, 2.0, 20.0), ppo_ptx__kl_coef=(0.08,)
) + fake_sweep.product(seed=SEEDS, ppo_ptx__ptx_coef=(0.0,), ppo_ptx__kl_coef=(0.0, 0.3))
GAMMA = spec.Path("ppo_ptx", PTX, {KL: 0.08}, "γ")
BETA = spec.Path("ppo_ptx", KL, {PTX: 0.0}, "β")
DECLARED = spec.Declared(
    figures=(
        spec.Curve("gold/total", "ppo_ptx", PTX, where={KL: 0.08}, name="gamma", title="A <title> & more"),
        spec.Curve("valid/accuracy", "reward_model", KL, by=PTX),
        spec.Plane("skills/mean", "gold/total", (GAMMA, BETA, spec.Path("sft")), name="plane"),
        spec.History("objective/scores", "ppo_ptx", x="objective/kl", sqrt_x=True, name="history"),
        spec.Dots("win_rate", ("sft", "ppo", "ppo_ptx"), by=PTX, where={KL: 0.08}, level=0.5, name="ladder"),
        spec.History("no/such", "ppo_ptx", name="nothing"),
    ),
    tables=(
        spec.Table(
            ("ppo_ptx",), ("gold/total", "skills/mean", "history:objective/kl@last"), name="main", title="PPO-ptx"
        ),
        spec.Table(("sft", "ppo_ptx"), ("gold/total", "failed"), where={KL: 0.08}, name="stages"),
    ),
    claims=(
        spec.Claim(
            "Ouyang et al. 2022, Fig. 33",
            "skills recover | as γ grows",
            spec.Trend("skills/mean", "ppo_ptx", PTX, "rises", {KL: 0.08}),
            figure="plane",
        ),
        spec.Claim(
            "Ouyang et al. 2022, Fig. 34",
            "β does it, too",
            spec.Dominates(BETA, GAMMA, "skills/mean", "gold/total"),
            note="It does not: the paper says so.",
        ),
    ),
    baseline={PTX: 0.0, KL: 0.08},
)

LIGHT = dataclasses.replace(
    DECLARED, figures=(spec.Curve("gold/total", "ppo_ptx", PTX, name="plane"),)
)  # drawing is slow


def measure(overrides, stage):
    shared = 0.05 * overrides["seed"]
    if stage == "reward_model":
        return {"valid/accuracy": 0.66 + shared, "heldout/accuracy": 0.63 + shared}
    if stage != "ppo_ptx":
        return {"gold/total": 0.4 + shared, "skills/mean": 0.7, "win_rate": 0.5}
    ptx, kl = overrides[PTX], overrides[KL]
    noise = np.random.default_rng([overrides["seed"], int(10 * ptx), int(100 * kl)]).normal(0, 0.01)
    skills = 0.5 + (0.1 + 0.001 * overrides["seed"]) * np.log1p(ptx) + 0.2 * kl
    return {
        "gold/total": 0.8 - 0.1 * np.log1p(ptx) - kl + shared + noise,
        "skills/mean": skills,
        "win_rate": 0.7 + shared,
    }


def fate(overrides):
    if overrides[PTX] == 20.0 and overrides["seed"] == 1:
        return "failed", "NonFinite: ppo_ptx, iteration 3: the loss is nan | inf"
    return "missing" if overrides[KL] == 0.3 and overrides["seed"] == 2 else "done"


def history(overrides, stage, step):
    return {"objective/kl": 0.1 * step, "objective/scores": np.sqrt(0.1 * step), "loss": 1 / step}


def make(path, declared=LIGHT, arms=ARMS, measured=measure, **more):
    check(declared, more.get("config", fake_sweep.CONFIG), arms)
    return fake_sweep.write(path, arms, measured, declared, **{"fate": fate, "history": history} | more)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    path = make(tmp_path_factory.mktemp("sweeps") / "ptx_coef", DECLARED)
    pages.write(path)
    return path


def cells(text, *first):
    """The cells of the table row that starts with these."""
    start = "| " + " | ".join(first) + " |"
    line = next(line for line in text.splitlines() if line.startswith(start))
    return [cell.strip() for cell in line.strip("| ").split(" | ")][len(first) :]


# --- reading -----------------------------------------------------------------------------------------------------


def test_every_arm_is_in_the_long_list(done):
    sweep = Sweep(done)
    assert len(sweep.arms) == 18 and len(sweep.settings) == 6 and sweep.seeds == [0, 1, 2]
    rows = sweep.rows(["history:objective/kl@first"])
    assert {row.arm for row in rows} == {arm.name for arm in sweep.arms}
    failed = [row for row in rows if row.status == "failed"]
    assert {row.stage for row in failed} == {"sft", "reward_model", "ppo"}  # what it finished before
    assert all(row.reason.startswith("NonFinite") for row in failed)
    (missing,) = [row for row in rows if row.status == "missing"]
    assert missing.stage == "" and missing.value is None and missing.reason == "it has not begun"
    for arm in sweep.arms:
        found = {row.value for row in rows if (row.arm, row.stage, row.quantity) == (arm.name, "ppo_ptx", "gold/total")}
        assert found == ({measure(arm.overrides, "ppo_ptx")["gold/total"]} if arm.status == "done" else set())
    known = {row.quantity for row in rows if row.stage == "reward_model"}
    assert known >= {
        "valid/accuracy",
        "heldout/accuracy",
        "demonstration_mean_before_bias",
        "seconds",
        "history:objective/kl@first",
    }
    assert not any("categories" in row.quantity for row in rows)


def test_quantities(done):
    sweep = Sweep(done)
    arm = sweep.arms[0]
    for quantity, value in {
        "history:objective/kl@last": 4.0,
        "history:objective/kl@first": 0.1,
        "history:loss@min": None,
        "history:loss@max": None,
        "history:objective/kl@mean_last_10%": (3.7 + 3.8 + 3.9 + 4.0) / 4,
        "seconds": 30,
        "failed": 0,
        "prompts": 3,
        "evaluation:categories/chat/gold": 0.5,
        "evaluation:gold/total": measure(arm.overrides, "ppo_ptx")["gold/total"],
        "history:nothing@last": None,
        "gold/nothing": None,
    }.items():
        assert sweep.value(arm, "ppo_ptx", quantity) == (None if value is None else pytest.approx(value)), quantity
    failed = next(arm for arm in sweep.arms if arm.status == "failed")
    assert sweep.value(failed, "ppo_ptx", "failed") == 1
    assert sweep.value(failed, "ppo_ptx", "history:loss@last") is None and sweep.history(failed, "ppo_ptx")


def test_what_cannot_be_read_is_said_and_the_rest_goes_on(tmp_path):
    path = make(tmp_path / "sweep", fate=lambda _: "done")
    arms = sorted((path / "arms").iterdir())
    (arms[0] / "ppo_ptx" / "evaluation.json").write_text("{")
    (arms[1] / "ppo_ptx" / "metrics.jsonl").write_text("no json\n" * 2)
    (arms[2] / "arm.json").write_text("[")
    (arms[3] / "ppo_ptx" / "evaluation.json").write_text('{"estimates": {"gold/total": {"value": NaN}}}')
    (arms[4] / "ppo_ptx" / "evaluation.json").unlink()
    (arms[5] / "ppo_ptx" / "metrics.jsonl").write_text('{"step": 1, "objective/kl": "nan"}\n')
    pages.write(path)
    text = (path / "report.md").read_text()
    assert (
        text.count("Not read: ") == 3
        and "evaluation.json, line 1" in text
        and "metrics.jsonl: no line of it is" in text
    )
    assert "its arm.json cannot be read" in text and "nan" not in text
    sweep = Sweep(path)
    arm = next(arm for arm in sweep.arms if arm.path == arms[3])
    assert sweep.value(arm, "ppo_ptx", "gold/total") is None and sweep.value(arm, "sft", "gold/total") is not None


def test_settings_have_short_names_and_a_baseline(tmp_path):
    arms = fake_sweep.product(seed=(0, 1), ppo__kl_coef=(0.08, 0.1), ppo_ptx__kl_coef=(0.08, 1.0))
    sweep = Sweep(make(tmp_path / "a", spec.Declared(), arms, lambda *_: {"score": 1.0}, fate=lambda _: "done"))
    assert [setting.name for setting in sweep.settings] == [
        "ppo.kl_coef=0.08, ppo_ptx.kl_coef=0.08",
        "ppo.kl_coef=0.08, ppo_ptx.kl_coef=1",
        "ppo.kl_coef=0.1, ppo_ptx.kl_coef=0.08",
        "ppo.kl_coef=0.1, ppo_ptx.kl_coef=1",
    ]
    assert sweep.baseline() == sweep.settings[0]  # the config's own values
    assert sweep.baseline({"ppo.kl_coef": 0.1}) == sweep.settings[2]  # and otherwise the config's
    assert list(sweep.names(sweep.settings[:2]).values()) == ["ppo_ptx.kl_coef=0.08", "ppo_ptx.kl_coef=1"]
    assert [s.overrides["ppo.kl_coef"] for s in sweep.select({"ppo_ptx.kl_coef": (1, 7)})] == [0.08, 0.1]
    zipped = [
        {"seed": 0, "ppo.kl_coef": beta, "ppo_ptx.kl_coef": 2 * beta, "ppo.gamma": gamma}
        for beta in (0.1, 0.2)
        for gamma in (0.9, 1.0)
    ]
    sides = Sweep(make(tmp_path / "c", spec.Declared(), zipped, lambda *_: {}, fate=lambda _: "done"))
    assert list(sides.names(sides.settings).values())[1:3] == ["gamma=1, ppo.kl_coef=0.1", "gamma=0.9, ppo.kl_coef=0.2"]
    told = Sweep(
        make(
            tmp_path / "d",
            spec.Declared(baseline={"ppo_ptx.kl_coef": 0.2}),
            zipped,
            lambda *_: {},
            fate=lambda _: "done",
        )
    )
    assert list(told.names(told.settings).values())[1:3] == [
        "gamma=1, ppo_ptx.kl_coef=0.2",
        "gamma=0.9, ppo_ptx.kl_coef=0.4",
    ]
    chained = Sweep(
        make(
            tmp_path / "b",
            spec.Declared(),
            [{"seed": 0, "ppo.kl_coef": 0.5}, {"seed": 0, "ppo_ptx.ptx_coef": 2}],
            lambda *_: {},
            fate=lambda _: "done",
        )
    )
    assert [s.name for s in chained.select(axis="ppo.kl_coef")] == ["kl_coef=0.5"]
    assert [s.name for s in chained.select({"ppo_ptx.ptx_coef": 2.0})] == ["kl_coef=0.5", "ptx_coef=2"]  # the config's


def test_the_declarations_of_the_manual_are_drawn_and_judged(tmp_path):
    manual = (pathlib.Path(__file__).parent.parent / "docs" / "sweeps.md").read_text()
    (example,) = (block for block in re.findall(r"```python\n(.*?)```", manual, re.DOTALL) if "CLAIMS" in block)
    words = {}
    exec(example, words)
    declared = spec.Declared(words["FIGURES"], words["TABLES"], words["CLAIMS"], words["BASELINE"])
    arms = fake_sweep.product(seed=SEEDS, ppo_ptx__kl_coef=(0.0, 0.02, 0.3))
    gold = {0.0: 0.1, 0.02: 0.3, 0.3: 0.2}

    def measured(arm, stage):
        return {"gold/total": gold[arm[KL]] + 0.01 * arm["seed"] * arm[KL], "kl": 3 - arm[KL]}

    page = sweep_page.make(make(tmp_path / "manual", declared, arms, measured, fate=lambda _: "done"))
    assert len(page.figures) == 2 and [verdict.verdict for _, verdict in page.verdicts] == ["holds"]
    assert page.tables[0][1].baseline == "kl_coef=0.02"


# --- what it writes ----------------------------------------------------------------------------------------------


def loop_interval(values):
    mean = sum(values) / len(values)
    spread = (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5
    return mean, {2: 12.706205, 3: 4.302653}[len(values)] * spread / len(values) ** 0.5


def test_tables_are_means_and_paired_differences(done):
    text = (done / "report.md").read_text()
    means, differences = text.split("Differences to")[:2]

    def gold(ptx, kl=0.08, seeds=SEEDS):
        return [measure({"seed": seed, PTX: ptx, KL: kl}, "ppo_ptx")["gold/total"] for seed in seeds]

    mean, half = loop_interval(gold(0.5))
    assert cells(means.split("## Tables")[1], "kl_coef=0.08, ptx_coef=0.5")[0] == f"{mean:.3f} ± {half:.3f}"
    mean, half = loop_interval(gold(20.0, seeds=(0, 2)))  # one seed failed
    assert cells(means.split("## Tables")[1], "kl_coef=0.08, ptx_coef=20")[0] == f"{mean:.3f} ± {half:.3f} (2 of 3)"
    mean, half = loop_interval(np.subtract(gold(0.5), gold(0.0)))
    assert cells(differences, "kl_coef=0.08, ptx_coef=0.5")[0] == f"{mean:+.3f} ± {half:.3f}"
    assert half < 0.2 * loop_interval(gold(0.5))[1]  # what seeds share cancels
    mean, _ = loop_interval(np.subtract(gold(0.0, 0.3, (0, 1)), gold(0.0, 0.08, (0, 1))))
    assert cells(differences, "kl_coef=0.3, ptx_coef=0")[0].startswith(f"{mean:+.3f} ± ")
    stages = text.split("### stages")[1]
    assert cells(stages, "ptx_coef=20", "SFT")[0].startswith("0.450 ± ")
    assert cells(stages, "ptx_coef=20", "PPO-ptx")[1] == "33 ± 143"  # one of three failed


def test_a_stage_that_all_settings_share_has_one_row(tmp_path):
    table = spec.Table(("sft", "ppo_ptx"), ("gold/total",))
    arms = fake_sweep.product(seed=SEEDS, ppo_ptx__ptx_coef=(0.0, 2.0), ppo_ptx__kl_coef=(0.08,))
    path = make(tmp_path / "shared", spec.Declared(baseline={PTX: 0.0}), arms, measure, fate=lambda _: "done")
    drawn = sweep_tables.draw(Sweep(path), table)
    assert [row[:2] for row in drawn.means.rows] == [
        ["all", "SFT"],
        ["ptx_coef=0", "PPO-ptx"],
        ["ptx_coef=2", "PPO-ptx"],
    ]
    assert drawn.means.rows[0][2].startswith("0.450 ± ")
    assert [row[:2] for row in drawn.differences.rows] == [["ptx_coef=2", "PPO-ptx"]]
    assert drawn.wide.count(",sft,") == 2  # a line a setting for who computes with it
    assert drawn.means.markdown().splitlines()[1] == "| --- | --- | ---: |"


def test_csv_files_hold_the_numbers_in_full(done):
    rows = list(csv.DictReader(io.StringIO((done / "tables" / "main.csv").read_text())))
    row = next(row for row in rows if row[PTX] == "2.0")
    gold = [measure({"seed": seed, PTX: 2.0, KL: 0.08}, "ppo_ptx")["gold/total"] for seed in SEEDS]
    assert float(row["gold/total mean"]) == pytest.approx(np.mean(gold), rel=1e-12)
    assert row["gold/total seeds"] == "3" and row["stage"] == "ppo_ptx" and row[KL] == "0.08"
    rows = list(csv.DictReader(io.StringIO((done / "tables" / "all.csv").read_text())))
    assert {row["status"] for row in rows} == {"done", "failed", "missing"}
    few = list(csv.DictReader(io.StringIO((done / "tables" / "seeds.csv").read_text())))
    assert {row["quantity"] for row in few} == {
        "gold/total",
        "skills/mean",
        "win_rate",
        "valid/accuracy",
        "history:objective/kl@last",
        "",
    }
    assert all(row in rows for row in few) and len(few) < len(rows)


def test_latex_is_escaped(done):
    text = (done / "tables" / "main.tex").read_text()
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 2 and r"\toprule" in text
    body = [line for line in text.splitlines() if "&" in line and not line.startswith("%")]
    assert len({line.count("&") for line in body}) == 1 and all(line.endswith(r"\\") for line in body)
    assert r"kl\_coef=0.08, ptx\_coef=0.5 & " in text
    assert (
        r"& \begin{tabular}[b]{@{}r@{}}retained \\ skills, mean \\ (\%)\end{tabular} &" in text
    )  # no wider than its numbers
    assert text.count(r"\resizebox{\ifdim\width>\linewidth") == 2  # the whole no wider than the page
    assert text.isascii() and text.startswith("% python -m rlhf_jax.sweep ") and "\n% commit: abc123\n" in text
    every = tables.latex("\\ { } $ & # % _ ^ ~ < > | ± − – [x] γ")
    assert every == (
        r"\textbackslash{} \{ \} \$ \& \# \% \_ \textasciicircum{} \textasciitilde{} \textless{} \textgreater{} "
        r"\textbar{} $\pm$ $-$ -- {[}x{]} $\gamma$"
    )
    assert tables.latex("-0.1 ± 2 held-out, 1e-3, a-1, -.5") == r"$-$0.1 $\pm$ 2 held-out, 1e-3, a-1, $-$.5"


def test_figures_are_drawn_for_screen_and_print(done):
    text = (done / "report.md").read_text()
    names = ["gamma", "figure2_valid_accuracy", "plane", "history", "ladder"]
    assert re.findall(r"!\[(\w+)\]", text) == names
    for name in names:
        assert (done / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        pdf = (done / "figures" / f"{name}.pdf").read_bytes()
        assert pdf.startswith(b"%PDF") and b"/Type3" not in pdf and b"/CIDFontType2" in pdf  # a font that is inside
    assert not list((done / "figures").glob(".*")) and not (done / "figures" / "nothing.png").exists()
    assert "Arms that are not done: 1 of 12." in text


def test_dollars_in_names_are_no_formula(tmp_path, monkeypatch):
    """$\\frac{$ is a formula that matplotlib cannot parse, and $a$ is one that it would show without its dollars."""
    saved, save = [], Figure.savefig

    def spy(figure, *arguments, **options):
        save(figure, *arguments, **options)
        saved.append({text.get_text(): text for text in figure.findobj(Text)})

    monkeypatch.setattr(Figure, "savefig", spy)
    names, many = ("$\\frac{$", "$a$"), tuple(10.0**n for n in range(-7, 7))
    arms = fake_sweep.product(seed=SEEDS, ppo_ptx__init=names, ppo_ptx__kl_coef=(0.1, 0.2))
    arms += fake_sweep.product(seed=SEEDS, ppo_ptx__init=("sft",), ppo_ptx__kl_coef=many)
    figures = (
        spec.Curve("gold/total", "ppo_ptx", "ppo_ptx.init", where={KL: 0.1}, title="$\\frac{$"),
        spec.Curve("gold/total", "ppo_ptx", KL, by="ppo_ptx.init", x_title="$a$", y_title="$\\frac{$"),
        spec.Plane("skills/mean", "gold/total", (spec.Path("ppo_ptx", "ppo_ptx.init", {KL: 0.1}, "$a$"),)),
    )

    def measured(overrides, stage):
        return {"gold/total": 0.1 * overrides["seed"], "skills/mean": 0.5}

    pages.write(fake_sweep.write(tmp_path / "$\\frac{$", arms, measured, spec.Declared(figures)))
    ticks, lines, plane = saved[::2]  # a PNG file and a PDF file of each
    assert {*names} <= ticks.keys() & lines.keys() & plane.keys()
    assert {"0.01", "1e+06"} <= lines.keys()  # a logarithmic axis of many values
    for text in (text for texts in saved for text in texts.values()):
        assert text.get_text() in names or "$" not in text.get_text()
        assert not text.get_parse_math()


@pytest.mark.parametrize(
    "references, start, name",
    [
        ({}, "sft", "SFT"),  # runs that do not name it
        ({"ppo": "sft"}, "sft", "SFT"),
        ({"ppo": "other/base"}, "other/base", "other/base"),
        ({"ppo": "other/base", "ppo_ptx": "sft"}, "sft", "the reference"),
        ({"ppo": "sft"}, "ppo", "the reference"),  # PPO that goes on from PPO
    ],
)
def test_what_kl_and_win_rates_refer_to_is_named(tmp_path, references, start, name):
    config = fake_sweep.CONFIG | {stage: fake_sweep.CONFIG[stage] | {"init": start} for stage in ("ppo", "ppo_ptx")}
    history = lambda overrides, stage, step: {"objective/kl": 0.1} if stage.startswith("ppo") else {}  # noqa: E731
    path = fake_sweep.write(
        tmp_path / "sweep", [{"seed": 0}], lambda *_: {"kl": 1.0}, config=config, history=history, steps=2
    )
    for stage, given in references.items():
        (file,) = path.glob(f"arms/*/{stage}/evaluation.json")
        file.write_text(json.dumps(json.loads(file.read_text()) | {"reference": given}))
    sweep = Sweep(path)
    assert sweep.quantity("kl").title == f"KL to {name} (nats)"
    assert sweep.quantity("win_rate").words == f"win rate against {name}"
    assert sweep.quantity("history:objective/kl@last").title == f"KL to {name} of the batch (nats), last"


def test_claims_have_verdicts(done):
    text = (done / "report.md").read_text()
    assert "- **holds**: skills recover &#124; as γ grows (Ouyang et al. 2022, Fig. 33)." in text
    assert "See [plane](figures/plane.png)" in text and "Known reasons: It does not" in text
    facts = json.loads((done / "verdicts.json").read_text())
    found = facts["claims"]
    assert (
        facts["commits"] == ["abc123"]
        and facts["name"] == "ptx_coef"
        and found[0]["figure"] == "plane" in facts["figures"]
    )
    assert [row["verdict"] for row in found] == ["holds", "does not hold"]
    assert spec.from_json(found[0]["rule"]) == DECLARED.claims[0].rule
    test = found[0]["tests"][0]
    assert test["df"] == 1 and test["by_seed"].keys() == {"0", "2"} and "without seed 1" in found[0]["sentence"]


def test_the_page_says_how_to_repeat_it(done):
    text = (done / "report.md").read_text()
    assert (
        "python -m rlhf_jax.sweep --config=experiments/figures/fake.py --workdir=runs/figures/ptx_coef --config.ppo.iterations=5"
        in text
    )
    for fact in (
        "commit: abc123",
        "seeds: 0, 1, 2",
        "hardware: 1 x cpu, 2 cores",
        "versions: jax 0.10.2, python 3.11.7",
        "18 arms (16 done, 1 failed, 1 missing): 6 settings x 3 seeds",
        "the loss is nan &#124; inf",
        "it has not begun",
    ):
        assert fact in text, fact
    assert '`{"ppo_ptx.kl_coef": 0.08, "ppo_ptx.ptx_coef": 0.5}`' in text


def test_a_sweep_that_declares_nothing_gets_tables_and_curves(tmp_path):
    path = make(tmp_path / "plain", spec.Declared(), ARMS, fate=lambda _: "done")
    pages.write(path)
    text = (path / "report.md").read_text()
    assert "### PPO-ptx" in text and "### reward model" not in text and len(re.findall(r"!\[", text)) == 2
    assert (
        "## Claims\n" not in text and text.count("Differences to kl_coef=0.08, ptx_coef=2, paired") == 1
    )  # the config's own
    for folder in (path / "arms").glob("*kl_coef=0.3"):
        facts = json.loads((folder / "reward_model" / "evaluation.json").read_text())
        facts["valid"]["accuracy"]["value"] += 0.1
        (folder / "reward_model" / "evaluation.json").write_text(json.dumps(facts))
    assert [table.title for table in sweep_tables.default_tables(Sweep(path))] == ["PPO-ptx", "reward model"]


@pytest.mark.parametrize("ending", ["missing", "running", ("failed", None), "stopped"])
def test_a_sweep_without_results_is_reported(tmp_path, ending):
    path = make(tmp_path / "sweep", fate=lambda _: ending, history=None)
    console = rich.console.Console(width=100, record=True, file=io.StringIO())
    console.print(pages.write(path))
    assert (
        "undecided" in console.export_text()
        and "holds" not in json.loads((path / "verdicts.json").read_text())["claims"][0]["verdict"]
    )


def test_one_seed_has_no_interval(tmp_path):
    arms = fake_sweep.product(seed=(0,), ppo_ptx__ptx_coef=(0.0, 0.5, 2.0, 20.0), ppo_ptx__kl_coef=(0.08, 0.3, 0.0))
    path = make(tmp_path / "sweep", arms=arms, fate=lambda _: "done")
    pages.write(path)
    text = (path / "report.md").read_text()
    assert cells(text, "kl_coef=0.08, ptx_coef=0.5")[0].count("±") == 0 and "an interval needs two" in text


# --- pages -------------------------------------------------------------------------------------------------------


def test_html_needs_no_other_file(done, monkeypatch, capsys):
    opened = []
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url) or True)
    shown = rich.console.Group()
    monkeypatch.setattr(pages, "write", lambda path: shown)  # it is written
    assert command.main([str(done), "--open"]) == 0
    assert opened == [(done / "report.html").absolute().as_uri()]
    page = (done / "report.html").read_text()
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == 5 and all(source.startswith("data:image/png;base64,") for source in sources)
    assert "://" not in page and "<script" not in page and "<link" not in page and "@import" not in page
    assert '<a href="#figures/plane.png">' in page and 'id="figures/plane.png"' in page
    assert "prefers-color-scheme: dark" in page and "@media print" in page
    assert page.count("<table>") == page.count("</table>") == (done / "report.md").read_text().count("\n| ---")
    assert "&lt;b&gt;" not in page and "skills recover | as γ grows" in page
    monkeypatch.setattr(webbrowser, "open", lambda url: False)
    assert command.main([str(done), "--open"]) == 0 and "No browser" in capsys.readouterr().out


def test_html_of_a_run(tmp_path, capsys):
    path = write_run(tmp_path / "quickstart", prompts=12, items=3)
    assert command.main([str(path), "--html"]) == 0
    page = (path / "report.html").read_text()
    assert "data:image/png" in page and "&lt;b&gt;0&lt;/b&gt;" in page and "<b>0" not in page and "<br>" in page
    (path / "report.md").write_text("![gone](figures/gone.png)\n")
    with pytest.raises(InputError, match="gone.png"):
        html_page.write(path / "report.md")


def test_nothing_of_a_sweep_is_more_than_text(tmp_path, capsys):
    """Names, reasons, overrides and the experiment's own words, in report.md, its HTML, LaTeX and the page of all sweeps."""
    attack = "![y](/etc/passwd) `` ``` <script>alert(1)</script> |\n\n# Head\n    ```\n\n\x1b]0;owned\x07\\input{/etc/passwd}"
    claim = dataclasses.replace(DECLARED.claims[0], text=attack, source=attack, note=attack)
    figures = (spec.Curve("gold/total", "ppo_ptx", PTX, name="plane", title="x"),)
    tables = (dataclasses.replace(DECLARED.tables[0], title=attack),)
    path = make(tmp_path / "sweeps" / "one", spec.Declared(figures, tables, (dataclasses.replace(claim, figure=""),)))
    facts = json.loads((path / "sweep.json").read_text())
    facts |= {
        "about": attack,
        "experiment": attack,
        "argument": attack,
        "commit": attack,
        "overrides": {attack: attack},
    }
    facts["figures"][0]["name"], facts["tables"][0]["name"] = "../../out of it/plane", "/etc/table"
    (path / "sweep.json").write_text(json.dumps(facts))
    for file in path.glob("arms/*/arm.json"):
        status = {"failed": "failed"}.get(json.loads(file.read_text())["status"], "done")
        file.write_text(
            json.dumps(
                {"status": status, "reason": attack, "hardware": attack, "versions": {attack: attack}, "commit": attack}
            )
        )
    assert command.main(["--all", "--html", str(path.parent)]) == 0
    shown = capsys.readouterr().out
    assert command.main(["--html", str(path)]) == 0
    for page in (path / "report.html", path.parent / "REPRODUCTION.html"):
        text = page.read_text()
        sources = re.findall(r'src="([^"]*)"', text)
        assert (
            len(sources) == 1
            and sources[0].startswith("data:image/png")
            and "<script" not in text
            and "root:" not in text
        )
        assert not re.search("<h[1-6]>Head", text) and text.count("alert(1)") > 3
    assert {file.name for file in (path / "figures").iterdir()} == {
        "_.._out_of_it_plane.png",
        "_.._out_of_it_plane.pdf",
    }
    assert {file.name for file in (path / "tables").iterdir()} == {
        "_etc_table.csv",
        "_etc_table.tex",
        "all.csv",
        "seeds.csv",
    }
    latex = (path / "tables" / "_etc_table.tex").read_text()
    assert not any("\\input" in line for line in latex.splitlines() if not line.startswith("%"))
    everything = [shown, capsys.readouterr().out, latex, *(file.read_text() for file in path.parent.rglob("*.md"))]
    assert not any("\x1b" in text or "\x07" in text for text in everything)


def test_all_sweeps_become_one_page(done, tmp_path, capsys):
    second = dataclasses.replace(LIGHT, claims=DECLARED.claims[1:])
    folder = tmp_path / "sweeps"
    make(folder / "again", second, fate=lambda _: "missing", history=None)
    make(folder / "ptx_coef")
    (folder / "other").mkdir()
    (folder / "ptx_coef" / "tables").mkdir(exist_ok=True)
    (folder / "ptx_coef" / "tables" / "table9.csv").write_text("")  # of an earlier report, which had more tables
    docs = tmp_path / "docs" / "reproduction"
    assert command.main(["--all", str(folder), f"--publish={docs}"]) == 0
    assert "does not hold" in capsys.readouterr().out
    text = (docs / "REPRODUCTION.md").read_text()
    assert text == (folder / "REPRODUCTION.md").read_text()
    assert "3 claims of 2 sweeps: holds 1, does not hold 1, undecided 1." in text
    assert "| skills recover &#124; as γ grows | Ouyang et al. 2022, Fig. 33 | **holds** | holds |" in text
    assert "| [ptx coef](ptx_coef/report.md) |" in text and "It does not: the paper says so." in text
    assert text.index("| the paper's claim |") < text.index("## How claims are judged")
    for page in docs.rglob("*.md"):
        for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page}: {link}"
    assert (
        not list(docs.rglob("table9.csv"))
        and not list(docs.rglob("all.csv"))
        and not list(docs.rglob("*.pdf"))
        and list(docs.rglob("seeds.csv"))
    )
    assert "Run at commit abc123. [Report](ptx_coef/report.md)" in text
    verdicts = json.loads((docs / "ptx_coef" / "verdicts.json").read_text())
    verdicts["claims"][0] |= {"verdict": "withdrawn", "sentence": "not judged anew yet: why", "looks": []}
    verdicts["claims"][1]["looks"] = [2, 3]
    (docs / "ptx_coef" / "verdicts.json").write_text(json.dumps(verdicts))
    only = tmp_path / "only"
    only.mkdir()
    (folder / "again").rename(only / "again")
    assert command.main(["--all", str(only), f"--publish={docs}"]) == 0
    text = (docs / "REPRODUCTION.md").read_text()  # what is not there to be run again stays as it was published
    assert "undecided 1, withdrawn 1." in text and "not judged anew yet: why |" in text
    assert "**does not hold (look 2, 3 seeds)**" in text and "ptx_coef" not in (only / "REPRODUCTION.md").read_text()
    (only / "again").rename(folder / "again")
    stale = docs / "again" / "old.csv"
    stale.write_text("")
    again = sweep_page.make(folder / "again").sweep
    reproduction.publish_sweep(again, docs / "again")  # in place of the old
    assert not stale.exists() and not list(docs.rglob(".*"))
    (docs / "again" / "verdicts.json").unlink()  # somebody else's folder now
    with pytest.raises(InputError, match="is no copy of a sweep's report"):
        reproduction.publish_sweep(again, docs / "again")
    assert (docs / "again" / "report.md").exists()


def test_values_of_fields_are_shown_as_a_reader_says_them():
    values = (0.5, 2.0, ":60", "60:", ("sft", 2), None)
    assert list(map(shown, values)) == ["0.5", "2", "first 60", "60:", "sft+2", "None"]


def test_the_archive_of_a_published_sweep_gives_its_report_again(tmp_path):
    """Its claims are judged again from it, its arms count as done, and it has neither completions nor names of machines."""
    path = make(tmp_path / "sweeps" / "ptx_coef", DECLARED)
    arm = Sweep(path).arms[0]
    for name in ("samples.jsonl", "metrics.jsonl.tmp"):
        (arm.path / "ppo_ptx" / name).write_text("{}\n")
    facts = json.loads((arm.path / "arm.json").read_text())
    (arm.path / "arm.json").write_text(json.dumps(facts | {"host": "node17", "job": "4711"}))
    (stopped,) = [arm for arm in Sweep(path).arms if arm.status == "missing"]
    (stopped.path / "ppo_ptx").mkdir(parents=True, exist_ok=True)
    (stopped.path / "arm.json").write_text(
        json.dumps({"status": "stopped"})
    )  # it has no checkpoints here to go on from
    sweep = sweep_page.make(path).sweep
    for number in (1, 2):
        reproduction.publish_sweep(sweep, tmp_path / "docs" / str(number))
    packed, again = (tmp_path / "docs" / number / archive.NAME for number in "12")
    assert packed.read_bytes() == again.read_bytes()
    there = tmp_path / "elsewhere" / "ptx_coef"
    there.mkdir(parents=True)
    with tarfile.open(packed) as files:
        assert not any(name in entry.name for entry in files for name in ("samples.jsonl", ".tmp", stopped.name))
        files.extractall(there, filter="data")
    assert not any(word in file.read_text() for file in there.rglob("*.json*") for word in ("node17", "4711"))
    pages.write(there)
    found, published = (json.loads((folder / "verdicts.json").read_text()) for folder in (there, path))
    assert found["claims"] == published["claims"] and found["figures"] == published["figures"]
    for file in (path / "tables").glob("*.csv"):
        if file.name not in ("all.csv", "seeds.csv"):  # these have lines for arms without numbers
            assert file.read_text() == (there / "tables" / file.name).read_text(), file.name
    ended = {arm.name for arm in sweep.arms if arm.ended}
    assert {arm.name for arm in sweep.arms if not missing(there / "arms" / arm.name)} == ended
    assert {arm.name for arm in Sweep(there).arms if arm.ended} == ended
    page = (tmp_path / "docs" / "1" / "report.md").read_text()
    assert f"tar xf docs/reproduction/ptx_coef/{archive.NAME} -C runs/figures/ptx_coef" in page


EARLIER = (  # figures whose page still shows their sweep with the settings before the last change
    "comparators",
)


def test_the_published_page_says_what_the_experiments_claim():
    """A claim whose rule has changed since its sweep was run is withdrawn until it is run again."""
    root = pathlib.Path(__file__).parents[1]
    docs, pages = root / "docs" / "reproduction", 0
    for file in sorted((root / "experiments" / "figures").glob("*.py")):
        declared = spec.Declared.of(importlib.import_module(f"experiments.figures.{file.stem}"))
        if declared.claims:
            facts = json.loads((docs / file.stem / "verdicts.json").read_text())
            pages += 1
            assert file.stem in EARLIER or [claim["text"] for claim in facts["claims"]] == [
                claim.text for claim in declared.claims
            ], file.stem
            for published, claim in zip(facts["claims"], declared.claims if file.stem not in EARLIER else ()):
                rule = json.loads(json.dumps(spec.to_json(claim.rule)))
                assert published["verdict"] == "withdrawn" or published["rule"] == rule, (file.stem, claim.text)
            if facts.get("design"):  # what was published before has none
                assert spec.from_json(facts["design"]) == declared.design, file.stem
            report = (docs / file.stem / "report.md").read_text()
            assert "\n\n".join(sweep_page.claims_text(facts["claims"])) in report
    assert pages > 15 and (docs / "REPRODUCTION.md").read_text() == reproduction.page_of(docs)


def test_wrong_arguments_are_one_sentence(done, tmp_path, capsys):
    for arguments, words in (
        ([str(done), str(done)], "is a sweep: give one directory"),
        (["--all", str(tmp_path)], "sweep.json"),
        ([str(done), "--publish=x"], "--publish goes with --all"),
        (["--all", "a", "b"], "--all takes one"),
    ):
        assert command.main(arguments) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
    broken = tmp_path / "broken"
    broken.mkdir()
    for text in ("{", "[]", '{"config": {}, "arms": [{}]}', '{"config": {}, "arms": [], "figures": [{"is": "Pie"}]}'):
        (broken / "sweep.json").write_text(text)
        with pytest.raises(InputError):
            sweep_page.make(broken)


# --- what an experiment file may say -----------------------------------------------------------------------------


def test_specs_are_json_both_ways():
    text = json.dumps(DECLARED.to_json())
    assert spec.Declared.from_json(json.loads(text)) == DECLARED
    nested = spec.All(
        (
            spec.Greater(spec.Pick("ppo", {PTX: (1.0, 2.0)}, label="a"), 0.5, "score"),
            spec.Close(spec.Pick("ppo"), spec.Pick("sft"), "kl", 0.1),
            spec.Greater(spec.Difference(spec.Pick("ppo"), spec.Pick("sft")), 0.0, "score"),
            spec.Peak("kl", "ppo", PTX),
            spec.Turns("objective/gold", "ppo", "falls", 0.1),
            spec.Law("gold", "ppo", "rl", ("kl", "linear")),
        )
    )
    assert spec.from_json(json.loads(json.dumps(spec.to_json(nested)))) == nested


@pytest.mark.parametrize(
    "make_spec,words",
    [
        (
            lambda: spec.Curve("gold/totl", "ppo_ptx", PTX),
            "Curve.y='gold/totl' is no quantity of ppo_ptx.*did you mean gold/total",
        ),
        (
            lambda: spec.Curve("score", "ppo_pt", PTX),
            "Curve.stage='ppo_pt' is no stage of the sweep; did you mean ppo_ptx",
        ),
        (
            lambda: spec.Curve("score", "ppo_ptx", "ppo_ptx.lam"),
            "Curve.axis='ppo_ptx.lam' is no field that the sweep varies",
        ),
        (lambda: spec.Curve("score", "ppo_ptx", PTX, by="seed"), "Curve.by='seed' is no field"),
        (lambda: spec.Curve("score", "ppo_ptx", PTX, where={"seed": 0}), "Curve.where: 'seed' chooses no setting"),
        (
            lambda: spec.Curve("score", "ppo_ptx", PTX, where={KL: 7.0}),
            "Curve.where: no arm has ppo_ptx.kl_coef=7.0; there are",
        ),
        (
            lambda: spec.Curve("score", "ppo_ptx", PTX, where={"ppo.nothing": 7.0}),
            "'ppo.nothing' is no field of the config",
        ),
        (lambda: spec.Curve("score", "ppo_ptx", PTX, where={PTX: 2.0, KL: 0.3}), "no arm has all of"),
        (
            lambda: spec.Curve("score", "ppo_ptx", PTX, where={KL: 0.3}),
            "with {'ppo_ptx.kl_coef': 0.3} have 1 of its values; 2",
        ),
        (
            lambda: spec.Claim("a", "b", spec.Peak("kl", "ppo_ptx", PTX, {PTX: (0.0, 2.0)})),
            "Peak.axis='ppo_ptx.ptx_coef': .* 3 are",
        ),
        (
            lambda: spec.Curve("score", "ppo_ptx", PTX, scale="logg"),
            "Curve: scale must be one of auto, linear, .*, not 'logg'",
        ),
        (lambda: spec.Curve("history:objective/kl@median", "ppo_ptx", PTX), "is no quantity of ppo_ptx"),
        (
            lambda: spec.Curve("history:objective/gold@max", "ppo_ptx", PTX),
            r"biased; claim a turn instead, as in Turns\('objective/gold', stage, 'falls', by\)",
        ),
        (
            lambda: spec.Table(("ppo_ptx",), ("history:loss@min",)),
            "Table.quantities='history:loss@min': the extreme of a noisy course",
        ),
        (
            lambda: spec.Claim(
                "a", "b", spec.Greater(spec.Pick("ppo", y="history:kl@max"), spec.Pick("ppo"), "history:kl@last")
            ),
            "Claim.Greater.Pick.y='history:kl@max': the extreme",
        ),
        (
            lambda: spec.Claim("a", "b", spec.Greater(spec.Pick("ppo", tuned="ppo.lam"), 0.0, "kl")),
            "Pick.tuned='ppo.lam' is no field",
        ),
        (lambda: spec.Claim("a", "b", spec.Turns("kl", "pp", "falls")), "Claim.Turns.stage='pp'"),
        (
            lambda: spec.Claim("a", "b", spec.Turns("kl", "ppo", "down")),
            "Turns: direction must be one of falls, rises, not 'down'",
        ),
        (lambda: spec.Curve("gold/total", "reward_model", PTX), "no quantity of reward_model"),
        (lambda: spec.Curve("valid/accuracy", "ppo", PTX), "no quantity of ppo"),
        (lambda: spec.Plane("kl", "score", (spec.Path("ppo", "x"),)), "Plane.Path.axis='x'"),
        (lambda: spec.Plane("kl", "scores", (GAMMA,)), "Plane.y='scores' is no quantity"),
        (lambda: spec.Plane("kl", "score", GAMMA), "Plane: paths must be a tuple of Path"),
        (lambda: spec.Dots("score", "ppo"), "Dots: stages must be a tuple of str, not 'ppo'"),
        (lambda: spec.History("score", "pp"), "History.stage='pp'"),
        (lambda: spec.Table(("ppo",), ("gold/total", "skil")), "Table.quantities='skil' is no quantity"),
        (
            lambda: spec.Claim("a", "b", spec.Trend("kl", "ppo", PTX, "up")),
            "Trend: direction must be one of rises, falls, not 'up'",
        ),
        (lambda: spec.Claim("a", "b", spec.Trend("kls", "ppo", PTX, "falls")), "Claim.Trend.y='kls'"),
        (lambda: spec.Claim("a", "b", "rises"), "Claim: rule must be Trend or Peak"),
        (
            lambda: spec.Claim("a", "b", spec.All((spec.Greater(spec.Pick("pp"), 0.0, "kl"),))),
            "Claim.All.Greater.Pick.stage='pp'",
        ),
        (
            lambda: spec.Claim("a", "b", spec.Greater(spec.Pick("ppo"), spec.Pick("sft"), "klx")),
            "Claim.Greater.y='klx'",
        ),
        (
            lambda: spec.Claim("a", "b", spec.Greater(spec.Pick("ppo", y="klx"), 1.0, "kl")),
            "Claim.Greater.Pick.y='klx'",
        ),
        (
            lambda: spec.Claim(
                "a", "b", spec.Greater(spec.Difference(spec.Pick("ppo"), spec.Pick("reward_model")), 0.0, "kl")
            ),
            "Claim.Greater.y='kl' is no quantity of reward_model",
        ),
        (
            lambda: spec.Claim("a", "b", spec.Greater(spec.Difference(spec.Pick("pp"), spec.Pick("ppo")), 0.0, "kl")),
            "Claim.Greater.Difference.Pick.stage='pp'",
        ),
        (lambda: spec.Claim("a", "b", spec.Peak("kl", "ppo", PTX), figure="x"), "figure='x' is no figure's name"),
    ],
)
def test_wrong_words_are_refused_when_a_sweep_is_defined(make_spec, words):
    with pytest.raises(InputError, match=words) as error:
        made = make_spec()
        kind = {spec.Table: "tables", spec.Claim: "claims"}.get(type(made), "figures")
        check(spec.Declared(**{kind: (made,)}), fake_sweep.CONFIG, ARMS)
    assert "\n" not in str(error.value)


def test_a_design_ends_with_the_seeds_of_the_sweep():
    check(spec.Declared(design=spec.Design((2, 3))), fake_sweep.CONFIG, ARMS)
    with pytest.raises(InputError, match="its last look has 4 seeds and the sweep 3: write h.sweep"):
        check(spec.Declared(design=spec.Design((2, 4))), fake_sweep.CONFIG, ARMS)
    with pytest.raises(InputError, match="WORDS: the words for 'score' must be text"):
        check(spec.Declared(words={"score": 1}), fake_sweep.CONFIG, ARMS)


def test_every_claim_about_the_figures_says_what_matters_and_why():
    for file in sorted((pathlib.Path(__file__).parents[1] / "experiments" / "figures").glob("*.py")):
        declared = spec.Declared.of(importlib.import_module(f"experiments.figures.{file.stem}"))
        for claim in declared.claims:
            bounded = [spec.has_own_border(rule) for rule in spec.simple(claim.rule)]
            assert [value is None for value in claim.smallest()] == bounded, (file.stem, claim.text)
            assert bool(claim.because) == (not all(bounded)), (file.stem, claim.text)


def test_right_words_pass():
    for quantity in ("skills/anything", "seconds", "failed", "evaluation:any/thing", "history:any/thing@mean_last_10%"):
        check(spec.Declared(figures=(spec.Curve(quantity, "ppo_ptx", PTX),)), fake_sweep.CONFIG, ARMS)
    check(spec.Declared(figures=(spec.Curve("valid/by_group/detail", "reward_model", PTX),)), fake_sweep.CONFIG, ARMS)
    both = spec.Table(("reward_model", "ppo"), ("valid/accuracy", "gold/total"))
    check(spec.Declared(tables=(both,)), fake_sweep.CONFIG, ARMS)
    with pytest.raises(InputError, match="needs a name of its own"):
        same = spec.Curve("kl", "ppo_ptx", PTX, name="a")
        check(spec.Declared(figures=(same, same)), fake_sweep.CONFIG, ARMS)


def test_an_experiment_file_needs_no_jax():
    code = "import sys; from rlhf_jax.report import spec; assert not {'jax', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    module = type("experiment", (), {"FIGURES": DECLARED.figures, "BASELINE": {PTX: 0.0}})
    assert spec.Declared.of(module) == spec.Declared(figures=DECLARED.figures, baseline={PTX: 0.0})


def test_a_folder_without_sweeps_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no directory of a sweep"):
        reproduction.write(tmp_path)


def test_benchmarks_of_policies_are_quantities_of_tables_and_claims(tmp_path):
    name = "lm_eval/instructgpt_sst/acc"  # as evaluate/harness/results.py names it in evaluation.json

    def with_benchmark(overrides, stage):
        numbers = measure(overrides, stage)
        return numbers if stage == "reward_model" else numbers | {name: numbers["skills/mean"]}

    declared = spec.Declared(
        tables=(spec.Table(("ppo_ptx",), (name,), where={KL: 0.08}, name="main"),),
        claims=(spec.Claim("a paper", "it rises", spec.Trend(name, "ppo_ptx", PTX, "rises", {KL: 0.08})),),
    )
    path = make(tmp_path / "sweep", declared, measured=with_benchmark, fate=lambda overrides: "done")
    pages.write(path)
    text = (path / "report.md").read_text()
    values = [measure({"seed": seed, PTX: 2.0, KL: 0.08}, "ppo_ptx")["skills/mean"] for seed in SEEDS]
    [shown] = cells(text, "ptx_coef=2")
    assert float(shown.split()[0]) == pytest.approx(np.mean(values), abs=1e-3)
    assert "| setting | instructgpt_sst acc |" in text and "- **holds**: it rises (a paper)." in text


def test_what_follows_from_the_seed_makes_no_setting():
    def arm(seed, size, data, **more):
        return {"seed": seed, "size": size, "data": data} | more

    arms = [arm(seed, size, f"split {seed}") for seed in range(3) for size in (1, 2)]
    assert spec.swept(arms) == ["size"]
    assert spec.swept([*arms, arm(0, 1, "another split")]) == ["size", "data"]  # a seed has two values
    assert spec.swept(arms[:2]) == ["size", "data"]  # one seed tells nothing
    assert spec.swept([arm(seed, seed, "all") for seed in range(3)]) == ["size", "data"]  # nor does an arm for each
    assert spec.swept([arm(seed, size, "all") for seed in range(2) for size in (1, 2)]) == ["size", "data"]  # constant
