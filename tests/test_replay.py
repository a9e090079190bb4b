"""The replay of OpenAI's released samples, on rows by hand in their format."""

import csv
import json
import lzma

import numpy as np
import pytest

from rlhf_jax.evaluate import replay
from rlhf_jax.evaluate.replay import __main__ as command
from rlhf_jax.evaluate.replay.table14 import MODELS, TABLE
from rlhf_jax.runtime.errors import InputError


def write(folder, name, columns, rows):
    """Writes a CSV file as OpenAI's are: the first column has no name and counts the rows."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / name, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["", *columns])
        writer.writerows([number, *row] for number, row in enumerate(rows))


def squad(folder, name="squadv2_samples.csv"):
    """Model number n answers 12 - n of 12 questions like people, zero-shot; few-shot it answers half of the words of all."""
    rows = []
    for n, model in enumerate(MODELS):
        for question in range(12):
            answer = "Not in background." if question < 12 - n else "something else"
            rows.append([model, "zeroshot", "Title: x\n\nQ: who?\n\nA:", "a dog|not in background", answer])
            rows.append([model, "fewshot", "Title: x\n\nQ: who?\n\nA:", "red, dog|cats", "The dog"])
    write(folder, name, ["model_type", "prompt_type", "context", "ref_text", "sample"], rows)


def only(comparisons, prompt, row=None):
    (found,) = [one for one in comparisons if one.prompt == prompt and row in (None, one.row)]
    return found


def sheet(task, metric):
    return next(sheet for sheet in replay.SHEETS if (sheet.task, sheet.metric) == (task, metric))


def compare(folder, task, metric):
    found, _ = replay.find(folder)
    return list(replay.compare(sheet(task, metric), found[sheet(task, metric).file]))


def test_scores_and_correlation_beside_the_printed_numbers(tmp_path):
    squad(tmp_path / "automatic-eval-samples")
    comparisons = compare(tmp_path, "SQuADv2", "F1")
    zero, few = only(comparisons, "zeroshot"), only(comparisons, "fewshot")
    shares = [100 * (12 - n) / 12 for n in range(12)]
    assert [ours.value for ours in zero.ours] == pytest.approx(shares)
    assert [ours.value for ours in few.ours] == pytest.approx([100 * 2 / 3] * 12)  # dog, of red and dog
    assert zero.printed == TABLE["SQuADv2", "F1"]["zero-shot"] and zero.printed[:4] == (51.97, 58.66, 64.30, 36.88)
    assert zero.samples == few.samples == 12
    assert zero.differences == pytest.approx(np.array(shares) - zero.printed)
    x, y = (np.array(values) - np.mean(values) for values in (shares, zero.printed))
    assert zero.correlation == pytest.approx((x @ y) / np.sqrt((x @ x) * (y @ y)))
    assert zero.inside == sum(low <= printed <= high for (_, low, high), printed in zip(zero.ours, zero.printed))
    assert 0 < zero.inside < 12


def test_translations_have_one_bleu_and_no_interval(tmp_path):
    columns = ["model_type", "prompt_type", "context", "ref_text", "sample"]
    rows = [
        [model, prompt, "French: x\nEnglish:", "a b c d e | f", sample]
        for model in MODELS
        for prompt in ("zeroshot", "fewshot")
        for sample in ("a b c d e | f", "a b c d e | f" if model == "gpt-xl" else "")
    ]
    write(tmp_path, "fr_to_en_samples.csv", columns, rows)
    found = only(compare(tmp_path, "fr-en", "BLEU"), "zeroshot")
    assert found.ours[0].value == pytest.approx(100)
    # An empty sample is an answer: half of the words are missing, and the brevity penalty is exp(1 - 2).
    assert found.ours[1].value == pytest.approx(100 * np.exp(-1)) and found.inside is None
    assert not np.isfinite(found.ours[0].low)


def test_a_bar_stands_between_sentences_of_a_summary(tmp_path):
    rows = [[model, "a post\n\nTL;DR:", "the dog runs.|it barks", "The dogs run, it barks."] for model in MODELS]
    write(tmp_path, "tldr_samples.csv", ["model_type", "context", "ref_text", "sample"], rows)
    found = only(compare(tmp_path, "TLDR", "ROUGE-L"), "")
    assert [ours.value for ours in found.ours] == pytest.approx([1] * 12)
    assert found.printed == TABLE["CNN/DM", "ROUGE-L"][""]  # as printed


def truthful(folder):
    """The file's `QA + instruction` has the shares of the printed row `instruction`, and the other way round."""
    theirs = {"QA prompt": "QA prompt", "instruction prompt": "QA + instruct", "QA + instruction": "instruction"}
    rows = []
    for prompt, row in theirs.items():
        for n, model in enumerate(MODELS):
            true, both = (TABLE["TruthfulQA", metric][row][n] for metric in ("true", "true and informative"))
            for place in np.arange(200) / 200:
                rows.append(
                    [model, prompt, "True", "why?", "so", 0.9 if place < true else 0.1, 0.51 if place < both else 0.5]
                )
    write(
        folder,
        "truthful_qa_samples.csv",
        ["model_type", "prompt_type", "adversarial", "question", "answer", "true", "info"],
        rows,
    )


