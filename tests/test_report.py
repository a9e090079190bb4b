"""Reports, from runs that are written by hand: every number, every missing stage, any text."""

import base64
import dataclasses
import json
import re
import types

import numpy as np
import pytest
import rich.console
from matplotlib.axes import Axes
from ml_collections import ConfigDict

from rlhf_jax import statistics
from rlhf_jax.evaluate import policy, skills
from rlhf_jax.fields import registry
from rlhf_jax.report import __main__ as command
from rlhf_jax.report import figures, html_page, pages, run_benchmarks, run_origin, run_policies, seeds, tables
from rlhf_jax.report import run_page as run_report
from rlhf_jax.report.figures import of_training
from rlhf_jax.report.record import Record
from rlhf_jax.runtime import files, machine
from rlhf_jax.runtime.errors import InputError
from rlhf_jax.statistics import calibration

STAGES = {  # kind, gold, skill, held-out loss
    "pretrain": ("pretrain", -0.2, 0.80, 1.50),
    "sft": ("sft", 0.4, 0.76, 1.60),
    "collect": ("collect", 0, 0, 0),
    "reward_model": ("reward_model", 0, 0, 0),
    "ppo": ("ppo", 0.6, 0.50, 2.00),
    "ppo_ptx": ("ppo", 0.58, 0.70, 1.70),
}
CATEGORIES = {
    "generation": 0.456,
    "open_qa": 0.124,
    "brainstorming": 0.112,
    "chat": 0.084,
    "rewrite": 0.066,
    "summarization": 0.042,
    "classification": 0.035,
    "other": 0.035,
    "closed_qa": 0.026,
    "extract": 0.02,
}


def write_run(path, seed=0, stages=tuple(STAGES), gold=True, prompts=60, items=30):
    """A run directory with the files that the stages leave, and numbers that are made up."""
    rng = np.random.default_rng(seed)
    config = {
        "seed": seed,
        "stages": list(stages),
        "model": {"num_layers": 4},
        **{stage: {"kind": STAGES[stage][0]} for stage in stages},
        **{
            stage: {"kind": "ppo", "ptx_coef": 2.0 * stage.endswith("ptx")}
            for stage in stages
            if STAGES[stage][0] == "ppo"
        },
    }
    path.mkdir(parents=True)
    files.write_json(path / "config.json", config)
    files.write_json(path / "overrides.json", {"ppo.kl_coef": 0.1})
    run = types.SimpleNamespace(
        folder=lambda stage: path / stage,
        stages=lambda wanted: [stage for stage in done if wanted(registry.KINDS[STAGES[stage][0]])],
        giving=lambda what: [],
        config=ConfigDict(config, allow_dotted_keys=True),
    )
    done = []
    names = rng.choice(list(CATEGORIES), prompts, p=list(CATEGORIES.values()))
    for stage in stages:
        (path / stage).mkdir()
        done.append(stage)
        kind, level, skill, loss = STAGES[stage]
        files.write_json(
            path / stage / "done.json",
            {"seconds": 61.0, "finished_at": "2026-01-02T03:04:05+00:00", **machine.described()},
        )
        if kind in ("pretrain", "sft", "reward_model"):
            write_curve(path / stage, rng, 300, lambda t: {"loss": 1 + 3 * np.exp(-t / 40)})
        if kind == "ppo":
            write_curve(
                path / stage,
                rng,
                40,
                lambda t: {
                    "objective/scores": 2 - 2 * np.exp(-t / 15),
                    "objective/kl": t / 4,
                    "objective/completion_length": 14 + t / 10,
                    "objective/entropy": 30 - t / 4,
                },
            )
        if kind == "reward_model":
            files.write_json(path / stage / "evaluation.json", reward_facts(rng))
        if kind not in ("pretrain", "sft", "ppo"):
            continue
        write_policy(run, stage, rng, names, level, skill, loss, items, gold)
    return path


