"""The toxicity command: whose number it is, its tables, and what a scorer that fails leaves behind."""

import json
import sys

import numpy as np
import pytest

from rlhf_jax.evaluate import completions, toxicity
from rlhf_jax.evaluate.toxicity import __main__ as command
from rlhf_jax.runtime.errors import InputError

SHARE_OF_X = "def score(rows):\n    return [row['text'].count('x') / len(row['text']) for row in rows]\n"
ROWS = [
    {"group": group, "prompt": {"text": f"p{n % 4}", "toxicity": n % 4 / 3}, "completion": "x" * (n + at) + "o" * 9}
    for at, group in enumerate(("basic", "respectful", "biased"))
    for n in range(8)
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A current directory with rows and a scorer."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "share_of_x", raising=False)
    write(tmp_path / "rows.jsonl", ROWS)
    (tmp_path / "share_of_x.py").write_text(SHARE_OF_X)
    return tmp_path


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_tables_are_the_means_of_the_rows_in_them(folder, capsys):
    assert command.main(["--data=rows.jsonl", "--scorer=share_of_x:score", "--out=out.jsonl"]) == 0
    assert capsys.readouterr().out.startswith("toxicity by share_of_x:score, which is not the Perspective API\n")
    out = read(folder / "out.jsonl")
    expected = [row["completion"].count("x") / len(row["completion"]) for row in ROWS]
    assert [row.pop("toxicity") for row in out] == expected and out == ROWS
    facts = json.loads((folder / "out.jsonl.summary.json").read_text())
    assert facts["scorer"] == "share_of_x:score" and facts["is_perspective"] is False
    cells = {(cell["group"], tuple(cell["prompts"] or ())): cell for cell in facts["cells"]}
    assert len(cells) == 1 + 3 + 3 * 4  # 0, 1/3, 2/3 and 1: 1 is in the last bin
    for (group, prompts), cell in cells.items():
        own = [
            value
            for row, value in zip(ROWS, expected)
            if group in (None, row["group"])
            and (not prompts or prompts[0] <= row["prompt"]["toxicity"] < prompts[1] + (prompts[1] == 1))
        ]
        assert cell["rows"] == len(own) and cell["mean"]["value"] == pytest.approx(np.mean(own))
        assert cell["above_half"]["value"] == pytest.approx(np.mean(np.array(own) > 0.5))
        assert cell["mean"]["low"] <= cell["mean"]["value"] <= cell["mean"]["high"]


def test_completions_of_one_prompt_are_one_unit_of_the_interval(folder):
    def width(prompts):
        write(folder / "some.jsonl", [{"prompt": f"p{n % prompts}", "text": "x" if n % 2 else "o"} for n in range(64)])
        rows = toxicity.read(["some.jsonl"])
        [cell] = toxicity.summary(rows, [float("x" in row.text) for row, _ in rows])
        return cell.mean.high - cell.mean.low

    assert width(4) > 2 * width(64)


def test_several_files_are_groups_by_their_names(folder):
    for name in ("basic", "biased"):
        write(folder / f"{name}.jsonl", [{"doc": {"prompt": "p"}, "resps": [["a"]], "filtered_resps": ["b"]}])
    rows = toxicity.read(["basic.jsonl", "biased.jsonl"])
    assert [(row.text, row.prompt, group) for row, group in rows] == [("b", "p", "basic"), ("b", "p", "biased")]


def test_a_scorer_that_dies_leaves_no_output_and_the_next_start_goes_on(folder, capsys):
    (folder / "judge.py").write_text(
        "import json, pathlib, sys\n"
        "asked = pathlib.Path('asked')\n"
        "for line in sys.stdin:\n"
        "    count = len(asked.read_text()) if asked.exists() else 0\n"
        "    if count == 10: asked.write_text('x' * 11); sys.exit('the GPU fell off the bus')\n"
        "    asked.write_text('x' * (count + 1))\n"
        "    print(json.loads(line)['text'].count('x') / 100, flush=True)\n"
    )
    arguments = ["--data=rows.jsonl", f"--command={sys.executable} judge.py", "--out=out.jsonl"]
    assert command.main(arguments) == 2
    said = capsys.readouterr().err.strip().split("\n")[-1]
    assert said.endswith("status 1 after 10 answers to 24 rows (the GPU fell off the bus)")
    assert not (folder / "out.jsonl").exists() and len(read(folder / "out.jsonl.answers")) == 10
    assert command.main(arguments) == 0
    assert len((folder / "asked").read_text()) == 25  # 10, one that was not answered, and the other 14
    assert [row["toxicity"] for row in read(folder / "out.jsonl")] == [
        row["completion"].count("x") / 100 for row in ROWS
    ]


@pytest.mark.parametrize(
    "row, said",
    [
        ({"prompt": "p"}, "rows.jsonl:1: no field completion, answer, continuation or text"),
        ({"completion": 3}, "rows.jsonl:1: field 'completion' is a number, and must be a string"),
        ({"completion": "a", "toxicity": 0}, "the field 'toxicity' is there already; name another with --field"),
        (
            {"completion": "a", "prompt_toxicity": 2},
            "the toxicity of the prompt is 2, and must be a number from 0 to 1",
        ),
        ({"doc": {}, "resps": [[[-1.5, False]]]}, "field 'resps' holds no text"),
    ],
)
def test_bad_rows_are_one_sentence_before_anything_is_asked(folder, capsys, row, said):
    write(folder / "rows.jsonl", [row])
    assert command.main(["--data=rows.jsonl", "--scorer=no_such:f", "--out=out.jsonl"]) == 2
    assert said in capsys.readouterr().err


def test_a_question_is_the_last_one_of_its_prompt(folder):
    prompt = "Q: What is 1 + 1?\nA: 2\n\nQ: What is it\nthat is 2?\nA:"
    write(
        folder / "some.jsonl", [{"prompt": prompt, "answer": "2"}, {"prompt": "Why?", "question": "Who?", "text": ""}]
    )
    assert [row.question for row in completions.read("some.jsonl")] == ["What is it\nthat is 2?", "Who?"]
    (folder / "some.jsonl").write_text("")
    with pytest.raises(InputError, match="empty"):
        completions.read("some.jsonl")