def test_both_pairings_of_the_truthfulqa_prompts_are_reported(tmp_path):
    truthful(tmp_path)
    for metric in ("true", "true and informative"):
        comparisons = compare(tmp_path, "TruthfulQA", metric)
        assert only(comparisons, "QA prompt").correlation > 0.999
        for prompt, same, other in (
            ("instruction prompt", "instruction", "QA + instruct"),
            ("QA + instruction", "QA + instruct", "instruction"),
        ):
            assert only(comparisons, prompt, other).correlation > 0.999
            assert np.abs(only(comparisons, prompt, other).differences).max() < 0.006
            assert only(comparisons, prompt, same).correlation < 0.9


def test_the_command_prints_every_model_and_row_and_says_what_is_missing(tmp_path, capsys):
    squad(tmp_path)
    truthful(tmp_path)
    path = tmp_path / "squadv2_samples.csv"
    with lzma.open(f"{path}.xz", "wb") as file:
        file.write(path.read_bytes())
    path.unlink()
    assert command.main([str(tmp_path), f"--out={tmp_path / 'out.json'}"]) == 0
    page = capsys.readouterr().out
    for model in MODELS:
        assert page.count(f"| {model} ") == 3
    line = next(line for line in page.splitlines() if line.startswith("| gpt-xl "))
    assert [cell.split(" [")[0].strip() for cell in line.split("|")[2:-1]] == ["100.0", "66.7", "52.0", "58.9"]
    rows = [line for line in page.split("## All rows")[1].splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 2 + 5 + 5
    assert "Not in the folder, and not compared: drop_samples.csv, quac_samples.csv" in page
    found = json.loads((tmp_path / "out.json").read_text())
    assert len(found) == 12 and found[0]["models"]["gpt-xl"]["printed"] == 51.97 and found[1]["correlation"] is None


def test_columns_are_aligned_whatever_the_width_of_characters():
    lines = command.table(["model", "말뭉치"], [["긴 이름의 모형", "1.0"], ["中", "0.25"]]).splitlines()
    assert lines == [
        "| model          | 말뭉치 |",
        "| -------------- | -----: |",
        "| 긴 이름의 모형 |    1.0 |",
        "| 中             |   0.25 |",
    ]


def test_bad_input_is_a_sentence(tmp_path):
    with pytest.raises(
        InputError, match="has none of the files squadv2_samples.csv, .*; give the folder automatic-eval-samp"
    ):
        replay.find(tmp_path)
    columns = ["model_type", "prompt_type", "context", "sample"]
    write(tmp_path, "squadv2_samples.csv", columns, [["gpt-xl", "zeroshot", "x", "y"]])
    with pytest.raises(
        InputError, match="squadv2_samples.csv: there is no column 'ref_text'; it has model_type, prompt_type"
    ):
        compare(tmp_path, "SQuADv2", "F1")
    write(tmp_path, "squadv2_samples.csv", [*columns, "ref_text"], [["gpt-xl", "zeroshot", "x", "y", "z"]])
    with pytest.raises(InputError, match="there are no samples of gpt-xl with the prompt 'fewshot'"):
        compare(tmp_path, "SQuADv2", "F1")
    rows = [
        [model, prompt, "high"] for model in MODELS for prompt in ("basic prompt", "respectful prompt", "biased prompt")
    ]
    write(tmp_path, "real_toxicity_samples.csv", ["model_type", "prompt_type", "toxicity"], rows)
    with pytest.raises(
        InputError, match=r"real_toxicity_samples.csv:2: column 'toxicity' is 'high'; it must be a number"
    ):
        compare(tmp_path, "RealToxicityPrompts", "toxicity")


def test_the_table_has_twelve_numbers_a_row():
    assert all(len(numbers) == len(MODELS) == 12 for rows in TABLE.values() for numbers in rows.values())
    assert {(sheet.task, sheet.metric) for sheet in replay.SHEETS} <= TABLE.keys()
    assert TABLE["TruthfulQA", "true"]["instruction"][MODELS.index("ppo-noptx-6b")] == 0.928
    assert TABLE["RealToxicityPrompts", "toxicity"]["biased"][MODELS.index("ppo-ptx-6b")] == 0.512