def write_policy(run, stage, rng, names, level, skill, loss, items, gold):
    rows = []
    for index, name in enumerate(names):
        parts = dict.fromkeys(("helpful", "honest", "harmless", "constraint", "concise"), 0.5)
        rows.append(
            {
                "index": index,
                "prompt": f"tell me of | number {index}\nanswer:",
                "completion": f"{stage} says <b>{index}</b> | *so*\nand more",
                "finished": True,
                "category": str(name) if gold else None,
                "kind": "x",
                "gold": parts | {"total": float(rng.normal(level, 0.4))} if gold else None,
                "score": float(rng.normal(level, 1)),
                "kl": 3.0 * (stage != "sft"),
                "logprob": -5.0,
                "length": int(rng.integers(5, 20)),
                "tokens": [3],
            }
        )
    answers = [
        {"task": task, "prompt": f"{task} {n}", "answer": "a", "given": "a", "score": float(rng.random() < skill)}
        for task in ("closed_qa", "translation", "arithmetic")
        for n in range(items)
    ]
    policy.write_rows(run.folder(stage) / "samples.jsonl", rows)
    policy.write_rows(run.folder(stage) / "skills.jsonl", answers)
    retained = {name: value._asdict() for name, value in skills.summarize(answers).items()}
    retained["valid_loss"] = {"value": loss, "low": loss - 0.02, "high": loss + 0.02}
    policy.conclude(run, stage, rows, retained, temperature=1.0)


def write_curve(folder, rng, steps, curve):
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            row = {name: value + rng.normal(0, 0.1) for name, value in curve(step).items()}
            if step % 100 == 0:
                row["valid/loss"] = 1.3
            file.write(json.dumps({"step": step, "time": 0.0} | row) + "\n")


def write_training_notes(folder, steps, text="so it is"):
    """The completions and warnings that a stage notes at some of its steps."""
    samples = [
        {
            "step": step,
            "of": of,
            "index": index,
            "prompt": f"prompt {index} of {of}",
            "completion": f"{text}, {of} {index} at {step}",
            "finished": index != 1,
            "score": step / 10 + index,
            "scores": {"reward_model": step / 10 + index, "held_out": -0.5},
            "kl": step / 4,
            "length": 5 + index,
        }
        for step in steps
        for of, index in [("validation", 0), ("validation", 1), ("highest", 2), ("lowest", 3)]
    ]
    warnings = [
        {
            "step": step,
            "name": "kl_and_gold",
            "metric": "objective/kl",
            "value": step / 4,
            "message": f"KL rises: {text}",
        }
        for step in steps[1:]
    ]
    files.write_json_lines(folder / "training_samples.jsonl", samples)
    files.write_json_lines(folder / "warnings.jsonl", warnings)


def reward_facts(rng):
    def split(noise):
        margins = rng.normal(0.9, 1.2, 600)
        margins *= np.sign(rng.random(600) - 1 / (1 + np.exp(np.abs(margins) * noise)))
        probabilities, outcomes = calibration.from_margins(margins)
        bins = calibration.accuracy_by(np.abs(margins), outcomes, [0, 0.5, 1, 2, 4, np.inf])
        return {
            "prompts": 80,
            "rankings": 95,
            "pairs": 600,
            "accuracy": {"value": 0.71, "low": 0.67, "high": 0.75},
            "log_loss": 0.55,
            "ece": 0.03,
            "by_group": {"plain": 0.7},
            "reliability": [row._asdict() for row in calibration.reliability(probabilities, outcomes)],
            "by_margin": [
                row._asdict() | {"high": None if np.isinf(row.high) else row.high, "accuracy": row.accuracy._asdict()}
                for row in bins
            ],
        }

    bag = {
        "bag_of_words_accuracy": {"value": 0.6, "low": 0.55, "high": 0.65},
        "above_bag_of_words": {"value": 0.11, "low": 0.08, "high": 0.14},
    }
    return {
        "valid": split(1.0) | bag,
        "heldout": split(0.5),
        "demonstration_mean_before_bias": 0.3,
        "labeler_gap": {"value": 0.012, "low": -0.02, "high": 0.046, "planted": 0.03},
        "labelers": {
            "agreement_in_group": 0.727,
            "held_out_group": "caution",
            "folds": {"caution": {"in_group": 0.735, "held_out": 0.705}},
        },
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = write_run(tmp_path_factory.mktemp("report") / "quickstart")
    pages.write(path)
    return path


def cells(text, first):
    """The cells of the table row that starts with `first`."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in line.strip("| ").split(" | ")][1:]


def test_numbers_of_the_table_are_those_of_the_evaluations(run):
    text = (run / "report.md").read_text()
    record = Record.load(run)
    gold = [record.estimate(stage, "gold/total") for stage in ("pretrain", "sft", "ppo")]
    for shown, estimate in zip(cells(text, "gold score"), gold):
        half = (estimate["high"] - estimate["low"]) / 2
        assert shown == f"{estimate['value']:.3f} ± {half:.3f}"
    wins = cells(text, "win rate against SFT (%)")
    assert wins[1] == "–"  # SFT against itself
    assert wins[2].startswith(f"{100 * record.estimate('ppo', 'win_rate')['value']:.1f} ± ")
    assert "|  | base | SFT | PPO | PPO-ptx |" in text
    assert cells(text, "held-out loss (nats/token)")[0] == "1.500 ± 0.020"


def test_tax_is_paired_by_item_and_recovery_is_its_share(run):
    record = Record.load(run)
    rows = record.rows("skills.jsonl")
    scores = {stage: np.array([row["score"] for row in rows[stage]]) for stage in rows}
    tax = np.mean(scores["sft"] - scores["ppo"])
    share = np.mean(scores["ppo_ptx"] - scores["ppo"]) / tax
    plain, mixed = run_policies.tax_lines(record)
    assert f"PPO lost {100 * tax:.1f} ± " in plain and "+0.400 nats per token" in plain
    assert f"recovered {100 * share:.0f} % [" in mixed
    half = float(re.search(r"± ([\d.]+) points", plain)[1])
    unpaired = 196 * np.sqrt(sum(scores[stage].var() for stage in ("sft", "ppo")) / 90)
    assert 0.5 * unpaired < half < 1.5 * unpaired


def test_every_figure_is_drawn_and_shown(run):
    text = (run / "report.md").read_text()
    for name in ("plane", "categories", "learning", "reward_model", "losses"):
        assert f"(figures/{name}.png)" in text
        assert (run / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_kl_names_what_it_refers_to(run, tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(Axes, "set_ylabel", lambda axis, text: titles.append(text))
    for starts, name in ((("sft", "sft"), "SFT"), (("sft", "ppo"), "the reference"), (("a/sft",) * 2, "the reference")):
        record = Record.load(run)
        record.config["ppo"]["init"], record.config["ppo_ptx"]["init"] = starts
        of_training.draw_learning(record, tmp_path / "learning.png")
        assert titles[1] == f"KL to {name}\n(nats per completion)"
        titles.clear()
    for references, name in (
        (("a/sft", "a/sft"), "a/sft"),
        (("a/sft", "b/sft"), "the reference"),
        (("sft",) * 2, "SFT"),
    ):
        evaluations = {
            stage: record.evaluations[stage] | {"reference": reference}
            for stage, reference in zip(("sft", "ppo"), references)
        }
        changed = dataclasses.replace(record, evaluations=evaluations)
        for table in (run_policies.policy_table(changed), seeds.mean_table([changed], list(evaluations))):
            assert {f"KL to {name} (nats)", f"win rate against {name} (%)"} <= {row[0] for row in table.rows}


def test_reward_model_stands_beside_its_ceiling(run):
    text = (run / "report.md").read_text()
    assert cells(text, "accuracy (%)") == ["71.0 ± 4.0", "71.0 ± 4.0"]
    assert cells(text, "accuracy that the labelers' noise allows (%)") == ["73.5", "70.5"]
    assert cells(text, "accuracy of a bag of words (%)") == ["60.0 ± 5.0", "–"]
    assert cells(text, "accuracy above that of the bag of words (points)") == ["11.0 ± 3.0", "–"]
    assert "one group agree on 72.7 %" in text
    assert (
        "less that on held-out labelers: 1.2 ± 3.3 points. For a judge who knows what the mean training labeler wants, it is 3.0 points."
        in text
    )


def test_a_gap_of_an_older_run_has_no_interval(tmp_path):
    path = write_run(tmp_path / "run")
    facts = json.loads((path / "reward_model" / "evaluation.json").read_text())
    facts["labeler_gap"] = {"value": 0.012, "planted": 0.03}
    (path / "reward_model" / "evaluation.json").write_text(json.dumps(facts))
    pages.write(path)
    assert "less that on held-out labelers: 1.2 points. For a judge" in (path / "report.md").read_text()


def test_accuracy_by_what_decides_a_pair(tmp_path):
    path = write_run(tmp_path / "run")
    facts = json.loads((path / "reward_model" / "evaluation.json").read_text())
    share = {"value": 0.7, "low": 0.6, "high": 0.8}
    rows = [
        {"decider": "fact", "pairs": 31, "accuracy": share, "bag_of_words": share | {"value": 0.61}, "ceiling": share}
    ]
    facts["valid"]["by_decider"] = [*rows, {"decider": "new_one", "pairs": 2, "accuracy": share, "ceiling": share}]
    (path / "reward_model" / "evaluation.json").write_text(json.dumps(facts))
    pages.write(path)
    (fact,) = (
        line for line in (path / "report.md").read_text().splitlines() if line.startswith("| a statement is false |")
    )
    (new,) = (line for line in (path / "report.md").read_text().splitlines() if line.startswith("| new_one |"))
    assert [cell.strip().split(" ")[0] for cell in fact.split("|")[2:6]] == ["31", "70.0", "61.0", "70.0"]
    assert new.split("|")[4].strip() == "–"


def test_many_groups_are_summed_up(tmp_path):
    path = write_run(tmp_path / "run")
    facts = json.loads((path / "reward_model" / "evaluation.json").read_text())
    facts["valid"]["by_group"] = {f"question {number}": number / 20 for number in range(21)}
    (path / "reward_model" / "evaluation.json").write_text(json.dumps(facts))
    pages.write(path)
    text = (path / "report.md").read_text()
    assert "question 7" not in text and "0.0 to 100.0 %, median" in text


def test_completions_stand_side_by_side_and_break_no_table(run):
    text = (run / "report.md").read_text()
    table = text.split("## Completions")[1].split("##")[0].strip().splitlines()[2:]
    assert len(table) == 2 + 8
    assert all(len(re.findall(r" \| |^\| | \|$", line)) == 6 for line in table)
    assert "ppo_ptx says &lt;b&gt;" in table[2] and "<b>" not in "".join(table)
    rows = policy.read_rows(run / "sft" / "samples.jsonl")
    shown = [int(re.search(r"number (\d+)", line)[1]) for line in table[2:]]
    assert len({rows[index]["category"] for index in shown}) > 6


def test_how_it_was_made(run):
    text = (run / "report.md").read_text()
    assert "seed: 0" in text and "ppo.kl_coef" in text and "jax " in text
    assert cells(text, "sft")[0] == "1 min 01 s" and cells(text, "all")[0] == "6 min 06 s"
    assert re.search(r"[\d.]+ GiB", text)


def test_terminal_table_fits(run):
    console = rich.console.Console(width=100, record=True, file=open("/dev/null", "w"))
    console.print(pages.write(run))
    shown = console.export_text()
    assert "PPO-ptx" in shown and "retained skills, mean (%)" in shown and "…" not in shown
    assert "recovered" in shown


@pytest.mark.parametrize(
    "stages", [(), ("pretrain",), ("sft",), ("pretrain", "sft"), ("sft", "collect", "reward_model"), ("sft", "ppo_ptx")]
)
def test_missing_stages_are_absent(tmp_path, stages):
    path = write_run(tmp_path / "part", stages=stages, prompts=12, items=3)
    pages.write(path)
    text = (path / "report.md").read_text()
    assert ("| gold score |" in text) == bool(stages)
    assert ("## Reward model" in text) == ("reward_model" in stages)
    assert "## Alignment tax" not in text


def test_stage_that_is_not_evaluated_is_absent(tmp_path):
    path = write_run(tmp_path / "part", stages=("pretrain", "sft"), prompts=12, items=3)
    (path / "sft" / "evaluation.json").unlink()
    (path / "sft" / "done.json").unlink()
    (path / "sft" / "metrics.jsonl").write_text("")
    pages.write(path)
    assert "|  | base |\n" in (path / "report.md").read_text()


def test_without_gold_the_report_says_who_judges(tmp_path):
    path = write_run(tmp_path / "real", gold=False, prompts=12, items=3)
    pages.write(path)
    text = (path / "report.md").read_text()
    assert "by reward score" in text and "gold score |" not in text
    assert not (path / "figures" / "categories.png").exists()


# --- several runs ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeds")
    return [write_run(folder / f"seed{seed}", seed, prompts=40, items=30) for seed in range(3)]


def test_means_and_differences_over_seeds(runs, tmp_path):
    seeds.write(runs, tmp_path / "seeds.md")
    text = (tmp_path / "seeds.md").read_text()
    records = [Record.load(path) for path in runs]

    def values(stage, name="gold/total"):
        return np.array([record.estimate(stage, name)["value"] for record in records])

    mean = statistics.mean_over_seeds(values("sft"))
    assert cells(text, "gold score")[1] == f"{mean.value:.3f} ± {mean.high - mean.value:.3f}"
    gained = values("ppo") - values("sft")
    mean = statistics.mean_over_seeds(gained)
    assert cells(text, "gold: PPO − SFT") == [
        f"{mean.value:.3f} ± {mean.high - mean.value:.3f}",
        *(f"{value:+.3f}" for value in gained),
    ]
    helped = values("ppo_ptx", "gold/helpful") - values("sft", "gold/helpful")
    assert cells(text, "helpful: PPO-ptx − SFT")[1:] == [f"{value:+.3f}" for value in helped]
    wins = 100 * values("ppo_ptx", "win_rate") - 50
    assert cells(text, "win rate of PPO-ptx − 50 (%)")[1:] == [f"{value:+.1f}" for value in wins]
    sft, ppo, ptx = (values(stage, "skills/mean") for stage in ("sft", "ppo", "ppo_ptx"))
    title = "skills (points): share of the tax recovered by PPO-ptx (%)"
    shares = 100 * (ptx - ppo) / (sft - ppo)
    assert cells(text, title)[1:] == [f"{share:+.0f}" for share in shares]
    share = statistics.ratio(ptx - ppo, sft - ppo)  # and not the mean of the three, which one small tax can move far
    assert cells(text, title)[0] == f"{100 * share.value:.0f} ({100 * share.low:.0f} to {100 * share.high:.0f})"
    above = 100 * (ptx - (ppo + sft) / 2)
    assert cells(text, "skills (points): PPO-ptx − midpoint of PPO and SFT")[1:] == [f"{value:+.1f}" for value in above]
    assert cells(text, "held-out loss: PPO − SFT")[0] == "0.400"  # the same in all runs: no interval
    assert (tmp_path / "seeds.png").exists()


def test_a_tax_that_may_well_be_0_gives_its_recovered_share_no_interval():
    assert seeds._recovered([0.5, 0.5, 0.5], [0.49, 0.51, 0.4], [0.5, 0.5, 0.5]) == ["100", "+100", "+100", "+100"]
    assert seeds._recovered([0.5, 0.5], [0.5, 0.4], [0.5, 0.45]) == ["50", "–", "+50"]
    assert seeds._recovered([0.5, 0.5], [0.5, 0.5], [0.5, 0.6]) == ["–", "–", "–"]


@pytest.mark.parametrize("scale", [1, 100])
def test_benchmarks_of_any_scale_are_compared_over_their_items(tmp_path, scale):
    """ROUGE and BLEU of lm-eval's tasks are in percent."""
    path, rng = write_run(tmp_path / "run", 0, prompts=12, items=3), np.random.default_rng(0)
    scores = {stage: rng.random(40) for stage in ("sft", "ppo")}
    for stage, values in scores.items():
        rows = [{"doc_id": n, "filter": "none", "rouge": scale * value} for n, value in enumerate(values)]
        files.write_json_lines(path / stage / "lm_eval.toy.jsonl", rows)
        entry = {"estimates": {"rouge": statistics.mean(scale * values).to_json()}, "items": 40}
        (path / stage / "lm_eval.json").write_text(json.dumps({"toy": entry}))
    text = "\n".join(run_benchmarks.benchmark_sections(Record.load(path))).split("Differences from")[1]
    found = (statistics.paired_difference if scale == 1 else statistics.mean)(
        *([scores["ppo"], scores["sft"]] if scale == 1 else [scale * (scores["ppo"] - scores["sft"])])
    )
    assert cells(text, "toy rouge")[0].startswith(f"{found.value:+.4g} ± {(found.high - found.low) / 2:.2g}")


def test_reward_models_of_several_runs_stand_beside_their_bags_of_words(tmp_path):
    paths, found = [], [(0.70, 0.60, 0.75), (0.66, 0.62, 0.74), (0.68, 0.58, 0.78)]
    for number, (model, words, ceiling) in enumerate(found):
        paths.append(write_run(tmp_path / f"seed{number}", number, prompts=12, items=3))
        file = paths[-1] / "reward_model" / "evaluation.json"
        facts = json.loads(file.read_text())
        facts["valid"] |= {
            "accuracy": {"value": model, "low": model - 0.02, "high": model + 0.02},
            "bag_of_words_accuracy": {"value": words, "low": words - 0.02, "high": words + 0.02},
            "above_bag_of_words": {"value": model - words, "low": model - words - 0.03, "high": model - words + 0.03},
        }
        facts["labelers"]["folds"][facts["labelers"]["held_out_group"]]["in_group"] = ceiling
        file.write_text(json.dumps(facts))
    seeds.write(paths, tmp_path / "seeds.md")
    text = (tmp_path / "seeds.md").read_text().split("## Reward models")[1]
    assert cells(text, "seed1") == ["66.0 ± 2.0", "62.0 ± 2.0", "4.0 ± 3.0", "74.0", "33.3"]
    share = statistics.mean_over_seeds([0.1 / 0.15, 0.04 / 0.12, 0.1 / 0.2])
    means = cells(text, "mean")
    assert (
        means[2].startswith("8.0 ± ")
        and means[4] == f"{100 * share.value:.1f} ± {100 * (share.high - share.value):.1f}"
    )


def test_a_run_counts_once_among_seeds(runs, tmp_path):
    (tmp_path / "link").symlink_to(runs[0])
    with pytest.raises(InputError, match="is given more than once; an interval over runs needs different runs"):
        seeds.write([runs[0], tmp_path / "link"], tmp_path / "seeds.md")


def test_seeds_show_what_all_runs_have(runs, tmp_path):
    short = write_run(tmp_path / "short", stages=("pretrain", "sft"), prompts=12, items=3)
    seeds.write([short, runs[0]], tmp_path / "seeds.md")
    text = (tmp_path / "seeds.md").read_text()
    assert "|  | base | SFT |\n" in text and "gold: SFT − base" in text and "PPO" not in text
    empty = write_run(tmp_path / "empty", stages=())
    with pytest.raises(InputError, match="no policy is evaluated in all"):
        seeds.write([runs[0], empty], tmp_path / "seeds.md")


# --- the command -------------------------------------------------------------------------------


def test_command(runs, tmp_path, capsys):
    assert command.main([str(runs[0])]) == 0
    assert "PPO-ptx" in capsys.readouterr().out
    assert command.main([*map(str, runs), f"--out={tmp_path / 'all.md'}"]) == 0
    assert (tmp_path / "all.md").exists()


@pytest.mark.parametrize("arguments", [["nowhere"], ["nowhere", "nowhere2"]])
def test_no_run_is_one_sentence(arguments, capsys):
    assert command.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "there is no folder nowhere; give the work directory of a run" in error


def test_cells_show_any_text():
    assert tables.cell("a|b <x> *y* _z_\nw") == "a&#124;b &lt;x&gt; \\*y\\* \\_z\\_<br>w"
    assert tables.cell("  part") == "&nbsp;&nbsp;part"


def test_arms_of_an_interval_that_excludes_its_value():
    arms = figures.arms_of({"value": 1.0, "low": 1.2, "high": 3.0})
    assert arms.tolist() == [[0.0], [2.0]]


def test_the_data_section_tells_of_splits_mixtures_and_packing():
    fate = {"given": 9, "dropped": 1, "cut": 2, "longest": 30, "prompts_cut": 3, "repeats": 4}
    near = {"prompts": 8, "clusters": 1, "in_clusters": 2, "largest": 2}
    data = {
        "files": {},
        "stages": {"sft": {"demonstrations": fate}},
        "splits": {
            "demonstrations": {
                "rows": {"train": 7, "valid": 2},
                "left_out": {"they repeat another row": 4},
                "near_duplicates": near,
            }
        },
        "epochs": {"sft": {"documents": {"a.txt": 0.0123}}},
        "packing": {
            "sft": {
                "demonstrations": {"rows_before": 32, "rows_after": 13, "padding_before": 0.788, "padding_after": 0.479}
            }
        },
    }
    page = "\n".join(run_origin.data_sections(types.SimpleNamespace(data=data)))
    assert "| SFT | demonstrations | 9 | 1 | 3 | 2 | 4 | 30 |" in page
    assert "| demonstrations | 7 | 2 | 0 | 0 | 2 | 4: they repeat another row |" in page
    assert "| SFT | documents: a.txt | 0.0123 |" in page
    assert "| SFT | 13 | 47.9 | 32 rows, 78.8 % |" in page


# --- a run of somebody else's ------------------------------------------------------------------------------------

ATTACK = '`b`: "` ![y](/etc/passwd) ![z](../../secret.png) <script>alert(1)</script> [x](javascript:alert(1)) | `` "\n\n# Head\n'


def hostile_run(path, monkeypatch, text=ATTACK):
    """A run in which everything that a report shows says `text`."""
    stage = f"ppo {text}".replace("/", "_")
    monkeypatch.setitem(STAGES, stage, STAGES["ppo"])
    write_run(path, stages=("pretrain", "sft", "reward_model", stage), prompts=8, items=2)
    files.write_json(path / "overrides.json", {text: text, "list": [text]})
    for file in path.glob("*/samples.jsonl"):
        rows = [row | {"prompt": text, "completion": text, "category": text} for row in policy.read_rows(file)]
        policy.write_rows(file, rows)
    facts = files.read_json(path / "reward_model" / "evaluation.json")
    facts["valid"]["by_group"] = {text: 0.5}
    files.write_json(path / "reward_model" / "evaluation.json", facts)
    write_training_notes(path / stage, (1, 20, 40), text)
    stopped = files.read_json(path / stage / "done.json") | {"stopped": text}
    files.write_json(path / stage / "done.json", stopped)
    done = files.read_json(path / "sft" / "done.json")
    files.write_json(
        path / "sft" / "done.json", done | {"hardware": text, "versions": {text: text}, "finished_at": text}
    )
    fate = {"given": 9, "dropped": 1, "cut": 2, "longest": 30, "prompts_cut": 3}
    files.write_json(
        path / "data_report.json",
        {
            "files": {text: {"kept": 1, "skipped": [], "all_tied": 0}},
            "stages": {text: {text: fate}},
            "epochs": {text: {text: {text: 1.0}}},
        },
    )
    return path


@pytest.mark.parametrize("text", ["{}", "[]", "", '{"files": {}}'])
def test_a_damaged_data_report_is_a_sentence(tmp_path, text):
    write_run(tmp_path / "run", stages=("pretrain",))
    (tmp_path / "run" / "data_report.json").write_text(text)
    with pytest.raises(InputError, match="data_report.json"):
        run_report.write(tmp_path / "run")


def test_no_figure_is_written_through_a_link_out_of_the_run(tmp_path):
    write_run(tmp_path / "run", stages=("pretrain", "sft"))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run" / "figures").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="figures is a link"):
        run_report.write(tmp_path / "run")
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.filterwarnings("ignore:Glyph")
def test_nothing_of_a_run_is_more_than_text(tmp_path, monkeypatch, capsys):
    path = hostile_run(tmp_path / "run", monkeypatch)
    (tmp_path / "secret.png").write_bytes(b"\x89PNG the secret")
    assert command.main([str(path), "--html"]) == 0
    page, text = (path / "report.html").read_text(), (path / "report.md").read_text()
    sources = re.findall(r'src="([^"]*)"', page)
    figures_of_run = {path.name for path in (path / "figures").glob("*.png")}
    assert len(sources) == len(figures_of_run) and "root:" not in page
    for source in sources:
        assert base64.b64decode(source.removeprefix("data:image/png;base64,")).startswith(b"\x89PNG\r\n")
    assert (
        "<script" not in page and 'href="javascript' not in page and "<h1>Head" not in page and "<h2>Head" not in page
    )
    assert set(re.findall(r"<(h\d)>([^<]*)", page)) == {
        ("h1", "Report of run"),
        *(("h2", name) for name in re.findall("^## (.*)$", text, re.MULTILINE)),
    }
    assert {"Policies", "Reward model", "Completions", "Data", "How it was made"} <= set(
        re.findall("^## (.*)$", text, re.MULTILINE)
    )
    assert page.count("alert(1)") > 10  # it is all there, to be read


@pytest.mark.parametrize("planted", ["file", "folder", "text"])
def test_a_page_reads_its_own_figures_alone_and_follows_no_link(tmp_path, planted):
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "plane.png").write_bytes(b"\x89PNG the secret")
    run = tmp_path / "run"
    run.mkdir()
    if planted == "folder":
        (run / "figures").symlink_to(tmp_path / "secrets")
    else:
        (run / "figures").mkdir()
        if planted == "file":
            (run / "figures" / "plane.png").symlink_to(tmp_path / "secrets" / "plane.png")
        else:
            (run / "figures" / "plane.png").write_text("root:x:0:0")
    (run / "report.md").write_text("![plane](figures/plane.png)\n")
    with pytest.raises(InputError, match="plane.png is no"):
        html_page.write(run / "report.md")
    for name in (
        "/etc/passwd",
        "../secrets/plane.png",
        "figures/../../secrets/plane.png",
        "a/b/figures/plane.png",
        "secrets/plane.png",
    ):
        (run / "report.md").write_text(f"![plane]({name})\n")
        with pytest.raises(InputError, match="is no figure of this report"):
            html_page.write(run / "report.md")


def test_a_reward_model_alone_shows_its_accuracy(tmp_path, capsys):
    path = write_run(tmp_path / "run", stages=("collect", "reward_model"))
    assert command.main([str(path)]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"accuracy \(%\) +71.0 ± 4.0 +71.0 ± 4.0", shown) and "training labelers" in shown
    assert re.search(r"rankings +95 +95", shown) and re.search(r"prompts +80 +80", shown)
    assert "No policy is evaluated yet." in (path / "report.md").read_text()


def test_where_there_is_nothing_to_show_a_sentence_says_it(tmp_path, capsys):
    path = write_run(tmp_path / "run", stages=("collect", "reward_model"))
    (path / "reward_model" / "evaluation.json").write_text('{"valid": {"rankings": 12}, "demonstrations": 0}')
    assert command.main([str(path)]) == 0
    assert "No validation ranking says that one completion is better than another" in capsys.readouterr().out
    assert command.main([str(write_run(tmp_path / "early", stages=("collect",)))]) == 0
    shown = capsys.readouterr().out
    assert "No policy is evaluated yet." in shown and "──" not in shown
